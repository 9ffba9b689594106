"""The audit trail against a naive one that remembers everything and looks at every event."""

from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import batch
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import QueueSettings
from vibemq.errors import BeyondLog, RequestError, UsageError
from vibemq.history.audit import KINDS, Filter, MessageId, select
from vibemq.history.names import Names
from vibemq.history.replay import kind_of
from vibemq.history.times import parse_time, rfc3339
from vibemq.history.wording import facts, words
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.effects import Find, StoredBatch
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults

QUEUES = ("a", "b", "a.dlq")
CLIENTS = ("shop", "worker", "")


class Kept(NamedTuple):
    """A record as `select` needs it."""

    offset: int
    time_us: int
    tag: int
    event: e.Event


class World:
    """A broker in memory whose records are kept. Every command is given by small numbers."""

    def __init__(self) -> None:
        self.broker = Broker(Projector(), Limits(), QueueDefaults(QueueSettings(max_attempts=2)))
        self.kept: list[Kept] = []
        self.connections: list[int] = []
        self.subscriptions: list[tuple[int, int]] = []
        self.broker.journal.now_us = 1_000
        self.broker.start("0", 0)
        self.end_turn()

    def end_turn(self) -> None:
        journal = self.broker.journal
        self.broker.deliveries.dispatch()
        while journal.loads:  # all messages are alike, so what is to be read back is known
            load = journal.loads.pop()
            if isinstance(load, Find):
                self.broker.found(load, load.first)
                continue
            one = Batch(b"".join(batch.pack([b"x"])))
            self.broker.loaded(load, [StoredBatch(load.queue, load.lane, load.sequence, 0, 0, 0, 0, 0, one)])
            self.broker.deliveries.dispatch()
        for record in journal.records:
            self.kept.append(Kept(len(self.kept), record.time_us, record.event.TAG, record.event))
        journal.records.clear()
        journal.effects.clear()

    def do(self, name: str, first: int, second: int) -> None:
        self.broker.journal.now_us += 1_000
        with suppress(RequestError):  # refused: nothing happened
            getattr(self, name)(first, second)
        self.end_turn()

    def connect(self, first: int, second: int) -> None:
        address = f"10.0.0.{first % 2}:{second}"
        self.connections.append(self.broker.connect(CLIENTS[first % 3], address, "binary", 0))

    def client(self, second: int) -> int:
        if not self.connections:
            self.connect(second, second)
        return self.connections[second % len(self.connections)]

    def publish(self, first: int, second: int) -> None:
        bodies = [b"x"] * (second % 3 + 1)
        self.broker.publishing.publish(
            Publish(self.client(second), 1, QUEUES[first % 3], 0, Batch(b"".join(batch.pack(bodies))))
        )

    def subscribe(self, first: int, second: int) -> None:
        connection = self.client(second)
        self.broker.subscribe(Subscribing(connection, 1, QUEUES[first % 3], None, second % 6, 1 << 20))
        self.subscriptions.append((connection, self.broker.journal.state.topology.next_subscription - 1))

    def purge(self, first: int, second: int) -> None:
        self.broker.queues.purge(self.client(second), 1, QUEUES[first % 3])

    def delete(self, first: int, second: int) -> None:
        self.broker.delete(self.client(second), 1, QUEUES[first % 3])

    def disconnect(self, first: int, second: int) -> None:
        connection = self.client(second)
        self.connections.remove(connection)
        self.subscriptions = [one for one in self.subscriptions if one[0] != connection]
        self.broker.disconnect(connection, "lost" if first % 2 else "", lost=bool(first % 2))

    def restart(self, first: int, _: int) -> None:
        self.connections.clear()
        self.subscriptions.clear()
        if first % 2:
            self.broker.stop("stopped")
        self.end_turn()
        journal = self.broker.journal
        self.broker = Broker(journal.state, Limits(), QueueDefaults(QueueSettings(max_attempts=2)))
        self.broker.journal.now_us = journal.now_us
        self.broker.start("0", 0)

    def settle(self, first: int, second: int) -> None:
        if not self.subscriptions:
            return
        connection, number = self.subscriptions[first % len(self.subscriptions)]
        deliveries = self.broker.deliveries
        found = deliveries.find(connection, number)
        if found is None:
            return
        start = max(1, found.next_delivery - 1 - second % 5)
        runs = ((start, start + 1), (start + 2, start + 4)) if first % 2 else ((start, start + 2),)
        if second < 5:
            deliveries.ack(connection, number, runs, 1)
        elif second < 8:
            deliveries.nack(connection, number, runs, 1, delay_ms=None, reason="r", reject=second == 7)
        else:
            deliveries.extend(connection, number, runs, 10, 1)

    def credit(self, first: int, second: int) -> None:
        if self.subscriptions:
            connection, number = self.subscriptions[first % len(self.subscriptions)]
            self.broker.deliveries.credit(connection, number, second, 1 << 20, 0, -1)
        self.broker.tick()


COMMANDS = {
    "connect": 2,
    "publish": 6,
    "subscribe": 3,
    "purge": 1,
    "delete": 0.3,
    "disconnect": 0.7,
    "restart": 0.2,
    "settle": 10,
    "credit": 4,
}
"""How often each command comes."""


def world_of(seed: int) -> World:
    """A history of 100 commands."""
    random, world = Random(seed), World()
    for name in random.choices(list(COMMANDS), list(COMMANDS.values()), k=100):
        world.do(name, random.randrange(10), random.randrange(10))
    return world


class Naive:
    """Everything that was ever said, and where every message is."""

    def __init__(self, kept: list[Kept]) -> None:
        queues = {0: ""}
        clients: dict[int, tuple[str, str]] = {}
        subscriptions: dict[int, int] = {}
        self.touched: list[set[str]] = []
        self.queues: list[set[str]] = []
        self.clients: list[tuple[int, str, str] | None] = []
        for record in kept:
            event = record.event
            if isinstance(event, e.QueueDeclared):
                queues[event.queue] = event.name
            if isinstance(event, e.ClientConnected):
                clients[event.connection] = event.name, event.address
            if isinstance(event, e.Subscribed):
                subscriptions[event.subscription] = event.connection
            both = (getattr(event, "queue", 0), getattr(event, "dead_queue", 0))
            self.queues.append({queues[number] for number in both if number})
            number = getattr(event, "connection", 0) or subscriptions.get(getattr(event, "subscription", 0), 0)
            self.clients.append((number, *clients[number]) if number else None)
        self._messages(kept)

    def _messages(self, kept: list[Kept]) -> None:
        here: dict[tuple[int, int], str] = {}  # (queue, sequence) -> id, while it is not settled
        held: set[str] = set()
        for record in kept:
            event, touched = record.event, set[str]()
            if isinstance(event, e.Published):
                for at in range(event.count):
                    here[event.queue, event.sequence + at] = f"{record.offset}-{at}"
                    touched.add(f"{record.offset}-{at}")
            elif isinstance(event, e.BrokerStarted | e.BrokerStopped):
                touched, held = held, set()
            elif isinstance(event, e.QueuePurged | e.QueueDeleted):
                gone = [key for key, one in here.items() if key[0] == event.queue]
                if isinstance(event, e.QueuePurged):
                    gone = [key for key in gone if here[key] not in held]
                touched = {here.pop(key) for key in gone}
                held -= touched
            else:
                touched = _settled(event, here, held)
            self.touched.append(touched)

    def offsets(self, kept: list[Kept], wanted: Filter) -> list[int]:
        """What `select` must find."""
        return [record.offset for record in kept if self._asked(record, wanted)]

    def _asked(self, record: Kept, wanted: Filter) -> bool:
        client = self.clients[record.offset]
        return (
            wanted.since_us <= record.time_us
            and (wanted.until_us is None or record.time_us < wanted.until_us)
            and (not wanted.kinds or record.tag in wanted.kinds)
            and (wanted.queue is None or wanted.queue in self.queues[record.offset])
            and (wanted.message is None or f"{wanted.message[0]}-{wanted.message[1]}" in self.touched[record.offset])
            and (wanted.client is None or (client is not None and _called(client, wanted.client)))
        )


def _settled(event: e.Event, here: dict[tuple[int, int], str], held: set[str]) -> set[str]:
    """The messages in an event's spans, and what becomes of them."""
    queue, spans = getattr(event, "queue", 0), getattr(event, "spans", ())
    keys = [(queue, number) for _, low, high in spans for number in range(low, high)]
    touched = {here[key] for key in keys}
    if isinstance(event, e.Delivered):
        held |= touched
    elif isinstance(event, e.Released | e.Acked | e.DeadLettered):
        held -= touched
    if isinstance(event, e.Acked | e.DeadLettered):
        moved = [here.pop(key) for key in keys]
        if isinstance(event, e.DeadLettered) and event.dead_queue:
            here |= {(event.dead_queue, event.dead_sequence + at): one for at, one in enumerate(moved)}
    return touched


def _called(client: tuple[int, str, str], wanted: str) -> bool:
    number, name, address = client
    return wanted in {name or "nobody", address, address.split(":")[0], f"#{number}"}


def filter_of(random: Random, kept: list[Kept]) -> Filter:
    """Some filter; most leave something out by two or three criteria."""
    published = [record for record in kept if isinstance(record.event, e.Published)]
    message = None
    if published and random.random() < 0.5:
        record = random.choice(published)
        assert isinstance(record.event, e.Published)
        message = MessageId(record.offset, random.randrange(record.event.count))
    times = (0, kept[-1].time_us + 2_000)
    return Filter(
        random.choice([*QUEUES, "unknown"]) if random.random() < 0.3 else None,
        random.choice(["shop", "worker", "10.0.0.1", "10.0.0.0:3", "#2", "nobody at all"])
        if random.random() < 0.3
        else None,
        message,
        frozenset(random.choices(sorted(KINDS.values()), k=4)) if random.random() < 0.3 else frozenset(),
        random.randrange(*times) if random.random() < 0.3 else 0,
        random.randrange(*times) if random.random() < 0.3 else None,
    )


@given(seed=st.integers(0, 1 << 32))
def test_filters_find_what_a_naive_filter_finds(seed: int) -> None:
    random, kept = Random(seed), world_of(seed).kept
    naive = Naive(kept)
    for _ in range(20):
        wanted = filter_of(random, kept)
        found = list(select(kept, wanted))
        assert [entry.offset for entry in found] == naive.offsets(kept, wanted), wanted
        for entry in found:
            client = naive.clients[entry.offset]
            assert (entry.client is None) == (client is None)
            assert entry.client is None or tuple(entry.client) == client
            assert entry.queue is None or entry.queue in naive.queues[entry.offset]


def test_the_histories_have_all_kinds_of_event() -> None:
    seen = {record.tag for seed in range(30) for record in world_of(seed).kept}
    never = {e.Tag.CLIENT_REFUSED, e.Tag.PRODUCERS_FORGOTTEN, e.Tag.SEGMENT_SEALED, e.Tag.MADE_READY}
    assert seen == set(e.CATALOGUE) - never


def some_history() -> list[Kept]:
    world = World()
    for name, second in (
        ("connect", 1),
        ("publish", 2),
        ("subscribe", 3),
        ("settle", 6),
        ("settle", 1),
        ("disconnect", 0),
    ):
        world.do(name, 0, second)
    return world.kept


@pytest.mark.parametrize(("text", "error"), [("3-9", "holds"), ("0-0", "published no message")])
def test_an_id_that_names_no_message_is_refused(text: str, error: str) -> None:
    kept = some_history()
    text = text.replace("3", str(next(record.offset for record in kept if record.tag == e.Tag.PUBLISHED)))
    with pytest.raises(UsageError, match=error):
        list(select(kept, Filter(message=MessageId.parse(text))))


def test_an_id_beyond_the_log_is_told_apart() -> None:
    with pytest.raises(BeyondLog, match="no record 999"):
        list(select(some_history(), Filter(message=MessageId(999, 0))))


@pytest.mark.parametrize("text", ["", "12", "12-", "-1", "a-b", "1-2-3", "\uff11-\uff10", "1 - 2"])
def test_what_is_no_message_id(text: str) -> None:
    with pytest.raises(UsageError, match="no message id"):
        MessageId.parse(text)


def test_reading_ends_where_nothing_can_follow() -> None:
    kept = some_history()
    read: list[int] = []

    def reading() -> Iterator[Kept]:
        for one in kept:
            read.append(one.offset)
            yield one

    found = select(reading(), Filter(until_us=kept[3].time_us))
    assert [entry.offset for entry in found] == [one.offset for one in kept if one.time_us < kept[3].time_us]
    assert max(read) <= 3


EVENTS = [
    e.BrokerStarted("0.1\x1b[2J", False, 1),
    e.ClientRefused("1.2.3.4", "too many\nconnections", 2),
    e.ClientConnected(1, "evil\x1b]0;x\x07", "1.2.3.4:5", "json"),
    e.QueueDeclared(1, "q", QueueSettings(dead_letter_queue="x\ny"), 0),
    e.DeadLettered(1, 0, 1, ((0, 1, 2),), 3, e.DeadReason.REJECTED, 1, "a\r\nb", 0, 0, ((1, 0, 1),)),
    e.Released(1, 0, 1, ((3, 1, 2), (0, 4, 9)), 3, e.ReleaseReason.NACKED, True, 1 << 62, "\x9b"),
    e.SegmentSealed(0, 4, b"\xff" * 32, bytes(32)),
    e.ProducersForgotten((1, 2, 3)),
    e.MadeReady(1, 0, tuple((0, n, n + 1) for n in range(1, 40, 2))),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: kind_of(event.TAG))
def test_text_from_outside_stays_in_its_line(event: e.Event) -> None:
    text = words(7, event, Names())
    assert text.isprintable()
    assert facts(event).keys() == set(event.__struct_fields__)


def test_every_kind_has_words_and_facts() -> None:
    kept = some_history()
    assert {entry.text != "" for entry in select(kept, Filter()) if entry.kind != "broker-stopped"} == {True}
    assert set(KINDS) == {kind_of(tag) for tag in e.CATALOGUE}


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:01.5+00:00", 1_500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 00:00:02", 2_000_000),
        ("1970-01-02", 86_400_000_000),
        ("1s", 9_000_000),
        ("2.5s ago", 7_500_000),
        ("1s500ms", 8_500_000),
        ("1h", 0),
    ],
)
def test_times(text: str, expected_us: int) -> None:
    assert parse_time(text, 10_000_000) == expected_us


@pytest.mark.parametrize("text", ["", "soon", "5", "5 m", "m", "2026-13-01", "99:99"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="no time"):
        parse_time(text, 0)


@given(st.integers(0, (1 << 53) - 1))
def test_a_time_that_was_shown_can_be_asked_for(time_us: int) -> None:
    assert parse_time(rfc3339(time_us), 0) == time_us

"""The audit trail against a naive one that remembers everything and looks at every event."""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import batch
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.errors import BeyondLog, RequestError, UsageError
from vibemq.history.audit import KINDS, Filter, MessageId, select
from vibemq.history.names import Names
from vibemq.history.replay import kind_of
from vibemq.history.times import parse_time, rfc3339
from vibemq.history.wording import facts, words
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.limits import Limits

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
        self.broker = Broker(Projector(), Limits(), e.QueueSettings(max_attempts=2))
        self.kept: list[Kept] = []
        self.connections: list[int] = []
        self.subscriptions: list[tuple[int, int]] = []
        self.broker.journal.now_us = 1_000
        self.broker.start("0", 0)
        self.end_turn()

    def end_turn(self) -> None:
        journal = self.broker.journal
        self.broker.deliveries.dispatch()
        assert not journal.loads
        for record in journal.records:
            self.kept.append(Kept(len(self.kept), record.time_us, record.event.TAG, record.event))
        journal.records.clear()
        journal.effects.clear()

    def do(self, command: int, first: int, second: int) -> None:
        self.broker.journal.now_us += 1_000
        with suppress(RequestError):  # refused: nothing happened
            self._do(command % 12, first, second)
        self.end_turn()

    def _do(self, command: int, first: int, second: int) -> None:
        broker, queue = self.broker, QUEUES[first % 3]
        if command == 0 or not self.connections:
            address = f"10.0.0.{first % 2}:{second}"
            self.connections.append(broker.connect(CLIENTS[first % 3], address, "binary", 0))
            return
        connection = self.connections[second % len(self.connections)]
        if command in {1, 2}:
            broker.publish(connection, 1, queue, 0, Batch(b"".join(batch.pack([b"x"] * (second % 3 + 1)))))
        elif command == 3:
            broker.subscribe(connection, 1, queue, None, second % 4, 1 << 20)
            self.subscriptions.append((connection, broker.journal.state.topology.next_subscription - 1))
        elif command == 4:
            broker.purge(connection, 1, queue)
        elif command == 5 and second % 4 == 0:
            broker.delete(connection, 1, queue)
        elif command == 6:
            self.connections.remove(connection)
            broker.disconnect(connection, "lost" if first % 2 else "", lost=bool(first % 2))
        elif command == 7 and first % 5 == 0:
            self.connections.clear()
            broker.stop("stopped")
            broker.start("0", 0)
            self.broker = Broker(broker.journal.state, Limits(), e.QueueSettings(max_attempts=2))
            self.broker.journal.now_us, self.broker.journal.records = broker.journal.now_us, broker.journal.records
        elif self.subscriptions:
            self._settle(command, first, second)

    def _settle(self, command: int, first: int, second: int) -> None:
        connection, subscription = self.subscriptions[first % len(self.subscriptions)]
        deliveries = self.broker.deliveries
        runs = ((second % 4 + 1, second % 4 + 3),)
        if command == 8:
            deliveries.ack(connection, subscription, runs, 1)
        elif command == 9:
            deliveries.nack(connection, subscription, runs, 1, delay_ms=None, reason="r", reject=second % 2 == 0)
        elif command == 10:
            deliveries.extend(connection, subscription, runs, 10, 1)
        else:
            deliveries.credit(connection, subscription, 2, 1 << 20, 0, -1)
            self.broker.tick()


Commands = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 9), st.integers(0, 9)), max_size=40)


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


@st.composite
def filters(draw: st.DrawFn, kept: list[Kept]) -> Filter:
    times = st.integers(0, kept[-1].time_us + 2_000)
    published = [record for record in kept if isinstance(record.event, e.Published)]
    messages = [MessageId(record.offset, at) for record in published for at in range(record.event.count)]  # type: ignore[attr-defined]
    return Filter(
        draw(st.none() | st.sampled_from([*QUEUES, "unknown"])),
        draw(st.none() | st.sampled_from(["shop", "worker", "10.0.0.1", "10.0.0.0:3", "#2", "nobody at all"])),
        draw(st.none() | st.sampled_from(messages)) if messages else None,
        draw(st.frozensets(st.sampled_from(sorted(KINDS.values())), max_size=4)),
        draw(st.just(0) | times),
        draw(st.none() | times),
    )


@given(commands=Commands, data=st.data())
def test_filters_find_what_a_naive_filter_finds(commands: list[tuple[int, int, int]], data: st.DataObject) -> None:
    world = World()
    for command in commands:
        world.do(*command)
    naive = Naive(world.kept)
    for _ in range(3):
        wanted = data.draw(filters(world.kept))
        found = list(select(world.kept, wanted))
        assert [entry.offset for entry in found] == naive.offsets(world.kept, wanted)
        for entry in found:
            client = naive.clients[entry.offset]
            assert (entry.client is None) == (client is None)
            assert entry.client is None or tuple(entry.client) == client
            assert entry.queue is None or entry.queue in naive.queues[entry.offset]


def some_history() -> list[Kept]:
    world = World()
    for command in ((0, 0, 1), (1, 0, 2), (3, 0, 3), (9, 0, 0), (8, 0, 1), (6, 0, 0)):
        world.do(*command)
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
    e.QueueDeclared(1, "q", e.QueueSettings(dead_letter_queue="x\ny"), 0),
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

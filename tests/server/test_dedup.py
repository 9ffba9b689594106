"""Dedup ids: whole brokers against a naive list of all that was stored, and what is said about them."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.machine import refused
from tests.server.rig import Rig
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import Overflow, QueueSettings
from vibemq.errors import InvalidRequest, LimitExceeded, QueueBlocked, QueueFull, RequestError
from vibemq.events import Duplicate
from vibemq.projections import dedup as remembered
from vibemq.projections.dedup import NO_ID
from vibemq.projections.producers import Producers
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server import effects as f
from vibemq.server.checkpointer import Capture
from vibemq.server.deduplication import SLACK_MS_MIN, SLACK_PART, Deduplication, Fresh, Sifted
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.transactions import Commit

PRODUCER: Final = 77
SECOND_US: Final = 1_000_000
YEAR_US: Final = 365 * 86_400 * SECOND_US
IDS: Final = [bytes([number * 41 % 256]) + bytes(14) + bytes([1 + number]) for number in range(12)]
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "plain": {"dedup_window_ms": 60_000},
    "newest": {"dedup_window_ms": 30_000, "max_length": 8, "overflow": "drop-newest"},
    "full": {"dedup_window_ms": 60_000, "max_length": 8},
    "blocks": {"dedup_window_ms": 60_000, "max_length": 8, "overflow": "block"},
    "never": {"dedup_window_ms": 0},
}


class Stored(NamedTuple):
    """A message that was stored."""

    one: bytes
    time_us: int
    offset: int
    place: int


class Sent(NamedTuple):
    """A batch that was confirmed."""

    publish: Publish
    confirmed: f.Confirmed


class Outcome(NamedTuple):
    """What is to become of a batch: what is stored, by position, the duplicates, and how many are dropped."""

    stored: list[int]
    duplicates: list[Duplicate]
    dropped: int


class World:
    """A broker, and beside it a list of all messages that were stored in each queue."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.rig = Rig(Limits(dedup_ids=25))
        self.stored: dict[str, list[Stored]] = {}
        self.windows_ms: dict[str, int] = {}
        self.deleted: dict[str, tuple[list[Stored], int]] = {}
        self.sent: list[Sent] = []
        self.sequence = 1
        self.bodies = 0
        self.connection = self.connect()
        self.parts: dict[str, tuple[int, bytes]] = {}
        self.start = 0
        for name, settings in SETTINGS.items():
            self.declare(name, settings)

    def connect(self) -> int:
        number = self.rig.broker.connect("shop", "10.0.0.1:1", "binary", PRODUCER)
        self.rig.take()
        return number

    def declare(self, name: str, settings: dict[str, Any]) -> None:
        self.rig.broker.queues.declare(self.connection, 1, name, settings)
        self.windows_ms[name], self.stored[name] = settings["dedup_window_ms"], []
        self.rig.take()

    # --- what a list would say

    def live(self, name: str) -> list[Stored]:
        """What is within the window of a queue."""
        since_us = self.rig.now_us - self.windows_ms[name] * 1000
        return [one for one in self.stored[name] if one.time_us > since_us]

    def outcome(self, name: str, ids: Sequence[bytes]) -> Outcome | type[RequestError]:
        """What is to become of messages with these ids."""
        offset, live = self.rig.state.next_offset, self.live(name)
        there = {one.one: (one.offset, one.place) for one in live}
        settings = SETTINGS[name]
        queue = self.rig.state.queue_named(name)
        assert queue is not None
        room = settings.get("max_length", 1 << 30) - queue.length
        overflow = settings.get("overflow", "reject")
        stored, duplicates, dropped, lost = list[int](), list[Duplicate](), 0, set[bytes]()
        for position, one in enumerate(ids):
            counts = one != NO_ID and self.windows_ms[name] > 0
            if counts and one in there:
                duplicates.append((position, *there[one]))
            elif room > len(stored) and one not in lost:
                if counts:
                    there[one] = (offset, len(stored))
                stored.append(position)
            else:
                dropped += 1
                lost |= {one} if counts else set()
        if dropped and overflow != "drop-newest":
            wanted = len(ids) - len(duplicates) - sum(ids.count(one) - 1 for one in lost)
            return QueueBlocked if overflow == "block" and wanted <= 8 else QueueFull
        count = sum(ids[position] != NO_ID for position in stored) if self.windows_ms[name] else 0
        if count + self.rig.state.dedup.total > self.rig.limits.dedup_ids:
            return LimitExceeded
        return Outcome(stored, duplicates, dropped)

    # --- what happens

    def step(self) -> None:
        weights = {
            self.publish: 12,
            self.publish_again: 3,
            self.transact: 3,
            self.pass_time: 4,
            self.tick: 3,
            self.checkpoint: 1,
            self.restart: 1,
            self.change: 1,
            self.purge: 1,
            self.delete: 1,
            self.undelete: 2,
        }
        self.random.choices(list(weights), list(weights.values()))[0]()

    def batch(self, count: int) -> Batch:
        random = self.random
        bodies = []
        for _ in range(count):
            self.bodies += 1
            bodies.append(b"%d" % self.bodies)
        headers = [random.choice([None, {"n": number}]) for number in range(count)] if random.random() < 0.5 else None
        keys = [random.randrange(5) for _ in range(count)] if random.random() < 0.5 else None
        return Batch(b"".join(pack(bodies, headers, ttl_ms=random.choice([0, 5_000_000]), keys=keys)))

    def publish(self) -> None:
        random = self.random
        name = random.choice(list(SETTINGS))
        if name in self.deleted:
            return
        ids = [random.choice([*IDS, NO_ID]) for _ in range(random.choice([1, 1, 2, 3, 6]))]
        sequence = random.choice([0, self.sequence])
        publish = Publish(self.connection, 1, name, sequence, self.batch(len(ids)), dedup=b"".join(ids))
        expected = self.outcome(name, ids)
        refusal = refused(lambda: self.rig.broker.publishing.publish(publish))
        if refusal is not None:
            assert type(refusal) is expected, (name, expected)
            assert self.rig.take() == ([], [])
            if isinstance(refusal, QueueBlocked):
                self.connection = self.reconnect()
            return
        assert isinstance(expected, Outcome), (name, expected)
        if sequence:
            self.sequence += len(ids)
        self.check(publish, ids, expected)

    def check(self, publish: Publish, ids: Sequence[bytes], expected: Outcome) -> None:
        """What was recorded and confirmed is what is to be."""
        (event,), (confirmed,) = self.rig.take()
        assert isinstance(event, e.Published)
        offset, count = self.rig.state.next_offset - 1, len(expected.stored)
        assert (event.count, event.dropped, list(event.duplicates)) == (count, expected.dropped, expected.duplicates)
        assert confirmed == f.Confirmed(
            *(offset + 1, self.connection, 1, offset, event.sequence, False, expected.dropped, 0),
            tuple(expected.duplicates),
        )
        payload = b"".join(self.rig.log[-1].payload)
        if count:
            assert content(Batch(payload)) == [content(publish.batch)[position] for position in expected.stored]
        else:
            assert payload == b""
        column = b"".join(ids[position] for position in expected.stored) if self.windows_ms[publish.name] else b""
        assert event.dedup == (column if any(column) else b"")
        for index, position in enumerate(expected.stored):
            if ids[position] != NO_ID and self.windows_ms[publish.name]:
                self.stored[publish.name].append(Stored(ids[position], self.rig.now_us, offset, index))
        if publish.sequence:
            self.sent.append(Sent(publish, confirmed))

    def transact(self) -> None:
        """Several batches in one record: each knows the ids of those before it."""
        random = self.random
        names = [name for name in ("plain", "never") if name not in self.deleted]
        offset, stored, expected = self.rig.state.next_offset, list[tuple[str, Stored]](), list[f.Stored]()
        publishes = []
        first = 0
        for name in random.choices(names, k=random.choice([1, 2, 3])) if names else ():
            ids = [random.choice([*IDS, NO_ID]) for _ in range(random.choice([1, 2, 4]))]
            publishes.append(Publish(self.connection, 0, name, 0, self.batch(len(ids)), dedup=b"".join(ids)))
            there = {one.one: (one.offset, one.place) for one in self.live(name)}
            there |= {one.one: (offset, one.place) for queue, one in stored if queue == name}
            place, duplicates = first, list[Duplicate]()
            for position, one in enumerate(ids):
                counts = one != NO_ID and self.windows_ms[name] > 0
                if counts and one in there:
                    duplicates.append((position, *there[one]))
                    continue
                if counts:
                    there[one] = (offset, place)
                    stored.append((name, Stored(one, self.rig.now_us, offset, place)))
                place += 1
            expected.append(f.Stored(first, 0, 0, 0, tuple(duplicates)))
            first = place
        transactions = self.rig.broker.transactions
        transactions.begin(self.connection, 1, 0)
        (begun,) = self.rig.effects()
        assert isinstance(begun, f.Answer)
        refusal = refused(
            lambda: transactions.commit(Commit(self.connection, 1, begun.result["epoch"], 0, publishes, ()))
        )
        if refusal is not None:
            assert isinstance(refusal, LimitExceeded)
            assert len(stored) + self.rig.state.dedup.total > self.rig.limits.dedup_ids
            return
        (committed,) = self.rig.effects()
        assert isinstance(committed, f.Committed)
        assert [one._replace(sequence=0) for one in committed.stored] == expected
        assert self.rig.state.dedup.total <= self.rig.limits.dedup_ids
        for name, message in stored:
            self.stored[name].append(message)

    def publish_again(self) -> None:
        """The confirm got lost: what was said then is said again, whatever the ids would say now."""
        if self.sent:
            publish, confirmed = self.random.choice(self.sent)
            self.rig.broker.publishing.publish(publish._replace(connection=self.connection))
            assert self.rig.take() == ([], [confirmed._replace(duplicate=True, connection=self.connection)])

    def pass_time(self) -> None:
        self.rig.pass_time(self.random.choice([1, SECOND_US, 10 * SECOND_US, 29_999_999, 61 * SECOND_US, YEAR_US]))

    def tick(self) -> None:
        for _ in range(100):
            due_us = self.rig.broker.next_due_us()
            if due_us is None or due_us > self.rig.now_us:
                break
            self.rig.broker.tick()
        else:
            raise AssertionError("there is always something due")
        self.rig.take()
        for name, (_, until_us) in list(self.deleted.items()):
            if until_us <= self.rig.now_us:
                del self.deleted[name]
                self.declare(name, SETTINGS[name])
        for name in SETTINGS:
            if name not in self.deleted:
                self.check_memory(name)

    def check_memory(self, name: str) -> None:
        """Nothing is remembered for much longer than it counts."""
        queue = self.rig.state.queue_named(name)
        assert queue is not None
        ids = self.rig.state.dedup.queues.get(queue.id)
        window_ms = self.windows_ms[name]
        longest_us = (window_ms + max(window_ms // SLACK_PART, SLACK_MS_MIN)) * 1000
        assert ids is None or self.rig.now_us - ids.oldest_times[0] < longest_us

    def checkpoint(self) -> None:
        capture = Capture(self.rig.state, {key: as_of for key, (as_of, _) in self.parts.items()})
        for _ in capture.steps():
            if self.random.random() < 0.3:
                self.random.choice([self.publish, self.publish, self.pass_time, self.tick])()
        self.parts = {key: part for key, part in self.parts.items() if key in capture.present} | capture.changed
        self.start = capture.start

    def restart(self) -> None:
        state = self.rig.replayed(self.restored())
        assert state.digests() == self.rig.state.digests()
        self.rig.begin(state)
        self.connection = self.connect()

    def restored(self) -> Projector:
        return Projector.restore([(key, as_of, blob) for key, (as_of, blob) in self.parts.items()], self.start)

    def reconnect(self) -> int:
        self.rig.broker.disconnect(self.connection, "it waits too long", lost=True)
        return self.connect()

    def change(self) -> None:
        name = self.random.choice([name for name in SETTINGS if name not in self.deleted] or [""])
        if name:
            window_ms = self.random.choice([0, 1_000, 30_000, 60_000, 3_600_000])
            self.rig.broker.queues.change(self.connection, 1, name, {"dedup_window_ms": window_ms})
            self.rig.take()
            self.forget_what_is_forgotten(name)
            self.windows_ms[name] = window_ms

    def forget_what_is_forgotten(self, name: str) -> None:
        """What was out of the window may be back in a longer one, if the broker has not forgotten it yet."""
        queue = self.rig.state.queue_named(name)
        assert queue is not None
        ids = self.rig.state.dedup.queues.get(queue.id)
        first = ids.slices[0].offsets[0] if ids is not None else 1 << 62
        live = self.live(name)
        self.stored[name] = [one for one in self.stored[name] if one.offset >= first or one in live]

    def purge(self) -> None:
        """Ids stay."""
        name = self.random.choice([name for name in SETTINGS if name not in self.deleted] or [""])
        if name:
            self.rig.broker.queues.purge(self.connection, 1, name)
            self.rig.take()

    def delete(self) -> None:
        """For good, or so that it may come back."""
        name = self.random.choice([name for name in SETTINGS if name not in self.deleted] or [""])
        if not name:
            return
        grace_ms = self.random.choice([0, 3_600_000])
        self.rig.broker.delete(self.connection, 1, name, grace_ms)
        self.rig.take()
        if grace_ms:
            self.deleted[name] = self.stored.pop(name), self.rig.now_us + grace_ms * 1000
        else:
            self.declare(name, SETTINGS[name])

    def undelete(self) -> None:
        name = self.random.choice([*self.deleted, ""])
        if name and self.deleted[name][1] > self.rig.now_us:
            self.rig.broker.queues.undelete(self.connection, 1, name)
            self.rig.take()
            self.stored[name], _ = self.deleted.pop(name)

    def end(self) -> None:
        digests = self.rig.state.digests()
        assert self.rig.replayed().digests() == digests
        assert self.rig.replayed(self.restored()).digests() == digests


def content(batch: Batch) -> list[tuple[Any, ...]]:
    """All that is said of each message."""
    keys = batch.keys or [0] * batch.count
    return [
        (body, headers, key, batch.ttl_ms, batch.priority)
        for body, headers, key in zip(batch.bodies(), batch.headers(), keys, strict=True)
    ]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices and indexes of a few ids, so that a short story has many."""
    monkeypatch.setattr(remembered, "SLICE_IDS", 5)
    monkeypatch.setattr(remembered, "SPLIT_IDS", 9)


def live_through(seed: int, steps: int) -> None:
    world = World(Random(seed))
    for _ in range(steps):
        world.step()
    world.end()


@given(st.integers(0, 1 << 32))
def test_a_broker_stores_what_a_list_says(seed: int) -> None:
    live_through(seed, 40)


# -- what that catches


def _window_does_not_matter(
    self: Deduplication, queue: Queue, batch: Batch, dedup: bytes, fresh: Fresh | None
) -> Sifted | None:
    wide = e.QueueDeclared(queue.id, queue.name, QueueSettings(dedup_window_ms=1 << 40), 0)
    return sift(self, Queue(wide, 0), batch, dedup, fresh)


def _repeats_in_a_batch_pass(
    self: Deduplication, queue: Queue, batch: Batch, dedup: bytes, fresh: Fresh | None
) -> Sifted | None:
    found = sift(self, queue, batch, dedup, fresh)
    return found._replace(again=[]) if found is not None else None


def _counts_in_the_batch(
    self: Deduplication, queue: Queue, batch: Batch, dedup: bytes, fresh: Fresh | None
) -> Sifted | None:
    found = sift(self, queue, batch, dedup, fresh)
    return found._replace(again=[(at, at - 1) for at, _ in found.again]) if found is not None else None


def _ids_in_other_order(self: Sifted, taken: int) -> bytes:
    return column(self._replace(ids=self.ids[::-1]), taken)


def _lost_ones_pass_for_stored(self: Sifted, taken: int) -> tuple[Duplicate, ...]:
    del taken
    return duplicates(self, len(self.ids))


def _no_limit(self: Deduplication, dedup: bytes, fresh: object) -> None:
    del self, dedup, fresh


def _keys_are_lost(self: Batch, runs: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
    parts = pick(self, runs)
    return [bytes(part) if len(part) != 8 else bytes(8) for part in parts]


def _too_early(self: remembered.QueueIds, time_us: int) -> int:
    return oldest_until(self, time_us + SECOND_US)


def _with_the_purge(self: Projector, offset: int, time_us: int, event: e.QueuePurged) -> None:
    purged(self, offset, time_us, event)
    self.dedup.gone(event.queue)


def _with_the_name(self: Projector, offset: int, time_us: int, event: e.QueueDeleted) -> None:
    deleted(self, offset, time_us, event)
    self.dedup.gone(event.queue)


def _said_once(self: Producers, offset: int, event: e.Published) -> None:
    published(self, offset, e.Published(*[*event_values(event)[:-1], ()]))


def _not_in_a_transaction(self: Fresh, queue: str, count: int, dedup: bytes) -> None:
    del queue, dedup
    self.index += count


def _all_from_its_start(self: Fresh, queue: str, count: int, dedup: bytes) -> None:
    add(self, queue, count, dedup)
    self.index = 0


def _watched_once(self: Deduplication, number: int) -> None:
    if number not in self._due_us:
        watch(self, number)


def event_values(event: e.Event) -> list[Any]:
    """The facts of an event."""
    return [getattr(event, name) for name in event.__struct_fields__]


sift: Final = Deduplication.sift
watch: Final = Deduplication.watch
add: Final = Fresh.add
column: Final = Sifted.dedup
duplicates: Final = Sifted.duplicates
pick: Final = Batch.pick
oldest_until: Final = remembered.QueueIds.oldest_until
purged: Final = Projector._queue_purged
deleted: Final = Projector._queue_deleted
published: Final = Producers.published
PLANTS: Final[list[tuple[type, str, Callable[..., object]]]] = [
    (Deduplication, "sift", _window_does_not_matter),
    (Deduplication, "sift", _repeats_in_a_batch_pass),
    (Deduplication, "sift", _counts_in_the_batch),
    (Deduplication, "check_room", _no_limit),
    (Deduplication, "watch", _watched_once),
    (Fresh, "add", _not_in_a_transaction),
    (Fresh, "add", _all_from_its_start),
    (Sifted, "dedup", _ids_in_other_order),
    (Sifted, "duplicates", _lost_ones_pass_for_stored),
    (Batch, "pick", _keys_are_lost),
    (remembered.QueueIds, "oldest_until", _too_early),
    (Projector, "_queue_purged", _with_the_purge),
    (Projector, "_queue_deleted", _with_the_name),
    (Producers, "published", _said_once),
]


@pytest.mark.parametrize(("owner", "name", "wrong"), PLANTS, ids=[plant[2].__name__.strip("_") for plant in PLANTS])
def test_a_planted_bug_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrong: Callable[..., object]
) -> None:
    monkeypatch.setattr(owner, name, wrong)

    def lives() -> None:
        for seed in range(200):
            live_through(seed, 60)

    with pytest.raises((AssertionError, KeyError, InvalidRequest)):
        lives()


# -- what is said


def send(rig: Rig, connection: int, queue: str, *ids: bytes, sequence: int = 0, to_topic: bool = False) -> f.Confirmed:
    """Publish a message for each id."""
    batch = Batch(b"".join(pack([b"x"] * len(ids))))
    publish = Publish(connection, 1, queue, sequence, batch, to_topic=to_topic, dedup=b"".join(ids))
    rig.broker.publishing.publish(publish)
    (confirmed,) = rig.effects()
    assert isinstance(confirmed, f.Confirmed)
    return confirmed


@pytest.fixture
def rig() -> Rig:
    return Rig(Limits(dedup_ids=10))


@pytest.fixture
def shop(rig: Rig) -> int:
    number = rig.broker.connect("shop", "10.0.0.1:1", "binary", PRODUCER)
    rig.take()
    return number


def test_a_batch_of_duplicates_alone_is_recorded_as_nothing(rig: Rig, shop: int) -> None:
    first = send(rig, shop, "orders", IDS[0], IDS[1])
    again = send(rig, shop, "orders", IDS[1], IDS[0], sequence=1)
    assert again.duplicates == ((0, first.offset, 1), (1, first.offset, 0))
    event, _, payload = rig.log[-1]
    assert isinstance(event, e.Published)
    assert (event.count, event.bytes, event.dedup, payload) == (0, 0, b"", ())
    batch = Batch(b"".join(pack([b"x", b"x"])))
    rig.broker.publishing.publish(Publish(shop, 2, "orders", 1, batch, dedup=IDS[1] + IDS[0]))
    assert rig.effects() == [again._replace(request=2, duplicate=True)]


def test_a_full_queue_says_of_duplicates_what_they_are(rig: Rig, shop: int) -> None:
    """They need no room."""
    rig.broker.queues.declare(shop, 1, "orders", {"max_length": 1})
    rig.take()
    first = send(rig, shop, "orders", IDS[0])
    assert send(rig, shop, "orders", IDS[0]).duplicates == ((0, first.offset, 0),)
    with pytest.raises(QueueFull, match="cannot take 1 more"):
        send(rig, shop, "orders", IDS[0], IDS[1])


def test_another_window_counts_at_once(rig: Rig, shop: int) -> None:
    send(rig, shop, "orders", IDS[0])
    rig.pass_time(60 * SECOND_US)
    for window_ms, count in ((60_000, 0), (60_001, 1), (0, 0), (300_000, 1)):
        rig.broker.queues.change(shop, 1, "orders", {"dedup_window_ms": window_ms})
        rig.take()
        found = rig.broker._deduplication.sift(rig.state.queues[1], Batch(b"".join(pack([b"x"]))), IDS[0], None)
        assert (len(found.known) if found is not None else 0) == count


def test_above_the_limit_ids_are_refused_and_others_are_not(rig: Rig, shop: int) -> None:
    send(rig, shop, "orders", *IDS[:10])
    with pytest.raises(LimitExceeded, match=r"10 dedup ids are remembered and 1 more .* \(dedup_ids\)"):
        send(rig, shop, "bills", IDS[0])
    assert rig.state.queue_named("bills") is None
    send(rig, shop, "bills", NO_ID)
    assert len(send(rig, shop, "orders", IDS[0], NO_ID).duplicates) == 1
    rig.pass_time(301 * SECOND_US)
    rig.broker.tick()
    assert rig.take_events(e.DedupForgotten) == [e.DedupForgotten(1, rig.state.next_offset - 4)]
    send(rig, shop, "bills", IDS[0])


def test_a_topic_takes_no_ids(rig: Rig, shop: int) -> None:
    with pytest.raises(InvalidRequest, match="a dedup_id is for a queue"):
        send(rig, shop, "t.x", IDS[0], to_topic=True)


def test_what_waits_for_room_wants_it_without_its_duplicates(rig: Rig, shop: int) -> None:
    """Else a batch that fits, but for its duplicates, would be told again and again that there is room."""
    rig.broker.queues.declare(shop, 1, "orders", {"max_length": 3, "overflow": Overflow.BLOCK.value})
    rig.take()
    send(rig, shop, "orders", *IDS[:3])
    with pytest.raises(QueueBlocked):
        send(rig, shop, "orders", *IDS[:5])
    rig.broker.end_turn()
    assert not rig.effects()
    rig.broker.queues.purge(shop, 1, "orders")
    rig.broker.end_turn()
    assert [effect for effect in rig.effects() if isinstance(effect, f.Unblocked)] == [f.Unblocked(0, shop, "orders")]

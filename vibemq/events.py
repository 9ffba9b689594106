"""The catalogue of events: what the log records, as values.

An event is a fact: everything that had to be decided (time, ids, who gets what, how many bytes that was) is written in
it, so that a projection only has to add it up. Facts are encoded as a MessagePack array in the order of the fields. A
tag, once given, keeps its meaning for ever; a field may be added at the end, with a default, without a new version; any
other change raises VERSION and adds an upcaster that turns the old array into the new one.

`Span` is (lane, first, end): the messages of a lane with first <= sequence < end. Queues, groups, connections and
subscriptions appear as numbers; the events that introduce them carry the names.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from vibemq.declaration import ScheduleSpec
from vibemq.errors import FormatUnsupported
from vibemq.event_base import (
    DEDUP_BYTES,
    DEFAULT_GROUP,
    DEFAULT_LANE,
    Arrival,
    DeadReason,
    Duplicate,
    Entry,
    Event,
    Hashes,
    ReleaseReason,
    Span,
    Spans,
    Tag,
)
from vibemq.topology_events import (
    Bound,
    BrokerStarted,
    BrokerStopped,
    ClientConnected,
    ClientDisconnected,
    ClientRefused,
    GroupCreated,
    GroupDeleted,
    GroupSought,
    QueueChanged,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
    QueueRenamed,
    QueueUndeleted,
    Unbound,
)

# Whoever imports the events finds what they are made of, too.
__all__ = [
    "DEDUP_BYTES",
    "DEFAULT_GROUP",
    "DEFAULT_LANE",
    "Arrival",
    "Bound",
    "BrokerStarted",
    "BrokerStopped",
    "ClientConnected",
    "ClientDisconnected",
    "ClientRefused",
    "DeadReason",
    "Duplicate",
    "Entry",
    "Event",
    "GroupCreated",
    "GroupDeleted",
    "GroupSought",
    "Hashes",
    "QueueChanged",
    "QueueDeclared",
    "QueueDeleted",
    "QueuePurged",
    "QueueRenamed",
    "QueueUndeleted",
    "ReleaseReason",
    "Span",
    "Spans",
    "Tag",
    "Unbound",
]


class Published(Event, frozen=True):
    """A batch of `count` messages became ready; the batch itself is the record's payload.

    They have the sequences `sequence` .. `sequence + count - 1` of `lane`; `bytes` is the sum of their records.
    `producer` with `producer_sequence` (of the first message) recognises the batch when it is sent again; producer 0
    has none. The producer has its answers for all below `producer_oldest`. `dropped` messages more were in the batch,
    at its end, and not stored, as the queue was full; if that is all of them, there is no payload. `timed`: the batch
    says in its header how long its messages may wait.

    With `due_us` they are not ready yet, wait until then, and have no sequence. `dedup` has DEDUP_BYTES for each
    message that is stored, all zero where it has no id, or is empty where none has one. `duplicates` were in the batch,
    in between, and not stored, as messages with their ids were there already.
    """

    TAG = Tag.PUBLISHED
    queue: int
    lane: int
    sequence: int
    count: int
    bytes: int
    producer: int
    producer_sequence: int
    connection: int
    producer_oldest: int = 0
    dropped: int = 0
    timed: bool = False
    due_us: int = 0
    dedup: Hashes = b""
    duplicates: tuple[Duplicate, ...] = ()

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The batch, as far as there was room for it, unless it waits for its time."""
        return ((self.queue, self.lane, self.sequence, self.count),) if self.count and not self.due_us else ()

    def delayed(self, offset: int, index: int = 0) -> tuple[tuple[int, Entry], ...]:
        """What waits for its time in which queue, as part of record `offset` from `index` on."""
        if not self.due_us or not self.count:
            return ()
        return ((self.queue, (self.due_us, offset, index, self.count, self.bytes, self.lane)),)


class Routed(Event, frozen=True):
    """A batch that was published to `topic` became ready in each queue of `targets`; it is the record's payload.

    A target is (queue, lane, sequence of the first message). The producer's fields are those of Published.
    `unroutable`: no queue was bound, and the one target is where such messages go as dead letters. With `due_us` they
    are not ready yet, wait until then, and have no sequences.
    """

    TAG = Tag.ROUTED
    topic: str
    targets: tuple[tuple[int, int, int], ...]
    count: int
    bytes: int
    producer: int
    producer_sequence: int
    connection: int
    producer_oldest: int = 0
    timed: bool = False
    unroutable: bool = False
    due_us: int = 0

    @property
    def sequence(self) -> int:
        """What the confirm says: there is no one sequence in several queues."""
        return 0

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The batch, once in each queue, unless it waits for its time."""
        return () if self.due_us else tuple((queue, lane, first, self.count) for queue, lane, first in self.targets)

    def delayed(self, offset: int, index: int = 0) -> tuple[tuple[int, Entry], ...]:
        """What waits for its time in which queue, as part of record `offset` from `index` on."""
        if not self.due_us:
            return ()
        entry = (self.due_us, offset, index, self.count, self.bytes)
        return tuple((queue, (*entry, lane)) for queue, lane, _ in self.targets)


class MadeReady(Event, frozen=True):
    """Messages that waited for a time (a retry delay) became ready."""

    TAG = Tag.MADE_READY
    queue: int
    group: int
    spans: Spans


class Matured(Event, frozen=True):
    """Delayed messages became ready, as they were due; they have the sequences from `sequence` on in `lane`."""

    TAG = Tag.MATURED
    queue: int
    lane: int
    sequence: int
    entries: tuple[Entry, ...]
    bytes: int

    @property
    def refs(self) -> tuple[tuple[int, int, int], ...]:
        """Where they are, as in DeadLettered."""
        return tuple(entry[1:4] for entry in self.entries)

    @property
    def count(self) -> int:
        """How many messages."""
        return sum(entry[3] for entry in self.entries)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """In their queue."""
        return ((self.queue, self.lane, self.sequence, self.count),)


class Rescheduled(Event, frozen=True):
    """Delayed messages wait for another time: the entries `before` became the entries `after`, in number the same."""

    TAG = Tag.RESCHEDULED
    queue: int
    before: tuple[Entry, ...]
    after: tuple[Entry, ...]
    connection: int


class Cancelled(Event, frozen=True):
    """Delayed messages were taken back: of the entries `before` the entries `after` are left."""

    TAG = Tag.CANCELLED
    queue: int
    before: tuple[Entry, ...]
    after: tuple[Entry, ...]
    connection: int


class DedupForgotten(Event, frozen=True):
    """The oldest dedup ids of a queue are older than its window, and forgotten: what records below `below` brought."""

    TAG = Tag.DEDUP_FORGOTTEN
    queue: int
    below: int


class ProducersForgotten(Event, frozen=True):
    """The sequences of these producers are no longer remembered; the table had reached its limit."""

    TAG = Tag.PRODUCERS_FORGOTTEN
    producers: tuple[int, ...]


class Subscribed(Event, frozen=True):
    """A connection takes part in a group. The number of a subscription is never used again: it is the ack's epoch."""

    TAG = Tag.SUBSCRIBED
    subscription: int
    queue: int
    group: int
    connection: int


class Unsubscribed(Event, frozen=True):
    """A subscription ended. What it held is released by events of its own, before this one."""

    TAG = Tag.UNSUBSCRIBED
    subscription: int
    queue: int
    group: int


class Delivered(Event, frozen=True):
    """Messages were handed to a subscription, all that one dispatch gave it. `lease_until_us` is when it loses them."""

    TAG = Tag.DELIVERED
    queue: int
    group: int
    subscription: int
    spans: Spans
    bytes: int
    lease_until_us: int


class Acked(Event, frozen=True):
    """Messages are done. `bytes` is the sum of their records."""

    TAG = Tag.ACKED
    queue: int
    group: int
    subscription: int
    spans: Spans
    bytes: int


class LeaseExtended(Event, frozen=True):
    """The consumer may keep the messages until `lease_until_us`."""

    TAG = Tag.LEASE_EXTENDED
    queue: int
    group: int
    subscription: int
    spans: Spans
    lease_until_us: int


class Released(Event, frozen=True):
    """Unacked messages go back to the queue, ready at `not_before_us` (0: now); `counted`: as a failed attempt."""

    TAG = Tag.RELEASED
    queue: int
    group: int
    subscription: int
    spans: Spans
    bytes: int
    reason: ReleaseReason
    counted: bool
    not_before_us: int
    error: str


class Dropped(Event, frozen=True):
    """Ready or waiting messages left a group for nowhere: the queue was too full, or they were too old."""

    TAG = Tag.DROPPED
    queue: int
    group: int
    spans: Spans
    bytes: int
    reason: DeadReason


class DeadLettered(Event, frozen=True):
    """Messages left their queue for a dead-letter queue; their bodies stay where they were written.

    `subscription` is 0 when nobody held them: they were ready. All `spans` are of one lane. `refs` tells where the
    messages are: runs of (record offset, index, count), in the order of `spans`. They have the sequences from
    `dead_sequence` on in lane 0 of `dead_queue`. `dead_queue` 0: there was nowhere to go, and they are gone.
    `attempts` counts the failed ones, this one included.
    """

    TAG = Tag.DEAD_LETTERED
    queue: int
    group: int
    subscription: int
    spans: Spans
    bytes: int
    reason: DeadReason
    attempts: int
    error: str
    dead_queue: int
    dead_sequence: int
    refs: tuple[tuple[int, int, int], ...]

    @property
    def count(self) -> int:
        """How many messages."""
        return sum(ref[2] for ref in self.refs)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """In the dead-letter queue."""
        return ((self.dead_queue, DEFAULT_LANE, self.dead_sequence, self.count),) if self.dead_queue else ()


class Redriven(Event, frozen=True):
    """Dead letters went back to work: from `queue`, where they were ready, to lane `lane` of `target`.

    `refs` tells where they are, as in DeadLettered, and `sequence` is the first they have there. `attempts` failed in
    their former life, which they still count, and which are forgiven.
    """

    TAG = Tag.REDRIVEN
    queue: int
    spans: Spans
    bytes: int
    attempts: int
    target: int
    lane: int
    sequence: int
    refs: tuple[tuple[int, int, int], ...]
    connection: int

    @property
    def count(self) -> int:
        """How many messages."""
        return sum(ref[2] for ref in self.refs)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """In the queue where they work again."""
        return ((self.target, self.lane, self.sequence, self.count),)


class TransactionCommitted(Event, frozen=True):
    """Publishes and acks that happened together; the payload is the batches one behind the other.

    The batches are those of `published`, then those of `routed`, each of so many bytes as `batches` says (0: nothing of
    it was stored). A message's index in this record counts through all of them. The producer's fields are here, and 0
    in the parts; a transaction takes one number of its sequence. `epoch` was this attempt's.
    """

    TAG = Tag.TRANSACTION_COMMITTED
    published: tuple[Published, ...]
    routed: tuple[Routed, ...]
    acked: tuple[Acked, ...]
    batches: tuple[int, ...]
    epoch: int
    producer: int
    producer_sequence: int
    connection: int
    producer_oldest: int = 0

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """All that became ready with it."""
        return tuple(arrival for part in (*self.published, *self.routed) for arrival in part.arrivals)

    def delayed(self, offset: int) -> tuple[tuple[int, Entry], ...]:
        """What waits for its time in which queue."""
        found: list[tuple[int, Entry]] = []
        index = 0
        parts: tuple[Published | Routed, ...] = (*self.published, *self.routed)
        for part in parts:
            found += part.delayed(offset, index)
            index += part.count
        return tuple(found)


class ScheduleSet(Event, frozen=True):
    """A schedule publishes a message again and again, or does so otherwise now.

    Its number is the offset of the record that made it. The message is in `spec`, and there is no payload: to publish
    it again it must be known to a projection. `next_us` is when it does so next; 0: it is paused.
    """

    TAG = Tag.SCHEDULE_SET
    schedule: int
    name: str
    spec: ScheduleSpec
    next_us: int
    connection: int


class SchedulePaused(Event, frozen=True):
    """A schedule is `paused`, or goes on, then next at `next_us`. `connection` is 0 when it could not go on."""

    TAG = Tag.SCHEDULE_PAUSED
    schedule: int
    paused: bool
    next_us: int
    connection: int


class ScheduleDeleted(Event, frozen=True):
    """A schedule is gone. `connection` is 0 when it had come to its end."""

    TAG = Tag.SCHEDULE_DELETED
    schedule: int
    connection: int


class Fired(Event, frozen=True):
    """A schedule published its message, the payload, for the time `due_us`; the next time is `next_us` (0: never).

    That both are one record is what lets no crash publish it twice. `missed` times before were left out. `targets` are
    as in Routed, one where it publishes to a queue.
    """

    TAG = Tag.FIRED
    schedule: int
    due_us: int
    next_us: int
    missed: int
    targets: tuple[tuple[int, int, int], ...]
    count: int
    bytes: int
    timed: bool = False

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The batch, once in each queue."""
        return tuple((queue, lane, first, self.count) for queue, lane, first in self.targets)


class Misfired(Event, frozen=True):
    """A schedule left out `missed` times, and goes on at `next_us` (0: never); `reason` is for people."""

    TAG = Tag.MISFIRED
    schedule: int
    missed: int
    next_us: int
    reason: str


class SegmentSealed(Event, frozen=True):
    """A full segment, records `base` .. `end - 1`, and its seal, chained to the seal of the segment before."""

    TAG = Tag.SEGMENT_SEALED
    base: int
    end: int
    seal: bytes
    previous: bytes


CATALOGUE: Final[dict[int, type[Event]]] = {kind.TAG: kind for kind in Event.__subclasses__()}

ARRIVING: Final = frozenset(
    {
        Tag.PUBLISHED,
        Tag.ROUTED,
        Tag.DEAD_LETTERED,
        Tag.REDRIVEN,
        Tag.MATURED,
        Tag.TRANSACTION_COMMITTED,
        Tag.FIRED,
    }
)
"""The kinds of event that have arrivals."""

Upcaster: TypeAlias = Callable[[list[Any]], list[Any]]
UPCASTERS: Final[dict[tuple[int, int], Upcaster]] = {}
"""(tag, version) -> what turns the facts of that version into those of the next. Empty while every version is 1."""

_encode = msgspec.msgpack.Encoder().encode
_decoders = {kind.TAG: msgspec.msgpack.Decoder(kind) for kind in CATALOGUE.values()}


def encode(event: Event) -> bytes:
    """The facts of an event, as they stand in a record."""
    return _encode(event)


def decode(tag: int, version: int, facts: bytes | memoryview) -> Event:
    """The event with these facts, brought to the present version.

    Raises:
        FormatUnsupported: a tag or version that a later VibeMQ has written, or facts that do not fit them.
    """
    kind = CATALOGUE.get(tag)
    if kind is None or not 1 <= version <= kind.VERSION:
        raise FormatUnsupported(
            f"the log holds an event (tag {tag}, version {version}) that this version of VibeMQ does not know; "
            f"open the data folder with the version that wrote it, or a later one"
        )
    try:
        if version == kind.VERSION:
            return _decoders[kind.TAG].decode(facts)
        raw = msgspec.msgpack.decode(facts)
        for old in range(version, kind.VERSION):
            raw = UPCASTERS[tag, old](raw)
        return msgspec.convert(raw, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as problem:
        # The last two are what an upcaster meets in an array that is not of its version.
        text = f"an event (tag {tag}, version {version}) has facts that do not fit: {problem}"
        raise FormatUnsupported(text) from None

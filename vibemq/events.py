"""The catalogue of events: what the log records, as values.

An event is a fact: everything that had to be decided (time, ids, who gets what, how many bytes that was) is written in
it, so that a projection only has to add it up. Facts are encoded as a MessagePack array in the order of the fields. A
tag, once given, keeps its meaning for ever; a field may be added at the end, with a default, without a new version; any
other change raises VERSION and adds an upcaster that turns the old array into the new one.

`Span` is (lane, first, end): the messages of a lane with first <= sequence < end. Queues, groups, connections and
subscriptions appear as numbers; the events that introduce them carry the names.
"""

import enum
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from vibemq.declaration import QueueSettings
from vibemq.errors import FormatUnsupported

Span: TypeAlias = tuple[int, int, int]
Spans: TypeAlias = tuple[Span, ...]
Arrival: TypeAlias = tuple[int, int, int, int]
"""Messages that came: (queue, lane, sequence of the first, count)."""

DEFAULT_GROUP: Final = 0
DEFAULT_LANE: Final = 0


class Tag(enum.IntEnum):
    """The stable numbers of all kinds of event. Those without a class below are reserved for what comes."""

    BROKER_STARTED = 1
    BROKER_STOPPED = 2
    CLIENT_CONNECTED = 3
    CLIENT_REFUSED = 4
    CLIENT_DISCONNECTED = 5
    QUEUE_DECLARED = 10
    QUEUE_CHANGED = 11
    QUEUE_DELETED = 12
    QUEUE_PURGED = 13
    GROUP_CREATED = 14
    GROUP_DELETED = 15
    GROUP_SOUGHT = 16
    QUEUE_RENAMED = 17
    QUEUE_UNDELETED = 18
    PUBLISHED = 20
    TRANSACTION_COMMITTED = 21
    MADE_READY = 22
    PRODUCERS_FORGOTTEN = 23
    ROUTED = 24
    BOUND = 25
    UNBOUND = 26
    SUBSCRIBED = 30
    UNSUBSCRIBED = 31
    DELIVERED = 32
    ACKED = 33
    LEASE_EXTENDED = 34
    RELEASED = 35
    DROPPED = 36
    DEAD_LETTERED = 40
    REDRIVEN = 41
    USER_CHANGED = 50
    ROLE_CHANGED = 51
    PERMISSION_CHANGED = 52
    TOKEN_CHANGED = 53
    SEGMENT_SEALED = 60
    COMPACTED = 61
    ERASED = 62
    HORIZON = 63
    BACKUP_TAKEN = 64
    RESTORED = 65


class ReleaseReason(enum.IntEnum):
    """Why unacked messages became ready again."""

    NACKED = 1
    LEASE_EXPIRED = 2
    CONSUMER_LOST = 3
    UNSUBSCRIBED = 4


class DeadReason(enum.IntEnum):
    """Why a message went to the dead letters."""

    MAX_ATTEMPTS = 1
    REJECTED = 2
    EXPIRED = 3
    OVERFLOW = 4
    UNROUTABLE = 5


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The base of all events. TAG and VERSION belong to the class; the fields are the facts."""

    TAG: ClassVar[Tag]
    VERSION: ClassVar[int] = 1

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """Where this event made messages ready that were not there before."""
        return ()


class BrokerStarted(Event, frozen=True):
    """A broker opened the log. After an unclean end, what groups with consumers had not settled may have been sent."""

    TAG = Tag.BROKER_STARTED
    version: str
    clean: bool
    wall_us: int


class BrokerStopped(Event, frozen=True):
    """A broker ended on purpose; every consumer is gone and what it held is ready again."""

    TAG = Tag.BROKER_STOPPED
    reason: str


class ClientConnected(Event, frozen=True):
    """A client passed the handshake."""

    TAG = Tag.CLIENT_CONNECTED
    connection: int
    name: str
    address: str
    codec: str


class ClientRefused(Event, frozen=True):
    """`count` connections from `address` were refused since the last such event about it."""

    TAG = Tag.CLIENT_REFUSED
    address: str
    reason: str
    count: int


class ClientDisconnected(Event, frozen=True):
    """A client left or was lost. What it held is released by events of its own, before this one."""

    TAG = Tag.CLIENT_DISCONNECTED
    connection: int
    reason: str


class QueueDeclared(Event, frozen=True):
    """A queue was created. `connection` is 0 when the broker did it itself."""

    TAG = Tag.QUEUE_DECLARED
    queue: int
    name: str
    settings: QueueSettings
    connection: int


class QueueChanged(Event, frozen=True):
    """A queue has other settings from now on."""

    TAG = Tag.QUEUE_CHANGED
    queue: int
    settings: QueueSettings
    connection: int


class QueueRenamed(Event, frozen=True):
    """A queue has another name from now on."""

    TAG = Tag.QUEUE_RENAMED
    queue: int
    name: str
    connection: int


class QueueDeleted(Event, frozen=True):
    """A queue, its groups and all of its messages are gone: `count` messages, `bytes` of records.

    With `until_us` it can be brought back up to that time: it has lost its name and its consumers, and keeps the rest.
    """

    TAG = Tag.QUEUE_DELETED
    queue: int
    count: int
    bytes: int
    connection: int
    until_us: int = 0


class QueueUndeleted(Event, frozen=True):
    """A deleted queue is back, whole, as `name`."""

    TAG = Tag.QUEUE_UNDELETED
    queue: int
    name: str
    connection: int


class QueuePurged(Event, frozen=True):
    """All ready and waiting messages were thrown away; what consumers hold, `kept`, stays with them."""

    TAG = Tag.QUEUE_PURGED
    queue: int
    count: int
    bytes: int
    connection: int
    kept: Spans


class GroupCreated(Event, frozen=True):
    """A group begins to work through a queue, from `sequence` on. An `ephemeral` one goes soon after its consumers."""

    TAG = Tag.GROUP_CREATED
    queue: int
    group: int
    name: str
    sequence: int
    ephemeral: bool
    connection: int


class GroupDeleted(Event, frozen=True):
    """A group is gone; its consumers ended before. `connection` is 0 when it had been idle for too long."""

    TAG = Tag.GROUP_DELETED
    queue: int
    group: int
    connection: int


class GroupSought(Event, frozen=True):
    """A group goes on from `sequence`, back or forth; what its consumers held was taken from them."""

    TAG = Tag.GROUP_SOUGHT
    queue: int
    group: int
    sequence: int
    connection: int


class Bound(Event, frozen=True):
    """A queue gets what is published to topics that match `pattern`."""

    TAG = Tag.BOUND
    queue: int
    pattern: str
    connection: int


class Unbound(Event, frozen=True):
    """A queue no longer gets what is published to topics that match `pattern`."""

    TAG = Tag.UNBOUND
    queue: int
    pattern: str
    connection: int


class Published(Event, frozen=True):
    """A batch of `count` messages became ready; the batch itself is the record's payload.

    They have the sequences `sequence` .. `sequence + count - 1` of `lane`; `bytes` is the sum of their records.
    `producer` with `producer_sequence` (of the first message) recognises the batch when it is sent again; producer 0
    has none. The producer has its answers for all below `producer_oldest`. `dropped` messages more were in the batch,
    at its end, and not stored, as the queue was full; if that is all of them, there is no payload. `timed`: the batch
    says in its header how long its messages may wait.
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

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The batch, as far as there was room for it."""
        return ((self.queue, self.lane, self.sequence, self.count),) if self.count else ()


class Routed(Event, frozen=True):
    """A batch that was published to `topic` became ready in each queue of `targets`; it is the record's payload.

    A target is (queue, lane, sequence of the first message). The producer's fields are those of Published.
    `unroutable`: no queue was bound, and the one target is where such messages go as dead letters.
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

    @property
    def sequence(self) -> int:
        """What the confirm says: there is no one sequence in several queues."""
        return 0

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The batch, once in each queue."""
        return tuple((queue, lane, sequence, self.count) for queue, lane, sequence in self.targets)


class MadeReady(Event, frozen=True):
    """Messages that waited for a time (a retry delay) became ready."""

    TAG = Tag.MADE_READY
    queue: int
    group: int
    spans: Spans


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


class SegmentSealed(Event, frozen=True):
    """A full segment, records `base` .. `end - 1`, and its seal, chained to the seal of the segment before."""

    TAG = Tag.SEGMENT_SEALED
    base: int
    end: int
    seal: bytes
    previous: bytes


CATALOGUE: Final[dict[int, type[Event]]] = {kind.TAG: kind for kind in Event.__subclasses__()}

ARRIVING: Final = frozenset({Tag.PUBLISHED, Tag.ROUTED, Tag.DEAD_LETTERED, Tag.REDRIVEN})
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

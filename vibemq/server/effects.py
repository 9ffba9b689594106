"""What the broker wants done in the world, as values.

`after` is an offset: the effect must not leave the process before every record below it is durable; 0 waits for
nothing. `request` is the client's own number for what it asked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from vibemq.batch import Batch
from vibemq.errors import VibeMQError
from vibemq.events import Duplicate, Entry

Runs: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open runs of a subscription's delivery numbers."""
Waiting: TypeAlias = tuple[int, Entry]
"""Delayed messages, and their queue before them."""
DueKey: TypeAlias = tuple[int, int, int, int]
"""A place in the order of due times: (due us, record offset, index, queue)."""


class Origin:
    """Where the messages of a batch are, and how long: what is kept of it while consumers hold messages of it.

    They are messages `sequence` and on of a lane, at `index` and on of record `offset`. `settled` counts those that are
    done with, so that the cache can let go of a batch when it is of no more use. `dead` is the DeadReason for which
    they are dead letters there; 0: they are none, but were published to that queue, or came back to it.
    """

    __slots__ = ("count", "dead", "index", "keys", "lane", "lengths", "offset", "record_bytes", "sequence", "settled")

    def __init__(self, lane: int, sequence: int, offset: int, index: int, batch: Batch, *, dead: int) -> None:
        """Copy from `batch` what is needed; its records are not kept."""
        self.lane, self.sequence, self.offset, self.index, self.dead = lane, sequence, offset, index, dead
        self.count, self.record_bytes = batch.count, batch.record_bytes
        # A batch of one, of which there may be very many, is worth a smaller object.
        lengths = (batch.record_bytes,) if batch.count == 1 else memoryview(batch.lengths.tobytes()).cast("I")
        self.lengths: Sequence[int] = lengths
        self.keys = memoryview(bytes(batch.keys)).cast("Q") if batch.keys is not None else None
        """The hash of each message's key, where there are any."""
        self.settled = 0

    def bytes(self, first: int, count: int) -> int:
        """The bytes of the records of `count` messages from position `first` on."""
        return self.record_bytes if count == self.count else int(sum(self.lengths[first : first + count]))


class StoredBatch:
    """A batch as the log holds it, in memory for a while.

    `made_ready` is the record that put its messages into this queue: the one they were published by, unless they came
    as dead letters or left those, and `ready_us` is the time of that record; they were published at `time_us`. What is
    `dead`, with the reason as in Origin, stays as long as its queue lets it, whatever its own time to live was.
    """

    __slots__ = ("batch", "end", "made_ready", "origin", "queue", "ready_us", "sequence", "time_us", "ttl_ms")

    def __init__(
        self,
        queue: int,
        lane: int,
        sequence: int,
        offset: int,
        index: int,
        made_ready: int,
        time_us: int,
        ready_us: int,
        batch: Batch,
        *,
        dead: int = 0,
    ) -> None:
        """Keep the batch with its place."""
        self.queue, self.sequence, self.batch = queue, sequence, batch
        self.made_ready, self.time_us, self.ready_us = made_ready, time_us, ready_us
        self.end = sequence + batch.count
        """One more than the sequence of the last message."""
        self.ttl_ms = 0 if dead else batch.ttl_ms
        """The own time to live of its messages; 0: none."""
        self.origin = Origin(lane, sequence, offset, index, batch, dead=dead)

    def expires_us(self, ttl_ms: int) -> int:
        """When its messages expire in a queue with that time to live, 0 being none; 0: never."""
        own_ms = self.ttl_ms
        shortest_ms = min(ttl_ms, own_ms) if ttl_ms and own_ms else ttl_ms or own_ms
        return self.ready_us + shortest_ms * 1000 if shortest_ms else 0


class Confirmed(NamedTuple):
    """A publish is stored, but for its last `dropped` messages, and for `duplicates`, as in Published.

    With `due_us` its messages wait until then.
    """

    after: int
    connection: int
    request: int
    offset: int
    sequence: int
    duplicate: bool
    dropped: int = 0
    due_us: int = 0
    duplicates: tuple[Duplicate, ...] = ()


class Stored(NamedTuple):
    """What became of one batch of a transaction, which is in its record from index `first` on; as in Confirmed."""

    first: int
    sequence: int
    dropped: int = 0
    due_us: int = 0
    duplicates: tuple[tuple[int, int, int], ...] = ()


class Committed(NamedTuple):
    """A transaction is carried out, and its batches are stored."""

    after: int
    connection: int
    request: int
    offset: int
    duplicate: bool
    stored: tuple[Stored, ...]


class Answer(NamedTuple):
    """A request succeeded."""

    after: int
    connection: int
    request: int
    result: Any


class Refusal(NamedTuple):
    """A request failed after all."""

    after: int
    connection: int
    request: int
    error: VibeMQError
    of_batch: bool = False
    """What was refused is one of the batches that a client may have unanswered."""


class Delivery(NamedTuple):
    """`messages` of `stored`, from its position `first` on, go to a subscription."""

    after: int
    connection: int
    subscription: int
    delivery: int
    stored: StoredBatch
    first: int
    messages: int
    attempt: int
    redelivered: bool


class Drained(NamedTuple):
    """A pull is over."""

    after: int
    connection: int
    subscription: int


class LeasesLost(NamedTuple):
    """A consumer was too slow with these."""

    after: int
    connection: int
    subscription: int
    deliveries: Runs


class Ended(NamedTuple):
    """A subscription is over, and not by the client's wish."""

    after: int
    connection: int
    subscription: int
    error: VibeMQError


class Unblocked(NamedTuple):
    """A queue, or topic, that was blocked for a connection's publishes takes some again."""

    after: int
    connection: int
    name: str


class Load(NamedTuple):
    """Messages `sequence` and on of a queue are needed and are not in memory: read them and give them to the broker."""

    queue: int
    lane: int
    sequence: int


class Find(NamedTuple):
    """Find the first message of first <= sequence < end that became ready at `time_us` or later; `end` if none did.

    `question` is the broker's number for what it needs that for.
    """

    queue: int
    time_us: int
    first: int
    end: int
    question: int


class DueAfter(NamedTuple):
    """Find the first `most` delayed messages behind a place in the order of due times, due before `until_us`.

    Those of queues `without` are left out. `question` is the broker's number for what it needs that for.
    """

    after: DueKey
    until_us: int
    most: int
    without: frozenset[int]
    question: int


class DelayedOf(NamedTuple):
    """Find the entries of delayed messages of these records in a queue, and the bytes of each message.

    Of the record at a place of `offsets` the messages at that place of `indices`, ascending, are wanted: entries
    without one of these may be left out.
    """

    queue: int
    offsets: tuple[int, ...]
    indices: tuple[tuple[int, ...], ...]
    question: int


class DelayedListed(NamedTuple):
    """Answer with `most` delayed messages of a queue, from behind (due us, offset, index) on; `total` wait there."""

    after: int
    connection: int
    request: int
    queue: int
    floor: int
    behind: tuple[int, int, int]
    most: int
    total: int


class DelayedShown(NamedTuple):
    """Answer with one delayed message of a queue, that `at` a place of record `offset`, with all that is in it."""

    after: int
    connection: int
    request: int
    queue: int
    floor: int
    offset: int
    at: int


class Peeked(NamedTuple):
    """Answer with these messages, without taking them: spans (lane, start, end, failed attempts, redelivered).

    `why` has for each span what is to be said of its messages beside them; it is empty, or as long as `spans`.
    """

    after: int
    connection: int
    request: int
    queue: int
    spans: Sequence[tuple[int, int, int, int, bool]]
    why: Sequence[dict[str, Any]] = ()


class Recall(NamedTuple):
    """Read what record `offset` says of a transaction that was committed before: its client asks again.

    `to_topic` has for each of its batches whether it was for a topic.
    """

    offset: int
    connection: int
    request: int
    to_topic: tuple[bool, ...]


Looked: TypeAlias = Peeked | DelayedListed | DelayedShown
"""What goes to a client, and must be read before."""
Effect: TypeAlias = (
    Confirmed | Committed | Answer | Refusal | Delivery | Drained | LeasesLost | Ended | Unblocked | Looked
)
"""What goes to a client."""
Reading: TypeAlias = Load | Find | DueAfter | DelayedOf | Recall
"""What goes to the log instead."""

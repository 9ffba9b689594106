"""Which queues a publish concerns, and what each of them takes: its room, its rate, the limits of all.

Nothing is changed here, but for the buckets of the rates, which are no part of the state.
"""

from collections.abc import Iterator, Sequence

from vibemq.batch import Batch
from vibemq.declaration import Overflow
from vibemq.errors import LimitExceeded, QueueBlocked, QueueFull
from vibemq.events import DEFAULT_GROUP
from vibemq.projections.queue import Queue
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.rates import Bucket

TAKES_ALL = frozenset({Overflow.DROP_OLDEST, Overflow.DEAD_LETTER})
"""A queue with one of these makes room afterwards."""


class Admission:
    """What may be stored, and where."""

    def __init__(self, journal: Journal, limits: Limits, unroutable: str) -> None:
        """`unroutable` is the name of the dead-letter queue for what nobody wants; empty: there is none."""
        self._journal = journal
        self._state = journal.state
        self._limits = limits
        self._buckets: dict[int, Bucket] = {}  # by queue
        self.unroutable = unroutable

    # --- which queues

    def bound_to(self, topic: str) -> Iterator[Queue]:
        """The queues that get what is published to a topic."""
        for number in self._state.bindings.match(topic):
            queue = self._state.queues[number]
            if not queue.deleted_until_us:
                yield queue

    def concerned(self, name: str, *, to_topic: bool) -> Sequence[Queue]:
        """The queues that are there, of those that get what is published to a queue or topic."""
        if to_topic:
            bound = list(self.bound_to(name))
            if bound or not self.unroutable:
                return bound
            name = self.unroutable
        queue = self._state.queue_named(name)
        return [queue] if queue is not None else []

    # --- what they take

    def check_limits(self, batch: Batch) -> None:
        """Whether a batch may be stored anywhere.

        Raises:
            LimitExceeded: it may not.
        """
        limits = self._limits
        if batch.count > limits.batch_messages:
            raise LimitExceeded(f"a batch of {batch.count} messages is above the limit of {limits.batch_messages}")
        if batch.record_bytes > limits.message_bytes and max(batch.lengths) > limits.message_bytes:
            raise LimitExceeded(f"a message of {max(batch.lengths)} bytes is above the limit of {limits.message_bytes}")

    def admit(self, queue: Queue, batch: Batch, before: tuple[int, int] = (0, 0), *, delayed: bool = False) -> int:
        """How many messages of a batch a queue takes: all of them, unless it drops the newest.

        `before` are messages and bytes that it gets together with the batch, and before it. What is `delayed` has its
        room from now on; no queue makes room for more of it than it may hold altogether.

        Raises:
            QueueFull: none, as it has no room.
            QueueBlocked: none for now.
        """
        settings = queue.settings
        if settings.publish_rate and queue.id:  # one that is still to be created has no number, and used nothing
            self.check_rate(queue)
        if settings.overflow in TAKES_ALL:
            if delayed and not _fits_beside(queue, batch, before):
                raise _no_room(queue, batch, before)
            return batch.count
        taken = self.fitting(queue, batch, before)
        if taken < batch.count and settings.overflow is not Overflow.DROP_NEWEST:
            raise _no_room(queue, batch, before)
        return taken

    def fitting(self, queue: Queue, batch: Batch, before: tuple[int, int]) -> int:
        """How many messages from the front of a batch a queue has room for."""
        settings = queue.settings
        group = queue.groups.get(DEFAULT_GROUP)
        if group is not None:  # what queue.filled and queue.filled_bytes are in this case, without the way there
            room = settings.max_length - group.length(queue.next) - queue.delayed.count
            room_bytes = settings.max_bytes - queue.total_bytes + queue.settled_bytes - queue.delayed.bytes
        else:
            room, room_bytes = settings.max_length - queue.filled, settings.max_bytes - queue.filled_bytes
        room, room_bytes = room - before[0], room_bytes - before[1]
        if batch.count <= room and batch.record_bytes <= room_bytes:
            return batch.count
        count = size = 0
        for length in batch.lengths[: max(0, min(room, batch.count))]:
            size += length
            if size > room_bytes:
                break
            count += 1
        return count

    # --- rates

    def bucket(self, queue: Queue) -> Bucket:
        """The publish rate of a queue that has one."""
        bucket = self._buckets.get(queue.id)
        if bucket is None:
            bucket = self._buckets[queue.id] = Bucket(queue.settings.publish_rate, self._journal.now_us)
        bucket.rate = queue.settings.publish_rate
        return bucket

    def check_rate(self, queue: Queue) -> None:
        """Whether a queue with a publish rate takes some now.

        Raises:
            QueueBlocked: it does not.
        """
        if not self.bucket(queue).available(self._journal.now_us):
            rate = queue.settings.publish_rate
            raise QueueBlocked(f"the rate of queue {queue.name!r}, {rate} messages a second, is reached")

    @property
    def has_rates(self) -> bool:
        """Whether any queue has had a publish rate."""
        return bool(self._buckets)

    def queue_gone(self, queue: int) -> None:
        """A queue is not there any more."""
        self._buckets.pop(queue, None)


def _fits_beside(queue: Queue, batch: Batch, before: tuple[int, int]) -> bool:
    """Whether a queue that makes room can make it for a batch that is delayed, beside what else is."""
    count, size = before[0] + batch.count, before[1] + batch.record_bytes
    settings, delayed = queue.settings, queue.delayed
    return delayed.count + count <= settings.max_length and delayed.bytes + size <= settings.max_bytes


def _no_room(queue: Queue, batch: Batch, before: tuple[int, int]) -> QueueFull | QueueBlocked:
    settings = queue.settings
    count, size = before[0] + batch.count, before[1] + batch.record_bytes
    if settings.overflow is Overflow.BLOCK and count <= settings.max_length and size <= settings.max_bytes:
        return QueueBlocked(f"queue {queue.name!r} is full")
    if queue.filled + count > settings.max_length:
        return QueueFull(
            f"queue {queue.name!r} holds {queue.filled} messages and cannot take {count} more: "
            f"its max_length is {settings.max_length}"
        )
    return QueueFull(
        f"queue {queue.name!r} holds {queue.filled_bytes} bytes and cannot take {size} more: "
        f"its max_bytes is {settings.max_bytes}"
    )

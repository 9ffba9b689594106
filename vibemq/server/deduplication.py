"""Dedup ids: which messages of a batch are there already, and when ids are forgotten.

A message whose id its queue has had within its `dedup_window_ms` is not stored again; of those in one record that have
the same id, the first is. Ids are forgotten when they are older than the window, some later than that: by slices, so
that a queue with many has little to write down, and by and by where one slice would last for long.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final, NamedTuple

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.errors import InvalidRequest, LimitExceeded
from vibemq.events import Duplicate
from vibemq.projections.dedup import NO_ID, QueueIds, split
from vibemq.projections.queue import Queue
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits

OWN: Final = -1
"""Stands for the offset of the record that a batch is about to be in."""
FORGETS_MAX: Final = 1
"""Slices of ids that are forgotten in one turn; each takes about 2 ms."""
SLACK_PART: Final = 8
SLACK_MS_MIN: Final = 1_000
"""Ids may be remembered for longer than the window by this part of it, and by so much: they count for no more then."""


class Fresh:
    """The ids of a record that is being made of several batches; the next one has indices from `index` on."""

    __slots__ = ("ids", "index")

    def __init__(self) -> None:
        """Begin with an empty record."""
        self.index = 0
        self.ids: dict[tuple[str, bytes], int] = {}
        """By the name of the queue, and the id: the index of its message."""

    def add(self, queue: str, count: int, dedup: bytes) -> None:
        """A batch of `count` messages, with these ids, will be stored in the record."""
        for at, one in enumerate(split(dedup), self.index):
            if one != NO_ID:
                self.ids[queue, one] = at
        self.index += count


class Sifted(NamedTuple):
    """A batch without the messages that are there already.

    `batch` is what is left, or None for nothing, with its `ids`. `known` are duplicates of messages that are there.
    `again` are duplicates within the batch: their positions, and that of the first with the same id in what is left.
    `first` is the index that the first message that is left will have in its record.
    """

    batch: Batch | None
    ids: Sequence[bytes]
    known: Sequence[Duplicate]
    again: Sequence[tuple[int, int]]
    first: int

    def dedup(self, taken: int) -> bytes:
        """The column of ids for the first `taken` messages that are left; empty where none has an id."""
        ids = self.ids[:taken]
        return b"".join(ids) if any(one != NO_ID for one in ids) else b""

    def duplicates(self, taken: int) -> tuple[Duplicate, ...]:
        """What is not stored as it is there, if the first `taken` messages are stored of what is left."""
        again = ((at, OWN, self.first + place) for at, place in self.again if place < taken)
        return tuple(sorted((*self.known, *again)))

    def dropped(self, taken: int) -> int:
        """How many messages are lost then: a duplicate of one that is not stored is lost, too."""
        return len(self.ids) - taken + sum(place >= taken for _, place in self.again)


class Deduplication:
    """Decides what is a duplicate, and forgets."""

    def __init__(self, journal: Journal, limits: Limits) -> None:
        """Continue with the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._limits = limits
        self._heap: list[tuple[int, int]] = []  # (due us, queue)
        self._due_us: dict[int, int] = {}  # queue -> its entry there
        for number in self._state.dedup.queues:
            self.watch(number)

    # --- what is there already

    def sift(self, queue: Queue, batch: Batch, dedup: bytes, fresh: Fresh | None) -> Sifted | None:
        """A batch without what is there already; None where its ids mean nothing, as the queue remembers none."""
        window_us = queue.settings.dedup_window_ms * 1000
        if not window_us:
            return None
        remembered = self._state.dedup.queues.get(queue.id)
        since_us = self._journal.now_us - window_us
        known: list[Duplicate] = []
        again: list[tuple[int, int]] = []
        left: list[int] = []
        ids: list[bytes] = []
        first: dict[bytes, int] = {}
        for at, one in enumerate(split(dedup)):
            if one != NO_ID:
                found = remembered.find(one) if remembered is not None else None
                if found is not None and found.time_us > since_us:
                    known.append((at, found.offset, found.place))
                    continue
                if fresh is not None and (place := fresh.ids.get((queue.name, one))) is not None:
                    known.append((at, OWN, place))
                    continue
                if (place := first.setdefault(one, len(left))) != len(left):
                    again.append((at, place))
                    continue
            left.append(at)
            ids.append(one)
        index = fresh.index if fresh is not None else 0
        return Sifted(_picked(batch, left), ids, known, again, index)

    def check_room(self, dedup: bytes, fresh: Fresh | None) -> None:
        """Whether so many more ids can be remembered.

        Raises:
            LimitExceeded: they cannot.
        """
        total, limit = self._state.dedup.total, self._limits.dedup_ids
        count = sum(one != NO_ID for one in split(dedup)) + (len(fresh.ids) if fresh is not None else 0)
        if total + count > limit:
            raise LimitExceeded(
                f"{total} dedup ids are remembered and {count} more are above the limit of {limit} (dedup_ids): "
                f"wait until some are forgotten, or give queues a shorter dedup_window"
            )

    # --- forgetting

    def watch(self, number: int) -> None:
        """A queue may have ids that it had not, or another window: forget them when it is time."""
        remembered, queue = self._state.dedup.queues.get(number), self._state.queues.get(number)
        if remembered is None or queue is None:
            return
        due_us = _due_us(remembered, queue.settings.dedup_window_ms)
        if due_us < self._due_us.get(number, due_us + 1):
            self._due_us[number] = due_us
            heappush(self._heap, (due_us, number))

    def tick(self) -> None:
        """Forget what is too old; the rest in the next turn, if that is much."""
        left = FORGETS_MAX
        while left and self._heap and self._heap[0][0] <= self._journal.now_us:
            due_us, number = heappop(self._heap)
            if self._due_us.get(number) == due_us:
                del self._due_us[number]
                left -= self._forget(number)
                self.watch(number)

    def _forget(self, number: int) -> bool:
        """Forget the oldest ids of a queue, if they are due: a slice, or what is too old of it."""
        remembered, queue = self._state.dedup.queues.get(number), self._state.queues.get(number)
        if remembered is None or queue is None:
            return False
        window_ms, now_us = queue.settings.dedup_window_ms, self._journal.now_us
        if _due_us(remembered, window_ms) > now_us:
            return False
        end = remembered.oldest_until(now_us - window_ms * 1000)
        self._journal.record(e.DedupForgotten(number, end))
        return True

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        return self._heap[0][0] if self._heap else None


def check_queue(dedup: bytes) -> None:
    """A publish to a topic has no dedup ids.

    Raises:
        InvalidRequest: it has.
    """
    if dedup:
        raise InvalidRequest("a dedup_id is for a queue, which remembers it: publish to a topic without one")


def _due_us(remembered: QueueIds, window_ms: int) -> int:
    """When ids of the oldest slice are to be forgotten: all of it, or some for which it is high time."""
    first_us, last_us = remembered.oldest_times
    slack_ms = max(window_ms // SLACK_PART, SLACK_MS_MIN)
    return min(last_us + window_ms * 1000, first_us + (window_ms + slack_ms) * 1000)


def _picked(batch: Batch, positions: list[int]) -> Batch | None:
    """The messages of a batch at these positions, in order."""
    if len(positions) == batch.count:
        return batch
    if not positions:
        return None
    runs: list[tuple[int, int]] = []
    for at in positions:
        first, end = runs.pop() if runs else (at, at)
        runs += [(first, at + 1)] if end == at else [(first, end), (at, at + 1)]
    return Batch(b"".join(batch.pick(runs)))

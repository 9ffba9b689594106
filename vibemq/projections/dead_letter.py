"""Why each message of a dead-letter queue is there.

The messages themselves are those of an ordinary queue; this projection keeps, for runs of them, where they came from
and the record that says why, and lets go of a run when its last message is settled.
"""

from bisect import bisect_right
from typing import Any, NamedTuple

from vibemq import events as e
from vibemq.projections.intervals import IntervalSet


class DeadRun(NamedTuple):
    """Messages start <= sequence < end of the dead-letter queue, by one event, record `offset`.

    They came from `lane` of `queue`; 0 is no queue: they were published to a topic that no queue was bound to.
    """

    start: int
    end: int
    offset: int
    time_us: int
    queue: int
    reason: int
    attempts: int
    error: str
    lane: int


class DeadLetters:
    """The dead letters in one dead-letter queue."""

    def __init__(self, queue: int) -> None:
        """Begin with none in `queue`."""
        self.as_of = 0
        self.queue = queue
        self.runs: list[DeadRun] = []
        self.open = IntervalSet()

    @property
    def key(self) -> str:
        """The stable name of the part."""
        return f"dead/{self.queue}"

    def received(self, offset: int, time_us: int, event: e.DeadLettered) -> None:
        """Messages came."""
        start, lane = event.dead_sequence, event.spans[0][0]
        self._add(
            DeadRun(
                start,
                start + event.count,
                offset,
                time_us,
                event.queue,
                event.reason,
                event.attempts,
                event.error,
                lane,
            )
        )

    def received_unroutable(self, offset: int, time_us: int, sequence: int, event: e.Routed) -> None:
        """Messages came that no queue was bound to."""
        reason, lane = e.DeadReason.UNROUTABLE, e.DEFAULT_LANE
        self._add(DeadRun(sequence, sequence + event.count, offset, time_us, 0, reason, 0, event.topic, lane))

    def _add(self, run: DeadRun) -> None:
        self.runs.append(run)
        self.open.add(run.start, run.end)

    def beginning(self, start: int, most: int) -> list[DeadRun]:
        """Up to `most` runs, in order, the first of which is that of sequence `start` or of the next there is."""
        first = bisect_right(self.runs, start, key=_start)
        if first and self.runs[first - 1].end > start:
            first -= 1
        return self.runs[first : first + most]

    def settled(self, spans: e.Spans) -> None:
        """Messages were acked, rejected or moved on."""
        for lane, start, end in spans:
            if lane != e.DEFAULT_LANE:  # not where dead letters are
                continue
            self.open.remove(start, end)
            first = max(0, bisect_right(self.runs, start, key=_start) - 1)
            last = bisect_right(self.runs, end - 1, key=_start)
            self.runs[first:last] = [run for run in self.runs[first:last] if self.open.within(run.start, run.end)]

    def purged(self, kept: e.Spans) -> None:
        """Everything but what consumers hold was thrown away."""
        still_open = IntervalSet()
        for lane, start, end in kept:
            for low, high in self.open.within(start, end) if lane == e.DEFAULT_LANE else ():
                still_open.add(low, high)
        self.open = still_open
        self.runs = [run for run in self.runs if still_open.within(run.start, run.end)]

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [self.queue, self.runs, self.open.snapshot()]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "DeadLetters":
        """The dead letters of which this is a snapshot."""
        queue, runs, still_open = snapshot
        dead = cls(queue)
        dead.as_of = as_of
        dead.runs = [DeadRun(*run) for run in runs]
        dead.open = IntervalSet.restore(still_open)
        return dead


def _start(run: DeadRun) -> int:
    return run.start

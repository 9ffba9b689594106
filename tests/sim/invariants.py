"""What must hold of the broker itself, whatever its clients see: after each event, and over the whole log.

`Watch` sees each event as it is appended. It knows the monotonic clock, and not the broker's: so it can tell when a
lease ends too early or too late because time was taken from elsewhere. It looks at the one queue that an event is
about, and only at what costs the same for any queue: the whole state is compared with the replay at the end.

`Ledger` counts a log from zero: what came into a queue is there, or has left it by an event that says so.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.checker import Violation
from vibemq import events as e
from vibemq.events import DEFAULT_GROUP, Spans
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue

SLACK_US = 2
"""The clock counts seconds as float."""
LEASE_ENDED = "the lease ended"


class Watch:
    """Looks at each event when it happens. Times are microseconds of the monotonic clock."""

    def __init__(self, wrecked: Callable[[str], None], counts: Counter[str]) -> None:
        """Nothing has happened. `wrecked` is told the name of a queue that is purged or deleted."""
        self._wrecked, self._counts = wrecked, counts
        self._names: dict[int, str] = {}
        self.last_us = 0
        self.leases: dict[tuple[int, int], int] = {}
        """(queue, sequence) -> when its lease ends."""
        self.waiting: dict[tuple[int, int], int] = {}
        """(queue, sequence) -> when its retry delay ends."""

    def restarted(self) -> None:
        """Nobody holds anything; a delay may be over sooner, as a wall clock that went on meanwhile is believed."""
        self.leases.clear()
        self.waiting.clear()

    def happened(self, event: e.Event, time_us: int, now_us: int, state: Projector) -> None:
        """An event of broker time `time_us` was appended `now_us`."""
        if time_us < self.last_us:
            raise Violation(f"time went back by {self.last_us - time_us} us with {event}")
        self.last_us = time_us
        if isinstance(event, e.QueueDeclared):
            self._names[event.queue] = event.name
        elif isinstance(event, e.QueuePurged | e.QueueDeleted):
            self._wrecked(self._names[event.queue])
        queue = state.queues.get(getattr(event, "queue", 0))
        if queue is not None:
            check_queue(queue)
            self._look_at_leases(event, time_us, now_us, queue.settings.lease_ms * 1000)

    def _look_at_leases(self, event: e.Event, time_us: int, now_us: int, lease_us: int) -> None:
        if isinstance(event, e.Delivered):
            if event.lease_until_us - time_us != lease_us:
                raise Violation(f"a lease of {event.lease_until_us - time_us} us, where the queue's is {lease_us}")
            self._lease(event, time_us, now_us)
        elif isinstance(event, e.LeaseExtended):
            self._lease(event, time_us, now_us)
        elif isinstance(event, e.MadeReady):
            self._is_over(self.waiting, event.queue, event.spans, now_us, "delays")
        elif isinstance(event, e.Acked):
            self._give_up(event.queue, event.spans)
        elif isinstance(event, e.Released | e.DeadLettered):
            if event.error == LEASE_ENDED:
                self._is_over(self.leases, event.queue, event.spans, now_us, "leases")
            self._give_up(event.queue, event.spans)
            if isinstance(event, e.Released) and event.not_before_us:
                until_us = now_us + event.not_before_us - time_us
                self.waiting |= dict.fromkeys(_keys(event.queue, event.spans), until_us)

    def _lease(self, event: e.Delivered | e.LeaseExtended, time_us: int, now_us: int) -> None:
        until_us = now_us + event.lease_until_us - time_us
        self.leases |= dict.fromkeys(_keys(event.queue, event.spans), until_us)

    def _give_up(self, queue: int, spans: Spans) -> None:
        for key in _keys(queue, spans):
            self.leases.pop(key, None)

    def _is_over(self, until: dict[tuple[int, int], int], queue: int, spans: Spans, now_us: int, what: str) -> None:
        self._counts[f"{what} ended"] += 1
        for key in _keys(queue, spans):
            left_us = until.pop(key, now_us) - now_us
            if left_us > SLACK_US:
                raise Violation(f"{what} ended {left_us} us too early: message {key[1]} of queue {queue}")

    def ticked(self, now_us: int, state: Projector) -> None:
        """The broker has done all that was due by now."""
        for what, until in (("leases", self.leases), ("delays", self.waiting)):
            if until and min(until.values()) < now_us - SLACK_US:
                late = [key for key, end_us in until.items() if end_us < now_us - SLACK_US and _is_there(state, *key)]
                if late:
                    raise Violation(f"{what} go on past their ends: message {late[0][1]} of queue {late[0][0]}")


def _keys(queue: int, spans: Spans) -> list[tuple[int, int]]:
    return [(queue, number) for _, start, end in spans for number in range(start, end)]


def _is_there(state: Projector, queue: int, number: int) -> bool:
    """Whether a message is held or waits: what was purged or deleted is not heard of again."""
    found = state.queues.get(queue)
    if found is None or found.deleted_until_us:
        return False
    group = found.groups[DEFAULT_GROUP]
    held = any(numbers.within(number, number + 1) for lanes in group.held.values() for numbers in lanes.values())
    return held or any(start <= number < end for _, _, start, end in group.waiting)


def check_queue(queue: Queue) -> None:
    """The counts of a queue agree with what it keeps."""
    group = queue.groups[DEFAULT_GROUP]
    ready = sum(queue.next[number] - lane.cursor + lane.returned.total for number, lane in group.lanes.items())
    held = sum(numbers.total for lanes in group.held.values() for numbers in lanes.values())
    counts = (queue.length, ready, held, queue.waiting)
    if queue.length != ready + held + queue.waiting or min(counts) < 0:
        raise Violation("queue {}: {} messages, but {} ready, {} held, {} waiting".format(queue.name, *counts))
    if not 0 <= group.unacked_bytes <= queue.bytes or (queue.length == 0 and queue.bytes):
        raise Violation(f"queue {queue.name}: {queue.bytes} bytes, of which {group.unacked_bytes} unacked")


class Ledger:
    """What came into each queue, and what has left it, counted from the events of a log."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.came: Counter[int] = Counter()
        self.left: Counter[int] = Counter()

    def note(self, event: Any) -> None:  # noqa: ANN401 - the kind is looked at
        """Count an event."""
        if isinstance(event, e.Published):
            self.came[event.queue] += event.count
        elif isinstance(event, e.Acked):
            self.left[event.queue] += sum(end - start for _, start, end in event.spans)
        elif isinstance(event, e.DeadLettered):
            self.left[event.queue] += sum(end - start for _, start, end in event.spans)
            self.came[event.dead_queue] += event.count
        elif isinstance(event, e.QueuePurged):
            self.left[event.queue] += event.count
        elif isinstance(event, e.QueueDeleted):
            if self.came[event.queue] - self.left[event.queue] != event.count:
                raise Violation(f"queue {event.queue} was deleted with {event.count} messages, which does not add up")
            if not event.until_us:  # else they are kept for a while, and go with an event like this one
                self.left[event.queue] += event.count

    def check(self, state: Projector) -> None:
        """Message conservation: what came and has not left is there, and is ready, held, or waiting."""
        for queue in state.queues.values():
            check_queue(queue)
            if self.came[queue.id] - self.left[queue.id] != queue.length:
                raise Violation(
                    f"queue {queue.name} got {self.came[queue.id]} messages, {self.left[queue.id]} have left it, "
                    f"and it holds {queue.length}"
                )

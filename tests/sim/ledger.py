"""What came into each group, and what has left it, counted from the events of a log from zero: messages are conserved.

It knows of messages only how many they are. So it is right where the book, which knows each of them, might be wrong in
the same way as the broker.
"""

from collections import Counter
from typing import Any, TypeAlias

from tests.checker import Violation
from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, Spans
from vibemq.projections.projector import Projector

Key: TypeAlias = tuple[int, int]
"""A queue, and one of its groups."""


class Ledger:
    """Counts events."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.came: Counter[Key] = Counter()
        self.left: Counter[Key] = Counter()
        self.held: Counter[Key] = Counter()
        self.delayed: Counter[int] = Counter()
        """By queue."""
        self._groups: dict[int, set[int]] = {}
        self._without_acks: set[int] = set()
        self._arrived: Counter[tuple[int, int]] = Counter()
        """By queue and lane."""
        self._notes: dict[type, Any] = {
            e.QueueDeclared: self._declared,
            e.QueuePurged: self._purged,
            e.QueueDeleted: self._deleted,
            e.GroupCreated: self._begins,
            e.GroupSought: self._begins,
            e.GroupDeleted: lambda event, _: self._groups[event.queue].remove(event.group),
            e.Delivered: self._delivered,
            e.Released: self._released,
            e.Acked: self._acked,
            e.Dropped: self._gone,
            e.DeadLettered: self._gone,
            e.Redriven: self._gone,
            e.Matured: self._waits_no_more,
            e.Rescheduled: self._waits_no_more,
            e.Cancelled: self._waits_no_more,
            e.BrokerStarted: lambda _, __: self.held.clear(),
            e.BrokerStopped: lambda _, __: self.held.clear(),
        }

    def note(self, event: e.Event) -> None:
        """Count an event."""
        if isinstance(event, e.Published | e.Routed | e.TransactionCommitted):
            for queue, entry in event.delayed(0):
                self.delayed[queue] += entry[3]
        for queue, lane, _, count in event.arrivals:
            self._arrived[queue, lane] += count
            for group in self._groups[queue]:
                self.came[queue, group] += count
        for one in event.acked if isinstance(event, e.TransactionCommitted) else (event,):
            note = self._notes.get(type(one))
            if note is not None:
                note(one, (getattr(one, "queue", 0), getattr(one, "group", DEFAULT_GROUP)))

    def _declared(self, event: e.QueueDeclared, _: Key) -> None:
        self._groups[event.queue] = set() if event.settings.mode.has_groups else {DEFAULT_GROUP}
        if event.settings.mode is Mode.FAN_OUT_NO_ACK:
            self._without_acks.add(event.queue)

    def _begins(self, event: e.GroupCreated | e.GroupSought, at: Key) -> None:
        self._groups[event.queue].add(event.group)
        self.came[at] = self._arrived[event.queue, DEFAULT_LANE] - event.sequence + 1
        self.left[at] = self.held[at] = 0

    def _delivered(self, event: e.Delivered, at: Key) -> None:
        (self.left if event.queue in self._without_acks else self.held)[at] += count_of(event.spans)

    def _released(self, event: e.Released, at: Key) -> None:
        self.held[at] -= count_of(event.spans)

    def _acked(self, event: e.Acked, at: Key) -> None:
        self.held[at] -= count_of(event.spans)
        self.left[at] += count_of(event.spans)

    def _gone(self, event: e.Dropped | e.DeadLettered | e.Redriven, at: Key) -> None:
        count = count_of(event.spans)
        self.left[at] += count
        if isinstance(event, e.DeadLettered) and event.subscription:
            self.held[at] -= count
        if not isinstance(event, e.Dropped) and event.count != count:
            raise Violation(f"{event} refers to {event.count} messages, and moves {count}")

    def _waits_no_more(self, event: e.Matured | e.Rescheduled | e.Cancelled, _: Key) -> None:
        before, after = (event.entries, ()) if isinstance(event, e.Matured) else (event.before, event.after)
        self.delayed[event.queue] -= sum(entry[3] for entry in before) - sum(entry[3] for entry in after)

    def _purged(self, event: e.QueuePurged, _: Key) -> None:
        self.delayed[event.queue] = 0
        for group in self._groups[event.queue]:
            key = event.queue, group
            self.left[key] = self.came[key] - self.held[key]

    def _deleted(self, event: e.QueueDeleted, _: Key) -> None:
        counts = [self.length(event.queue, group) for group in self._groups[event.queue]]
        if event.count != max(counts, default=0) + self.delayed[event.queue]:
            raise Violation(f"queue {event.queue} was deleted with {event.count} messages, which does not add up")

    def length(self, queue: int, group: int) -> int:
        """How many messages a group should have."""
        return self.came[queue, group] - self.left[queue, group]

    def check(self, state: Projector) -> None:
        """What came and has not left is there."""
        for queue in state.queues.values():
            if queue.delayed.count != self.delayed[queue.id]:
                raise Violation(f"queue {queue.name} has {queue.delayed.count} delayed, not {self.delayed[queue.id]}")
            for group in queue.groups.values():
                there, wanted = group.length(queue.next), self.length(queue.id, group.id)
                if there != wanted:
                    raise Violation(
                        f"queue {queue.name}, group {group.name!r} got {self.came[queue.id, group.id]} messages, "
                        f"{self.left[queue.id, group.id]} have left it, and it holds {there}"
                    )


def count_of(spans: Spans) -> int:
    """How many messages."""
    return sum(end - start for _, start, end in spans)

"""A queue as a projection: numbered lanes, and groups that work through them.

Each lane numbers its messages from 1 as they become ready. A group sees a lane like this:

    1 ......................... cursor ................... next
      settled | held | returned        never handed out yet

Below the cursor everything that is not held by a consumer, returned, or waiting for its time is settled. All of it is
intervals, so the size of the state follows what is out of order, not the length of the queue.
"""

from bisect import insort
from typing import Any

import msgspec

from vibemq import events as e
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, QueueSettings, Spans
from vibemq.projections.intervals import IntervalSet


class Lane:
    """What a group has done in one lane."""

    __slots__ = ("cursor", "failed", "redelivered_below", "returned")

    def __init__(self) -> None:
        """Begin at the head of the lane."""
        self.cursor = 1
        """Sequences from here on were never handed out by this group."""
        self.returned = IntervalSet()
        """Below the cursor and ready again."""
        self.failed: dict[int, IntervalSet] = {}
        """By number of failed attempts: the unsettled messages that have exactly so many."""
        self.redelivered_below = 1
        """Below this everything may have been sent before a crash."""

    def attempts(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Runs (start, end, failed attempts) that cover start <= sequence < end, in order."""
        found = sorted((low, high, n) for n, marked in self.failed.items() for low, high in marked.within(start, end))
        runs: list[tuple[int, int, int]] = []
        at = start
        for low, high, n in found:
            if at < low:
                runs.append((at, low, 0))
            runs.append((low, high, n))
            at = high
        if at < end:
            runs.append((at, end, 0))
        return runs

    def count_failure(self, start: int, end: int) -> None:
        """One more failed attempt for each of these."""
        for low, high, n in self.attempts(start, end):
            if n:
                self._unmark(n, low, high)
            self.failed.setdefault(n + 1, IntervalSet()).add(low, high)

    def forget(self, start: int, end: int) -> None:
        """These are settled: how often they failed matters no more."""
        for n in list(self.failed):
            self._unmark(n, start, end)

    def _unmark(self, n: int, start: int, end: int) -> None:
        self.failed[n].remove(start, end)
        if not self.failed[n]:
            del self.failed[n]


class Group:
    """A cursor over a queue, shared by the subscriptions in `held`."""

    __slots__ = ("held", "lanes", "unacked", "unacked_bytes", "waiting", "waiting_count")

    def __init__(self) -> None:
        """Create a group that has seen nothing and has no consumers."""
        self.lanes: dict[int, Lane] = {DEFAULT_LANE: Lane()}
        self.held: dict[int, dict[int, IntervalSet]] = {}
        """Unacked messages: subscription -> lane -> sequences."""
        self.waiting: list[tuple[int, int, int, int]] = []
        """(not before in us, lane, start, end), in this order."""
        self.waiting_count = 0
        self.unacked = 0
        self.unacked_bytes = 0

    def take_back(self, subscription: int, spans: Spans) -> None:
        """These are no longer held by the subscription."""
        held = self.held[subscription]
        for lane, start, end in spans:
            self.unacked -= held[lane].remove(start, end)

    def leave_all(self, *, clean: bool, next_sequences: dict[int, int]) -> None:
        """Every consumer is gone. What they held is ready again; after a crash anything may have been sent to them."""
        if self.held and not clean:
            for number, lane in self.lanes.items():
                lane.redelivered_below = next_sequences[number]
        for held in self.held.values():
            for number, sequences in held.items():
                for start, end in sequences:
                    self.lanes[number].returned.add(start, end)
        self.held.clear()
        self.unacked = self.unacked_bytes = 0

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            [
                [
                    n,
                    lane.cursor,
                    lane.redelivered_below,
                    lane.returned.snapshot(),
                    [[count, marked.snapshot()] for count, marked in sorted(lane.failed.items())],
                ]
                for n, lane in sorted(self.lanes.items())
            ],
            [
                [subscription, [[n, sequences.snapshot()] for n, sequences in sorted(held.items()) if sequences]]
                for subscription, held in sorted(self.held.items())
            ],
            self.waiting,
            self.unacked_bytes,
        ]

    @classmethod
    def restore(cls, snapshot: list[Any]) -> "Group":
        """The group of which this is a snapshot."""
        lanes, held, waiting, unacked_bytes = snapshot
        group = cls()
        for number, cursor, redelivered_below, returned, failed in lanes:
            lane = group.lanes[number] = Lane()
            lane.cursor, lane.redelivered_below = cursor, redelivered_below
            lane.returned = IntervalSet.restore(returned)
            lane.failed = {n: IntervalSet.restore(marked) for n, marked in failed}
        for subscription, by_lane in held:
            group.held[subscription] = {number: IntervalSet.restore(s) for number, s in by_lane}
        group.unacked = sum(s.total for by_lane in group.held.values() for s in by_lane.values())
        group.waiting = [tuple(entry) for entry in waiting]
        group.waiting_count = sum(end - start for _, _, start, end in group.waiting)
        group.unacked_bytes = unacked_bytes
        return group


class Queue:
    """One queue: its settings, how far its lanes are numbered, and its groups."""

    __slots__ = ("as_of", "bytes", "declared_us", "groups", "id", "length", "name", "next", "settings")

    def __init__(self, declared: e.QueueDeclared, time_us: int) -> None:
        """Create the empty queue that was declared at `time_us`."""
        self.as_of = 0
        self.id, self.name, self.settings = declared.queue, declared.name, declared.settings
        self.declared_us = time_us
        self.next: dict[int, int] = {DEFAULT_LANE: 1}
        """Lane -> the sequence of its next message."""
        self.length = 0
        """Messages that are not settled."""
        self.bytes = 0
        """The bytes of their records."""
        self.groups: dict[int, Group] = {DEFAULT_GROUP: Group()}

    @property
    def key(self) -> str:
        """The stable name of the part."""
        return f"queue/{self.id}"

    @property
    def unacked(self) -> int:
        """Messages that consumers hold."""
        return self.groups[DEFAULT_GROUP].unacked

    @property
    def waiting(self) -> int:
        """Messages that are not yet due."""
        return self.groups[DEFAULT_GROUP].waiting_count

    @property
    def ready(self) -> int:
        """Messages that a consumer could get now."""
        return self.length - self.unacked - self.waiting

    def published(self, event: e.Published) -> None:
        """A batch became ready."""
        self._grow(event.lane, event.sequence, event.count, event.bytes)

    def received_dead(self, event: e.DeadLettered) -> None:
        """This is a dead-letter queue, and got these."""
        self._grow(DEFAULT_LANE, event.dead_sequence, event.count, event.bytes)

    def _grow(self, lane: int, sequence: int, count: int, size: int) -> None:
        assert sequence == self.next[lane], f"{self.name}: sequence {sequence} after {self.next[lane] - 1}"
        self.next[lane] = sequence + count
        self.length += count
        self.bytes += size

    def subscribed(self, event: e.Subscribed) -> None:
        """A consumer came."""
        self.groups[event.group].held[event.subscription] = {}

    def unsubscribed(self, event: e.Unsubscribed) -> None:
        """A consumer left; its messages were released before."""
        held = self.groups[event.group].held.pop(event.subscription)
        assert not any(held.values()), f"{self.name}: subscription {event.subscription} left with messages"

    def delivered(self, event: e.Delivered) -> None:
        """A consumer holds these now."""
        group = self.groups[event.group]
        held = group.held[event.subscription]
        for number, start, end in event.spans:
            lane = group.lanes[number]
            if start >= lane.cursor:
                assert start == lane.cursor, f"{self.name}: delivered {start}, the cursor is at {lane.cursor}"
                lane.cursor = end
            else:
                taken = lane.returned.remove(start, end)
                assert taken == end - start, f"{self.name}: delivered {start}..{end - 1}, which were not ready"
            held.setdefault(number, IntervalSet()).add(start, end)
            group.unacked += end - start
        group.unacked_bytes += event.bytes

    def acked(self, event: e.Acked) -> None:
        """A consumer is done with these."""
        self._settle(event.group, event.subscription, event.spans, event.bytes)

    def dead_lettered(self, event: e.DeadLettered) -> None:
        """These left the queue."""
        self._settle(event.group, event.subscription, event.spans, event.bytes)

    def _settle(self, number: int, subscription: int, spans: Spans, size: int) -> None:
        group = self.groups[number]
        before = group.unacked
        group.take_back(subscription, spans)
        for lane_number, start, end in spans:
            lane = group.lanes[lane_number]
            if lane.failed:
                lane.forget(start, end)
        self.length -= before - group.unacked
        group.unacked_bytes -= size
        self.bytes -= size

    def released(self, event: e.Released) -> None:
        """A consumer gave these back, or lost them."""
        group = self.groups[event.group]
        group.take_back(event.subscription, event.spans)
        group.unacked_bytes -= event.bytes
        for number, start, end in event.spans:
            lane = group.lanes[number]
            if event.counted:
                lane.count_failure(start, end)
            if event.not_before_us:
                insort(group.waiting, (event.not_before_us, number, start, end))
                group.waiting_count += end - start
            else:
                lane.returned.add(start, end)

    def made_ready(self, event: e.MadeReady) -> None:
        """These have waited long enough: they are the first of all that wait, and the others are not looked at."""
        group = self.groups[event.group]
        due = [entry[1:] for entry in group.waiting[: len(event.spans)]]
        assert due == list(event.spans), f"{self.name}: made ready what did not wait, or not the longest"
        del group.waiting[: len(due)]
        for number, start, end in event.spans:
            group.lanes[number].returned.add(start, end)
            group.waiting_count -= end - start

    def purged(self, event: e.QueuePurged) -> None:
        """Everything that nobody holds is gone."""
        group = self.groups[DEFAULT_GROUP]
        for number, lane in group.lanes.items():
            lane.cursor = self.next[number]
            lane.returned.clear()
            failed, lane.failed = lane.failed, {}
            for n, marked in failed.items():
                kept = IntervalSet()
                for kept_lane, start, end in event.kept:
                    for low, high in marked.within(start, end) if kept_lane == number else ():
                        kept.add(low, high)
                if kept:
                    lane.failed[n] = kept
        group.waiting.clear()
        group.waiting_count = 0
        self.length -= event.count
        self.bytes -= event.bytes

    def everyone_left(self, *, clean: bool) -> None:
        """The broker stopped or started: no consumer is there any more."""
        for group in self.groups.values():
            group.leave_all(clean=clean, next_sequences=self.next)

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            self.id,
            self.name,
            self.settings,
            self.declared_us,
            sorted(self.next.items()),
            self.length,
            self.bytes,
            [[number, group.snapshot()] for number, group in sorted(self.groups.items())],
        ]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Queue":
        """The queue of which this is a snapshot."""
        number, name, settings, declared_us, next_sequences, length, size, groups = snapshot
        declared = e.QueueDeclared(number, name, msgspec.convert(settings, QueueSettings), 0)
        queue = cls(declared, declared_us)
        queue.as_of = as_of
        queue.next = {lane: sequence for lane, sequence in next_sequences}  # noqa: C416 - pairs are lists here
        queue.length, queue.bytes = length, size
        queue.groups = {group_number: Group.restore(group) for group_number, group in groups}
        return queue

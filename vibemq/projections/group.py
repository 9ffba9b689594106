"""A group as part of a queue's state: a cursor over each lane, and all that is out of order behind it.

    1 ........................................ cursor ................... next
      settled | held | returned | waiting             never looked at

Below the cursor everything that is not held by a consumer, returned, or waiting for its time is settled. `returned` is
ready: what was handed out and came back, and, marked in `untouched`, what the cursor passed over without handing it out
as others behind it had to go first. All of it is intervals, so the size of the state follows what is out of order, not
the length of the queue.
"""

from bisect import insort
from typing import Any

from vibemq import events as e
from vibemq.events import DEFAULT_LANE, Spans
from vibemq.projections.intervals import IntervalSet


class Lane:
    """What a group has done in one lane."""

    __slots__ = ("cursor", "failed", "forgiven", "redelivered_below", "returned", "untouched")

    def __init__(self) -> None:
        """Begin at the head of the lane."""
        self.cursor = 1
        """Sequences from here on were never looked at by this group."""
        self.returned = IntervalSet()
        """Below the cursor and ready."""
        self.untouched = IntervalSet()
        """Those of `returned` that were never handed out."""
        self.failed: dict[int, IntervalSet] = {}
        """By number of failed attempts: the unsettled messages that have exactly so many."""
        self.forgiven: dict[int, IntervalSet] = {}
        """By number: the unsettled messages so many of whose failed attempts were in a life that is over."""
        self.redelivered_below = 1
        """Below this everything may have been sent before."""

    def ready(self, next_sequence: int) -> int:
        """How many messages are ready."""
        return next_sequence - self.cursor + self.returned.total

    def ready_within(self, start: int, end: int) -> list[tuple[int, int]]:
        """What is ready of start <= sequence < end, all of which came, in order."""
        ready = self.returned.within(start, min(end, self.cursor)) if start < self.cursor else []
        return ready if end <= self.cursor else [*ready, (max(start, self.cursor), end)]

    def take(self, start: int, end: int) -> None:
        """Ready messages start <= sequence < end are no longer ready; the cursor passes over those before them."""
        if start >= self.cursor:
            if start > self.cursor:
                self.returned.add(self.cursor, start)
                self.untouched.add(self.cursor, start)
            self.cursor = end
            return
        if end > self.cursor:
            self.take(start, self.cursor)
            self.take(self.cursor, end)
            return
        taken = self.returned.remove(start, end)
        assert taken == end - start, f"{start}..{end - 1} were not ready"
        if self.untouched:
            self.untouched.remove(start, end)

    def attempts(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Runs (start, end, failed attempts) that cover start <= sequence < end, in order."""
        return _counted(self.failed, start, end)

    def attempts_of_this_life(self, start: int, end: int) -> list[tuple[int, int, int, int]]:
        """Runs (start, end, failed attempts, those of them that are not forgiven), in order."""
        if not self.forgiven:
            return [(low, high, failed, failed) for low, high, failed in self.attempts(start, end)]
        return [
            (part_low, part_high, failed, failed - forgiven)
            for low, high, failed in self.attempts(start, end)
            for part_low, part_high, forgiven in _counted(self.forgiven, low, high)
        ]

    def count_failure(self, start: int, end: int) -> None:
        """One more failed attempt for each of these."""
        for low, high, n in self.attempts(start, end):
            if n:
                _unmark(self.failed, n, low, high)
            self.failed.setdefault(n + 1, IntervalSet()).add(low, high)

    def forgive(self, start: int, end: int, attempts: int) -> None:
        """These come with so many failed attempts of a former life."""
        self.failed.setdefault(attempts, IntervalSet()).add(start, end)
        self.forgiven.setdefault(attempts, IntervalSet()).add(start, end)

    def forget(self, start: int, end: int) -> None:
        """These are settled: how often they failed matters no more."""
        for marks in (self.failed, self.forgiven):
            for n in list(marks):
                _unmark(marks, n, start, end)

    def keep_marks(self, kept: IntervalSet) -> None:
        """Only these are left."""
        for marks in (self.failed, self.forgiven):
            for n, marked in list(marks.items()):
                left = IntervalSet()
                for start, end in kept:
                    for low, high in marked.within(start, end):
                        left.add(low, high)
                if left:
                    marks[n] = left
                else:
                    del marks[n]

    def snapshot(self, number: int) -> list[Any]:
        """Plain values in canonical order."""
        return [
            number,
            self.cursor,
            self.redelivered_below,
            self.returned.snapshot(),
            self.untouched.snapshot(),
            [[count, marked.snapshot()] for count, marked in sorted(self.failed.items())],
            [[count, marked.snapshot()] for count, marked in sorted(self.forgiven.items())],
        ]

    @classmethod
    def restore(cls, snapshot: list[Any]) -> "Lane":
        """The lane of which this is a snapshot."""
        _, cursor, redelivered_below, returned, untouched, failed, forgiven = snapshot
        lane = cls()
        lane.cursor, lane.redelivered_below = cursor, redelivered_below
        lane.returned, lane.untouched = IntervalSet.restore(returned), IntervalSet.restore(untouched)
        lane.failed = {n: IntervalSet.restore(marked) for n, marked in failed}
        lane.forgiven = {n: IntervalSet.restore(marked) for n, marked in forgiven}
        return lane


class Group:
    """A cursor over a queue, shared by the subscriptions in `held`. The lanes stand highest priority first."""

    __slots__ = (
        "ephemeral",
        "held",
        "id",
        "idle_since_us",
        "lanes",
        "name",
        "unacked",
        "unacked_bytes",
        "waiting",
        "waiting_count",
    )

    def __init__(self, number: int, name: str, *, ephemeral: bool = False) -> None:
        """Create a group that has seen nothing and has no consumers."""
        self.id, self.name, self.ephemeral = number, name, ephemeral
        self.lanes: dict[int, Lane] = {DEFAULT_LANE: Lane()}
        self.held: dict[int, dict[int, IntervalSet]] = {}
        """Unacked messages: subscription -> lane -> sequences."""
        self.waiting: list[tuple[int, int, int, int]] = []
        """(not before in us, lane, start, end), in this order."""
        self.waiting_count = 0
        self.unacked = 0
        self.unacked_bytes = 0
        self.idle_since_us = 0
        """Since when it has had no consumer; 0 while it has one, and before the first of an unnamed group."""

    # --- counts

    def ready(self, next_sequences: dict[int, int]) -> int:
        """Messages that a consumer could get now, in lanes that end at these sequences."""
        count = 0
        for number, lane in self.lanes.items():
            count += next_sequences[number] - lane.cursor + lane.returned.total
        return count

    def length(self, next_sequences: dict[int, int]) -> int:
        """Messages that this group has not settled."""
        return self.ready(next_sequences) + self.unacked + self.waiting_count

    # --- lanes and consumers

    def add_lane(self, number: int) -> None:
        """The queue has one more lane."""
        if number not in self.lanes:
            self.lanes[number] = Lane()
            self.lanes = dict(sorted(self.lanes.items(), reverse=True))

    def join(self, subscription: int) -> None:
        """A consumer came."""
        self.held[subscription] = {}
        self.idle_since_us = 0

    def leave(self, subscription: int, time_us: int) -> None:
        """A consumer left; what it held was released before."""
        held = self.held.pop(subscription)
        assert not any(held.values()), f"subscription {subscription} left with messages"
        if not self.held:
            self.idle_since_us = time_us

    def leave_all(self, time_us: int, *, clean: bool, next_sequences: dict[int, int]) -> None:
        """Every consumer is gone. What they held is ready again; after a crash anything may have been sent to them."""
        if self.held:
            self.idle_since_us = time_us
            if not clean:
                for number, lane in self.lanes.items():
                    lane.redelivered_below = next_sequences[number]
        for held in self.held.values():
            for number, sequences in held.items():
                for start, end in sequences:
                    self.lanes[number].returned.add(start, end)
        self.held.clear()
        self.unacked = self.unacked_bytes = 0

    def seek(self, sequence: int) -> None:
        """Go on from there, with nothing held, returned or waiting."""
        lane = self.lanes[DEFAULT_LANE]
        for held in self.held.values():
            held.clear()
        self.waiting.clear()
        self.waiting_count = self.unacked = self.unacked_bytes = 0
        lane.redelivered_below = max(lane.redelivered_below, lane.cursor)
        lane.cursor = sequence
        lane.returned.clear()
        lane.untouched.clear()
        lane.failed.clear()
        lane.forgiven.clear()

    # --- messages

    def hand_out(self, subscription: int, spans: Spans) -> None:
        """A consumer holds these, which were ready."""
        held = self.held[subscription]
        for number, start, end in spans:
            self.lanes[number].take(start, end)
            sequences = held.get(number)
            if sequences is None:
                sequences = held[number] = IntervalSet()
            sequences.add(start, end)
            self.unacked += end - start

    def take_ready(self, spans: Spans) -> None:
        """These were ready, and are gone."""
        for number, start, end in spans:
            self.lanes[number].take(start, end)

    def take_back(self, subscription: int, spans: Spans) -> None:
        """These are no longer held by the subscription."""
        held = self.held[subscription]
        for number, start, end in spans:
            taken = held[number].remove(start, end)
            assert taken == end - start, f"subscription {subscription} does not hold {start}..{end - 1}"
            self.unacked -= taken

    def forget(self, spans: Spans) -> None:
        """These are settled."""
        for number, start, end in spans:
            lane = self.lanes[number]
            if lane.failed:
                lane.forget(start, end)

    def give_back(self, event: e.Released) -> None:
        """A consumer gave these back: they are ready, or wait for their time."""
        self.take_back(event.subscription, event.spans)
        for number, start, end in event.spans:
            lane = self.lanes[number]
            if event.counted:
                lane.count_failure(start, end)
            if event.not_before_us:
                insort(self.waiting, (event.not_before_us, number, start, end))
                self.waiting_count += end - start
            else:
                lane.returned.add(start, end)

    def end_waiting(self, spans: Spans) -> None:
        """These are ready: they are the first of all that wait, and the others are not looked at."""
        due = [entry[1:] for entry in self.waiting[: len(spans)]]
        assert due == list(spans), "made ready what did not wait, or not the longest"
        del self.waiting[: len(due)]
        for number, start, end in spans:
            self.lanes[number].returned.add(start, end)
            self.waiting_count -= end - start

    def purge(self, next_sequences: dict[int, int]) -> None:
        """Everything that nobody holds is gone."""
        for number, lane in self.lanes.items():
            lane.cursor = next_sequences[number]
            lane.returned.clear()
            lane.untouched.clear()
            if lane.failed:
                kept = IntervalSet()
                for held in self.held.values():
                    for start, end in held.get(number, ()):
                        kept.add(start, end)
                lane.keep_marks(kept)
        self.waiting.clear()
        self.waiting_count = 0

    # --- saved

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            self.id,
            self.name,
            self.ephemeral,
            self.idle_since_us,
            [lane.snapshot(number) for number, lane in sorted(self.lanes.items())],
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
        number, name, ephemeral, idle_since_us, lanes, held, waiting, unacked_bytes = snapshot
        group = cls(number, name, ephemeral=ephemeral)
        group.idle_since_us = idle_since_us
        group.lanes = {saved[0]: Lane.restore(saved) for saved in reversed(lanes)}
        for subscription, by_lane in held:
            group.held[subscription] = {lane: IntervalSet.restore(s) for lane, s in by_lane}
        group.unacked = sum(s.total for by_lane in group.held.values() for s in by_lane.values())
        group.waiting = [tuple(entry) for entry in waiting]
        group.waiting_count = sum(end - start for _, _, start, end in group.waiting)
        group.unacked_bytes = unacked_bytes
        return group


def _counted(marks: dict[int, IntervalSet], start: int, end: int) -> list[tuple[int, int, int]]:
    """Runs (start, end, count) that cover start <= sequence < end, in order; 0 where nothing is marked."""
    found = sorted((low, high, n) for n, marked in marks.items() for low, high in marked.within(start, end))
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


def _unmark(marks: dict[int, IntervalSet], n: int, start: int, end: int) -> None:
    marks[n].remove(start, end)
    if not marks[n]:
        del marks[n]

"""A lane, and a group, against plain tables of messages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vibemq import events as e
from vibemq.projections.group import Group, Lane
from vibemq.projections.intervals import IntervalSet

NUMBERS = st.integers(0, 60)
LENGTHS = st.integers(1, 12)
SPANS = st.lists(st.tuples(NUMBERS, LENGTHS), max_size=12)


def numbers(found: IntervalSet) -> list[int]:
    return [number for start, end in found for number in range(start, end)]


class LaneMachine(RuleBasedStateMachine):
    """Messages are taken in any order, come back, fail, and are settled."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = Lane()
        self.next = 1
        self.ready: set[int] = set()
        self.out: set[int] = set()
        self.seen: set[int] = set()
        self.failed: dict[int, int] = {}
        self.forgiven: dict[int, int] = {}

    @rule(count=LENGTHS)
    def arrive(self, count: int) -> None:
        self.ready |= set(range(self.next, self.next + count))
        self.next += count

    @rule(count=LENGTHS, attempts=st.integers(1, 3))
    def come_back_to_work(self, count: int, attempts: int) -> None:
        self.lane.forgive(self.next, self.next + count, attempts)
        for number in range(self.next, self.next + count):
            self.failed[number] = self.forgiven[number] = attempts
        self.arrive(count)

    @rule(at=NUMBERS, count=LENGTHS)
    def take(self, at: int, count: int) -> None:
        """Some in a row that are ready, from anywhere."""
        if not self.ready:
            return
        start = end = sorted(self.ready)[at % len(self.ready)]
        while end in self.ready and end - start < count:
            end += 1
        self.lane.take(start, end)
        taken = set(range(start, end))
        self.ready -= taken
        self.out |= taken
        self.seen |= taken

    def some(self, at: int, count: int) -> tuple[int, int]:
        """Some in a row that are out."""
        start = end = sorted(self.out)[at % len(self.out)]
        while end in self.out and end - start < count:
            end += 1
        return start, end

    @rule(at=NUMBERS, count=LENGTHS, fails=st.booleans())
    def give_back(self, at: int, count: int, fails: bool) -> None:
        if not self.out:
            return
        start, end = self.some(at, count)
        if fails:
            self.lane.count_failure(start, end)
        self.lane.returned.add(start, end)
        for number in range(start, end):
            self.out.remove(number)
            self.ready.add(number)
            self.failed[number] = self.failed.get(number, 0) + fails

    @rule(at=NUMBERS, count=LENGTHS)
    def settle(self, at: int, count: int) -> None:
        if not self.out:
            return
        start, end = self.some(at, count)
        self.lane.forget(start, end)
        for number in range(start, end):
            self.out.remove(number)
            self.failed.pop(number, None)
            self.forgiven.pop(number, None)

    @rule(at=NUMBERS, count=LENGTHS)
    def keep(self, at: int, count: int) -> None:
        """Only some of those that are out are left; the others, and all that is ready, are gone."""
        kept = IntervalSet()
        if self.out:
            kept.add(*self.some(at, count))
        self.lane.keep_marks(kept)
        self.lane.cursor = self.next
        self.lane.returned.clear()
        self.lane.untouched.clear()
        self.out, self.ready = set(numbers(kept)), set()
        self.failed = {number: n for number, n in self.failed.items() if number in self.out}
        self.forgiven = {number: n for number, n in self.forgiven.items() if number in self.out}

    @invariant()
    def agrees(self) -> None:
        lane = self.lane
        assert lane.ready(self.next) == len(self.ready)
        assert [*numbers(lane.returned), *range(lane.cursor, self.next)] == sorted(self.ready)
        below = {number for number in self.ready if number < lane.cursor}
        assert numbers(lane.untouched) == sorted(below - self.seen)
        runs = lane.attempts_of_this_life(1, self.next)
        assert [(low, high) for low, high, _, _ in runs] == [
            (low, high) for low, high in zip([1, *(run[1] for run in runs)], (run[1] for run in runs), strict=False)
        ], "they cover everything, in order"
        counted = {at: (failed, counting) for low, high, failed, counting in runs for at in range(low, high)}
        expected = {at: self.failed.get(at, 0) for at in range(1, self.next)}
        assert counted == {at: (failed, failed - self.forgiven.get(at, 0)) for at, failed in expected.items()}
        assert all(marked for marked in [*lane.failed.values(), *lane.forgiven.values()]), "nothing is kept of nothing"
        assert Lane.restore(lane.snapshot(0)).snapshot(0) == lane.snapshot(0)


TestLane = LaneMachine.TestCase


@given(st.integers(1, 40), SPANS, LENGTHS)
def test_what_is_passed_over_and_taken_in_two_pieces_is_taken_whole(count: int, spans: Any, length: int) -> None:  # noqa: ANN401
    """A range may begin below the cursor and end above."""
    lane, ready = Lane(), set(range(1, count + 1))
    for start, span in spans:
        end = min(start + span, count + 1)
        if start >= 1 and start < end and set(range(start, end)) <= ready:
            lane.take(start, end)
            ready -= set(range(start, end))
    low = min(ready, default=0)
    if low and set(range(low, low + length)) <= ready:
        lane.take(low, low + length)
        ready -= set(range(low, low + length))
    assert [*numbers(lane.returned), *range(lane.cursor, count + 1)] == sorted(ready)


def test_what_is_not_ready_cannot_be_taken() -> None:
    lane = Lane()
    lane.take(3, 5)
    with pytest.raises(AssertionError, match="not ready"):
        lane.take(2, 4)


def spread() -> Group:
    """A group with messages 1 to 9 in every state: held by 7, waiting, returned, untouched; in lanes 0 and 4."""
    group = Group(2, "g")
    group.add_lane(4)
    group.join(7)
    group.join(8)
    group.hand_out(7, ((0, 1, 4), (4, 1, 3)))
    group.hand_out(8, ((0, 6, 8),))
    group.unacked_bytes = 70
    group.give_back(e.Released(1, 2, 7, ((0, 1, 2),), 10, e.ReleaseReason.NACKED, True, 500, ""))
    group.give_back(e.Released(1, 2, 7, ((0, 2, 3),), 10, e.ReleaseReason.NACKED, True, 0, ""))
    group.unacked_bytes -= 20
    return group


NEXT = {0: 10, 4: 5}


def test_a_group_counts_what_it_has() -> None:
    group = spread()
    assert list(group.lanes) == [4, 0], "the highest priority comes first"
    assert (group.ready(NEXT), group.unacked, group.waiting_count, group.length(NEXT)) == (7, 5, 1, 13)
    assert numbers(group.lanes[0].returned) == [2, 4, 5]
    assert numbers(group.lanes[0].untouched) == [4, 5]
    assert numbers(group.lanes[0].failed[1]) == [1, 2]


@pytest.mark.parametrize("clean", [True, False])
def test_all_that_was_held_is_ready_when_everyone_has_left(clean: bool) -> None:
    group = spread()
    group.leave_all(99, clean=clean, next_sequences=NEXT)
    assert (group.ready(NEXT), group.unacked, group.unacked_bytes, group.waiting_count) == (12, 0, 0, 1)
    assert group.idle_since_us == 99
    assert [lane.redelivered_below for lane in group.lanes.values()] == ([1, 1] if clean else [5, 10])
    again = spread()
    again.leave_all(99, clean=clean, next_sequences=NEXT)
    again.leave_all(120, clean=False, next_sequences=NEXT)
    assert again.idle_since_us == 99, "it had no consumer any more"
    assert [lane.redelivered_below for lane in again.lanes.values()] == ([1, 1] if clean else [5, 10])


@pytest.mark.parametrize("sequence", [1, 4, 10])
def test_a_seek_forgets_all_but_what_may_have_been_sent(sequence: int) -> None:
    group = spread()
    del group.lanes[4]
    group.held[7].pop(4)
    group.unacked -= 2
    group.seek(sequence)
    assert (group.ready({0: 10}), group.unacked, group.unacked_bytes, group.waiting_count) == (10 - sequence, 0, 0, 0)
    assert group.lanes[0].attempts(1, 10) == [(1, 10, 0)]
    assert group.lanes[0].redelivered_below == 8
    assert set(group.held) == {7, 8}, "its consumers stay"
    group.hand_out(7, ((0, 9, 10),) if sequence < 10 else ())
    group.seek(2)
    assert group.lanes[0].redelivered_below == 10, "all that it had got past"


def test_only_what_has_waited_longest_is_made_ready() -> None:
    group = Group(0, "")
    group.join(1)
    group.hand_out(1, ((0, 1, 6),))
    for at, until_us in ((1, 300), (2, 100), (3, 200)):
        group.give_back(e.Released(1, 0, 1, ((0, at, at + 1),), 0, e.ReleaseReason.NACKED, False, until_us, ""))
    with pytest.raises(AssertionError, match="not the longest"):
        group.end_waiting(((0, 1, 2),))
    group.end_waiting(((0, 2, 3), (0, 3, 4)))
    assert numbers(group.lanes[0].returned) == [2, 3]
    assert (group.waiting, group.waiting_count) == ([(300, 0, 1, 2)], 1)


def test_a_purge_leaves_what_is_held_and_how_often_that_failed() -> None:
    group = spread()
    group.hand_out(8, ((0, 2, 3),))
    group.purge(NEXT)
    assert (group.ready(NEXT), group.unacked, group.waiting_count) == (0, 6, 0)
    assert [at for marked in group.lanes[0].failed.values() for at in numbers(marked)] == [2]


def test_a_group_is_restored_as_it_was() -> None:
    group = spread()
    again = Group.restore(group.snapshot())
    assert again.snapshot() == group.snapshot()
    assert list(again.lanes) == list(group.lanes)
    assert (again.unacked, again.waiting_count, again.length(NEXT)) == (5, 1, 13)


def test_what_a_consumer_does_not_hold_it_cannot_give_back() -> None:
    group = spread()
    with pytest.raises(AssertionError, match="does not hold"):
        group.take_back(7, ((0, 6, 7),))
    with pytest.raises(AssertionError, match="left with messages"):
        group.leave(7, 5)

"""IntervalSet against a plain set of integers."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq.projections import intervals as module
from vibemq.projections.intervals import IntervalSet


@pytest.fixture(autouse=True, params=[4, module.BLOCK_MAX], scope="module")
def block_max(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything holds for sets of many small blocks, and for those of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_MAX", request.param)
        yield


RANGES = st.tuples(st.integers(0, 60), st.integers(1, 20) | st.integers(1, 3)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
STEPS = st.lists(st.tuples(st.booleans(), RANGES), max_size=60)


def built(steps: list[tuple[bool, tuple[int, int]]]) -> tuple[IntervalSet, set[int]]:
    """The same additions (True) and removals done to both."""
    intervals, numbers = IntervalSet(), set[int]()
    for adding, (start, end) in steps:
        if adding:
            intervals.add(start, end)
            numbers |= set(range(start, end))
        else:
            gone = intervals.remove(start, end)
            assert gone == len(numbers & set(range(start, end)))
            numbers -= set(range(start, end))
        assert_same(intervals, numbers)
    return intervals, numbers


def assert_same(intervals: IntervalSet, numbers: set[int]) -> None:
    """The same numbers, in canonical form: sorted, not empty, not touching."""
    assert spelled_out(list(intervals)) == sorted(numbers)
    assert all(start < end for start, end in intervals)
    assert all(before < after for (_, before), (after, _) in pairwise(intervals))
    assert intervals.total == len(numbers)
    assert len(intervals) == sum(number - 1 not in numbers for number in numbers)
    assert bool(intervals) == bool(numbers)


def spelled_out(intervals: list[tuple[int, int]]) -> list[int]:
    """Every number of these intervals."""
    return [number for start, end in intervals for number in range(start, end)]


@given(STEPS)
def test_add_and_remove_are_those_of_a_set(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    built(steps)


@given(STEPS, RANGES)
def test_questions_are_answered_as_by_a_set(steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    intervals, numbers = built(steps)
    start, end = asked
    wanted = set(range(start, end))
    assert spelled_out(intervals.within(start, end)) == sorted(numbers & wanted)
    assert all(low < high for low, high in intervals.within(start, end))
    assert intervals.covers(start, end) == (wanted <= numbers)
    if numbers:
        assert intervals.first == min(numbers)


@given(STEPS)
def test_a_snapshot_restores_the_set_and_equal_sets_have_equal_snapshots(
    steps: list[tuple[bool, tuple[int, int]]],
) -> None:
    intervals, numbers = built(steps)
    restored = IntervalSet.restore(intervals.snapshot())
    assert_same(restored, numbers)
    assert restored == intervals
    one_by_one = IntervalSet()
    for number in sorted(numbers, reverse=True):
        one_by_one.add(number, number + 1)
    assert one_by_one == intervals
    assert one_by_one.snapshot() == intervals.snapshot() == restored.snapshot()


@given(STEPS)
def test_clear_leaves_the_empty_set(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    intervals, _ = built(steps)
    intervals.clear()
    assert_same(intervals, set())
    assert intervals == IntervalSet()
    assert "IntervalSet([])" in repr(intervals)


def test_sets_with_another_start_or_another_end_differ() -> None:
    ours, others = IntervalSet(), [IntervalSet(), IntervalSet(), IntervalSet()]
    ours.add(2, 5)
    for other, bounds in zip(others, [(2, 4), (3, 5), (9, 12)], strict=True):
        other.add(*bounds)
    assert all(ours != other for other in others)
    assert ours != [(2, 5)]


def test_numbers_may_be_as_large_as_a_log_can_get() -> None:
    intervals = IntervalSet()
    intervals.add((1 << 63) - 2, (1 << 63) - 1)
    assert list(IntervalSet.restore(intervals.snapshot())) == [((1 << 63) - 2, (1 << 63) - 1)]

"""DeadLetters against a plain table of messages."""

from hypothesis import given
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.projections.dead_letter import DeadLetters

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=6)
SPANS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5)), max_size=8)


def dead_letters(sizes: list[int]) -> tuple[DeadLetters, dict[int, int]]:
    """Runs of these sizes, and the record that brought each message."""
    dead, origin, first = DeadLetters(2), dict[int, int](), 1
    for offset, size in enumerate(sizes):
        spans, refs = ((0, 1, size + 1),), ((0, 0, size),)
        dead.received(offset, 7, e.DeadLettered(1, 0, 1, spans, 0, e.DeadReason.REJECTED, 1, "no", 2, first, refs))
        origin |= dict.fromkeys(range(first, first + size), offset)
        first += size
    return dead, origin


def check(dead: DeadLetters, origin: dict[int, int]) -> None:
    """The table has what is still there; a run stays as long as any of its messages."""
    assert [number for start, end in dead.open for number in range(start, end)] == sorted(origin)
    assert [run.offset for run in dead.runs] == sorted(set(origin.values()))


@given(SIZES, SPANS)
def test_a_run_goes_with_the_last_of_its_messages(sizes: list[int], spans: list[tuple[int, int]]) -> None:
    dead, origin = dead_letters(sizes)
    check(dead, origin)
    for start, length in spans:
        dead.settled(((0, start, start + length),))
        for number in range(start, start + length):
            origin.pop(number, None)
        check(dead, origin)


@given(SIZES, SPANS)
def test_a_purge_keeps_the_runs_of_what_consumers_hold(sizes: list[int], spans: list[tuple[int, int]]) -> None:
    dead, origin = dead_letters(sizes)
    kept = {number for start, length in spans for number in range(start, start + length)} & origin.keys()
    dead.purged(tuple((0, number, number + 1) for number in sorted(kept)))
    check(dead, {number: origin[number] for number in kept})

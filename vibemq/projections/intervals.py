"""Sets of integers kept as sorted, disjoint, half-open intervals.

The state of a queue is made of these: what is ready, what a consumer holds, what has failed once. Ten million
messages in a row are one interval, so the cost of an operation depends on how many intervals there are and not on how
many messages. The bounds stand in arrays of machine integers: bisection finds, slice assignment changes, a snapshot is
a copy of memory.

A set of very many intervals is cut into blocks, in order, so that a change moves the bounds of one block and not of
all: taking 100,000 scattered messages one by one would else move 40 GB. Most sets are one block.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import Final, TypeAlias

BLOCK_MAX: Final = 1024
"""Intervals above which a block is cut in two."""

_Block: TypeAlias = "tuple[array[int], array[int]]"
"""Starts and ends of some intervals."""


class IntervalSet:
    """A set of integers 0 <= n < 2**63. `total` is how many there are; `len()` how many intervals."""

    __slots__ = ("_blocks", "_lows", "total")

    def __init__(self) -> None:
        """Create the empty set."""
        self._blocks: list[_Block] = [(array("q"), array("q"))]
        self._lows = [0]
        """Where each block's numbers begin, or before; the first block takes in all below the second."""
        self.total = 0

    def __len__(self) -> int:
        return sum(len(starts) for starts, _ in self._blocks)

    def __bool__(self) -> bool:
        return self.total > 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return chain.from_iterable(zip(starts, ends, strict=True) for starts, ends in self._blocks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self.total == other.total and self.snapshot() == other.snapshot()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    @property
    def first(self) -> int:
        """The lowest number; the set must not be empty."""
        return self._blocks[0][0][0]

    def add(self, start: int, end: int) -> None:
        """Add start <= n < end; what was there already stays."""
        lows = self._lows
        at = 0
        if len(lows) > 1:
            at = bisect_right(lows, start) - 1
            if (at + 1 < len(lows) and end >= lows[at + 1]) or (at and start == lows[at]):
                self._add_across(start, end)
                return
        starts, ends = self._blocks[at]
        low = bisect_left(ends, start)
        high = bisect_right(starts, end, low)
        if low == high:
            starts.insert(low, start)
            ends.insert(low, end)
            self.total += end - start
            if len(starts) > BLOCK_MAX:
                self._split(at)
            return
        start, end = min(start, starts[low]), max(end, ends[high - 1])
        if high - low == 1:
            self.total += (end - start) - (ends[low] - starts[low])
            starts[low], ends[low] = start, end
            return
        self.total += (end - start) - (sum(ends[low:high]) - sum(starts[low:high]))
        starts[low:high] = array("q", (start,))
        ends[low:high] = array("q", (end,))

    def _add_across(self, start: int, end: int) -> None:
        """Add what may meet or touch intervals of several blocks: one interval is left of all of them."""
        met = self.within(max(0, start - 1), end + 1)
        if met:
            start = min(start, self._interval(met[0][0])[0])
            end = max(end, self._interval(met[-1][1] - 1)[1])
            self.remove(start, end)
        lows = self._lows
        at = bisect_right(lows, start) - 1
        starts, ends = self._blocks[at]
        place = bisect_left(starts, start)
        starts.insert(place, start)
        ends.insert(place, end)
        self.total += end - start
        if at + 1 < len(lows):
            lows[at + 1] = self._blocks[at + 1][0][0]  # it may reach beyond where that block's numbers could begin
        if len(starts) > BLOCK_MAX:
            self._split(at)

    def _interval(self, number: int) -> tuple[int, int]:
        """The interval that holds a number."""
        starts, ends = self._blocks[bisect_right(self._lows, number) - 1]
        at = bisect_right(starts, number) - 1
        return starts[at], ends[at]

    def _split(self, at: int) -> None:
        starts, ends = self._blocks[at]
        half = len(starts) // 2
        self._blocks.insert(at + 1, (starts[half:], ends[half:]))
        self._lows.insert(at + 1, starts[half])
        del starts[half:]
        del ends[half:]

    def remove(self, start: int, end: int) -> int:
        """Remove start <= n < end, and give how many of them were there."""
        lows = self._lows
        if len(lows) == 1:
            removed = _remove(self._blocks[0], start, end)
            self.total -= removed
            return removed
        removed = 0
        at = max(0, bisect_right(lows, start) - 1)
        last = bisect_left(lows, end, at + 1)
        for number in range(last - 1, at - 1, -1):
            removed += _remove(self._blocks[number], start, end)
            if not self._blocks[number][0] and len(lows) > 1:
                del self._blocks[number]
                del lows[number]
        lows[0] = 0
        self.total -= removed
        return removed

    def covers(self, start: int, end: int) -> bool:
        """Whether all of start <= n < end are in the set."""
        lows = self._lows
        starts, ends = self._blocks[bisect_right(lows, start) - 1 if len(lows) > 1 else 0]
        at = bisect_right(starts, start) - 1
        return at >= 0 and end <= ends[at]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The intervals of the set's part in start <= n < end."""
        lows = self._lows
        first, last = 0, 1
        if len(lows) > 1:
            first = bisect_right(lows, start) - 1
            last = bisect_left(lows, end, first + 1)
        found: list[tuple[int, int]] = []
        for starts, ends in self._blocks[first:last]:
            low = bisect_right(ends, start)
            high = bisect_left(starts, end, low)
            if low < high:
                found += zip(starts[low:high], ends[low:high], strict=True)
        if found:
            found[0] = (max(start, found[0][0]), found[0][1])
            found[-1] = (found[-1][0], min(end, found[-1][1]))
        return found

    def clear(self) -> None:
        """Remove everything."""
        self.__init__()  # type: ignore[misc]  # nothing inherits from this

    def snapshot(self) -> list[bytes]:
        """The set in its one canonical form: starts and ends as little-endian 64-bit integers."""
        return [b"".join(_little_endian(block[column]) for block in self._blocks) for column in (0, 1)]

    @classmethod
    def restore(cls, snapshot: list[bytes]) -> "IntervalSet":
        """The set of which this is a snapshot."""
        found = cls()
        starts, ends = array("q"), array("q")
        starts.frombytes(snapshot[0])
        ends.frombytes(snapshot[1])
        if sys.byteorder == "big":  # pragma: no cover
            starts.byteswap()
            ends.byteswap()
        step = BLOCK_MAX // 2
        cuts = range(0, len(starts), step)
        if len(starts) > BLOCK_MAX:
            found._blocks = [(starts[cut : cut + step], ends[cut : cut + step]) for cut in cuts]
            found._lows = [0, *(starts[cut] for cut in cuts[1:])]
        else:
            found._blocks = [(starts, ends)]
        found.total = sum(ends) - sum(starts)
        return found


def _remove(block: _Block, start: int, end: int) -> int:
    """Remove start <= n < end from a block, and give how many of them were there."""
    starts, ends = block
    low = bisect_right(ends, start)
    high = bisect_left(starts, end, low)
    if low == high:
        return 0
    first, last = starts[low], ends[high - 1]
    before = last - first if high - low == 1 else sum(ends[low:high]) - sum(starts[low:high])
    kept = 0
    new_starts, new_ends = array("q"), array("q")
    if first < start:
        new_starts.append(first)
        new_ends.append(start)
        kept += start - first
    if last > end:
        new_starts.append(end)
        new_ends.append(last)
        kept += last - end
    starts[low:high] = new_starts
    ends[low:high] = new_ends
    return before - kept


def _little_endian(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":  # pragma: no cover
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()

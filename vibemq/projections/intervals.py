"""Sets of integers kept as sorted, disjoint, half-open intervals.

The state of a queue is made of these: what is ready, what a consumer holds, what has failed once. Ten million
messages in a row are one interval, so the cost of an operation depends on how many intervals there are and not on how
many messages. The bounds stand in two arrays of machine integers: bisection finds, slice assignment changes, a
snapshot is a copy of memory.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class IntervalSet:
    """A set of integers 0 <= n < 2**63. `total` is how many there are; `len()` how many intervals."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self) -> None:
        """Create the empty set."""
        self._starts = array("q")
        self._ends = array("q")
        self.total = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return self.total > 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    @property
    def first(self) -> int:
        """The lowest number; the set must not be empty."""
        return self._starts[0]

    def add(self, start: int, end: int) -> None:
        """Add start <= n < end; what was there already stays."""
        starts, ends = self._starts, self._ends
        low = bisect_left(ends, start)
        high = bisect_right(starts, end, low)
        if low == high:
            starts.insert(low, start)
            ends.insert(low, end)
            self.total += end - start
            return
        start, end = min(start, starts[low]), max(end, ends[high - 1])
        if high - low == 1:
            self.total += (end - start) - (ends[low] - starts[low])
            starts[low], ends[low] = start, end
            return
        self.total += (end - start) - (sum(ends[low:high]) - sum(starts[low:high]))
        starts[low:high] = array("q", (start,))
        ends[low:high] = array("q", (end,))

    def remove(self, start: int, end: int) -> int:
        """Remove start <= n < end, and give how many of them were there."""
        starts, ends = self._starts, self._ends
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
        self.total -= before - kept
        return before - kept

    def covers(self, start: int, end: int) -> bool:
        """Whether all of start <= n < end are in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The intervals of the set's part in start <= n < end."""
        starts, ends = self._starts, self._ends
        low = bisect_right(ends, start)
        high = bisect_left(starts, end, low)
        if low == high:
            return []
        found = list(zip(starts[low:high], ends[low:high], strict=True))
        found[0] = (max(start, found[0][0]), found[0][1])
        found[-1] = (found[-1][0], min(end, found[-1][1]))
        return found

    def lowest(self, count: int) -> list[tuple[int, int]]:
        """The intervals of the `count` lowest numbers."""
        found = []
        for start, end in zip(self._starts, self._ends, strict=True):
            if count <= 0:
                break
            found.append((start, min(end, start + count)))
            count -= end - start
        return found

    def clear(self) -> None:
        """Remove everything."""
        del self._starts[:]
        del self._ends[:]
        self.total = 0

    def snapshot(self) -> list[bytes]:
        """The set in its one canonical form: starts and ends as little-endian 64-bit integers."""
        return [_little_endian(self._starts), _little_endian(self._ends)]

    @classmethod
    def restore(cls, snapshot: list[bytes]) -> "IntervalSet":
        """The set of which this is a snapshot."""
        found = cls()
        found._starts.frombytes(snapshot[0])
        found._ends.frombytes(snapshot[1])
        if sys.byteorder == "big":  # pragma: no cover
            found._starts.byteswap()
            found._ends.byteswap()
        found.total = sum(found._ends) - sum(found._starts)
        return found


def _little_endian(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":  # pragma: no cover
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()

"""Random numbers that are cheap to begin anew: every step of a history draws its own.

So a step does the same whatever steps were left out before it, as far as the world around it allows; that is what makes
a history one that can be shrunk. Seeding Python's own generator would take longer than most steps.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

_MASK = (1 << 64) - 1
_T = TypeVar("_T")


class Chance(Random):
    """Knuth's MMIX linear congruential generator, begun with splitmix64 so that near seeds have nothing in common."""

    _state = 0

    def seed(self, a: Any = None, _version: int = 2) -> None:  # noqa: ANN401 - as Random has it
        """Begin anew with a whole number."""
        mixed = ((a or 0) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        self._state = mixed ^ (mixed >> 31)

    def random(self) -> float:
        """A number from 0 up to 1."""
        self._state = state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (state >> 11) * 2.0**-53

    def getrandbits(self, k: int, /) -> int:
        """A number of up to `k` bits."""
        found = 0
        for _ in range(0, k, 32):
            found = found << 32 | int(self.random() * (1 << 32))
        return found >> (-k % 32)

    def _randbelow(self, n: int) -> int:
        return int(self.random() * n)

    def choice(self, seq: Sequence[_T]) -> _T:  # type: ignore[override]  # Random takes whatever has a length
        """One of them."""
        return seq[int(self.random() * len(seq))]

"""So many a second: a bucket that fills with time."""

from typing import Final

BURST_US: Final = 100_000
"""What was not used for so long may be used at once; what is older is lost."""
_SECOND_US: Final = 1_000_000


class Bucket:
    """Allows `rate` things a second on average. What is taken at once may be more: then it has to be waited for after.

    `rate` may be changed at any time. Whole numbers only: parts of a thing are counted in millionths.
    """

    __slots__ = ("_filled_us", "_level", "rate")

    def __init__(self, rate: int, now_us: int) -> None:
        """Begin full."""
        self.rate = rate
        self._filled_us = now_us
        self._level = self._capacity

    @property
    def _capacity(self) -> int:
        return max(_SECOND_US, self.rate * BURST_US)

    def _fill(self, now_us: int) -> None:
        passed_us = max(0, now_us - self._filled_us)
        self._filled_us = max(now_us, self._filled_us)
        self._level = min(self._capacity, self._level + passed_us * self.rate)

    def available(self, now_us: int) -> int:
        """How many may be taken without waiting after."""
        self._fill(now_us)
        return max(0, self._level // _SECOND_US)

    def take(self, count: int, now_us: int) -> None:
        """Use so many, be they there or not."""
        self._fill(now_us)
        self._level -= count * _SECOND_US

    def due_us(self, now_us: int) -> int:
        """When there is one to take."""
        self._fill(now_us)
        missing = _SECOND_US - self._level
        return now_us + max(0, -(-missing // self.rate))

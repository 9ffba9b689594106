"""Broker time: the one place where the broker reads a clock.

Microseconds since 1970. It is anchored to the wall at the start and then follows the monotonic clock, so a wall clock
that is set while the broker runs moves nothing; and it is never below the last event of the log. A step forward
across a downtime is believed: there is no way to know better.
"""

import time
from collections.abc import Callable


class BrokerClock:
    """Gives broker time. `wall` and `monotonic` are seconds; tests put their own in."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic, last_us: int = 0
    ) -> None:
        """Anchor now; no time before `last_us` is ever given."""
        self._wall, self._monotonic = wall, monotonic
        self._anchor_us = max(int(wall() * 1_000_000), last_us) - int(monotonic() * 1_000_000)
        self._jump_us = self._difference_us()

    def now_us(self) -> int:
        """Broker time."""
        return self._anchor_us + int(self._monotonic() * 1_000_000)

    def wall_us(self) -> int:
        """What the wall clock says, for the record only."""
        return int(self._wall() * 1_000_000)

    def wall_jump_us(self) -> int:
        """By how much the wall clock was set since the last call that said so; 0 for less than a second."""
        jumped = self._difference_us() - self._jump_us
        if abs(jumped) < 1_000_000:
            return 0
        self._jump_us += jumped
        return jumped

    def _difference_us(self) -> int:
        return self.wall_us() - self.now_us()

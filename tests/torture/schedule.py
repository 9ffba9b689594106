"""Which source runs next, and for how long.

The sources take turns, and a turn is as long as the share of its source, so that a run that is ended early has a part
of everything. Whose count is reached takes no more turns: its time is left to the others. Sources that wait for other
processes run beside those that compute, where there is a choice.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.torture.promises import Source
from tests.torture.report import Outcome

TURNS: Final = 4
"""Each source has so many turns, if no other one ends before its time."""
TURN_S_MIN: Final = 5.0
"""Less is spent on starting Python."""
SEEDS_PER_TURN: Final = 10_000_000
"""No turn needs more seeds than this."""


class Turn(NamedTuple):
    """A source may run up to `rounds` rounds from `seed` on, and begin none after `seconds`."""

    source: Source
    rounds: int
    seconds: float
    seed: int


class Schedule:
    """Hands out turns until `seconds` from its beginning are over; `now` always counts from there."""

    def __init__(self, sources: Sequence[Source], seconds: float, jobs: int, seed: int) -> None:
        """`jobs` of the sources run at a time."""
        self.outcomes = {source.key: Outcome(source) for source in sources}
        self._seconds, self._seed = seconds, seed
        self._turn_s = seconds * jobs / TURNS / (sum(source.share for source in sources) or 1)
        self._turns = dict.fromkeys(self.outcomes, 0)
        self._open = {source.key: source for source in sources}
        self._running: dict[str, Source] = {}

    def next(self, now: float) -> Turn | None:
        """The next turn; None when nothing is left to do or no time is left to do it in."""
        left = self._seconds - now
        waiting = [source for key, source in self._open.items() if key not in self._running]
        if not waiting or (left < TURN_S_MIN and all(self._turns.values())):
            return None
        source = min(waiting, key=self._rank)
        key, turn = source.key, self._turns[source.key]
        self._turns[key] += 1
        self._running[key] = source
        seconds = max(TURN_S_MIN, min(self._turn_s * source.share, left))
        wanted = source.torture - self.outcomes[key].rounds
        return Turn(source, wanted, seconds, self._seed + turn * SEEDS_PER_TURN)

    def _rank(self, source: Source) -> tuple[int, bool]:
        alike = any(other.waits == source.waits for other in self._running.values())
        return self._turns[source.key], alike

    def done(self, outcome: Outcome) -> None:
        """A turn is over. A source that failed, that did nothing, or that has done all, has no other."""
        key = outcome.source.key
        whole = self.outcomes[key] = self.outcomes[key].plus(outcome)
        del self._running[key]
        if outcome.failures or not outcome.rounds or whole.rounds >= outcome.source.torture:
            del self._open[key]

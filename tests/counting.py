"""How often a test repeats itself: a little in CI, much in `make torture`, and what ran is written down.

    with counted("G1", 20) as rounds:
        for number in rounds: ...

runs 20 rounds, or as many as VIBEMQ_TORTURE_G1 says. The other variables, all set by `python -m tests.torture`:

    VIBEMQ_TORTURE_SEED       where seeds begin (0), so that another run sees other chances
    VIBEMQ_TORTURE_SECONDS    after this time no new round begins; what ran by then is what counts
    VIBEMQ_TORTURE_REPORT     a file that gets one JSON line for each count: guarantee, test, rounds, failures; and one
                              for each figure that a test measured: guarantee, test, what, figure
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Rounds:
    """The numbers of the rounds, and how many of them are done. Iterating it again begins behind the last round."""

    def __init__(self, first: int, wanted: int, seconds: float | None) -> None:
        """`wanted` rounds from number `first` on, none begun after `seconds`."""
        self.first, self.wanted, self.done = first, wanted, 0
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> bool:
        """Whether another round is to be done."""
        return self.done < self.wanted and (self._deadline is None or time.monotonic() < self._deadline)

    def __iter__(self) -> Iterator[int]:
        return self.take(self.wanted)

    def take(self, most: int) -> Iterator[int]:
        """The next rounds, up to `most`. A round is done when the next one is asked for."""
        for _ in range(most):
            if not self.left:
                return
            yield self.first + self.done
            self.done += 1

    def add(self, count: int) -> None:
        """So many more were done in one go."""
        self.done += count


def wanted(guarantee: str, ci: int, of: int) -> int:
    """How many rounds of a guarantee's test are wanted; `ci` unless the environment says so."""
    total = os.environ.get(f"VIBEMQ_TORTURE_{guarantee}")
    return ci if total is None else -(-int(total) * ci // max(of, 1))


def first_seed() -> int:
    """The seed of the first round."""
    return int(os.environ.get("VIBEMQ_TORTURE_SEED", "0"))


@contextmanager
def counted(guarantee: str, ci: int, of: int = 0) -> Iterator[Rounds]:
    """Rounds of a guarantee's test; how many were done is reported at the end, and whether one failed.

    Of several tests of a guarantee each does its part: `ci` rounds of `of` in all.
    """
    seconds = os.environ.get("VIBEMQ_TORTURE_SECONDS")
    rounds = Rounds(first_seed(), wanted(guarantee, ci, of or ci), float(seconds) if seconds else None)
    failures = 1
    try:
        yield rounds
        failures = 0
    except KeyboardInterrupt:  # whoever is in a hurry has found no fault
        failures = 0
        raise
    finally:
        _report({"guarantee": guarantee, "rounds": rounds.done, "failures": failures})


def measured(guarantee: str, what: str, figure: str) -> None:
    """A figure for the report of a long run, beside the counts; `pytest -s` shows it, too. Figures are not judged."""
    sys.stdout.write(f"\n{guarantee} {what}: {figure}\n")
    _report({"guarantee": guarantee, "what": what, "figure": figure})


def full_size(guarantee: str) -> bool:
    """Whether this is a long run, in which a test takes the sizes that its promise names."""
    return f"VIBEMQ_TORTURE_{guarantee}" in os.environ


def _report(facts: dict[str, object]) -> None:
    report = os.environ.get("VIBEMQ_TORTURE_REPORT")
    if report:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        with Path(report).open("a") as file:
            file.write(json.dumps({"test": test, **facts}) + "\n")

"""What a long run says in the end: a table for the terminal, a page for the documentation."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tests.planted.table import ELSEWHERE, TABLE
from tests.torture.promises import PROMISES, Promise, Source


class Figure(NamedTuple):
    """Something that a test measured for a promise."""

    promise: str
    what: str
    figure: str


class Outcome(NamedTuple):
    """What came of a source."""

    source: Source
    rounds: int = 0
    failures: int = 0
    seconds: float = 0.0
    figures: Sequence[Figure] = ()

    def plus(self, other: "Outcome") -> "Outcome":
        """Together with what came of another turn of this source."""
        return Outcome(
            self.source,
            self.rounds + other.rounds,
            self.failures + other.failures,
            self.seconds + other.seconds,
            [*self.figures, *other.figures],
        )


class Run(NamedTuple):
    """A long run. `outcomes` are by the keys of their sources, `began` is seconds since 1970."""

    promises: list[Promise]
    outcomes: dict[str, Outcome]
    began: float
    seconds: float
    minutes: float
    jobs: int
    seed: int
    commit: str
    interrupted: bool = False


def together(runs: Sequence[Run]) -> tuple[list[Promise], dict[str, Outcome]]:
    """The promises of some runs, and what came of their sources in all of them."""
    outcomes: dict[str, Outcome] = {}
    for run in runs:
        for key, outcome in run.outcomes.items():
            outcomes[key] = outcomes.get(key, Outcome(outcome.source)).plus(outcome)
    return [promise for promise in PROMISES if any(promise in run.promises for run in runs)], outcomes


HEAD = ("#", "Promise", "Counted", "Wanted", "Ran", "Failures")


def rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """The lines of the table: one for each source of each promise."""
    promises, outcomes = together(runs)
    for promise in promises:
        name, text = promise.name, promise.text
        if not promise.sources:
            yield name, text, promise.why_not, "", "", ""
        for source in promise.sources:
            outcome = outcomes.get(source.key, Outcome(source))
            yield name, text, source.unit, f"{source.torture:,}", f"{outcome.rounds:,}", str(outcome.failures)
            name = text = ""


def as_table(run: Run) -> str:
    """For a terminal."""
    lines = [HEAD, *rows([run])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """What was measured, by promise."""
    promises, outcomes = together(runs)
    measured = [figure for outcome in outcomes.values() for figure in outcome.figures]
    for promise in promises:
        yield from (figure for figure in measured if figure.promise == promise.name)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def _facts(run: Run) -> str:
    """When and how a run was made."""
    began = datetime.fromtimestamp(run.began, UTC).strftime("%Y-%m-%d %H:%M UTC")
    end = ", interrupted" if run.interrupted else ""
    failures = sum(outcome.failures for outcome in run.outcomes.values())
    names = ", ".join(promise.name for promise in run.promises)
    of = "" if len(run.promises) == len(PROMISES) else f"\n    promises    {names}"
    return f"""\
    begun       {began}
    commit      {run.commit}
    took        {run.seconds / 60:.0f} minutes of a budget of {run.minutes:g}, {run.jobs} tests at a time{end}
    seed        {run.seed}{of}
    failures    {failures}
"""


def as_page(*runs: Run) -> str:
    """docs/reliability.md: what came of these runs together."""
    how_many = "one run" if len(runs) == 1 else f"these {len(runs)} runs"
    bugs = [
        (name.replace("_", " "), f"`{test}`")
        for name, test in [*((planted.name, _path_of(planted.caught_by)) for planted in TABLE), *ELSEWHERE]
    ]
    return f"""# Reliability: what was run, and what came of it

Written by `make torture`, not by hand: the numbers below are those of {how_many} and of nothing else.

{chr(10).join(map(_facts, runs))}
On Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}.

{_markdown(HEAD, rows(runs))}

Tests that stand for several promises ran once. Where fewer ran than were wanted, the budget was used up; run it longer
with `make torture ARGS="--minutes 600"`. A failure prints how to run its seed again.

## What was measured

Latencies are the median, the 99th percentile and the highest of what another client saw. They were measured while other
tests of the run had their share of the machine, so compare them with each other.

{_markdown(("#", "What", "Figure"), figures(runs))}

## Bugs that were planted

Tests that cannot fail prove nothing. Each of these bugs is put into the product by a test, and the test beside it must
then fail; `tests/planted/` shows it on every run of the tests.

{_markdown(("Bug", "Caught by"), bugs)}
"""


def _path_of(caught_by: str) -> str:
    """The test as pytest writes it."""
    module, _, function = caught_by.partition(":")
    return f"{module.replace('.', '/')}.py::{function}"

"""`make torture`: the long counts of every promise, and a report of what ran.

    python -m tests.torture [--minutes 60] [--jobs 2] [--seed N] [--report FILE] [--kept FILE] [PROMISE ...]

The sources of the promises (tests/torture/promises.py) take turns, `--jobs` of them at a time, and each stops when its
count is reached. What the tests are told, in the environment (tests/counting.py):

    VIBEMQ_TORTURE_<KEY>      how many rounds, for each key of tests/torture/promises.py: G1, G2, G5, G6, G7_CALLS ...
    VIBEMQ_TORTURE_SEED       where seeds begin: the time of the run, unless --seed says otherwise
    VIBEMQ_TORTURE_SECONDS    after which a test begins no new round
    VIBEMQ_TORTURE_REPORT     where each test writes what it did

One run makes one report: its numbers are those of this run and of nothing else, or with --kept of all runs that the
file keeps, of which this becomes the last. Ctrl-C ends a run, which then reports
what it has done by then. Progress goes to stderr, the table to stdout. The exit code is 1 when anything failed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.torture.kept import load, save
from tests.torture.promises import PROMISES, Promise
from tests.torture.report import Run, as_page, as_table
from tests.torture.schedule import Schedule
from tests.torture.turns import ROOT, RunningTurn

Show = Callable[[float, Sequence[RunningTurn]], None]


def torture(
    promises: Sequence[Promise], minutes: float, seed: int, jobs: int, console: Console, show: Show = lambda *_: None
) -> Run:
    """Run the sources of these promises, each once, though it may stand for several."""
    sources = list(dict.fromkeys(source for promise in promises for source in promise.sources))
    schedule = Schedule(sources, minutes * 60, jobs, seed)
    began, start, version = time.time(), time.monotonic(), commit()
    running: list[RunningTurn] = []
    interrupted = False
    try:
        while running or not interrupted:
            now = time.monotonic() - start
            while len(running) < jobs and (turn := schedule.next(now)):
                running.append(RunningTurn(turn))
            if not running:
                break
            show(now, running)
            time.sleep(0.2)
            for one in [one for one in running if one.over]:
                running.remove(one)
                finish(schedule, one, console, interrupted=False)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: waiting for the tests that run")
        for one in running:
            one.interrupt()
            finish(schedule, one, console, interrupted=True)
    took = time.monotonic() - start
    return Run(list(promises), schedule.outcomes, began, took, minutes, jobs, seed, version, interrupted)


def finish(schedule: Schedule, turn: RunningTurn, console: Console, *, interrupted: bool) -> None:
    """Add what came of a turn, and say so."""
    outcome, said = turn.result(interrupted=interrupted)
    schedule.done(outcome)
    source, whole = outcome.source, schedule.outcomes[outcome.source.key]
    console.print(
        f"{source.key:9} {whole.rounds:>10,} of {source.torture:>10,} {source.unit}, {whole.seconds:,.0f} s"
        + (f", {whole.failures} FAILED" if whole.failures else ""),
        highlight=False,
    )
    if said:
        console.print(said[-8000:], markup=False, highlight=False)


def commit() -> str:
    """The commit that is tortured, marked when the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def with_progress(promises: Sequence[Promise], minutes: float, seed: int, jobs: int) -> Run:
    """Run, with a bar for the time and a line for each turn on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=minutes * 60)

        def show(now: float, running: Sequence[RunningTurn]) -> None:
            progress.update(bar, completed=now, description=", ".join(one.turn.source.unit for one in running))

        return torture(promises, minutes, seed, jobs, console, show)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Run the long counts of every promise."
    )
    parser.add_argument("--minutes", type=float, default=60, help="for everything together (60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at a time (one a processor)")
    parser.add_argument("--seed", type=int, help="where seeds begin")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "reliability.md", help="docs/reliability.md")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="add this run to FILE, and report all that it keeps")
    parser.add_argument("promise", nargs="*", help="G1 ... G18; all of them unless named")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.promise) - {promise.name for promise in PROMISES}):
        parser.error(f"there is no promise {unknown[0]}")
    wanted = [promise for promise in PROMISES if not asked.promise or promise.name in asked.promise]
    seed = int(time.time()) * 1000 if asked.seed is None else asked.seed
    run = with_progress(wanted, asked.minutes, seed, max(1, asked.jobs))
    sys.stdout.write(as_table(run))
    runs = [run]
    if asked.kept is not None:
        runs = [*load(asked.kept), run]
        save(asked.kept, runs)
    asked.report.write_text(as_page(*runs))
    return 1 if any(outcome.failures for outcome in run.outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

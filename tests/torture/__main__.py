"""`make torture`: the long counts of every promise, and a report of what ran.

    python -m tests.torture [--minutes 60] [--seed N] [--report docs/reliability.md] [PROMISE ...]

Each promise gets its share of the minutes and stops early when its count is reached. What the tests are told, in the
environment (tests/counting.py):

    VIBEMQ_TORTURE_<KEY>      how many rounds, for each key of tests/torture/promises.py: G1, G2, G5, G6, G7_CALLS ...
    VIBEMQ_TORTURE_SEED       where seeds begin: the time of the run, unless --seed says otherwise
    VIBEMQ_TORTURE_SECONDS    after which a test begins no new round
    VIBEMQ_TORTURE_REPORT     where each test writes what it did

One run makes one report: its numbers are those of this run and of nothing else. Progress goes to stderr, the table to
stdout. The exit code is 1 when anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.torture.promises import PROMISES, Promise, Source
from tests.torture.report import Outcome, Run, as_page, as_table

ROOT = Path(__file__).parents[2]
OVERTIME_S = 300
"""How long after its share a test may take to finish its round."""


def run_source(source: Source, seconds: float, seed: int, tests: int) -> Outcome:
    """Run the tests of one source for up to `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        environment = {
            **os.environ,
            f"VIBEMQ_TORTURE_{source.key}": str(source.torture),
            "VIBEMQ_TORTURE_SEED": str(seed),
            "VIBEMQ_TORTURE_SECONDS": str(seconds / tests),
            "VIBEMQ_TORTURE_REPORT": str(report),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*command, *source.tests],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds + OVERTIME_S,
            )
            code, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            code, output = -1, f"not finished after {late.timeout:.0f} s"
        lines = [json.loads(line) for line in report.read_text().splitlines()]
    counted = [line for line in lines if line["guarantee"] == source.key]
    rounds, failures = sum(line["rounds"] for line in counted), sum(line["failures"] for line in counted)
    if code and not failures:
        failures = 1
    if failures:
        sys.stderr.write(output[-8000:] + "\n")
    return Outcome(source, rounds, failures, time.monotonic() - began)


def torture(promises: Sequence[Promise], minutes: float, seed: int) -> Run:
    """Run the sources of these promises, each once, though it may stand for several."""
    sources = list(dict.fromkeys(source for promise in promises for source in promise.sources))
    whole = sum(source.share for source in sources) or 1
    outcomes: dict[str, Outcome] = {}
    began = time.time()
    for number, source in enumerate(sources, 1):
        seconds = minutes * 60 * source.share / whole
        sys.stderr.write(
            f"[{number}/{len(sources)}] {source.key}: {source.torture} {source.unit}, up to {seconds:.0f} s\n"
        )
        outcome = outcomes[source.key] = run_source(source, seconds, seed, source.parts)
        sys.stderr.write(f"        {outcome.rounds} in {outcome.seconds:.0f} s, {outcome.failures} failures\n")
    return Run(list(promises), outcomes, began, minutes, seed, commit())


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


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Run the long counts of every promise."
    )
    parser.add_argument("--minutes", type=float, default=60, help="for everything together (60)")
    parser.add_argument("--seed", type=int, help="where seeds begin")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "reliability.md", help="docs/reliability.md")
    parser.add_argument("promise", nargs="*", help="G1 ... G18; all of them unless named")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.promise) - {promise.name for promise in PROMISES}):
        parser.error(f"there is no promise {unknown[0]}")
    wanted = [promise for promise in PROMISES if not asked.promise or promise.name in asked.promise]
    seed = int(time.time()) * 1000 if asked.seed is None else asked.seed
    run = torture(wanted, asked.minutes, seed)
    sys.stdout.write(as_table(run))
    asked.report.write_text(as_page(run))
    return 1 if any(outcome.failures for outcome in run.outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.fuzz`: search all targets for inputs that fail, one after the other, or run one input again.

python -m tests.fuzz --seconds 600                     all targets, 600 seconds together
python -m tests.fuzz --seconds 600 json requests       these two
python -m tests.fuzz json --run .fuzz/crashes/json-...  one input again
"""

# ruff: noqa: T201 - what it finds is for people to read

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

WORK = Path(".fuzz")
ROOT = Path(__file__).parents[2]


def search(name: str, seconds: int) -> bool:
    """One search; prints what it did, and for a failure the command that shows it again. True when nothing failed."""
    before = set((WORK / "crashes").glob(f"{name}-*"))
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(WORK), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    output = done.stdout + done.stderr
    runs = re.search(r"number_of_executed_units: (\d+)", output)
    reached = re.findall(r" cov: (\d+) ft: (\d+) corp: (\d+)", output)
    if runs is not None and reached:
        cov, features, corpus = reached[-1]
        print(f"{name:12} {int(runs[1]):>9} inputs, {cov} branches and {features} features reached, corpus {corpus}")
    failed = sorted(set((WORK / "crashes").glob(f"{name}-*")) - before)
    for path in failed:
        print(f"{name}: FAILED. See it again with: python -m tests.fuzz {name} --run {path}")
    if failed or done.returncode:
        print("\n".join(output.splitlines()[-40:]))
    return not failed and done.returncode == 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Search for inputs that fail.")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--run", type=Path, metavar="FILE", help="run this input, and search nothing")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)}")
    asked = parser.parse_args()
    names = asked.target or list(TARGETS)
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    if asked.run is not None:
        for name in names:
            TARGETS[name].run(asked.run.read_bytes())
        return 0
    WORK.mkdir(exist_ok=True)
    results = [search(name, max(1, asked.seconds // len(names))) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

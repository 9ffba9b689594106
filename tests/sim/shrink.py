"""Find the few steps of a failing history that fail by themselves.

    python -m tests.sim.shrink SEED [STEPS [TEMPER]]

Every step draws its chances from its own number, so a history goes on whatever is left out of it. Steps are left out in
rows, first long ones and then shorter and shorter, as long as what is left fails in the same way (Zeller and
Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", without its complements: chance makes most rows
dispensable). What is left is printed step by step.
"""

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from tests.sim.world import World, parse

RUNS_MAX = 2000


class Failure(NamedTuple):
    """How a history failed: the kind of error, and what it says but for numbers and examples."""

    kind: str
    text: str


def failure(seed: int, temper: str, steps: list[int], story: list[str] | None = None) -> Failure | None:
    """How these steps fail, if they do; `story` gets what happens."""
    try:
        world = World(seed, temper)
        world.story = story
        world.run(steps)
    except Exception as problem:  # noqa: BLE001 - whatever the bug leads to
        if story is not None:
            story.append(f"{type(problem).__name__}: {problem}")
        return Failure(type(problem).__name__, same(str(problem)))
    return None


def same(text: str) -> str:
    """What two messages of the same bug have in common: the kinds of faults of a verdict, or the words of a line."""
    lines = text.splitlines() or [""]
    faults = [line.partition(":")[0] for line in lines[1:]]
    return "; ".join(re.sub(r"\d+", "N", line) for line in faults[:1] or [lines[0][:60]])


def shrink(steps: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """A part of `steps`, as short as can be found in so many runs, that fails still."""
    runs, length = 0, len(steps)
    while length:
        at = before = len(steps)
        while at > 0 and runs < RUNS_MAX:
            start = max(0, at - length)
            fewer = steps[:start] + steps[at:]
            runs += 1
            if fails(fewer):
                steps = fewer
            at = start
        if length > 1 or len(steps) == before:
            length //= 2
    return steps


def shrunken(seed: int, count: int, temper: str) -> list[int]:
    """The steps that are left of a history of `count` steps; none where it does not fail."""
    steps = list(range(count))
    whole = failure(seed, temper, steps)
    if whole is None:
        return []
    return shrink(steps, lambda fewer: failure(seed, temper, fewer) == whole)


def main() -> None:
    """Shrink the seed that is named, and print what is left."""
    seed, count, temper = parse(sys.argv[1:])
    steps, story = shrunken(seed, count, temper), list[str]()
    found = failure(seed, temper, steps, story)
    print("\n".join(story))  # noqa: T201
    print(f"{len(steps)} of {count} steps are left; " + (f"they fail: {found.text}" if found else "all is well"))  # noqa: T201


if __name__ == "__main__":
    main()

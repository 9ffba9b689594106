"""The table of docs/testing.md: which features the simulated histories exercise, under which faults.

python -m tests.sim.coverage [SEEDS]       print it, counted over so many histories (1000)
"""

import sys
from collections import Counter
from collections.abc import Iterable

from tests.sim.features import FAULTS, FEATURES
from tests.sim.world import run_seed

SEEDS = 1000


def table(counts: Counter[tuple[str, str]]) -> list[str]:
    """The lines of the table, with the number of histories in which a feature met a fault."""
    lines = [f"| | {' | '.join(FAULTS)} |", f"|---|{'---:|' * len(FAULTS)}"]
    for feature in FEATURES:
        cells = [str(counts[feature, hit]) for hit in FAULTS.values()]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    return lines


def missing(counts: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of a feature and a fault that never met."""
    return [(feature, fault) for feature in FEATURES for fault, hit in FAULTS.items() if not counts[feature, hit]]


def counted(seeds: Iterable[int]) -> Counter[tuple[str, str]]:
    """In how many of these histories they met."""
    counts = Counter[tuple[str, str]]()
    for seed in seeds:
        counts.update(run_seed(seed).watch.features.cells())
    return counts


def main() -> None:
    """Print the table."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    print("\n".join(table(counted(range(seeds)))))  # noqa: T201


if __name__ == "__main__":
    main()

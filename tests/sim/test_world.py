"""Hundreds of histories, each from a seed: nothing confirmed is lost, nothing appears twice or unmarked, replays agree.

`VIBEMQ_TORTURE_G11=20000 make test ARGS="-k test_histories"` runs more of them, `VIBEMQ_TORTURE_SEED=...` others.
"""

import os
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.counting import counted
from tests.sim.coverage import missing, table
from tests.sim.features import FEATURES
from tests.sim.world import World, run_seed

SEEDS = 600
CHUNKS = 8
SHORT = 200
"""Steps of the histories that run four times."""
OFTEN = (
    "kills, power losses, stops, cuts, time-outs, replays, checkpoints, loads, seals, groups, confirmed, confirmed acks"
    ", judged, redeliveries, lines of JSON, clocks set, leases ended, delays ended, times looked up, rests"
    ", blocked, refused for want of room, died of the disk, starts that failed, room returned, checkpoints without room"
    ", expired, dropped, purged, sought past, deleted with the group, deleted with the queue, parted"
    ", sent without acks, due times reached, delayed looked up, delayed shown, cancelled"
)
RARE = "dead, with nowhere to go"
ROOT = Path(__file__).parents[2]


class Lived(NamedTuple):
    """What a history held."""

    counts: Counter[str]
    met: frozenset[tuple[str, str]]
    """Features and faults."""
    known: frozenset[str]


@lru_cache(maxsize=SEEDS)
def lived(seed: int) -> Lived:
    """The history of a seed; those of CI are looked at more than once."""
    world = run_seed(seed)
    features = world.watch.features
    return Lived(_counts(world), frozenset(features.cells()), frozenset(features.known))


def _counts(world: World) -> Counter[str]:
    history, counts = world.history, Counter(world.counts)
    assert history.owed is not None
    counts["confirmed"] = len(history.confirmed)
    counts["confirmed acks"] = len(history.acked)
    counts["redeliveries"] = sum(one.redelivered for one in history.delivered)
    counts["judged"] = len(history.owed)
    counts["lines of JSON"] = sum(client.speaks_json for client in world.clients)
    return counts + Counter(history.excused.values())


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_histories(chunk: int) -> None:
    """Every eighth seed."""
    with counted("G11", SEEDS // CHUNKS, of=SEEDS) as rounds:
        for number in rounds:
            lived(rounds.first + CHUNKS * (number - rounds.first) + chunk)


def test_histories_are_eventful() -> None:
    """The checker judges something: every kind of event that matters occurs in them, and every feature."""
    seen, known = Counter[str](), Counter[str]()
    for seed in range(SEEDS):
        seen.update(lived(seed).counts)
        known.update(lived(seed).known)
    assert [what for what in OFTEN.split(", ") if seen[what] < 20] == []
    assert [what for what in RARE.split("; ") if not seen[what]] == []
    assert [feature for feature in FEATURES if known[feature] < 20] == []


def test_every_feature_meets_every_fault() -> None:
    """And docs/testing.md has the table of it, counted over more histories than these."""
    counts = Counter[tuple[str, str]]()
    for seed in range(SEEDS):
        counts.update(lived(seed).met)
    assert missing(counts) == []
    page = (ROOT / "docs" / "testing.md").read_text().splitlines()
    rows = {line.split("|")[1]: line for line in page if line.startswith("| ")}
    for line in table(counts)[2:]:
        known = rows.get(line.split("|")[1], "")
        assert known.count("|") == line.count("|"), (
            f"docs/testing.md lacks a row of `python -m tests.sim.coverage`: {line}"
        )
        assert " 0 |" not in known


def test_a_seed_is_a_history_byte_for_byte() -> None:
    """The same in this process and in others, whatever Python hashes strings to."""
    with counted("G14", 100) as rounds:
        while rounds.left:
            same_in_other_processes([7 + 13 * seed for seed in rounds.take(100)])


def same_in_other_processes(seeds: list[int]) -> None:
    """Run these seeds twice here and once in each of two other processes."""
    here = [run_seed(seed, SHORT).digest for seed in seeds]
    assert here == [run_seed(seed, SHORT).digest for seed in seeds]
    code = f"from tests.sim.world import run_seed\nfor seed in {seeds}: print(run_seed(seed, {SHORT}).digest)"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == here

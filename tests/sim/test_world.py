"""Hundreds of histories, each from a seed: nothing confirmed is lost, nothing appears twice or unmarked, replays agree.

`VIBEMQ_TORTURE_G11=20000 make test ARGS="-k test_histories"` runs more of them, `VIBEMQ_TORTURE_SEED=...` others.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.counting import counted
from tests.sim.clients import DEAD
from tests.sim.world import run_seed

SEEDS = 320
CHUNKS = 8
SHORT = 200
"""Steps of the histories that run four times."""
OFTEN = (
    "kills, power losses, stops, cuts, time-outs, replays, checkpoints, loads, seals, groups, confirmed, confirmed acks"
    ", judged, redeliveries, dead letters, lines of JSON, clocks set, leases ended, delays ended"
    ", blocked, refused for want of room"
)
RARE = "died of the disk, starts that failed, room returned, checkpoints without room, wrecks"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_histories(chunk: int) -> None:
    """Every eighth seed."""
    with counted("G11", SEEDS // CHUNKS, of=SEEDS) as rounds:
        for number in rounds:
            run_seed(rounds.first + CHUNKS * (number - rounds.first) + chunk)


def test_histories_are_eventful() -> None:
    """The checker judges something: every kind of event that matters occurs in a few dozen seeds."""
    seen = Counter[str]()
    for seed in range(60):
        world = run_seed(seed)
        seen.update(world.counts)
        history = world.history
        seen["confirmed"] += len(history.confirmed)
        seen["confirmed acks"] += len(history.acked)
        seen["redeliveries"] += sum(one.redelivered for one in history.delivered)
        seen["dead letters"] += sum(one.queue == DEAD for one in history.delivered)
        seen["judged"] += len(history.confirmed - history.excused)
        seen["lines of JSON"] += sum(client.speaks_json for client in world.clients)
    assert [what for what in OFTEN.split(", ") if seen[what] < 20] == []
    assert [what for what in RARE.split(", ") if not seen[what]] == []


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

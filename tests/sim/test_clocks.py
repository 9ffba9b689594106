"""G10: a wall clock that jumps up to a year either way, at any moment and across downtimes, moves nothing.

Judged from outside of the broker's clock, by the monotonic one: no lease and no retry delay ends before its time or
goes on past it, no delayed message is ready before it is due, and none stays behind; no schedule publishes twice for a
time, or leaves one out that its policy wants made up for; times of events never go back (`invariants.Watch`), and
nothing is lost, or delivered again without being flagged (`tests.checker`).
"""

import pytest

from tests.counting import counted
from tests.sim.world import START_US, YEAR_US, run_seed

SEEDS = 500
CHUNKS = 2
STEPS = 300


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_clocks_that_jump(chunk: int) -> None:
    """Every second seed."""
    with counted("G10", SEEDS // CHUNKS, of=SEEDS) as rounds:
        for number in rounds:
            run_seed(rounds.first + CHUNKS * (number - rounds.first) + chunk, STEPS, "clocks")


def test_the_jumps_are_long_and_leases_end_between_them() -> None:
    """So that there is something to judge."""
    worlds = [run_seed(seed, STEPS, "clocks") for seed in range(20)]
    assert sum(world.counts["clocks set"] for world in worlds) > 150
    assert sum(world.counts["leases ended"] for world in worlds) > 100
    assert sum(world.counts["delays ended"] for world in worlds) > 20
    assert sum(world.counts["due times reached"] for world in worlds) > 50
    assert sum("schedules" in world.watch.features.known for world in worlds) > 1
    assert sum("overdue" in world.watch.features.known for world in worlds) > 1
    assert max(abs(world.wall_off_us - START_US) for world in worlds) > YEAR_US // 2

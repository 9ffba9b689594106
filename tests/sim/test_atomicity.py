"""G13: a transaction is all or nothing: wherever it is cut off, and however late or often its commit comes.

The histories are of programs that consume, transform and produce; they send commits again, and by another connection
while the first is still on its way. The checker judges from what they were told, `transactions.py` each record.
"""

from collections import Counter

import pytest

from tests.counting import counted
from tests.sim.world import World, run_seed
from vibemq.errors import OutOfSpace, WriteFailed

SEEDS = 300
CHUNKS = 2
STEPS = 400
STATES = 500
STEP_FIRST = 60
STEPS_TRIED = 100
"""In every history the machine is lost after each of so many steps, one after the other."""
STEPS_AFTER = 40
TASTE = "processing"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_transactions_are_all_or_nothing(chunk: int) -> None:
    """Every second seed."""
    with counted("G13", SEEDS // CHUNKS, of=SEEDS) as rounds:
        for number in rounds:
            run_seed(rounds.first + CHUNKS * (number - rounds.first) + chunk, STEPS, TASTE)


def test_a_crash_after_any_step_leaves_all_or_nothing() -> None:
    """Of the process or of the machine; in the middle of a write, before it is known to be synced, or after."""
    with counted("G13_STATES", STATES) as rounds:
        for number in rounds:
            seed, step = divmod(number, STEPS_TRIED)
            crashed_after(rounds.first + seed, STEP_FIRST + step)


def crashed_after(seed: int, step: int) -> World:
    """The history of a seed, with a crash after a step of it."""
    world = World(seed, TASTE)
    try:
        for number in range(step):
            world.step(number)
        try:
            world.crash(power=step % 3 > 0)
        except (WriteFailed, OutOfSpace) as fault:  # the write that it was to be lost in met one: it ends by that
            world.die(fault)
        world.run(range(step, step + STEPS_AFTER))
    except Exception as problem:
        problem.add_note(f"crashed_after({seed}, {step})")
        raise
    return world


def test_there_is_something_to_tear_apart() -> None:
    """Transactions of all kinds, and faults between them."""
    seen = Counter[str]()
    for seed in range(40):
        seen.update(run_seed(seed, STEPS, TASTE).watch.features.known)
    kinds = ("transactions", "transaction conflicts", "commits too late", "repeated commits")
    assert [kind for kind in (*kinds, "consume, transform, produce") if seen[kind] < 15] == []

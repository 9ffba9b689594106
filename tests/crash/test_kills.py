"""G1, G3, G4, G18: a broker that is killed at random moments under load, and what its clients saw of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.checker import Verdict
from tests.counting import counted
from tests.crash.laboratory import laboratory

KILLS_EACH = 10
"""After so many kills the queue is drained and judged, and the next laboratory begins with other chances."""


def test_nothing_confirmed_is_lost_when_the_broker_is_killed(tmp_path: Path) -> None:
    with counted("G1", 20) as rounds:
        while rounds.left:
            seed = rounds.first + rounds.done
            kill_and_judge(tmp_path / str(seed), seed, rounds.take(KILLS_EACH))


def kill_and_judge(tmp_path: Path, seed: int, kills: Iterable[int], program: Sequence[str] = ()) -> Verdict:
    """Kill a broker under load, some times; in the end everything must be well."""
    with laboratory(tmp_path, seed, program=program) as lab:
        lab.start(producers=1 + seed // KILLS_EACH % 2)
        lab.await_progress()
        for _ in kills:
            lab.wait(0.05, 0.3)
            lab.kill_broker()
            if lab.random.random() < 0.2:
                lab.replace("consume", "consumer0")
        lab.await_progress()
        verdict = lab.finish()
        assert verdict.faults() == [], str(verdict)
        assert verdict.confirmed > lab.kills
        return verdict

"""G1, G3, G4, G18: a broker that is killed at random moments under load, and what its clients saw of it."""

from pathlib import Path

from tests.counting import counted
from tests.crash.laboratory import laboratory

KILLS_EACH = 10
"""After so many kills the queue is drained and judged, and the next laboratory begins with other chances."""


def test_nothing_confirmed_is_lost_when_the_broker_is_killed(tmp_path: Path) -> None:
    with counted("G1", 20) as kills:
        while kills.left:
            with laboratory(tmp_path / str(kills.done), kills.first + kills.done) as lab:
                lab.start(producers=1 + kills.done // KILLS_EACH % 2)
                lab.await_progress()
                for _ in kills.take(KILLS_EACH):
                    lab.wait(0.05, 0.3)
                    lab.kill_broker()
                    if lab.random.random() < 0.2:
                        lab.replace("consume", "consumer0")
                lab.await_progress()
                verdict = lab.finish()
                assert verdict.faults() == [], str(verdict)
                assert verdict.confirmed > 100

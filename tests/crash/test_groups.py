"""G1, G3, G4 for each group of a queue that fans out, with a broker that is killed at random moments under load."""

from pathlib import Path

from tests.counting import counted
from tests.crash.laboratory import laboratory

KILLS_EACH = 10
CONSUMERS = ("consume", "pull", "pull", "consume")
"""Of the groups in turn: each has one that consumes and one that pulls."""


def test_every_group_gets_every_confirmed_message_when_the_broker_is_killed(tmp_path: Path) -> None:
    with counted("GROUPS", 10) as rounds:
        while rounds.left:
            seed = rounds.first + rounds.done
            with laboratory(tmp_path / str(seed), seed, groups=("a", "b")) as lab:
                lab.start(consumers=CONSUMERS)
                lab.await_progress()
                for _ in rounds.take(KILLS_EACH):
                    lab.wait(0.05, 0.3)
                    lab.kill_broker()
                    if lab.random.random() < 0.2:
                        lab.replace("consume", "consumer0")
                lab.await_progress()
                verdict = lab.finish()
                assert verdict.faults() == [], str(verdict)
                assert verdict.confirmed > lab.kills

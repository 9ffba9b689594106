"""Processes that stand still: leases end under a consumer that does not know, and brokers wake up much later."""

from pathlib import Path

from tests.counting import counted
from tests.crash.laboratory import laboratory

LEASE_S = 0.4


def test_paused_consumers_lose_their_leases_and_nobody_a_message(tmp_path: Path) -> None:
    with counted("PAUSES", 1) as rounds:
        for seed in rounds:
            with laboratory(tmp_path / str(seed), seed, lease_s=LEASE_S) as lab:
                lab.start(consumers=["consume", "consume", "pull"])
                lab.await_progress()
                for _ in range(4):
                    lab.pause(lab.random.choice(["consumer0", "consumer1", "consumer2"]), LEASE_S * 1.5)
                    lab.wait(0.01, 0.1)
                lab.pause("broker", LEASE_S * 1.5)
                lab.await_progress()
                lab.kill_broker()
                lab.await_progress()
                verdict = lab.finish()
                assert verdict.faults() == [], str(verdict)
                assert verdict.duplicates > 0

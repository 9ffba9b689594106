"""G1, G3, G4, G18 over a bad network: connections are delayed, cut and half closed, and the broker is killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.counting import counted
from tests.crash.laboratory import PATIENCE_S, ROOT, laboratory


@contextmanager
def proxy(seed: int, port: int) -> Iterator[str]:
    """The URL of a bad way to the broker at `port`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.proxy", str(seed), str(port)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"vibemq://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()


def test_clients_lose_nothing_over_a_bad_network(tmp_path: Path) -> None:
    with counted("NETWORK", 2) as rounds:
        for seed in rounds:
            with laboratory(tmp_path / str(seed), seed) as lab:
                lab.start(producers=0, consumers=[])
                with proxy(seed, lab.broker.port) as url:
                    lab.begin("produce", "producer0", url)
                    lab.begin("consume", "consumer0", url)
                    lab.begin("pull", "consumer1", url)
                    lab.begin("pull", "consumer2")
                    lab.await_progress()
                    for _ in range(2):
                        lab.wait(0.3, 0.8)
                        lab.kill_broker()
                    lab.wait(0.3, 0.8)
                    lab.await_progress()
                    verdict = lab.finish()
                assert verdict.faults() == [], str(verdict)
                assert verdict.confirmed > lab.kills

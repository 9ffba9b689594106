"""G13: each message is transformed exactly once, whoever of broker and client is killed, at whatever step of it."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import pytest

import vibemq
from tests.counting import counted
from tests.crash import transform
from tests.crash.laboratory import PATIENCE_S, ROOT, SETTINGS
from tests.crash.transform import GO, SOURCE, STEPS, TARGET
from tests.running import RunningBroker

BROKER, CLIENT, BOTH = VICTIMS = ("broker", "client", "both")
CASES: Final = [(victim, step) for step in (*STEPS, "") for victim in VICTIMS]
"""Without a step they die at a moment that nobody has chosen."""
INPUTS_EACH: Final = 40


class Mill:
    """A broker, a program that transforms what is in its queue, and what was put in."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Begin."""
        self.folder, self.random = folder, Random(seed)
        folder.mkdir(exist_ok=True)
        config = folder / "vibemq.toml"
        config.write_text(SETTINGS)
        self.broker = RunningBroker(folder / "data", ["--config", str(config)])
        self.broker.start()
        self.put = 0
        with self.client() as client:
            client.declare(SOURCE, max_attempts=0, lease=30)
            client.declare(TARGET)
        self.program = self._begin()

    @contextmanager
    def client(self) -> Iterator[vibemq.SyncClient]:
        """A client of the test itself."""
        with vibemq.connect_sync(self.broker.url, timeout=PATIENCE_S, backoff_max=0.05) as client:
            yield client

    def _begin(self) -> subprocess.Popen[bytes]:
        with (self.folder / "program.stderr").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.crash.transform", self.broker.url],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def _say(self, line: str) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{line}\n".encode())
        self.program.stdin.flush()

    def _await(self, step: str) -> None:
        assert self.program.stdout is not None
        said = self.program.stdout.readline().decode().strip()
        assert said == step, f"the program ended, or said {said!r}: {(self.folder / 'program.stderr').read_text()}"

    def feed(self) -> None:
        """Put more in."""
        with self.client() as client:
            client.publish_many(SOURCE, [b"%d" % number for number in range(self.put, self.put + INPUTS_EACH)])
        self.put += INPUTS_EACH

    def kill(self, victim: str, step: str) -> None:
        """Kill one of them, or both, when the program is at a step; and let them go on."""
        if step:
            self._say(step)
        self.feed()
        if step:
            self._await(step)
        else:
            time.sleep(self.random.uniform(0, 0.02))
        if victim != BROKER:
            self.program.kill()
            self.program.wait(PATIENCE_S)
            self._close_pipes()
        if victim != CLIENT:
            self.broker.kill()
            self.broker.start()
        if victim != BROKER:
            self.program = self._begin()
        elif step:
            self._say(GO)

    def transformed(self) -> Counter[int]:
        """Wait until nothing is left to do; how often each message was transformed."""
        deadline = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while client.show_queue(SOURCE)["messages"]:
                assert self.program.poll() is None, (self.folder / "program.stderr").read_text()
                assert time.monotonic() < deadline, f"not drained: {client.show_queue(SOURCE)}"
                time.sleep(0.01)
            found = Counter[int]()
            while batch := client.pull(TARGET, max_messages=1000):
                found.update(int(message.body.split()[0]) for message in batch)
                client.ack_all(batch)
        return found

    def close(self) -> None:
        """End them."""
        self.program.kill()
        self.program.wait(PATIENCE_S)
        self._close_pipes()
        self.broker.close()

    def _close_pipes(self) -> None:
        for pipe in (self.program.stdin, self.program.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def mill(folder: Path, seed: int) -> Iterator[Mill]:
    """A mill that is left clean."""
    one = Mill(folder, seed)
    try:
        yield one
    finally:
        one.close()


def test_each_message_is_transformed_exactly_once(tmp_path: Path) -> None:
    """Round by round through all steps, and all who may die there."""
    with counted("G13_KILLS", len(CASES)) as rounds:
        while rounds.left:
            seed = rounds.first + rounds.done
            with mill(tmp_path / str(seed), seed) as one:
                check(one, rounds.take(len(CASES)))


def check(one: Mill, numbers: Iterable[int]) -> None:
    """Kill at one step after the other; then everything must be there, once."""
    for number in numbers:
        one.kill(*CASES[number % len(CASES)])
    found = one.transformed()
    missing = [number for number in range(one.put) if not found[number]]
    twice = {number: times for number, times in found.items() if times > 1}
    assert (missing, twice) == ([], {}), f"of {one.put} messages"
    assert len(found) == one.put


def test_without_a_transaction_it_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that publishes, and acks by itself after that, transforms some twice."""
    monkeypatch.setenv(transform.APART, "1")
    with mill(tmp_path, 0) as one, pytest.raises(AssertionError, match="of 80 messages"):
        check(one, [CASES.index((CLIENT, transform.PUBLISHED)), CASES.index((CLIENT, transform.ACKED))])

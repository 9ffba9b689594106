"""A real broker and the real command line as child processes, ended by their process ids."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

VIBEMQ: Final = (sys.executable, "-m", "vibemq.cli.main")
PATIENCE_SECONDS: Final = 60.0
ROOT: Final = Path(__file__).parent.parent.parent


def environment(url: str | None = None) -> dict[str, str]:
    """Where children find this very package, and the broker at `url`."""
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    found.pop("VIBEMQ_URL", None)
    return found if url is None else found | {"VIBEMQ_URL": url}


class ServedBroker:
    """`vibemq serve` on a folder; `kill` and `start` make it come back at the same address."""

    def __init__(self, data: Path, *options: str) -> None:
        """Nothing runs before `start`."""
        self.data, self._options = data, options
        self._listen = "127.0.0.1:0"
        self.errors = data.with_name(f"{data.name}.stderr")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"vibemq://{self._listen}"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it is ready."""
        command = [*VIBEMQ, "serve", "--data", str(self.data), "--listen", self._listen, "--log-json", *self._options]
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors, env=environment())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (address := self._address()) is None:
            assert self._process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.01)
        self._listen = address

    def _address(self) -> str | None:
        return next((line["address"] for line in self.log() if line["event"] == "listening"), None)

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log that are complete."""
        return [json.loads(line) for line in self.errors.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(PATIENCE_SECONDS)

    def run(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a command against this broker to its end."""
        return run(*arguments, stdin=stdin, url=self.url)

    @contextmanager
    def begin(self, *arguments: str, **pipes: Any) -> Iterator["subprocess.Popen[bytes]"]:  # noqa: ANN401 - of Popen
        """A command against this broker that goes on; what still runs in the end is killed."""
        process = subprocess.Popen([*VIBEMQ, *arguments], env=environment(self.url), **pipes)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints as JSON lines."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def served(data: Path, *options: str) -> Iterator[ServedBroker]:
    """A broker that runs for as long as the context lasts."""
    broker = ServedBroker(data, *options)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


def run(*arguments: str, stdin: bytes = b"", url: str | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end."""
    return subprocess.run(
        [*VIBEMQ, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(url),
        timeout=PATIENCE_SECONDS,
        check=False,
    )

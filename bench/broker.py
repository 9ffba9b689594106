"""A broker on a fresh folder, as a child process, and what it costs."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

VIBEMQ: Final = (sys.executable, "-m", "vibemq")
START_SECONDS: Final = 300.0


class BrokerProcess:
    """`vibemq serve`, which can be stopped and started again on the same folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs before `start`."""
        self.data = folder / "data"
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._address = "127.0.0.1:0"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"vibemq://{self._address}"

    def start(self, *, wait: bool = True) -> None:
        """Start it, and unless told otherwise wait until it listens.

        Raises:
            RuntimeError: it ended; with what it said.
        """
        command = [*VIBEMQ, "serve", "--data", str(self.data), "--listen", self._address, "--log-json"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while wait and not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self._log.read_text())
            time.sleep(0.01)

    def _listens(self) -> bool:
        for line in self._log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (event := json.loads(line))["event"] == "listening":
                self._address = event["address"]
                return True
        return False

    def stop(self) -> None:
        """End it in order: it takes a checkpoint."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def rss_bytes(self, *, mapped: bool = False) -> int:
        """Its resident memory without the pages of `mapped` files, which the system may take back at any time."""
        name = "VmRSS:" if mapped else "RssAnon:"
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise RuntimeError("this system does not tell the resident memory of a process")

    def bench(self, *options: str) -> dict[str, Any]:
        """The figures of `vibemq bench` against it."""
        command = [*VIBEMQ, "bench", "--url", self.url, "--json", *options]
        found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return found


@contextmanager
def fresh_broker(folder: Path) -> Iterator[BrokerProcess]:
    """A broker on an empty folder, for as long as the context lasts."""
    folder.mkdir()
    broker = BrokerProcess(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(folder)

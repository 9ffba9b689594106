"""A real broker in a process of its own, for tests that need one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

START_SECONDS = 30
STOP_SECONDS = 30


class RunningBroker:
    """Starts `vibemq serve` on a data folder and a free loopback port; can be killed and started again on the same."""

    def __init__(
        self, data: Path, options: Sequence[str] = (), log: Path | None = None, program: Sequence[str] = ()
    ) -> None:
        """Use `data`; give `options` to serve; its own log goes to `log`, or beside the data.

        `program` runs instead of the `vibemq` command, with the same arguments.
        """
        self.data, self.options = data, list(options)
        self.program = list(program) or [sys.executable, "-m", "vibemq.cli.main"]
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = log or data.with_name(data.name + ".log")
        self._clients: list[JsonClient] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"vibemq://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Run it until it is ready; again on the same port, if it had one."""
        with self.log.open("ab") as output:
            begin = output.tell()
            self.process = subprocess.Popen(
                [*self.program, "serve", "--log-json", *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            text = self.log.read_bytes()[begin:].decode()
            found = re.search(r'"address": "127\.0\.0\.1:(\d+)", "data"', text)
            if found:
                self.port = int(found[1])
                return self
            if self.process.poll() is not None:
                raise AssertionError(f"the broker ended with {self.process.returncode}: {text}")
            time.sleep(0.01)
        raise AssertionError(f"the broker did not start: {self.log.read_text()}")

    def _arguments(self) -> list[str]:
        return ["--data", str(self.data), "--listen", f"127.0.0.1:{self.port}", *self.options]

    def json(self, *, hello: bool = True) -> "JsonClient":
        """A client of the JSON codec, closed at the latest when the test ends."""
        self._clients.append(JsonClient(self.port, hello=hello))
        return self._clients[-1]

    def close(self) -> None:
        """Hang up, and end the process if it still runs."""
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def events(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def rss_bytes(self) -> int:
        """Its resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """The most memory that it had since `forget_peak`."""
        assert self.process is not None
        (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(peak_kib) * 1024

    def forget_peak(self) -> int:
        """Begin to look for a peak; what it has now."""
        assert self.process is not None
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.rss_bytes()


@contextmanager
def running(data: Path, *options: str, log: Path | None = None) -> Iterator[RunningBroker]:
    """A broker that runs inside the block."""
    broker = RunningBroker(data, options, log).start()
    try:
        yield broker
    finally:
        broker.close()


class JsonClient:
    """A client of the JSON codec on a blocking socket."""

    def __init__(self, port: int, *, hello: bool = True) -> None:
        """Connect, and say hello unless told not to."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # one small request may follow another
        self._stream = self.socket.makefile("rb")
        if hello:
            self.send(type="hello", request=1)
            assert self.read()["type"] == "welcome"

    def send(self, **message: object) -> None:
        """Send an object."""
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def read(self) -> dict[str, Any]:
        """The next object; an empty one when the broker closed the connection."""
        line = self._stream.readline()
        found: dict[str, Any] = json.loads(line) if line else {}
        return found

    def ask(self, **message: object) -> dict[str, Any]:
        """Send a request and read until its answer."""
        self.send(request=99, **message)
        while True:
            answer = self.read()
            if not answer or answer.get("request") == 99:
                return answer

    def read_until(self, kind: str) -> dict[str, Any]:
        """The next message of a type."""
        while True:
            answer = self.read()
            if not answer or answer["type"] == kind:
                return answer

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self.socket.close()

"""Run the example: python -m examples.system_log [--lines N] [--kills N]. See README.md."""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from examples.system_log.check import Consumed, faults, read_records
from examples.system_log.source import numbered, system_log

QUEUE: Final = "system-log"
CONSUMERS: Final = 3
PATIENCE_SECONDS: Final = 120.0
VIBEMQ: Final = (sys.executable, "-m", "vibemq")


class Broker:
    """`vibemq serve` as a child process that is killed, and comes back at the same address."""

    def __init__(self, folder: Path) -> None:
        """Serve `folder`/data; nothing runs before `start`."""
        self._log = folder / "broker.log"
        self.data = folder / "data"
        self.address = "127.0.0.1:0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"vibemq://{self.address}"

    def start(self) -> None:
        """Start it, and return when it listens."""
        command = [*VIBEMQ, "serve", "--data", str(self.data), "--listen", self.address, "--log-json"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log)
        wait_until(self._listens, "the broker to listen")

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(self._log.read_text())
        for line in self._log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (event := json.loads(line))["event"] == "listening":
                self.address = event["address"]
                return True
        return False

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def run(self, *arguments: str) -> dict[str, Any]:
        """What a command prints as one JSON line.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run([*VIBEMQ, *arguments, "--json"], capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"vibemq {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


class Publisher:
    """`vibemq publish --stdin-lines`, and the receipts that it prints."""

    def __init__(self, url: str) -> None:
        """Start it."""
        command = [*VIBEMQ, "publish", QUEUE, "--url", url, "--stdin-lines", "--json"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.confirmed: list[str] = []
        """The ids of the lines that are durable, in the order in which they were sent."""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.confirmed.append(json.loads(line)["id"])

    def send(self, lines: Sequence[bytes]) -> None:
        """Write lines to its stdin."""
        pipe = self._pipe()
        pipe.write(b"".join(line + b"\n" for line in lines))
        pipe.flush()

    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def finish(self) -> int:
        """End its input; its exit code."""
        self._pipe().close()
        self._reader.join(PATIENCE_SECONDS)
        return self._process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds; looks again and again.

    Raises:
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for {what}")
        time.sleep(0.02)


def publish_through_kills(broker: Broker, lines: Sequence[bytes], kills: int, stack: ExitStack) -> list[str]:
    """Publish all lines, and kill the broker while they are on their way; the ids of those that were confirmed."""
    publisher = Publisher(broker.url)
    stack.callback(publisher.kill)
    share = -(-len(lines) // (kills + 1))
    for number in range(kills + 1):
        part = lines[number * share : (number + 1) * share]
        publisher.send(part)
        if number < kills:
            half = number * share + len(part) // 2
            wait_until(lambda: len(publisher.confirmed) >= half, "confirmed lines")  # noqa: B023 - called at once
            broker.kill()
            print(f"killed the broker with {len(publisher.confirmed)} lines confirmed")
            broker.start()
    code = publisher.finish()
    print(f"vibemq publish ended with {code}; {len(publisher.confirmed)} lines confirmed")
    return publisher.confirmed


def start_consumers(url: str, folder: Path, stack: ExitStack) -> tuple[list["subprocess.Popen[bytes]"], list[Path]]:
    """Start the competing consumers; each writes to a file of its own."""
    paths = [folder / f"consumer-{number}" for number in range(CONSUMERS)]
    consumers = []
    for path in paths:
        command = [sys.executable, "-m", "examples.system_log.consumer", url, QUEUE, str(path)]
        consumers.append(subprocess.Popen(command))
        stack.callback(consumers[-1].wait)
        stack.callback(consumers[-1].kill)
    return consumers, paths


def replay_faults(broker: Broker) -> list[str]:
    """Whether a replay of the log from zero gives the state that the running broker has."""
    live = broker.run("replay", "--url", broker.url)
    replayed = broker.run("replay", "--data", str(broker.data), "--at", str(live["offset"]))
    print(f"replayed {live['offset']} records from zero: {len(live['digests'])} digests compared")
    return [
        f"the digest of {part} is {digest} live and {replayed['digests'].get(part)} replayed"
        for part, digest in live["digests"].items()
        if replayed["digests"].get(part) != digest
    ]


def run(count: int, kills: int, folder: Path) -> list[str]:
    """The whole example; what went wrong."""
    name, log = system_log()
    lines = list(numbered(log, count))
    print(f"{name}: {len(log)} lines, sent until there are {count}; {kills} kills, {CONSUMERS} consumers")
    broker = Broker(folder)
    with ExitStack() as stack:
        stack.callback(broker.kill)
        broker.start()
        consumers, paths = start_consumers(broker.url, folder, stack)
        confirmed = publish_through_kills(broker, lines, kills, stack)
        wait_until(lambda: _is_empty(broker), "the queue to be empty")
        for consumer in consumers:
            consumer.terminate()
            consumer.wait(PATIENCE_SECONDS)
        consumed: list[Consumed] = [one for path in paths for one in read_records(path)]
        shares = ", ".join(str(len(read_records(path))) for path in paths)
        print(f"consumed {len(consumed)} messages ({shares}), {len(consumed) - len(lines)} of them again")
        found = faults(lines, confirmed, consumed) + replay_faults(broker)
        broker.run("verify", "--data", str(broker.data))
    return found


def _is_empty(broker: Broker) -> object:
    return broker.run("queue", "show", QUEUE, "--url", broker.url)["messages"] == 0


def main() -> None:
    """Parse the options, run, and report."""
    parser = argparse.ArgumentParser(prog="python -m examples.system_log", description=__doc__)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--data", type=Path, help="an empty folder to work in; default: one that is removed in the end")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibemq-") as temporary:
        found = run(given.lines, given.kills, given.data or Path(temporary))
    for fault in found[:20]:
        print(f"FAULT: {fault}")
    print(f"{len(found)} faults" if found else "all is well: nothing lost, nothing unexpected, every repeat flagged")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

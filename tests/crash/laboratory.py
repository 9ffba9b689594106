"""A real broker, real clients in processes of their own, and chance, seeded, that does things to them."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import vibemq
from tests.checker import Copy, History, Verdict, check
from tests.crash.journal import read
from tests.running import RunningBroker

ROOT: Final = Path(__file__).parent.parent.parent
PATIENCE_S: Final = 60.0
QUEUE: Final = "work"
SETTINGS: Final = """
segment_bytes = 65536
reserve_bytes = 65536
checkpoint_interval_ms = 50
"""
"""Everything small, so that segments roll, checkpoints are taken and restarts are fast."""
LEASE_S: Final = 30.0


class Laboratory:
    """One experiment: a broker, clients, and in the end a verdict."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        lease_s: float = LEASE_S,
        groups: Sequence[str] = (),
        program: Sequence[str] = (),
    ) -> None:
        """Work in `folder`. With `groups` the queue fans out. `program` is run instead of the `vibemq` command."""
        self.folder, self.seed, self.random = folder, seed, Random(seed)
        folder.mkdir(exist_ok=True)
        config = folder / "vibemq.toml"
        config.write_text(SETTINGS)
        self.broker = RunningBroker(folder / "data", ["--config", str(config)], program=program)
        self.kills = 0
        self._clients: dict[str, subprocess.Popen[bytes]] = {}
        self._lease_s, self._groups = lease_s, groups

    def start(self, producers: int = 1, consumers: Sequence[str] = ("consume", "pull")) -> None:
        """Start the broker and clients of it. They are not yet at work: see `await_progress`."""
        self.broker.start()
        with self.client() as client:
            mode = "fan-out" if self._groups else "round-robin"
            client.declare(QUEUE, mode=mode, max_attempts=0, lease=self._lease_s)
        for number in range(producers):
            self.begin("produce", f"producer{number}")
        for number, kind in enumerate(consumers):
            self.begin(kind, f"consumer{number}")

    @contextmanager
    def client(self) -> Iterator[vibemq.SyncClient]:
        """A client of the laboratory itself."""
        with vibemq.connect_sync(self.broker.url, timeout=PATIENCE_S, backoff_max=0.05) as client:
            yield client

    def begin(self, kind: str, name: str, url: str | None = None) -> None:
        """Start a client process; at `url`, where that is not the broker's own."""
        command = [sys.executable, "-m", "tests.crash.clients", kind, name, str(self.seed)]
        late = ["late"] if url else []
        with (self.folder / f"{name}.stderr").open("ab") as errors:
            self._clients[name] = subprocess.Popen(
                [*command, str(self.journal(name)), url or self.broker.url, self._queue(name), *late],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )

    def _queue(self, name: str) -> str:
        """What a client is told of the queue; consumers are of the groups in turn."""
        number = name.removeprefix("consumer")
        is_of_group = self._groups and number != name
        return f"{QUEUE}/{self._groups[int(number) % len(self._groups)]}" if is_of_group else QUEUE

    def journal(self, name: str) -> Path:
        """Where a client writes what it knows."""
        return self.folder / f"{name}.journal"

    # --- what happens to them

    def wait(self, least_s: float, most_s: float) -> None:
        """Let a random time pass."""
        time.sleep(self.random.uniform(least_s, most_s))

    def kill_broker(self) -> None:
        """kill -9, and start it again."""
        self.broker.kill()
        self.kills += 1
        self.broker.start()

    def pause(self, name: str, seconds: float) -> None:
        """Stop a client, or the broker, from running for a while."""
        process = self.broker.process if name == "broker" else self._clients[name]
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def replace(self, kind: str, name: str) -> None:
        """kill -9 a consumer, and start another that goes on in its journal."""
        self._clients[name].kill()
        self._clients[name].wait(PATIENCE_S)
        self.begin(kind, name)

    def await_progress(self) -> None:
        """Wait until each client has something new in its journal."""
        sizes = {name: self._size(name) for name in self._clients}
        deadline = time.monotonic() + PATIENCE_S
        while stuck := [name for name, size in sizes.items() if self._size(name) <= size]:
            self._all_alive()
            assert time.monotonic() < deadline, f"{', '.join(stuck)} got no further, seed {self.seed}\n{self._log()}"
            time.sleep(0.005)

    def _size(self, name: str) -> int:
        path = self.journal(name)
        return path.stat().st_size if path.exists() else 0

    def _all_alive(self) -> None:
        ended = {name: process.returncode for name, process in self._clients.items() if process.poll() is not None}
        said = [(self.folder / f"{name}.stderr").read_text() for name in ended]
        assert not ended, f"clients ended: {ended}, seed {self.seed}\n{said}\n{self._log()}"

    def _log(self) -> str:
        return self.broker.log.read_text()[-2000:]

    # --- the end

    def finish(self) -> Verdict:
        """End the producers, let the consumers empty the queue, end them, and judge."""
        self._end("producer")
        deadline = time.monotonic() + PATIENCE_S
        with self.client() as client:
            while client.show_queue(QUEUE)["messages"]:
                self._all_alive()
                assert time.monotonic() < deadline, f"not drained, seed {self.seed}: {client.show_queue(QUEUE)}"
                time.sleep(0.01)
        self._end("consumer")
        return check(self.history())

    def history(self) -> History:
        """What all journals say; each group must have had everything."""
        history = read(sorted(self.folder.glob("*.journal")))
        if self._groups:
            history.owed = {Copy(name, group) for name in history.confirmed for group in self._groups}
        return history

    def _end(self, prefix: str) -> None:
        ending = {name: process for name, process in self._clients.items() if name.startswith(prefix)}
        for process in ending.values():
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(PATIENCE_S) for name, process in ending.items()}
        for name in ending:
            del self._clients[name]
        said = {name: text for name in codes if (text := (self.folder / f"{name}.stderr").read_text())}
        assert not any(codes.values()), f"clients failed: {codes}, seed {self.seed}\n{said}\n{self._log()}"
        assert not said, f"clients complained: {said}"

    def close(self) -> None:
        """End what still runs."""
        for process in self._clients.values():
            process.kill()
            process.wait(PATIENCE_S)
        self.broker.close()


@contextmanager
def laboratory(
    folder: Path,
    seed: int,
    *,
    lease_s: float = LEASE_S,
    groups: Sequence[str] = (),
    program: Sequence[str] = (),
) -> Iterator[Laboratory]:
    """A laboratory that is left clean, with the seed in whatever goes wrong."""
    lab = Laboratory(folder, seed, lease_s=lease_s, groups=groups, program=program)
    try:
        yield lab
    except AssertionError as problem:
        problem.add_note(
            f"laboratory with seed {seed}, {lab.kills} kills; again: VIBEMQ_TORTURE_SEED={seed} pytest ..."
        )
        raise
    finally:
        lab.close()

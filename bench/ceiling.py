"""What this machine and Python allow: a broker with nothing in it but the path of a batch.

    producer --batch--> broker: check lengths, checksum, writev + fdatasync --confirm--> producer
                                                                           --batch---> consumer --credit--> broker

No queues, no state, no acks in the log, no index, no second consumer: what VibeMQ does besides is the price of being a
broker. Each part is a process. Prints one JSON line:

    python -m bench.ceiling --messages 1000000 --size 256 --batch 1000
"""

import argparse
import asyncio
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple, cast

import uvloop
import xxhash

FRAME: Final = struct.Struct("<IBI")  # length of what follows, kind, number
BATCH: Final = 1
CONFIRM: Final = 2
CREDIT: Final = 3
BUFFER_BYTES: Final = 8 << 20
VECTORS_MAX: Final = 1000
CREDIT_MESSAGES: Final = 20_000


class Run(NamedTuple):
    """What is to be moved."""

    messages: int
    size: int
    batch: int
    window: int
    """Batches sent and not yet confirmed."""


class Wire(asyncio.BufferedProtocol):
    """Frames on a connection, cut from one buffer."""

    def __init__(self, on_frame: Callable[["Wire", int, int, memoryview], None]) -> None:
        """Give each frame's kind, number and content to `on_frame`."""
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._on_frame = on_frame
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Cut what is complete."""
        filled, at = self._filled + nbytes, 0
        while filled - at >= FRAME.size:
            length, kind, number = FRAME.unpack_from(self._buffer, at)
            end = at + FRAME.size + length
            if end > filled:
                break
            self._on_frame(self, kind, number, self._buffer[at + FRAME.size : end])
            at = end
        self._filled = filled - at
        if at and self._filled:
            self._buffer[: self._filled] = bytes(self._buffer[at:filled])

    def send(self, kind: int, number: int, *parts: bytes) -> None:
        """Send a frame."""
        assert self._transport is not None
        self._transport.writelines([FRAME.pack(sum(map(len, parts)), kind, number), *parts])


class BarePath:
    """The broker: one group is synced while the next one forms."""

    def __init__(self, descriptor: int) -> None:
        """Append to an open file."""
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._forming: list[tuple[Wire, int, bytes, bytes]] = []
        self._stored: deque[tuple[int, bytes]] = deque()
        self._syncing = False
        self._consumer: Wire | None = None
        self._credit = 0

    def on_frame(self, wire: Wire, kind: int, number: int, content: memoryview) -> None:
        """A batch, or credit."""
        if kind == BATCH:
            batch = bytes(content)
            check(batch, number)
            header = struct.pack("<QQ", len(batch), xxhash.xxh3_64_intdigest(batch))
            self._forming.append((wire, number, header, batch))
            if not self._syncing:
                self._syncing = True
                self._loop.call_soon(self._sync)
        else:
            self._consumer, self._credit = wire, self._credit + number
            self._deliver()

    def _sync(self) -> None:
        group, self._forming = self._forming, []
        written = self._loop.run_in_executor(None, self._write, [part for entry in group for part in entry[2:]])
        written.add_done_callback(lambda done: self._synced(group, done))

    def _write(self, parts: list[bytes]) -> None:
        for at in range(0, len(parts), VECTORS_MAX):
            some = parts[at : at + VECTORS_MAX]
            if os.writev(self._descriptor, some) != sum(map(len, some)):
                raise OSError("a short write")
        os.fdatasync(self._descriptor)

    def _synced(self, group: list[tuple[Wire, int, bytes, bytes]], done: "asyncio.Future[None]") -> None:
        done.result()
        for wire, number, _, batch in group:
            wire.send(CONFIRM, number)
            self._stored.append((number, batch))
        self._deliver()
        self._syncing = bool(self._forming)
        if self._syncing:
            self._loop.call_soon(self._sync)

    def _deliver(self) -> None:
        while self._consumer is not None and self._stored and self._credit >= self._stored[0][0]:
            count, batch = self._stored.popleft()
            self._credit -= count
            self._consumer.send(BATCH, count, batch)


def check(batch: bytes, count: int) -> memoryview:
    """The lengths of the messages in a batch of `count`.

    Raises:
        ValueError: they do not add up.
    """
    lengths = memoryview(batch)[: 4 * count].cast("I")
    if sum(lengths) != len(batch) - 4 * count:
        raise ValueError("the lengths do not add up")
    return lengths


async def serve(path: Path) -> None:
    """Be the broker, until killed; print the port."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    bare = BarePath(descriptor)
    server = await asyncio.get_running_loop().create_server(lambda: Wire(bare.on_frame), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def produce(run: Run, port: int) -> float:
    """Send all batches, each from single messages; confirmed messages a second."""
    room = asyncio.Semaphore(run.window)
    _, wire = await asyncio.get_running_loop().create_connection(
        lambda: Wire(lambda *_: room.release()), "127.0.0.1", port
    )
    body = os.urandom(run.size)
    began = time.perf_counter()
    for _ in range(run.messages // run.batch):
        await room.acquire()
        bodies = [body for _ in range(run.batch)]
        wire.send(BATCH, run.batch, array("I", map(len, bodies)).tobytes(), b"".join(bodies))
    for _ in range(run.window):
        await room.acquire()
    return run.messages / (time.perf_counter() - began)


async def consume(run: Run, port: int) -> float:
    """Take all messages one by one; messages a second from the first to the last."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    seen, began = 0, 0.0

    def on_frame(wire: Wire, _: int, count: int, content: memoryview) -> None:
        nonlocal seen, began
        began = began or time.perf_counter()
        batch = bytes(content)
        ends = accumulate(check(batch, count), initial=4 * count)
        bodies = [batch[start:end] for start, end in pairwise(ends)]
        seen += len(bodies)
        wire.send(CREDIT, count)
        if seen >= run.messages and not done.done():
            done.set_result(None)

    _, wire = await loop.create_connection(lambda: Wire(on_frame), "127.0.0.1", port)
    wire.send(CREDIT, max(CREDIT_MESSAGES, 4 * run.batch))
    print("ready", flush=True)
    await done
    return run.messages / (time.perf_counter() - began)


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Run all three processes on a file in `folder`."""

    def start(role: str, port: int = 0) -> "subprocess.Popen[str]":
        numbers = [str(one) for one in (*run, port)]
        command = [sys.executable, "-m", "bench.ceiling", "--data", str(folder), "--role", role, *numbers]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("serve") as broker:
        try:
            port = int(line_of(broker))
            with start("consume", port) as consumer:
                line_of(consumer)
                with start("produce", port) as producer:
                    confirmed, consumed = float(line_of(producer)), float(line_of(consumer))
        finally:
            broker.kill()
    (folder / "ceiling").unlink()
    return {"end_to_end_per_s": round(consumed), "confirmed_per_s": round(confirmed)}


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def main() -> None:
    """Run, or be one of the processes."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceiling", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    parser.add_argument("--role", choices=("serve", "produce", "consume"), help=argparse.SUPPRESS)
    parser.add_argument("numbers", nargs="*", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role is None:
        run = Run(given.messages // given.batch * given.batch, given.size, given.batch, given.window)
        print(json.dumps(run._asdict() | measure(run, given.data)))
        return
    *numbers, port = given.numbers
    if given.role == "serve":
        uvloop.run(serve(given.data / "ceiling"))
    elif given.role == "produce":
        print(uvloop.run(produce(Run(*numbers), port)), flush=True)
    else:
        print(uvloop.run(consume(Run(*numbers), port)), flush=True)


if __name__ == "__main__":
    main()

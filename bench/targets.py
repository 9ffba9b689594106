"""The figures that VibeMQ is held to, measured on this machine: python -m bench.targets (or make bench).

Each figure stands beside what the machine allows without a broker, measured in the same minute, because figures alone
tell more of the machine than of the program. Medians of several rounds, on a fresh folder each. Close everything else.

A share is the median of the shares of the rounds, never the quotient of two medians: the verdict is about the number
that is shown. Beside it stand the lowest and the highest round, and below the table how busy the machine was.

    batches     batches API, 256 B in batches of 1000, end to end, against the bare path of bench/ceiling.py
    messages    publish() from 1000 tasks, `async for` and ack(), end to end
    sync        one confirmed publish at a time, against appending 4 KiB to a file with fdatasync
    backlog     memory that a backlog of 5 million messages takes; a restart from its checkpoint to the first delivery
    idle        memory that 1000 idle connections take
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import vibemq
from bench.broker import BrokerProcess, fresh_broker

MIB: Final = 1 << 20
QUEUE: Final = "targets"


class Figure(NamedTuple):
    """A row of the table: what each round gave, and in `bare` what the machine gave in that round without a broker."""

    name: str
    unit: str
    rounds: list[float]
    bare: list[float] | None = None
    share_wanted: float | None = None
    value_wanted: float | None = None

    @property
    def shares(self) -> list[float]:
        """What part of the bare figure each round reached."""
        return [] if self.bare is None else [ours / bare for ours, bare in zip(self.rounds, self.bare, strict=True)]

    @property
    def verdict(self) -> bool | None:
        """Whether the target is met by the medians that the table shows; None without a target."""
        if self.share_wanted is not None:
            return median(self.shares) >= self.share_wanted
        return None if self.value_wanted is None else median(self.rounds) >= self.value_wanted


class Measuring(NamedTuple):
    """How to measure."""

    folder: Path
    rounds: int
    scale: float
    """1 for the real thing; less for a quick look."""
    ceiling: list[str]
    """The command of the bare path."""

    def scaled(self, count: int) -> str:
        """So many messages, fewer for a quick look, in whole batches of 1000."""
        return str(max(1000, round(count * self.scale) // 1000 * 1000))

    def columns(self, one_round: Callable[[Path], tuple[float, ...]]) -> list[list[float]]:
        """Each figure of a round, for all rounds; every round has a path of its own."""
        rounds = [one_round(self.folder / f"round-{number}") for number in range(self.rounds)]
        return [list(column) for column in zip(*rounds, strict=True)]


def batches(how: Measuring) -> list[Figure]:
    """The batches API against the bare path, in turns."""
    messages = how.scaled(1_000_000)

    def one_round(path: Path) -> tuple[float, float]:
        command = [*how.ceiling, "--messages", messages, "--size", "256", "--batch", "1000", "--data", str(how.folder)]
        bare = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["end_to_end_per_s"]
        with fresh_broker(path) as broker:
            ours = broker.bench("--mode", "end-to-end", "--messages", messages, "--batch", "1000")["messages_per_s"]
        return ours, bare

    ours, bare = how.columns(one_round)
    return [Figure("batches end to end", "messages/s", ours, bare, share_wanted=0.5)]


def messages(how: Measuring) -> list[Figure]:
    """Message by message."""

    def one_round(path: Path) -> tuple[float]:
        with fresh_broker(path) as broker:
            options = ("--mode", "end-to-end", "--messages", how.scaled(500_000), "--concurrency", "1000")
            return (broker.bench(*options)["messages_per_s"],)

    (ours,) = how.columns(one_round)
    return [Figure("publish() and async for", "messages/s", ours, value_wanted=100_000)]


def sync(how: Measuring) -> list[Figure]:
    """One confirmed publish at a time against one append at a time."""
    count = int(how.scaled(5_000))

    def one_round(path: Path) -> tuple[float, float]:
        with fresh_broker(path) as broker:
            ours = broker.bench("--mode", "sync", "--messages", str(count))["messages_per_s"]
        return ours, _appends_per_s(how.folder / "appended", count)

    ours, bare = how.columns(one_round)
    return [Figure("one publish at a time", "messages/s", ours, bare)]


def _appends_per_s(path: Path, count: int) -> float:
    block = os.urandom(4096)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    began = time.perf_counter()
    for _ in range(count):
        os.write(descriptor, block)
        os.fdatasync(descriptor)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    path.unlink()
    return count / seconds


def backlog(how: Measuring) -> list[Figure]:
    """Memory and restart with a long queue. One round: it takes gigabytes of disk."""
    total = int(how.scaled(5_000_000))
    first = total // 20
    with fresh_broker(how.folder / "backlog") as broker:
        asyncio.run(_publish(broker.url, first))  # fills the caches, which are bounded
        before = broker.rss_bytes()
        asyncio.run(_publish(broker.url, total - first))
        grown = broker.rss_bytes() - before
        broker.stop()
        seconds = _restart_to_first_delivery(broker)
    return [
        Figure(f"memory of {total - first:,} messages", "MiB", [grown / MIB]),
        Figure(f"restart with {total:,} messages", "s", [seconds]),
    ]


async def _publish(url: str, total: int) -> None:
    bodies, ahead = [bytes(256)] * 1000, asyncio.Semaphore(20)

    async def one() -> None:
        async with ahead:
            await client.publish_many(QUEUE, bodies)

    async with vibemq.connect(url) as client:
        await asyncio.gather(*(one() for _ in range(total // len(bodies))))


def _restart_to_first_delivery(broker: BrokerProcess) -> float:
    """From the start of the process to a message in the hands of a consumer."""

    async def first() -> None:
        async with (
            vibemq.connect(broker.url, connect_timeout=300.0, backoff_max=0.05) as client,
            client.consume(QUEUE) as found,
        ):
            await anext(found)

    began = time.perf_counter()
    broker.start(wait=False)
    asyncio.run(first())
    return time.perf_counter() - began


def idle(how: Measuring) -> list[Figure]:
    """Memory of connections that do nothing."""
    count = 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def connected(broker: BrokerProcess) -> int:
        before = broker.rss_bytes()
        async with AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(vibemq.connect(broker.url))
            return broker.rss_bytes() - before

    def one_round(path: Path) -> tuple[float]:
        with fresh_broker(path) as broker:
            return (asyncio.run(connected(broker)) / MIB,)

    (grown,) = how.columns(one_round)
    return [Figure(f"memory of {count:,} idle connections", "MiB", grown)]


MEASUREMENTS: Final[dict[str, Callable[[Measuring], list[Figure]]]] = {
    "batches": batches,
    "messages": messages,
    "sync": sync,
    "backlog": backlog,
    "idle": idle,
}


def table(figures: list[Figure]) -> str:
    """The figures for people."""
    lines = [f"{'median of the rounds':34} {'VibeMQ':>10} {'bare':>10} {'share':>6} {'lowest - highest':>21}  unit"]
    for one in figures:
        bare = "" if one.bare is None else _number(median(one.bare))
        share = f"{median(one.shares):.0%}" if one.shares else ""
        spread = [f"{share:.0%}" for share in one.shares] or [_number(value) for value in one.rounds]
        order = sorted(one.shares or one.rounds)
        low, high = (spread[(one.shares or one.rounds).index(end)] for end in (order[0], order[-1]))
        line = (
            f"{one.name:34} {_number(median(one.rounds)):>10} {bare:>10} {share:>6} {f'{low} - {high}':>21}  {one.unit}"
        )
        lines.append(line + _verdict(one))
    return "\n".join(lines)


def _verdict(one: Figure) -> str:
    if one.verdict is None:
        return ""
    wanted = f"{one.share_wanted:.0%}" if one.share_wanted is not None else _number(one.value_wanted or 0)
    return f"  at least {wanted}: {'met' if one.verdict else 'MISSED'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def main() -> None:
    """Measure, print the table, and exit with 1 when a target was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a quick look; the verdicts mean less")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="may be given several times")
    parser.add_argument("--data", type=Path, help="a folder on the disk to measure  [default: a temporary one]")
    parser.add_argument("--ceiling", type=Path, help="another script with the options and output of bench.ceiling")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each figure")
    given = parser.parse_args()
    command = [sys.executable, str(given.ceiling)] if given.ceiling else [sys.executable, "-m", "bench.ceiling"]
    figures: list[Figure] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="vibemq-bench-", dir=given.data) as folder:
        how = Measuring(Path(folder), given.rounds, given.scale, command)
        for name in given.only or MEASUREMENTS:
            if not given.json:
                print(f"measuring {name} ...", file=sys.stderr)
            figures += MEASUREMENTS[name](how)
    if given.json:
        print(_json(figures))
    else:
        print(table(figures))
        print(f"{given.rounds} rounds, {os.cpu_count()} processors, load when it began: {load:.2f}")
    sys.exit(1 if any(one.verdict is False for one in figures) else 0)


def _json(figures: list[Figure]) -> str:
    lines: list[dict[str, Any]] = [one._asdict() | {"shares": one.shares, "met": one.verdict} for one in figures]
    return "\n".join(map(json.dumps, lines))


if __name__ == "__main__":
    main()

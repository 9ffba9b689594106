"""G16: what a broker holds costs it a bounded amount of memory. In a long run with the sizes that the promise names.

What is judged is the highest resident memory during a scenario, above that of the broker when it has just started.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import vibemq
from tests.counting import counted, full_size, measured
from tests.running import RunningBroker, running

ROOT: Final = Path(__file__).parents[2]
FULL: Final = full_size("G16")
MIB: Final = 1 << 20
CACHE_BYTES: Final = 32 * MIB if FULL else MIB
"""The default; for small sizes a small one, for else all would be cached."""
ROOM_BYTES: Final = 48 * MIB
"""What is on its way, 16 MiB of publishes and 8 of deliveries that wait for the disk, with allocator and index."""
QUEUE: Final = "memory"


@asynccontextmanager
async def client(broker: RunningBroker) -> AsyncIterator[vibemq.Client]:
    async with vibemq.connect(broker.url, timeout=120.0) as connected:
        yield connected


async def publish(broker: RunningBroker, batches: int, bodies: list[bytes], ahead: int) -> None:
    """Publish the same batch again and again, some of them at a time."""
    free = asyncio.Semaphore(ahead)

    async def one() -> None:
        async with free:
            await producer.publish_many(QUEUE, bodies)

    async with client(broker) as producer:
        for _ in range(0, batches, 1000):
            await asyncio.gather(*(one() for _ in range(min(batches, 1000))))


async def backlog(broker: RunningBroker, size: int) -> None:
    """Messages of 256 bytes that nobody takes."""
    await publish(broker, size // 1000, [bytes(256)] * 1000, ahead=20)
    async with client(broker) as other:
        assert (await other.show_queue(QUEUE))["ready"] == size


async def backlog_after_restart(broker: RunningBroker, size: int) -> None:
    """The same, and the broker begins anew with them."""
    await publish(broker, size // 1000, [bytes(256)] * 1000, ahead=20)
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    async with client(broker) as other:
        assert len(await other.pull(QUEUE, max_messages=100, wait=60.0)) == 100


async def unacked(broker: RunningBroker, size: int) -> None:
    """Every other one of twice as many is acked, so that no two of the rest are neighbours."""
    await publish(broker, 2 * size // 1000, [bytes(256)] * 1000, ahead=20)
    async with client(broker) as other, other.consume(QUEUE, prefetch=2 * size) as messages:
        for number in range(2 * size):
            message = await anext(messages)
            if number % 2:
                await message.ack()
        await other.flush()
        assert (await other.show_queue(QUEUE))["unacked"] == size


async def no_reads(broker: RunningBroker, size: int) -> None:
    """A consumer that wants everything and reads nothing, with messages of 50,000 bytes."""
    deaf = broker.json()
    assert deaf.ask(type="subscribe", queue=QUEUE, messages=1_000_000, bytes=1 << 30)["type"] == "done"
    await publish(broker, size // 20, [bytes(50_000)] * 20, ahead=4)


async def small_batches(broker: RunningBroker, size: int) -> None:
    """Each message a batch of its own, and a consumer that is much slower than the producer."""

    async def consume() -> None:
        async with client(broker) as consumer, consumer.consume(QUEUE, prefetch=10) as messages:
            async for message in messages:
                await message.ack()
                await asyncio.sleep(0.01)

    consuming = asyncio.ensure_future(consume())
    await publish(broker, size, [bytes(256)], ahead=500)
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)


async def idle_connections(broker: RunningBroker, size: int) -> None:
    """Clients that say hello and nothing more."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.live.idle_clients", str(broker.port), str(size), cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert int(await process.stdout.readline()) == size
    finally:
        process.stdin.close()
        await process.wait()


class Scenario(NamedTuple):
    """What is done, how often in CI and in a long run, and what each of them may cost beside the cache, in bytes."""

    act: Callable[[RunningBroker, int], Coroutine[None, None, None]]
    what: str
    small: int
    full: int
    each_bytes_max: int


SCENARIOS: Final = (
    Scenario(backlog, "{:,} messages of 256 bytes in a queue", 200_000, 10_000_000, 0),
    Scenario(backlog_after_restart, "{:,} messages of 256 bytes in a queue, after kill -9", 200_000, 5_000_000, 0),
    Scenario(unacked, "{:,} unacked messages, no two of them neighbours", 10_000, 100_000, 512),
    Scenario(no_reads, "{:,} messages of 50,000 bytes for a consumer that does not read", 2_000, 20_000, 0),
    Scenario(small_batches, "{:,} batches of one message, and a slow consumer", 5_000, 200_000, 0),
    Scenario(idle_connections, "{:,} idle connections", 300, 10_000, 8192),
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.act.__name__)
def test_memory_is_bounded(scenario: Scenario, tmp_path: Path) -> None:
    size = scenario.full if FULL else scenario.small
    (tmp_path / "vibemq.toml").write_text(f"[limits]\ncache_bytes = {CACHE_BYTES}\n")
    with counted("G16", 1, of=len(SCENARIOS)) as rounds:
        for _ in rounds:
            with running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as broker:
                before = broker.forget_peak()
                asyncio.run(scenario.act(broker, size))
                grown = broker.peak_bytes() - before
            rss = f"RSS {before / MIB:.0f} MiB at rest, +{grown / MIB:.0f} MiB at its peak"
            measured("G16", scenario.what.format(size), rss)
            assert grown < CACHE_BYTES + ROOM_BYTES + size * scenario.each_bytes_max

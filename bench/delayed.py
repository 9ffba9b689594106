"""What a million delayed messages cost: python -m bench.delayed.

    publish     messages that each have their own due time, hours away, in batches of one: how many a second, and the
                resident memory of the broker with them
    count       round trips of `queue show`, which tells how many wait
    on time     so many due a second, with a consumer: how late each of them arrives
    restart     how long it takes, and the memory after it
    overdue     what was due while the broker was away: how many a second become ready

One broker for all of it, on a fresh folder. `anon` is memory of its own, `all` counts pages of mapped files as well,
which the system may take back at any time.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Final

import vibemq
from bench.broker import BrokerProcess, fresh_broker

FAR: Final = "far"
NEAR: Final = "near"
LATE: Final = "late"
AT_A_TIME: Final = 900
"""Publishes on their way: below the window of a connection, so that none waits in the client."""
MIB: Final = 1 << 20


def _memory(broker: BrokerProcess) -> str:
    return f"{broker.rss_bytes() / MIB:6.1f} MiB anon {broker.rss_bytes(mapped=True) / MIB:6.1f} MiB all"


async def _publish(client: vibemq.Client, queue: str, dues: list[float]) -> None:
    """A message for each of these times, each in a batch of its own, that says when it is due."""
    for at in range(0, len(dues), AT_A_TIME):
        part = dues[at : at + AT_A_TIME]
        await asyncio.gather(*(client.publish(queue, repr(due).encode(), deliver_at=due) for due in part))


async def _fill(broker: BrokerProcess, messages: int) -> None:
    chance = random.Random(5)  # noqa: S311 - seeded, so that it repeats
    peak, begun = 0, time.perf_counter()
    async with vibemq.connect(broker.url) as client:
        for done in range(0, messages, 50_000):
            now = time.time()
            count = min(50_000, messages - done)
            await _publish(client, FAR, [now + chance.uniform(3_600, 36_000) for _ in range(count)])
            peak = max(peak, broker.rss_bytes())
    rate = messages / (time.perf_counter() - begun)
    print(f"publish    {rate:9,.0f} a second     {_memory(broker)}     at most {peak / MIB:.1f} MiB anon")


async def _count(broker: BrokerProcess, messages: int) -> None:
    spent = list[float]()
    async with vibemq.connect(broker.url) as client:
        for _ in range(500):
            begun = time.perf_counter()
            shown = await client.show_queue(FAR)
            spent.append(time.perf_counter() - begun)
            assert shown["delayed"] == messages, shown
    print(f"count      {_shares(spent)}")


def _shares(spent: list[float]) -> str:
    shares = quantiles(spent, n=100)
    return f"median {shares[49] * 1e3:7.2f} ms     p99 {shares[98] * 1e3:7.2f} ms     max {max(spent) * 1e3:7.2f} ms"


async def _on_time(broker: BrokerProcess, rate: int, seconds: int) -> None:
    async with vibemq.connect(broker.url) as client:
        begin = time.time() + 5 + rate * seconds / 5_000
        await _publish(client, NEAR, [begin + number / rate for number in range(rate * seconds)])
        late = list[float]()
        async with client.consume(NEAR, prefetch=2_000) as messages:
            async for message in messages:
                late.append(time.time() - float(message.body))
                await message.ack()
                if len(late) == rate * seconds:
                    break
    assert min(late) >= 0, "before its time"
    print(f"on time    {_shares(late)}     at {rate:,} due a second")


async def _overdue(broker: BrokerProcess, messages: int) -> None:
    async with vibemq.connect(broker.url) as client:
        due = time.time() + 5 + messages / 5_000
        await _publish(client, LATE, [due + number / messages for number in range(messages)])
        assert time.time() < due, "too slow for this"
    broker.stop()
    await asyncio.sleep(max(0, due + 2 - time.time()))
    begun = time.perf_counter()
    broker.start()
    print(f"restart    {time.perf_counter() - begun:9.2f} s             {_memory(broker)}")
    dues, first = list[float](), 0.0
    async with vibemq.connect(broker.url) as client, client.consume(LATE, prefetch=10_000) as received:
        async for message in received:
            first = first or time.perf_counter()
            dues.append(float(message.body))
            await message.ack()
            if len(dues) == messages:
                break
    rate = messages / (time.perf_counter() - first)
    assert dues == sorted(dues), "not the oldest first"
    print(f"overdue    {rate:9,.0f} a second     {_memory(broker)}")


async def measure(broker: BrokerProcess, messages: int, rate: int, seconds: int) -> None:
    """All of it, with a line for each."""
    await _fill(broker, messages)
    await _count(broker, messages)
    await _on_time(broker, rate, seconds)
    await _overdue(broker, 20_000)
    await _count(broker, messages)


def main() -> None:
    """Read the options, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--messages", type=int, default=1_000_000)
    options.add_argument("--rate", type=int, default=1_000, help="messages due a second")
    options.add_argument("--seconds", type=int, default=30)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibemq-bench-") as folder, fresh_broker(Path(folder) / "broker") as broker:
        asyncio.run(measure(broker, given.messages, given.rate, given.seconds))


if __name__ == "__main__":
    main()

"""How fairly messages are shared, and what failures cost: python -m bench.delivery.

    equal       4 consumers of the same speed share a queue: the share of each
    unequal     one fast consumer beside a slow and a very slow one: what it gets, against what it gets alone
    failed      100,000 messages, each of which failed once, in any order: dispatched again, against the first time
    retried     each of 100,000 messages fails when it comes first and is acked when it comes again: deliveries
                a second, against those of messages that are acked at once
    scattered   the worst case: every second message failed once, the others are done; what is left is single messages

Each with a broker of its own, in one run; medians of several rounds where there are figures to compare.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Final

import vibemq
from bench.broker import fresh_broker

QUEUE: Final = "delivery"
BODY: Final = bytes(256)
BATCH: Final = 1000


async def _publish(client: vibemq.Client, count: int) -> None:
    for _ in range(count // BATCH):
        await client.publish_many(QUEUE, [BODY] * BATCH)


async def _work(client: vibemq.Client, pause_s: float, until: float, done: Counter[str], name: str) -> None:
    """Take messages one at a time, and work on each for so long."""
    async with client.consume(QUEUE, prefetch=20) as messages:
        async for message in messages:
            if pause_s:
                await asyncio.sleep(pause_s)
            await message.ack()
            done[name] += 1
            if time.perf_counter() > until:
                return


async def _share(url: str, workers: dict[str, float], seconds: float) -> Counter[str]:
    """How many messages each of these workers did, who pause for so long with each."""
    done: Counter[str] = Counter()
    async with vibemq.connect(url) as publisher:
        await _publish(publisher, 100_000)
        until = time.perf_counter() + seconds
        clients = [vibemq.connect(url) for _ in workers]
        for client in clients:
            await client.open()
        async with asyncio.TaskGroup() as group:
            for client, (name, pause_s) in zip(clients, workers.items(), strict=True):
                group.create_task(_work(client, pause_s, until, done, name))
        for client in clients:
            await client.close()
        await publisher.purge(QUEUE)
    return done


async def equal(url: str) -> str:
    """Consumers of the same speed."""
    done = await _share(url, {f"consumer {number}": 0.001 for number in range(4)}, 3.0)
    total = sum(done.values())
    return "equal       " + ", ".join(f"{count / total:.1%}" for _, count in sorted(done.items()))


async def unequal(url: str) -> str:
    """A fast consumer with slow ones beside it, against the same one alone."""
    alone = await _share(url, {"fast": 0.001}, 3.0)
    beside = await _share(url, {"fast": 0.001, "slow": 0.01, "very slow": 0.1}, 3.0)
    shares = ", ".join(f"{name} {count:,}" for name, count in beside.items())
    return f"unequal     {shares}; the fast one alone {alone['fast']:,}: {beside['fast'] / alone['fast']:.0%} of that"


async def _take(client: vibemq.Client, count: int) -> list[vibemq.Message]:
    """All of so many messages, unacked."""
    taken: list[vibemq.Message] = []
    while len(taken) < count:
        taken += await client.pull(QUEUE, 10_000, wait=5.0)
    return taken


async def _dispatched_per_s(client: vibemq.Client, count: int) -> float:
    """How fast so many messages come, and are acked in batches as they do."""
    began, left = time.perf_counter(), count
    acks: list[Awaitable[None]] = []
    async with client.consume(QUEUE, prefetch=20_000) as messages:
        async for batch in messages.batches(max_messages=BATCH):
            left -= len(batch)
            acks.append(asyncio.create_task(client.ack_all(batch)))
            if left <= 0:
                break
        await asyncio.gather(*acks)
    return count / (time.perf_counter() - began)


async def _again(url: str, count: int, fails: Callable[[int], bool]) -> tuple[float, float]:
    """The rate of dispatch of messages that are new, and of those of them that failed once."""
    chance = random.Random(1)  # noqa: S311 - the same order in each run
    async with vibemq.connect(url, prefetch_bytes=256 << 20) as client:
        await client.declare(QUEUE, max_attempts=0, lease=600)
        await _publish(client, count)
        plain = await _dispatched_per_s(client, count)
        await _publish(client, count)
        taken = await _take(client, count)
        failed = [message for at, message in enumerate(taken) if fails(at)]
        await client.ack_all([message for at, message in enumerate(taken) if not fails(at)])
        chance.shuffle(failed)
        for message in failed:
            await message.nack()
        await client.flush()
        again = await _dispatched_per_s(client, len(failed))
    return plain, again


async def failed(url: str) -> tuple[float, float]:
    """All of 100,000 messages failed once."""
    return await _again(url, 100_000, lambda _: True)


async def retried(url: str) -> tuple[float, float]:
    """Deliveries a second when all are acked at once, and when each first fails, message by message."""

    async def work(client: vibemq.Client, attempt: int) -> float:
        began, left = time.perf_counter(), 100_000
        async with client.consume(QUEUE, prefetch=2000) as messages:
            async for message in messages:
                if message.attempt < attempt:
                    await message.nack()
                    continue
                await message.ack()
                left -= 1
                if not left:
                    break
        return attempt * 100_000 / (time.perf_counter() - began)

    async with vibemq.connect(url) as client:
        await client.declare(QUEUE, max_attempts=0, lease=600)
        await _publish(client, 100_000)
        plain = await work(client, 1)
        await _publish(client, 100_000)
        return plain, await work(client, 2)


async def scattered(url: str) -> tuple[float, float]:
    """Every second of 100,000 messages failed once."""
    return await _again(url, 100_000, lambda at: at % 2 == 0)


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.delivery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="vibemq-bench-") as folder:
        for share in (equal, unequal):
            with fresh_broker(Path(folder) / share.__name__) as broker:
                print(asyncio.run(share(broker.url)))
        for rate in (failed, retried, scattered):
            found = []
            for _ in range(rounds):
                with fresh_broker(Path(folder) / rate.__name__) as broker:
                    found.append(asyncio.run(rate(broker.url)))
            plain, again = (median(column) for column in zip(*found, strict=True))
            ratio = median(after / before for before, after in found)
            print(f"{rate.__name__:11} {again:,.0f} messages/s, new ones {plain:,.0f}: {ratio:.2f}")


if __name__ == "__main__":
    main()

"""The client and a broker in a process of its own: what neither can promise alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq.client import Client
from vibemq.errors import ConsumerExclusive

SECONDS_MAX = 30


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def connect(broker: RunningBroker) -> Client:
    """A client that comes back fast."""
    return vibemq.connect(broker.url, backoff_min=0.01, backoff_max=0.05)


async def restart(broker: RunningBroker) -> None:
    """Kill the broker and start it again, while this loop goes on."""
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)


async def publish_in_batches(client: Client, queue: str, count: int) -> list[vibemq.Receipt]:
    """Publish numbers, many batches at a time."""
    calls = []
    for number in range(count):
        calls.append(asyncio.create_task(client.publish(queue, b"%d" % number)))
        if number % 3 == 0:
            await asyncio.sleep(0)
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("settings", [{"overflow": "block", "max_length": 7}, {"publish_rate": 2_000}])
def test_what_a_queue_makes_wait_keeps_its_order(broker: RunningBroker, settings: dict[str, object]) -> None:
    """The queue opens and closes again and again while more is on its way; then the broker dies in between."""

    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.declare("q", **settings)  # type: ignore[arg-type]
            publishing = asyncio.create_task(publish_in_batches(client, "q", 600))
            free = asyncio.create_task(publish_in_batches(client, "free", 600))
            got: list[bytes] = []
            async with other.consume("q", prefetch=5) as messages:
                async for message in messages:
                    if not message.redelivered:
                        got.append(message.body)
                    await message.ack(confirm=True)
                    if len(got) == 300:
                        break
            await free
            await restart(broker)
            async with other.consume("q", prefetch=5) as messages:
                while len(got) < 600:
                    message = await anext(messages)
                    if message.body not in got[-20:]:  # perhaps it was handed out before the broker died
                        got.append(message.body)
                    await message.ack()
            receipts = await publishing
            assert got == [b"%d" % number for number in range(600)]
            assert [receipt.sequence for receipt in receipts] == list(range(1, 601))
            assert client.stats.publishes_blocked

    asyncio.run(main())


def test_a_group_without_a_name_misses_nothing_while_its_consumer_is_away(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.declare("news", mode="fan-out")
            await client.publish("news", b"before")
            async with client.consume("news") as messages:
                name = messages.group
                await restart(broker)
                await other.publish("news", b"after")
                message = await anext(messages)
                assert (message.body, messages.group) == (b"after", name)
                await message.ack(confirm=True)
            assert client.stats.groups_lost == 0

    asyncio.run(main())


def test_a_pull_that_was_cancelled_neither_takes_nor_delays(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            for round_ in range(3):
                pulling = asyncio.create_task(client.pull("q", wait=600))
                await client.ping()
                pulling.cancel()
                await asyncio.gather(pulling, return_exceptions=True)
                await client.publish("q", b"%d" % round_)
                (message,) = await client.pull("q", wait=600)
                assert (message.body, message.attempt) == (b"%d" % round_, 1)
                await message.ack()

    asyncio.run(main())


def test_an_exclusive_consumer_comes_back_and_keeps_others_out(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            async with client.consume("q", exclusive=True) as messages:
                await restart(broker)
                await other.publish("q", b"x")
                await (await anext(messages)).ack(confirm=True)
                with pytest.raises(ConsumerExclusive):
                    async with other.consume("q"):
                        pass
            async with other.consume("q"):
                pass

    asyncio.run(main())

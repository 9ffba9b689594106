"""Transactions of the client against a real broker, which is killed while they are under way."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq.client import Client
from vibemq.errors import QueueFull, TransactionConflict, TransactionTimeout, Unroutable

SECONDS_MAX = 60


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def connect(broker: RunningBroker) -> Client:
    """A client that comes back fast."""
    return vibemq.connect(broker.url, backoff_min=0.01, backoff_max=0.05)


async def bodies_of(client: Client, queue: str) -> list[bytes]:
    """What is ready in a queue."""
    return [message.body for message in await client.peek(queue, count=1_000)]


def test_publishes_and_acks_happen_together_or_not_at_all(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            await client.publish_many("in", [b"1", b"2", b"3"])
            await client.declare("small", max_length=1)
            await client.declare("wide")
            await client.bind("wide", "a.*")
            first, second, third = await client.pull("in")
            async with client.transaction() as tx:
                tx.publish("out", b"1 done")
                tx.publish_many("out", [b"more", b"and more"])
                to_topic = tx.publish_topic("a.b", b"wide")
                tx.publish("out", b"late", delay="1h")
                tx.ack(first)
            assert await bodies_of(client, "out") == [b"1 done", b"more", b"and more"]
            assert await bodies_of(client, "wide") == [b"wide"]
            (message,) = await client.peek("wide")
            assert message.id == to_topic.receipt.id
            assert [one.sequence for one in tx.receipts] == [1, 2, 3, 0, 0]
            assert [one.id for one in await client.peek("out")] == [one.id for one in tx.receipts[:3]]

            wrongs = ((QueueFull, "publish_many", "small", [b"", b""]), (Unroutable, "publish_topic", "nobody", b""))
            for error, verb, *arguments in wrongs:
                tx = client.transaction()
                tx.publish("out", b"never")
                tx.ack(second)
                getattr(tx, verb)(*arguments)
                with pytest.raises(error):
                    await tx.commit()
            tx = client.transaction(timeout=0.05)
            tx.publish("out", b"never")
            await asyncio.sleep(0.1)
            with pytest.raises(TransactionTimeout):
                await tx.commit()
            assert len(await bodies_of(client, "out")) == 3
            queue = await client.show_queue("in")
            assert (queue["ready"], queue["unacked"]) == (0, 2)
            await second.nack(confirm=True)
            async with client.transaction() as tx:
                tx.ack(third)
            assert (await client.show_queue("in"))["unacked"] == 0

    asyncio.run(main())


def test_what_another_consumer_has_by_now_cannot_be_acked(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.declare("in", lease=0.3)
            await client.publish("in", b"1")
            (message,) = await client.pull("in")
            (again,) = await other.pull("in", wait=5)
            tx = client.transaction()
            tx.ack(message)
            tx.publish("out", b"done")
            with pytest.raises(TransactionConflict):
                await tx.commit()
            async with other.transaction() as theirs:
                theirs.ack(again)
                theirs.publish("out", b"done")
            assert await bodies_of(client, "out") == [b"done"]

    asyncio.run(main())


def test_a_queue_that_blocks_lets_the_transaction_wait(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.declare("q", overflow="block", max_length=3)
            await client.publish_many("q", [b"0", b"1"])
            tx = client.transaction()
            tx.publish_many("q", [b"2", b"3"])
            tx.publish("r", b"")
            commit = asyncio.create_task(tx.commit())
            await asyncio.sleep(0.1)
            assert not commit.done()
            await other.ack_all(await other.pull("q"))
            assert [one.sequence for one in await commit] == [3, 4, 1]

    asyncio.run(main())


def test_consume_transform_produce_is_exactly_once_while_the_broker_dies_again_and_again(
    broker: RunningBroker,
) -> None:
    count = 400

    async def work(client: Client, lost: list[int]) -> None:
        async with client.consume("in", prefetch=20) as messages:
            async for batch in messages.batches(7):
                try:
                    async with client.transaction() as tx:
                        for message in batch:
                            tx.publish("out", b"%s done" % message.body)
                        tx.ack_all(batch)
                except TransactionConflict:
                    lost.append(len(batch))

    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.publish_many("in", [b"%d" % number for number in range(count)])
            lost: list[int] = []
            workers = [asyncio.create_task(work(one, lost)) for one in (client, other)]
            for _ in range(4):
                await asyncio.sleep(0.15)
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.start)
            while True:
                queue = await client.show_queue("in")
                if not queue["ready"] and not queue["unacked"]:
                    break
                await asyncio.sleep(0.05)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            found = await bodies_of(client, "out")
            assert sorted(found) == sorted(b"%d done" % number for number in range(count))

    asyncio.run(main())


def test_the_blocking_client_has_transactions(broker: RunningBroker) -> None:
    with vibemq.connect_sync(broker.url) as client:
        client.publish_many("in", [b"1", b"2"])
        with client.consume("in") as messages:
            message = next(messages)
            with client.transaction() as tx:
                out = tx.publish("out", b"done")
                tx.ack(message)
            assert out.receipt.sequence == 1
            other = next(messages)
            tx = client.transaction()
            tx.ack_all([other])
            tx.publish("out", b"never")
            tx.rollback()
            other.ack(confirm=True)
        assert [one.body for one in client.peek("out")] == [b"done"]
        assert client.show_queue("in")["unacked"] == client.show_queue("in")["ready"] == 0

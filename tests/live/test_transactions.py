"""Transactions of the client against a real broker, which is killed while they are under way."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq.client import Client
from vibemq.errors import ConnectionLost, QueueFull, TransactionConflict, TransactionTimeout, Unroutable

SECONDS_MAX = 60


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def connect(broker: RunningBroker) -> Client:
    """A client that comes back fast."""
    return vibemq.connect(broker.url, backoff_min=0.01, backoff_max=0.05)


def cut(client: Client) -> None:
    """Break a client's connection, without a word."""
    if client._link._connection is not None:
        client._link._connection.end(ConnectionLost("cut by the test"))


async def bodies_of(client: Client, queue: str) -> list[bytes]:
    """What is ready in a queue."""
    found: list[bytes] = []
    while some := await client.peek(queue, start=len(found) + 1, count=1_000):
        found += [message.body for message in some]
    return found


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


async def transform(client: Client) -> None:
    """Consume, and publish the results together with the acks; what is lost comes again."""
    async with client.consume("in", prefetch=20) as messages:
        async for batch in messages.batches(7):
            with suppress(TransactionConflict):
                async with client.transaction() as tx:
                    for message in batch:
                        tx.publish("out", b"%s done" % message.body)
                    tx.ack_all(batch)


async def kill_the_broker(broker: RunningBroker, clients: Sequence[Client]) -> None:
    """Again and again, a moment after the clients came back."""
    for _ in range(4):
        await asyncio.gather(*(client.ping() for client in clients))
        await asyncio.sleep(0.03)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)


async def cut_connections(_: RunningBroker, clients: Sequence[Client]) -> None:
    """Of all clients in turn, many times."""
    for number in range(60):
        await asyncio.sleep(0.013)
        cut(clients[number % len(clients)])


@pytest.mark.parametrize(("breaking", "count"), [(kill_the_broker, 2_000), (cut_connections, 2_000)])
def test_consume_transform_produce_is_exactly_once_whatever_breaks(
    broker: RunningBroker, breaking: Callable[[RunningBroker, Sequence[Client]], Awaitable[None]], count: int
) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as other:
            await client.publish_many("in", [b"%d" % number for number in range(count)])
            workers = [asyncio.create_task(transform(one)) for one in (client, other)]
            await breaking(broker, (client, other))
            while (queue := await client.show_queue("in"))["ready"] or queue["unacked"]:
                await client.flush()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            found = await bodies_of(client, "out")
            assert sorted(found) == sorted(b"%d done" % number for number in range(count))
            assert client.stats.connects > 1

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

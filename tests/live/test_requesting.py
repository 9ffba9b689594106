"""Request and reply between clients of a real broker."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq.client import Client
from vibemq.errors import RequestTimeout, UnknownQueue

SECONDS_MAX = 60


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def connect(broker: RunningBroker) -> Client:
    """A client that comes back fast."""
    return vibemq.connect(broker.url, backoff_min=0.01, backoff_max=0.05)


async def answer(
    client: Client, queue: str, name: bytes, group: str | None = None, ready: asyncio.Event | None = None
) -> None:
    """Answer what comes, in a transaction with the ack."""
    async with client.consume(queue, group=group) as messages:
        if ready is not None:
            ready.set()
        async for message in messages:
            try:
                async with client.transaction() as tx:
                    tx.reply(message, message.body + name)
                    tx.ack(message)
            except vibemq.VibeMQError:  # it comes again, or its requester is gone
                await message.ack()


async def queues(client: Client) -> list[str]:
    """The names of all queues."""
    return [str(queue["name"]) for queue in await client.list_queues()]


async def until_there_is_no_reply_queue(client: Client) -> None:
    """The broker hears of the end of a client, but not before anything that another asks meanwhile."""
    while any(name.startswith("reply.") for name in await queues(client)):
        await client.ping()


def test_requests_are_answered_also_when_the_broker_starts_anew_in_between(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as worker:
            work = asyncio.create_task(answer(worker, "work", b" done"))
            replies = await asyncio.gather(*(client.request("work", b"%d" % number) for number in range(300)))
            assert [reply.body for reply in replies] == [b"%d done" % number for number in range(300)]
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            calls = [asyncio.create_task(client.request("work", b"%d" % number)) for number in range(50)]
            held: list[vibemq.Message] = []
            while len(held) < 50:
                held += await worker.pull("work", wait=1)
            for message in held[:20]:
                await message.reply(b"early " + message.body)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            for message in held[20:]:
                await message.reply(b"late " + message.body)
            bodies = [reply.body for reply in await asyncio.gather(*calls)]
            assert [body.split()[1] for body in bodies] == [b"%d" % number for number in range(50)]
            assert client.stats.connects == 2

    asyncio.run(main())


def test_many_answer_and_nobody_begins_what_nobody_waits_for(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client, connect(broker) as worker:
            await client.declare("ask", mode="fan-out")
            ready = {name: asyncio.Event() for name in ("a", "b")}
            tasks = [
                asyncio.create_task(answer(worker, "ask", f" {name}".encode(), name, event))
                for name, event in ready.items()
            ]
            for event in ready.values():
                await event.wait()
            async with client.request_many("ask", b"who", timeout=30, max_replies=2) as replies:
                assert sorted([reply.body async for reply in replies]) == [b"who a", b"who b"]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(RequestTimeout):
                await client.request("nobody", b"", timeout=0.1)
            await asyncio.sleep(0.05)
            assert await worker.pull("nobody") == []

    asyncio.run(main())


def test_the_reply_queue_goes_with_its_client(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as worker:
            async with connect(broker) as client:
                call = asyncio.create_task(client.request("work", b""))
                (message,) = await worker.pull("work", wait=10)
                assert len([name for name in await queues(worker) if name.startswith("reply.")]) == 1
                call.cancel()
            await until_there_is_no_reply_queue(worker)
            with pytest.raises(UnknownQueue, match="gone"):
                await message.reply(b"too late")
            assert not any(name.startswith("reply.") for name in await queues(worker))
            await message.ack(confirm=True)

    asyncio.run(main())


def test_the_blocking_client_asks_and_answers(broker: RunningBroker) -> None:
    async def work(stop: asyncio.Event) -> None:
        async with connect(broker) as worker:
            task = asyncio.create_task(answer(worker, "work", b" done"))
            await stop.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def ask() -> None:
        with vibemq.connect_sync(broker.url) as client:
            reply = client.request("work", b"one", timeout=30)
            assert (reply.body, reply.settled) == (b"one done", True)
            with client.request_many("work", b"two", timeout=30, max_replies=1) as replies:
                assert [one.body for one in replies] == [b"two done"]

    async def main() -> None:
        stop = asyncio.Event()
        async with asyncio.timeout(SECONDS_MAX):
            task = asyncio.create_task(work(stop))
            await asyncio.to_thread(ask)
            stop.set()
            await task

    asyncio.run(main())

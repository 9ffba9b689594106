"""G18: one client in one process rides through restarts, with either API; every subscription of it goes on."""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random
from threading import Event

import pytest

import vibemq
from tests.counting import counted
from tests.running import RunningBroker
from vibemq.client import ConnectOptions
from vibemq.errors import ClientClosed

QUEUES = ("one", "two", "three")
PATIENCE_S = 30.0
OPTIONS: ConnectOptions = {"timeout": PATIENCE_S, "backoff_max": 0.05}
PAUSE_S = 0.002


class Seen:
    """What the client knows: which bodies were confirmed, and which came."""

    def __init__(self) -> None:
        self.confirmed: set[bytes] = set()
        self.came: set[bytes] = set()
        self._numbers = count()

    def new(self, queue: str) -> bytes:
        """A body that was never used."""
        return f"{queue} {next(self._numbers)}".encode()

    def take(self, queue: str, message: vibemq.Message | vibemq.SyncMessage) -> None:
        """A message came, to the subscription of its queue, and not twice without saying so."""
        assert message.body.startswith(queue.encode())
        assert message.redelivered or message.body not in self.came
        self.came.add(message.body)


class Rider(Seen):
    """The asynchronous client: three consumers and a publisher, in tasks."""

    def __init__(self, client: vibemq.Client) -> None:
        super().__init__()
        self._client = client

    async def consume(self, queue: str) -> None:
        async with self._client.consume(queue, prefetch=20) as messages:
            async for message in messages:
                self.take(queue, message)
                await message.ack()

    async def publish(self, queue: str) -> bytes:
        body = self.new(queue)
        await self._client.publish(queue, body)
        self.confirmed.add(body)
        return body

    async def publish_on(self) -> None:
        while True:
            await asyncio.gather(*(self.publish(queue) for queue in QUEUES))
            await asyncio.sleep(PAUSE_S)

    async def until_came(self, bodies: set[bytes]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.came >= bodies:  # noqa: ASYNC110 - two sets tell nobody when they have grown
                await asyncio.sleep(PAUSE_S)


async def ride(broker: RunningBroker, end: Callable[[], object], restarts: Iterable[int], random: Random) -> Seen:
    """Restart the broker again and again; each time every queue must deliver what was published afterwards."""
    async with vibemq.connect(broker.url, **OPTIONS) as client:
        rider = Rider(client)
        tasks = [asyncio.ensure_future(rider.consume(queue)) for queue in QUEUES]
        tasks.append(asyncio.ensure_future(rider.publish_on()))
        for _ in restarts:
            await asyncio.sleep(random.uniform(0, 0.2))
            await asyncio.to_thread(end)
            await asyncio.to_thread(broker.start)
            fresh = await asyncio.gather(*(rider.publish(queue) for queue in QUEUES))
            await rider.until_came(set(fresh))
            assert not any(task.done() for task in tasks), tasks
        tasks.pop().cancel()
        await rider.until_came(rider.confirmed)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(how, asyncio.CancelledError) for how in ends), ends
    return rider


class BlockingRider(Seen):
    """The blocking client: three consumers and a publisher, in threads that share it."""

    def __init__(self, client: vibemq.SyncClient) -> None:
        super().__init__()
        self._client = client
        self.over = Event()

    def consume(self, queue: str) -> None:
        try:
            with self._client.consume(queue, prefetch=20) as messages:
                for message in messages:
                    self.take(queue, message)
                    message.ack()
        except ClientClosed:  # this is how it ends
            pass

    def publish(self, queue: str) -> bytes:
        body = self.new(queue)
        self._client.publish(queue, body)
        self.confirmed.add(body)
        return body

    def publish_on(self) -> None:
        while not self.over.wait(PAUSE_S):
            for queue in QUEUES:
                self.publish(queue)

    def until_came(self, bodies: set[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.came >= bodies:
            assert time.monotonic() < deadline
            time.sleep(PAUSE_S)


def ride_blocking(broker: RunningBroker, end: Callable[[], object], restarts: Iterable[int], random: Random) -> Seen:
    """The same."""
    with ThreadPoolExecutor() as pool, vibemq.connect_sync(broker.url, **OPTIONS) as client:
        rider = BlockingRider(client)
        tasks = [pool.submit(rider.consume, queue) for queue in QUEUES]
        tasks.append(pool.submit(rider.publish_on))
        for _ in restarts:
            time.sleep(random.uniform(0, 0.2))
            end()
            broker.start()
            rider.until_came({rider.publish(queue) for queue in QUEUES})
            assert not any(task.done() for task in tasks), tasks
        rider.over.set()
        tasks.pop().result(PATIENCE_S)
        rider.until_came(rider.confirmed)
    for task in tasks:
        task.result(PATIENCE_S)
    return rider


PARTS: list[tuple[str, str, int]] = [("async", "kill", 7), ("async", "stop", 3), ("blocking", "kill", 7),
                                     ("blocking", "stop", 3)]  # fmt: skip
"""The API, how the broker ends, and how often in CI."""


@pytest.mark.parametrize(("api", "how", "ci"), PARTS, ids=str)
def test_every_subscription_resumes_and_no_confirmed_publish_is_lost(
    api: str, how: str, ci: int, tmp_path: Path
) -> None:
    broker = RunningBroker(tmp_path / "data").start()
    end = broker.kill if how == "kill" else broker.stop
    try:
        with counted("G18", ci, of=sum(ci for _, _, ci in PARTS)) as restarts:
            random = Random(restarts.first)
            if api == "async":
                seen = asyncio.run(ride(broker, end, restarts, random))
            else:
                seen = ride_blocking(broker, end, restarts, random)
            assert seen.came >= seen.confirmed
            assert seen.confirmed
    finally:
        broker.close()

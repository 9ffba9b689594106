"""G18: one client in one process rides through restarts; every subscription of it goes on."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest

import vibemq
from tests.counting import counted
from tests.running import RunningBroker

QUEUES = ("one", "two", "three")
PATIENCE_S = 30.0


class Rider:
    """Publishes to three queues and consumes from them; knows what was confirmed and what came."""

    def __init__(self, client: vibemq.Client) -> None:
        self._client = client
        self.confirmed: set[bytes] = set()
        self.came: dict[bytes, int] = {}
        self._number = 0

    async def consume(self, queue: str) -> None:
        async with self._client.consume(queue, prefetch=20) as messages:
            async for message in messages:
                assert message.body.startswith(queue.encode())
                assert message.redelivered or message.body not in self.came
                self.came[message.body] = self.came.get(message.body, 0) + 1
                await message.ack()

    async def publish(self, queue: str) -> bytes:
        self._number += 1
        body = f"{queue} {self._number}".encode()
        await self._client.publish(queue, body)
        self.confirmed.add(body)
        return body

    async def publish_on(self) -> None:
        while True:
            await asyncio.gather(*(self.publish(queue) for queue in QUEUES))
            await asyncio.sleep(0.002)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():  # noqa: ASYNC110 - it is about the whole state, which tells nobody
                await asyncio.sleep(0.002)


async def ride(broker: RunningBroker, end: Callable[[], object], restarts: Iterable[int], seed: int) -> Rider:
    """Restart the broker again and again; each time every queue must deliver what was published afterwards."""
    random = Random(seed)
    async with vibemq.connect(broker.url, timeout=PATIENCE_S, backoff_max=0.05) as client:
        rider = Rider(client)
        tasks = [asyncio.ensure_future(rider.consume(queue)) for queue in QUEUES]
        tasks.append(asyncio.ensure_future(rider.publish_on()))
        for _ in restarts:
            await asyncio.sleep(random.uniform(0, 0.2))
            await asyncio.to_thread(end)
            await asyncio.to_thread(broker.start)
            fresh = await asyncio.gather(*(rider.publish(queue) for queue in QUEUES))
            await rider.until(lambda fresh=fresh: rider.came.keys() >= set(fresh))  # type: ignore[misc]
            assert not any(task.done() for task in tasks), tasks
        tasks.pop().cancel()
        await rider.until(lambda: rider.came.keys() >= rider.confirmed)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rider


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_every_subscription_resumes_and_no_confirmed_publish_is_lost(how: str, tmp_path: Path) -> None:
    broker = RunningBroker(tmp_path / "data").start()
    end = broker.kill if how == "kill" else broker.stop
    try:
        with counted("G18", 14 if how == "kill" else 6, of=20) as restarts:
            rider = asyncio.run(ride(broker, end, restarts, restarts.first))
            assert rider.came.keys() >= rider.confirmed
    finally:
        broker.close()

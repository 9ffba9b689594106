"""Messages that wait for their time while the broker is killed: none is lost, too early, or back once cancelled."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import vibemq
from tests.counting import counted
from tests.crash.laboratory import SETTINGS
from tests.running import RunningBroker
from vibemq.client import ConnectOptions
from vibemq.errors import ConnectionLost, LeaseLost, UnknownMessage

QUEUE = "later"
KILLS_EACH = 5
PATIENCE_S = 60.0
OPTIONS: ConnectOptions = {"timeout": PATIENCE_S, "backoff_min": 0.01, "backoff_max": 0.05}
HOUR_S = 3600.0
CLOCKS_US = 1_000
"""The broker counts on from the clock that it saw when it began."""


class Waiting:
    """What one client knows of its messages that wait, and of what came."""

    def __init__(self, client: vibemq.Client, random: Random) -> None:
        """Nothing waits."""
        self._client, self._random = client, random
        self.due_us: dict[bytes, int] = {}
        """What is to come, and when."""
        self.cancelled: set[bytes] = set()
        self.came_us: dict[bytes, int] = {}
        """When it came first."""
        self.unflagged: list[bytes] = []
        self.over = False
        """Nothing more is to be published."""
        self._count = 0

    async def publish_on(self) -> None:
        """Publish for soon, and for much later; of the latter cancel some, and have the others come sooner."""
        while not self.over:
            count, later = self._random.choice((1, 5, 30)), self._random.random() < 0.3
            bodies = [b"%d" % number for number in range(self._count, self._count + count)]
            self._count += count
            delay_s = HOUR_S if later else self._random.uniform(0.01, 0.8)
            receipts = await self._client.publish_many(QUEUE, bodies, delay=delay_s)
            for body, receipt in zip(bodies, receipts, strict=True):
                self.due_us[body] = receipt.due_us
            if later:
                await self._change(dict(zip(bodies, receipts, strict=True)))
            await asyncio.sleep(self._random.uniform(0, 0.01))

    async def _change(self, receipts: dict[bytes, vibemq.Receipt]) -> None:
        for body, receipt in receipts.items():
            if self._random.random() < 0.3:
                await _surely(partial(self._client.cancel_delayed, QUEUE, [receipt.id]))
                del self.due_us[body]
                self.cancelled.add(body)
            else:
                self.due_us[body] = time.time_ns() // 1000
                await _surely(partial(self._client.reschedule, QUEUE, [receipt.id], delay=0.3))

    async def consume(self) -> None:
        """Take what comes."""
        async with self._client.consume(QUEUE, prefetch=100) as messages:
            async for batch in messages.batches(max_messages=50):
                now_us = time.time_ns() // 1000
                for message in batch:
                    if message.body in self.came_us and not message.redelivered:
                        self.unflagged.append(message.body)
                    self.came_us.setdefault(message.body, now_us)
                with contextlib.suppress(LeaseLost):  # it comes again
                    await self._client.ack_all(batch)

    async def drained(self) -> None:
        """Wait until nothing waits."""
        async with asyncio.timeout(PATIENCE_S):
            while (queue := await self._client.show_queue(QUEUE))["messages"] or queue["delayed"]:
                await self._client.flush()

    def check(self) -> None:
        """What came is what was to come, and nothing before its time."""
        assert [body for body in self.due_us if body not in self.came_us] == []
        assert self.cancelled.intersection(self.came_us) == set()
        early = {body: us for body, us in self.came_us.items() if us < self.due_us.get(body, 0) - CLOCKS_US}
        assert early == {}
        assert self.unflagged == []
        assert self.cancelled
        assert len(self.due_us) > KILLS_EACH


async def _surely(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask until there is an answer. Where nobody is known any more it was done the first time."""
    while True:
        with contextlib.suppress(ConnectionLost):
            with contextlib.suppress(UnknownMessage):
                await ask()
            return


async def kill_under(broker: RunningBroker, kills: Iterable[int], random: Random) -> None:
    """Kill the broker while messages wait for their time, and begin to."""
    async with vibemq.connect(broker.url, **OPTIONS) as client:
        await client.declare(QUEUE, max_attempts=0)
        waiting = Waiting(client, random)
        consuming = asyncio.create_task(waiting.consume())
        publishing = asyncio.create_task(waiting.publish_on())
        for _ in kills:
            await asyncio.sleep(random.uniform(0.1, 0.5))
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            assert not consuming.done()
            assert not publishing.done(), publishing
        await asyncio.sleep(0.2)
        waiting.over = True
        await publishing
        await waiting.drained()
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
        waiting.check()


def test_what_waits_comes_in_its_time_whenever_the_broker_is_killed(tmp_path: Path) -> None:
    with counted("DELAYED", 10) as rounds:
        while rounds.left:
            seed = rounds.first + rounds.done
            config = tmp_path / f"{seed}.toml"
            config.write_text(SETTINGS)
            broker = RunningBroker(tmp_path / str(seed), ["--config", str(config)]).start()
            try:
                asyncio.run(kill_under(broker, rounds.take(KILLS_EACH), Random(seed)))
            finally:
                broker.close()

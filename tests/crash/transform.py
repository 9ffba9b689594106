"""A program that consumes, transforms and produces, each batch in one transaction, and stops where it is told to.

    python -m tests.crash.transform URL

It reads lines on stdin: the name of a step, at which it shall tell, and wait; or GO, to go on. When it comes to that
step it writes its name on stdout. So whoever runs it can kill it, or the broker, exactly there. At the step COMMITTING
nobody can wait: the commit is under way, and it tells a moment after that.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from itertools import count
from typing import Final

import vibemq
from vibemq.client import ConnectOptions
from vibemq.errors import TransactionConflict, TransactionEnded

SOURCE: Final = "in"
TARGET: Final = "out"
GO: Final = "go"
RECEIVED: Final = "received"
BEGUN: Final = "begun"
PUBLISHED: Final = "published"
ACKED: Final = "acked"
COMMITTING: Final = "committing"
COMMITTED: Final = "committed"
APART: Final = "VIBEMQ_TEST_APART"
"""With this in the environment it does without transactions, to show what they are there for."""
STEPS: Final = (RECEIVED, BEGUN, PUBLISHED, ACKED, COMMITTING, COMMITTED)
"""In this order, for each batch."""
OPTIONS: Final[ConnectOptions] = {"timeout": 40.0, "connect_timeout": 40.0, "backoff_min": 0.01, "backoff_max": 0.05}


class Steps:
    """Tells of a step when it is asked for."""

    def __init__(self) -> None:
        """Nobody has asked."""
        self._asked = ""
        self._go = asyncio.Event()
        self._partial = b""

    def hear(self) -> None:
        """Something is on stdin."""
        data = os.read(0, 4096)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if line.decode() == GO:
                self._go.set()
            else:
                self._asked = line.decode()

    def tell(self, step: str) -> bool:
        """Tell of a step, if that is the one."""
        if step != self._asked:
            return False
        self._asked = ""
        self._go.clear()
        os.write(1, f"{step}\n".encode())
        return True

    async def reach(self, step: str) -> None:
        """Tell of a step, if that is the one, and wait there."""
        if self.tell(step):
            await self._go.wait()


async def transform(client: vibemq.Client, batch: Sequence[vibemq.Message], steps: Steps, attempt: int) -> None:
    """Publish what comes of some messages, and ack them."""
    loop = asyncio.get_running_loop()
    async with client.transaction() as tx:
        await steps.reach(BEGUN)
        for message in batch:
            tx.publish(TARGET, b"%s by %d.%d" % (message.body, os.getpid(), attempt))
        await steps.reach(PUBLISHED)
        tx.ack_all(batch)
        await steps.reach(ACKED)
        loop.call_later(attempt % 5 / 4_000, steps.tell, COMMITTING)
    await steps.reach(COMMITTED)


async def transform_apart(client: vibemq.Client, batch: Sequence[vibemq.Message], steps: Steps, attempt: int) -> None:
    """The same, as if nobody could die between."""
    await client.publish_many(TARGET, [b"%s by %d.%d" % (message.body, os.getpid(), attempt) for message in batch])
    await steps.reach(PUBLISHED)
    await client.ack_all(batch)
    await steps.reach(ACKED)


async def work(url: str) -> None:
    """Work for ever."""
    steps = Steps()
    asyncio.get_running_loop().add_reader(0, steps.hear)
    attempts = count()
    transforms = transform_apart if APART in os.environ else transform
    async with (
        vibemq.connect(url, **OPTIONS) as client,
        client.consume(SOURCE, prefetch=20) as messages,
    ):
        async for batch in messages.batches(max_messages=7):
            await steps.reach(RECEIVED)
            with contextlib.suppress(TransactionConflict, TransactionEnded):  # they come again
                await transforms(client, batch, steps, next(attempts))


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

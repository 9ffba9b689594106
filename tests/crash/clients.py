"""The clients of the crash laboratory, each a process of its own.

    python -m tests.crash.clients produce|consume|pull NAME SEED JOURNAL URL QUEUE[/GROUP] [late]

With `late` the way to the broker may hold back what it carries, for any time: then a delivery may have been sent at any
time since its connection was opened.

They run until SIGTERM; a producer then waits for what is unconfirmed. What a client knows is in its journal before it
acts on it.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final, Literal

import vibemq
from tests.checker import Name
from tests.crash.journal import Journal, Ticker, body_of, name_of
from vibemq.client import ConnectOptions
from vibemq.errors import ConnectionFailed, DiskFull, LeaseLost, RequestTimeout, VibeMQError
from vibemq.protocol import messages as m

WRITERS: Final = 3
"""A producer is so many writers over one connection."""
CONNECTION: Final[ConnectOptions] = {
    "timeout": 40.0,
    "connect_timeout": 40.0,
    "heartbeat": 2.0,
    "backoff_min": 0.01,
    "backoff_max": 0.05,
}
ACK_LATER: Final = 0.1
"""The part of messages that is given back instead of acked."""


class Program:
    """What the three programs have in common."""

    def __init__(self, name: str, seed: str, journal: str, url: str, queue: str, late: str = "") -> None:
        """As on the command line."""
        self.name, self.random, self.url = name, Random(f"{seed} {name}"), url
        self.queue, _, group = queue.partition("/")
        self.group = group or None
        self._of = (group,) if group else ()
        self.journal = Journal(Path(journal))
        self.ticker = Ticker()
        self._late, self._connects, self._connected = bool(late), 0, 0.0
        self._lost: set[tuple[int, int]] = set()

    async def run(self, work: Callable[[vibemq.Client], Awaitable[None]]) -> None:
        """Work until SIGTERM."""
        options: ConnectOptions = {**CONNECTION, "name": self.name, "chance": self.random}
        async with vibemq.connect(self.url, **options) as client:
            self._note_lost_leases(client)
            working = asyncio.ensure_future(work(client))
            ticking = asyncio.ensure_future(self.ticker.run(lambda: self._note_connection(client)))
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await working
            ticking.cancel()

    def _note_connection(self, client: vibemq.Client) -> None:
        """Remember since when there has surely been the present connection."""
        if client.stats.connects != self._connects:
            self._connects, self._connected = client.stats.connects, self.ticker.since

    def _note_lost_leases(self, client: vibemq.Client) -> None:
        """Remember what the broker calls lost: nobody is told who has acked it and asks for no confirmation of that."""
        tell = client._link.handlers[m.LeasesLost]

        def note(reply: m.LeasesLost) -> None:
            for first, end in reply.deliveries:
                self._lost.update((reply.subscription, number) for number in range(first, end))
            tell(reply)

        client._link.handlers[m.LeasesLost] = note

    # --- producing

    async def produce(self, client: vibemq.Client) -> None:
        """Publish numbered messages; stop beginning new ones when cancelled."""
        stop = asyncio.Event()
        writers = [asyncio.ensure_future(self._write(client, f"{self.name}.{n}", stop)) for n in range(WRITERS)]
        try:
            await asyncio.Event().wait()
        finally:
            stop.set()
            await asyncio.gather(*writers)

    async def _write(self, client: vibemq.Client, writer: str, stop: asyncio.Event) -> None:
        random, number = self.random, 0
        while not stop.is_set():
            count = random.choice((1, 1, 2, 5, 20))
            names = [Name(writer, n) for n in range(number, number + count)]
            number += count
            bodies = [body_of(name, random.choice((10, 100, 100, 1000))) for name in names]
            self.journal.write([("attempted", writer, names[0].number, number)])
            try:
                if random.random() < 0.5:
                    await client.publish_many(self.queue, bodies)
                else:
                    await asyncio.gather(*(client.publish(self.queue, body) for body in bodies))
            except (DiskFull, RequestTimeout) as error:
                self.journal.write([("refused", writer, names[0].number, number, type(error).__name__)])
                await asyncio.sleep(0.02)
                continue
            self.journal.write([("confirmed", writer, names[0].number, number)])
            await asyncio.sleep(random.choice((0, 0, 0.002, 0.01)))

    # --- consuming

    @property
    def _start(self) -> Literal["head", "tail"]:
        """A group gets all that there ever was, whenever it is created."""
        return "head" if self.group else "tail"

    async def consume(self, client: vibemq.Client) -> None:
        """Take part in the queue with a subscription that survives its connections."""
        prefetch, start = self.random.choice((5, 50)), self._start
        async with client.consume(self.queue, prefetch, self.group, start=start) as messages:
            async for batch in messages.batches(max_messages=50):
                await self.settle(client, batch)

    async def pull(self, client: vibemq.Client) -> None:
        """Ask for messages again and again."""
        while True:
            with contextlib.suppress(RequestTimeout):
                pulling = client.pull(self.queue, max_messages=20, wait=0.1, group=self.group, start=self._start)
                await self.settle(client, await pulling)

    async def settle(self, client: vibemq.Client, batch: Sequence[vibemq.Message]) -> None:
        """Note what came, give some of it back, ack the rest in one of the ways there are."""
        random = self.random
        now, since = time.monotonic(), self._connected if self._late else self.ticker.since
        self.journal.write(
            ("delivered", *name_of(one.body), since, now, one.redelivered, one.id, *self._of) for one in batch
        )
        if random.random() < 0.3:
            await asyncio.sleep(random.choice((0, 0.001, 0.02)))
        kept = [one for one in batch if random.random() >= ACK_LATER]
        for one in batch:
            if one not in kept:
                await one.nack()
        self.journal.write(("asked", *name_of(one.body), *self._of) for one in kept)
        connects = client.stats.connects
        try:
            confirmed = await random.choice((_ack_all, _ack_each, _ack_and_flush))(client, kept)
        except (LeaseLost, RequestTimeout):
            return
        at = time.monotonic()
        # flush() says nothing of acks that a lost connection or a lost lease had made void before.
        if not confirmed and client.stats.connects != connects:
            return
        sure = [one for one in kept if confirmed or (one.parcel.subscription.number, one.delivery) not in self._lost]
        self.journal.write(("acked", *name_of(one.body), at, *self._of) for one in sure)


async def _ack_all(client: vibemq.Client, kept: Sequence[vibemq.Message]) -> bool:
    await client.ack_all(kept)
    return True


async def _ack_each(_client: vibemq.Client, kept: Sequence[vibemq.Message]) -> bool:
    await asyncio.gather(*(one.ack(confirm=True) for one in kept))
    return True


async def _ack_and_flush(client: vibemq.Client, kept: Sequence[vibemq.Message]) -> bool:
    for one in kept:
        await one.ack()
    await client.flush()
    return False


def main(kind: str, *arguments: str) -> int:
    """Run one of the programs."""
    program = Program(*arguments)
    work = {"produce": program.produce, "consume": program.consume, "pull": program.pull}[kind]
    try:
        asyncio.run(program.run(work))
    except (ConnectionFailed, VibeMQError) as error:
        sys.stderr.write(f"{program.name}: {error!r}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

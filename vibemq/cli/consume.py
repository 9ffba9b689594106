"""`vibemq consume`: print messages, and ack what was written.

    pull --> write to stdout --> ack, confirmed --> ...
       next pull runs meanwhile       bounded number at a time

A message is acked only when all of its bytes were taken by stdout. When an ack is lost with a connection, the message
comes again and is printed again: at least once.

It ends with a pull that brings nothing while nothing is in hand: what is in hand may hold others back, as those of the
same key. And a queue that hands out so many messages a second is given the time for the next one.
"""

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import click

import vibemq
from vibemq.cli.connecting import Broker, broker_options, in_thread
from vibemq.cli.examples import examples
from vibemq.cli.output import message_line
from vibemq.cli.parameters import POSITION
from vibemq.client import StartAt
from vibemq.errors import LeaseLost, RequestTimeout, VibeMQError

PULL_MESSAGES: Final = 1000
WAIT_SECONDS: Final = 10.0
ACKS_AHEAD: Final = 4
EXTEND_SECONDS_MAX: Final = 10.0
"""While stdout takes nothing leases are extended at least this often."""
END_SECONDS: Final = 2.0
"""How long, once a signal came, to wait for what is under way."""
RATE_SECONDS: Final = 0.5
"""How much longer than its rate says the next message of a queue may take before there is taken to be none."""
PEEK_MESSAGES: Final = 500
STDOUT: Final = 1
IN_VAIN: Final = (
    "nothing came, as the queue fans out and this was a new group that began at its tail: name one with --group, begin "
    "elsewhere with --from, or wait with --follow or --count"
)


class Stdout:
    """Writes to stdout on a thread, so that a reader who pauses holds up neither heartbeats nor leases."""

    def __init__(self, line_of: Callable[[vibemq.Message | vibemq.PeekedMessage], bytes]) -> None:
        """Write what `line_of` makes of each message."""
        self._line_of = line_of
        self._written = 0
        self._ends: list[int] = []
        self.broken = False
        """Whether the reader has gone."""

    def write(self, messages: Sequence[vibemq.Message | vibemq.PeekedMessage]) -> "asyncio.Future[None]":
        """Begin to write; the future is done when all is written or the reader has gone."""
        lines = list(map(self._line_of, messages))
        self._ends = list(accumulate(map(len, lines)))
        self._written = 0
        return in_thread(lambda: self._write(memoryview(b"".join(lines))))

    def _write(self, data: memoryview) -> None:
        try:
            while self._written < len(data):
                self._written += os.write(STDOUT, data[self._written :])
        except BrokenPipeError:
            self.broken = True

    def when_gone(self) -> "asyncio.Future[None]":
        """A future that is done when the reader of a pipe has gone; for other files never."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        if not stat.S_ISFIFO(os.fstat(STDOUT).st_mode):
            return gone

        def end() -> None:  # the end that writes becomes readable only by that
            loop.remove_reader(STDOUT)
            self.broken = True
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(STDOUT, end)
        return gone

    @property
    def complete(self) -> int:
        """How many messages of the last write were written to their end."""
        written = self._written
        return sum(end <= written for end in self._ends)


def _raw_line(message: vibemq.Message | vibemq.PeekedMessage) -> bytes:
    return message.body + b"\n"


@click.command(
    name="consume",
    epilog=examples(
        "vibemq consume orders --count 10 --json",
        "vibemq consume events --group billing --from head",
        "vibemq consume events --follow --from 10m",
    ),
)
@click.argument("queue")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages, and wait for them.")
@click.option("--follow", is_flag=True, help="Never end: wait for more.")
@click.option("--peek", is_flag=True, help="Print what is ready, and take nothing.")
@click.option("--group", metavar="NAME", help="Take part in this group of a queue that fans out; made if need be.")
@click.option(
    "--from",
    "start",
    type=POSITION,
    metavar="PLACE",
    help="Where a new group begins: tail (the default), head, a sequence, or a time (RFC 3339, or 10m for ten minutes "
    "ago). With --peek: the sequence to begin at.",
)
@click.option("--exclusive", is_flag=True, help="Nobody else may take part meanwhile.")
@click.option("--json", "as_json", is_flag=True, help="Print messages as JSON lines, with all that is known of them.")
@broker_options
def command(
    broker: Broker,
    queue: str,
    count: int | None,
    follow: bool,
    peek: bool,
    group: str | None,
    start: StartAt | None,
    exclusive: bool,
    as_json: bool,
) -> None:
    """Print the messages of QUEUE, one a line, and take them from it.

    Ends when nothing is left that is ready. A message is acked once stdout has taken it. A queue that fans out gives
    every message to each of its groups; without --group this is a new one of its own, which is deleted a minute after
    it.
    """
    if follow and (peek or count is not None):
        raise click.UsageError("--follow never ends: leave out --peek and --count.")
    stdout = Stdout(message_line if as_json else _raw_line)
    if peek:
        _peek(broker, queue, group, count, start, stdout, exclusive=exclusive)
        return
    share = Share(queue, group, "tail" if start is None else start, exclusive=exclusive)
    consumer = Consumer(share, count, stdout, follow=follow)
    try:
        broker.run("consume", consumer.consume)
    finally:
        if consumer.void:
            click.echo(f"vibemq: {consumer.void} messages were printed and their acks lost: they come again", err=True)
    if consumer.in_vain:
        click.echo(f"vibemq: {IN_VAIN}", err=True)


def _peek(
    broker: Broker,
    queue: str,
    group: str | None,
    count: int | None,
    start: StartAt | None,
    stdout: Stdout,
    *,
    exclusive: bool,
) -> None:
    if exclusive:
        raise click.UsageError("--peek takes nothing: leave out --exclusive.")
    first = 0 if start is None or start == "head" else start
    if not isinstance(first, int):
        raise click.UsageError("--peek begins at the head or at a sequence: --from takes no tail and no time then.")
    broker.run("consume", lambda client: peek_at(client, queue, group, first, count, stdout))


async def peek_at(
    client: vibemq.Client, queue: str, group: str | None, start: int, count: int | None, stdout: Stdout
) -> None:
    """Print what is ready now from sequence `start` on, at most `count` messages."""
    facts = await client.show_queue(queue)
    end = facts["next_sequence"]
    assert isinstance(end, int)
    left = end if count is None else count
    # Where there are priorities each has sequences of its own.
    for priority in reversed(range(10)) if facts["mode"] == "priority" else [None]:
        at = start
        while left > 0 and not stdout.broken:
            found = await client.peek(queue, at, min(left, PEEK_MESSAGES), group, priority=priority)
            some = [message for message in found if message.sequence < end]
            if not some:
                break
            await stdout.write(some)
            left -= len(some)
            at = some[-1].sequence + 1


@dataclass(frozen=True, slots=True)
class Share:
    """What of a queue is consumed."""

    queue: str
    group: str | None
    start: StartAt
    exclusive: bool


class Consumer:
    """Takes messages from a queue until none is ready, `count` came, the reader of stdout has gone, or for ever."""

    def __init__(self, share: Share, count: int | None, stdout: Stdout, *, follow: bool) -> None:
        """Prepare; `consume` does it."""
        self._share, self._left, self._stdout, self._follow = share, count, stdout, follow
        self._until_empty = not follow and count is None
        self._wait = 0.0 if self._until_empty else WAIT_SECONDS
        self._free_handed = True
        """Whether nothing was in hand when the last pull began."""
        self._seen = False
        self._acks: set[asyncio.Task[None]] = set()
        self._failure: VibeMQError | None = None
        self._ended = False
        self.void = 0
        """Messages that were printed and whose ack was lost with the connection: they come again, or have by now."""
        self.in_vain = False
        """Whether nothing could ever come."""

    async def consume(self, client: vibemq.Client) -> None:
        """Do it. A signal ends it in order; when nothing else would have, that is its normal end.

        Raises:
            VibeMQError: the broker refused, or was away for too long.
        """
        self._client = client
        try:
            await self._loop()
        except asyncio.CancelledError:
            await self._end()
            if not self._follow:
                raise
        else:
            await self._acked(0)
            if self._until_empty and not self._seen and self._share.group is None and self._share.start == "tail":
                self.in_vain = "groups" in await client.show_queue(self._share.queue)

    async def _loop(self) -> None:
        gone = self._stdout.when_gone()
        self._pulling = self._pull()
        try:
            while not self._ended:
                either: list[asyncio.Future[Any]] = [self._pulling, gone]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                await self._next(await self._pulling)
        finally:
            gone.cancel()
            self._pulling.cancel()
            await asyncio.gather(self._pulling, return_exceptions=True)

    async def _next(self, batch: list[vibemq.Message]) -> None:
        """Print what a pull brought, or see what it means that it brought nothing. The next pull runs meanwhile."""
        self._seen = self._seen or bool(batch)
        if batch and self._left is not None:
            self._left -= len(batch)
            self._ended = self._left == 0
        if not batch and self._until_empty:
            await self._acked(0)
            self._ended = self._free_handed and not await self._slowed()
        self._free_handed = not batch
        self._pulling = self._pull()
        if batch:
            await self._print(batch)
            self._ended = self._ended or self._stdout.broken

    async def _slowed(self) -> bool:
        """Whether nothing may have come because the queue has a rate; if so, pulls wait for the next from now on."""
        if self._wait:
            return False
        settings = (await self._client.show_queue(self._share.queue))["settings"]
        assert isinstance(settings, dict)
        rate = settings["deliver_rate"]
        self._wait = RATE_SECONDS + 1 / rate if rate else 0.0
        return bool(rate)

    def _pull(self) -> "asyncio.Task[list[vibemq.Message]]":
        return asyncio.create_task(self._some())

    async def _some(self) -> list[vibemq.Message]:
        if self._ended:
            return []
        most = PULL_MESSAGES if self._left is None else min(PULL_MESSAGES, self._left)
        share = self._share
        while True:
            try:
                return await self._client.pull(
                    share.queue, most, self._wait, group=share.group, start=share.start, exclusive=share.exclusive
                )
            except RequestTimeout as problem:
                if not self._follow:
                    raise
                click.echo(f"vibemq: {problem.text} Still waiting.", err=True)

    async def _print(self, batch: list[vibemq.Message]) -> None:
        """Write a batch, and begin to ack what was written."""
        writing = self._stdout.write(batch)
        try:
            while not (await asyncio.wait([writing], timeout=self._extend_seconds(batch)))[0]:
                await self._extend(batch)
            await writing
        finally:
            written = batch[: self._stdout.complete]
            if written:
                self._acks.add(asyncio.create_task(self._ack(written)))
        await self._acked(ACKS_AHEAD)

    def _extend_seconds(self, batch: list[vibemq.Message]) -> float:
        return min(EXTEND_SECONDS_MAX, batch[0].parcel.subscription.lease_ms / 3000)

    async def _extend(self, batch: list[vibemq.Message]) -> None:
        """Whoever reads stdout takes a pause: keep what is in hand, the next batch included."""
        held = list(batch)
        if self._pulling.done() and not self._pulling.cancelled() and self._pulling.exception() is None:
            held += self._pulling.result()
        await asyncio.gather(*(message.extend() for message in held), return_exceptions=True)

    async def _ack(self, batch: list[vibemq.Message]) -> None:
        try:
            await self._client.ack_all(batch)
        except LeaseLost:
            self.void += len(batch)
        except VibeMQError as problem:
            self.void += len(batch)
            self._failure = problem

    async def _acked(self, most: int) -> None:
        """Wait until at most `most` batches are written and not yet acked."""
        while len(self._acks) > most:
            _, self._acks = await asyncio.wait(self._acks, return_when=asyncio.FIRST_COMPLETED)
        if self._failure is not None:
            raise self._failure

    async def _end(self) -> None:
        """A signal came: wait a little for what was written to be acked."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._acked(0)

"""`vibemq publish`: send messages, and return when they are durable.

Lines of stdin are sent as they come, in batches of what one read brought. A bounded number of batches is on its way, so
memory stays bounded however long the input is, and however far ahead of the broker.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import BinaryIO, Final, TypedDict

import click

import vibemq
from vibemq.cli.broker import Broker, broker_options, in_thread
from vibemq.cli.output import print_json
from vibemq.errors import LimitExceeded, UsageError, VibeMQError

READ_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 64 << 20
"""A longer line is refused: it is above what any broker takes, and memory has an end."""
BATCH_LINES: Final = 4096
BATCHES_AHEAD: Final = 16
BYTES_AHEAD: Final = 16 << 20
"""Both are well below what the client lets wait, so batches are never held up out of order there."""


class Options(TypedDict, total=False):
    """What else publish() takes."""

    priority: int | None
    ttl: str | None
    delay: str | None


def _headers(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    headers = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE")
        headers[name] = value
    return headers or None


@click.command(name="publish")
@click.argument("queue")
@click.argument("payloads", nargs=-1, metavar="[PAYLOAD]...")
@click.option("--stdin-lines", is_flag=True, help="Send each line of stdin, without its newline, as a message.")
@click.option("--file", type=click.File("rb"), help="Send this file as one message; - is stdin.")
@click.option("--header", "headers", multiple=True, callback=_headers, metavar="NAME=VALUE", help="For every message.")
@click.option("--priority", type=click.IntRange(0, 9), help="From 0 to 9; 4 is normal.")
@click.option("--ttl", metavar="DURATION", help='How long it is of use, such as "30s".')
@click.option("--delay", metavar="DURATION", help='How long it waits before it can be consumed, such as "5m".')
@click.option("--json", "as_json", is_flag=True, help="Print id, queue and sequence of every message, as JSON lines.")
@broker_options
def command(
    broker: Broker,
    queue: str,
    payloads: tuple[str, ...],
    stdin_lines: bool,
    file: BinaryIO | None,
    headers: dict[str, str] | None,
    priority: int | None,
    ttl: str | None,
    delay: str | None,
    as_json: bool,
) -> None:
    """Publish PAYLOADs, the lines of stdin or a file to QUEUE.

    Returns when all of it is durable. When that fails, it says how much was confirmed, and exits with 1.
    """
    if bool(payloads) + stdin_lines + (file is not None) != 1:
        raise click.UsageError("Give either PAYLOADs, --stdin-lines or --file.")
    options: Options = {"priority": priority, "ttl": ttl, "delay": delay}
    sender = Sender(queue, headers, options, as_json=as_json)
    if not stdin_lines:
        bodies = [file.read()] if file is not None else [os.fsencode(payload) for payload in payloads]
        broker.run("publish", lambda client: sender.send(client, bodies))
        return
    try:
        broker.run("publish", lambda client: sender.send_lines(client, lines_of(sys.stdin.fileno())))
    except UsageError:
        raise
    except VibeMQError as error:
        click.echo(f"vibemq: {error.text}\nvibemq: {sender.account()}", err=True)
        raise click.exceptions.Exit(1) from None
    except click.exceptions.Exit:  # a signal
        click.echo(f"vibemq: {sender.account()}", err=True)
        raise


async def lines_of(descriptor: int) -> AsyncIterator[list[bytes]]:
    r"""The lines that each read of a file brought, without their newlines: the \n alone, a \r before it is kept.

    Raises:
        LimitExceeded: a line above LINE_BYTES_MAX.
    """
    partial: list[bytes] = []
    size = 0
    while chunk := await in_thread(lambda: os.read(descriptor, READ_BYTES)):
        first, newline, rest = chunk.partition(b"\n")
        partial.append(first)
        size += len(first)
        if size > LINE_BYTES_MAX:
            raise LimitExceeded(f"a line of stdin is longer than {LINE_BYTES_MAX} bytes: send it with --file")
        if not newline:
            continue
        *lines, last = rest.split(b"\n")
        yield [b"".join(partial), *lines]
        partial, size = [last], len(last)
    if size:
        yield [b"".join(partial)]


class Sender:
    """Publishes to one queue, and counts what is durable."""

    def __init__(self, queue: str, headers: Mapping[str, str] | None, options: Options, *, as_json: bool) -> None:
        """Nothing is sent yet."""
        self._queue, self._headers, self._as_json = queue, headers, as_json
        self._options = options
        self._plain = not any(value is not None for value in options.values())
        self._confirmed = self._leading = 0
        self._failed = False

    def account(self) -> str:
        """How many lines were confirmed, for when not all were."""
        scattered = self._confirmed - self._leading
        known = f"{self._confirmed} lines were confirmed"
        if scattered:
            known += f": the first {self._leading}, and {scattered} of those after them"
        return f"{known}. Of the others some may be stored."

    async def send(self, client: vibemq.Client, bodies: Sequence[bytes]) -> None:
        """Publish `bodies` as one batch."""
        self._settled(await self._publish(client, bodies))

    async def send_lines(self, client: vibemq.Client, lines: AsyncIterator[list[bytes]]) -> None:
        """Publish lines as they come, and return when all are durable."""
        ahead: deque[tuple[int, asyncio.Task[list[vibemq.Receipt]]]] = deque()
        size = 0
        try:
            async for some in lines:
                for at in range(0, len(some), BATCH_LINES):
                    batch = some[at : at + BATCH_LINES]
                    batch_bytes = sum(map(len, batch))
                    while ahead and (
                        ahead[0][1].done() or len(ahead) >= BATCHES_AHEAD or size + batch_bytes > BYTES_AHEAD
                    ):
                        size -= await self._oldest(ahead)
                    size += batch_bytes
                    ahead.append((batch_bytes, asyncio.create_task(self._publish(client, batch))))
            while ahead:
                await self._oldest(ahead)
        except VibeMQError:
            await self._rest(ahead)
            raise
        except BaseException:  # a signal: nobody wants to wait
            for _, task in ahead:
                task.cancel()
            await self._rest(ahead)
            raise

    async def _oldest(self, ahead: deque[tuple[int, asyncio.Task[list[vibemq.Receipt]]]]) -> int:
        size, task = ahead[0]
        self._settled(await asyncio.shield(task))
        ahead.popleft()
        return size

    async def _rest(self, ahead: deque[tuple[int, asyncio.Task[list[vibemq.Receipt]]]]) -> None:
        """Something went wrong: count what is confirmed all the same."""
        for result in await asyncio.gather(*(task for _, task in ahead), return_exceptions=True):
            if isinstance(result, BaseException):
                self._failed = True
            else:
                self._settled(result)

    async def _publish(self, client: vibemq.Client, bodies: Sequence[bytes]) -> list[vibemq.Receipt]:
        if self._plain:
            headers = None if self._headers is None else [self._headers] * len(bodies)
            return await client.publish_many(self._queue, bodies, headers=headers)
        publishes = (client.publish(self._queue, body, headers=self._headers, **self._options) for body in bodies)
        return await asyncio.gather(*publishes)

    def _settled(self, receipts: Sequence[vibemq.Receipt]) -> None:
        self._confirmed += len(receipts)
        if not self._failed:
            self._leading += len(receipts)
        if self._as_json:
            print_json(
                {"id": one.id, "queue": one.queue, "sequence": one.sequence, "duplicate": one.duplicate}
                for one in receipts
            )

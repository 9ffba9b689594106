"""`vibemq publish`: send messages, and return when they are durable.

Lines of stdin are sent as they come, in batches of what one read brought. A bounded number of batches is on its way, so
memory stays bounded however long the input is, and however far ahead of the broker.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final, Self

import click

import vibemq
from vibemq.cli.connecting import Broker, broker_options, in_thread
from vibemq.cli.examples import examples
from vibemq.cli.output import print_json
from vibemq.cli.parameters import COMING, DELAY, DURATION, PRIORITY
from vibemq.client import Duration, Priority
from vibemq.errors import LimitExceeded, UsageError, VibeMQError

READ_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 64 << 20
"""A longer line is refused: it is above what any broker takes, and memory has an end."""
BATCH_LINES: Final = 4096
BATCHES_AHEAD: Final = 16
BYTES_AHEAD: Final = 16 << 20
"""Both are well below what the client lets wait, so batches are never held up out of order there."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is said of every message. With `to_topic` the name that is published to is that of a topic."""

    headers: Mapping[str, str] | None = None
    key: str | None = None
    priority: Priority | None = None
    ttl: Duration | None = None
    to_topic: bool = False
    delay: Duration | None = None
    at: datetime | None = None
    dedup_id: str | None = None


def _text(text: str) -> str:
    """An argument that travels as text.

    Raises:
        BadParameter: the bytes on the command line were no UTF-8.
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise click.BadParameter(f"{text!r} is not UTF-8, and this must be text")
    return text


def _key(_: click.Context, __: click.Parameter, key: str | None) -> str | None:
    if key == "":
        raise click.BadParameter("it has at least one character; leave it out where there is none")
    return None if key is None else _text(key)


def read_headers(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    """The headers that were given as NAME=VALUE.

    Raises:
        BadParameter: one is of another form.
    """
    headers = {}
    for text in given:
        name, equals, value = _text(text).partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE")
        headers[name] = value
    return headers or None


@click.command(
    name="publish",
    epilog=examples(
        "vibemq publish orders 'two teas' --header table=7 --ttl 30s",
        "vibemq publish jobs --stdin-lines --priority high < jobs.txt",
        "vibemq publish orders.eu.created '{\"id\": 7}' --to-topic --key customer-12",
    ),
)
@click.argument("queue")
@click.argument("payloads", nargs=-1, metavar="[PAYLOAD]...")
@click.option("--stdin-lines", is_flag=True, help="Send each line of stdin, without its newline, as a message.")
@click.option("--file", type=click.File("rb"), help="Send this file as one message; - is stdin.")
@click.option(
    "--header", "headers", multiple=True, callback=read_headers, metavar="NAME=VALUE", help="For every message."
)
@click.option("--key", callback=_key, metavar="TEXT", help="Messages of one key stay in order (order_by_key).")
@click.option(
    "--priority", type=PRIORITY, metavar="0-9|NAME", help="low (1), normal (4), high (7) or critical (9), or a number."
)
@click.option("--ttl", type=DURATION, metavar="DURATION", help='How long it may wait to be delivered, such as "30s".')
@click.option("--delay", type=DELAY, metavar="DURATION", help='It is ready after so long, such as "2h".')
@click.option("--at", type=COMING, metavar="TIME", help="It is ready at that time: 2026-12-24T18:00:00Z.")
@click.option(
    "--dedup-id", callback=_key, metavar="TEXT", help="Store it only if the queue has had none with this id lately."
)
@click.option("--to-topic", is_flag=True, help="QUEUE is a topic: send to every queue that is bound to it.")
@click.option("--json", "as_json", is_flag=True, help="Print id, queue and sequence of every message, as JSON lines.")
@broker_options
def command(
    broker: Broker,
    queue: str,
    payloads: tuple[str, ...],
    stdin_lines: bool,
    file: BinaryIO | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the fields of Options
) -> None:
    """Publish PAYLOADs, the lines of stdin or a file to QUEUE.

    Returns when all of it is durable. When that fails, or messages were dropped because the queue is full and drops
    what is new, it says how much was confirmed, and exits with 1.
    """
    if bool(payloads) + stdin_lines + (file is not None) != 1:
        raise click.UsageError("Give either PAYLOADs, --stdin-lines or --file.")
    said = Options(**options)
    if said.delay is not None and said.at is not None:
        raise click.UsageError("Give either --delay or --at.")
    if said.dedup_id is not None and (said.to_topic or stdin_lines or len(payloads) > 1):
        raise click.UsageError("--dedup-id names one message, to a queue: give one PAYLOAD or --file, no --to-topic.")
    sender = Sender(queue, said, as_json=as_json)
    if stdin_lines:
        _send_lines(broker, sender)
    else:
        bodies = [file.read()] if file is not None else [os.fsencode(payload) for payload in payloads]
        broker.run("publish", lambda client: sender.send(client, bodies))
    if sender.dropped:
        click.echo(f"vibemq: {sender.loss}", err=True)
        raise click.exceptions.Exit(1)


def _send_lines(broker: Broker, sender: "Sender") -> None:
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
    """Publishes to one queue or topic, and counts what is durable."""

    def __init__(self, name: str, options: Options, *, as_json: bool) -> None:
        """Nothing is sent yet."""
        self._name, self._options, self._as_json = name, options, as_json
        self._confirmed = self._leading = 0
        self._failed = False
        self.dropped = 0
        """Messages that were not stored: the queue is full, and is one that drops what is new."""

    @property
    def loss(self) -> str:
        """What was dropped, in words."""
        total = self.dropped + self._confirmed
        return (
            f"{self.dropped} of {total} messages were dropped: {self._name!r} is full, and drops what is new "
            "(overflow drop-newest)"
        )

    def account(self) -> str:
        """How many lines were confirmed, for when not all were."""
        scattered = self._confirmed - self._leading
        known = f"{self._confirmed} lines were confirmed"
        if scattered:
            known += f": the first {self._leading}, and {scattered} of those after them"
        if self.dropped:
            known += f", and {self.dropped} were dropped by a full queue"
        return f"{known}. Of the others some may be stored."

    async def send(self, client: vibemq.Client, bodies: Sequence[bytes]) -> None:
        """Publish `bodies` as one batch."""
        self._settled(await self._publish(client, bodies))

    async def send_lines(self, client: vibemq.Client, lines: AsyncIterator[list[bytes]]) -> None:
        """Publish lines as they come, and return when all are durable.

        Raises:
            VibeMQError: what went wrong first. No more lines are read then, but those on their way get their answers.
        """
        ahead = Ahead()
        feeding = asyncio.create_task(self._feed(client, lines, ahead))
        try:
            async for batch in ahead:
                self._settled(await batch)
            await feeding
        except BaseException as problem:
            feeding.cancel()
            for batch in ahead.rest(cancel=not isinstance(problem, VibeMQError)):
                await self._settled_all_the_same(batch)
            raise

    async def _feed(self, client: vibemq.Client, lines: AsyncIterator[list[bytes]], ahead: "Ahead") -> None:
        try:
            async for some in lines:
                for at in range(0, len(some), BATCH_LINES):
                    batch = some[at : at + BATCH_LINES]
                    size = sum(map(len, batch))
                    await ahead.room(size)
                    ahead.add(asyncio.create_task(self._publish(client, batch)), size)
        finally:
            ahead.end()

    async def _settled_all_the_same(self, batch: "asyncio.Task[list[vibemq.Receipt]]") -> None:
        """Something went wrong before this batch: count it, if it is confirmed all the same."""
        self._failed = True
        (result,) = await asyncio.gather(batch, return_exceptions=True)
        if not isinstance(result, BaseException):
            self._settled(result)

    async def _publish(self, client: vibemq.Client, bodies: Sequence[bytes]) -> list[vibemq.Receipt]:
        said, count = self._options, len(bodies)
        options: dict[str, Any] = {
            "headers": None if said.headers is None else [said.headers] * count,
            "priority": said.priority,
            "ttl": said.ttl,
            "keys": None if said.key is None else [said.key] * count,
            "delay": said.delay,
            "deliver_at": said.at,
        }
        if said.to_topic:
            return await client.publish_topic_many(self._name, bodies, **options)
        ids = None if said.dedup_id is None else [said.dedup_id] * count
        return await client.publish_many(self._name, bodies, dedup_ids=ids, **options)

    def _settled(self, receipts: Sequence[vibemq.Receipt]) -> None:
        dropped = sum(one.dropped for one in receipts)
        self.dropped += dropped
        self._confirmed += len(receipts) - dropped
        if not self._failed:
            self._leading += len(receipts) - dropped
        if self._as_json:
            print_json(map(self._line, receipts))
            return
        for receipt in receipts:
            if receipt.duplicate_of is not None:
                click.echo(f"vibemq: not stored, it is there already, as {receipt.duplicate_of}", err=True)

    def _line(self, receipt: vibemq.Receipt) -> dict[str, object]:
        """A receipt for programs. What has no number has null: each queue behind a topic gives one of its own."""
        place = "topic" if self._options.to_topic else "queue"
        waits, known = receipt.due_at is not None, receipt.duplicate_of is not None
        sequence = None if receipt.dropped or self._options.to_topic or waits or known else receipt.sequence
        line: dict[str, object] = {"id": receipt.id, place: receipt.queue, "sequence": sequence}
        line |= {"duplicate": receipt.duplicate, "dropped": receipt.dropped}
        return line | ({"due_at": receipt.due_at} if waits else {})


class Ahead:
    """The batches on their way: a bounded number, taken in order as they are answered."""

    def __init__(self) -> None:
        """Nothing is on its way."""
        self._batches: deque[tuple[asyncio.Task[list[vibemq.Receipt]], int]] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def room(self, size: int) -> None:
        """Wait until a batch of `size` bytes may go. One may always."""
        while self._batches and (len(self._batches) >= BATCHES_AHEAD or self._bytes + size > BYTES_AHEAD):
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def add(self, batch: "asyncio.Task[list[vibemq.Receipt]]", size: int) -> None:
        """A batch of `size` bytes goes."""
        self._batches.append((batch, size))
        self._bytes += size
        self._changed.set()

    def end(self) -> None:
        """No more will go."""
        self._ended = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "asyncio.Task[list[vibemq.Receipt]]":
        """The oldest batch, once it is answered."""
        while not self._batches:
            if self._ended:
                raise StopAsyncIteration
            await self._change()
        batch, size = self._batches[0]
        await asyncio.wait([batch])
        self._batches.popleft()
        self._bytes -= size
        self._changed.set()
        return batch

    def rest(self, *, cancel: bool) -> "list[asyncio.Task[list[vibemq.Receipt]]]":
        """What is still on its way; with `cancel` only what has its answer by now counts."""
        batches = [batch for batch, _ in self._batches]
        self._batches.clear()
        if cancel:
            for batch in batches:
                batch.cancel()
        return batches

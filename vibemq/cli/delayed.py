"""`vibemq delayed`: messages that wait for their time. Which there are, what is in them, another time for them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import click

import vibemq
from vibemq.cli.asking import ask
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.dlq import body_text, when
from vibemq.cli.examples import examples
from vibemq.cli.output import body_fields, print_json, print_table
from vibemq.cli.parameters import COMING, DELAY
from vibemq.cli.queue import counted, print_count
from vibemq.client import DelayedMessage, Duration
from vibemq.errors import UnknownMessage
from vibemq.history.printable import plain

COLUMNS: Final = ("id", "due", "published", "size")
SPARE: Final = ("size", "published")

_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_all = click.option("--all", "all_of_them", is_flag=True, help="All that wait there.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the count as a JSON line.")


@click.group(name="delayed")
def command() -> None:
    """List, show, cancel, reschedule and release messages that wait for their time.

    A message is named by its id, as a receipt, `publish --json` and `delayed list` give it. What is said of several is
    done to all of them, or to none.
    """


# --- looking


@command.command(name="list", epilog=examples("vibemq delayed list reminders --count 10"))
@click.argument("queue")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="At most so many.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each.")
@broker_options
def list_delayed(broker: Broker, queue: str, count: int | None, as_json: bool) -> None:
    """List the delayed messages of QUEUE, the first due first."""
    rows: list[list[object]] = []

    async def show(client: vibemq.Client) -> None:
        left = count
        async for page in pages(client, queue):
            some = page if left is None else page[:left]
            if as_json:
                print_json(map(_facts, some))
            else:
                rows.extend([one.id, when(one.due_at), when(one.published_at), one.size] for one in some)
            left = None if left is None else left - len(some)
            if left == 0:
                return

    broker.run("delayed list", show)
    if not as_json:
        print_table(COLUMNS, rows, SPARE)


async def pages(client: vibemq.Client, queue: str) -> AsyncIterator[list[DelayedMessage]]:
    """What waits, some at a time, the first due first. What changes meanwhile may be seen twice, or not at all."""
    after: tuple[int, int, int] | None = (0, 0, 0)
    while after is not None:
        page, after = await client.delayed_page(queue, after)
        if page:
            yield page


def _facts(one: DelayedMessage) -> dict[str, Any]:
    facts = {"id": one.id, "queue": one.queue, "due_at": one.due_at, "published_at": one.published_at}
    return facts | {"bytes": one.size}


@command.command(name="show", epilog=examples("vibemq delayed show reminders 12-0"))
@click.argument("queue")
@click.argument("message_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print it as a JSON line.")
@broker_options
def show(broker: Broker, queue: str, message_id: str, as_json: bool) -> None:
    """Show one delayed message of QUEUE, with headers and body."""
    found = broker.run("delayed show", lambda client: client.show_delayed(queue, message_id))
    if as_json:
        print_json([_facts(found) | body_fields(found.body) | {"headers": found.headers}])
        return
    facts = [("due", when(found.due_at)), ("published", when(found.published_at)), ("size", len(found.body))]
    print_table(("id", found.id), facts)
    if found.headers:
        click.echo()
        print_table(("header", "value"), list(found.headers.items()))
    click.echo(f"\nbody\n{body_text(found.body)}")


# --- changing


@command.command(name="cancel", epilog=examples("vibemq delayed cancel reminders 12-0 12-1"))
@click.argument("queue")
@_ids
@_all
@_yes
@_json
@broker_options
def cancel(broker: Broker, queue: str, ids: tuple[str, ...], all_of_them: bool, yes: bool, as_json: bool) -> None:
    """Take delayed messages of QUEUE back. They are gone."""
    _check_which(ids, all_of_them=all_of_them)
    if all_of_them:
        ask(f"Take back all messages in {queue!r} that wait for their time?", yes=yes)
    count = broker.run("delayed cancel", lambda client: _each(client, queue, ids, client.cancel_delayed))
    print_count("cancelled", queue, count, as_json=as_json)


@command.command(name="release", epilog=examples("vibemq delayed release reminders --all"))
@click.argument("queue")
@_ids
@_all
@_json
@broker_options
def release(broker: Broker, queue: str, ids: tuple[str, ...], all_of_them: bool, as_json: bool) -> None:
    """Let messages of QUEUE be ready now."""
    _check_which(ids, all_of_them=all_of_them)
    count = broker.run("delayed release", lambda client: _each(client, queue, ids, client.release_delayed))
    print_count("released", queue, count, as_json=as_json)


@command.command(
    name="reschedule",
    epilog=examples(
        "vibemq delayed reschedule reminders 12-0 --delay 2h",
        "vibemq delayed reschedule reminders 12-0 --at 2026-12-24T18:00:00Z",
    ),
)
@click.argument("queue")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--delay", type=DELAY, metavar="DURATION", help="Ready after so long, from now on.")
@click.option("--at", type=COMING, metavar="TIME", help="Ready at that time: 2026-12-24T18:00:00Z.")
@click.option("--json", "as_json", is_flag=True, help="Print count and time as a JSON line.")
@broker_options
def reschedule(
    broker: Broker, queue: str, ids: tuple[str, ...], delay: Duration | None, at: datetime | None, as_json: bool
) -> None:
    """Let messages of QUEUE wait for another time."""
    if (delay is None) == (at is None):
        raise click.UsageError("Say until when: either --delay or --at.")
    due = broker.run("delayed reschedule", lambda client: client.reschedule(queue, ids, delay=delay, deliver_at=at))
    if as_json:
        print_json([{"queue": queue, "count": len(set(ids)), "due_at": due}])
    else:
        click.echo(f"rescheduled {plain(queue)}: {counted(len(set(ids)))}, due {when(due)}")


def _check_which(ids: Sequence[str], *, all_of_them: bool) -> None:
    if bool(ids) == all_of_them:
        raise click.UsageError("Say which: either IDs, or --all.")


async def _each(
    client: vibemq.Client, queue: str, ids: Sequence[str], change: Callable[[str, Sequence[str]], Awaitable[int]]
) -> int:
    """Change these messages; none named: all that wait, but those whose time comes meanwhile."""
    if ids:
        return await change(queue, ids)
    count = 0
    async for page in pages(client, queue):
        try:
            count += await change(queue, [one.id for one in page])
        except UnknownMessage:  # one was due; the others are still to be changed
            for one in page:
                with suppress(UnknownMessage):
                    count += await change(queue, [one.id])
    return count

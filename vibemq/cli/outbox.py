"""`vibemq outbox`: publishes what programs left in a table of their own database (docs/transactions.md#outbox)."""

import asyncio
import functools
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from vibemq.cli.asking import ask
from vibemq.cli.connecting import CONNECT_SECONDS, Broker, broker_options
from vibemq.cli.examples import examples
from vibemq.cli.output import print_json, print_table
from vibemq.cli.parameters import DURATION
from vibemq.errors import UsageError, VibeMQError
from vibemq.history.printable import plain
from vibemq.outbox import Outbox, PostgresOutbox, Relay, SqliteOutbox


@click.group(name="outbox")
def command() -> None:
    """Publish what programs left in a table of their own database, each message once."""


def outbox_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says where the outbox is to a command, which gets it as its argument `outbox`."""

    @click.option("--sqlite", metavar="FILE", help="The outbox is in this SQLite database.")
    @click.option(
        "--postgres",
        metavar="DSN",
        envvar="VIBEMQ_OUTBOX_POSTGRES",
        show_envvar=True,
        help="The outbox is in this PostgreSQL database: a connection string or URL of libpq.",
    )
    @click.option("--table", default="vibemq_outbox", show_default=True, help="The name of its table.")
    @functools.wraps(function)
    def with_outbox(*args: object, sqlite: str | None, postgres: str | None, table: str, **options: object) -> object:
        outbox: Outbox
        if sqlite is not None:  # what is written on the command line counts more than what the environment says
            outbox = SqliteOutbox(sqlite, table)
        elif postgres is not None:
            outbox = PostgresOutbox(postgres, table)
        else:
            raise UsageError("say where the outbox is: --sqlite FILE or --postgres DSN")
        try:
            return function(*args, outbox=outbox, **options)
        except outbox.problems as problem:
            text = str(problem).strip()
            raise VibeMQError(f"the database: {text}. Has `vibemq outbox create` made the tables?") from problem

    return with_outbox


json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON line.")


@command.command(
    name="relay",
    epilog=examples(
        "vibemq outbox relay --sqlite shop.db",
        "vibemq outbox relay --postgres postgresql://shop@db/shop --url vibemq://broker:2925",
        "vibemq outbox relay --sqlite shop.db --once",
    ),
)
@click.option("--once", is_flag=True, help="End when nothing is left that can be published.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, show_default=True, help="Messages at a time.")
@click.option(
    "--poll", type=DURATION, default="200ms", show_default=True, metavar="DURATION", help="How often to look for more."
)
@click.option(
    "--park-after",
    type=DURATION,
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="Park what a queue has refused for so long.",
)
@outbox_options
@broker_options
def relay(broker: Broker, outbox: Outbox, once: bool, batch: int, poll: float | str, park_after: float | str) -> None:
    """Publish what is in an outbox.

    It runs until it is told to end, by SIGINT or SIGTERM. More than one may run: the others wait until the first ends.
    What happens to rows is logged on stderr.
    """
    logging.basicConfig(stream=sys.stderr, format="vibemq: %(message)s", level=logging.INFO)
    made = Relay(
        outbox,
        broker.url,
        batch_messages=batch,
        poll=poll,
        park_after=park_after,
        timeout=broker.timeout,
        connect_timeout=min(broker.timeout, CONNECT_SECONDS),
    )
    outbox.create()
    if once:
        click.echo(f"published {made.run_once_sync()}")
        return

    async def run() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, made.stop)
        await made.run()

    asyncio.run(run())


@command.command(name="create")
@outbox_options
@click.option("--print", "only_print", is_flag=True, help="Print the statements, and do nothing.")
def create(outbox: Outbox, only_print: bool) -> None:
    """Make the tables of an outbox, where they are not there."""
    if only_print:
        click.echo(outbox.ddl.strip())
    else:
        outbox.create()


@command.command(name="status")
@outbox_options
@json_option
def status(outbox: Outbox, as_json: bool) -> None:
    """Show what waits in an outbox, and what was parked and why."""
    found = outbox.status()
    if as_json:
        print_json([msgspec.to_builtins(found)])
        return
    click.echo(f"waiting {found.waiting}, the oldest for {found.oldest_seconds:.0f} s; {found.refused} were refused")
    click.echo(f"parked  {found.parked}")
    if found.parked_rows:
        print_table(("id", "queue", "error"), [[row.id, row.queue, plain(row.error)] for row in found.parked_rows])


@command.command(name="retry")
@click.argument("ids", nargs=-1, type=int)
@outbox_options
@json_option
def retry(outbox: Outbox, ids: tuple[int, ...], as_json: bool) -> None:
    """Let parked rows be tried again: all, or those of these IDS."""
    count = outbox.retry(ids or None)
    if as_json:
        print_json([{"count": count}])
    else:
        click.echo(f"{count} will be tried again")


@command.command(name="reset")
@click.option("--yes", is_flag=True, help="Do not ask.")
@outbox_options
def reset(outbox: Outbox, yes: bool) -> None:
    """Publish all that is in an outbox anew.

    This is for a database that was restored from a backup. What was published after the backup was made is published
    again. No relay may run meanwhile.
    """
    ask("Publish all rows that are in the table, some perhaps again?", yes=yes)
    outbox.reset()

"""`vibemq queue`: list, declare, show, purge and delete queues."""

import sys

import click

from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.output import print_json, print_table

COLUMNS = ("name", "ready", "unacked", "waiting", "bytes", "consumers")


@click.group(name="queue")
def command() -> None:
    """List, declare, show, purge and delete queues."""


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each queue, with its settings.")
@broker_options
def list_queues(broker: Broker, as_json: bool) -> None:
    """List all queues."""
    queues = broker.run("queue list", lambda client: client.list_queues())
    if as_json:
        print_json(queues)
    else:
        print_table(COLUMNS, [[queue[column] for column in COLUMNS] for queue in queues])


@command.command(name="declare")
@click.argument("queue")
@click.option("--mode", help="How messages are handed out: round-robin.")
@click.option("--max-attempts", type=click.IntRange(min=0), help="Failed attempts before the dead letters; 0: no end.")
@click.option("--lease", metavar="DURATION", help='How long a consumer may hold a message, such as "30s".')
@click.option("--retry-delay", metavar="DURATION", help='How long a failed message waits, such as "5s".')
@click.option("--dead-letter-queue", metavar="NAME", help="Where dead letters go; default: QUEUE.dlq.")
@click.option("--max-length", type=click.IntRange(min=0), help="Messages above which publishes are refused.")
@click.option("--max-bytes", type=click.IntRange(min=0), help="Bytes above which publishes are refused.")
@click.option("--json", "as_json", is_flag=True, help="Print the queue as a JSON line.")
@broker_options
def declare(
    broker: Broker,
    queue: str,
    mode: str | None,
    max_attempts: int | None,
    lease: str | None,
    retry_delay: str | None,
    dead_letter_queue: str | None,
    max_length: int | None,
    max_bytes: int | None,
    as_json: bool,
) -> None:
    """Create QUEUE, or check that it has these settings."""
    declared = broker.run(
        "queue declare",
        lambda client: client.declare(
            queue,
            mode=mode,
            max_attempts=max_attempts,
            lease=lease,
            retry_delay=retry_delay,
            dead_letter_queue=dead_letter_queue,
            max_length=max_length,
            max_bytes=max_bytes,
        ),
    )
    _print_queue(declared, as_json=as_json)


@command.command(name="show")
@click.argument("queue")
@click.option("--json", "as_json", is_flag=True, help="Print the queue as a JSON line.")
@broker_options
def show(broker: Broker, queue: str, as_json: bool) -> None:
    """Show the counts and settings of QUEUE."""
    _print_queue(broker.run("queue show", lambda client: client.show_queue(queue)), as_json=as_json)


@command.command(name="purge")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the count as a JSON line.")
@broker_options
def purge(broker: Broker, queue: str, yes: bool, as_json: bool) -> None:
    """Throw away what is ready or waits for its time in QUEUE."""
    _ask(f"Throw away all messages of {queue!r} that no consumer holds?", yes=yes)
    count = broker.run("queue purge", lambda client: client.purge(queue))
    _print_count("purged", queue, count, as_json=as_json)


@command.command(name="delete")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the count as a JSON line.")
@broker_options
def delete(broker: Broker, queue: str, yes: bool, as_json: bool) -> None:
    """Delete QUEUE and all it holds."""
    _ask(f"Delete {queue!r} and all of its messages?", yes=yes)
    count = broker.run("queue delete", lambda client: client.delete(queue))
    _print_count("deleted", queue, count, as_json=as_json)


def _ask(question: str, *, yes: bool) -> None:
    """Ask where there is somebody to answer; a script has made up its mind."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


def _print_queue(queue: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json([queue])
        return
    settings = queue.get("settings")
    facts = {name: value for name, value in queue.items() if name not in {"name", "settings"}}
    facts |= settings if isinstance(settings, dict) else {}
    print_table(("queue", str(queue.get("name"))), list(facts.items()))


def _print_count(done: str, queue: str, count: int, *, as_json: bool) -> None:
    if as_json:
        print_json([{"queue": queue, "count": count}])
    else:
        click.echo(f"{done} {queue}: {count} messages")

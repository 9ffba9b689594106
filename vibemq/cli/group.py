"""`vibemq group`: the groups of queues that fan out."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from vibemq.cli.asking import ask
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.examples import examples
from vibemq.cli.output import print_json, print_table
from vibemq.cli.parameters import POSITION
from vibemq.client import StartAt
from vibemq.errors import UnknownGroup
from vibemq.history.printable import plain

COLUMNS: Final = ("group", "ready", "unacked", "waiting", "consumers")

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(name="group")
def command() -> None:
    """List, move and delete the groups of a queue that fans out.

    Each group gets every message of the queue, and works through them at its own pace. A group is made by its first
    consumer: `vibemq consume QUEUE --group NAME --from head`.
    """


@command.command(name="list")
@click.argument("queue")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each group.")
@broker_options
def list_groups(broker: Broker, queue: str, as_json: bool) -> None:
    """List the groups of QUEUE, and what each still has before it.

    A name that begins with $ is the broker's: of a consumer that named no group. It is deleted a minute after it.
    """
    groups = groups_of(broker.run("group list", lambda client: client.show_queue(queue)))
    if as_json:
        print_json(groups)
    else:
        print_groups(groups)


def groups_of(queue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of a queue, from what show_queue() says of it.

    Raises:
        UnknownGroup: it is of a mode that has none.
    """
    groups = queue.get("groups")
    if not isinstance(groups, list):
        raise UnknownGroup(
            f"queue {queue.get('name')!r} has no groups, as it has mode {queue.get('mode')}: all of its consumers "
            "share its messages. Declare one with --mode fan-out for groups"
        )
    return groups


def print_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Print groups as a table."""
    print_table(COLUMNS, [[group.get("name"), *(group.get(name) for name in COLUMNS[1:])] for group in groups])


@command.command(
    name="seek",
    epilog=examples(
        "vibemq group seek events billing --to head", "vibemq group seek events billing --to 2026-11-23T14:03:00Z"
    ),
)
@click.argument("queue")
@click.argument("group")
@click.option(
    "--to",
    type=POSITION,
    required=True,
    metavar="PLACE",
    help="tail, head, a sequence, or a time (RFC 3339, or 10m for ten minutes ago).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the sequence as a JSON line.")
@broker_options
def seek(broker: Broker, queue: str, group: str, to: StartAt, as_json: bool) -> None:
    """Let GROUP of QUEUE go on from another place.

    Backwards it gets again what the queue still has, forwards it never gets what is skipped. What its consumers hold is
    taken from them.
    """
    sequence = broker.run("group seek", lambda client: client.seek(queue, group, to))
    if as_json:
        print_json([{"queue": queue, "group": group, "sequence": sequence}])
    else:
        click.echo(f"{plain(group)} of {plain(queue)} goes on at sequence {sequence}")


@command.command(name="delete")
@click.argument("queue")
@click.argument("group")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print its name as a JSON line.")
@broker_options
def delete(broker: Broker, queue: str, group: str, yes: bool, as_json: bool) -> None:
    """Delete GROUP of QUEUE, and end its consumers. What it had before it is lost to it."""
    ask(f"Delete group {group!r} of {queue!r}?", yes=yes)
    broker.run("group delete", lambda client: client.delete_group(queue, group))
    if as_json:
        print_json([{"queue": queue, "group": group}])
    else:
        click.echo(f"deleted {plain(group)} of {plain(queue)}")

"""`vibemq queue`: everything about queues but their messages, groups and dead letters."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import click

import vibemq
from vibemq.cli.asking import ask
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.examples import examples
from vibemq.cli.group import print_groups
from vibemq.cli.output import print_json, print_table
from vibemq.cli.parameters import DURATION
from vibemq.cli.queue_settings import in_words, settings_options, settings_rows
from vibemq.durations import milliseconds, text_of
from vibemq.errors import DeclareConflict
from vibemq.history.printable import plain
from vibemq.history.times import rfc3339

COLUMNS: Final = ("name", "mode", "ready", "unacked", "waiting", "groups", "consumers", "dead", "bytes")
DELETED_COLUMNS: Final = ("name", "mode", "messages", "bytes", "until")
SPARE: Final = ("bytes", "waiting", "mode", "groups", "consumers")
NO_FACTS: Final = frozenset({"name", "settings", "groups", "differences"})
"""What of a queue is no plain fact."""
CALLED: Final = {"dead_letters": "is_dlq"}
"""Facts that a table calls otherwise: "dead_letters no" reads as if the queue had none."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print it as a JSON line.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(name="queue")
def command() -> None:
    """List, declare, show, change, rename, bind, purge, delete and undelete queues."""


# --- looking


@command.command(name="list")
@click.option("--deleted", is_flag=True, help="Those that were deleted and can be brought back, and until when.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each queue, with its settings and groups.")
@broker_options
def list_queues(broker: Broker, deleted: bool, as_json: bool) -> None:
    """List all queues.

    In queues that fan out, ready, unacked and waiting are those of the group that is furthest behind. What is dead is
    what is in the queue's dead-letter queue, which is in the list, too.
    """
    if deleted:
        _list_deleted(broker, as_json=as_json)
        return
    queues = broker.run("queue list", lambda client: client.list_queues())
    if as_json:
        print_json(queues)
        return
    by_name = {queue["name"]: queue for queue in queues}
    print_table(COLUMNS, [_row(queue, by_name) for queue in queues], SPARE)


def _row(queue: Mapping[str, Any], by_name: Mapping[object, Mapping[str, Any]]) -> list[object]:
    groups = queue.get("groups")
    dead = by_name.get(dead_letter_queue(queue))
    more = {"groups": "" if groups is None else len(groups), "dead": 0 if dead is None else dead["messages"]}
    return [more.get(column, queue.get(column)) for column in COLUMNS]


def _list_deleted(broker: Broker, *, as_json: bool) -> None:
    queues = broker.run("queue list", lambda client: client.list_deleted())
    found: list[dict[str, object]] = []
    for queue in queues:
        until_us = queue.pop("until_us", 0)
        found.append(queue | {"until": rfc3339(until_us if isinstance(until_us, int) else 0)})
    if as_json:
        print_json(found)
    else:
        print_table(DELETED_COLUMNS, [[queue.get(column) for column in DELETED_COLUMNS] for queue in found])


def dead_letter_queue(queue: Mapping[str, Any]) -> str:
    """The name of the queue that the dead letters of this one go to, which need not be there yet; empty: nowhere."""
    name = str(queue["name"])
    return str(queue["settings"]["dead_letter_queue"] or ("" if name.endswith(".dlq") else f"{name}.dlq"))


@command.command(name="show")
@click.argument("queue")
@json_option
@broker_options
def show(broker: Broker, queue: str, as_json: bool) -> None:
    """Show the counts and settings of QUEUE, and its groups."""
    _print_queue(broker.run("queue show", lambda client: client.show_queue(queue)), as_json=as_json)


def _print_queue(queue: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json([queue])
        return
    facts = [in_words(CALLED.get(name, name), value) for name, value in queue.items() if name not in NO_FACTS]
    print_table(("queue", str(queue["name"])), [*facts, *settings_rows(queue["settings"])])
    if queue.get("groups"):
        click.echo()
        print_groups(queue["groups"])


# --- making and changing


@command.command(
    name="declare",
    epilog=examples(
        "vibemq queue declare orders --max-attempts 3 --lease 2m",
        "vibemq queue declare events --mode fan-out --ttl 7d",
        "vibemq queue declare orders --max-length 100000 --on-difference override",
    ),
)
@click.argument("queue")
@settings_options
@click.option(
    "--on-difference",
    type=click.Choice(["fail", "ignore", "override"]),
    default="fail",
    show_default=True,
    help="When the queue is there with other settings: exit with 1, leave it as it is, or change it.",
)
@json_option
@broker_options
def declare(
    broker: Broker,
    queue: str,
    on_difference: Literal["fail", "ignore", "override"],
    as_json: bool,
    **settings: Any,  # noqa: ANN401 - the options of the table
) -> None:
    """Create QUEUE, or check that it has these settings.

    What is not said is not compared. A difference is info (a description, which never fails), soft (can be changed
    while the queue is used) or hard (cannot: mode, order_by_key).
    """
    try:
        declared = broker.run(
            "queue declare", lambda client: client.declare(queue, on_difference=on_difference, **settings)
        )
    except DeclareConflict as conflict:
        raise DeclareConflict(f"{conflict.text} (see --on-difference)") from None
    _print_queue(declared, as_json=as_json)
    differences = declared.get("differences")
    if isinstance(differences, list) and differences and not as_json:
        click.echo()
        _print_differences(differences, overridden=on_difference == "override")


def _print_differences(differences: Sequence[Mapping[str, object]], *, overridden: bool) -> None:
    """The settings in which the live queue is, or was, not what was declared."""
    click.echo("it was there with other settings, and " + ("was changed:" if overridden else "stays as it is:"))
    rows = []
    for one in differences:
        setting = str(one.get("setting"))
        name, live = in_words(setting, one.get("live"))
        rows.append((name, live, in_words(setting, one.get("declared"))[1], one.get("class")))
    print_table(("setting", "live", "declared", "class"), rows)


@command.command(
    name="change",
    epilog=examples("vibemq queue change orders --max-attempts 5 --retry-delay 10s --retry-backoff exponential"),
)
@click.argument("queue")
@settings_options
@json_option
@broker_options
def change(
    broker: Broker,
    queue: str,
    as_json: bool,
    **settings: Any,  # noqa: ANN401 - the options of the table
) -> None:
    """Change settings of QUEUE while it is used. Those that are not named stay."""
    if all(value is None for value in settings.values()):
        raise click.UsageError("Say what to change, such as --lease 2m; `vibemq queue change --help` lists all.")
    _print_queue(broker.run("queue change", lambda client: client.change(queue, **settings)), as_json=as_json)


@command.command(name="rename")
@click.argument("old")
@click.argument("new")
@json_option
@broker_options
def rename(broker: Broker, old: str, new: str, as_json: bool) -> None:
    """Give the queue OLD the name NEW.

    Its messages, consumers, groups and bindings stay. Its dead letters go where they went before.
    """
    queue = broker.run("queue rename", lambda client: client.rename(old, new))
    if as_json:
        print_json([queue])
    else:
        click.echo(f"renamed {plain(old)} to {plain(new)}")


# --- topics


@command.command(
    name="bind",
    epilog=examples(
        "vibemq queue bind eu-orders 'orders.eu.*'",
        "vibemq queue bind everything '#'",
        "vibemq publish orders.eu.created 'two teas' --to-topic",
    ),
)
@click.argument("queue")
@click.argument("pattern")
@json_option
@broker_options
def bind(broker: Broker, queue: str, pattern: str, as_json: bool) -> None:
    """Let QUEUE have what goes to topics that match PATTERN.

    A topic is words between dots. In a pattern the word * stands for any one word, # for any number of words, also
    none. Quote it, or the shell may take it for names of files.
    """
    broker.run("queue bind", lambda client: client.bind(queue, pattern))
    _print_binding("bound", "to", queue, pattern, as_json=as_json)


@command.command(name="unbind")
@click.argument("queue")
@click.argument("pattern")
@json_option
@broker_options
def unbind(broker: Broker, queue: str, pattern: str, as_json: bool) -> None:
    """Let QUEUE have no more of what matches PATTERN. What it has stays."""
    if not broker.run("queue unbind", lambda client: client.unbind(queue, pattern)):
        click.echo(f"vibemq: queue {queue!r} is not bound to {pattern!r}: see `vibemq queue bindings`", err=True)
        raise click.exceptions.Exit(1)
    _print_binding("unbound", "from", queue, pattern, as_json=as_json)


def _print_binding(done: str, way: str, queue: str, pattern: str, *, as_json: bool) -> None:
    if as_json:
        print_json([{"queue": queue, "pattern": pattern}])
    else:
        click.echo(f"{done} {plain(queue)} {way} {plain(pattern)}")


@command.command(name="bindings")
@click.argument("queue", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each binding.")
@broker_options
def bindings(broker: Broker, queue: str | None, as_json: bool) -> None:
    """List the patterns that queues are bound to.

    With QUEUE only its own.
    """
    found = broker.run("queue bindings", lambda client: client.bindings(queue))
    if as_json:
        print_json({"queue": name, "pattern": pattern} for name, pattern in found)
    else:
        print_table(("queue", "pattern"), found)


# --- emptying and deleting


@command.command(name="purge")
@click.argument("queue")
@yes_option
@json_option
@broker_options
def purge(broker: Broker, queue: str, yes: bool, as_json: bool) -> None:
    """Throw away what is ready or waits for its time in QUEUE. It cannot be brought back."""
    ask(f"Throw away all messages of {queue!r} that no consumer holds?", yes=yes)
    count = broker.run("queue purge", lambda client: client.purge(queue))
    print_count("purged", queue, count, as_json=as_json)


@command.command(name="delete")
@click.argument("queue")
@click.option(
    "--grace",
    type=DURATION,
    metavar="DURATION",
    help="How long it can be brought back; 0: not at all.  [default: as it is set, 1h]",
)
@yes_option
@json_option
@broker_options
def delete(broker: Broker, queue: str, grace: float | str | None, yes: bool, as_json: bool) -> None:
    """Delete QUEUE. For its grace time `vibemq queue undelete` brings it back, whole."""
    ask(f"Delete {queue!r} and all of its messages?", yes=yes)
    count, grace_ms = broker.run("queue delete", lambda client: _delete(client, queue, grace))
    print_count("deleted", queue, count, as_json=as_json)
    if grace_ms and not as_json:
        click.echo(f"for {text_of(grace_ms)} `vibemq queue undelete` brings it back")


async def _delete(client: vibemq.Client, queue: str, grace: float | str | None) -> tuple[int, int]:
    """How many messages were in it, and for how long it can be brought back."""
    settings = (await client.show_queue(queue))["settings"]
    assert isinstance(settings, dict)
    grace_ms = settings.get("delete_grace_ms", 0) if grace is None else milliseconds(grace, "--grace")
    return await client.delete(queue, grace), grace_ms


@command.command(name="undelete")
@click.argument("queue")
@click.option("--as", "new", metavar="NEW", help="The name that it gets, when its own is taken.")
@json_option
@broker_options
def undelete(broker: Broker, queue: str, new: str | None, as_json: bool) -> None:
    """Bring the deleted QUEUE back, whole.

    It has its messages, groups, bindings and settings as before. Of several that had this name it is the one that was
    deleted last.
    """
    found = broker.run("queue undelete", lambda client: client.undelete(queue, new))
    if as_json:
        print_json([found])
    else:
        click.echo(f"brought back {plain(queue)}{f' as {plain(new)}' if new else ''}: {counted(found['messages'])}")


def print_count(done: str, queue: str, count: int, *, as_json: bool) -> None:
    """Tell how many messages something was done to."""
    if as_json:
        print_json([{"queue": queue, "count": count}])
    else:
        click.echo(f"{done} {plain(queue)}: {counted(count)}")


def counted(messages: object) -> str:
    """A number of messages in words."""
    return f"{messages} message{'' if messages == 1 else 's'}"

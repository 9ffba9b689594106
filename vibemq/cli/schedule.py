"""`vibemq schedule`: messages that the broker publishes by itself, again and again."""

import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, BinaryIO, Final

import click
import msgspec

import vibemq
from vibemq.cli.asking import ask
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.dlq import body_text, when
from vibemq.cli.examples import examples
from vibemq.cli.output import print_json, print_table
from vibemq.cli.parameters import COMING, DURATION, PRIORITY
from vibemq.cli.publish import read_headers
from vibemq.client import Schedule
from vibemq.durations import text_of
from vibemq.history.printable import plain

COLUMNS: Final = ("name", "when", "to", "next", "fired", "missed", "problem")
SPARE: Final = ("missed", "fired", "problem", "to")
MISFIRE: Final = ("skip", "once", "all")

json_option = click.option("--json", "as_json", is_flag=True, help="Print it as a JSON line.")


@click.group(name="schedule")
def command() -> None:
    """Set, list, show, pause, resume and delete schedules.

    A schedule publishes a message again and again. Each has the headers `schedule`, its name, and `scheduled_for`, the
    time that the message is for.
    """


# --- setting


@command.command(
    name="set",
    epilog=examples(
        "vibemq schedule set nightly reports '{\"kind\": \"daily\"}' --cron '30 2 * * *' --zone Europe/Berlin",
        "vibemq schedule set beat heartbeats --every 10s --misfire skip",
        "vibemq schedule set sale shop.sale begin --to-topic --cron '0 9 * * MON-FRI' --start 2026-12-01T00:00:00Z",
    ),
)
@click.argument("name")
@click.argument("queue")
@click.argument("payload", required=False)
@click.option("--cron", metavar="FIELDS", help="Minute, hour, day of month, month, day of week: '30 2 * * MON-FRI'.")
@click.option("--zone", default="UTC", show_default=True, metavar="ZONE", help="The time zone of --cron.")
@click.option("--every", type=DURATION, metavar="DURATION", help="Instead of --cron: how often, from 100ms on.")
@click.option("--start", type=COMING, metavar="TIME", help="Nothing before; --every counts from here.  [default: now]")
@click.option("--end", type=COMING, metavar="TIME", help="Nothing from then on.")
@click.option("--times", type=click.IntRange(min=1), metavar="N", help="So many messages, and then it is gone.")
@click.option(
    "--misfire",
    type=click.Choice(MISFIRE),
    default="once",
    show_default=True,
    help="What becomes of times at which the broker was away: left out, one message for all, or one for each.",
)
@click.option("--file", type=click.File("rb"), help="This file is the message, instead of PAYLOAD; - is stdin.")
@click.option(
    "--header", "headers", multiple=True, callback=read_headers, metavar="NAME=VALUE", help="For every message."
)
@click.option("--priority", type=PRIORITY, metavar="0-9|NAME", help="As of `vibemq publish`.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="How long each message may wait to be delivered.")
@click.option("--to-topic", is_flag=True, help="QUEUE is a topic: publish to every queue that is bound to it.")
@json_option
@broker_options
def set_schedule(
    broker: Broker,
    name: str,
    queue: str,
    payload: str | None,
    file: BinaryIO | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the arguments of set_schedule
) -> None:
    """Make the schedule NAME, or change it.

    It publishes PAYLOAD (by default nothing) to QUEUE, again and again.

    What is not said is as it is by default, also where the schedule was there. One that is said again in the same words
    goes on as if nothing was said. Another message alone changes none of its times; a paused one stays paused.
    """
    if payload is not None and file is not None:
        raise click.UsageError("Give either PAYLOAD or --file.")
    if (options["cron"] is None) == (options["every"] is None):
        raise click.UsageError("Give either --cron or --every.")
    body = file.read() if file is not None else os.fsencode(payload or "")

    async def ask_for(client: vibemq.Client) -> Schedule:
        return await client.set_schedule(name, queue, body, **options)

    _print_one(broker.run("schedule set", ask_for), as_json=as_json)


# --- looking


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each schedule, without its message.")
@broker_options
def list_schedules(broker: Broker, as_json: bool) -> None:
    """List all schedules.

    When they publish, where to, when next, and how it went so far.
    """
    found = broker.run("schedule list", lambda client: client.schedules())
    if as_json:
        print_json(_fields(one, whole=False) for one in found)
    else:
        print_table(COLUMNS, [_row(one) for one in found], SPARE)


@command.command(name="show")
@click.argument("name")
@json_option
@broker_options
def show(broker: Broker, name: str, as_json: bool) -> None:
    """Show the schedule NAME, with its message."""
    for one in broker.run("schedule show", lambda client: client.schedules(name)):
        _print_one(one, as_json=as_json)


# --- pausing and deleting


def _change(broker: Broker, what: str, call: Callable[[vibemq.Client], Awaitable[Schedule]], *, as_json: bool) -> None:
    found = broker.run(f"schedule {what}", call)
    if as_json:
        print_json([_fields(found)])
    elif found.paused:
        click.echo(f"{plain(found.name)} is paused")
    else:
        click.echo(f"{plain(found.name)} goes on, next at {_next(found)}")


@command.command(name="pause")
@click.argument("name")
@json_option
@broker_options
def pause(broker: Broker, name: str, as_json: bool) -> None:
    """Let NAME publish nothing until it is resumed. What would have been meanwhile is not made up for."""
    _change(broker, "pause", lambda client: client.pause_schedule(name), as_json=as_json)


@command.command(name="resume")
@click.argument("name")
@json_option
@broker_options
def resume(broker: Broker, name: str, as_json: bool) -> None:
    """Let NAME go on, at its next time from now."""
    _change(broker, "resume", lambda client: client.resume_schedule(name), as_json=as_json)


@command.command(name="delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print its name as a JSON line.")
@broker_options
def delete(broker: Broker, name: str, yes: bool, as_json: bool) -> None:
    """Delete the schedule NAME. What it has published stays."""
    ask(f"Delete schedule {name!r}?", yes=yes)
    broker.run("schedule delete", lambda client: client.delete_schedule(name))
    if as_json:
        print_json([{"name": name}])
    else:
        click.echo(f"deleted {plain(name)}")


# --- how they are shown


def _when(one: Schedule) -> str:
    """When it publishes, in the words of the command line."""
    if one.cron is None:
        return f"every {text_of(round((one.every or 0) * 1_000))}"
    return one.cron if one.zone == "UTC" else f"{one.cron} {one.zone}"


def _next(one: Schedule) -> str:
    return "paused" if one.paused else _moment(one.next_at)


def _moment(moment: datetime | None) -> str:
    """To the second; more than that where it is not a whole one."""
    if moment is None:
        return ""
    return when(moment).replace("Z", f".{moment.microsecond // 1_000:03}Z") if moment.microsecond else when(moment)


def _row(one: Schedule) -> list[object]:
    to = f"topic {one.queue}" if one.to_topic else one.queue
    return [one.name, _when(one), to, _next(one), one.fired, one.missed, one.problem]


def _fields(one: Schedule, *, whole: bool = True) -> dict[str, Any]:
    """A schedule for programs: durations are seconds, and its body is as that of a message."""
    fields: dict[str, Any] = {name: getattr(one, name) for name in one.__dataclass_fields__}
    body, headers = fields.pop("body"), fields.pop("headers")
    if whole:
        try:
            fields["body"] = body.decode()
        except UnicodeDecodeError:
            fields["body_base64"] = msgspec.to_builtins(body)
        fields["headers"] = headers
    return fields


def _print_one(one: Schedule, *, as_json: bool) -> None:
    if as_json:
        print_json([_fields(one)])
        return
    facts: list[tuple[str, object]] = [
        ("when", _when(one)),
        ("topic" if one.to_topic else "queue", one.queue),
        ("next", _next(one)),
        ("last", _moment(one.last_at)),
        ("start", _moment(one.start)),
        ("end", _moment(one.end)),
        ("times", "" if one.times is None else one.times),
        ("misfire", one.misfire),
        ("fired", one.fired),
        ("missed", one.missed),
        ("problem", one.problem),
        ("priority", one.priority),
        ("ttl", "" if one.ttl is None else text_of(round(one.ttl * 1_000))),
    ]
    print_table(("schedule", one.name), [fact for fact in facts if fact[1] != ""])
    if one.headers:
        click.echo()
        print_table(("header", "value"), list(one.headers.items()))
    if one.body:
        click.echo(f"\nbody\n{body_text(one.body)}")

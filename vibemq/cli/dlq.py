"""`vibemq dlq`: dead letters. Which there are and why, what is in them, sending them back to work."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

import vibemq
from vibemq.cli.asking import ask
from vibemq.cli.connecting import Broker, broker_options
from vibemq.cli.examples import examples
from vibemq.cli.output import message_fields, print_json, print_table
from vibemq.cli.parameters import LETTER, TIME
from vibemq.cli.progress_bar import ProgressBar
from vibemq.cli.queue import counted, print_count
from vibemq.cli.redrive import Redrive
from vibemq.client import DeadLetter, Redriven
from vibemq.errors import InvalidRequest, UnknownQueue, VibeMQError
from vibemq.history.printable import plain
from vibemq.history.times import rfc3339

COLUMNS: Final = ("sequence", "id", "reason", "from", "attempts", "size", "when", "error")
SPARE: Final = ("id", "size", "attempts")
UNROUTABLE: Final = "unroutable"
REASONS: Final = ("max-attempts", "rejected", "expired", "overflow", UNROUTABLE)
PAGE: Final = 500
BODY_SHOWN: Final = 4096
"""Bytes of a body that people see, ..."""
BINARY_SHOWN: Final = 256
"""... and of one that is no text."""

_FILTERS: Final = (
    click.option("--reason", type=click.Choice(REASONS), help="Only those with this reason."),
    click.option("--source", metavar="QUEUE", help="Only those that came from this queue."),
    click.option("--error", metavar="TEXT", help="Only those whose last error has this text in it."),
    click.option("--since", type=TIME, metavar="TIME", help="Only what died since then: RFC 3339, or 10m (ago)."),
    click.option("--until", type=TIME, metavar="TIME", help="Only what died before then."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters to a command, which gets those that the client takes, by the same names."""
    return reduce(lambda decorated, option: option(decorated), reversed(_FILTERS), command)


@click.group(name="dlq")
def command() -> None:
    """List, show, redrive and purge dead letters.

    QUEUE is a dead-letter queue (by default the name of the queue they came from, and .dlq), or the queue that they
    came from. A letter is named by its sequence, or by the id of the message.
    """


# --- looking


@command.command(
    name="list",
    epilog=examples(
        "vibemq dlq list orders", "vibemq dlq list orders --reason max-attempts --error timeout --since 1h"
    ),
)
@click.argument("queue")
@filter_options
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="At most so many.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each, with headers and body.")
@broker_options
def list_letters(broker: Broker, queue: str, count: int | None, as_json: bool, **filters: Any) -> None:  # noqa: ANN401 - the filters
    """List the dead letters of QUEUE, oldest first.

    For each: why it is dead, where it came from, how many attempts it had, how many bytes it has, when it died, and the
    last error.
    """
    rows: list[list[object]] = []

    async def show(client: vibemq.Client) -> None:
        async for page in pages(client, queue, count, **filters):
            if as_json:
                print_json(map(letter_fields, page))
            else:
                rows.extend(map(_row, page))

    broker.run("dlq list", show)
    if not as_json:
        print_table(COLUMNS, rows, SPARE)


async def pages(
    client: vibemq.Client,
    queue: str,
    count: int | None = None,
    **filters: Any,  # noqa: ANN401 - the filters
) -> AsyncIterator[list[DeadLetter]]:
    """Dead letters that pass the filters, some at a time, at most `count`."""
    start, left = 0, count
    while left is None or left > 0:
        page = await client.dead_letters(queue, start=start, count=PAGE if left is None else min(PAGE, left), **filters)
        if not page:
            return
        yield page
        start = page[-1].sequence + 1
        left = None if left is None else left - len(page)


def letter_fields(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for programs: the message as `consume --json` shows it, and why it is dead."""
    return message_fields(letter) | {
        "dead": {
            "reason": letter.reason,
            "queue": letter.source,
            "attempts": letter.attempts,
            "error": letter.error,
            "at": letter.dead_at,
        }
    }


def _row(letter: DeadLetter) -> list[object]:
    facts = str(letter.sequence), letter.id, letter.reason, letter.source or ""  # a name, so not 1,234
    return [*facts, letter.attempts, len(letter.body), when(letter.dead_at), letter.error]


def when(moment: datetime) -> str:
    """A time as people read it and `--since` takes it, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def find(client: vibemq.Client, queue: str, which: int | str) -> list[DeadLetter]:
    """The dead letters of that sequence or id: more than one where several groups gave up the same message.

    Raises:
        InvalidRequest: there is none.
    """
    if isinstance(which, int):
        found = [one for one in await client.dead_letters(queue, start=which, count=1) if one.sequence == which]
    else:
        found = [one async for page in pages(client, queue) for one in page if one.id == which]
    if not found:
        raise InvalidRequest(f"there is no dead letter {which} of {queue!r} (any more): see `vibemq dlq list`")
    return found


@command.command(
    name="show", epilog=examples("vibemq dlq show orders 7", "vibemq dlq show orders 12-0 --data vibemq-data")
)
@click.argument("queue")
@click.argument("which", type=LETTER, metavar="SEQUENCE|ID")
@click.option(
    "--data", type=click.Path(path_type=Path), help="The broker's data folder, if it is here: tell the whole story."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as a JSON line.")
@broker_options
def show(broker: Broker, queue: str, which: int | str, data: Path | None, as_json: bool) -> None:
    """Show one dead letter of QUEUE.

    Why it is dead, its headers and its body; with --data also all that happened to it.
    """
    found = broker.run("dlq show", lambda client: find(client, queue, which))
    if as_json:
        print_json(map(letter_fields, found))
        return
    for place, letter in enumerate(found):
        if place:
            click.echo()
        _print_letter(letter, data)


def _print_letter(letter: DeadLetter, data: Path | None) -> None:
    facts = [
        ("id", letter.id),
        ("reason", letter.reason),
        ("from", letter.source or ("no queue" if letter.reason == UNROUTABLE else "a queue that is gone")),
        ("attempts", letter.attempts),
        ("error", letter.error),
        ("published", when(letter.published_at)),
        ("dead since", when(letter.dead_at)),
        ("size", len(letter.body)),
    ]
    print_table(("sequence", str(letter.sequence)), facts)
    if letter.headers:
        click.echo()
        print_table(("header", "value"), list(letter.headers.items()))
    click.echo(f"\nbody\n{body_text(letter.body)}")
    if data is not None:
        click.echo()
        _print_story(letter, data)


def body_text(body: bytes) -> str:
    """A body that cannot do anything to a terminal; what is no text is shown by its escapes."""
    shown = BODY_SHOWN if _is_text(body) else BINARY_SHOWN
    lines = [plain(line) for line in body[:shown].decode("utf-8", "backslashreplace").split("\n")]
    if len(body) > shown:
        lines.append(f"... and {len(body) - shown} bytes more: --json shows all")
    return "\n".join(lines)


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _print_story(letter: DeadLetter, data: Path) -> None:
    from vibemq.history.audit import Filter, select  # noqa: PLC0415 - reading the log is the exception here
    from vibemq.history.source import History  # noqa: PLC0415
    from vibemq.history.story import MessageId  # noqa: PLC0415 - likewise

    with ProgressBar("reading the log") as bar:
        records = History.open(data).records(progress=bar.update)
        entries = list(select(records, Filter(message=MessageId.parse(letter.id))))
    rows = [(rfc3339(one.time_us), one.kind, one.queue or "", one.text) for one in entries]
    print_table(("time", "kind", "queue", "what"), rows)


# --- back to work, or away


@command.command(
    name="redrive",
    epilog=examples(
        "vibemq dlq redrive orders 7 9",
        "vibemq dlq redrive orders --error timeout --since 1h --dry-run",
        "vibemq dlq redrive orders --all --rate 100",
        "vibemq dlq redrive orders.dlq --reason rejected --to orders.by-hand",
    ),
)
@click.argument("queue")
@click.argument("which", type=LETTER, nargs=-1, metavar="[SEQUENCE|ID]...")
@click.option("--all", "all_of_them", is_flag=True, help="All that there are.")
@filter_options
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="At most so many, oldest first.")
@click.option("--to", metavar="QUEUE", help="To this queue, not to those that they came from.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Messages a second.")
@click.option("--dry-run", is_flag=True, help="Tell what would be moved, and move nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was moved as a JSON line.")
@broker_options
def redrive(
    broker: Broker,
    queue: str,
    which: tuple[int | str, ...],
    all_of_them: bool,
    count: int | None,
    to: str | None,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
    **filters: Any,  # noqa: ANN401 - the filters
) -> None:
    """Send dead letters of QUEUE back to work.

    They go to the queues that they came from, and are ready again there, behind what is. Say which: by sequence or id,
    by filters, or --all. Their attempts count on from those before. Ctrl-C stops it; what was moved until then stays
    moved.
    """
    filtered = count is not None or any(value is not None for value in filters.values())
    if bool(which) == (all_of_them or filtered):
        raise click.UsageError("Say which: either sequences or ids, or filters, or --all.")
    work = Redrive(queue, to, rate, dry_run=dry_run)
    missing: list[str] = []

    async def move(client: vibemq.Client) -> None:
        if which:
            missing.extend(await _these(client, queue, which, work))
        else:
            await work.matching(client, count, **filters)

    try:
        broker.run("dlq redrive", move)
    except (VibeMQError, click.exceptions.Exit):
        if work.done.moved and not dry_run:
            _print_redriven(queue, work.done, dry_run=dry_run, as_json=as_json)
            click.echo("vibemq: it was stopped there; the rest is where it was", err=True)
        raise
    _print_redriven(queue, work.done, dry_run=dry_run, as_json=as_json)
    if missing:
        click.echo(f"vibemq: not there (any more): {', '.join(missing)}; see `vibemq dlq list`", err=True)
    if work.done.homeless:
        why = "the queue that they came from is gone, or they came from none"
        click.echo(f"vibemq: {work.done.homeless} not moved, as {why}: choose one with --to", err=True)
    if missing or work.done.homeless:
        raise click.exceptions.Exit(1)


async def _these(client: vibemq.Client, queue: str, which: Sequence[int | str], work: Redrive) -> list[str]:
    """Redrive dead letters by sequence or id; tells which of them are not there."""
    ids = {one for one in which if isinstance(one, str)}
    sequences = {one for one in which if isinstance(one, int)}
    if ids:  # only a look at all of them finds these
        found = [letter async for page in pages(client, queue) for letter in page if letter.id in ids]
        sequences.update(letter.sequence for letter in found)
        ids -= {letter.id for letter in found}
    missing = await work.these(client, sorted(sequences))
    return [*map(str, missing), *sorted(ids)]


def _print_redriven(queue: str, done: Redriven, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        facts = {"queue": queue, "dry_run": dry_run, "count": done.moved, "targets": done.targets}
        print_json([facts | {"homeless": done.homeless}])
        return
    where = ", ".join(f"{count} to {plain(target)}" for target, count in sorted(done.targets.items()))
    click.echo(f"{'would move' if dry_run else 'moved'} {counted(done.moved)}{f': {where}' if where else ''}")


@command.command(name="purge")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the count as a JSON line.")
@broker_options
def purge(broker: Broker, queue: str, yes: bool, as_json: bool) -> None:
    """Throw away the dead letters of QUEUE. They cannot be brought back."""
    name, count = broker.run("dlq purge", lambda client: _graveyard(client, queue))
    if count:
        ask(f"Throw away the {count} dead letters in {name!r}?", yes=yes)
        count = broker.run("dlq purge", lambda client: client.purge(name))
    print_count("purged", name, count, as_json=as_json)


async def _graveyard(client: vibemq.Client, queue: str) -> tuple[str, int]:
    """The dead-letter queue that is meant, and how many messages it has.

    Raises:
        UnknownQueue: there is no queue of that name, and no dead letters of one.
        InvalidRequest: the queue has them in one that others may share.
    """
    name, found = queue, await _shown(client, queue)
    if found is None or not found["dead_letters"]:
        settings = {} if found is None else found["settings"]
        if settings.get("dead_letter_queue"):
            shared = settings["dead_letter_queue"]
            raise InvalidRequest(
                f"the dead letters of {queue!r} are in {shared!r}, where those of other queues may be, too: "
                f"`vibemq dlq purge` takes that name, and purges all"
            )
        name = f"{queue}.dlq"
        dead = await _shown(client, name)
        if found is None and dead is None:
            raise UnknownQueue(f"there is no queue {queue!r}, and no dead letters of one")
        found = dead
    return name, found["messages"] if found is not None and found["dead_letters"] else 0


async def _shown(client: vibemq.Client, queue: str) -> dict[str, Any] | None:
    try:
        return await client.show_queue(queue)
    except UnknownQueue:
        return None

"""`vibemq audit`: the events of the log, for people and for programs."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import click

from vibemq.cli.output import print_json
from vibemq.cli.progress_bar import ProgressBar
from vibemq.errors import UsageError
from vibemq.history.audit import KINDS, Entry, Filter, select
from vibemq.history.printable import plain
from vibemq.history.source import History
from vibemq.history.story import MessageId
from vibemq.history.times import parse_time, rfc3339
from vibemq.history.wording import facts

PAGE = 500
"""So many lines are printed at a time, and decide how wide the columns are."""

Row = tuple[str, str, str, str, str, str]
HEADER: Row = ("offset", "time", "kind", "queue", "client", "what")


def _kinds(_: click.Context, __: click.Parameter, text: str) -> frozenset[int]:
    names = [name for name in text.replace(" ", "").split(",") if name]
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"there is no kind of event {name!r}; there are {', '.join(sorted(KINDS))}")
    return frozenset(KINDS[name] for name in names)


def _message(_: click.Context, __: click.Parameter, text: str | None) -> MessageId | None:
    try:
        return None if text is None else MessageId.parse(text)
    except UsageError as error:
        raise click.BadParameter(error.text) from None


def _time(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_time(text, time.time_ns() // 1000)
    except UsageError as error:
        raise click.BadParameter(error.text) from None


@click.command(name="audit")
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("vibemq-data"), show_default=True, help="The data folder."
)
@click.option("--queue", help="Events about this queue, and what came to it: from topics, as dead letters.")
@click.option("--client", help="Events of this client: its name, its address, or # and the connection's number.")
@click.option("--message", callback=_message, metavar="ID", help="All that happened to one message, such as 12-0.")
@click.option(
    "--kind", "kinds", callback=_kinds, default="", metavar="KIND,...", help="Only these: published,acked,..."
)
@click.option("--since", callback=_time, metavar="TIME", help='From then on: 2026-11-23T14:03:00Z, or "5m" (ago).')
@click.option("--until", callback=_time, metavar="TIME", help="Before then.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many events.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each event.")
def command(
    data: Path,
    queue: str | None,
    client: str | None,
    message: MessageId | None,
    kinds: frozenset[int],
    since: int | None,
    until: int | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the events of the log, oldest first: when, what, which queue, whose doing.

    Bodies of messages are never shown. The log is read from its start, as the names of queues and clients come from the
    events that introduced them. Nothing is locked or changed: a broker may be running on the folder.
    """
    wanted = Filter(queue, client, message, kinds, since or 0, until)
    with ProgressBar("reading the log") as bar:
        entries = islice(select(History.open(data).records(progress=bar.update), wanted), limit)
        pages = _pages(entries)
        page = next(pages, [])
    shown, widths = 0, [len(name) for name in HEADER]
    if not as_json:
        widths = _print_rows([HEADER, *map(_row, page)], widths)
    while page:
        if shown and not as_json:
            widths = _print_rows(list(map(_row, page)), widths)
        elif as_json:
            print_json(map(_facts, page))
        shown += len(page)
        page = next(pages, [])
    if shown == limit:
        click.echo(f"stopped after {limit} events (--limit); there may be more", err=True)


def _pages(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    left = iter(entries)
    while page := list(islice(left, PAGE)):
        yield page


def _row(entry: Entry) -> Row:
    client = "" if entry.client is None else plain(str(entry.client))
    return str(entry.offset), rfc3339(entry.time_us), entry.kind, plain(entry.queue or ""), client, entry.text


def _print_rows(rows: list[Row], widths: list[int]) -> list[int]:
    """Print aligned columns, at least so wide; returns how wide they were."""
    widths = [max(width, *(len(row[at]) for row in rows)) for at, width in enumerate(widths[:-1])]
    for first, *middle, last in rows:
        cells = [
            first.rjust(widths[0]),
            *(cell.ljust(width) for cell, width in zip(middle, widths[1:], strict=True)),
            last,
        ]
        click.echo("  ".join(cells).rstrip())
    return [*widths, 0]


def _facts(entry: Entry) -> dict[str, object]:
    client = entry.client
    return {
        "offset": entry.offset,
        "time": rfc3339(entry.time_us),
        "kind": entry.kind,
        "queue": entry.queue,
        "group": entry.group,
        "client": None if client is None else client.name,
        "address": getattr(entry.event, "address", None) if client is None else client.address,
        "text": entry.text,
        "facts": facts(entry.event),
    }

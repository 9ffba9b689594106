"""What commands print: JSON lines for programs, tables and lines for people."""

import base64
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol

import click
import msgspec

from vibemq.errors import InvalidRequest

FRAME: Final = 3
"""What a frame adds to the width of a column."""
UNBROKEN: Final = 20
"""Cells of that width are never broken; wider ones are, where there is no room."""

_encoder = msgspec.json.Encoder()


class Printable(Protocol):
    """A message, received or peeked at."""

    @property
    def body(self) -> bytes:
        """What was published."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """What was given with it."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def queue(self) -> str:
        """Where it was."""

    @property
    def sequence(self) -> int:
        """Its number there."""

    @property
    def attempt(self) -> int:
        """Which attempt this is."""

    @property
    def redelivered(self) -> bool:
        """Whether it may have been sent before."""

    @property
    def published_at(self) -> datetime:
        """When it was stored."""


def json_line(value: object) -> bytes:
    """One line of JSON; times become RFC 3339 text, bytes base64."""
    return _encoder.encode(value) + b"\n"


def message_line(message: Printable) -> bytes:
    """A message in the shape of the public contract, as one line of JSON."""
    return json_line(message_fields(message))


def message_fields(message: Printable) -> dict[str, Any]:
    """A message in the shape of the public contract."""
    fields: dict[str, Any] = {"id": message.id, "queue": message.queue, "sequence": message.sequence}
    fields |= body_fields(message.body)
    try:
        fields["headers"] = dict(message.headers)
    except InvalidRequest as problem:  # a producer's mistake stays visible and costs nobody else's message
        fields["headers"] = {}
        fields["headers_problem"] = problem.text
    fields["attempt"] = message.attempt
    fields["redelivered"] = message.redelivered
    fields["published_at"] = message.published_at
    return fields


def body_fields(body: bytes) -> dict[str, Any]:
    """A body as text, or where it is none as base64."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def print_json(values: Iterable[object]) -> None:
    """Print one line of JSON for each value, at once."""
    sys.stdout.buffer.write(b"".join(map(json_line, values)))
    sys.stdout.buffer.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], spare: Sequence[str] = ()) -> None:
    """Print a table: framed on a terminal, bare columns elsewhere. Columns of numbers are aligned to the right.

    A terminal that is too narrow for all columns goes without those that are `spare`, the first of them first.
    """
    framed = sys.stdout.isatty()
    cells = [[_text(value, grouped=framed) for value in row] for row in rows]
    numeric = [_are_numbers([row[at] for row in rows if row[at] != ""]) for at in range(len(columns))]
    lines = [list(columns), *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    if framed:
        _print_framed(lines, widths, numeric, _fitting(columns, widths, spare))
        return
    for line in lines:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _fitting(columns: Sequence[str], widths: Sequence[int], spare: Sequence[str]) -> list[int]:
    """The places of the columns that are shown on this terminal."""
    shown, room = list(range(len(columns))), shutil.get_terminal_size().columns
    for name in spare:
        if sum(min(widths[at], UNBROKEN) + FRAME for at in shown) + 1 <= room:
            break
        shown.remove(columns.index(name))
    return shown


def _print_framed(
    lines: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[bool], shown: Sequence[int]
) -> None:
    from rich.console import Console  # noqa: PLC0415 - costs more than most commands take
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table()  # of Text: a name with brackets is no markup
    for at in shown:
        justify: Literal["right", "left"] = "right" if numeric[at] else "left"
        table.add_column(Text(lines[0][at]), justify=justify, overflow="fold", no_wrap=widths[at] <= UNBROKEN)
    for line in lines[1:]:
        table.add_row(*(Text(line[at]) for at in shown))
    Console().print(table)


def _text(value: object, *, grouped: bool) -> str:
    if grouped and _is_number(value):
        return f"{value:,}"
    text = str(value)
    return text if text.isprintable() else repr(text)


def _are_numbers(values: Sequence[object]) -> bool:
    return bool(values) and all(map(_is_number, values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

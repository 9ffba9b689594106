"""What may be written on the command line where a plain number or text will not do: durations, times, places, ..."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from vibemq.client import Priority, StartAt
from vibemq.durations import milliseconds
from vibemq.errors import UsageError
from vibemq.history.times import parse_time

_PRIORITIES: Final[Mapping[str, Priority]] = {
    "low": "low",
    "normal": "normal",
    "high": "high",
    "critical": "critical",
    **{str(number): number for number in range(10)},
}
_ENDS: Final[Mapping[str, StartAt]] = {"tail": "tail", "head": "head"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_ID: Final = re.compile(r"[0-9]+-[0-9]+")
_NUMBER_MAX: Final = (1 << 63) - 1


def _moment(text: str) -> datetime:
    """The time that `text` stands for.

    Raises:
        UsageError: for none.
    """
    try:
        return _EPOCH + timedelta(microseconds=parse_time(text, time.time_ns() // 1000))
    except OverflowError:
        raise UsageError(f"{text!r} lies behind the year 9999") from None


class _Time(click.ParamType[datetime]):
    """RFC 3339, or how long ago."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that was written."""
        try:
            return _moment(str(value))
        except UsageError as error:
            self.fail(error.text, param, ctx)


class _Coming(click.ParamType[datetime]):
    """RFC 3339, or in how long."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that was written."""
        text = str(value).strip()
        try:
            wait_ms = milliseconds(text, "it")
        except UsageError:
            wait_ms = 0
        try:
            return datetime.now(UTC) + timedelta(milliseconds=wait_ms) if wait_ms else _moment(text)
        except (UsageError, OverflowError):
            self.fail(f"{text!r} is no time: write 2026-11-23T14:03:00Z, or 5m for in five minutes", param, ctx)


class _Duration(click.ParamType[float | str]):
    """A number of seconds, or text such as "30s"; what is longer than `cap_ms`, if it is given, counts as that."""

    name = "duration"

    def __init__(self, cap_ms: int | None = None) -> None:
        self._cap_ms = cap_ms

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """The duration that was written."""
        text = str(value).strip()
        duration = float(text) if _NUMBER.fullmatch(text) else text
        try:
            milliseconds(duration, "it", self._cap_ms)
        except UsageError:
            self.fail(f'{text!r} is no duration: write "250ms", "30s", "5m", "2h", "7d", or seconds', param, ctx)
        return duration


class _Position(click.ParamType[StartAt]):
    """A place in a queue: "tail", "head", a sequence, or a time."""

    name = "position"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> StartAt:
        """The place that was written."""
        text = str(value).strip()
        if text in _ENDS:
            return _ENDS[text]
        if text.isdecimal() and text.isascii():
            return self._sequence(text, param, ctx)
        try:
            return _moment(text)
        except UsageError:
            self.fail(
                f"{text!r} is no place in a queue: write tail, head, a sequence such as 120, a time such as "
                "2026-11-23T14:03:00Z, or 10m for ten minutes ago",
                param,
                ctx,
            )

    def _sequence(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if len(text) > len(str(_NUMBER_MAX)) or int(text) > _NUMBER_MAX:
            self.fail(f"{text} is larger than any sequence", param, ctx)
        return int(text)


class _Priority(click.ParamType[Priority]):
    """0 to 9, or a name."""

    name = "priority"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Priority:
        """The priority that was written."""
        priority = _PRIORITIES.get(str(value))
        if priority is None:
            self.fail(f"{value!r} is no priority: write 0 to 9, or low, normal, high or critical", param, ctx)
        return priority


class _Letter(click.ParamType[int | str]):
    """A message of a queue: its sequence there as a number, or its id as text."""

    name = "message"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """What was written."""
        text = str(value).strip()
        if text.isdecimal() and text.isascii() and len(text) < len(str(_NUMBER_MAX)):
            return int(text)
        if not _ID.fullmatch(text):
            self.fail(f"{text!r} is neither a sequence, such as 7, nor the id of a message, such as 12-0", param, ctx)
        return text


DURATION: Final = _Duration()
DELAY: Final = _Duration(_NUMBER_MAX // 1_000)
TIME: Final = _Time()
COMING: Final = _Coming()
POSITION: Final = _Position()
PRIORITY: Final = _Priority()
LETTER: Final = _Letter()

"""The settings of a queue on the command line: one table, from which options are made and by which people read them.

A setting is called as in the client, without a unit: the broker's `retry_delay_ms` is `--retry-delay 5s`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import click

from vibemq.cli.parameters import DURATION
from vibemq.declaration import Backoff, Mode, Overflow
from vibemq.durations import text_of

NUMBER: Final = click.IntRange(min=0)
YES_OR_NO: Final = "yes or no"


class Setting(NamedTuple):
    """One setting. `form`: one of several words, a number, a duration, yes or no, or a text for which this stands."""

    name: str
    form: str | click.ParamType[Any] | type[Mode | Overflow | Backoff]
    about: str

    @property
    def options(self) -> tuple[str, ...]:
        """How it is written."""
        option = f"--{self.name.replace('_', '-')}"
        return (f"{option}/--no-{option.removeprefix('--')}",) if self.form is YES_OR_NO else (option,)


SETTINGS: Final = (
    Setting("mode", Mode, "How messages are handed out. It cannot be changed."),
    Setting("max_attempts", NUMBER, "Failed attempts after which a message goes to the dead letters; 0: never."),
    Setting("lease", DURATION, 'How long a consumer may hold a message, such as "30s".'),
    Setting("retry_delay", DURATION, 'How long a message that failed waits, such as "5s".'),
    Setting("retry_backoff", Backoff, "How that grows: exponential is twice as long after each attempt."),
    Setting("retry_delay_max", DURATION, "The longest delay that exponential backoff comes to."),
    Setting("retry_jitter", click.IntRange(0, 100), "Up to how many percent of a delay are taken off by chance."),
    Setting("ttl", DURATION, "How long a message may wait to be delivered; 0: for ever."),
    Setting("max_length", NUMBER, "Messages above which --overflow holds."),
    Setting("max_bytes", NUMBER, "Bytes above which --overflow holds."),
    Setting("overflow", Overflow, "What becomes of messages for which there is no room."),
    Setting("dead_letter_queue", "NAME", "Where dead letters go; by default QUEUE.dlq."),
    Setting("priority_guard", NUMBER, "After so many that overtook others one of the lowest priority goes; 0: never."),
    Setting("order_by_key", YES_OR_NO, "Messages of one key go out one after the other. It cannot be changed."),
    Setting("single_active", YES_OR_NO, "Only the oldest consumer is served, the others stand by."),
    Setting("group_idle", DURATION, "How long a group is kept without consumers; 0: for ever."),
    Setting("group_max_lag", NUMBER, "A group that is further behind loses the oldest; 0: it may be."),
    Setting("publish_rate", NUMBER, "Messages a second above which publishers wait; 0: any number."),
    Setting("deliver_rate", NUMBER, "Messages a second that are handed out; 0: any number."),
    Setting("delete_grace", DURATION, "How long it can be brought back once deleted; 0: not at all."),
    Setting("dedup_window", DURATION, "How long dedup ids are remembered; 0: not at all."),
    Setting("expires", DURATION, "It is deleted when it had no consumer for so long; 0: never."),
    Setting("description", "TEXT", "A text for people."),
)
"""Every setting, in the order of the help."""

_DURATIONS: Final = {f"{one.name}_ms": one.name for one in SETTINGS if one.form is DURATION}
_PERCENTS: Final = {"retry_jitter_percent": "retry_jitter"}
_ORDER: Final = {one.name: place for place, one in enumerate(SETTINGS)}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting to a command; what was not given is None."""
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


def _option(setting: Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    form = setting.form
    if form is YES_OR_NO:
        return click.option(*setting.options, default=None, help=setting.about)
    if isinstance(form, str):
        return click.option(*setting.options, metavar=form, help=setting.about)
    if isinstance(form, click.ParamType):
        metavar = "DURATION" if form is DURATION else "N"
        return click.option(*setting.options, type=form, metavar=metavar, help=setting.about)
    return click.option(*setting.options, type=click.Choice([str(word) for word in form]), help=setting.about)


def in_words(setting: str, value: object) -> tuple[str, object]:
    """A setting of the broker and its value, both as they are written on the command line."""
    if setting in _DURATIONS and isinstance(value, int):
        return _DURATIONS[setting], text_of(value)
    if isinstance(value, bool):
        return setting, "yes" if value else "no"
    return _PERCENTS.get(setting, setting), value


def settings_rows(settings: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    """What a queue is set to, as rows of a table; what this version does not know comes last."""
    rows = [in_words(name, value) for name, value in settings.items()]
    return sorted(rows, key=lambda row: _ORDER.get(row[0], len(_ORDER)))

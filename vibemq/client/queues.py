"""The settings of a queue, as declare() takes them and as they travel."""

from typing import Final, TypeAlias, TypedDict

from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError

Settings: TypeAlias = dict[str, str | int | float]
"""As in Declare: durations in milliseconds, named with their unit."""


class QueueSettings(TypedDict, total=False):
    """What may be said of a queue. What is left out, or None, is the broker's default."""

    mode: str | None
    max_attempts: int | None
    lease: Duration | None
    retry_delay: Duration | None
    dead_letter_queue: str | None
    max_length: int | None
    max_bytes: int | None


_KNOWN: Final = ("mode", "max_attempts", "lease", "retry_delay", "dead_letter_queue", "max_length", "max_bytes")


def settings_of(given: QueueSettings) -> Settings:
    """The settings as they travel.

    Raises:
        UsageError: a setting that does not exist, or a duration that is none.
    """
    settings: Settings = {}
    for name, value in given.items():
        if name not in _KNOWN:
            raise UsageError(f"a queue has no setting {name!r}; there are {', '.join(_KNOWN)}")
        if value is None:
            continue
        if name in {"lease", "retry_delay"}:
            if not isinstance(value, str | int | float):
                raise UsageError(f"{name} is {value!r}, which is no duration")
            settings[f"{name}_ms"] = milliseconds(value, name)
        elif isinstance(value, str | int | float):
            settings[name] = value
        else:
            raise UsageError(f"{name} is a {type(value).__name__}: settings are numbers and text")
    return settings

"""The settings of a queue, as declare() takes them and as they travel."""

from collections.abc import Mapping
from typing import Final, TypeAlias, TypedDict

from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import OnDifference, check_name

Settings: TypeAlias = dict[str, str | bool | int | float]
"""As in Declare: durations in milliseconds, named with their unit."""


class QueueSettings(TypedDict, total=False):
    """What may be said of a queue; docs/limits.md explains each. What is left out, or None, is the broker's default."""

    mode: str | None
    max_attempts: int | None
    lease: Duration | None
    retry_delay: Duration | None
    dead_letter_queue: str | None
    max_length: int | None
    max_bytes: int | None
    overflow: str | None
    ttl: Duration | None
    retry_backoff: str | None
    retry_delay_max: Duration | None
    retry_jitter: int | None
    priority_guard: int | None
    order_by_key: bool | None
    single_active: bool | None
    group_idle: Duration | None
    group_max_lag: int | None
    publish_rate: int | None
    deliver_rate: int | None
    delete_grace: Duration | None
    dedup_window: Duration | None
    expires: Duration | None
    description: str | None


class Declaration(QueueSettings, total=False):
    """A queue that connect() declares: its settings, and what happens where the live queue differs."""

    on_difference: OnDifference


_DURATIONS: Final = frozenset(
    {
        *("lease", "retry_delay", "ttl", "retry_delay_max", "group_idle", "delete_grace"),
        *("dedup_window", "expires"),
    }
)
_PERCENTS: Final = frozenset({"retry_jitter"})
_KNOWN: Final = tuple(QueueSettings.__annotations__)
_CHOICES: Final[tuple[OnDifference, ...]] = ("fail", "ignore", "override")


def settings_of(given: Mapping[str, object]) -> Settings:
    """The settings as they travel. Whether a value makes sense is for the broker to say.

    Raises:
        UsageError: a setting that does not exist, or a value of a type that none has.
    """
    settings: Settings = {}
    for name, value in given.items():
        if name not in _KNOWN:
            raise UsageError(f"a queue has no setting {name!r}; there are {', '.join(_KNOWN)}")
        if value is None:
            continue
        if not isinstance(value, str | bool | int | float):
            raise UsageError(f"{name} is a {type(value).__name__}: settings are numbers, text, true or false")
        if name in _DURATIONS:
            if isinstance(value, bool):
                raise UsageError(f"{name} is {value}, which is no duration")
            settings[f"{name}_ms"] = milliseconds(value, name)
        else:
            settings[f"{name}_percent" if name in _PERCENTS else name] = value
    return settings


def declare_of(name: str, on_difference: object, given: Mapping[str, object]) -> m.Declare:
    """The request that declares a queue, with a number to be replaced.

    Raises:
        VibeMQError: a name, a setting or a choice that does not exist.
    """
    check_name(name)
    chosen = next((choice for choice in _CHOICES if choice == on_difference), None)
    if chosen is None:
        raise UsageError(f"on_difference is {on_difference!r}: choose one of {', '.join(_CHOICES)}")
    return m.Declare(request=1, queue=name, settings=settings_of(given), on_difference=chosen)

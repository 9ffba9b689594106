"""What may be said of a queue: which values make sense, how two queues differ, and what holds where nothing is said.

`checked` looks at each value by itself. `resolved` lays them over what the queue inherits, from the defaults for its
name or from what it is now, and looks at them together: what was said must fit the queue's mode, what is only inherited
and does not fit is left out. `differences` compares a queue with what was said of it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import msgspec

from vibemq.declaration import Backoff, Mode, Overflow, QueueSettings
from vibemq.errors import InvalidRequest
from vibemq.projections.bindings import matches
from vibemq.server.limits import DURATION_MS_MAX, NAME_BYTES_MAX, Limits

DEAD_LETTER_SUFFIX: Final = ".dlq"
"""Behind a queue's name: its dead-letter queue, unless it has another. A queue with such a name has none by itself."""
REPLY_PREFIX: Final = "reply."
"""Queues with such names belong to clients that wait for replies: only those declare them, and they end with them."""
DEAD_LETTER_QUEUE: Final = QueueSettings(max_attempts=0, overflow=Overflow.DROP_OLDEST)
"""What a dead-letter queue starts from: letters stay, however often they fail, and a full one loses the oldest."""
NUMBER_MAX: Final = (1 << 62) - 1

PLAIN: Final[Mapping[str, Any]] = msgspec.structs.asdict(QueueSettings())
"""Every setting, in order, with its default."""

WITH_KEYS: Final = frozenset({Mode.ROUND_ROBIN, Mode.FAN_OUT})
WITH_GROUPS: Final = frozenset(mode for mode in Mode if mode.has_groups)
ONLY_WITH: Final[Mapping[str, frozenset[Mode]]] = {
    "order_by_key": WITH_KEYS,  # priorities are an order of their own; without acks nothing waits for the one before
    "priority_guard": frozenset({Mode.PRIORITY}),
    "group_idle_ms": WITH_GROUPS,
    "group_max_lag": WITH_GROUPS,
}
"""Settings that mean something in some modes only. `single_active` does in all: who is not served stands by."""


class Class(enum.StrEnum):
    """What a difference in a setting means."""

    INFO = "info"
    """It changes nothing that a queue does."""
    SOFT = "soft"
    """It can be changed while the queue is used."""
    HARD = "hard"
    """It cannot: messages are stored and counted by it."""


_CLASSES: Final = {"mode": Class.HARD, "order_by_key": Class.HARD, "description": Class.INFO}


def usual_dead_letter_queue(queue: str) -> str:
    """The dead-letter queue of a queue of that name, where no setting says another; empty: none.

    A reply that nobody took in time is of no use to anybody.
    """
    return "" if queue.endswith(DEAD_LETTER_SUFFIX) or queue.startswith(REPLY_PREFIX) else queue + DEAD_LETTER_SUFFIX


def class_of(setting: str) -> Class:
    """What a difference in this setting means."""
    return _CLASSES.get(setting, Class.SOFT)


Difference = TypedDict("Difference", {"setting": str, "live": Any, "declared": Any, "class": str})
"""One setting in which a queue is not as it was declared, as plain values."""


def differences(live: QueueSettings, given: Mapping[str, Any]) -> list[Difference]:
    """Where a queue is not what is said of it; what is not said does not differ. `given` has been `checked`."""
    return [
        {"setting": name, "live": _plain(present), "declared": _plain(given[name]), "class": class_of(name).value}
        for name, present in msgspec.structs.asdict(live).items()
        if name in given and given[name] != present
    ]


def checked(given: Mapping[str, object], limits: Limits) -> dict[str, Any]:
    """Settings by name, each of its own type and within its range.

    Raises:
        InvalidRequest: a name or a value that cannot be; the text says what can.
    """
    return {name: check(name, value, limits) for name, value in given.items()}


def check(name: str, value: object, limits: Limits, called: str = "") -> Any:  # noqa: ANN401 - of the setting's type
    """The value of one setting, as QueueSettings has it; `called` is how errors name it, if not by its name.

    Raises:
        InvalidRequest: there is no such setting, or it cannot have this value; the text says what it can.
    """
    if name not in PLAIN:
        raise InvalidRequest(f"a queue has no setting {name!r}; there are {', '.join(PLAIN)}")
    called = called or name
    kind = type(PLAIN[name])
    if issubclass(kind, enum.StrEnum):
        try:
            return kind(value)  # type: ignore[arg-type]  # whatever it is
        except ValueError:
            raise InvalidRequest(f"{called} must be one of {', '.join(kind)}, not {value!r}") from None
    if type(value) is not kind:
        raise InvalidRequest(f"{called} must be {_WORDS[kind]}, not {value!r}")
    if isinstance(value, str):
        return _check_text(called, value)
    if isinstance(value, bool):
        return value
    assert isinstance(value, int), name
    low, high = _range(name, limits)
    if not low <= value <= high:
        unit = next((text for suffix, text in _UNITS if name.endswith(suffix)), "")
        raise InvalidRequest(f"{called} must be from {low} to {high}{unit}, not {value}")
    return value


_UNITS: Final = (("_ms", " ms"), ("_percent", " percent"))
_WORDS: Final[Mapping[type, str]] = {int: "a whole number", bool: "true or false", str: "text"}


def _check_text(called: str, value: str) -> str:
    if len(value) > NAME_BYTES_MAX:
        raise InvalidRequest(f"{called} may have {NAME_BYTES_MAX} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{called} has unpaired surrogates, which are no UTF-8: {value[:40]!r}") from None
    return value


def _range(name: str, limits: Limits) -> tuple[int, int]:
    if name == "lease_ms":
        return 1, limits.lease_ms
    if name.endswith("_percent"):
        return 0, 100
    return 0, DURATION_MS_MAX if name.endswith("_ms") else NUMBER_MAX


def resolved(queue: str, inherited: Mapping[str, Any], given: Mapping[str, Any]) -> QueueSettings:
    """What the queue of that name has: all settings `inherited`, those `given` (and `checked`) in their place.

    Raises:
        InvalidRequest: what is given does not fit together, or not what the queue inherits.
    """
    values = {**inherited, **given}
    for name, modes in ONLY_WITH.items():
        if values["mode"] not in modes and values[name] != PLAIN[name]:
            if name in given:
                wanted = " or ".join(mode for mode in Mode if mode in modes)
                raise InvalidRequest(f"{name} needs mode {wanted}; the mode of queue {queue!r} is {values['mode']}")
            values[name] = PLAIN[name]
    if values["dead_letter_queue"] == queue:
        if "dead_letter_queue" in given:
            raise InvalidRequest(f"queue {queue!r} cannot be its own dead-letter queue")
        values["dead_letter_queue"] = PLAIN["dead_letter_queue"]
    delay_ms, delay_max_ms = values["retry_delay_ms"], values["retry_delay_max_ms"]
    if values["retry_backoff"] is Backoff.EXPONENTIAL and delay_ms > delay_max_ms:
        if not given.keys().isdisjoint(("retry_backoff", "retry_delay_ms", "retry_delay_max_ms")):
            raise InvalidRequest(f"retry_delay_ms is {delay_ms}, more than retry_delay_max_ms, which is {delay_max_ms}")
        values["retry_delay_max_ms"] = delay_ms
    return QueueSettings(**values)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A queue that shall be there: its settings, `checked`, and the patterns of topics that it is bound to."""

    settings: Mapping[str, Any]
    bind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueueDefaults:
    """What a new queue has where nothing is said of it.

    `patterns` are settings, `checked`, for the queues whose names match, as topics match: words between dots, `*` is
    one, `#` any number. Later ones come before earlier ones. Dead letters must not get lost by a default that was meant
    for work: a queue whose name ends in `.dlq`, whoever creates it, starts from DEAD_LETTER_QUEUE, and only patterns
    apply to it that end so, too; those apply to no other.
    """

    base: QueueSettings = QueueSettings()
    patterns: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def of(
        self, queue: str, given: Mapping[str, Any] | None = None, base: QueueSettings | None = None
    ) -> QueueSettings:
        """What a new queue of that name has of which this is said; `base` in place of what its name says.

        Raises:
            InvalidRequest: what is given does not fit together.
        """
        is_for_dead_letters = queue.endswith(DEAD_LETTER_SUFFIX)
        values = msgspec.structs.asdict(base or (DEAD_LETTER_QUEUE if is_for_dead_letters else self.base))
        for pattern, settings in self.patterns:
            if pattern.endswith(DEAD_LETTER_SUFFIX) == is_for_dead_letters and matches(pattern, queue):
                values |= settings
        return resolved(queue, values, given or {})


def _plain(value: object) -> object:
    return str(value) if isinstance(value, enum.StrEnum) else value

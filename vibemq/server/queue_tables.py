"""The tables of the configuration file that are about queues: `[queues.NAME]` and `[defaults."PATTERN"]`.

Their keys are the settings as people name them, without units: durations are seconds or text such as "30s". Every error
begins with the table that it is about.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from vibemq.durations import milliseconds
from vibemq.errors import ConfigError, InvalidName, InvalidRequest, UsageError
from vibemq.protocol.fields import check_name, check_pattern
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import PLAIN, Declaration, QueueDefaults, check

KEYS: Final[Mapping[str, str]] = {name.removesuffix("_ms").removesuffix("_percent"): name for name in PLAIN}
"""Every setting: the key that stands for it, and its name."""
BIND: Final = "bind"


def read_queues(tables: object, defaults: QueueDefaults, limits: Limits) -> dict[str, Declaration]:
    """The queues that shall be there, by name, from what stands below `queues`.

    Raises:
        ConfigError: a name, key or value that cannot be, or settings that do not fit together.
    """
    found = {}
    for queue, label, table in _tables("queues", tables, "queue"):
        try:
            check_name(queue)
            bind = _patterns(table.pop(BIND, []))
            settings = _settings(table, limits, (*KEYS, BIND))
            defaults.of(queue, settings)
        except (InvalidName, InvalidRequest, UsageError) as error:
            raise ConfigError(f"{label} {error.text}") from None
        found[queue] = Declaration(settings, bind)
    return found


def read_defaults(tables: object, limits: Limits) -> QueueDefaults:
    """What holds for queues where nothing is said of them, from what stands below `defaults`.

    Raises:
        ConfigError: a pattern, key or value that cannot be.
    """
    found = []
    for pattern, label, table in _tables("defaults", tables, "pattern"):
        try:
            check_pattern(pattern)
            found.append((pattern, _settings(table, limits, tuple(KEYS))))
        except (InvalidName, InvalidRequest, UsageError) as error:
            raise ConfigError(f"{label} {error.text}") from None
    return QueueDefaults(patterns=tuple(found))


def _tables(section: str, tables: object, what: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, label for errors, and a copy of each table below `section`."""
    if not isinstance(tables, dict):
        raise ConfigError(f"{section} must be tables: write [{section}.NAME] above the settings of each {what}")
    found = []
    for name, table in tables.items():
        label = _label(section, name)
        if not isinstance(table, dict):
            raise ConfigError(f"{label} must be a table, with the settings of that {what} below it")
        for key, value in table.items():
            if isinstance(value, dict):
                quoted = _label(section, f"{name}.{key}")
                raise ConfigError(f"{label} has no table {key!r}: a {what} with dots needs quotes, {quoted}")
        found.append((name, label, dict(table)))
    return found


def _label(section: str, name: str) -> str:
    return f"[{section}.{json.dumps(name, ensure_ascii=False)}]"


def _settings(table: Mapping[str, Any], limits: Limits, known: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key not in KEYS:
            raise InvalidRequest(f"has no key {key!r}; there are {', '.join(known)}")
        name = KEYS[key]
        if name.endswith("_ms"):
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise UsageError(f'{key} must be a duration, seconds or text such as "30s", not {value!r}')
            value = milliseconds(value, key)  # noqa: PLW2901 - the same, as it is kept
        found[name] = check(name, value, limits, key)
    if dead_letter_queue := found.get("dead_letter_queue"):
        check_name(dead_letter_queue, "dead-letter queue")
    return found


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise InvalidRequest(f'{BIND} must be a list of patterns, such as ["orders.*"], not {value!r}')
    for pattern in value:
        check_pattern(pattern)
    return tuple(dict.fromkeys(value))

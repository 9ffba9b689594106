"""Every setting of a broker, with its default, and the configuration file that changes them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vibemq.errors import ConfigError, InvalidName, UsageError
from vibemq.log.writer import SyncPolicy
from vibemq.protocol.fields import check_name
from vibemq.server.limits import MIB, Limits
from vibemq.server.queue_settings import Declaration, QueueDefaults
from vibemq.server.queue_tables import read_defaults, read_queues

DEFAULT_PORT: Final = 2925
KEYS: Final = frozenset({"data", "listen", "fsync", "unroutable", "limits", "queues", "defaults"})
"""What a configuration file may hold besides plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a broker runs."""

    data: Path = Path("vibemq-data")
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    fsync: SyncPolicy = field(default_factory=SyncPolicy)
    auto_create: bool = True
    segment_bytes: int = 128 * MIB
    reserve_bytes: int = 64 * MIB
    checkpoint_interval_ms: int = 5_000
    limits: Limits = field(default_factory=Limits)
    queues: Mapping[str, Declaration] = field(default_factory=dict)
    """Queues that are declared at the start, by name."""
    defaults: QueueDefaults = field(default_factory=QueueDefaults)
    unroutable: str = ""
    """The dead-letter queue for what is published to topics that nobody is bound to; none: it is refused."""


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[V6]:PORT`, `HOST` or `:PORT`.

    Raises:
        ConfigError: a port that is no number from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (text.endswith("]") and text.startswith("[")):
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"cannot listen on {text!r}: give HOST:PORT with a port from 0 to 65535")
    return host.strip("[]") or "127.0.0.1", int(port)


def load_toml(path: Path) -> dict[str, Any]:
    """The changes to the defaults that a configuration file makes, as keywords for Settings.

    Raises:
        ConfigError: a file that cannot be read, an unknown key (with those that exist), a value of the wrong kind.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot read the configuration {path}: {problem}") from None
    found: dict[str, Any] = {}
    if "limits" in table:
        found["limits"] = Limits(**_checked(path, "limits", table.pop("limits"), Limits))
    found |= _queues(path, table, found.get("limits", Limits()))
    if "fsync" in table:
        found["fsync"] = _fsync(path, _text(path, "fsync", table))
    if "data" in table:
        found["data"] = Path(_text(path, "data", table))
    if "listen" in table:
        found["host"], found["port"] = parse_listen(_text(path, "listen", table))
    if "unroutable" in table:
        found["unroutable"] = _queue_name(path, "unroutable", table)
    plain = {"auto_create", "segment_bytes", "reserve_bytes", "checkpoint_interval_ms"}
    unknown = sorted(set(table) - plain)
    if unknown:
        known = ", ".join(sorted(plain | KEYS))
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}; there are {known}")
    return found | _checked(path, "", table, Settings)


def _text(path: Path, key: str, table: dict[str, Any]) -> str:
    value = table.pop(key)
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key} must be text, not {value!r}")
    return value


def _queue_name(path: Path, key: str, table: dict[str, Any]) -> str:
    name = _text(path, key, table)
    try:
        check_name(name)
    except InvalidName as error:
        raise ConfigError(f"{path}: {key}: {error.text}") from None
    return name


def _queues(path: Path, table: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        defaults = read_defaults(table.pop("defaults", {}), limits)
        return {"defaults": defaults, "queues": read_queues(table.pop("queues", {}), defaults, limits)}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.text}") from None


def _fsync(path: Path, text: str) -> SyncPolicy:
    try:
        return SyncPolicy.parse(text)
    except UsageError as error:
        raise ConfigError(f"{path}: {error.text}") from None


def _checked(path: Path, section: str, table: object, kind: type) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [{section}] must be a table")
    defaults = {one.name: one.default for one in fields(kind)}
    for key, value in table.items():
        if key not in defaults:
            raise ConfigError(f"{path}: unknown setting {section}.{key}; there are {', '.join(sorted(defaults))}")
        expected: type = type(defaults[key])
        least = 1 if defaults[key] else 0  # where 0 is the default, it means that there is no limit
        if type(value) is not expected or (type(value) is int and value < least):
            what = "true or false" if expected is bool else f"a whole number, at least {least}"
            raise ConfigError(f"{path}: {section + '.' if section else ''}{key} must be {what}, not {value!r}")
    return dict(table)

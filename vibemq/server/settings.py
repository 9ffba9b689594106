"""Every limit and setting of a broker, with its default. docs/limits.md is this table for people."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vibemq.errors import ConfigError
from vibemq.events import QueueSettings

DEFAULT_PORT: Final = 2925
KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What nobody may exceed. Units are in the names."""

    frame_bytes: int = 16 * MIB
    batch_messages: int = 65_536
    message_bytes: int = 8 * MIB
    connections: int = 20_000
    connections_per_address: int = 20_000
    subscriptions_per_connection: int = 1_000
    queues: int = 100_000
    unacked_per_subscription: int = 1_000_000
    unacked_bytes_per_subscription: int = 256 * MIB
    publish_window_bytes: int = 16 * MIB
    publish_window_batches: int = 1_000
    unsynced_bytes: int = 64 * MIB
    producers: int = 10_000
    cache_bytes: int = 32 * MIB
    peek_messages: int = 1_000
    peek_bytes: int = 8 * MIB
    hello_timeout_ms: int = 10_000
    heartbeat_ms: int = 15_000
    lease_ms: int = 12 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsync:
    """When the log is synced: `always` before anything is confirmed, every `interval_ms`, or left to the system (`os`)."""

    policy: str = "always"
    interval_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> "Fsync":
        """Read `always`, `interval:MS` or `os`.

        Raises:
            ConfigError: anything else.
        """
        policy, _, number = text.partition(":")
        if policy in ("always", "os") and not number:
            return cls(policy=policy)
        if policy == "interval" and number.isdecimal() and 0 < int(number) <= 60_000:  # noqa: PLR2004 - a minute
            return cls(policy=policy, interval_ms=int(number))
        raise ConfigError(f"fsync is {text!r}: give always, interval:MS with 1 to 60000 milliseconds, or os")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"interval:{self.interval_ms}" if self.policy == "interval" else self.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a broker runs."""

    data: Path = Path("vibemq-data")
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    fsync: Fsync = Fsync()
    auto_create: bool = True
    segment_bytes: int = 128 * MIB
    reserve_bytes: int = 64 * MIB
    checkpoint_interval_ms: int = 5_000
    limits: Limits = field(default_factory=Limits)
    queue_defaults: QueueSettings = QueueSettings()


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[V6]:PORT`, `HOST` or `:PORT`.

    Raises:
        ConfigError: a port that is no number from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (text.endswith("]") and text.startswith("[")):
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004 - the largest port
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
    if "fsync" in table:
        found["fsync"] = Fsync.parse(str(table.pop("fsync")))
    if "data" in table:
        found["data"] = Path(str(table.pop("data")))
    if "listen" in table:
        found["host"], found["port"] = parse_listen(str(table.pop("listen")))
    plain = {"auto_create", "segment_bytes", "reserve_bytes", "checkpoint_interval_ms"}
    unknown = sorted(set(table) - plain)
    if unknown:
        known = ", ".join(sorted(plain | {"limits", "fsync", "data", "listen"}))
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}; there are {known}")
    return found | _checked(path, "", table, Settings)


def _checked(path: Path, section: str, table: object, kind: type) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [{section}] must be a table")
    defaults = {one.name: one.default for one in fields(kind)}
    for key, value in table.items():
        if key not in defaults:
            raise ConfigError(f"{path}: unknown setting {section}.{key}; there are {', '.join(sorted(defaults))}")
        expected: type = type(defaults[key])
        if type(value) is not expected or (isinstance(value, int) and value < 1):
            what = "true or false" if expected is bool else "a whole number above 0"
            raise ConfigError(f"{path}: {section + '.' if section else ''}{key} must be {what}, not {value!r}")
    return dict(table)

"""What connect() can be told, with the defaults."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TypedDict

from vibemq.client.queues import Declaration, declare_of
from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import NUMBER_MAX


class ConnectOptions(TypedDict, total=False):
    """The keyword arguments of connect(), each explained at the field of Options of that name."""

    timeout: Duration
    connect_timeout: Duration
    heartbeat: Duration
    name: str
    prefetch_bytes: int
    pending_messages_max: int
    pending_bytes_max: int
    backoff_min: Duration
    backoff_max: Duration
    chance: random.Random
    producer: int
    declare: Mapping[str, Declaration]


@dataclass(frozen=True, slots=True)
class Options:
    """How a client behaves. Durations are seconds."""

    timeout: float = 60.0
    """How long a call waits for its answer, over any number of reconnects."""
    connect_timeout: float = 10.0
    """How long the first connect is tried."""
    heartbeat: float = 15.0
    """Something is sent at least this often; twice as long a silence of the broker ends the connection."""
    name: str = ""
    """What the broker's lists and its audit trail call this client."""
    prefetch_bytes: int = 8 * 1024 * 1024
    """How many bytes of messages the broker may send ahead to one consumer or one pull."""
    pending_messages_max: int = 100_000
    """publish() waits while this many messages are not confirmed."""
    pending_bytes_max: int = 64 * 1024 * 1024
    """publish() waits while this many bytes are not confirmed."""
    backoff_min: float = 0.05
    """The first pause before a reconnect is a random part of this; each next may be twice as long ..."""
    backoff_max: float = 5.0
    """... up to this. The pause is drawn from the whole range (full jitter), so that clients do not return in step."""
    chance: random.Random = field(default_factory=random.SystemRandom)
    """Where all randomness of a client comes from: the number of its producer, and the pauses before reconnects."""
    producer: int = 0
    """The number by which the broker knows this producer, 1 to 2^63 - 1; 0: one that nobody had before. Only for what
    numbers its own transactions, as an outbox does: two ordinary clients with one number lose messages."""
    declare: tuple[m.Declare, ...] = ()
    """Queues by name with their settings, declared on every connection before anything else is sent on it."""

    @classmethod
    def of(cls, given: ConnectOptions) -> "Options":
        """The defaults with what was `given`.

        Raises:
            VibeMQError: an option that does not exist, a value out of range, or a queue that cannot be declared.
        """
        known = {one.name for one in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UsageError(f"connect() has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
        options = cls()
        return cls(
            timeout=_seconds("timeout", given.get("timeout", options.timeout)),
            connect_timeout=_seconds("connect_timeout", given.get("connect_timeout", options.connect_timeout)),
            heartbeat=_seconds("heartbeat", given.get("heartbeat", options.heartbeat)),
            name=given.get("name", options.name),
            prefetch_bytes=_amount("prefetch_bytes", given.get("prefetch_bytes", options.prefetch_bytes)),
            pending_messages_max=_amount(
                "pending_messages_max", given.get("pending_messages_max", options.pending_messages_max)
            ),
            pending_bytes_max=_amount("pending_bytes_max", given.get("pending_bytes_max", options.pending_bytes_max)),
            backoff_min=_seconds("backoff_min", given.get("backoff_min", options.backoff_min)),
            backoff_max=_seconds("backoff_max", given.get("backoff_max", options.backoff_max)),
            chance=given.get("chance", options.chance),
            producer=_producer(given.get("producer", options.producer)),
            declare=tuple(_declare(name, wanted) for name, wanted in given.get("declare", {}).items()),
        )


def _declare(name: str, wanted: Declaration) -> m.Declare:
    settings: dict[str, object] = dict(wanted)
    return declare_of(name, settings.pop("on_difference", "fail"), settings)


def _seconds(name: str, given: Duration) -> float:
    seconds = milliseconds(given, name) / 1_000
    if not seconds:
        raise UsageError(f"{name} must be longer than 0 seconds")
    return seconds


def _producer(given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= NUMBER_MAX:
        raise UsageError(f"producer must be a whole number from 0 to 2^63 - 1, not {given!r}")
    return given


def _amount(name: str, given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UsageError(f"{name} must be a whole number from 1 on, not {given!r}")
    return given

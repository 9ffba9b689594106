"""Every limit of a broker, with its default. docs/limits.md is this table for people."""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

NAME_BYTES_MAX: Final = 255
"""Bytes of a name; the protocol checks it."""
DURATION_MS_MAX: Final = 1 << 40
"""The longest delay, about 35 years, as the protocol has it: with the present time added, a time that the log holds."""


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
    deleted_queues: int = 1_000
    groups_per_queue: int = 1_000
    bindings: int = 200_000
    bindings_per_queue: int = 5_000
    schedules: int = 1_000
    schedule_bytes: int = 64 * KIB
    schedule_catch_up: int = 10_000
    unacked_per_subscription: int = 200_000
    credit_bytes_per_subscription: int = 256 * MIB
    publish_window_bytes: int = 16 * MIB
    publish_window_batches: int = 1_000
    publish_rate_per_connection: int = 0
    transactions_per_connection: int = 1_000
    transaction_arrivals: int = 100_000
    transaction_ms: int = 15 * 60 * 1000
    unread_bytes: int = 256 * MIB
    unsynced_bytes: int = 256 * KIB
    producers: int = 10_000
    dedup_ids: int = 1_000_000
    cache_bytes: int = 32 * MIB
    peek_messages: int = 1_000
    peek_bytes: int = 8 * MIB
    hello_timeout_ms: int = 10_000
    heartbeat_ms: int = 15_000
    heartbeat_ms_max: int = 600_000
    lease_ms: int = 12 * 60 * 60 * 1000
    overdue_rate: int = 5_000

"""What a queue is declared with: its settings, their defaults, and the choices among them; and likewise a schedule.

They stand in the log, as the facts of the events that declare and change queues and schedules: what events.py says of
adding a field holds for them too.
"""

import enum
from typing import Any

import msgspec


class Mode(enum.StrEnum):
    """How a queue hands out its messages."""

    ROUND_ROBIN = "round-robin"
    PRIORITY = "priority"
    FAN_OUT = "fan-out"
    FAN_OUT_NO_ACK = "fan-out-no-ack"

    @property
    def has_groups(self) -> bool:
        """Whether every group gets every message; else all consumers are one group, and compete."""
        return self is Mode.FAN_OUT or self is Mode.FAN_OUT_NO_ACK


class Overflow(enum.StrEnum):
    """What becomes of messages for which a queue has no room."""

    REJECT = "reject"
    """The publish is refused."""
    DROP_OLDEST = "drop-oldest"
    """The oldest ready messages are thrown away."""
    DROP_NEWEST = "drop-newest"
    """What has no room is not stored, and the publisher is told so in its confirm."""
    DEAD_LETTER = "dead-letter"
    """The oldest ready messages go to the dead letters."""
    BLOCK = "block"
    """The publisher waits until there is room."""


class Backoff(enum.StrEnum):
    """How the retry delay grows with the attempts."""

    FIXED = "fixed"
    EXPONENTIAL = "exponential"
    """Twice as long after each failed attempt."""


class QueueSettings(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a queue was declared with. The defaults are those of docs/limits.md."""

    mode: Mode = Mode.ROUND_ROBIN
    max_attempts: int = 5
    """Failed attempts after which a message is dead-lettered; 0: never."""
    lease_ms: int = 30_000
    """How long a consumer may hold a message before it is given to another."""
    retry_delay_ms: int = 0
    """How long a message that failed waits before it is ready again."""
    dead_letter_queue: str = ""
    """Where dead letters go; empty: the queue's own name with `.dlq` behind it.

    Then what came here as a dead letter ends here, and so does everything in a queue whose name ends in `.dlq`.
    """
    max_length: int = 1_000_000_000
    """Messages that are not settled, above which `overflow` says what happens."""
    max_bytes: int = 1 << 40
    """Bytes of their records, likewise."""
    overflow: Overflow = Overflow.REJECT
    """What becomes of messages for which there is no room."""
    ttl_ms: int = 0
    """How long a message may wait to be delivered; 0: for ever. Then it goes to the dead letters."""
    retry_backoff: Backoff = Backoff.FIXED
    """How `retry_delay_ms` grows with the attempts."""
    retry_delay_max_ms: int = 3_600_000
    """The longest delay that exponential backoff comes to."""
    retry_jitter_percent: int = 0
    """A delay is shortened by a random part of up to so much of it, so that failures do not return in step."""
    priority_guard: int = 0
    """After so many messages that overtook others in a row, one of the lowest priority has its turn; 0: never."""
    order_by_key: bool = False
    """Messages of one key go out one after the other: the next when the one before is settled."""
    single_active: bool = False
    """Only the oldest consumer of a group is served; the others wait for their turn to be the oldest."""
    group_idle_ms: int = 0
    """A named group without consumers is deleted after this time; 0: never."""
    group_max_lag: int = 0
    """A group that is behind by more messages loses the oldest; 0: it may be behind by any number."""
    publish_rate: int = 0
    """Messages a second that the queue takes; 0: any number. Above it publishers wait."""
    deliver_rate: int = 0
    """Messages a second that the queue hands out; 0: any number."""
    delete_grace_ms: int = 3_600_000
    """How long the queue can be brought back after it was deleted; 0: not at all."""
    description: str = ""
    """A text for people."""
    dedup_window_ms: int = 300_000
    """How long a message's `dedup_id` is remembered, and another with the same is not stored; 0: not at all."""
    expires_ms: int = 0
    """A queue without consumers is deleted after this time; 0: never."""


class Misfire(enum.StrEnum):
    """What becomes of the times at which a schedule should have published, and the broker was away."""

    SKIP = "skip"
    """They are left out."""
    ONCE = "once"
    """One message stands for all of them."""
    ALL = "all"
    """Each gets its message, late."""


class ScheduleSpec(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a schedule publishes, where and when. It has either `cron` or `every_ms`."""

    queue: str
    """The queue, or with `to_topic` the topic."""
    to_topic: bool = False
    body: bytes = b""
    headers: dict[str, Any] = {}
    """Plain values, as those of any message."""
    priority: int = 4
    ttl_ms: int = 0
    """How long a message may wait to be delivered; 0: for ever."""
    cron: str = ""
    """Five fields: minute, hour, day of month, month, day of week."""
    zone: str = "UTC"
    """The time zone that `cron` is read in, by its name in the IANA database."""
    every_ms: int = 0
    start_us: int = 0
    """No message is for a time before; intervals count from here. 0: from when the schedule was set."""
    end_us: int = 0
    """No message is for a time from here on; 0: there is no end."""
    times: int = 0
    """So many messages are published, and then the schedule is gone; 0: any number."""
    misfire: Misfire = Misfire.ONCE

    @property
    def timing(self) -> tuple[str, str, int, int]:
        """What its times follow from, but for their end."""
        return self.cron, self.zone, self.every_ms, self.start_us

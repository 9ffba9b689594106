"""What all events have in common: their base, their tags, and the shapes and reasons that they speak of.

All of it is found in events.py, too, by which it is imported.
"""

import enum
from typing import ClassVar, Final, TypeAlias

import msgspec

Span: TypeAlias = tuple[int, int, int]
Spans: TypeAlias = tuple[Span, ...]
Arrival: TypeAlias = tuple[int, int, int, int]
"""Messages that came: (queue, lane, sequence of the first, count)."""
Entry: TypeAlias = tuple[int, int, int, int, int, int]
"""Messages of one record that wait for their time: (due us, record offset, index, count, bytes, lane)."""
Hashes: TypeAlias = bytes
Duplicate: TypeAlias = tuple[int, int, int]
"""A message that was there already: (position in what was published, record offset, index)."""

DEFAULT_GROUP: Final = 0
DEFAULT_LANE: Final = 0
DEDUP_BYTES: Final = 16
"""The length of a hashed dedup id."""


class Tag(enum.IntEnum):
    """The stable numbers of all kinds of event. Those without a class below are reserved for what comes."""

    BROKER_STARTED = 1
    BROKER_STOPPED = 2
    CLIENT_CONNECTED = 3
    CLIENT_REFUSED = 4
    CLIENT_DISCONNECTED = 5
    QUEUE_DECLARED = 10
    QUEUE_CHANGED = 11
    QUEUE_DELETED = 12
    QUEUE_PURGED = 13
    GROUP_CREATED = 14
    GROUP_DELETED = 15
    GROUP_SOUGHT = 16
    QUEUE_RENAMED = 17
    QUEUE_UNDELETED = 18
    PUBLISHED = 20
    TRANSACTION_COMMITTED = 21
    MADE_READY = 22
    PRODUCERS_FORGOTTEN = 23
    ROUTED = 24
    BOUND = 25
    UNBOUND = 26
    MATURED = 27
    RESCHEDULED = 28
    CANCELLED = 29
    SUBSCRIBED = 30
    UNSUBSCRIBED = 31
    DELIVERED = 32
    ACKED = 33
    LEASE_EXTENDED = 34
    RELEASED = 35
    DROPPED = 36
    DEAD_LETTERED = 40
    REDRIVEN = 41
    DEDUP_FORGOTTEN = 42
    USER_CHANGED = 50
    ROLE_CHANGED = 51
    PERMISSION_CHANGED = 52
    TOKEN_CHANGED = 53
    SEGMENT_SEALED = 60
    COMPACTED = 61
    ERASED = 62
    HORIZON = 63
    BACKUP_TAKEN = 64
    RESTORED = 65
    SCHEDULE_SET = 70
    SCHEDULE_PAUSED = 71
    SCHEDULE_DELETED = 72
    FIRED = 73
    MISFIRED = 74


class ReleaseReason(enum.IntEnum):
    """Why unacked messages became ready again."""

    NACKED = 1
    LEASE_EXPIRED = 2
    CONSUMER_LOST = 3
    UNSUBSCRIBED = 4


class DeadReason(enum.IntEnum):
    """Why a message went to the dead letters."""

    MAX_ATTEMPTS = 1
    REJECTED = 2
    EXPIRED = 3
    OVERFLOW = 4
    UNROUTABLE = 5


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The base of all events. TAG and VERSION belong to the class; the fields are the facts."""

    TAG: ClassVar[Tag]
    VERSION: ClassVar[int] = 1

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """Where this event made messages ready that were not there before."""
        return ()

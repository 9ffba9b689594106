"""Times as they travel: microseconds since 1970, UTC."""

import math
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError
from vibemq.protocol.fields import NUMBER_MAX

Moment: TypeAlias = datetime | float
"""A datetime with a time zone, or seconds since 1970, UTC."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime, what: str) -> int:
    """`moment` as it travels; `what` names it in errors.

    Raises:
        UsageError: no time, one without a time zone, or one before 1970.
    """
    if not isinstance(moment, datetime):
        raise UsageError(f"{what} is a {type(moment).__name__}: write a datetime with a time zone")
    if moment.utcoffset() is None:
        raise UsageError(f"{what} is {moment}, which has no time zone: write datetime(..., tzinfo=UTC)")
    if moment < EPOCH:
        raise UsageError(f"{what} is {moment}, which is before 1970")
    return (moment - EPOCH) // _MICROSECOND


def moment(time_us: int) -> datetime:
    """The time that travelled as `time_us`; of what is after the year 9999, where datetime ends, the last there is."""
    try:
        return EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return _LAST


def waiting_time(delay: Duration | None, deliver_at: Moment | None) -> tuple[int, int]:
    """How long, in ms, or until when, in us, a message waits before it is ready; one of them is 0, or both.

    There is no longest: what ends later than any clock counts as that.

    Raises:
        UsageError: both are given, or what is given is no duration or no time.
    """
    if deliver_at is None:
        return 0 if delay is None else milliseconds(delay, "delay", NUMBER_MAX // 1_000), 0
    if delay is not None:
        raise UsageError("delay says how long, and deliver_at until when a message waits: give one of them")
    # Never 0, which says that there is none: what was due in 1970 is due at once, as all that is past.
    return 0, max(1, time_us(deliver_at, "deliver_at"))


def time_us(given: Moment, what: str) -> int:
    """`given` as it travels; `what` names it in errors. What is beyond any clock counts as the last.

    Raises:
        UsageError: no time, one without a time zone, or one before 1970.
    """
    if isinstance(given, datetime):
        return microseconds(given, what)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise UsageError(
            f"{what} is a {type(given).__name__}: write a datetime with a time zone, or seconds since 1970"
        )
    if math.isnan(given) or given < 0:
        raise UsageError(f"{what} is {given}: it is seconds since 1970, from 0 on")
    return round(min(given * 1_000_000, NUMBER_MAX))

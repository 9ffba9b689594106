"""Times as they travel: microseconds since 1970, UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

from vibemq.errors import UsageError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
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
    """The time that travelled as `time_us`."""
    return EPOCH + timedelta(microseconds=time_us)

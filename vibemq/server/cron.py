"""Cron expressions and time zones: the one part of schedules that reads files, those of the zones.

An expression means what it means to the cron of Debian, which the `cronsim` package follows to the letter: a job at a
time of the day runs once in every day, also where clocks are set; what is in the hour that is left out comes right
after it, and what is in the hour that comes twice comes in the first of them. Jobs with `*` as their hour or minute
follow the time that passes.
"""

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from vibemq.errors import InvalidRequest, NotSupported

try:
    from cronsim import CronSim, CronSimError
except ImportError:  # pragma: no cover - the tests have it
    CronSim = None  # type: ignore[assignment, misc]

FIELDS: Final = 5
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_LAST_US: Final = (datetime(9940, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""From here on the decades that a search may take would lead out of the calendar."""


class CronCalendar:
    """The calendar of a broker (server/schedules.py)."""

    def next_us(self, cron: str, zone: str, after_us: int) -> int:
        """The first time after `after_us` that matches, always a whole minute; 0: there is none in the next 50 years.

        Raises:
            InvalidRequest: no cron expression, or no time zone.
            NotSupported: the `cronsim` package is not installed.
        """
        if CronSim is None:
            raise NotSupported(
                "a schedule with cron needs an extra on the broker: pip install 'vibemq[schedules]'; "
                "one with every_ms works without"
            )
        fields = len(cron.split())
        if fields != FIELDS:
            raise InvalidRequest(
                f"{cron!r} is no cron expression: it has {FIELDS} fields (minute, hour, day of month, month, day of "
                f"week), not {fields}"
            )
        if after_us > _LAST_US:
            return 0
        after = _EPOCH + timedelta(microseconds=after_us)
        try:
            for moment in CronSim(cron, after.astimezone(_zone(zone))):
                # Where clocks are set back it begins again with the first of two hours; where they are set forward two
                # times may become one. A time that was is none to come.
                if moment > after:
                    return (moment.astimezone(UTC) - _EPOCH) // _SECOND * 1_000_000
        except CronSimError as problem:
            raise InvalidRequest(
                f"{cron!r} is no cron expression: {problem}. The fields are minute 0-59, hour 0-23, day 1-31, "
                f"month 1-12 or jan-dec, day of week 0-7 or sun-sat"
            ) from None
        return 0


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)  # it refuses names that lead out of its folder
    except (KeyError, ValueError, OSError):
        raise InvalidRequest(f"there is no time zone {name[:80]!r}: it has a name such as 'Europe/Berlin'") from None

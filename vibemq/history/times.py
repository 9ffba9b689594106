"""Times as people write them: RFC 3339, or how long ago."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from vibemq.errors import UsageError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_UNITS_US: Final = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_ONE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|[smhdw])")
_AGO: Final = re.compile(rf"(?:{_ONE.pattern})+(?:\s+ago)?")


def parse_time(text: str, now_us: int) -> int:
    """A time in microseconds since 1970: RFC 3339 (UTC where it names no zone), or "5m", "1h30m", "2d ago".

    Raises:
        UsageError: neither.
    """
    text = text.strip()
    if _AGO.fullmatch(text):
        return max(0, now_us - sum(round(float(n) * _UNITS_US[unit]) for n, unit in _ONE.findall(text)))
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        return max(0, (found - _EPOCH) // timedelta(microseconds=1))
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is no time: write 2026-11-23T14:03:00Z, or 5m for five minutes ago") from None


def rfc3339(time_us: int) -> str:
    """A time in microseconds since 1970 as RFC 3339 text, UTC; what lies behind the year 9999 is its end."""
    return (_EPOCH + timedelta(microseconds=min(time_us, _LAST_US))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

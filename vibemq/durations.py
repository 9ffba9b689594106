"""Durations as people write them: seconds as a number, or text such as "30s"."""

import math
import re
from typing import Final, TypeAlias

from vibemq.errors import UsageError

Duration: TypeAlias = float | str
"""Seconds, or a number with its unit: "250ms", "30s", "5m", "2h", "1d"."""

DURATION_MS_MAX: Final = 1 << 40
"""The longest, about 35 years: the protocol has none that is longer."""

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def milliseconds(duration: Duration, what: str, cap_ms: int | None = None) -> int:
    """`duration` in whole milliseconds; `what` names it in errors. With `cap_ms` what is longer counts as that.

    Raises:
        UsageError: not a duration, negative, or without `cap_ms` longer than DURATION_MS_MAX.
    """
    if isinstance(duration, str):
        found = _FORM.fullmatch(duration.strip())
        if found is None:
            raise UsageError(
                f'{what} is {duration!r}: write seconds as a number, or text such as "250ms", "30s", "5m", "2h"'
            )
        duration = float(found[1]) * _UNITS_MS[found[2]] / 1_000
    try:
        seconds = float(duration)
    except OverflowError:  # an int of hundreds of digits
        seconds = math.inf
    except (TypeError, ValueError):
        raise UsageError(
            f'{what} is a {type(duration).__name__}: write seconds as a number, or text such as "30s"'
        ) from None
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"{what} is {duration}: a duration is a number of seconds from 0 on")
    if cap_ms is not None:
        return round(min(seconds * 1_000, cap_ms))
    duration_ms = round(min(seconds * 1_000, DURATION_MS_MAX + 1))
    if duration_ms > DURATION_MS_MAX:
        raise UsageError(f"{what} is {duration}: a duration is at most {DURATION_MS_MAX // 1_000:,} seconds, 35 years")
    return duration_ms


def text_of(duration_ms: int) -> str:
    """A duration as people write it, in the largest unit that gives a whole number: 90,000 ms are "90s"."""
    if not duration_ms:
        return "0s"
    unit, size = next((unit, size) for unit, size in reversed(_UNITS_MS.items()) if duration_ms % size == 0)
    return f"{duration_ms // size}{unit}"

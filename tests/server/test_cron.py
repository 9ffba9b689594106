"""What cron expressions mean in time zones, and what is none."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq.errors import InvalidRequest, NotSupported
from vibemq.server import cron
from vibemq.server.cron import CronCalendar

CALENDAR = CronCalendar()


def us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def times(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The next times from a local start on, in UTC."""
    found, at_us = [], us(datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone)))
    for _ in range(count):
        at_us = CALENDAR.next_us(expression, zone, at_us)
        found.append(datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%m-%d %H:%M"))
    return found


def test_a_daily_time_is_that_of_the_zone() -> None:
    assert times("0 9 * * *", "Europe/Berlin", "2026-01-15 10:00", 2) == ["01-16 08:00", "01-17 08:00"]
    assert times("0 9 * * *", "Europe/Berlin", "2026-07-15 10:00", 2) == ["07-16 07:00", "07-17 07:00"]
    assert times("30 9 * * MON-FRI", "Asia/Kolkata", "2026-07-17 10:00", 2) == ["07-20 04:00", "07-21 04:00"]


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        # In Berlin there is no 02:00 to 03:00 on 29 March 2026; 03:00 is 01:00 UTC.
        ("30 2 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:30"]),
        ("0 2,3 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:00", "03-30 01:00"]),
        ("0 * * * *", "2026-03-29 00:30", ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        # And 02:00 to 03:00 comes twice on 25 October, first from 00:00 to 01:00 UTC.
        ("30 2 * * *", "2026-10-24 12:00", ["10-25 00:30", "10-26 01:30"]),
        ("0,30 2 * * *", "2026-10-25 00:00", ["10-25 00:00", "10-25 00:30", "10-26 01:00"]),
        (
            "*/30 * * * *",
            "2026-10-25 01:45",
            ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"],
        ),
    ],
)
def test_where_clocks_are_set_by_an_hour(expression: str, start: str, expected: list[str]) -> None:
    assert times(expression, "Europe/Berlin", start, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        # On Lord Howe Island there is no 02:00 to 02:30 on 4 October 2026; 02:30 is 15:30 UTC of the day before.
        ("15 2 * * *", "2026-10-03 12:00", ["10-03 15:30", "10-04 15:15"]),
        ("*/15 * * * *", "2026-10-04 01:40", ["10-03 15:15", "10-03 15:30", "10-03 15:45"]),
        # And 01:30 to 02:00 comes twice on 5 April, first from 14:30 to 15:00 UTC.
        ("45 1 * * *", "2026-04-04 12:00", ["04-04 14:45", "04-05 15:15"]),
        ("*/15 * * * *", "2026-04-05 01:40", ["04-04 14:45", "04-04 15:00", "04-04 15:15", "04-04 15:30"]),
    ],
)
def test_where_clocks_are_set_by_half_an_hour(expression: str, start: str, expected: list[str]) -> None:
    assert times(expression, "Australia/Lord_Howe", start, len(expected)) == expected


def test_in_the_second_of_two_hours_the_times_of_the_first_are_over() -> None:
    second = us(datetime(2026, 10, 25, 1, 10, tzinfo=UTC))  # 02:10, for the second time
    assert CALENDAR.next_us("30 2 * * *", "Europe/Berlin", second) == us(datetime(2026, 10, 26, 1, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "@daily",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "1,,2 * * * *",
        "x * * * *",
        "² * * * *",
        "-1 * * * *",
        "* * * * MON#6",
        "* * * * L",
        "1/ * * * *",
    ],
)
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidRequest, match="no cron expression"):
        CALENDAR.next_us(expression, "UTC", 0)


@given(st.lists(st.text("0123456789*/,-#LWMONJA", max_size=8), min_size=5, max_size=5).map(" ".join))
def test_any_text_is_a_cron_expression_or_refused(expression: str) -> None:
    after_us = us(datetime(2026, 11, 26, tzinfo=UTC))
    try:
        found_us = CALENDAR.next_us(expression, "UTC", after_us)
    except InvalidRequest:
        return
    assert found_us == 0 or (found_us > after_us and found_us % 60_000_000 == 0)


def test_a_day_that_no_month_has_is_refused_or_never() -> None:
    with pytest.raises(InvalidRequest):
        CALENDAR.next_us("0 0 31 2 *", "UTC", 0)
    assert CALENDAR.next_us("* * */20 * 1L", "UTC", 0) == 0


def test_times_end_before_the_calendar_does() -> None:
    assert CALENDAR.next_us("* * * * *", "Europe/Berlin", us(datetime(9939, 12, 31, 23, 58, tzinfo=UTC)))
    assert CALENDAR.next_us("* * * * *", "Europe/Berlin", (1 << 63) - 1) == 0


@pytest.mark.parametrize(
    "zone",
    [
        "",
        ".",
        "Berlin",
        "Europe",
        "Europe/",
        "europe/../UTC",
        "../../../etc/passwd",
        "/etc/localtime",
        "Europe/Berlin\0",
        "zone.tab",
        "__init__.py",
        "\\\\host\\zone",
        "é" * 127,
    ],
)
def test_what_is_no_time_zone_is_refused_also_a_path(zone: str) -> None:
    with pytest.raises(InvalidRequest, match="no time zone"):
        CALENDAR.next_us("* * * * *", zone, 0)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron, "CronSim", None)
    with pytest.raises(NotSupported, match=r"vibemq\[schedules\]"):
        CALENDAR.next_us("* * * * *", "UTC", 0)


@given(
    st.sampled_from(["*/30 * * * *", "30 2 * * *", "0,30 1-3 * * *", "15 */2 * * *", "* 2 * * *", "0 0 1,15 * *"]),
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Africa/Cairo", "UTC"]),
    st.integers(us(datetime(2026, 1, 1, tzinfo=UTC)), us(datetime(2027, 1, 1, tzinfo=UTC))),
    st.integers(0, 86_400_000_000),
)
def test_whoever_asks_earlier_hears_no_later_time(expression: str, zone: str, after_us: int, more_us: int) -> None:
    first, later = (CALENDAR.next_us(expression, zone, at) for at in (after_us, after_us + more_us))
    assert after_us < first <= later
    if first > after_us + more_us:
        assert first == later

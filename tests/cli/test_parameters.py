from datetime import UTC, datetime, timedelta

import click
import pytest

from vibemq.cli.parameters import DURATION, LETTER, POSITION, PRIORITY, TIME
from vibemq.durations import milliseconds, text_of


@pytest.mark.parametrize(
    ("text", "value"), [("tail", "tail"), ("head", "head"), ("0", 0), (str((1 << 63) - 1), (1 << 63) - 1)]
)
def test_a_place_in_a_queue(text: str, value: object) -> None:
    assert POSITION.convert(text, None, None) == value


def test_a_place_in_a_queue_may_be_a_time() -> None:
    assert POSITION.convert("2026-11-23T14:03:00Z", None, None) == datetime(2026, 11, 23, 14, 3, tzinfo=UTC)
    assert POSITION.convert("1970-01-01T00:00:00.000001+00:00", None, None) == datetime(
        1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC
    )
    before = datetime.now(UTC)
    ago = POSITION.convert("10m", None, None)
    assert isinstance(ago, datetime)
    assert timedelta() <= ago + timedelta(minutes=10) - before + timedelta(milliseconds=1) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((POSITION, text) for text in ("", "middle", "-1", "1.5", "9" * 19, "٣")),
        *((TIME, text) for text in ("", "tail", "5", "99999-01-01", "2026-13-01")),
        *((PRIORITY, text) for text in ("", "10", "-1", "1.0", "LOW", "urgent")),
        *((LETTER, text) for text in ("", "-", "1-", "-1", "1-2-3", "a", "٣", "9" * 20)),
        *((DURATION, text) for text in ("", "soon", "-1", "5x", "1e3", "s")),
    ],
)
def test_what_is_none_is_refused_with_what_would_be(kind: click.ParamType[object], text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"write|neither|larger|no time"):
        kind.convert(text, None, None)


def test_priorities_have_numbers_and_names() -> None:
    assert [PRIORITY.convert(str(number), None, None) for number in range(10)] == list(range(10))
    assert [PRIORITY.convert(name, None, None) for name in ("low", "critical")] == ["low", "critical"]


def test_a_message_is_a_sequence_or_an_id() -> None:
    assert (LETTER.convert("7", None, None), LETTER.convert("12-0", None, None)) == (7, "12-0")


def test_a_duration_may_be_a_plain_number_of_seconds() -> None:
    for text, expected_ms in (("0", 0), ("1.5", 1500), ("30", 30_000), ("250ms", 250), ("7d", 604_800_000)):
        assert milliseconds(DURATION.convert(text, None, None), "it") == expected_ms


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [(0, "0s"), (1, "1ms"), (1500, "1500ms"), (90_000, "90s"), (300_000, "5m"), (7_200_000, "2h"), (604_800_000, "7d")],
)
def test_a_duration_is_shown_as_it_is_written(duration_ms: int, text: str) -> None:
    assert text_of(duration_ms) == text
    assert milliseconds(text, "it") == duration_ms

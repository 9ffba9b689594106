import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.cli.processes import PATIENCE_SECONDS, ServedBroker
from tests.cli.terminal import answered

FAR = "2100-01-01T00:00:00Z"


def shown(broker: ServedBroker, name: str) -> dict[str, Any]:
    (found,) = broker.lines("schedule", "show", name)
    return found


def test_a_schedule_publishes_and_is_gone_after_so_many_times(broker: ServedBroker) -> None:
    arguments = ["beats", "tick", "--every", "100ms", "--times", "3", "--header", "k=v", "--priority", "high"]
    assert broker.run("schedule", "set", "beat", *arguments).returncode == 0
    messages = broker.lines("consume", "beats", "--count", "3")
    assert [one["body"] for one in messages] == ["tick"] * 3
    times = [datetime.fromisoformat(one["headers"].pop("scheduled_for")) for one in messages]
    assert [after - before for before, after in pairwise(times)] == [timedelta(seconds=0.1)] * 2
    assert [one["headers"] for one in messages] == [{"schedule": "beat", "k": "v"}] * 3
    done = broker.run("schedule", "show", "beat")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no schedule 'beat'" in done.stderr


def test_a_schedule_is_set_shown_and_listed(broker: ServedBroker) -> None:
    options = ["--cron", "30 2 * * MON-FRI", "--zone", "Europe/Berlin", "--start", FAR, "--misfire", "all"]
    (found,) = broker.lines("schedule", "set", "nightly", "reports", "go", *options, "--ttl", "1h")
    assert found == shown(broker, "nightly")
    expected = {"cron": "30 2 * * MON-FRI", "zone": "Europe/Berlin", "every": None, "misfire": "all", "ttl": 3600.0}
    assert {key: found[key] for key in expected} == expected
    assert (found["queue"], found["body"], found["next_at"]) == ("reports", "go", "2100-01-01T01:30:00Z")
    lines = broker.run("schedule", "show", "nightly").stdout.decode().splitlines()
    assert lines[:4] == [
        "schedule  nightly",
        "when      30 2 * * MON-FRI Europe/Berlin",
        "queue     reports",
        "next      2100-01-01T01:30:00Z",
    ]
    assert lines[-2:] == ["body", "go"]
    (listed,) = [one for one in broker.lines("schedule", "list") if one["name"] == "nightly"]
    assert listed == {key: value for key, value in found.items() if key not in {"body", "headers"}}
    table = broker.run("schedule", "list").stdout.decode().splitlines()
    assert table[0].split() == ["name", "when", "to", "next", "fired", "missed", "problem"]
    assert "nightly  30 2 * * MON-FRI Europe/Berlin  reports  2100-01-01T01:30:00Z" in table[1]


def test_it_can_be_set_again_and_goes_to_a_topic_or_has_a_file_as_its_message(
    broker: ServedBroker,
    tmp_path: Any,  # noqa: ANN401 - of pytest
) -> None:
    broker.run("schedule", "set", "again", "one", "--every", "1h", "--start", FAR)
    path = tmp_path / "message"
    path.write_bytes(b"\xff\x00")
    options = ["--file", str(path), "--to-topic", "--cron", "0 9 * * *", "--end", "1d"]
    (found,) = broker.lines("schedule", "set", "again", "shop.sale", *options)
    assert (found["to_topic"], found["body_base64"], found["every"], found["start"]) == (True, "/wA=", None, None)
    end = datetime.fromisoformat(found["end"])
    assert timedelta(hours=23) < end - datetime.now(UTC) < timedelta(hours=25)
    assert "topic shop.sale" in broker.run("schedule", "list").stdout.decode()
    assert "\ntopic     shop.sale\n" in broker.run("schedule", "show", "again").stdout.decode()


def test_a_schedule_is_paused_and_resumed(broker: ServedBroker) -> None:
    broker.run("schedule", "set", "pausing", "pauses", "--cron", "0 0 1 1 *")
    assert broker.run("schedule", "pause", "pausing").stdout == b"pausing is paused\n"
    assert shown(broker, "pausing")["paused"]
    assert b"paused" in broker.run("schedule", "list").stdout
    resumed = broker.run("schedule", "resume", "pausing").stdout.decode()
    assert resumed.startswith("pausing goes on, next at 20")
    assert resumed.endswith("-01-01T00:00:00Z\n")
    (found,) = broker.lines("schedule", "pause", "pausing")
    assert (found["paused"], found["next_at"]) == (True, None)
    (found,) = broker.lines("schedule", "resume", "pausing")
    assert not found["paused"]


def test_what_is_left_out_is_said(broker: ServedBroker) -> None:
    broker.run("schedule", "set", "unheard", "nobody.listens", "--to-topic", "--every", "100ms")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := shown(broker, "unheard"))["missed"]:
        assert time.monotonic() < deadline
    assert "no queue is bound" in found["problem"]
    assert found["fired"] == 0
    assert b"problem   no queue is bound" in broker.run("schedule", "show", "unheard").stdout
    broker.run("schedule", "delete", "unheard")


def test_at_a_terminal_delete_asks_first(broker: ServedBroker) -> None:
    broker.run("schedule", "set", "asked", "answers", "--every", "1h")
    assert answered(broker, b"n\n", "schedule", "delete", "asked") == 1
    assert shown(broker, "asked")
    assert answered(broker, b"y\n", "schedule", "delete", "asked") == 0
    assert broker.run("schedule", "show", "asked").returncode == 1
    broker.run("schedule", "set", "asked", "answers", "--every", "1h")
    assert broker.run("schedule", "delete", "asked").stdout == b"deleted asked\n"


@pytest.mark.parametrize("what", ["show", "pause", "resume", "delete"])
def test_what_is_not_there_is_an_error(broker: ServedBroker, what: str) -> None:
    done = broker.run("schedule", what, "nothing")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"'nothing'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--every", "1s", "--cron", "* * * * *"],
        ["--every", "soon"],
        ["--every", "1s", "--misfire", "maybe"],
        ["--every", "1s", "--times", "0"],
        ["--every", "1s", "--start", "tomorrow"],
        ["payload", "--every", "1s", "--file", "-"],
        ["--every", "1s", "--header", "k"],
    ],
)
def test_what_can_never_work_is_a_usage_error(broker: ServedBroker, arguments: list[str]) -> None:
    assert broker.run("schedule", "set", "wrong", "q", *arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--cron", "* * *"], b"5 fields"),
        (["--cron", "0 0 31 2 *"], b"no cron expression"),
        (["--cron", "* * * * *", "--zone", "Mars/Olympus"], b"no time zone"),
        (["--cron", "* * * * *", "--zone", "../../../etc/passwd"], b"no time zone"),
        (["--every", "10ms"], b"100 ms"),
        (["--every", "1s", "--end", "2020-01-01T00:00:00Z"], b"would never publish"),
    ],
)
def test_what_the_broker_refuses_is_an_error(broker: ServedBroker, arguments: list[str], text: bytes) -> None:
    done = broker.run("schedule", "set", "wrong", "q", *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert text in done.stderr

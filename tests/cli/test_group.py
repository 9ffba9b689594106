from datetime import UTC, datetime

import pytest

from tests.cli.processes import ServedBroker
from tests.cli.terminal import answered


@pytest.fixture(scope="module")
def events(broker: ServedBroker) -> ServedBroker:
    """A broker with a queue that fans out; the group `kept` has read nothing of it."""
    broker.run("queue", "declare", "events", "--mode", "fan-out")
    broker.run("consume", "events", "--group", "kept")
    broker.run("publish", "events", "1", "2", "3")
    return broker


def test_every_group_gets_every_message(events: ServedBroker) -> None:
    for group in ("one", "two"):
        assert events.run("consume", "events", "--group", group, "--from", "head").stdout == b"1\n2\n3\n"
        assert events.run("consume", "events", "--group", group).stdout == b""


def test_a_new_group_begins_where_it_is_told_to(events: ServedBroker) -> None:
    def begun(group: str, *place: str) -> bytes:
        return events.run("consume", "events", "--group", group, *place).stdout

    assert begun("at-tail") == begun("at-tail-too", "--from", "tail") == b""
    assert begun("at-2", "--from", "2") == b"2\n3\n"
    assert begun("at-2", "--from", "head") == b"", "it is there already"
    assert begun("at-time", "--from", "1h") == b"1\n2\n3\n"
    assert begun("at-now", "--from", datetime.now(UTC).isoformat()) == b""


def test_a_group_is_listed_sought_and_deleted(events: ServedBroker) -> None:
    assert events.run("consume", "events", "--group", "billing", "--from", "head").stdout == b"1\n2\n3\n"
    assert events.lines("group", "seek", "events", "billing", "--to", "2") == [
        {"queue": "events", "group": "billing", "sequence": 2}
    ]
    (found,) = [one for one in events.lines("group", "list", "events") if one["name"] == "billing"]
    assert (found["ready"], found["messages"], found["consumers"]) == (2, 2, 0)
    table = [line.split() for line in events.run("group", "list", "events").stdout.decode().splitlines()]
    assert table[0] == ["group", "ready", "unacked", "waiting", "consumers"]
    assert ["billing", "2", "0", "0", "0"] in table
    assert events.run("consume", "events", "--group", "billing").stdout == b"2\n3\n"
    done = events.run("group", "seek", "events", "billing", "--to", "head")
    assert done.stdout == b"billing of events goes on at sequence 1\n"
    assert events.run("group", "seek", "events", "billing", "--to", "tail").stdout.endswith(b" 4\n")
    assert events.run("group", "delete", "events", "billing").stdout == b"deleted billing of events\n"
    assert "billing" not in {one["name"] for one in events.lines("group", "list", "events")}


@pytest.mark.parametrize(
    "arguments", [["seek", "events", "nobody", "--to", "head"], ["delete", "events", "nobody"], ["list", "nowhere"]]
)
def test_what_is_not_there_is_an_error(events: ServedBroker, arguments: list[str]) -> None:
    done = events.run("group", *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nobody" in done.stderr or b"nowhere" in done.stderr


@pytest.mark.parametrize("arguments", [["seek", "events", "kept"], ["seek", "events", "kept", "--to", "sideways"]])
def test_a_seek_without_a_place_is_a_usage_error(events: ServedBroker, arguments: list[str]) -> None:
    assert events.run("group", *arguments).returncode == 2


def test_a_queue_whose_consumers_share_its_messages_has_no_groups(events: ServedBroker) -> None:
    events.run("queue", "declare", "shared")
    for arguments in (["group", "list", "shared"], ["consume", "shared", "--group", "g"]):
        done = events.run(*arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"fan-out" in done.stderr
        assert b"round-robin" in done.stderr


def test_at_a_terminal_delete_asks_first(events: ServedBroker) -> None:
    events.run("consume", "events", "--group", "asked")
    assert answered(events, b"n\n", "group", "delete", "events", "asked") == 1
    assert "asked" in {one["name"] for one in events.lines("group", "list", "events")}
    assert answered(events, b"y\n", "group", "delete", "events", "asked") == 0
    assert "asked" not in {one["name"] for one in events.lines("group", "list", "events")}


def test_a_consumer_that_could_get_nothing_is_told_why(events: ServedBroker) -> None:
    done = events.run("consume", "events")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"--group" in done.stderr
    assert events.run("consume", "events", "--from", "head").stderr == b""
    events.run("queue", "declare", "empty")
    assert events.run("consume", "empty").stderr == b""


def test_peek_shows_what_a_group_has_before_it(events: ServedBroker) -> None:
    assert events.run("consume", "events", "--peek", "--group", "kept").stdout == b"1\n2\n3\n"
    assert events.run("consume", "events", "--peek", "--group", "kept", "--from", "3").stdout == b"3\n"
    assert events.run("consume", "events", "--peek", "--group", "kept", "--count", "1").stdout == b"1\n"
    assert events.run("consume", "events", "--peek", "--group", "nobody").returncode == 1


def test_exclusive_keeps_others_out(events: ServedBroker) -> None:
    with events.begin(
        "consume", "events", "--group", "alone", "--follow", "--exclusive", "--from", "head", stdout=-1
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"1\n"
        done = events.run("consume", "events", "--group", "alone")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"for itself" in done.stderr

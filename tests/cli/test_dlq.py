import itertools
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

import vibemq
from tests.cli.processes import PATIENCE_SECONDS, ServedBroker
from tests.cli.terminal import answered, drawn

_numbers = itertools.count()
Bury = Callable[..., str]


@pytest.fixture
def bury(broker: ServedBroker) -> Bury:
    """Makes dead letters: of a new queue, so many, rejected for a reason; gives the queue's name."""

    def rejected(count: int, reason: str = "no stock", **settings: Any) -> str:  # noqa: ANN401 - any setting
        name = f"work-{next(_numbers)}"
        with vibemq.connect_sync(broker.url) as client:
            client.declare(name, **settings)
            client.publish_many(name, [b"%d" % at for at in range(count)], headers=[{"at": at} for at in range(count)])
            for message in client.pull(name, max_messages=count):
                message.reject(reason=reason)
            client.flush()
        return name

    return rejected


def sequences(broker: ServedBroker, queue: str, *options: str) -> list[int]:
    return [one["sequence"] for one in broker.lines("dlq", "list", queue, *options)]


# --- looking


def test_list_tells_why_each_is_dead(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(2)
    table = [line.split(maxsplit=7) for line in broker.run("dlq", "list", queue).stdout.decode().splitlines()]
    assert table[0] == ["sequence", "id", "reason", "from", "attempts", "size", "when", "error"]
    found = broker.lines("dlq", "list", queue)
    times = [one["dead"]["at"][:19] + "Z" for one in found]
    assert table[1:] == [
        ["1", found[0]["id"], "rejected", queue, "1", "1", times[0], "no stock"],
        ["2", found[1]["id"], "rejected", queue, "1", "1", times[1], "no stock"],
    ]
    assert found == broker.lines("dlq", "list", f"{queue}.dlq")
    for name in ("id", "published_at"):
        assert found[1].pop(name)
    assert (
        found[1].pop("dead").items()
        >= {"reason": "rejected", "queue": queue, "attempts": 1, "error": "no stock"}.items()
    )
    assert found[1] == {
        "queue": f"{queue}.dlq",
        "sequence": 2,
        "body": "1",
        "headers": {"at": 1},
        "attempt": 1,
        "redelivered": False,
    }


def test_list_shows_those_that_pass_the_filters(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(3, dead_letter_queue="graveyard")
    other = bury(2, "timeout talking to stock", dead_letter_queue="graveyard")
    assert sequences(broker, "graveyard") == [1, 2, 3, 4, 5]
    assert sequences(broker, other) == [4, 5]
    for options, expected in (
        (["--source", queue], [1, 2, 3]),
        (["--error", "timeout"], [4, 5]),
        (["--reason", "rejected", "--count", "2"], [1, 2]),
        (["--reason", "expired"], []),
        (["--since", "1h", "--error", "stock"], [1, 2, 3, 4, 5]),
        (["--until", "1h"], []),
        (["--since", "2999-01-01T00:00:00Z"], []),
    ):
        assert sequences(broker, "graveyard", *options) == expected, options


def test_show_tells_all_of_one(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(2)
    (found,) = broker.lines("dlq", "show", queue, "2")
    assert (found["body"], found["headers"], found["dead"]["error"]) == ("1", {"at": 1}, "no stock")
    assert broker.lines("dlq", "show", f"{queue}.dlq", found["id"]) == [found]
    facts, headers, body = broker.run("dlq", "show", queue, "2").stdout.decode().split("\n\n")
    assert ["reason", "rejected"] in [line.split() for line in facts.splitlines()]
    assert [line.split() for line in headers.splitlines()] == [["header", "value"], ["at", "1"]]
    assert body == "body\n1\n"


def test_show_tells_the_whole_story_where_the_log_is(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(1)
    story = broker.run("dlq", "show", queue, "1", "--data", str(broker.data)).stdout.decode().split("\n\n")[-1]
    rows = [line.split() for line in story.splitlines()]
    assert [row[1] for row in rows] == ["kind", "published", "delivered", "dead-lettered"]
    assert "no stock" in story


def test_what_is_in_a_message_cannot_reach_the_terminal(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(1, "\x1b[31mred")
    with vibemq.connect_sync(broker.url) as client:
        client.publish(queue, b"\x1b[2J\xff\n\x07", headers={"\x1b]0;": "\x1b[31m"})
        for message in client.pull(queue):
            message.reject()
    for arguments in (["list", queue], ["show", queue, "1"], ["show", queue, "2"]):
        for text in (broker.run("dlq", *arguments).stdout.decode(), drawn(broker, "dlq", *arguments)):
            assert not {"\x1b[31m", "\x1b[2J", "\x07", "\x1b]0;"} & {
                text[at : at + size] for at in range(len(text)) for size in (1, 4, 5)
            }
    assert "\\x1b[2J\\xff\n\\x07" in broker.run("dlq", "show", queue, "2").stdout.decode()


@pytest.mark.parametrize("arguments", [["list", "nowhere"], ["show", "nowhere", "1"], ["purge", "nowhere"]])
def test_a_queue_that_is_not_there_is_an_error(broker: ServedBroker, arguments: list[str]) -> None:
    done = broker.run("dlq", *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nowhere" in done.stderr


def test_a_dead_letter_that_is_not_there_is_an_error(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(1)
    for which in ("2", "999999-0"):
        done = broker.run("dlq", "show", queue, which)
        assert (done.returncode, done.stdout) == (1, b"")
        assert which.encode() in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "q", "first"],
        ["list", "q", "--reason", "boredom"],
        ["list", "q", "--since", "yesterday"],
        ["redrive", "q"],
        ["redrive", "q", "--to", "r"],
        ["redrive", "q", "1", "--all"],
        ["redrive", "q", "1", "--reason", "expired"],
        ["redrive", "q", "--all", "--rate", "0"],
    ],
)
def test_a_call_that_cannot_work_exits_with_2(broker: ServedBroker, arguments: list[str]) -> None:
    done = broker.run("dlq", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")


# --- back to work


def test_all_go_back_to_where_they_came_from(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(3)
    assert broker.run("dlq", "redrive", queue, "--all", "--dry-run").stdout.decode() == (
        f"would move 3 messages: 3 to {queue}\n"
    )
    assert sequences(broker, queue) == [1, 2, 3]
    assert broker.run("dlq", "redrive", queue, "--all").stdout.decode() == f"moved 3 messages: 3 to {queue}\n"
    assert sequences(broker, queue) == []
    assert [(one["body"], one["attempt"]) for one in broker.lines("consume", queue)] == [("0", 2), ("1", 2), ("2", 2)]


def test_some_go_by_sequence_or_id_and_no_others(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(5)
    name = broker.lines("dlq", "show", queue, "4")[0]["id"]
    done = broker.run("dlq", "redrive", queue, "2", name, "--json")
    assert json.loads(done.stdout) == {
        "queue": queue,
        "dry_run": False,
        "count": 2,
        "targets": {queue: 2},
        "homeless": 0,
    }
    assert sequences(broker, queue) == [1, 3, 5]
    done = broker.run("dlq", "redrive", queue, "2", "3", name)
    assert (done.returncode, done.stdout.decode()) == (1, f"moved 1 message: 1 to {queue}\n")
    assert f"2, {name}" in done.stderr.decode()
    assert sequences(broker, queue) == [1, 5]


def test_some_go_by_filter_and_to_another_queue(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(3)
    broker.run("queue", "declare", "by-hand")
    done = broker.run("dlq", "redrive", queue, "--error", "stock", "--count", "2", "--to", "by-hand")
    assert done.stdout == b"moved 2 messages: 2 to by-hand\n"
    assert sequences(broker, queue) == [3]
    assert broker.run("dlq", "redrive", queue, "--reason", "expired").stdout == b"moved 0 messages\n"
    assert broker.run("consume", "by-hand").stdout == b"0\n1\n"
    assert broker.run("dlq", "redrive", queue, "--all", "--to", "nowhere").returncode == 1


def test_what_has_no_queue_to_go_back_to_is_told(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(2)
    broker.run("queue", "delete", queue, "--grace", "0")
    done = broker.run("dlq", "redrive", f"{queue}.dlq", "--all")
    assert (done.returncode, done.stdout) == (1, b"moved 0 messages\n")
    assert b"2 not moved" in done.stderr
    assert b"--to" in done.stderr


def test_a_full_queue_takes_what_fits_and_the_rest_stays(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(5, max_length=5)
    broker.run("queue", "change", queue, "--max-length", "3")
    done = broker.run("dlq", "redrive", queue, "--all")
    assert (done.returncode, done.stdout.decode()) == (1, f"moved 3 messages: 3 to {queue}\n")
    assert b"no room" in done.stderr
    assert sequences(broker, queue) == [4, 5]


def test_a_rate_is_kept_and_a_signal_leaves_moved_what_was_moved(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(10)
    with broker.begin("dlq", "redrive", queue, "--all", "--rate", "0.01", "--json", stdout=-1, stderr=-1) as moving:
        while sequences(broker, queue) == list(range(1, 11)):
            assert moving.poll() is None
        moving.send_signal(signal.SIGINT)
        out, errors = moving.communicate(timeout=PATIENCE_SECONDS)
        assert moving.returncode == 130
    assert json.loads(out)["count"] == 1, "the second was due a minute and a half later"
    assert b"where it was" in errors
    assert sequences(broker, queue) == list(range(2, 11))


def test_a_terminal_sees_how_far_it_is(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(30)
    text = drawn(broker, "dlq", "redrive", queue, "--all", "--rate", "100")
    assert "redriving" in text
    assert "100%" in text
    assert f"moved 30 messages: 30 to {queue}" in text


# --- away


def test_purge_throws_dead_letters_away_and_nothing_else(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(3)
    broker.run("publish", queue, "alive")
    assert answered(broker, b"n\n", "dlq", "purge", queue) == 1
    assert sequences(broker, queue) == [1, 2, 3]
    assert broker.lines("dlq", "purge", queue) == [{"queue": f"{queue}.dlq", "count": 3}]
    assert sequences(broker, queue) == []
    assert broker.run("dlq", "purge", f"{queue}.dlq").stdout.decode() == f"purged {queue}.dlq: 0 messages\n"
    assert broker.run("consume", queue).stdout == b"alive\n"


def test_purge_of_what_others_share_takes_its_name(broker: ServedBroker, bury: Bury) -> None:
    queue = bury(2, dead_letter_queue="tombs")
    done = broker.run("dlq", "purge", queue)
    assert done.returncode == 1
    assert b"'tombs'" in done.stderr
    assert broker.lines("dlq", "purge", "tombs") == [{"queue": "tombs", "count": 2}]

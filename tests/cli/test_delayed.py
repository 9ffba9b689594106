import itertools
from datetime import UTC, datetime, timedelta

import pytest

import vibemq
from tests.cli.processes import ServedBroker
from tests.cli.terminal import answered

_numbers = itertools.count()
DUE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def queue() -> str:
    return f"later-{next(_numbers)}"


def publish(broker: ServedBroker, queue: str, count: int = 1) -> list[str]:
    """Messages that wait: the first for a day, each of the others for a day more; gives their ids."""
    with vibemq.connect_sync(broker.url) as client:
        return [
            client.publish(queue, b"%d" % at, headers={"at": at}, deliver_at=DUE + timedelta(days=at)).id
            for at in range(count)
        ]


def waiting(broker: ServedBroker, queue: str) -> list[str]:
    return [one["id"] for one in broker.lines("delayed", "list", queue)]


def consumed(broker: ServedBroker, queue: str, count: int) -> list[str]:
    """Bodies, once so many have come."""
    return [one["body"] for one in broker.lines("consume", queue, "--count", str(count))]


def test_list_shows_what_waits_the_first_due_first(broker: ServedBroker, queue: str) -> None:
    first, second, third = publish(broker, queue, 3)
    (sooner,) = broker.lines("publish", queue, "soon", "--at", "2099-12-31T00:00:00Z")
    found = broker.lines("delayed", "list", queue)
    assert [one["id"] for one in found] == [sooner["id"], first, second, third]
    assert found[1].pop("published_at")
    assert found[1] == {"id": first, "queue": queue, "due_at": "2100-01-01T00:00:00Z", "bytes": 6}
    table = broker.run("delayed", "list", queue, "--count", "2").stdout.decode().splitlines()
    assert table[0].split() == ["id", "due", "published", "size"]
    assert [line.split()[:2] for line in table[1:]] == [
        *([sooner["id"], "2099-12-31T00:00:00Z"], [first, "2100-01-01T00:00:00Z"]),
    ]
    assert broker.lines("consume", queue) == []


def test_list_goes_on_where_a_page_ends(broker: ServedBroker, queue: str) -> None:
    with vibemq.connect_sync(broker.url) as client:
        ids = [one.id for one in client.publish_many(queue, [b"x"] * 1_100, deliver_at=DUE)]
    assert waiting(broker, queue) == ids
    assert [one["id"] for one in broker.lines("delayed", "list", queue, "--count", "700")] == ids[:700]


def test_show_tells_what_is_in_it(broker: ServedBroker, queue: str) -> None:
    (waits,) = publish(broker, queue)
    (found,) = broker.lines("delayed", "show", queue, waits)
    assert found.pop("published_at")
    assert found == {
        "id": waits,
        "queue": queue,
        "due_at": "2100-01-01T00:00:00Z",
        "bytes": 6,
        "body": "0",
        "headers": {"at": 0},
    }
    lines = broker.run("delayed", "show", queue, waits).stdout.decode().splitlines()
    assert [line.split() for line in lines[:2]] == [["id", waits], ["due", "2100-01-01T00:00:00Z"]]
    assert lines[-2:] == ["body", "0"]


def test_cancel_takes_back_what_is_named_or_nothing(broker: ServedBroker, queue: str) -> None:
    first, second, third = publish(broker, queue, 3)
    refused = broker.run("delayed", "cancel", queue, first, "0-0")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"0-0" in refused.stderr
    done = broker.run("delayed", "cancel", queue, first, third)
    assert (done.returncode, done.stdout) == (0, f"cancelled {queue}: 2 messages\n".encode())
    assert waiting(broker, queue) == [second]


def test_all_of_a_queue_can_be_cancelled(broker: ServedBroker, queue: str) -> None:
    with vibemq.connect_sync(broker.url) as client:
        client.publish_many(queue, [b"x"] * 1_100, deliver_at=DUE)
    assert answered(broker, b"n\n", "delayed", "cancel", queue, "--all") == 1
    assert len(waiting(broker, queue)) == 1_100
    assert broker.lines("delayed", "cancel", queue, "--all") == [{"queue": queue, "count": 1_100}]
    assert waiting(broker, queue) == []


def test_what_is_released_is_ready(broker: ServedBroker, queue: str) -> None:
    publish(broker, queue, 2)
    (waits, _) = waiting(broker, queue)
    done = broker.run("delayed", "release", queue, waits)
    assert done.stdout == f"released {queue}: 1 message\n".encode()
    assert consumed(broker, queue, 1) == ["0"]
    assert broker.lines("delayed", "release", queue, "--all") == [{"queue": queue, "count": 1}]
    assert consumed(broker, queue, 1) == ["1"]


def test_another_time_can_be_given(broker: ServedBroker, queue: str) -> None:
    first, second = publish(broker, queue, 2)
    done = broker.run("delayed", "reschedule", queue, first, second, "--at", "2200-01-01T00:00:00+01:00")
    assert done.stdout == f"rescheduled {queue}: 2 messages, due 2199-12-31T23:00:00Z\n".encode()
    (facts,) = broker.lines("delayed", "reschedule", queue, second, "--delay", "1ms")
    assert (facts["queue"], facts["count"]) == (queue, 1)
    assert consumed(broker, queue, 1) == ["1"]
    assert waiting(broker, queue) == [first]


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", "q"],
        ["cancel", "q", "1-0", "--all"],
        ["release", "q"],
        ["reschedule", "q", "1-0"],
        ["reschedule", "q", "1-0", "--delay", "1s", "--at", "2100-01-01"],
        ["reschedule", "q", "--delay", "1s"],
        ["reschedule", "q", "1-0", "--at", "soon"],
        ["list", "q", "--count", "0"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(broker: ServedBroker, arguments: list[str]) -> None:
    done = broker.run("delayed", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_queue_or_message_that_is_not_there_is_told(broker: ServedBroker, queue: str) -> None:
    assert b"no queue" in broker.run("delayed", "list", queue).stderr
    publish(broker, queue)
    done = broker.run("delayed", "show", queue, "0-0")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"0-0" in done.stderr


# --- publishing


def test_a_delay_says_when_a_message_is_ready(broker: ServedBroker, queue: str) -> None:
    (line,) = broker.lines("publish", queue, "later", "--delay", "20000d")
    due = datetime.fromisoformat(line.pop("due_at"))
    assert abs(due - datetime.now(UTC) - timedelta(days=20_000)) < timedelta(minutes=5)
    assert line == {"id": line["id"], "queue": queue, "sequence": None, "duplicate": False, "dropped": False}
    assert broker.run("publish", queue, "soon", "--delay", "10ms").returncode == 0
    assert consumed(broker, queue, 1) == ["soon"]
    assert waiting(broker, queue) == [line["id"]]


def test_lines_and_topics_can_wait_too(broker: ServedBroker, queue: str) -> None:
    with vibemq.connect_sync(broker.url) as client:
        client.declare(queue)
        client.bind(queue, f"{queue}.*")
    lines = ["--stdin-lines", "--at", "2100-01-01T00:00:00Z"]
    assert broker.run("publish", f"{queue}.x", "--to-topic", *lines, stdin=b"1\n2\n").returncode == 0
    assert broker.run("publish", queue, *lines, stdin=b"3\n").returncode == 0
    assert len(waiting(broker, queue)) == 3


def test_what_has_the_same_dedup_id_is_stored_once(broker: ServedBroker, queue: str) -> None:
    (first,) = broker.lines("publish", queue, "one", "--dedup-id", "order-1")
    again = broker.run("publish", queue, "two", "--dedup-id", "order-1")
    assert (again.returncode, again.stdout) == (0, b"")
    assert again.stderr.decode() == f"vibemq: not stored, it is there already, as {first['id']}\n"
    (line,) = broker.lines("publish", queue, "three", "--dedup-id", "order-1")
    assert line == {"id": first["id"], "queue": queue, "sequence": None, "duplicate": True, "dropped": False}
    assert [one["body"] for one in broker.lines("consume", queue)] == ["one"]


@pytest.mark.parametrize(
    "options",
    [
        ["x", "--delay", "1s", "--at", "2100-01-01"],
        ["x", "--delay", "soon"],
        ["x", "--at", "soon"],
        ["x", "y", "--dedup-id", "d"],
        ["x", "--dedup-id", "d", "--to-topic"],
        ["x", "--dedup-id", ""],
        ["--stdin-lines", "--dedup-id", "d"],
    ],
    ids=" ".join,
)
def test_publish_refuses_what_makes_no_sense(broker: ServedBroker, options: list[str]) -> None:
    done = broker.run("publish", "q", *options, stdin=b"x\n")
    assert (done.returncode, done.stdout) == (2, b"")

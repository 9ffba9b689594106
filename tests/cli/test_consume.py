import base64
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import PATIENCE_SECONDS, ServedBroker, served


def counts(broker: ServedBroker, queue: str) -> tuple[int, int]:
    """Messages that are ready, and messages that somebody holds."""
    found = broker.lines("queue", "show", queue)[0]
    return found["ready"], found["unacked"]


def publish_numbers(broker: ServedBroker, queue: str, count: int) -> bytes:
    text = b"".join(b"%d\n" % number for number in range(count))
    assert broker.run("publish", queue, "--stdin-lines", stdin=text).returncode == 0
    return text


def test_it_ends_when_the_queue_is_empty_and_what_it_printed_is_gone(broker: ServedBroker) -> None:
    text = publish_numbers(broker, "emptied", 5_000)
    done = broker.run("consume", "emptied")
    assert (done.returncode, done.stdout, done.stderr) == (0, text, b"")
    assert counts(broker, "emptied") == (0, 0)
    assert broker.run("consume", "emptied").stdout == b""


def test_it_prints_all_messages_of_a_key_one_after_the_other(broker: ServedBroker) -> None:
    assert broker.run("queue", "declare", "keyed", "--order-by-key").returncode == 0
    for number in range(3):
        assert broker.run("publish", "keyed", f"a{number}", "--key", "a").returncode == 0
        assert broker.run("publish", "keyed", f"b{number}", "--key", "b").returncode == 0
    printed = broker.run("consume", "keyed").stdout.split()
    assert [body for body in printed if body.startswith(b"a")] == [b"a0", b"a1", b"a2"]
    assert [body for body in printed if body.startswith(b"b")] == [b"b0", b"b1", b"b2"]
    assert counts(broker, "keyed") == (0, 0)


def test_it_waits_for_a_queue_that_hands_out_slowly(broker: ServedBroker) -> None:
    assert broker.run("queue", "declare", "slow", "--deliver-rate", "10").returncode == 0
    assert broker.run("publish", "slow", *"abcd").returncode == 0
    assert broker.run("consume", "slow").stdout == b"a\nb\nc\nd\n"


def test_a_count_takes_so_many_and_leaves_the_rest(broker: ServedBroker) -> None:
    publish_numbers(broker, "counted", 10)
    assert broker.run("consume", "counted", "--count", "3").stdout == b"0\n1\n2\n"
    assert counts(broker, "counted") == (7, 0)
    rest = broker.lines("consume", "counted")
    assert (rest[0]["body"], rest[0]["attempt"], rest[0]["redelivered"]) == ("3", 1, False)


def test_a_count_waits_for_messages(broker: ServedBroker) -> None:
    with broker.begin("consume", "awaited", "--count", "3", stdout=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        broker.run("publish", "awaited", "a")
        assert consuming.stdout.readline() == b"a\n"
        assert consuming.poll() is None
        broker.run("publish", "awaited", "b", "c", "d")
        assert consuming.stdout.read() == b"b\nc\n"
        assert consuming.wait(PATIENCE_SECONDS) == 0
    assert broker.run("consume", "awaited").stdout == b"d\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow_goes_on_until_a_signal_which_is_its_normal_end(broker: ServedBroker, number: signal.Signals) -> None:
    queue = f"followed-{number.name}"
    with broker.begin("consume", queue, "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        assert consuming.stderr is not None
        for body in ("a", "b"):
            broker.run("publish", queue, body)
            assert consuming.stdout.readline() == f"{body}\n".encode()
        consuming.send_signal(number)
        assert (consuming.stdout.read(), consuming.stderr.read()) == (b"", b"")
        assert consuming.wait(PATIENCE_SECONDS) == 0
    assert counts(broker, queue) == (0, 0)


def test_a_signal_before_the_count_is_reached_shows_in_the_exit_code(broker: ServedBroker) -> None:
    with broker.begin("consume", "unreached", "--count", "2", stdout=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        broker.run("publish", "unreached", "a")
        assert consuming.stdout.readline() == b"a\n"
        consuming.send_signal(signal.SIGINT)
        assert consuming.wait(PATIENCE_SECONDS) == 130
    assert counts(broker, "unreached") == (0, 0)


def test_json_tells_all_and_nothing_else_is_on_stdout(broker: ServedBroker) -> None:
    broker.run("publish", "told", "--header", "k=v", "text")
    broker.run("publish", "told", "--file", "-", stdin=b"\xff\x00")
    text, raw = broker.lines("consume", "told")
    stored = datetime.fromisoformat(text.pop("published_at"))
    assert stored.utcoffset() == timedelta(0)
    assert text.pop("id")
    assert text == {
        "queue": "told",
        "sequence": 1,
        "body": "text",
        "headers": {"k": "v"},
        "attempt": 1,
        "redelivered": False,
    }
    assert base64.b64decode(raw["body_base64"]) == b"\xff\x00"
    assert "body" not in raw


def test_peek_prints_and_takes_nothing(broker: ServedBroker) -> None:
    text = publish_numbers(broker, "peeked", 1_200)
    for _ in range(2):
        assert broker.run("consume", "peeked", "--peek").stdout == text
    assert broker.run("consume", "peeked", "--peek", "--count", "2").stdout == b"0\n1\n"
    peeked = broker.lines("consume", "peeked", "--peek", "--count", "1")[0]
    assert counts(broker, "peeked") == (1_200, 0)
    assert broker.lines("consume", "peeked", "--count", "1")[0] == peeked


def test_peek_shows_a_long_queue_with_priorities_to_its_end(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "ranked", "--mode", "priority")
    text = b"".join(b"%d\n" % number for number in range(700))
    for priority in ("low", "high"):
        broker.run("publish", "ranked", "--stdin-lines", "--priority", priority, stdin=text)
    assert broker.run("consume", "ranked", "--peek").stdout == text * 2
    assert broker.run("consume", "ranked", "--peek", "--count", "701").stdout == text + b"0\n"
    assert counts(broker, "ranked") == (1_400, 0)


def test_peek_of_a_queue_that_is_not_there_fails(broker: ServedBroker) -> None:
    done = broker.run("consume", "nowhere", "--peek")
    assert done.returncode == 1
    assert b"nowhere" in done.stderr


def test_a_reader_that_goes_costs_no_message(broker: ServedBroker) -> None:
    """What `head` has not read from the pipe counts as written; what did not fit the pipe stays in the queue."""
    lines = [b"%06d" % number + b"." * 1000 for number in range(3_000)]
    broker.run("publish", "headed", "--stdin-lines", stdin=b"\n".join(lines))
    with broker.begin("consume", "headed", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        assert consuming.stderr is not None
        assert consuming.stdout.read(10_010)[:1006] == lines[0]
        consuming.stdout.close()
        assert consuming.stderr.read() == b""
        assert consuming.wait(PATIENCE_SECONDS) == 0
    ready, unacked = counts(broker, "headed")
    assert unacked == 0
    assert 3_000 - 300 < ready < 3_000
    rest = broker.run("consume", "headed").stdout.splitlines()
    assert rest == lines[-ready:]


def test_a_reader_that_goes_while_nothing_comes_ends_a_consumer_that_follows(broker: ServedBroker) -> None:
    with broker.begin("consume", "deserted", "--follow", stdout=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        broker.run("publish", "deserted", "a")
        assert consuming.stdout.readline() == b"a\n"
        consuming.stdout.close()
        assert consuming.wait(PATIENCE_SECONDS) == 0


def test_a_reader_that_pauses_for_longer_than_the_lease_costs_no_attempt(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "paused", "--lease", "1s", "--max-attempts", "1")
    text = b"".join(b"%06d" % number + b"." * 1000 + b"\n" for number in range(300))
    broker.run("publish", "paused", "--stdin-lines", stdin=text)
    with broker.begin("consume", "paused", stdout=subprocess.PIPE) as consuming:
        assert consuming.stdout is not None
        first = consuming.stdout.read(1)
        time.sleep(3)
        assert first + consuming.stdout.read() == text
        assert consuming.wait(PATIENCE_SECONDS) == 0
    assert "paused.dlq" not in {queue["name"] for queue in broker.lines("queue", "list")}


def test_it_rides_through_restarts_of_the_broker(tmp_path: Path) -> None:
    def seen() -> list[dict[str, Any]]:
        whole = (line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n"))
        return [json.loads(line) for line in whole]

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    out = tmp_path / "out"
    with (
        served(tmp_path / "d") as broker,
        out.open("wb") as stdout,
        broker.begin("consume", "ridden", "--follow", "--json", stdout=stdout) as consuming,
    ):
        for part in range(4):
            text = b"".join(b"%d\n" % number for number in range(part * 1_000, part * 1_000 + 1_000))
            assert broker.run("publish", "ridden", "--stdin-lines", stdin=text).returncode == 0
            if part % 2:
                until(lambda: str(part * 1_000) in {line["body"] for line in seen()})  # noqa: B023 - called at once
                broker.kill()
                broker.start()
        until(lambda: counts(broker, "ridden") == (0, 0))
        consuming.send_signal(signal.SIGINT)
        assert consuming.wait(PATIENCE_SECONDS) == 0
    times: Counter[str] = Counter()
    for line in seen():
        assert line["redelivered"] or not times[line["body"]]
        times[line["body"]] += 1
    assert set(times) == {str(number) for number in range(4_000)}

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.processes import PATIENCE_SECONDS, ServedBroker, served


def bodies(broker: ServedBroker, queue: str) -> list[bytes]:
    return broker.run("consume", queue).stdout.splitlines()


def test_payloads_arrive_in_order_and_byte_for_byte(broker: ServedBroker) -> None:
    assert broker.run("publish", "payloads", "one", "", "two words", "grün", "-").returncode == 0
    assert broker.run("consume", "payloads").stdout == "one\n\ntwo words\ngrün\n-\n".encode()


def test_arguments_that_are_no_text_arrive_as_they_are(broker: ServedBroker) -> None:
    assert broker.run("publish", "raw", os.fsdecode(b"\xff\xfe")).returncode == 0
    assert broker.run("consume", "raw").stdout == b"\xff\xfe\n"


def test_nothing_is_printed_unless_asked_for(broker: ServedBroker) -> None:
    done = broker.run("publish", "quiet", "x")
    assert (done.stdout, done.stderr) == (b"", b"")
    found = broker.lines("publish", "quiet", "y", "z")
    assert [(line["queue"], line["sequence"]) for line in found] == [("quiet", 2), ("quiet", 3)]
    assert all(line["id"] for line in found)


def test_a_receipt_names_the_message(broker: ServedBroker) -> None:
    receipt = broker.lines("publish", "named", "x")[0]
    assert broker.lines("consume", "named")[0]["id"] == receipt["id"]


def test_a_file_is_one_message(broker: ServedBroker, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\nb\r\n\n\x00")
    assert broker.run("publish", "file", "--file", str(tmp_path / "f")).returncode == 0
    assert broker.run("publish", "file", "--file", "-", stdin=b"from stdin\n").returncode == 0
    assert broker.run("consume", "file").stdout == b"a\nb\r\n\n\x00\nfrom stdin\n\n"


def test_headers_go_with_every_message(broker: ServedBroker) -> None:
    broker.run("publish", "headers", "--header", "a=1", "--header", "b==x=", "--stdin-lines", stdin=b"x\ny")
    assert [line["headers"] for line in broker.lines("consume", "headers")] == [{"a": "1", "b": "=x="}] * 2


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\n\nb", [b"a", b"", b"", b"b"]),
        (b"a\r\nb\r", [b"a\r", b"b\r"]),
        (b"\x00\xff\n\x0b\x0c\x1c\n", [b"\x00\xff", b"\x0b\x0c\x1c"]),
    ],
)
def test_each_line_is_a_message(broker: ServedBroker, text: bytes, lines: list[bytes]) -> None:
    done = broker.run("publish", "lines", "--stdin-lines", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert broker.run("consume", "lines").stdout == b"".join(line + b"\n" for line in lines)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=2000).map(lambda one: one.replace(b"\n", b"")), max_size=3000))
def test_any_lines_arrive(broker: ServedBroker, lines: list[bytes]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    assert broker.run("publish", "any", "--stdin-lines", stdin=text).returncode == 0
    assert broker.run("consume", "any").stdout == text


def test_a_line_longer_than_a_read_arrives(broker: ServedBroker) -> None:
    text = b"x" * 3_000_000 + b"\nshort\n" + b"y" * 70_000
    assert broker.run("publish", "long", "--stdin-lines", stdin=text).returncode == 0
    assert broker.run("consume", "long").stdout == text + b"\n"


def test_a_line_above_the_limit_fails_and_what_was_before_is_counted(broker: ServedBroker) -> None:
    text = b"before\n" * 3 + b"x" * 9_000_000 + b"\nafter\n"
    done = broker.run("publish", "above", "--stdin-lines", stdin=text)
    assert done.returncode == 1
    confirmed = int(done.stderr.split(b" lines were confirmed")[0].rsplit(maxsplit=1)[-1])
    assert confirmed <= len(broker.lines("consume", "above"))


def test_a_full_queue_fails_and_says_how_many_lines_were_confirmed(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "small", "--max-length", "5")
    with broker.begin(
        "publish", "small", "--stdin-lines", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=-1
    ) as publishing:
        assert publishing.stdin is not None
        assert publishing.stdout is not None
        publishing.stdin.write(b"1\n2\n3\n")
        publishing.stdin.flush()
        told = [json.loads(publishing.stdout.readline()) for _ in range(3)]  # while stdin is open
        out, errors = publishing.communicate(b"4\n5\n6\n7\n", PATIENCE_SECONDS)
        assert publishing.returncode == 1
    assert [receipt["sequence"] for receipt in told] == [1, 2, 3]
    assert out == b""
    assert b"max_length" in errors
    assert b"3 lines were confirmed" in errors
    assert bodies(broker, "small") == [b"1", b"2", b"3"]


def wait_for_ready(broker: ServedBroker, queue: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(one["ready"] for one in broker.lines("queue", "list") if one["name"] == queue) < count:
        assert time.monotonic() < deadline


def test_lines_are_sent_while_stdin_is_open(broker: ServedBroker) -> None:
    with broker.begin("publish", "open", "--stdin-lines", stdin=subprocess.PIPE) as publishing:
        assert publishing.stdin is not None
        for expected in (b"first", b"second"):
            publishing.stdin.write(expected + b"\n")
            publishing.stdin.flush()
            assert broker.run("consume", "open", "--count", "1").stdout == expected + b"\n"
        publishing.stdin.close()
        assert publishing.wait(PATIENCE_SECONDS) == 0


def test_ctrl_c_ends_it_and_says_how_many_lines_were_confirmed(broker: ServedBroker) -> None:
    with broker.begin(
        "publish", "stopped", "--stdin-lines", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as publishing:
        assert publishing.stdin is not None
        assert publishing.stderr is not None
        publishing.stdin.write(b"only\n")
        publishing.stdin.flush()
        wait_for_ready(broker, "stopped", 1)
        publishing.send_signal(signal.SIGINT)
        errors = publishing.stderr.read()
        assert publishing.wait(PATIENCE_SECONDS) == 130
    assert b"lines were confirmed" in errors
    assert b"Traceback" not in errors
    assert bodies(broker, "stopped") == [b"only"]


def test_memory_stays_bounded_however_long_the_input_is(broker: ServedBroker) -> None:
    line = b"x" * 999 + b"\n"
    with broker.begin("publish", "endless", "--stdin-lines", stdin=subprocess.PIPE) as publishing:
        assert publishing.stdin is not None
        for _ in range(200):
            publishing.stdin.write(line * 1000)
        publishing.stdin.close()
        _, status, usage = os.wait4(publishing.pid, 0)
        publishing.returncode = os.waitstatus_to_exitcode(status)
    assert publishing.returncode == 0
    assert usage.ru_maxrss * 1024 < 160 << 20  # a fraction of the 200 MB that went through
    assert isinstance(usage, resource.struct_rusage)
    broker.run("queue", "delete", "endless")


def test_it_rides_through_restarts_without_storing_a_line_twice(tmp_path: Path) -> None:
    with (
        served(tmp_path / "d") as broker,
        broker.begin("publish", "ridden", "--stdin-lines", stdin=subprocess.PIPE) as publishing,
    ):
        assert publishing.stdin is not None
        for part in range(6):
            publishing.stdin.write(b"".join(b"%d\n" % (part * 5000 + at) for at in range(5000)))
            publishing.stdin.flush()
            if part % 2:
                broker.kill()
                broker.start()
        publishing.stdin.close()
        assert publishing.wait(PATIENCE_SECONDS) == 0
        assert bodies(broker, "ridden") == [b"%d" % at for at in range(30_000)]


def test_higher_priorities_come_first_and_each_in_order(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "urgent", "--mode", "priority")
    for priority in ("low", "7", "normal", "critical", "high"):
        broker.run("publish", "urgent", f"{priority} 1", f"{priority} 2", "--priority", priority)
    broker.run("publish", "urgent", "none")
    found = broker.run("consume", "urgent", "--peek").stdout
    assert found == b"critical 1\ncritical 2\n7 1\n7 2\nhigh 1\nhigh 2\nnormal 1\nnormal 2\nnone\nlow 1\nlow 2\n"
    assert broker.run("consume", "urgent").stdout == found


def test_what_lives_for_too_short_a_time_is_not_delivered(broker: ServedBroker) -> None:
    broker.run("publish", "mortal", "short", "--ttl", "1ms")
    broker.run("publish", "mortal", "long", "--ttl", "1h", "--stdin-lines", stdin=b"")
    assert broker.run("publish", "mortal", "long", "--ttl", "1h").returncode == 0
    assert broker.run("consume", "mortal").stdout == b"long\n"
    assert [one["dead"]["reason"] for one in broker.lines("dlq", "list", "mortal")] == ["expired"]


def test_a_key_goes_with_every_message(broker: ServedBroker) -> None:
    broker.run("publish", "keyed", "--stdin-lines", "--key", "customer-7", "--header", "k=v", stdin=b"a\nb\n")
    assert [one["headers"] for one in broker.lines("consume", "keyed")] == [{"k": "v", "key": "customer-7"}] * 2


def test_a_topic_goes_to_every_queue_that_is_bound_to_it(broker: ServedBroker) -> None:
    for queue in ("eu", "all"):
        broker.run("queue", "declare", queue)
    broker.run("queue", "bind", "eu", "sales.eu.*")
    broker.run("queue", "bind", "all", "sales.#")
    (receipt,) = broker.lines("publish", "sales.eu.shoes", "x", "--to-topic", "--header", "k=v", "--priority", "high")
    assert receipt.pop("id")
    assert receipt == {"topic": "sales.eu.shoes", "sequence": None, "duplicate": False, "dropped": False}
    assert broker.run("publish", "sales.us.hats", "--stdin-lines", "--to-topic", stdin=b"y\nz\n").returncode == 0
    assert [one["headers"] for one in broker.lines("consume", "eu")] == [{"k": "v", "topic": "sales.eu.shoes"}]
    assert broker.run("consume", "all").stdout == b"x\ny\nz\n"
    done = broker.run("publish", "nobody.is.there", "x", "--to-topic")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nobody.is.there" in done.stderr


def test_what_a_full_queue_drops_is_told(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "lossy", "--max-length", "3", "--overflow", "drop-newest")
    done = broker.run("publish", "lossy", "a", "b", "c", "d", "e", "--json")
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["sequence"], one["dropped"]) for one in found] == [
        *((number, False) for number in (1, 2, 3)),
        *[(None, True)] * 2,
    ]
    assert b"2 of 5 messages were dropped: 'lossy' is full" in done.stderr
    done = broker.run("publish", "lossy", "--stdin-lines", stdin=b"f\ng\n")
    assert done.returncode == 1
    assert b"2 of 2 messages were dropped" in done.stderr
    assert bodies(broker, "lossy") == [b"a", b"b", b"c"]


def test_a_queue_that_blocks_lets_the_publisher_wait(broker: ServedBroker) -> None:
    broker.run("queue", "declare", "narrow", "--max-length", "1", "--overflow", "block")
    assert broker.run("publish", "narrow", "a").returncode == 0
    with broker.begin("publish", "narrow", "b") as publishing:
        assert broker.run("consume", "narrow", "--count", "2").stdout == b"a\nb\n"
        assert publishing.wait(PATIENCE_SECONDS) == 0
    broker.run("publish", "narrow", "c")
    done = broker.run("publish", "narrow", "d", "--timeout", "2")
    assert done.returncode == 1
    assert b"it was not stored" in done.stderr

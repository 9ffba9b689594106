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


@pytest.mark.parametrize("option", [("--ttl", "30s"), ("--delay", "5m"), ("--priority", "9")])
def test_what_the_broker_cannot_do_yet_is_refused_by_name(broker: ServedBroker, option: tuple[str, str]) -> None:
    done = broker.run("publish", "later", "x", *option)
    assert done.returncode == 1
    assert option[0].removeprefix("--").encode() in done.stderr

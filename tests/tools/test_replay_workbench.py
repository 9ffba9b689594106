"""tools.replay as it is called: in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.history.building import Driver, orders
from vibemq.history.replay import replay
from vibemq.history.source import History

ROOT = Path(__file__).parents[2]


def call(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.replay", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_digests_at_several_offsets(tmp_path: Path) -> None:
    orders(tmp_path)
    result = call("digest", tmp_path, "--at", 20, "--at", 5)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["offset"] for line in lines] == [5, 20]
    assert all(line["digests"] == replay(History.open(tmp_path), line["offset"]).digests for line in lines)
    (end,) = map(json.loads, call("digest", tmp_path).stdout.splitlines())
    assert end["offset"] == 23
    beyond = call("digest", tmp_path, "--at", 24)
    assert (beyond.returncode, beyond.stdout) == (1, "")
    assert "ends at offset 23" in beyond.stderr


def published(folder: Path, *bodies: bytes) -> Path:
    with Driver(folder) as driver:
        client = driver.connect("a")
        for body in bodies:
            driver.publish(client, "q", body)
    return folder


def test_the_same_history_has_no_difference(tmp_path: Path) -> None:
    one = published(tmp_path / "one", b"1", b"2")
    other = published(tmp_path / "other", b"1", b"2")
    result = call("diff", one, other)
    assert (result.returncode, result.stdout) == (0, "the same 5 records\n")


def test_the_first_record_that_differs_is_shown(tmp_path: Path) -> None:
    one = published(tmp_path / "one", b"1", b"secret", b"3")
    other = published(tmp_path / "other", b"1", b"22", b"3")
    result = call("diff", one, other)
    assert result.returncode == 1
    assert "record 4 is the first" in result.stdout
    assert "published" in result.stdout
    assert "bytes            6" in result.stdout
    assert "payload SHA-256" in result.stdout
    assert "secret" not in result.stdout


def test_a_shorter_log_differs_where_it_ends(tmp_path: Path) -> None:
    one, other = published(tmp_path / "one", b"1", b"2"), published(tmp_path / "other", b"1")
    result = call("diff", one, other)
    assert result.returncode == 1
    assert f"{other}:\n  the log ends before it" in result.stdout


def overlay(folder: Path, file: str, old: str, new: str) -> Path:
    """A build that differs from this one in a line."""
    shutil.copytree(ROOT / "vibemq", folder / "vibemq", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "vibemq" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return folder


def bisected(data: Path, other: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    python = sys.executable
    return call(
        "bisect",
        data,
        "--python",
        python,
        "--pythonpath",
        ROOT,
        "--python",
        python,
        "--pythonpath",
        other,
        "--json",
        *more,
    )


def long_history(folder: Path) -> tuple[int, int]:
    """Some hundred events; the offsets of the first release and of the first dead letter."""
    with Driver(folder) as driver:
        client = driver.connect("a")
        for number in range(120):
            driver.publish(client, "q", b"%d" % number)
        subscription = driver.subscribe(client, "q", 1)
        for number in range(1, 100):
            driver.ack(client, subscription, number, number + 1)
            driver.credit(client, subscription, 1)
        dead = driver.offset + 1  # after the queue for it
        driver.nack(client, subscription, 100, 101, reject=True, reason="bad")
        driver.credit(client, subscription, 1)
        released = driver.offset
        driver.nack(client, subscription, 101, 102)
        for _ in range(30):
            driver.publish(client, "q", b"more")
        return released, dead


def test_bisect_finds_the_first_event_for_each_part(tmp_path: Path) -> None:
    released, dead = long_history(tmp_path / "data")
    old, new = "                event.error,\n", '                "",\n'
    other = overlay(tmp_path / "other", "projections/dead_letter.py", old, new)
    path = other / "vibemq" / "projections" / "group.py"
    text = path.read_text()
    assert text.count("lane.count_failure(start, end)") == 1
    path.write_text(text.replace("lane.count_failure(start, end)", "lane.count_failure(start, start)"))
    result = bisected(tmp_path / "data", other)
    assert result.returncode == 1, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["part"], one["offset"] - 1, one["event"]) for one in found] == [
        ("dead/2", dead, "dead-lettered"),
        ("queue/1", released, "released"),
    ]
    assert all(one["first"] != one["second"] for one in found)
    only = bisected(tmp_path / "data", other, "--part", "dead/2")
    assert [json.loads(line)["part"] for line in only.stdout.splitlines()] == ["dead/2"]


def test_bisect_finds_the_event_that_a_build_cannot_apply(tmp_path: Path) -> None:
    _, dead = long_history(tmp_path / "data")
    other = overlay(
        tmp_path / "other",
        "projections/dead_letter.py",
        '        """Messages came."""\n',
        '        """Messages came."""\n        assert not event.error, "planted"\n',
    )
    (found,) = map(json.loads, bisected(tmp_path / "data", other).stdout.splitlines())
    assert (found["part"], found["offset"], found["first"]) == ("replay", dead + 1, None)
    assert "planted" in found["second"]


def test_a_difference_that_passes_is_found_when_every_event_is_compared(tmp_path: Path) -> None:
    with Driver(tmp_path / "data") as driver:
        client = driver.connect("a")
        driver.publish(client, "q", *[b"x"] * 200)
        subscription = driver.subscribe(client, "q", 1)
        released = driver.offset
        driver.nack(client, subscription, 1, 2)
        for number in range(2, 150):  # the first ack settles what failed, and with it the difference
            driver.credit(client, subscription, 1)
            driver.ack(client, subscription, number, number + 1)
        driver.disconnect(client)
    old, new = "lane.count_failure(start, end)", "lane.count_failure(start, start)"
    other = overlay(tmp_path / "other", "projections/group.py", old, new)
    assert bisected(tmp_path / "data", other).stdout == ""
    (found,) = map(json.loads, bisected(tmp_path / "data", other, "--every", "1").stdout.splitlines())
    assert (found["part"], found["offset"]) == ("queue/1", released + 1)


def test_a_build_agrees_with_itself(tmp_path: Path) -> None:
    orders(tmp_path)
    result = call("bisect", tmp_path, "--python", sys.executable, "--python", sys.executable)
    assert (result.returncode, result.stderr) == (0, "")
    assert "agree" in result.stdout


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_a_build_that_cannot_run_is_named(tmp_path: Path, python: str) -> None:
    orders(tmp_path)
    result = call("bisect", tmp_path, "--python", sys.executable, "--python", python)
    assert result.returncode == 1
    assert python in result.stderr
    assert "Traceback" not in result.stderr

"""The commands as people call them, the sessions of the documentation, and a running broker beside them."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.history.building import orders
from tests.history.sessions import PAGES, make_folders, normalised, run, sessions
from vibemq.cli.main import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sessions")
    make_folders(folder)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.mark.parametrize("page", PAGES)
def test_the_sessions_in_the_documentation_are_real(folders: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.chdir(folders)
    shown = list(sessions(page))
    assert len(shown) >= 3
    for command, output in shown:
        assert normalised(run(command)) == normalised(output), command


@pytest.mark.parametrize(
    ("command", "folder", "code"),
    [
        ("replay", "orders-data", 0),
        ("replay", "tampered-data", 1),
        ("replay", "damaged-data", 1),
        ("replay", "torn-data", 0),
        ("replay", "nowhere", 2),
        ("verify", "orders-data", 0),
        ("verify", "tampered-data", 0),
        ("verify", "damaged-data", 1),
        ("verify", "torn-data", 0),
        ("verify", "nowhere", 2),
        ("audit", "orders-data", 0),
        ("audit", "damaged-data", 1),
        ("audit", "nowhere", 2),
    ],
)
def test_exit_codes(folders: Path, command: str, folder: str, code: int) -> None:
    result = call(command, "--data", folders / folder)
    assert result.exit_code == code
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not (folders / "nowhere").exists()


def test_a_damaged_log_is_named_in_the_error(folders: Path) -> None:
    result = call("replay", "--data", folders / "damaged-data")
    assert "record 3" in result.stderr
    assert "vibemq verify" in result.stderr
    assert result.stdout == ""


def test_json_is_all_that_stdout_gets(folders: Path) -> None:
    data = folders / "orders-data"
    (line,) = call("replay", "--data", data, "--json").stdout.splitlines()
    replayed = json.loads(line)
    assert (replayed["offset"], replayed["checkpoint"]["agreement"]) == (23, "same")
    events = [json.loads(line) for line in call("audit", "--data", data, "--json").stdout.splitlines()]
    assert [event["offset"] for event in events] == list(range(23))
    assert events[0]["client"] is None
    *problems, summary = (json.loads(line) for line in call("verify", "--data", data, "--json").stdout.splitlines())
    assert (problems, summary["records"]) == ([], 23)


def test_a_mismatch_in_json_names_the_part_and_both_digests(folders: Path) -> None:
    found = json.loads(call("replay", "--data", folders / "tampered-data", "--json").stdout)
    (difference,) = found["checkpoint"]["differences"]
    assert difference["part"] == "queue/1"
    assert difference["replayed"] == found["digests"]["queue/1"] != difference["found"]


def test_bodies_are_never_shown(folders: Path) -> None:
    data = folders / "orders-data"
    assert b"order 2" in next((data / "log").glob("*.seg")).read_bytes()
    for arguments in ([], ["--json"], ["--message", "3-1"]):
        assert "order 2" not in call("audit", "--data", data, *arguments).output


@pytest.mark.parametrize(
    ("arguments", "offsets"),
    [
        (["--queue", "orders.dlq", "--kind", "dead-lettered, acked"], [11, 17]),
        (["--client", "worker-1", "--kind", "released"], [8]),
        (["--client", "127.0.0.1:50003", "--limit", "2"], [14, 15]),
        (["--client", "#1", "--since", "2026-11-23T14:00:16Z"], [20, 21]),
        (["--until", "2026-11-23T14:00:03+00:00"], [0, 1]),
        (["--message", "3-0"], [3, 6, 7]),
        (["--since", "5m", "--queue", "nobody"], []),
    ],
)
def test_audit_filters(folders: Path, arguments: list[str], offsets: list[int]) -> None:
    result = call("audit", "--data", folders / "orders-data", "--json", *arguments)
    assert [json.loads(line)["offset"] for line in result.stdout.splitlines()] == offsets
    assert ("--limit" in result.stderr) == ("--limit" in arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kind", "eaten"],
        ["--message", "x"],
        ["--since", "soon"],
        ["--limit", "0"],
        ["--message", "3-9"],
        ["--message", "4-0"],
    ],
)
def test_what_cannot_be_asked(folders: Path, arguments: list[str]) -> None:
    assert call("audit", "--data", folders / "orders-data", *arguments).exit_code == 2


def test_many_events_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders(tmp_path)
    whole = call("audit", "--data", tmp_path).stdout
    monkeypatch.setattr("vibemq.cli.audit.PAGE", 5)
    paged = call("audit", "--data", tmp_path).stdout
    assert [line.split() for line in paged.splitlines()] == [line.split() for line in whole.splitlines()]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """The URL of a broker that runs on `tmp_path`."""
    command = [sys.executable, "-m", "vibemq.cli.main", "serve", "--data", str(tmp_path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"vibemq://\S+:\d+", line) for line in process.stderr)))
        yield found[0].rstrip(",")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_a_running_broker_agrees_with_its_log(tmp_path: Path, broker: str) -> None:
    assert call("publish", "orders", "one", "two", "--url", broker).exit_code == 0
    consume = [sys.executable, "-m", "vibemq.cli.main", "consume", "orders", "--count", "1", "--url", broker]
    assert subprocess.run(consume, capture_output=True, check=True, timeout=30).stdout == b"one\n"
    live = json.loads(call("replay", "--url", broker, "--json").stdout)
    replayed = json.loads(call("replay", "--data", tmp_path, "--at", live["offset"], "--json").stdout)
    assert replayed["digests"] == live["digests"]
    both = call("replay", "--data", tmp_path, "--url", broker)
    assert both.exit_code == 0
    assert "running broker: the same digests" in both.stdout
    assert call("verify", "--data", tmp_path).exit_code == 0
    assert "acked" in call("audit", "--data", tmp_path, "--queue", "orders").stdout
    assert call("replay", "--url", broker, "--at", "3").exit_code == 2


def test_a_broker_on_another_folder_differs(tmp_path: Path, broker: str) -> None:
    orders(tmp_path / "other")
    result = call("replay", "--data", tmp_path / "other", "--url", broker)
    assert result.exit_code == 1

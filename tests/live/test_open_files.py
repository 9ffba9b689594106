"""Connections cannot use up the files that a broker needs for its log."""

import logging
import resource
import socket
import sys
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker
from vibemq.server import open_files


def limited(tmp_path: Path, limit: str) -> RunningBroker:
    """A broker with small segments that may have few files open, as `ulimit` is told."""
    (tmp_path / "vibemq.toml").write_text("segment_bytes = 65536\n")
    program = ["sh", "-c", f'ulimit {limit} && exec "$0" "$@"', sys.executable, "-m", "vibemq.cli.main"]
    return RunningBroker(tmp_path / "data", ["--config", str(tmp_path / "vibemq.toml")], program=program)


def test_connections_without_end_leave_the_log_its_files(tmp_path: Path) -> None:
    broker = limited(tmp_path, "-n 200").start()
    try:
        with vibemq.connect_sync(broker.url) as client:
            for _ in range(99):
                broker.json()
            more = [socket.create_connection(("127.0.0.1", broker.port), timeout=20) for _ in range(200)]
            for number in range(100):  # some segments
                client.publish_many("q", [b"%d" % number + bytes(1000)] * 5)
            assert client.show_queue("q")["messages"] == 500
            for connection in more:
                with connection:
                    assert b"limit of 100 connections" in connection.recv(4096)
        (warning,) = [event for event in broker.events() if event["level"] == "warning"]
        assert (warning["open_files"], warning["connections"]) == (200, 100)
        assert broker.stop() == 0
    finally:
        broker.close()


def test_a_soft_limit_is_raised(tmp_path: Path) -> None:
    broker = limited(tmp_path, "-Sn 100").start()
    try:
        clients = [broker.json() for _ in range(150)]
        assert all(client.ask(type="ping-nobody")["type"] == "failed" for client in clients)
    finally:
        broker.close()


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "possible"),
    [
        (1024, 524_288, 21_152, 20_000),
        (1024, -1, 21_152, 20_000),
        (524_288, 524_288, None, 20_000),
        (-1, -1, None, 20_000),
        (1024, 20_000, 20_000, 18_848),
        (1024, 4096, 4096, 2944),
        (256, 256, 256, 128),
    ],
)
def test_as_many_as_the_limit_has_room_for(
    soft: int, hard: int, raised: int | None, possible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 is no limit."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    assert open_files.connections_possible(20_000, logging.getLogger("test")) == possible
    assert limits == ([] if raised is None else [(raised, hard)])

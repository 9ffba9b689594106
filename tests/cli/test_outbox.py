"""`vibemq outbox`: from a table of a program to a queue."""

import json
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.processes import PATIENCE_SECONDS, ServedBroker, run
from vibemq.outbox import SqliteOutbox


@pytest.fixture
def outbox(tmp_path: Path) -> SqliteOutbox:
    made = SqliteOutbox(tmp_path / "app.db")
    made.create()
    return made


def add(outbox: SqliteOutbox, queue: str, *bodies: bytes) -> None:
    with closing(sqlite3.connect(outbox.path)) as connection:
        outbox.add_many(connection, queue, bodies)
        connection.commit()


def test_once_publishes_what_is_there(broker: ServedBroker, outbox: SqliteOutbox) -> None:
    add(outbox, "once", b"1", b"2")
    done = broker.run("outbox", "relay", "--sqlite", str(outbox.path), "--once")
    assert (done.returncode, done.stdout) == (0, b"published 2\n")
    assert broker.run("consume", "once").stdout == b"1\n2\n"


def test_it_goes_on_until_it_is_told_to_end(broker: ServedBroker, outbox: SqliteOutbox) -> None:
    command = ("outbox", "relay", "--sqlite", str(outbox.path), "--poll", "10ms")
    with broker.begin(*command, stderr=subprocess.PIPE) as process:
        for _ in range(3):
            add(outbox, "going", b"x")
            deadline = time.monotonic() + PATIENCE_SECONDS
            while outbox.status().waiting:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert broker.run("consume", "going").stdout == b"x\n" * 3


def test_status_names_what_was_parked_and_retry_frees_it(broker: ServedBroker, outbox: SqliteOutbox) -> None:
    add(outbox, "fine", b"1")
    with closing(sqlite3.connect(outbox.path)) as connection:
        connection.execute("INSERT INTO vibemq_outbox (queue, body) VALUES (' bad', 'x')")
        connection.commit()
    where = ("--sqlite", str(outbox.path))
    done = broker.run("outbox", "relay", *where, "--once")
    assert (done.returncode, done.stdout) == (0, b"published 1\n")
    assert b"parked: InvalidName" in done.stderr
    (shown,) = map(json.loads, run("outbox", "status", *where, "--json").stdout.splitlines())
    assert (shown["waiting"], shown["parked"]) == (0, 1)
    assert [(row["id"], row["queue"]) for row in shown["parked_rows"]] == [(2, " bad")]
    assert b"InvalidName" in run("outbox", "status", *where).stdout
    assert run("outbox", "retry", "1", *where).stdout == b"0 will be tried again\n"
    assert run("outbox", "retry", "2", *where, "--json").stdout == b'{"count":1}\n'
    assert run("outbox", "reset", "--yes", *where).returncode == 0


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    assert run("outbox", "status").returncode == 2
    empty = run("outbox", "status", "--sqlite", str(tmp_path / "empty.db"))
    assert empty.returncode == 1
    assert b"vibemq outbox create" in empty.stderr
    printed = run("outbox", "create", "--print", "--sqlite", "x.db", "--table", "mine")
    assert b'CREATE TABLE IF NOT EXISTS "mine"' in printed.stdout

"""A disk that fills up under a running broker: publishes are refused, the rest goes on, and so do they in the end."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.counting import counted
from tests.running import JsonClient, RunningBroker, running

MIB = 1 << 20
SETTINGS = f"""
segment_bytes = {4 * MIB}
reserve_bytes = {4 * MIB}
checkpoint_interval_ms = 200
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


@pytest.fixture
def broker(tmp_path: Path, small_disk: Path) -> Iterator[RunningBroker]:
    """A broker on the small disk; its own log is elsewhere."""
    (tmp_path / "vibemq.toml").write_text(SETTINGS)
    with running(
        small_disk / "data", "--config", str(tmp_path / "vibemq.toml"), log=tmp_path / "broker.log"
    ) as started:
        yield started


def fill(client: JsonClient, body: str) -> int:
    """Publish until the broker refuses; how many messages it took."""
    confirmed = 0
    while True:
        answer = client.ask(type="publish", queue="q", messages=[{"body": body}] * 5)
        if answer["type"] == "failed":
            assert answer["code"] == 207
            assert "disk is full" in answer["text"]
            return confirmed
        confirmed += 5
        assert confirmed < 400, "a disk of 32 MiB cannot hold this"


def test_a_full_disk_refuses_publishes_and_nothing_else(broker: RunningBroker, small_disk: Path) -> None:
    with counted("G8_TMPFS", 0) as disks:
        fill_and_go_on(broker, small_disk)
        disks.add(1)


def fill_and_go_on(broker: RunningBroker, small_disk: Path) -> None:
    """Fill it, take from it, restart on it, and let it grow."""
    client = broker.json()
    producer = broker.json(hello=False)
    producer.ask(type="hello", producer=77)
    producer.ask(type="publish", queue="once", messages=[{"body": "a"}], sequence=1)
    body = "x" * 100_000
    confirmed = fill(client, body)
    subscription = client.ask(type="subscribe", queue="q", messages=20, bytes=8 * MIB)["result"]["subscription"]
    taken = 0
    while taken < 20:
        delivered = client.read_until("deliver")
        assert {len(message["body"]) for message in delivered["messages"]} == {len(body)}
        taken += len(delivered["messages"])
    assert client.ask(type="ack", subscription=subscription, deliveries=[[1, 21]])["type"] == "done"
    assert client.ask(type="publish", queue="q", messages=[{"body": body}])["code"] == 207
    again = producer.ask(type="publish", queue="once", messages=[{"body": "a"}], sequence=1)
    assert (again["type"], again["duplicate"]) == ("confirmed", True), "what is stored already needs no room"

    broker.kill()
    broker.start()
    client = broker.json()
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] == confirmed - 20
    confirmed += fill(client, body)  # the end of the last segment, which was taken ahead, was given back

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)  # noqa: S607
    while (answer := client.ask(type="publish", queue="q", messages=[{"body": "small"}]))["type"] == "failed":
        assert answer["code"] == 207
        client.ask(type="flush")
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] == confirmed - 20 + 1
    assert broker.stop() == 0


def test_a_start_on_a_full_disk_needs_no_index(broker: RunningBroker, small_disk: Path) -> None:
    """Whoever removes the index to make room, or restores a folder without one, can consume all the same."""
    client = broker.json()
    confirmed = fill(client, "x" * 100_000)
    broker.kill()
    shutil.rmtree(small_disk / "data" / "index")
    fill_with_junk(small_disk / "junk")
    broker.start()
    client = broker.json()
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] == confirmed
    subscription = client.ask(type="subscribe", queue="q", messages=1, bytes=MIB)["result"]["subscription"]
    assert len(client.read_until("deliver")["messages"]) == 1
    assert client.ask(type="ack", subscription=subscription, deliveries=[[1, 2]])["type"] == "done"
    assert not (small_disk / "data" / "index").exists()
    (small_disk / "junk").unlink()
    assert broker.stop() == 0

    broker.start()
    client = broker.json()
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] == confirmed - 1
    assert (small_disk / "data" / "index").exists()
    assert broker.stop() == 0


def fill_with_junk(file: Path) -> None:
    """Take what room is left."""
    with file.open("wb", buffering=0) as junk:
        try:
            while True:
                junk.write(bytes(4096))
        except OSError as problem:
            assert problem.errno == errno.ENOSPC  # noqa: PT017 - the loop ends in no other way

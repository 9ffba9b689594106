"""Schedules in a broker of its own: killed again and again, each of their times has one message."""

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

import vibemq
from tests.running import running
from vibemq.client.sync_messages import SyncMessage
from vibemq.errors import UnknownSchedule

TIMES: Final = 40


@pytest.mark.parametrize("options", [(), ("--fsync", "interval:20")], ids=["always", "interval"])
def test_a_broker_that_is_killed_publishes_no_time_twice_and_leaves_none_out(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with running(tmp_path / "data", *options) as broker:
        with vibemq.connect_sync(broker.url) as client:
            client.set_schedule("beat", "beats", b"tick", every="100ms", times=TIMES, misfire="all")
        for _ in range(4):
            time.sleep(0.35)
            broker.kill()
            broker.start()
        with vibemq.connect_sync(broker.url) as client:
            got: list[SyncMessage] = []
            while len(got) < TIMES:
                messages = client.pull("beats", max_messages=TIMES, wait=20.0)
                assert messages, f"{len(got)} came, and no more"
                client.ack_all(messages)
                got += messages
            assert not client.pull("beats", max_messages=TIMES, wait=0.3)
            with pytest.raises(UnknownSchedule):
                client.schedules("beat")
    first, *_ = times = [datetime.fromisoformat(str(one.headers["scheduled_for"])) for one in got]
    assert times == [first + at * timedelta(milliseconds=100) for at in range(TIMES)]


def test_a_schedule_in_json_is_there_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "data") as broker:
        client = broker.json()
        said = {"name": "nightly", "queue": "reports", "body": "go", "headers": {"k": 1}}
        done = client.ask(type="set-schedule", **said, cron="0 3 * * *", zone="Australia/Lord_Howe")
        assert done["result"]["body"] == "go"
        assert broker.stop() == 0
        broker.start()
        (found,) = broker.json().ask(type="list-schedules", name="nightly")["result"]
        assert found == done["result"]
        assert found["next_us"] % 60_000_000 == 0
        refused = broker.json().ask(type="set-schedule", name="x", queue="q", every_ms=1000, zone="../../etc/passwd")
        assert (refused["type"], refused["code"]) == ("failed", 204)

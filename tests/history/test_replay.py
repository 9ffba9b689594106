"""Replay from zero against the live state, and checkpoints that were tampered with."""

from pathlib import Path

import pytest

from tests.history.building import LOG_ID, START_US, Driver, orders
from vibemq.errors import BeyondLog, CorruptLog, EventNotApplied, UsageError
from vibemq.events import Acked
from vibemq.history.replay import Agreement, differences, digests_at, replay
from vibemq.history.source import History
from vibemq.log.disk import Disk
from vibemq.log.log import Log
from vibemq.projections import part as parts


def test_replay_gives_the_live_digests_at_every_offset(tmp_path: Path) -> None:
    live: dict[int, dict[str, str]] = {}
    with Driver(tmp_path, segment_bytes=4096) as driver:
        client = driver.connect("a")
        subscription = driver.subscribe(client, "q", 3)
        for number in range(40):
            driver.publish(client, "q", *[b"x" * 50] * (number % 3 + 1))
            driver.credit(client, subscription, 1)
            driver.ack(client, subscription, number, number + 1)
            live[driver.offset] = driver.digests
            if number == 20:
                driver.checkpoint()
        driver.seal()
        history = History.open(tmp_path)  # beside the writer, which holds the lock
        assert dict(digests_at(history, live)) == live
        last = max(live)
        assert replay(history, last).digests == live[last]
        assert replay(history).digests == driver.digests
        assert replay(history).checkpoint.agreement is Agreement.SAME


def test_nothing_is_changed_by_reading(tmp_path: Path) -> None:
    orders(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    replay(History.open(tmp_path))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    assert after == before


def test_a_state_before_the_checkpoint_is_not_compared_with_it(tmp_path: Path) -> None:
    orders(tmp_path)
    verdict = replay(History.open(tmp_path), 5).checkpoint
    assert (verdict.agreement, verdict.start) == (Agreement.LATER, 9)


def test_beyond_the_end_there_is_no_state(tmp_path: Path) -> None:
    orders(tmp_path)
    history = History.open(tmp_path)
    end = replay(history).offset
    assert replay(history, end).offset == end
    with pytest.raises(BeyondLog, match=f"ends at offset {end}"):
        replay(history, end + 1)
    with pytest.raises(BeyondLog):
        list(digests_at(history, [0, end + 1]))


def test_a_folder_without_a_log_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no log"):
        History.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["folder", "empty"])
def test_without_a_checkpoint_replay_says_so(tmp_path: Path, how: str) -> None:
    with Driver(tmp_path) as driver:
        driver.publish(driver.connect("a"), "q", b"1")
        if how == "folder":
            driver.checkpoint()
    if how == "folder":
        Disk(tmp_path).remove_folder("index")
    assert replay(History.open(tmp_path)).checkpoint.agreement is Agreement.NO_CHECKPOINT


def planted(folder: Path, part: str) -> dict[str, str]:
    """A history whose checkpoint holds something else for one part; the live digests."""
    with Driver(folder) as driver:
        client = driver.connect("a")
        driver.publish(client, "q", b"1", b"2")
        found = {one.key: one for one in driver.storage.state.parts()}[part]
        snapshot = found.snapshot()
        if part == "queue/1":
            snapshot[9] += 1  # bytes
        else:
            snapshot[1] += 1  # the time of the last event
        blob = parts._encoder.encode(snapshot)
        driver.checkpoint({part: blob})
        if part == "queue/1":
            driver.publish(client, "q", b"3")
        return driver.digests


@pytest.mark.parametrize("part", ["queue/1", "audit"])
def test_a_planted_mismatch_is_found(tmp_path: Path, part: str) -> None:
    live = planted(tmp_path, part)
    replayed = replay(History.open(tmp_path))
    assert replayed.digests == live
    assert replayed.checkpoint.agreement is Agreement.DIFFERENT
    (found,) = replayed.checkpoint.differences
    assert (found.part, found.replayed) == (part, live[part])
    assert found.found not in {None, live[part]}


def test_a_checkpoint_that_the_log_contradicts_is_different(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        client = driver.connect("a")
        driver.publish(client, "q", b"1")
        snapshot = driver.storage.state.queues[1].snapshot()
        snapshot[6] = [(0, 7)]  # the next sequence
        driver.checkpoint({"queue/1": parts._encoder.encode(snapshot)})
        driver.publish(client, "q", b"2")
    verdict = replay(History.open(tmp_path)).checkpoint
    assert verdict.agreement is Agreement.DIFFERENT
    assert "sequence 2 after 6" in verdict.text


@pytest.mark.parametrize("damage", ["garbage", "truncated", "flipped", "part"])
def test_a_damaged_index_is_said_to_be_no_loss(tmp_path: Path, damage: str) -> None:
    with Driver(tmp_path) as driver:
        driver.publish(driver.connect("a"), "q", b"1")
        driver.checkpoint({"queue/1": b"\xc1"} if damage == "part" else None)
        live = driver.digests
    path = tmp_path / "index" / "data.mdb"
    data = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif damage == "truncated":
        path.write_bytes(data[:5000])
    elif damage == "flipped":
        at = data.index(b"topology") + 20
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    replayed = replay(History.open(tmp_path))
    assert replayed.checkpoint.agreement is Agreement.UNUSABLE
    assert replayed.digests == live


def test_records_that_the_index_proves_to_be_missing_are_no_shorter_history(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.publish(driver.connect("a"), "q", b"1")
        driver.checkpoint()
        record = driver.storage.log.read(driver.offset - 1)
    (path,) = (tmp_path / "log").glob("*.seg")
    path.write_bytes(path.read_bytes()[: record.at])
    with pytest.raises(CorruptLog, match="synced"):
        replay(History.open(tmp_path))


def test_an_event_that_does_not_fit_is_named(tmp_path: Path) -> None:
    log = Log.open(Disk(tmp_path), new_log_id=lambda: LOG_ID, segment_bytes=4096, reserve_bytes=4096)
    log.recover()
    log.append(Acked(9, 0, 1, ((0, 1, 2),), 10), START_US)
    group = log.take_group()
    assert group is not None
    log.write_group(group, sync=True)
    log.close()
    with pytest.raises(EventNotApplied, match="queue 9") as caught:
        replay(History.open(tmp_path))
    assert (caught.value.offset, caught.value.kind) == (0, "acked")


def test_differences_name_what_only_one_side_has() -> None:
    found = differences({"a": "1", "b": "2", "all": "x"}, {"b": "3", "c": "4", "all": "y"})
    assert found == (("a", "1", None), ("b", "2", "3"), ("c", None, "4"))


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    orders(tmp_path)
    seen: list[tuple[int, int]] = []
    replay(History.open(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)

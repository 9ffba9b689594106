"""What the log says of itself: positions, places, and how far it may be read."""

from functools import partial
from pathlib import Path

import pytest

from tests.log.building import (
    COUNT,
    LOG_ID,
    SEGMENT_BYTES,
    TIME_US,
    change,
    cut,
    event,
    fill,
    full_log,
    new_log,
    open_log,
    recovered,
    write,
)
from tests.sim.disk import SimulatedDisk
from vibemq.errors import BeyondLog, CorruptLog, UsageError, WriteFailed
from vibemq.log.disk import Disk
from vibemq.log.frame import Mark, Place
from vibemq.log.log import Group, Log
from vibemq.log.segment import SEGMENT_HEADER_BYTES, SegmentHeader, list_bases, read_header
from vibemq.log.space import STEP_BYTES
from vibemq.log.verify import verify


def half_done() -> Log:
    """Five records that count as written, and three more in the file, which may be half written for all it knows."""
    log = new_log(SimulatedDisk(), segment_bytes=1 << 20)
    fill(log, 5)
    for number in range(6, 9):
        log.append(event(number), TIME_US, [b"x"])
    group = log.take_group()
    assert group is not None
    log.write_group(group, sync=False)
    return log


def test_nothing_is_read_that_does_not_count_as_written() -> None:
    log = half_done()
    first = log.place_of(0)
    assert [record.offset for record in log.read_range(first.base, first.at, 1 << 20)] == [0, 1, 2, 3, 4]
    assert [record.offset for record in log.read_range(first.base, first.at, 1)] == [0]
    assert [record.offset for record in log.scan(0)] == [record.offset for record in log.scan(0, 8)] == [0, 1, 2, 3, 4]
    assert [record.offset for record in log.scan(1, 3)] == [1, 2]
    assert log.find_sequence(first, 1, 0, 5).offset == 4
    for refused in (lambda: log.find_sequence(first, 1, 0, 6), lambda: log.read(5), lambda: log.place_of(5)):
        with pytest.raises(BeyondLog):
            refused()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_progress_counts_segments(start: int, read_only: bool) -> None:
    disk, seen = SimulatedDisk(), list[tuple[int, int]]()
    open_it = partial(Log.open, disk, new_log_id=lambda: LOG_ID, segment_bytes=SEGMENT_BYTES, start=start)
    log = open_it()
    log.recover()
    fill(log, 50)
    log.close()
    open_it(read_only=read_only, progress=lambda *counts: seen.append(counts)).recover()
    segments = len(list_bases(disk))
    assert seen == [(number, segments) for number in range(1, segments + 1)]
    assert segments > 1


def test_a_log_is_created_and_refused_as_asked() -> None:
    disk = SimulatedDisk()
    with pytest.raises(UsageError, match="segments of 4095 bytes are too small; the least is 4096"):
        open_log(disk, segment_bytes=4095)
    with pytest.raises(UsageError, match="there is no log in simulated: name the data folder"):
        Log.open(disk, new_log_id=lambda: LOG_ID, read_only=True)
    open_log(disk, segment_bytes=4096)
    assert read_header(disk, 0, LOG_ID) == SegmentHeader(LOG_ID, 0, 0, 0, 0)


def test_a_writer_knows_what_must_be_there() -> None:
    disk, _, records = full_log()
    log, _, _ = recovered(disk)
    last = records[-1]
    change(disk, last.base, last.at, b"lost")
    with pytest.raises(CorruptLog, match=f"record {COUNT - 1}: no record header"):
        list(log.scan(0))
    reader = Log.open(disk, new_log_id=lambda: 0, read_only=True)
    assert len(list(reader.scan(0))) == COUNT - 1


def test_the_index_shortens_the_way_to_a_record() -> None:
    disk, _, records = full_log()
    log, _, _ = recovered(disk)
    asked: list[int] = []

    def locate(offset: int) -> Place:
        asked.append(offset)
        return records[offset].place

    log.use_index(locate)
    assert log.read(COUNT - 2).at == records[COUNT - 2].at
    assert log.read(COUNT - 3, records[COUNT - 3].place).at == records[COUNT - 3].at  # it is known already
    assert asked == [COUNT - 2]


FAILED = {
    "pwrite": "writing the log failed",
    "fdatasync": "writing the log failed",
    "allocate": "taking room on the disk failed",
}


@pytest.mark.parametrize("operation", FAILED)
def test_a_failure_says_what_is_sure(operation: str) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 10)
    disk.fail(operation)
    with pytest.raises(WriteFailed) as caught:
        fill(log, COUNT)
    assert f"nothing after record {log.synced - 1} is known to be on the disk" in str(caught.value)
    assert str(caught.value) == log.failure
    assert log.failure.startswith(f"{FAILED[operation]}: ")
    mark = Mark(log.next_offset, log.last_base, log.last_at, 0)
    group = Group([], 0, mark)
    for refused in (lambda: log.append(event(1), TIME_US), lambda: log.write_group(group, sync=True)):
        with pytest.raises(WriteFailed) as again:
            refused()
        assert str(again.value) == log.failure
    calls = dict(disk.calls)
    log.prepare()
    with pytest.raises(WriteFailed):
        log.sync()
    assert disk.calls == calls


def test_a_sync_that_fails_says_so() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 10)
    disk.fail("fdatasync")
    with pytest.raises(WriteFailed, match=r"syncing the log failed: .*; nothing after record 9 is known"):
        log.sync()


def test_a_log_that_was_not_recovered_takes_no_room() -> None:
    disk = SimulatedDisk()
    log = open_log(disk)
    log.prepare()
    with pytest.raises(WriteFailed, match="not open for writing"):
        log.sync()


def test_positions_move_with_groups_and_syncs() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    assert (log.next_offset, log.written, log.synced, log.buffered_bytes) == (0, 0, 0, 0)
    log.append(event(1), TIME_US, [b"abc", b"def"])
    size = log.buffered_bytes
    log.append(event(2), TIME_US)
    assert (log.next_offset, log.written, log.synced) == (2, 0, 0)
    assert (log.last_base, log.last_at) == (0, 64 + size)
    group = log.take_group()
    assert group is not None
    assert (log.buffered_bytes, log.take_group()) == (0, None)
    assert group.bytes == sum(len(part) for chunk in group.chunks for part in chunk.parts) > size
    log.write_group(group, sync=False)
    log.group_done(group, synced=False)
    assert (log.written, log.synced, log.mark.offset, log.synced_mark.offset) == (2, 0, 2, 0)
    mark = log.sync()
    assert log.synced == 0
    log.sync_done(mark)
    assert (log.synced, log.synced_mark) == (2, log.mark)
    log.sync_done(Mark(1, 0, 64, 7))  # it came late
    assert (log.synced, log.synced_mark) == (2, log.mark)
    assert log.read(1).synced == 0
    log.append(event(3), TIME_US)
    group = log.take_group()
    assert group is not None
    log.write_group(group, sync=True)
    log.group_done(group, synced=True)
    assert (log.written, log.synced, log.synced_mark) == (3, 3, log.mark)
    assert log.read(2).synced == 2
    assert log.holds(log.mark)


def test_closing_gives_back_files_room_and_lock(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    open_log(disk).close()  # not recovered: there is only the lock
    log = new_log(disk)
    first = log._writing
    fill(log, COUNT)
    assert log.admit(SEGMENT_BYTES)
    segment = log._writing
    assert first is not None
    assert segment is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        first.file.size()
    assert segment.file.size() >= segment.end
    assert any(name.endswith(".tmp") for name in disk.list("log"))
    for _ in range(2):
        log.close()
    assert not any(name.endswith(".tmp") for name in disk.list("log"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        segment.file.size()
    with pytest.raises(UsageError, match="recover the log"):
        log.append(event(1), TIME_US)
    new_log(disk).close()


@pytest.mark.parametrize("segment_bytes", [SEGMENT_BYTES, STEP_BYTES + 4096])  # one has its room at once, one by and by
def test_a_segment_is_filled_to_its_last_byte(segment_bytes: int) -> None:
    log = new_log(SimulatedDisk(), segment_bytes=segment_bytes)
    log.append(event(1), TIME_US)
    left = segment_bytes - SEGMENT_HEADER_BYTES - 2 * log.buffered_bytes
    log.append(event(2), TIME_US, [bytes(left)])
    assert log.last_base == 0
    log.append(event(3), TIME_US)
    assert log.last_base == 2


def test_a_record_longer_than_a_segment_goes_into_one_that_is_empty() -> None:
    disk, bases, _ = full_log()
    cut(disk, bases[-1], SEGMENT_HEADER_BYTES)
    log, _, _ = recovered(disk)
    log.append(event(1), TIME_US, [bytes(3 * SEGMENT_BYTES)])
    write(log)
    assert [facts.base for facts in log.segments()] == bases
    log.close()
    assert verify(disk, LOG_ID).problems == []
    assert len(recovered(disk)[2]) == bases[-1] + 1

"""Disks that fail, fill up, or take less than they were given."""

import errno
import os
from pathlib import Path

import pytest

from tests.log.building import SEGMENT_BYTES, TIME_US, acked, event, fill, new_log, open_log, recovered, write
from tests.sim.disk import SimulatedDisk, SimulatedFile
from vibemq.errors import BeyondLog, CorruptLog, DataFolderLocked, OutOfSpace, UsageError, WriteFailed
from vibemq.log.disk import Disk
from vibemq.log.log import Log
from vibemq.log.segment import segment_name


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("after", range(6))
def test_after_a_failed_write_or_sync_nothing_is_accepted(operation: str, after: int) -> None:
    disk = SimulatedDisk(after)
    log = new_log(disk)
    fill(log, 20)
    disk.fail(operation, errno.EIO, after)
    with pytest.raises(WriteFailed):
        fill(log, 200)
    synced = log.synced
    disk.heal()
    for refused in (
        lambda: log.append(event(1), TIME_US),
        lambda: log.admit(1),
        log.take_group,
        log.sync,
        log.space_returned,
    ):
        with pytest.raises(WriteFailed, match="must end"):
            refused()
    disk.crash()
    assert len(recovered(disk)[2]) >= synced


@pytest.mark.parametrize("seed", range(20))
def test_what_a_failed_sync_has_dropped_is_written_again_before_anything_is_built_on_it(seed: int) -> None:
    """The cache goes on showing it, so the next start reads it; what the disk has shows when the power fails."""
    disk = SimulatedDisk(seed)
    log = new_log(disk)
    fill(log, 10)
    disk.fail("fdatasync")
    with pytest.raises(WriteFailed):
        fill(log, 6, group=20)
    disk.heal()
    disk.crash(power=False)
    log = new_log(disk)
    assert log.synced == log.next_offset == 16
    fill(log, 5)
    disk.crash()
    assert len(recovered(disk)[2]) == 21


def test_a_sync_vouches_only_for_what_was_written_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 10)
    log.append(event(10), TIME_US)
    write(log, sync=False)
    sync = SimulatedFile.fdatasync

    def sync_while_more_is_written(file: SimulatedFile) -> None:
        sync(file)
        monkeypatch.undo()
        log.append(event(11), TIME_US)
        write(log, sync=False)

    monkeypatch.setattr(SimulatedFile, "fdatasync", sync_while_more_is_written)
    log.sync_done(log.sync())
    assert (log.written, log.synced) == (12, 11)


@pytest.mark.parametrize("operation", ["rename", "sync_directory", "truncate", "allocate", "create"])
def test_an_error_while_a_segment_is_opened_is_final_too(operation: str) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 20)
    disk.fail(operation)
    with pytest.raises(WriteFailed):
        fill(log, 200)
    with pytest.raises(WriteFailed):
        log.append(event(1), TIME_US)


def test_a_full_disk_refuses_publishes_and_nothing_else_and_service_resumes() -> None:
    disk = SimulatedDisk(capacity_bytes=60_000)
    log = open_log(disk, reserve_bytes=16_384)
    log.recover()
    published = 0
    while log.admit(100):
        log.append(event(published), TIME_US, [bytes(100)])
        write(log)
        published += 1
        assert published < 1000
    assert log.disk_full
    for number in range(60):  # consuming goes on, through the reserve
        log.append(acked(number), TIME_US)
        write(log)
    assert not log.admit(100)
    assert not log.space_returned()
    disk.capacity_bytes = 200_000
    assert log.space_returned()
    assert log.admit(100)
    assert disk.exists("log/reserve")
    fill(log, 50)
    count = log.next_offset
    log.close()
    assert len(recovered(disk)[2]) == count


def test_a_disk_without_even_the_reserve_is_an_error_with_a_message() -> None:
    disk = SimulatedDisk(capacity_bytes=40_000)
    log = open_log(disk, reserve_bytes=8192)
    log.recover()
    with pytest.raises(OutOfSpace, match="reserve is used up"):  # noqa: PT012 - it may be any of them
        for number in range(1000):
            log.append(acked(number), TIME_US)
            write(log)
    written = log.written
    disk.crash(power=False)
    disk.capacity_bytes = None
    assert len(recovered(disk)[2]) == written


def test_a_start_on_a_full_disk_serves_what_needs_no_room() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 20)
    log.close()
    disk.capacity_bytes = disk.capacity_bytes or (1 << 60) - disk.free_bytes()
    log = open_log(disk, reserve_bytes=1 << 20)
    log.recover()
    assert log.disk_full
    assert not log.admit(10)


def test_the_reserve_frees_a_segment_that_is_still_empty() -> None:
    disk = SimulatedDisk()
    log = open_log(disk)
    log.recover()
    disk.capacity_bytes = (1 << 60) - disk.free_bytes()
    assert log.append(acked(1), TIME_US) == 0
    assert log.disk_full
    assert not disk.exists("log/reserve")
    write(log)


def test_a_record_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    for disk in (SimulatedDisk(), Disk(tmp_path)):
        log = new_log(disk)
        fill(log, 10)
        assert log.admit(50_000)
        log.append(event(11), TIME_US, [b"z" * 50_000])
        write(log)
        fill(log, 10)
        log.close()
        log, _, records = recovered(disk)
        assert records[10].payload_bytes == 50_000
        assert [facts.base for facts in log.segments()].count(10) == 1
        assert bytes(log.read(10).payload) == b"z" * 50_000
        log.close()


def test_short_writes_and_long_vectors_reach_the_disk_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path)
    log = new_log(disk, segment_bytes=1 << 20)
    real_writev, real_write = os.pwritev, os.pwrite

    def short_writev(fd: int, parts: list[bytes], at: int) -> int:
        data = b"".join(parts)
        return real_write(fd, data[: max(1, len(data) // 3)], at)

    monkeypatch.setattr(os, "pwritev", short_writev)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:1000], at))
    log.append(event(1), TIME_US, [bytes([number % 251]) * 700 for number in range(3000)])
    write(log)
    monkeypatch.setattr(os, "pwritev", real_writev)
    monkeypatch.setattr(os, "pwrite", real_write)
    log.append(event(2), TIME_US, [bytes([number % 251]) * 700 for number in range(3000)])
    write(log)
    payload = b"".join(bytes([number % 251]) * 700 for number in range(3000))
    assert [bytes(log.read(offset).payload) for offset in (0, 1)] == [payload, payload]
    log.close()


def test_a_second_opener_is_told_who_has_the_folder(tmp_path: Path) -> None:
    log = new_log(Disk(tmp_path))
    with pytest.raises(DataFolderLocked, match=str(os.getpid())) as caught:
        open_log(Disk(tmp_path))
    assert str(tmp_path) in str(caught.value)
    log.close()
    new_log(Disk(tmp_path)).close()


def test_a_reader_beside_the_writer_sees_what_is_written_and_no_more(tmp_path: Path) -> None:
    log = new_log(Disk(tmp_path))
    reader = Log.open(Disk(tmp_path), new_log_id=lambda: 0, read_only=True)
    assert list(reader.scan(0)) == []
    for round_number in range(1, 20):
        fill(log, 13)
        log.append(event(1), TIME_US)  # buffered only
        write(log, sync=False)
        assert [record.offset for record in reader.scan(0)] == list(range(14 * round_number))
        assert [record.offset for record in reader.scan(5, 9)] == [5, 6, 7, 8]
    assert [facts.base for facts in reader.segments()] == [facts.base for facts in log.segments()]
    with pytest.raises(BeyondLog):
        reader.read(10_000)
    log.close()


def test_a_reader_tells_damage_from_the_end() -> None:
    disk = SimulatedDisk()
    fill(new_log(disk), 100)
    reader = Log.open(disk, new_log_id=lambda: 0, read_only=True)
    name = segment_name(0)
    data = bytearray(disk.contents()[name])
    data[200] ^= 1
    disk.overwrite(name, bytes(data))
    with pytest.raises(CorruptLog):
        list(reader.scan(0))


def test_only_a_log_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Log.open(Disk(tmp_path), new_log_id=lambda: 0, read_only=True)


def test_records_that_are_not_written_cannot_be_read() -> None:
    log = new_log(SimulatedDisk())
    log.append(event(1), TIME_US)
    with pytest.raises(BeyondLog, match="not written"):
        log.read(0)


def test_ranges_hold_whole_records_and_at_least_one() -> None:
    log = new_log(SimulatedDisk(), segment_bytes=1 << 20)
    fill(log, 50)
    everything = list(log.scan(0))
    for length in (1, 100, 1000, 1 << 20):
        at, got = everything[0].at, list[int]()
        while at < everything[-1].end:
            records = log.read_range(0, at, length)
            got += [record.offset for record in records]
            at = records[-1].end
        assert got == list(range(50))
    assert everything[-1].end > SEGMENT_BYTES

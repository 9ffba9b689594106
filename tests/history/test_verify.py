"""Verify against recovery, whose rule it shares, and planted damage of all kinds."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history.building import Driver, orders
from tests.log.building import LOG_ID, event, fill, new_log, seal_all, write
from tests.sim.disk import SimulatedDisk, SimulatedFile
from vibemq.errors import CorruptLog, UsageError
from vibemq.history.verify import verify_folder
from vibemq.log.log import Log
from vibemq.log.segment import list_bases, segment_name
from vibemq.log.verify import verify


def sealed_log() -> SimulatedDisk:
    """Some segments, sealed, and a last one that is not full, with room behind its records."""
    return _sealed_log().copy()


@cache
def _sealed_log() -> SimulatedDisk:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 120)
    assert seal_all(log, disk) >= 2
    write(log)
    log.close()
    return disk


def refused(disk: SimulatedDisk, known_synced: int = 0) -> bool:
    """Whether a start on this folder would be refused."""
    log = Log.open(disk, new_log_id=lambda: LOG_ID, read_only=True)
    try:
        log.recover(known_synced=known_synced)
    except CorruptLog:
        return True
    return False


def test_a_whole_log_has_no_problems() -> None:
    disk = sealed_log()
    report = verify(disk, LOG_ID)
    assert report.problems == []
    assert report.segments == len(list_bases(disk))
    assert report.seals == report.segments - 1
    assert (report.records, report.torn_bytes) == (120 + report.seals, 0)


def damaged(disk: SimulatedDisk, data: st.DataObject) -> None:
    """Flip, cut, zero, or remove something."""
    base = data.draw(st.sampled_from(list_bases(disk)))
    content = bytearray(disk.contents()[segment_name(base)])
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "remove", "append"]))
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    if how == "flip" and content:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[at:]
    elif how == "zero":
        end = min(len(content), at + data.draw(st.integers(1, 5000)))
        content[at:end] = bytes(end - at)
    elif how == "append":
        content += data.draw(st.binary(min_size=1, max_size=200))
    if how == "remove":
        disk.unlink(segment_name(base))
    else:
        disk.overwrite(segment_name(base), bytes(content))


@given(data=st.data(), known=st.integers(0, 130), times=st.integers(0, 2))
@settings(max_examples=200)
def test_verify_finds_a_problem_exactly_where_a_start_is_refused(data: st.DataObject, known: int, times: int) -> None:
    disk = sealed_log()
    for _ in range(times):
        if list_bases(disk):
            damaged(disk, data)
    assert bool(verify(disk, LOG_ID, known_synced=known).problems) == refused(disk, known)


def test_a_torn_tail_is_told_apart_from_damage() -> None:
    disk = sealed_log()
    log = Log.open(disk, new_log_id=lambda: LOG_ID, segment_bytes=4096, reserve_bytes=4096)
    log.recover()
    end = log.next_offset
    log.append(event(121), 2 << 50, [b"not confirmed"])
    write(log, sync=False)
    log.close()
    name = segment_name(list_bases(disk)[-1])
    content = disk.contents()[name].replace(b"not confirmed", b"nxt confirmed")
    disk.overwrite(name, content)
    report = verify(disk, LOG_ID)
    assert report.problems == []
    assert report.torn_bytes > 13
    report = verify(disk, LOG_ID, known_synced=end + 1)
    (problem,) = report.problems
    assert report.torn_bytes == 0
    assert (problem.file, problem.offset) == (name, end)


class LateFile:
    """A file whose first reads do not see its end yet."""

    def __init__(self, file: SimulatedFile, seen: int, late_reads: list[None]) -> None:
        self._file, self._seen, self._late_reads = file, seen, late_reads

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def pread(self, length: int, at: int) -> bytes:
        if at >= 64 and self._late_reads:
            self._late_reads.pop()
            data = self._file.pread(length, at)
            return data[: max(0, self._seen - at)] + bytes(max(0, len(data) - max(0, self._seen - at)))
        return self._file.pread(length, at)


def test_what_is_written_meanwhile_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = sealed_log()
    name = segment_name(list_bases(disk)[-1])
    late = [None]
    used = len(disk.contents()[name].rstrip(b"\0"))

    def open_read(wanted: str) -> object:
        file = SimulatedDisk.open_read(disk, wanted)
        return LateFile(file, used - 150, late) if wanted == name else file

    monkeypatch.setattr(disk, "open_read", open_read)
    report = verify(disk, LOG_ID)
    assert late == []
    assert (report.problems, report.torn_bytes) == ([], 0)
    assert report.records == 120 + report.seals


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_planted_damage_is_listed_by_file_position_and_offset(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        client = driver.connect("a")
        offsets = [driver.publish(client, "q", b"body %d" % number) for number in range(5)]
        places = [driver.storage.log.place_of(offset) for offset in offsets]
        driver.stop()
    (path,) = (tmp_path / "log").glob("*.seg")
    flip(path, places[1].at + 80)
    flip(path, places[3].at + 20)
    verified = verify_folder(tmp_path)
    assert not verified.whole
    found = [(one.file, one.position, one.offset) for one in verified.report.problems]
    assert found == [(f"log/{path.name}", places[at].at, offsets[at]) for at in (1, 3)]
    assert verified.report.records == offsets[-1] + 2 - 2  # all but the two


def test_what_the_index_knows_to_be_synced_must_be_there(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.publish(driver.connect("a"), "q", b"1")
        driver.checkpoint()
        record, end = driver.storage.log.read(driver.offset - 1), driver.offset
    (path,) = (tmp_path / "log").glob("*.seg")
    path.write_bytes(path.read_bytes()[: record.at])
    (problem,) = verify_folder(tmp_path).report.problems
    assert (problem.file, problem.position, problem.offset) == (f"log/{path.name}", record.at, end - 1)
    assert f"before record {end}" in problem.text


@pytest.mark.parametrize("how", ["missing", "flipped", "no segments", "nothing"])
def test_the_file_that_names_the_log(tmp_path: Path, how: str) -> None:
    orders(tmp_path)
    path = tmp_path / "FORMAT"
    if how == "flipped":
        flip(path, 20)
    elif how != "no segments":
        path.unlink()
    if how in {"no segments", "nothing"}:
        for segment in (tmp_path / "log").glob("*.seg"):
            segment.unlink()
    if how == "nothing":
        with pytest.raises(UsageError, match="no log"):
            verify_folder(tmp_path)
        return
    verified = verify_folder(tmp_path)
    (problem,) = verified.report.problems
    if how == "no segments":
        assert (problem.file, problem.offset) == (segment_name(0), 0)
    else:
        assert problem.file == "FORMAT"
        assert verified.report.records == 23  # the log is looked at all the same


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"garbage" * 999), lambda path: path.unlink()])
def test_a_damaged_or_missing_index_is_no_problem_of_the_log(tmp_path: Path, change: Callable[[Path], None]) -> None:
    orders(tmp_path)
    change(tmp_path / "index" / "data.mdb")
    verified = verify_folder(tmp_path)
    assert verified.whole
    assert "index" in verified.about_index or "nothing is saved" in verified.about_index

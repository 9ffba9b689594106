"""The index finds every record and every sequence, and when it is damaged it is only rebuilt."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from subprocess import CompletedProcess

import lmdb
import pytest

from tests.log.building import LOG_ID, TIME_US, event, open_log, write
from vibemq.errors import BeyondLog, CorruptLog, StorageError, UsageError
from vibemq.events import DeadLettered, DeadReason, Event, Published, Redriven, Routed, SegmentSealed
from vibemq.log import frame
from vibemq.log.disk import Disk
from vibemq.log.frame import Mark, Place, Record
from vibemq.log.index import Checkpoint, Index, LmdbIndex, MemoryIndex, Saved, read_saved
from vibemq.log.log import Log
from vibemq.log.segment import NO_SEAL

MAP_BYTES = 64 << 20
SEGMENT = 256 << 10


def open_index(disk: Disk, log: Log) -> LmdbIndex:
    return LmdbIndex.open(disk, log, map_bytes=MAP_BYTES)


def ready_log(disk: Disk) -> Log:
    log = open_log(disk, segment_bytes=SEGMENT)
    log.recover()
    return log


class Filler:
    """Publishes to queues and topics, dead-letters and redrives now and then; knows where everything went."""

    def __init__(self, log: Log, index: Index, seed: int = 1) -> None:
        self.log, self.index, self.random = log, index, Random(seed)
        self.next_sequence: dict[tuple[int, int], int] = {}
        self.made_ready: dict[tuple[int, int, int], int] = {}

    def fill(self, count: int) -> None:
        for _ in range(count):
            queue, lane, size = self.random.randrange(1, 4), self.random.randrange(2), self.random.randrange(1, 5)
            refs, chance = ((0, 0, size),), self.random.random()
            if chance < 0.1:
                first = self._take(queue, 0, size)
                self._append(DeadLettered(9, 0, 1, ((0, 1, 2),), 5, DeadReason.EXPIRED, 1, "", queue, first, refs))
            elif chance < 0.2:
                first = self._take(queue, lane, size)
                self._append(Redriven(9, ((0, 1, 2),), 5, 1, queue, lane, first, refs, 1))
            elif chance < 0.3:
                others = [(queue, lane), (queue % 3 + 1, 0)]
                targets = tuple((to, into, self._take(to, into, size)) for to, into in others)
                self._append(Routed("a.b", targets, size, 10, 0, 0, 1), self._payload())
            elif chance < 0.4:  # no room for any of them
                first = self.next_sequence.get((queue, lane), 1)
                self._append(Published(queue, lane, first, 0, 0, 0, 0, 1, dropped=size))
            else:
                first = self._take(queue, lane, size)
                self._append(Published(queue, lane, first, size, 10, 0, 0, 1), self._payload())
        write(self.log)

    def _payload(self) -> bytes:
        return bytes(self.random.choice((10, 1000, 3000, 70_000 if self.random.random() < 0.1 else 10)))

    def _take(self, queue: int, lane: int, count: int) -> int:
        first = self.next_sequence.get((queue, lane), 1)
        self.next_sequence[queue, lane] = first + count
        for sequence in range(first, first + count):
            self.made_ready[queue, lane, sequence] = self.log.next_offset
        return first

    def _append(self, one: Event, payload: bytes = b"") -> None:
        time_us = TIME_US + self.log.next_offset // 3
        offset = self.log.append(one, time_us, [payload])
        self.index.note(offset, time_us, self.log.last_base, self.log.last_at, one)
        if offset % 10 == 0:
            write(self.log)

    def check(self, index: Index, step: int = 1) -> None:
        log = self.log
        for (queue, lane, sequence), offset in list(self.made_ready.items())[::step]:
            place = index.lookup_sequence(queue, lane, sequence)
            assert place is not None
            record = log.find_sequence(place, queue, lane, sequence)
            assert record.offset == offset
            assert place.base == record.base
            assert record.at - place.at < 64 << 10
        for offset in range(0, log.next_offset, 7 * step):
            place = index.lookup_offset(offset)
            assert place is not None
            assert place.offset <= offset
            time_us = TIME_US + offset // 3
            before = index.lookup_time(time_us)
            assert before is None or before.offset < offset // 3 * 3
            assert log.read(place.offset).place == place


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_every_sequence_offset_and_time_is_found_before_and_after_a_commit(disk: Disk) -> None:
    log = ready_log(disk)
    index, memory = open_index(disk, log), MemoryIndex()
    filler = Filler(log, index)
    for _ in range(4):
        filler.fill(300)
        filler.check(index, 3)
        assert index.commit(log.synced_mark)
        filler.check(index, 3)
    index.close()
    index = open_index(disk, log)
    assert (index.rebuilt, index.mark) == ("", log.mark)
    filler.check(index)
    for record in log.scan(0):
        memory.note(record.offset, record.time_us, record.base, record.at, record.event)
    filler.check(memory)
    assert index.lookup_sequence(3, 7, 1) is None
    assert index.lookup_sequence(77, 0, 1) is None
    assert index.lookup_time(0) is None
    index.close()
    log.close()


def test_the_index_is_sparse(disk: Disk) -> None:
    log = ready_log(disk)
    index = MemoryIndex()
    for number in range(4000):
        one = event(number + 1)
        offset = log.append(one, TIME_US, [bytes(100)])
        index.note(offset, TIME_US, log.last_base, log.last_at, one)
    noted = index.overlay.before(4000)
    log_bytes = log.buffered_bytes
    assert len(noted.places) <= log_bytes // (64 << 10) + log_bytes // SEGMENT + 2
    assert len(noted.sequences) <= len(noted.places)


def test_a_commit_takes_only_what_is_synced(disk: Disk) -> None:
    log = ready_log(disk)
    index = open_index(disk, log)
    filler = Filler(log, index)
    filler.fill(200)
    mark = log.synced_mark
    filler.fill(200)
    assert index.commit(mark)
    index.close()
    index = open_index(disk, log)
    assert index.mark == mark
    assert index.overlay.before(1 << 60).places == []
    last = index.lookup_offset(1 << 60)
    assert last is not None
    assert last.offset < mark.offset
    for record in log.scan(0):  # a replay from zero notes again what is committed: only the rest is taken
        index.note(record.offset, record.time_us, record.base, record.at, record.event)
    assert all(entry[0] >= mark.offset for entry in index.overlay.before(1 << 60).places)
    filler.check(index, 5)
    index.close()


def test_a_checkpoint_comes_back_with_changed_and_unchanged_parts(disk: Disk) -> None:
    log = ready_log(disk)
    index, memory = open_index(disk, log), MemoryIndex()
    Filler(log, index).fill(50)
    each: tuple[Index, ...] = (index, memory)
    for one in each:
        assert one.load_checkpoint() is None
        assert one.commit(log.synced_mark, {"a": (10, b"one"), "b": (10, b"two")}, start=10)
        assert one.commit(log.synced_mark, {"a": (20, b"three"), "c": (20, b"")}, {"b", "unknown"}, start=20)
        assert one.commit(log.synced_mark)
    index.close()
    index = open_index(disk, log)
    for one in (index, memory):
        checkpoint = one.load_checkpoint()
        assert checkpoint is not None
        assert (checkpoint.start, checkpoint.parts) == (20, {"a": (20, b"three"), "c": (20, b"")})
    index.close()


def test_a_checkpoint_ahead_of_the_index_is_a_bug(disk: Disk) -> None:
    log = ready_log(disk)
    index = open_index(disk, log)
    Filler(log, index).fill(50)
    for one in (index, MemoryIndex()):
        with pytest.raises(UsageError, match="ahead"):
            one.commit(log.synced_mark, {"a": (51, b"")})
        with pytest.raises(UsageError, match="ahead"):
            one.commit(log.synced_mark, start=51)
    index.close()


def test_a_memory_index_keeps_over_a_crash_what_was_committed(disk: Disk) -> None:
    log = ready_log(disk)
    index = MemoryIndex()
    filler = Filler(log, index)
    filler.fill(100)
    index.commit(log.synced_mark, {"a": (5, b"x")}, start=5)
    mark = log.synced_mark
    filler.fill(100)
    found = index.after_crash(log)
    assert (found.mark, found.rebuilt) == (mark, "")
    assert found.overlay.before(1 << 60) == index.overlay.before(mark.offset)
    for record in log.scan(mark.offset):
        found.note(record.offset, record.time_us, record.base, record.at, record.event)
    filler.check(found, 3)
    index.mark = mark._replace(identity=1)
    assert index.after_crash(log).mark.offset == 0


# -- an index that cannot be used


def stored_index(disk: Disk) -> tuple[Log, Filler]:
    log = ready_log(disk)
    index = open_index(disk, log)
    filler = Filler(log, index)
    filler.fill(300)
    index.commit(log.synced_mark, {"a": (5, b"part" * 2000)}, start=5)
    index.close()
    return log, filler


def rebuilt(disk: Disk, log: Log, filler: Filler) -> str:
    """Open the index, replay what it does not know, check every answer, close it."""
    index = open_index(disk, log)
    for record in log.scan(index.mark.offset):
        index.note(record.offset, record.time_us, record.base, record.at, record.event)
    filler.check(index, 11)
    reason = index.rebuilt
    index.close()
    return reason


def test_an_index_of_another_log_or_history_is_rebuilt(disk: Disk, tmp_path: Path) -> None:
    log, filler = stored_index(disk)
    data = (tmp_path / "index" / "data.mdb").read_bytes()
    assert rebuilt(disk, log, filler) == ""
    log.id += 1
    damaged = "it is damaged, or of another log: an entry of table places is damaged"
    assert open_index_reason(disk, log) == damaged
    log.id -= 1
    (tmp_path / "index" / "data.mdb").write_bytes(data)
    record = log.read(log.written - 1)
    log.close()
    rewrite_last_record(tmp_path / "log" / f"{record.base:020d}.seg", record)
    log = ready_log(disk)
    assert "another history" in open_index_reason(disk, log)


def rewrite_last_record(path: Path, record: Record) -> None:
    """Another record in its place, as if another history had been written there."""
    head, _ = frame.pack(
        LOG_ID,
        record.offset,
        1,
        record.synced,
        record.link,
        record.tag,
        record.version,
        bytes(record.facts),
        record.payload_bytes,
        record.payload_checksum,
    )
    data = bytearray(path.read_bytes())
    data[record.at : record.at + len(head)] = head
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("keep", [0, 80])
def test_an_index_ahead_of_the_log_proves_a_loss(disk: Disk, tmp_path: Path, keep: int) -> None:
    log, _ = stored_index(disk)
    record = log.read(log.written - 1)
    log.close()
    path = tmp_path / "log" / f"{record.base:020d}.seg"
    path.write_bytes(path.read_bytes()[: record.at + keep])
    for _ in range(2):  # refusing changes nothing: the next start refuses too
        log = open_log(disk, segment_bytes=SEGMENT)
        with pytest.raises(CorruptLog):  # noqa: PT012 - the header is gone, or only the body
            index = open_index(disk, log)
            index.close()
            log.recover(known_synced=index.mark.offset)
        log.close()


def open_index_reason(disk: Disk, log: Log) -> str:
    index = open_index(disk, log)
    index.close()
    return index.rebuilt


def delete(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(bytes(Random(1).randbytes(100_000)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def one_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


@pytest.mark.parametrize("damage", [delete, garbage, truncate, empty, one_page])
def test_a_damaged_index_is_rebuilt(disk: Disk, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    log, filler = stored_index(disk)
    damage(tmp_path / "index" / "data.mdb")
    assert rebuilt(disk, log, filler) != ""
    assert open_index_reason(disk, log) in {"", "there was none"}


def test_flipped_bits_in_the_index_give_right_answers_or_a_rebuild(disk: Disk, tmp_path: Path) -> None:
    log, filler = stored_index(disk)
    path = tmp_path / "index" / "data.mdb"
    good, random = path.read_bytes(), Random(2)
    seen: set[bool] = set()
    for _ in range(60):
        bad = bytearray(good)
        bit = random.randrange(8 * len(bad))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(bad))
        seen.add(rebuilt(disk, log, filler) == "")
    assert seen == {True, False}


def test_no_room_for_the_index_is_no_disaster(disk: Disk) -> None:
    log = ready_log(disk)
    index = LmdbIndex.open(disk, log, map_bytes=1 << 20)
    filler = Filler(log, index)
    filler.fill(300)
    assert not index.commit(log.synced_mark, {"big": (0, bytes(2 << 20))}, start=0)
    assert "later" in index.failure
    filler.check(index, 5)
    assert index.commit(log.synced_mark, {"small": (0, b"")}, start=0)
    assert index.failure == ""
    filler.check(index, 5)
    index.close()
    assert lmdb.version()[:2] == (0, 9)
    assert index.sealed == (0, NO_SEAL)
    index = open_index(disk, log)  # with more room, from the next start on
    assert index._env.info()["map_size"] == MAP_BYTES
    index.close()


def test_a_sequence_that_the_log_does_not_hold_is_told(disk: Disk) -> None:
    log = ready_log(disk)
    Filler(log, MemoryIndex()).fill(50)
    with pytest.raises(BeyondLog):
        log.find_sequence(Place(0, 0, 64), 1, 0, 10_000)


def test_an_index_of_a_log_that_does_not_begin_with_zero_and_has_no_records(disk: Disk) -> None:
    log = Log.open(disk, new_log_id=lambda: LOG_ID, start=7)
    log.recover()
    assert [open_index_reason(disk, log) for _ in range(2)] == ["there was none", ""]


def test_the_index_is_for_its_owner_alone(disk: Disk, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_index(disk, ready_log(disk)).close()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "index").iterdir()}
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600}


def test_an_index_that_cannot_be_opened(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise lmdb.DiskError("no")

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(StorageError, match=rf"the index in {tmp_path}/index cannot be opened: no; remove that folder"):
        open_index(disk, ready_log(disk))


@pytest.mark.parametrize(
    ("code", "stderr", "why", "says"),
    [
        (-11, "", "it is damaged: reading it ended with signal 11", "exit -11"),
        (3, "", "it is damaged, or of another log: 3", "exit 3"),
        (1, "first\nsecond\n\ufffd last\n", "it is damaged, or of another log: \ufffd last", "\ufffd last"),
    ],
)
def test_why_the_reading_process_failed(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, why: str, says: str
) -> None:
    log, _ = stored_index(disk)

    def run(*_: object, text: bool = False, **__: object) -> CompletedProcess[str] | CompletedProcess[bytes]:
        if text:
            return CompletedProcess((), code, "", stderr)
        return CompletedProcess((), code, b"", stderr.encode().replace("\ufffd".encode(), b"\xff"))

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(StorageError, match=f"^the index cannot be read: {says}$"):
        read_saved(disk, LOG_ID)
    assert open_index_reason(disk, log) == why


def test_reading_an_index_takes_only_so_long(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = stored_index(disk)
    monkeypatch.setattr("vibemq.log.index.CHECK_TIMEOUT_S", 0)
    with pytest.raises(StorageError, match=r"^the index cannot be read: it took more than 0 s$"):
        read_saved(disk, LOG_ID)
    assert open_index_reason(disk, log) == "reading it took more than 0 s"


# -- what is saved, and reading it beside a broker


def test_the_last_seal_that_is_synced_is_kept(disk: Disk) -> None:
    log = ready_log(disk)
    index, memory = open_index(disk, log), MemoryIndex()
    seals = [SegmentSealed(0, 5, b"a" * 32, NO_SEAL), SegmentSealed(5, 9, b"b" * 32, b"a" * 32)]
    for one in (event(1), seals[0], event(2), seals[1]):
        offset = log.append(one, TIME_US)
        for each in (index, memory):
            each.note(offset, TIME_US, log.last_base, log.last_at, one)
        write(log)
    marks = [Mark(end, 0, 64, 1) for end in (1, 2, 3, 4)]
    for mark, sealed in zip(marks, [(0, NO_SEAL), (5, b"a" * 32), (5, b"a" * 32), (9, b"b" * 32)], strict=True):
        for each in (index, memory):
            assert each.commit(mark)
            assert each.sealed == sealed
    assert index.commit(log.synced_mark)
    assert memory.commit(log.synced_mark)
    index.close()
    index = open_index(disk, log)
    assert (index.sealed, index.rebuilt) == ((9, b"b" * 32), "")
    again = memory.after_crash(log)
    assert (again.sealed, again.rebuilt, memory.rebuilt) == ((9, b"b" * 32), "", "there was none")
    index.close()


def test_what_is_saved_can_be_read_while_the_broker_has_it_open(disk: Disk) -> None:
    log = ready_log(disk)
    assert read_saved(disk, LOG_ID) is None
    index = open_index(disk, log)
    assert read_saved(disk, LOG_ID) is None
    Filler(log, index).fill(50)
    assert index.commit(log.synced_mark)
    assert read_saved(disk, LOG_ID) == Saved(log.synced_mark, None)
    parts = {"a": (10, b""), "queue/7": (50, b"blob" * 5000)}
    assert index.commit(log.synced_mark, parts, start=10)
    assert read_saved(disk, LOG_ID) == Saved(log.synced_mark, Checkpoint(10, parts))
    with pytest.raises(StorageError, match="or of another log: an entry of its table meta"):
        read_saved(disk, LOG_ID + 1)
    index.close()
    assert read_saved(disk, LOG_ID) == Saved(log.synced_mark, Checkpoint(10, parts))
    garbage(Path(disk.path) / "index" / "data.mdb")
    with pytest.raises(StorageError, match="the index cannot be read"):
        read_saved(disk, LOG_ID)


def test_an_index_of_a_later_version_is_not_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ready_log(disk)
    index = open_index(disk, log)
    monkeypatch.setattr("vibemq.log.index.VERSION", 3)
    assert index.commit(log.synced_mark)
    index.close()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="the index has version 3; this VibeMQ reads version 2"):
        read_saved(disk, LOG_ID)

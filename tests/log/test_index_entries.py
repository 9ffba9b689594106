"""Which records the index takes an entry for, what it answers from them, and when it lets go of those in memory."""

from pathlib import Path

import pytest

from tests.log.building import TIME_US, acked, event, open_log
from vibemq.errors import StorageError, UsageError
from vibemq.events import DeadLettered, DeadReason, Published, Redriven, Routed
from vibemq.log import index as index_module
from vibemq.log.disk import Disk
from vibemq.log.frame import Mark, Place
from vibemq.log.index import Checkpoint, Index, LmdbIndex, MemoryIndex
from vibemq.log.reading import MARK_BYTES

FAR = 64 + MARK_BYTES


def published(lane: int, sequence: int) -> Published:
    return Published(1, lane, sequence, 1, 10, 0, 0, 7)


def note(index: Index) -> None:
    """Five records, three of them far enough from the one before in their segment, or in their lane."""
    index.note(0, 0, 0, 64, published(0, 1))
    index.note(1, 0, 0, FAR - 1, published(0, 2))
    index.note(2, 0, 0, FAR, published(0, 3))
    index.note(3, 20, 0, FAR + 1, published(1, 1))
    index.note(4, 30, 4, 64, published(0, 4))


FIRST, SECOND, LANE, NEXT = Place(0, 0, 64), Place(2, 0, FAR), Place(3, 0, FAR + 1), Place(4, 4, 64)


def check(index: Index, *, time_1: Place) -> None:
    """`time_1`: of two places with one time, the one that stands for it."""
    offsets = {0: FIRST, 1: FIRST, 2: SECOND, 3: SECOND, 4: NEXT, 99: NEXT}
    assert {offset: index.lookup_offset(offset) for offset in offsets} == offsets
    times = {0: None, 1: time_1, 30: time_1, 31: NEXT, 99: NEXT}
    assert {time_us: index.lookup_time(time_us) for time_us in times} == times
    sequences = {0: None, 1: FIRST, 2: FIRST, 3: SECOND, 4: NEXT, 99: NEXT}
    assert {sequence: index.lookup_sequence(1, 0, sequence) for sequence in sequences} == sequences
    assert [index.lookup_sequence(1, 1, sequence) for sequence in (0, 1, 9)] == [None, LANE, LANE]
    assert index.lookup_sequence(1, 2, 1) is None
    assert index.lookup_sequence(2, 0, 1) is None


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def open_index(disk: Disk) -> LmdbIndex:
    log = open_log(disk)
    log.recover()
    return LmdbIndex.open(disk, log, map_bytes=64 << 20)


def test_every_arrival_of_an_event_has_an_entry(disk: Disk) -> None:
    """In each queue that a batch was routed to, where dead letters went and where they went back to."""
    index, refs = open_index(disk), ((0, 0, 2),)
    spans = ((0, 1, 3),)
    events = (
        Routed("a.b", ((1, 0, 1), (2, 7, 1), (3, 0, 1)), 2, 10, 0, 0, 7),
        DeadLettered(1, 0, 5, spans, 10, DeadReason.REJECTED, 1, "", 4, 1, refs),
        DeadLettered(2, 0, 5, spans, 10, DeadReason.REJECTED, 1, "", 0, 0, refs),  # they are gone
        Redriven(4, spans, 10, 1, 1, 0, 3, refs, 7),
        Published(5, 0, 1, 0, 0, 0, 0, 7, dropped=2),  # none was stored
        published(0, 5),
    )
    for each in (index, MemoryIndex()):
        for offset, one in enumerate(events):
            each.note(offset, offset, offset, 64, one)
        for _ in range(2):
            found = [each.lookup_sequence(*wanted) for wanted in ((1, 0, 2), (2, 7, 1), (3, 0, 9), (4, 0, 2))]
            assert [place.offset if place is not None else None for place in found] == [0, 0, 0, 1]
            assert [each.lookup_sequence(queue, lane, 9) for queue, lane in ((0, 0), (2, 0), (5, 0))] == [None] * 3
            assert [each.lookup_sequence(1, 0, number) for number in (3, 4)] == [Place(3, 3, 64)] * 2
            assert each.lookup_sequence(1, 0, 5) == Place(5, 5, 64)
            assert each.commit(Mark(6, 5, 64, 1))
    index.close()


def test_an_index_without_entries(disk: Disk) -> None:
    index = open_index(disk)
    for each in (index, MemoryIndex()):
        assert (each.mark, each.rebuilt, each.failure) == (Mark(0, 0, 0, 0), "there was none", "")
        assert each.lookup_offset(0) is each.lookup_time(9) is each.lookup_sequence(1, 0, 1) is None
    index.close()


def test_entries_in_memory_and_on_disk_answer_alike(disk: Disk) -> None:
    index, memory = open_index(disk), MemoryIndex()
    for each in (index, memory):
        note(each)
        check(each, time_1=SECOND)
    assert index.commit(Mark(3, 0, FAR, 1))
    check(index, time_1=SECOND if index.overlay.lookup_time(1) else FIRST)
    left = index.overlay
    assert [entry[0] for entry in left.before(99).places] == [4]
    assert [entry[0] for entry in left.before(99).sequences] == [3, 4]
    assert [left.lookup_sequence(1, 0, sequence) for sequence in (3, 4)] == [None, NEXT]
    assert left.lookup_sequence(1, 1, 1) == LANE
    assert index.commit(Mark(5, 4, 64, 1))
    check(index, time_1=FIRST)
    assert left.lookup_offset(99) is left.lookup_sequence(1, 0, 99) is left.lookup_sequence(1, 1, 99) is None
    index.close()


def test_a_checkpoint_may_be_as_new_as_the_index(disk: Disk) -> None:
    index = open_index(disk)
    for each in (index, MemoryIndex()):
        assert each.commit(Mark(5, 0, 64, 1), {"a": (5, b"x")}, start=5)
        assert each.load_checkpoint() == Checkpoint(5, {"a": (5, b"x")})
        with pytest.raises(UsageError, match=r"parts \['b'\], start 6\) may not be ahead of the index at 5"):
            each.commit(Mark(5, 0, 64, 1), {"a": (5, b""), "b": (6, b"")}, start=6)
    index.close()


@pytest.mark.parametrize(("sequences", "pauses"), [(3, 1), (4, 2)])
def test_a_commit_gives_way_after_each_slice(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, sequences: int, pauses: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(index_module, "_PUTS_A_SLICE", 6)
    monkeypatch.setattr("time.sleep", slept.append)
    index = open_index(disk)
    for number in range(4):  # two entries for each place: 8, and then those of the sequences
        one = event(number + 1) if number < sequences else acked(number)
        index.note(number, TIME_US, number, 64, one)
    assert index.commit(Mark(4, 3, 64, 1))
    assert slept == [0.0002] * pauses
    index.close()


def test_an_entry_that_is_damaged_while_the_index_is_open(disk: Disk) -> None:
    index = open_index(disk)
    note(index)
    assert index.commit(Mark(5, 4, 64, 1))
    index._tables._seed += 1
    with pytest.raises(StorageError, match="the index is damaged; start the broker again"):
        index.lookup_offset(3)
    index.close()

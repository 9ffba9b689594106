"""Damage to what was synced is named: the file, the byte in it, the record that should be there, and what is wrong."""

from collections.abc import Callable
from functools import partial

import pytest
import xxhash

from tests.log.building import (
    COUNT,
    LOG_ID,
    TIME_US,
    change,
    cut,
    event,
    fill,
    flip,
    full_log,
    new_log,
    open_log,
    recovered,
)
from tests.sim.disk import SimulatedDisk
from vibemq.errors import CorruptLog
from vibemq.log.frame import HEADER_BYTES, Damage, Mark, Place
from vibemq.log.log import Log, SegmentFacts
from vibemq.log.recovery import Recoverer, survey_tail
from vibemq.log.segment import (
    NO_SEAL,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    SegmentHeader,
    list_bases,
    read_header,
    seal_segment,
    segment_name,
)


def named(call: Callable[[], object]) -> tuple[str, int, int, str]:
    """What the refusal of a call names."""
    with pytest.raises(CorruptLog) as caught:
        call()
    problem = caught.value
    return problem.file, problem.position, problem.offset, problem.problem


def recovery_names(
    disk: SimulatedDisk, *, known_synced: int = 0, place: Place | None = None
) -> tuple[str, int, int, str]:
    log = open_log(disk)
    found = named(lambda: log.recover(known_synced=known_synced, from_place=place))
    disk.unlock()
    return found


# -- segments


def test_a_missing_first_segment() -> None:
    disk, bases, _ = full_log()
    disk.unlink(segment_name(0))
    expected = (segment_name(0), 0, 0, "the first segment of the log is missing")
    assert recovery_names(disk) == expected
    for base in bases[1:]:
        disk.unlink(segment_name(base))
    assert recovery_names(disk) == expected


def test_a_log_may_begin_where_it_must_hold_the_first_record_and_before_that() -> None:
    disk, bases, _ = full_log()
    for base in bases[:2]:
        disk.unlink(segment_name(base))
    for start, fits in ((bases[2] - 1, False), (bases[2], True), (bases[2] + 1, True)):
        recoverer = Recoverer(disk, LOG_ID, start, 0)
        if fits:
            assert [header.base for header in recoverer.headers()] == bases[2:]
        else:
            missing = (segment_name(start), 0, start, "the first segment of the log is missing")
            assert named(recoverer.headers) == missing


def test_a_missing_segment_between_others() -> None:
    disk, bases, _ = full_log()
    disk.unlink(segment_name(bases[1]))
    problem = f"this segment is missing; {segment_name(bases[2])} follows it"
    assert recovery_names(disk) == (segment_name(bases[1]), 0, bases[1], problem)


def test_a_missing_segment_that_the_index_names() -> None:
    disk, _, _ = full_log()
    place = Place(7, 7, 200)
    assert recovery_names(disk, place=place) == (segment_name(7), 200, 7, "this segment is missing")


def test_a_damaged_segment_header() -> None:
    disk, bases, _ = full_log()
    for base in (bases[1], bases[-1]):  # the last one holds records
        damaged = disk.copy()
        flip(damaged, base, 9)
        assert recovery_names(damaged) == (segment_name(base), 0, base, "the segment header is damaged")
        sealing = named(partial(seal_segment, damaged, LOG_ID, base, NO_SEAL))
        assert sealing == (segment_name(base), 0, base, "the segment header is damaged")


def test_a_last_segment_without_a_header_is_removed_only_where_nothing_in_it_was_durable() -> None:
    disk, _, _ = full_log()
    name = segment_name(COUNT)
    cut(disk, list_bases(disk)[-1], len(disk.contents()[segment_name(list_bases(disk)[-1])].rstrip(b"\0")))
    disk.create(name)
    disk.overwrite(name, bytes(4096))
    expected = (name, 0, COUNT, "the segment header is damaged")
    assert recovery_names(disk.copy(), known_synced=COUNT + 1) == expected
    assert recovered(disk.copy(), known_synced=COUNT)[1].removed_segment == name
    written = disk.copy()
    change(written, COUNT, SEGMENT_HEADER_BYTES, b"\1")
    assert recovery_names(written) == expected


def test_that_a_segment_was_begun_proves_what_is_before_it() -> None:
    disk, bases, records = full_log()
    cut(disk, bases[-1], records[-1].at)
    disk.create(segment_name(COUNT))
    _, position, offset, problem = recovery_names(disk)
    assert (position, offset) == (records[-1].at, COUNT - 1)
    assert problem == f"the log ends here, but everything before record {COUNT} is known to have been synced"


def test_an_only_segment_that_was_never_whole_is_begun_anew() -> None:
    disk = SimulatedDisk()
    new_log(disk).close()
    disk.overwrite(segment_name(0), b"VMQ")
    reader = Log.open(disk, new_log_id=lambda: 0, read_only=True)
    assert named(reader.recover) == (segment_name(0), 0, 0, "the only segment was never whole")
    log, recovery, _ = recovered(disk)
    assert (recovery.removed_segment, log.next_offset) == (segment_name(0), 0)
    fill(log, 5)
    log.close()
    disk.crash()
    assert read_header(disk, 0, LOG_ID) == SegmentHeader(LOG_ID, 0, 0, 0, 0)
    assert len(recovered(disk)[2]) == 5


def test_a_removed_segment_stays_removed() -> None:
    for seed in range(8):
        disk, _, _ = full_log()
        disk.random.seed(seed)
        cut(disk, list_bases(disk)[-1], len(disk.contents()[segment_name(list_bases(disk)[-1])].rstrip(b"\0")))
        disk.create(segment_name(COUNT))
        disk.sync_directory("log")
        recovered(disk)
        disk.crash()
        assert not disk.exists(segment_name(COUNT))


# -- records


def test_a_damaged_record_in_a_segment_that_has_a_successor() -> None:
    disk, bases, records = full_log()
    victim = records[5]
    for at, problem in (
        (victim.at + 70, "no record header"),
        (victim.at + HEADER_BYTES, "the checksum of its facts does not fit"),
        (victim.at + HEADER_BYTES + victim.facts_bytes, "the checksum of its payload does not fit"),
    ):
        damaged = disk.copy()
        flip(damaged, bases[0], at)
        expected = (segment_name(bases[0]), victim.at, 5, problem)
        assert recovery_names(damaged) == expected
        assert named(partial(seal_segment, damaged, LOG_ID, 0, NO_SEAL)) == expected


def test_a_record_in_the_place_of_another() -> None:
    disk, _, records = full_log()
    first, second = records[0], records[7]  # of the same length
    assert first.stored_bytes == second.stored_bytes
    change(disk, 0, first.at, disk.contents()[segment_name(0)][second.at : second.end])
    assert recovery_names(disk) == (segment_name(0), first.at, 0, "record 7 stands in its place")


def test_a_record_that_does_not_follow_the_one_before() -> None:
    disk, bases, records = full_log()
    other = SimulatedDisk()
    log = new_log(other)
    log.append(event(1), 1, [b"payload"])  # at another time
    fill(log, COUNT)
    log.close()
    change(disk, 0, records[0].end, other.contents()[segment_name(0)][records[0].end :])
    problem = "it does not follow the record before it"
    assert recovery_names(disk) == (segment_name(0), records[0].end, 1, problem)
    first = full_log()[0]
    change(first, 0, 0, read_header(first, 0, LOG_ID)._replace(link=1).pack())
    assert recovery_names(first) == (segment_name(0), SEGMENT_HEADER_BYTES, 0, problem)
    header = read_header(disk, bases[1], LOG_ID)
    change(disk, bases[1], 0, header._replace(link=header.link + 1).pack())
    sealing = named(lambda: seal_segment(disk, LOG_ID, bases[1], NO_SEAL))
    assert sealing == (segment_name(bases[1]), SEGMENT_HEADER_BYTES, bases[1], problem)


def test_a_segment_that_ends_too_early() -> None:
    disk, bases, records = full_log()
    last = records[bases[1] - 1]
    cut(disk, 0, last.at)
    problem = f"the segment ends before record {last.offset}, but the next one begins with record {bases[1]}"
    assert recovery_names(disk) == (segment_name(0), last.at, last.offset, problem)
    disk, bases, records = full_log()
    cut(disk, 0, last.at + 80)
    problem = f"the file ends within it (80 of {last.stored_bytes} bytes)"
    assert recovery_names(disk) == (segment_name(0), last.at, last.offset, problem)


def test_a_segment_that_does_not_follow_the_one_before() -> None:
    disk, bases, records = full_log()
    header = read_header(disk, bases[1], LOG_ID)
    change(disk, bases[1], 0, header._replace(link=header.link + 1).pack())
    problem = f"the next segment, {segment_name(bases[1])}, does not follow its last record"
    assert recovery_names(disk) == (segment_name(0), records[bases[1] - 1].end, bases[1], problem)


def test_an_end_before_what_is_known_to_have_been_synced() -> None:
    disk, bases, records = full_log()
    end = (segment_name(bases[-1]), records[-1].end, COUNT)
    problem = f"only zeros, but everything before record {COUNT + 1} is known to have been synced"
    assert recovery_names(disk, known_synced=COUNT + 1) == (*end, problem)
    assert recovered(disk.copy(), known_synced=COUNT)[1].end.offset == COUNT
    log = open_log(disk)
    assert named(lambda: log.recover(from_offset=COUNT + 1)) == (*end, problem)


def test_a_later_record_proves_what_is_before_it() -> None:
    disk, _, records = full_log()
    victim = records[-9]
    flip(disk, victim.base, victim.at + HEADER_BYTES)
    known = records[-1].synced
    problem = (
        f"the checksum of its facts does not fit, but everything before record {known} is known to have been synced"
    )
    assert recovery_names(disk) == (segment_name(victim.base), victim.at, victim.offset, problem)


def test_one_byte_behind_the_end_is_cut() -> None:
    disk, bases, records = full_log()
    cut(disk, bases[-1], records[-1].end)
    disk.overwrite(segment_name(bases[-1]), disk.contents()[segment_name(bases[-1])] + b"\1")
    log, recovery, _ = recovered(disk)
    assert (recovery.cut_bytes, recovery.cut_records, log.next_offset) == (1, 0, COUNT)
    assert disk.contents()[segment_name(bases[-1])][records[-1].end :].strip(b"\0") == b""


def test_a_place_of_the_index_proves_its_record() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    cut(disk, bases[-1], last.at + 80)
    assert recovery_names(disk.copy(), place=last.place)[1:3] == (last.at, last.offset)
    assert recovered(disk)[1].end.offset == COUNT - 1


def test_what_the_index_knows_and_the_log_has_lost() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    log, _, _ = recovered(disk)
    mark = Mark(COUNT, last.base, last.at, last.identity)
    assert log.holds(mark)
    assert not log.holds(mark._replace(identity=last.identity + 1))
    assert not log.holds(mark._replace(offset=COUNT + 1))
    start = Mark(bases[1], bases[1], 0, records[bases[1]].link)
    assert log.holds(start)
    assert not log.holds(start._replace(identity=1))
    cut(disk, bases[-1], last.at + HEADER_BYTES)
    assert log.holds(mark)
    cut(disk, bases[-1], last.at + HEADER_BYTES - 1)
    lost_names(log, mark)
    disk.unlink(segment_name(bases[-1]))
    lost_names(log, mark)
    flip(disk, bases[1], 9)
    lost_names(log, start)
    flip(disk, 0, 9)
    lost_names(log, Mark(0, 0, 0, 0))


def lost_names(log: Log, mark: Mark) -> None:
    file, position, offset, problem = named(lambda: log.holds(mark))
    assert (file, position, offset) == (segment_name(mark.base), mark.at, max(mark.offset - 1, 0))
    assert "the index knows that this record was synced, and it is not there" in problem
    assert "remove the folder index/" in problem


def test_a_whole_log_is_recovered_to_its_last_record() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    log, recovery, _ = recovered(disk)
    assert recovery.mark == log.mark == log.synced_mark == Mark(COUNT, last.base, last.at, last.identity)
    assert recovery.end == Place(COUNT, last.base, last.end)
    assert (recovery.records, recovery.cut_bytes, recovery.cut_records) == (COUNT, 0, 0)
    assert (recovery.removed_segment, recovery.problem) == ("", "")
    assert recovery.header == read_header(disk, bases[-1], LOG_ID)
    assert (log.next_offset, log.last_base, log.last_at) == (COUNT, last.base, last.at)
    assert log.append(event(1), TIME_US) == COUNT
    log.close()
    log = open_log(disk)
    assert log.recover(from_offset=COUNT - 3, from_place=records[-9].place).records == 3


def test_a_log_whose_last_segment_is_empty_ends_with_its_header() -> None:
    disk = SimulatedDisk()
    assert new_log(disk).mark == Mark(0, 0, 0, 0)
    disk, bases, records = full_log()
    cut(disk, bases[-1], SEGMENT_HEADER_BYTES)
    log, recovery, _ = recovered(disk)
    before = records[bases[-1] - 1]
    assert recovery.end == Place(bases[-1], bases[-1], SEGMENT_HEADER_BYTES)
    assert log.mark == Mark(bases[-1], before.base, before.at, before.identity)
    assert log.holds(log.mark)
    log.close()
    log = open_log(disk)
    log.recover(from_offset=bases[-1], from_place=Place(bases[-1], bases[-1], SEGMENT_HEADER_BYTES))
    assert log.mark == Mark(bases[-1], bases[-1], 0, before.identity)
    assert log.holds(log.mark)


def test_records_longer_than_a_block_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _, records = full_log()
    sizes = sorted({record.stored_bytes for record in records})
    for read_bytes in (HEADER_BYTES, *sizes, sizes[0] + sizes[-1], 1000):
        monkeypatch.setattr("vibemq.log.segment.READ_BYTES", read_bytes)
        found = recovered(disk.copy())[2]
        assert [record.place for record in found] == [record.place for record in records]


# -- what is legible behind the end


def test_the_tail_is_measured_without_its_zeros() -> None:
    disk, bases, records = full_log()
    base, start = bases[-1], records[-2].at
    for zeros in (0, 1, 500):
        cut(disk, base, records[-1].end)
        disk.overwrite(segment_name(base), disk.contents()[segment_name(base)] + bytes(zeros))
        file = disk.open_read(segment_name(base))
        tail = survey_tail(file, LOG_ID, base, start + 1)
        assert (tail.bytes, tail.records) == (records[-1].end - start - 1, 1)
        assert tail.synced == records[-1].synced > 0
        assert survey_tail(file, LOG_ID, base, records[-1].end) == (0, 0, 0)


def test_a_header_across_two_reads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tail is read in blocks, which overlap by less than a header: none is counted twice, none missed."""
    disk, bases, records = full_log()
    base, start = bases[-1], records[bases[-1]].at
    file = disk.open_read(segment_name(base))
    whole = survey_tail(file, LOG_ID, base, start)
    assert whole.records == COUNT - base
    for read_bytes in range(HEADER_BYTES, 2 * HEADER_BYTES):
        monkeypatch.setattr("vibemq.log.recovery.READ_BYTES", read_bytes)
        assert survey_tail(file, LOG_ID, base, start) == whole


# -- headers and names


def test_a_segment_header_comes_back_as_it_went_and_nothing_else_is_one() -> None:
    header = SegmentHeader(LOG_ID, 12, 7, 99, TIME_US)
    data = header.pack()
    assert len(data) == SEGMENT_HEADER_BYTES
    assert SegmentHeader.parse(data + b"more", LOG_ID) == header
    with pytest.raises(Damage, match="only 63 of 64 bytes"):
        SegmentHeader.parse(data[:-1], LOG_ID)
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damage):
            SegmentHeader.parse(bytes(bad), LOG_ID)


def forged(front: bytes, seed: int = LOG_ID) -> bytes:
    """A segment header with a checksum that fits."""
    return front + xxhash.xxh3_64_intdigest(front, seed).to_bytes(8, "little")


def test_a_segment_header_with_a_fitting_checksum_may_still_be_wrong() -> None:
    data = SegmentHeader(LOG_ID, 12, 7, 99, TIME_US).pack()[:-8]
    assert data.startswith(SEGMENT_MAGIC)
    for wrong in (b"VMQSEG\0\2" + data[8:], data[:48] + b"\1" + data[49:]):
        with pytest.raises(Damage, match="the segment header is damaged"):
            SegmentHeader.parse(forged(wrong), LOG_ID)
    with pytest.raises(Damage, match="belongs to another log"):
        SegmentHeader.parse(forged(data, LOG_ID + 1), LOG_ID + 1)


def test_only_twenty_digits_name_a_segment() -> None:
    disk, bases, _ = full_log()
    for other in ("1.seg", "x" * 20 + ".seg", "0" * 21 + ".seg", "٣" * 20 + ".seg", "0" * 20 + ".tmp", "reserve"):
        if not disk.exists(f"log/{other}"):
            disk.create(f"log/{other}")
    assert list_bases(disk) == bases


def test_segments_are_told_with_their_ends() -> None:
    disk, bases, _ = full_log()
    expected = [SegmentFacts(b, e, segment_name(b)) for b, e in zip(bases, [*bases[1:], COUNT], strict=True)]
    reader = Log.open(disk, new_log_id=lambda: 0, read_only=True)
    reader.recover()
    assert reader.segments() == expected
    log, _, _ = recovered(disk)
    assert log.segments() == expected
    disk.create(segment_name(COUNT)).pwrite([SegmentHeader(LOG_ID, COUNT, bases[-1], 0, 0).pack()], 0)
    assert log.segments() == expected  # what the log itself has begun, whatever lies in the folder

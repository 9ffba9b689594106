"""What `verify` says of damage, word for word: the file, the byte, the record, and what is wrong."""

import pytest

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
    recovered,
    seal_all,
    write,
)
from tests.sim.disk import SimulatedDisk
from vibemq.errors import FormatUnsupported
from vibemq.events import SegmentSealed, Tag, decode
from vibemq.log import frame
from vibemq.log import verify as verifying
from vibemq.log.disk import AnyFile
from vibemq.log.frame import HEADER_BYTES
from vibemq.log.recovery import Tail, survey_tail
from vibemq.log.segment import SEGMENT_HEADER_BYTES, list_bases, read_header, segment_name
from vibemq.log.verify import Problem, Report, verify


def problems(disk: SimulatedDisk, known_synced: int = 0) -> list[Problem]:
    return verify(disk, LOG_ID, known_synced=known_synced).problems


def test_a_sound_log_is_counted() -> None:
    disk, bases, records = full_log()
    seen: list[tuple[int, int]] = []
    report = verify(disk, LOG_ID, lambda *counts: seen.append(counts))
    size = sum(record.stored_bytes for record in records) + SEGMENT_HEADER_BYTES * len(bases)
    assert report == Report(segments=len(bases), records=COUNT, bytes=size)
    assert seen == [(number, len(bases)) for number in range(1, len(bases) + 1)]


def test_a_log_without_records() -> None:
    disk = SimulatedDisk()
    new_log(disk)
    assert verify(disk, LOG_ID) == Report(segments=1, bytes=SEGMENT_HEADER_BYTES)


def test_no_segment_at_all() -> None:
    disk, bases, _ = full_log()
    for base in bases:
        disk.unlink(segment_name(base))
    assert problems(disk) == [Problem(segment_name(0), 0, 0, "it is missing, and so are all that followed it")]


def test_a_missing_segment() -> None:
    for missing in (0, 1):
        disk, bases, _ = full_log()
        disk.unlink(segment_name(bases[missing]))
        text = f"it is missing, and {segment_name(bases[missing + 1])} follows it"
        assert problems(disk) == [Problem(segment_name(bases[missing]), 0, bases[missing], text)]


def test_a_damaged_segment_header() -> None:
    disk, bases, _ = full_log()
    for base in (bases[1], bases[-1]):
        damaged = disk.copy()
        flip(damaged, base, 9)
        assert problems(damaged) == [Problem(segment_name(base), 0, base, "the segment header is damaged")]
        assert verify(damaged, LOG_ID).records == COUNT


def test_a_segment_that_does_not_follow_the_one_before() -> None:
    disk, bases, records = full_log()
    base, last = bases[1], records[bases[1] - 1]
    header = read_header(disk, base, LOG_ID)
    other = disk.copy()
    change(other, base, 0, header._replace(link=1).pack())
    assert problems(other)[0] == Problem(
        segment_name(base), 0, base, "it does not follow the last record of the segment before"
    )
    cut(disk, 0, last.at)
    text = f"it begins with record {base}, not {base - 1}"
    assert problems(disk) == [Problem(segment_name(base), 0, base - 1, text)]


def test_a_segment_whose_records_do_not_follow_its_header() -> None:
    disk, bases, records = full_log()
    base = bases[1]
    other = SimulatedDisk()
    log = new_log(other)
    for number in range(1, COUNT + 1):  # another history: the same records, published a little later
        log.append(event(number), TIME_US + number + 1, [b"payload" * (number % 7)])
    write(log)
    header = read_header(disk, base, LOG_ID)
    disk.overwrite(segment_name(base), other.contents()[segment_name(base)])
    change(disk, base, 0, header.pack())
    report = verify(disk, LOG_ID)
    text = "it does not follow the record before it"
    assert report.problems[0] == Problem(segment_name(base), records[base].at, base, text)
    assert report.records == COUNT - 1


def test_a_byte_too_many_between_two_records() -> None:
    disk, bases, records = full_log()
    name, victim = segment_name(bases[1]), records[bases[1] + 3]
    data = disk.contents()[name]
    disk.overwrite(name, data[: victim.at] + b"?" + data[victim.at :])
    report = verify(disk, LOG_ID)
    assert report.problems == [Problem(name, victim.at, victim.offset, "no record header")]
    assert report.records == COUNT


def test_a_damaged_record_and_all_that_is_whole_behind_it() -> None:
    disk, bases, records = full_log()
    for offset in (bases[1] + 3, COUNT - 9):  # the second one: what follows tells that it was synced
        victim = records[offset]
        damaged = disk.copy()
        flip(damaged, victim.base, victim.at + HEADER_BYTES)
        report = verify(damaged, LOG_ID)
        text = "the checksum of its facts does not fit"
        assert report.problems == [Problem(segment_name(victim.base), victim.at, offset, text)]
        assert (report.records, report.segments, report.torn_bytes) == (COUNT - 1, len(bases), 0)
    victims = [records[bases[1] + 3], records[bases[1] + 4], records[bases[1] + 7]]
    for victim, at in zip(victims, (70, HEADER_BYTES, 70), strict=True):
        flip(disk, victim.base, victim.at + at)
    found = problems(disk)
    assert [(one.position, one.offset) for one in found] == [(one.at, one.offset) for one in (victims[0], victims[2])]
    assert verify(disk, LOG_ID).records == COUNT - 3


def test_whole_records_behind_damage_are_found_across_the_ends_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, bases, records = full_log()
    victim = next(one for one in records[bases[1] :] if one.stored_bytes % 4 == 0)
    flip(disk, victim.base, victim.at + 70)
    for read_bytes in range(HEADER_BYTES, 2 * HEADER_BYTES + 3):
        monkeypatch.setattr(verifying, "READ_BYTES", read_bytes)
        assert verify(disk, LOG_ID).records == COUNT - 1


def test_a_torn_tail_is_told_and_is_a_problem_only_where_it_was_synced() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    cut(disk, last.base, last.at + 100)
    report = verify(disk, LOG_ID, known_synced=COUNT - 1)
    assert (report.problems, report.torn_bytes, report.records) == ([], 100, COUNT - 1)
    text = f"the file ends within it (100 of {last.stored_bytes} bytes)"
    assert problems(disk, COUNT) == [Problem(segment_name(bases[-1]), last.at, COUNT - 1, text)]


def test_an_end_before_what_was_synced() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    cut(disk, last.base, last.end)
    assert problems(disk, COUNT) == []
    text = f"the log ends here, but everything before record {COUNT + 1} is known to have been synced"
    assert problems(disk, COUNT + 1) == [Problem(segment_name(bases[-1]), last.end, COUNT, text)]


def test_a_last_segment_that_was_only_begun() -> None:
    disk, bases, records = full_log()
    last = records[-1]
    cut(disk, last.base, last.end)
    disk.create(segment_name(COUNT))
    assert problems(disk, COUNT) == []
    assert verify(disk, LOG_ID).segments == len(bases) + 1
    text = f"the segment header has only 0 of {SEGMENT_HEADER_BYTES} bytes"
    assert problems(disk, COUNT + 1)[0] == Problem(segment_name(COUNT), 0, COUNT, text)
    cut(disk, last.base, last.at)  # it was begun, so all before it was synced
    text = f"the log ends here, but everything before record {COUNT} is known to have been synced"
    assert problems(disk) == [Problem(segment_name(bases[-1]), last.at, COUNT - 1, text)]


def test_an_only_segment_that_was_only_begun() -> None:
    disk = SimulatedDisk()
    disk.create(segment_name(7))
    text = "the log ends here, but everything before record 7 is known to have been synced"
    assert problems(disk) == [Problem(segment_name(0), 0, 0, text)]


def test_what_was_written_while_its_end_was_judged_is_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, bases, records = full_log()
    victim = records[-9]
    whole = disk.contents()[segment_name(victim.base)]
    change(disk, victim.base, victim.at, bytes(HEADER_BYTES))

    def written_meanwhile(file: AnyFile, log_id: int, base: int, at: int) -> Tail:
        disk.overwrite(segment_name(victim.base), whole)
        return survey_tail(file, log_id, base, at)

    monkeypatch.setattr(verifying, "survey_tail", written_meanwhile)
    report = verify(disk, LOG_ID)
    assert (report.problems, report.records, report.segments) == ([], COUNT, len(bases))


# -- seals


def sealed_log(*more: SegmentSealed) -> SimulatedDisk:
    """A log with all full segments sealed, and then these events."""
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, COUNT)
    while seal_all(log, disk):  # a seal is a record, too, and may fill a segment
        pass
    for one in more:
        log.append(one, TIME_US)
    write(log)
    log.close()
    return disk


def test_every_seal_is_verified() -> None:
    disk = sealed_log()
    report = verify(disk, LOG_ID)
    assert (report.problems, report.seals) == ([], len(list_bases(disk)) - 1)


def test_a_seal_that_does_not_follow_the_one_before() -> None:
    log, _, _ = recovered(sealed_log())
    base = log.unsealed()[-1].base if log.unsealed() else log.segments()[-1].base
    for wrong in (SegmentSealed(log.sealed_end, base, bytes(32), bytes(32)), SegmentSealed(0, 9, b"", log.last_seal)):
        found = [one for one in problems(sealed_log(wrong)) if "does not follow" in one.text]
        text = "its recorded seal does not follow the seal before"
        assert found == [Problem(segment_name(wrong.base), 0, wrong.base, text)]


def test_a_seal_of_a_damaged_or_changed_segment() -> None:
    disk = sealed_log()
    damaged = disk.copy()
    flip(damaged, 0, 300)
    text = "its seal cannot be verified: the segment is missing or damaged"
    assert problems(damaged)[-1] == Problem(segment_name(0), 0, 0, text)
    assert verify(damaged, LOG_ID).seals == verify(disk, LOG_ID).seals - 1
    log, _, _ = recovered(disk.copy())
    seals = [one.event for one in log.scan(0) if isinstance(one.event, SegmentSealed)]
    text = "its seal does not fit: a record was changed after it was sealed"
    first = seals[0]
    assert isinstance(first, SegmentSealed)
    for wrong in (
        SegmentSealed(first.base, first.end, b"x" * 32, first.previous),
        SegmentSealed(first.base, first.end + 1, first.seal, first.previous),
    ):
        other = SimulatedDisk()
        log = new_log(other)
        fill(log, COUNT)
        log.append(wrong, TIME_US)
        log.append(event(1), TIME_US)
        write(log)
        report = verify(other, LOG_ID)
        assert (report.problems, report.seals) == ([Problem(segment_name(0), 0, 0, text)], 0)


def test_a_seal_that_a_later_version_wrote() -> None:
    disk = sealed_log()
    records = recovered(disk.copy())[2]
    last = records[-1]
    assert last.tag == Tag.SEGMENT_SEALED
    head, _ = frame.pack(
        LOG_ID,
        last.offset,
        last.time_us,
        last.synced,
        last.link,
        last.tag,
        2,
        bytes(last.facts),
        0,
        last.payload_checksum,
    )
    change(disk, last.base, last.at, head)
    with pytest.raises(FormatUnsupported) as caught:
        decode(last.tag, 2, last.facts)
    found = Problem(segment_name(last.base), last.at, last.offset, str(caught.value))
    assert problems(disk) == [found]
    first = next(one for one in records if one.base == last.base)
    flip(disk, first.base, first.at)
    assert problems(disk)[1:] == [found]

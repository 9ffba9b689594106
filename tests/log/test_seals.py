"""Seals, and the check of a whole log: an edited record, a removed and a moved segment are found."""

from itertools import count
from types import SimpleNamespace

import pytest
import xxhash

from tests.log.building import LOG_ID, TIME_US, erased, event, fill, new_log, open_log, recovered, seal_all, write
from tests.sim.disk import SimulatedDisk
from vibemq.errors import CorruptLog
from vibemq.log.frame import HEADER_BYTES, Record
from vibemq.log.log import Log
from vibemq.log.segment import _SLICE_S, NO_SEAL, SEGMENT_HEADER_BYTES, seal_segment, segment_name
from vibemq.log.verify import Report


def sealed_log() -> tuple[SimulatedDisk, Log]:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 150)
    seal_all(log, disk)
    fill(log, 20)
    log.close()
    return disk, log


def verify(disk: SimulatedDisk) -> Report:
    return Log.open(disk, new_log_id=lambda: 0, read_only=True).verify()


def records_of(disk: SimulatedDisk, base: int) -> list[Record]:
    log = Log.open(disk, new_log_id=lambda: 0, read_only=True)
    return log.read_range(base, SEGMENT_HEADER_BYTES, 1 << 20)


def test_a_sound_log_verifies() -> None:
    disk, log = sealed_log()
    seen: list[tuple[int, int]] = []
    report = Log.open(disk, new_log_id=lambda: 0, read_only=True).verify(lambda *counts: seen.append(counts))
    assert (report.problems, report.records, report.torn_bytes) == ([], log.next_offset, 0)
    assert report.seals >= 3
    assert report.segments == len(log.segments()) == len(seen)


def test_seals_are_chained_and_do_not_depend_on_slices() -> None:
    disk, _ = sealed_log()
    pauses: list[int] = []
    one = seal_segment(disk, LOG_ID, 0, NO_SEAL)
    assert one == seal_segment(disk, LOG_ID, 0, NO_SEAL, lambda: pauses.append(1))
    assert one != seal_segment(disk, LOG_ID, 0, b"\1" * 32)
    assert one[0] == records_of(disk, 0)[-1].offset + 1


def test_sealing_gives_way_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _ = sealed_log()
    ticks, pauses = count(), list[int]()  # the clock goes on by a whole slice each time it is read
    clock = SimpleNamespace(perf_counter=lambda: 1000 * _SLICE_S + _SLICE_S * next(ticks))
    monkeypatch.setattr("vibemq.log.segment.time", clock)
    monkeypatch.setattr("vibemq.log.segment._SLICE_S", 1.5 * _SLICE_S)
    end, _ = seal_segment(disk, LOG_ID, 0, NO_SEAL, lambda: pauses.append(1))
    assert len(pauses) == end // 2


def test_erasing_a_payload_changes_no_seal() -> None:
    disk, _ = sealed_log()
    before = seal_segment(disk, LOG_ID, 0, NO_SEAL)
    whole = disk.contents()[segment_name(0)]
    for record in reversed(records_of(disk, 0)):
        data = disk.contents()[segment_name(0)]
        without = erased(data[record.at : record.end], bytes(record.payload))
        disk.overwrite(segment_name(0), data[: record.at] + without + data[record.end :])
        assert seal_segment(disk, LOG_ID, 0, NO_SEAL) == before
    assert all(record.erased for record in records_of(disk, 0))
    assert disk.contents()[segment_name(0)] != whole


def test_a_damaged_segment_is_not_sealed() -> None:
    disk, _ = sealed_log()
    data = bytearray(disk.contents()[segment_name(0)])
    data[300] ^= 1
    disk.overwrite(segment_name(0), bytes(data))
    with pytest.raises(CorruptLog):
        seal_segment(disk, LOG_ID, 0, NO_SEAL)


def test_unsealed_segments_are_known_after_a_crash() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 150)
    expected = [facts.base for facts in log.unsealed()]
    assert len(expected) >= 3
    disk.crash()
    log, _, _ = recovered(disk)
    assert [facts.base for facts in log.unsealed()] == expected
    seal_all(log, disk)
    assert all(facts.base >= log.sealed_end for facts in log.unsealed())
    sealed = (log.sealed_end, log.last_seal)
    place = log.place_of(log.next_offset - 1)
    log.close()
    log = open_log(disk)
    log.recover(from_offset=place.offset, from_place=place, sealed=sealed)
    assert (log.sealed_end, log.last_seal) == sealed


def test_an_edited_record_with_all_checksums_made_to_fit_is_found_by_the_seal() -> None:
    disk, _ = sealed_log()
    victim, last = records_of(disk, 0)[7], records_of(disk, 0)[-1]
    data = bytearray(disk.contents()[segment_name(0)])
    payload_at = victim.at + HEADER_BYTES + victim.facts_bytes
    assert last.offset > victim.offset
    data[payload_at] ^= 1  # somebody who knows the log id forges payload, checksums and all links behind it
    forge(disk, data, victim)
    report = verify(disk)
    assert any("seal" in problem.text for problem in report.problems)
    assert not any("checksum" in problem.text for problem in report.problems)


def forge(disk: SimulatedDisk, data: bytearray, victim: Record) -> None:
    """Make checksums and links of one segment fit again, from `victim` on, and the next segments' too."""
    link: int | None = None
    names = [f"log/{name}" for name in disk.list("log") if name.endswith(".seg")]
    at = victim.at
    for name in names:
        if name != names[0]:
            data = bytearray(disk.contents()[name])
            data[32:40] = (link or 0).to_bytes(8, "little")
            data[56:64] = xxhash.xxh3_64_intdigest(bytes(data[:56]), LOG_ID).to_bytes(8, "little")
            at = SEGMENT_HEADER_BYTES
        while data[at + 68 : at + 72] == b"VMQr":
            facts = int.from_bytes(data[at + 56 : at + 60], "little")
            length = int.from_bytes(data[at + 60 : at + 64], "little")
            payload = bytes(data[at + HEADER_BYTES + facts : at + HEADER_BYTES + facts + length])
            data[at + 48 : at + 56] = xxhash.xxh3_64_intdigest(payload, LOG_ID).to_bytes(8, "little")
            if link is not None:
                data[at + 32 : at + 40] = link.to_bytes(8, "little")
            link = xxhash.xxh3_64_intdigest(bytes(data[at + 8 : at + HEADER_BYTES]), LOG_ID)
            data[at : at + 8] = link.to_bytes(8, "little")
            at += HEADER_BYTES + facts + length
        disk.overwrite(name, bytes(data))


def test_a_removed_segment_is_found() -> None:
    for missing in (1, 2):
        disk, _ = sealed_log()
        disk.unlink(f"log/{disk.list('log')[missing]}")
        texts = [problem.text for problem in verify(disk).problems]
        assert any("missing" in text for text in texts)


def test_segments_that_changed_places_are_found() -> None:
    disk, _ = sealed_log()
    one, two = (f"log/{name}" for name in disk.list("log")[1:3])
    first, second = disk.contents()[one], disk.contents()[two]
    disk.overwrite(one, second)
    disk.overwrite(two, first)
    assert len(verify(disk).problems) >= 2


def test_every_damaged_place_is_listed_and_the_rest_still_read() -> None:
    disk, log = sealed_log()
    for base in [facts.base for facts in log.segments()][:3]:
        data = bytearray(disk.contents()[segment_name(base)])
        data[1500] ^= 1
        disk.overwrite(segment_name(base), bytes(data))
    report = verify(disk)
    assert len({problem.file for problem in report.problems}) == 3
    assert report.records == log.next_offset - 3


def test_a_torn_tail_is_no_problem_but_told() -> None:
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=1 << 20)
    for _ in range(5):
        log.append(event(1), TIME_US, [b"x" * 100])
    write(log)
    end = log.last_at + 120
    log.close()
    disk.overwrite(segment_name(0), disk.contents()[segment_name(0)][:end])
    report = verify(disk)
    assert (report.problems, report.records, report.torn_bytes) == ([], 4, 120)

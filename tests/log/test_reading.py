"""Reading back: by place, by offset, from an offset on, by a message's sequence."""

from functools import partial

import pytest

from tests.log.building import COUNT, LOG_ID, TIME_US, acked, change, cut, event, full_log, new_log, write
from tests.sim.disk import SimulatedDisk
from vibemq.errors import BeyondLog, CorruptLog
from vibemq.events import DeadLettered, DeadReason, Event, Published, Redriven, Routed
from vibemq.log import reading
from vibemq.log.disk import AnyFile
from vibemq.log.frame import HEADER_BYTES, Place, Record
from vibemq.log.reading import FOREVER, MARK_BYTES, Places, Reader, made_ready
from vibemq.log.recovery import Tail, survey_tail
from vibemq.log.segment import SEGMENT_HEADER_BYTES, list_bases, segment_name


def read_log() -> tuple[SimulatedDisk, Reader, list[Record]]:
    """Several segments, a reader of them, and all records."""
    disk, _, records = full_log()
    return disk, Reader(disk, LOG_ID), records


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


def places(records: list[Record]) -> list[Place]:
    return [record.place for record in records]


# -- places in memory


def noted(count: int, *, size: int, segment_bytes: int) -> tuple[Places, list[Place]]:
    """Records of one size, all of them noted."""
    places, found, base, at = Places(), list[Place](), 0, SEGMENT_HEADER_BYTES
    for offset in range(count):
        if at + size > segment_bytes:
            base, at = offset, SEGMENT_HEADER_BYTES
        places.note(offset, base, at)
        found.append(Place(offset, base, at))
        at += size
    return places, found


def remembered(places: Places, count: int) -> list[Place]:
    found = {places.floor(offset) for offset in range(count)}
    return sorted(place for place in found if place is not None)


def test_a_place_is_near_and_before() -> None:
    places, everything = noted(500, size=2000, segment_bytes=300_000)
    for place in everything:
        floor = places.floor(place.offset)
        assert floor is not None
        assert floor in everything
        assert floor.base == place.base
        assert place.at - MARK_BYTES < floor.at <= place.at
    assert remembered(places, 500) == [one for one in everything if (one.at - SEGMENT_HEADER_BYTES) % (33 * 2000) == 0]
    assert Places().floor(5) is None


def test_when_there_are_too_many_places_every_second_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PLACES_MAX", 8)
    places, everything = noted(40, size=MARK_BYTES, segment_bytes=1 << 40)
    assert remembered(places, 40) == everything[::8]
    places, everything = noted(9, size=MARK_BYTES, segment_bytes=1 << 40)
    assert remembered(places, 9) == everything[::2]
    places, everything = noted(8, size=MARK_BYTES, segment_bytes=1 << 40)
    assert remembered(places, 8) == everything


# -- from a place, from an offset


def test_a_range_ends_with_the_last_whole_record() -> None:
    _, reader, records = read_log()
    first, base = records[3], 0
    read = partial(reader.read_range, base, first.at)
    for length in (0, 1, HEADER_BYTES, first.stored_bytes, records[4].end - first.at - 1):
        assert offsets(read(length)) == [3]
    assert offsets(read(records[4].end - first.at)) == [3, 4]
    assert offsets(read(1 << 20)) == list(range(3, list_bases(reader._disk)[1]))
    second = records[list_bases(reader._disk)[1]]
    for length in (0, second.stored_bytes):  # with and without reading again
        assert places(reader.read_range(second.base, second.at, length)) == [second.place]


def test_a_range_stops_before_what_may_be_half_written() -> None:
    disk, reader, records = read_log()
    assert offsets(reader.read_range(0, records[3].at, 1 << 20, 6)) == [3, 4, 5]
    change(disk, 0, records[6].at, b"half")
    assert offsets(reader.read_range(0, records[3].at, 1 << 20, 6)) == [3, 4, 5]
    assert offsets(reader.read_range(0, records[3].at, 1 << 20)) == [3, 4, 5]
    with pytest.raises(CorruptLog) as caught:
        reader.read_range(0, records[3].at, 1 << 20, 7)
    assert (caught.value.file, caught.value.position, caught.value.offset) == (segment_name(0), records[6].at, 6)
    assert caught.value.problem == "no record header"
    with pytest.raises(CorruptLog) as caught:
        reader.read_range(0, records[6].at, 100)
    assert (caught.value.file, caught.value.position) == (segment_name(0), records[6].at)


def test_the_way_to_a_record_begins_at_the_nearest_place_in_its_segment() -> None:
    _, reader, records = read_log()
    bases = list_bases(reader._disk)
    begin = Place(bases[1], bases[1], SEGMENT_HEADER_BYTES)
    wanted = bases[1] + 9
    assert reader.floor(bases[1]) == reader.floor(wanted) == begin
    assert reader.floor(bases[1] - 1).base == 0
    near, nearer = records[bases[1] + 3].place, records[bases[1] + 6].place
    reader.places.note(*near)
    assert reader.floor(wanted) == near
    for known, best in ((None, near), (nearer, nearer), (begin, near), (records[2].place, near)):
        reader.locate = {wanted: known}.__getitem__
        assert reader.floor(wanted) == best
    reader._disk.unlink(segment_name(0))
    with pytest.raises(BeyondLog, match=f"record 3 is no longer in the log, which begins with record {bases[1]}"):
        reader.floor(3)
    with pytest.raises(BeyondLog, match="record 3 is no longer in the log, which begins with record 0"):
        Reader(SimulatedDisk(), LOG_ID).floor(3)


def test_a_scan_gives_exactly_what_was_asked_for() -> None:
    _, reader, _ = read_log()
    bases = list_bases(reader._disk)
    edges = sorted({0, 1, bases[1] - 1, bases[1], bases[1] + 1, bases[-1], COUNT - 1, COUNT})
    for start in edges:
        for end in edges:
            for complete in (True, False):
                assert offsets(list(reader.scan(start, end, complete=complete))) == list(range(start, end))
    assert offsets(list(reader.scan(5, COUNT + 9, complete=False))) == list(range(5, COUNT))


def test_a_scan_of_a_log_without_records() -> None:
    disk = SimulatedDisk()
    new_log(disk)
    assert list(Reader(disk, LOG_ID).scan(0, FOREVER, complete=False)) == []


def test_a_scan_does_not_look_at_what_is_behind_its_end() -> None:
    disk, reader, records = read_log()
    change(disk, 0, records[5].at, b"lost")
    assert offsets(list(reader.scan(0, 5, complete=True))) == list(range(5))


def test_a_segment_of_another_history_is_no_continuation() -> None:
    (disk, reader, _), other = read_log(), SimulatedDisk()
    base = list_bases(disk)[1]
    log = new_log(other)
    for number in range(1, COUNT + 1):
        log.append(event(number), TIME_US + number, [b"PAYLOAD" * (number % 7)])
    write(log)
    disk.overwrite(segment_name(base), other.contents()[segment_name(base)])
    with pytest.raises(CorruptLog, match=f"record {base}: it does not follow the record before it"):
        list(reader.scan(0, FOREVER, complete=False))
    assert offsets(list(reader.scan(base, base + 3, complete=True))) == [base, base + 1, base + 2]


def test_a_scan_tells_a_loss_from_the_end() -> None:
    disk, reader, records = read_log()
    last = records[-1]
    with pytest.raises(CorruptLog, match=f"record {COUNT}: only zeros"):
        list(reader.scan(0, COUNT + 1, complete=True))
    change(disk, last.base, last.at, b"torn")
    assert offsets(list(reader.scan(0, FOREVER, complete=False))) == list(range(COUNT - 1))
    change(disk, records[-5].base, records[-5].at, b"torn")  # the first of its group: what follows tells nothing of it
    assert offsets(list(reader.scan(0, FOREVER, complete=False))) == list(range(COUNT - 5))
    change(disk, records[-9].base, records[-9].at, b"lost")  # what follows tells that it was synced
    with pytest.raises(CorruptLog) as caught:
        list(reader.scan(0, FOREVER, complete=False))
    problem = caught.value
    assert (problem.file, problem.position, problem.offset) == (segment_name(last.base), records[-9].at, COUNT - 9)
    disk, reader, records = read_log()
    change(disk, 0, records[5].at, b"lost")  # a later segment tells it
    with pytest.raises(CorruptLog, match="record 5: no record header"):
        list(reader.scan(0, FOREVER, complete=False))
    disk, reader, records = read_log()
    data = disk.contents()[segment_name(0)]
    disk.overwrite(segment_name(0), data[: records[5].at])
    with pytest.raises(CorruptLog, match="record 5: the file ends here"):
        list(reader.scan(0, FOREVER, complete=False))


def test_what_was_written_while_its_end_was_judged_is_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, reader, records = read_log()
    victim = records[-9]
    whole = disk.contents()[segment_name(victim.base)]
    change(disk, victim.base, victim.at, bytes(HEADER_BYTES))

    def written_meanwhile(file: AnyFile, log_id: int, base: int, at: int) -> Tail:
        disk.overwrite(segment_name(victim.base), whole)
        return survey_tail(file, log_id, base, at)

    monkeypatch.setattr(reading, "survey_tail", written_meanwhile)
    assert offsets(list(reader.scan(0, FOREVER, complete=False))) == list(range(COUNT))


def test_a_record_is_found_by_its_offset_and_any_place_before() -> None:
    disk, reader, records = read_log()
    for offset in (0, 7, COUNT - 1):
        for place in (None, records[offset].place, records[max(0, offset - 3)].place, records[-1].place):
            assert reader.find(offset, place).place == records[offset].place
    assert reader.find(7, Place(7, 0, records[3].at)).place == records[7].place  # another record stands there
    last = records[-1]
    cut(disk, last.base, last.end)
    with pytest.raises(BeyondLog):
        reader.find(COUNT, Place(COUNT, last.base, last.end))
    with pytest.raises(BeyondLog, match=f"record {COUNT} is not in the log"):
        reader.find(COUNT)


# -- by sequence


def published(queue: int, lane: int, sequence: int, count: int) -> Published:
    return Published(queue, lane, sequence, count, 10, 0, 0, 7)


def dead(queue: int, sequence: int, count: int) -> DeadLettered:
    refs = ((0, 0, count),)
    return DeadLettered(9, 0, 5, (), 10, DeadReason.REJECTED, 1, "", queue, sequence, refs)


def log_of(*events: Event, payload_bytes: int = 30_000) -> tuple[SimulatedDisk, Reader, list[Record]]:
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=1 << 20)
    for one in events:
        log.append(one, TIME_US, [bytes(payload_bytes)])
    write(log)
    reader = Reader(disk, LOG_ID)
    return disk, reader, list(reader.scan(0, len(events), complete=True))


def test_which_record_gave_a_message_its_sequence() -> None:
    _, _, records = log_of(published(1, 0, 10, 3), dead(2, 5, 2), acked(10))
    for record, queue, sequences in ((records[0], 1, range(10, 13)), (records[1], 2, range(5, 7)), (records[2], 1, ())):
        for sequence in range(15):
            assert made_ready(record, queue, 0, sequence) == (sequence in sequences)
            assert not made_ready(record, queue, 1, sequence)
            assert not made_ready(record, queue + 1, 0, sequence)


def test_each_place_that_a_record_put_messages_into_leads_to_it() -> None:
    refs = ((0, 0, 2),)
    _, _, records = log_of(
        Routed("a.b", ((1, 0, 10), (2, 7, 1)), 3, 30, 0, 0, 7),
        Redriven(4, ((0, 1, 3),), 10, 1, 1, 4, 6, refs, 7),
        Published(1, 0, 13, 0, 0, 0, 0, 7, dropped=3),
        DeadLettered(1, 0, 5, ((0, 1, 3),), 10, DeadReason.REJECTED, 1, "", 0, 0, refs),
    )
    made = {
        (record.offset, queue, lane, sequence)
        for record in records
        for queue in range(5)
        for lane in (0, 4, 7)
        for sequence in range(20)
        if made_ready(record, queue, lane, sequence)
    }
    assert made == {
        *((0, 1, 0, sequence) for sequence in (10, 11, 12)),
        *((0, 2, 7, sequence) for sequence in (1, 2, 3)),
        *((1, 1, 4, sequence) for sequence in (6, 7)),
    }


def test_a_message_is_found_within_the_distance_of_two_places() -> None:
    """Each record has 30 KB: three of them begin within 64 KiB."""
    events = [published(2, 0, 1, 1), published(1, 0, 1, 1), published(1, 0, 2, 2), published(1, 0, 4, 1)]
    _, reader, records = log_of(*events)
    place = records[0].place
    assert [reader.find_sequence(place, 1, 0, sequence).offset for sequence in (1, 2, 3)] == [1, 2, 2]
    assert reader.find_sequence(records[1].place, 1, 0, 4).offset == 3
    assert reader.find_sequence(place, 1, 0, 3, 3).offset == 2
    for sequence, end in ((5, FOREVER), (3, 2), (0, FOREVER)):
        with pytest.raises(BeyondLog, match=f"message {sequence} of queue 1, lane 0"):
            reader.find_sequence(place, 1, 0, sequence, end)


def test_a_message_is_found_whether_one_read_gives_many_records_or_one() -> None:
    events = [published(1, 0, sequence, 1) for sequence in (1, 2, 3)]
    for payload_bytes in (10, 40_000):
        disk, reader, records = log_of(*events, payload_bytes=payload_bytes)
        place = records[0].place
        assert reader.find_sequence(place, 1, 0, 2).place == records[1].place
        for sequence, end in ((2, 1), (3, 2)):
            with pytest.raises(BeyondLog):
                reader.find_sequence(place, 1, 0, sequence, end)
        change(disk, 0, records[1].at, b"lost")
        with pytest.raises(CorruptLog, match="record 1: no record header"):
            reader.find_sequence(place, 1, 0, 3, 3)

"""Where the log ends, and what is refused: cut at every byte, flip every bit."""

from collections.abc import Generator, Sequence
from random import Random

import pytest
import xxhash

from tests.counting import counted
from tests.log.building import SEGMENT_BYTES, TIME_US, event, fill, new_log, open_log, recovered, seal_all, write
from tests.sim.disk import SimulatedDisk, SimulatedFile
from vibemq.errors import CorruptLog, FormatUnsupported, StorageError, UsageError
from vibemq.log.frame import Record
from vibemq.log.recovery import Recoverer, Recovery
from vibemq.log.segment import SEGMENT_HEADER_BYTES, segment_name

BIG = 1 << 20


def small_log(count: int = 12, *, group: int = 4, segment_bytes: int = BIG) -> SimulatedDisk:
    """A log of `count` records; all but the last group are known, from the log itself, to be synced."""
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=segment_bytes)
    fill(log, count, group=group)
    log.close()
    for name in disk.list("log"):
        if name.endswith(".seg"):
            data = disk.contents()[f"log/{name}"]
            disk.overwrite(f"log/{name}", data.rstrip(b"\0") if name == disk.list("log")[-2] else data)
    return disk


def ends(records: list[Record]) -> list[int]:
    return [record.end for record in records]


def drain(run: Generator[Record, None, Recovery]) -> tuple[int, Recovery]:
    """Where the last record ended, and the verdict."""
    end = 0
    while True:
        try:
            end = next(run).end
        except StopIteration as stop:
            verdict: Recovery = stop.value
            return end, verdict


def test_a_log_cut_at_every_byte_of_its_end_holds_exactly_the_whole_records() -> None:
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=BIG)
    while log.last_at < 66 << 10:
        log.append(
            event(log.next_offset + 1), TIME_US, [bytes([1 + log.next_offset % 250]) * (37 * log.next_offset % 1500)]
        )
    write(log)  # one group: nothing in it is known to be synced
    boundaries = ends(list(log.scan(0)))
    log.close()
    name = segment_name(0)
    whole = disk.contents()[name][: boundaries[-1]]
    with counted("G5", 0) as cuts:
        for length in range(len(whole) - (64 << 10), len(whole)):
            disk.overwrite(name, whole[:length])
            recoverer = Recoverer(disk, log.id, 0, 0)
            got, recovery = drain(recoverer.run(recoverer.headers(), 0, None, cut=False))
            expected = max((end for end in boundaries if end <= length), default=SEGMENT_HEADER_BYTES)
            assert (got, recovery.end.at) == (expected, expected)
            assert (recovery.cut_bytes > 0) == (whole[expected:length].strip(b"\0") != b"")
            cuts.add(1)


def test_a_cut_log_goes_on_where_it_was_cut() -> None:
    disk = small_log()
    name = segment_name(0)
    disk.overwrite(name, disk.contents()[name][:-3])
    log, recovery, records = recovered(disk, segment_bytes=BIG)
    assert (recovery.cut_records, len(records), log.next_offset) == (1, 11, 11)
    assert recovery.cut_bytes > 0
    assert recovery.problem
    fill(log, 3)
    log.close()
    _, recovery, records = recovered(disk, segment_bytes=BIG)
    assert (recovery.cut_bytes, [record.offset for record in records]) == (0, list(range(14)))


@pytest.mark.parametrize("segment_bytes", [BIG, SEGMENT_BYTES])
def test_every_flipped_bit_is_refused_or_cut_and_never_accepted(segment_bytes: int) -> None:
    count = 12 if segment_bytes == BIG else 45
    disk = small_log(count, segment_bytes=segment_bytes)
    log, _, records = recovered(disk.copy(), segment_bytes=segment_bytes)
    good = [(record.offset, record.time_us, bytes(record.facts), bytes(record.payload)) for record in records]
    known = records[-1].synced
    assert 0 < known < count
    step = 1 if segment_bytes == BIG else 7
    names = [name for name in disk.contents() if name == "FORMAT" or name.endswith(".seg")]
    with counted("G6_ALL", 0) as flips:
        for name in names:
            data = disk.contents()[name]
            for bit in range(0, 8 * len(data), step):
                check_flipped(flip(disk, name, bit), segment_bytes, good, known)
            flips.add(len(range(0, 8 * len(data), step)))
    assert log.next_offset == count


def flip(disk: SimulatedDisk, name: str, bit: int) -> SimulatedDisk:
    """The same disk with one bit of a file changed."""
    flipped = bytearray(disk.contents()[name])
    flipped[bit // 8] ^= 1 << bit % 8
    damaged = disk.copy()
    damaged.overwrite(name, bytes(flipped))
    return damaged


def test_random_flipped_bits_of_larger_logs_are_refused_or_cut() -> None:
    with counted("G6", 2000) as flips:
        while flips.left:
            seed = flips.first + flips.done
            random = Random(seed)
            segment_bytes = random.choice((BIG, SEGMENT_BYTES))
            count = 7 * random.randrange(3, 28) + random.randrange(1, 7)  # the last one has a payload: no zeros end it
            disk = small_log(count, group=random.randrange(2, 9), segment_bytes=segment_bytes)
            _, _, records = recovered(disk.copy(), segment_bytes=segment_bytes)
            good = [(record.offset, record.time_us, bytes(record.facts), bytes(record.payload)) for record in records]
            known = max(records[-1].synced, records[-1].base)  # a segment was synced before its successor began
            files = {name: data for name, data in disk.contents().items() if name.endswith(".seg")}
            for _ in flips.take(100):
                name = random.choice(list(files))
                bit = random.randrange(8 * len(files[name].rstrip(b"\0")))
                check_flipped(flip(disk, name, bit), segment_bytes, good, known)


def check_flipped(
    disk: SimulatedDisk, segment_bytes: int, good: list[tuple[int, int, bytes, bytes]], known: int
) -> None:
    before = disk.contents()
    refused: tuple[str, int, str] | None = None
    try:
        _, recovery, records = recovered(disk, segment_bytes=segment_bytes)
    except CorruptLog as problem:
        refused = (problem.file, problem.offset, problem.problem)
    else:
        check_cut(recovery, records, good, known)
    if refused is not None:
        file, offset, text = refused
        assert offset < known or "header" in text or file == "FORMAT"
        assert {name: data for name, data in disk.contents().items() if name in before} == before


def check_cut(recovery: Recovery, records: list[Record], good: list[tuple[int, int, bytes, bytes]], known: int) -> None:
    got = [(record.offset, record.time_us, bytes(record.facts), bytes(record.payload)) for record in records]
    assert known <= len(got) < len(good)
    assert got == good[: len(got)]
    assert recovery.cut_bytes > 0


def test_a_flipped_bit_in_the_zeros_behind_the_end_is_cut_and_reported() -> None:
    disk = small_log()
    name = segment_name(0)
    data = disk.contents()[name]
    disk.overwrite(name, data + bytes(500) + b"\1" + bytes(1000))
    _, recovery, records = recovered(disk, segment_bytes=BIG)
    assert (recovery.cut_bytes, recovery.cut_records, len(records)) == (501, 0, 12)
    assert disk.contents()[name][len(data) :].strip(b"\0") == b""


def test_zeros_behind_the_end_are_its_normal_end() -> None:
    disk = small_log()
    disk.overwrite(segment_name(0), disk.contents()[segment_name(0)] + bytes(1 << 20))
    _, recovery, records = recovered(disk, segment_bytes=BIG)
    assert (recovery.cut_bytes, recovery.problem, len(records)) == (0, "", 12)


def test_what_the_index_knows_to_be_synced_is_never_cut() -> None:
    disk = small_log()
    name = segment_name(0)
    disk.overwrite(name, disk.contents()[name][:-3])
    with pytest.raises(CorruptLog, match="record 11") as caught:
        recovered(disk, segment_bytes=BIG, known_synced=12)
    assert (caught.value.file, caught.value.offset) == (name, 11)


def test_a_file_cut_between_two_records_is_seen_through_the_index() -> None:
    disk = small_log()
    _, _, records = recovered(disk.copy(), segment_bytes=BIG)
    name = segment_name(0)
    disk.overwrite(name, disk.contents()[name][: records[-1].at])
    with pytest.raises(CorruptLog, match="ends here"):
        recovered(disk, segment_bytes=BIG, known_synced=12)


def test_a_missing_segment_is_refused() -> None:
    for missing in (0, 1, 2):
        disk = small_log(150, segment_bytes=SEGMENT_BYTES)
        bases = [name for name in disk.list("log") if name.endswith(".seg")]
        disk.unlink(f"log/{bases[missing]}")
        with pytest.raises(CorruptLog, match="missing"):
            recovered(disk)


def test_two_segments_that_changed_places_are_refused() -> None:
    disk = small_log(150, segment_bytes=SEGMENT_BYTES)
    one, two = (f"log/{name}" for name in disk.list("log")[1:3])
    first, second = disk.contents()[one], disk.contents()[two]
    disk.overwrite(one, second)
    disk.overwrite(two, first)
    with pytest.raises(CorruptLog, match="begins with record"):
        recovered(disk)


def test_a_last_segment_that_was_never_whole_is_removed_and_reported() -> None:
    disk = small_log(150, segment_bytes=SEGMENT_BYTES)
    log, _, _ = recovered(disk.copy())
    name = segment_name(150)
    for torn in (b"", b"VMQ", bytes(64), bytes(4096)):
        broken = disk.copy()
        last = [name for name in broken.list("log") if name.endswith(".seg")][-1]
        broken.overwrite(f"log/{last}", broken.contents()[f"log/{last}"].rstrip(b"\0"))
        broken.create(name)
        broken.overwrite(name, torn)
        _, recovery, records = recovered(broken)
        assert (recovery.removed_segment, len(records)) == (name, log.next_offset)
        assert not broken.exists(name)


def test_a_last_segment_with_a_damaged_header_and_records_is_refused() -> None:
    disk = small_log()
    data = bytearray(disk.contents()[segment_name(0)])
    data[9] ^= 1
    disk.overwrite(segment_name(0), bytes(data))
    with pytest.raises(CorruptLog, match="header"):
        recovered(disk, segment_bytes=BIG)


def test_bytes_between_two_segments_are_refused() -> None:
    disk = small_log(150, segment_bytes=SEGMENT_BYTES)
    name = f"log/{disk.list('log')[1]}"
    for more in (b"\0", b"\1" * 100):
        damaged = disk.copy()
        damaged.overwrite(name, damaged.contents()[name] + more)
        with pytest.raises(CorruptLog):
            recovered(damaged)


def test_a_lost_or_unknown_format_is_refused() -> None:
    disk = small_log()
    text = disk.contents()["FORMAT"]
    disk.unlink("FORMAT")
    with pytest.raises(CorruptLog, match="missing"):
        open_log(disk)
    disk.write_small("FORMAT", text.replace(b"data 1", b"data 2"))
    with pytest.raises(CorruptLog, match="checksum"):
        open_log(disk)
    later = b"vibemq data 2\nlog 0000000000000001\n"
    disk.write_small("FORMAT", later + f"check {xxhash.xxh3_64_intdigest(later):016x}\n".encode())
    with pytest.raises(FormatUnsupported, match="later one"):
        open_log(disk)


def test_a_replay_from_a_place_reads_only_what_is_behind_it() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 200)
    places = {offset: log.place_of(offset) for offset in (0, 50, 117, 199)}
    log.close()
    for offset, place in places.items():
        for start in {offset, min(offset + 1, 200), min(offset + 13, 200)}:
            log, records = open_log(disk), list[Record]()
            log.recover(from_offset=start, from_place=place, on_record=records.append)
            assert [record.offset for record in records] == list(range(start, 200))
            log.append(event(201), TIME_US)
            log.close()


def test_a_place_that_is_no_record_is_refused() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 20)
    place = log.place_of(10)
    log.close()
    for wrong in (place._replace(at=place.at + 1), place._replace(offset=9), place._replace(base=7)):
        with pytest.raises(CorruptLog):
            open_log(disk).recover(from_offset=10, from_place=wrong)
        disk.unlock()


def test_seals_are_known_after_a_replay() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 200)
    assert seal_all(log, disk) > 3
    expected = (log.sealed_end, log.last_seal)
    log.close()
    log, _, _ = recovered(disk)
    assert (log.sealed_end, log.last_seal) == expected
    assert all(facts.base >= expected[0] for facts in log.unsealed())


def test_a_log_that_was_not_recovered_takes_nothing() -> None:
    log = open_log(SimulatedDisk())
    with pytest.raises(UsageError):
        log.append(event(1), TIME_US)
    with pytest.raises(UsageError):
        open_log(SimulatedDisk(), segment_bytes=100)


def test_a_start_writes_again_what_nothing_proves_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first record of a group says that the groups before it were synced: nothing proves the last group."""
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=BIG)
    fill(log, 148)
    records = list(log.scan(0))
    log.close()
    before, written = disk.contents(), list[tuple[int, int]]()
    pwrite = SimulatedFile.pwrite

    def noted(file: SimulatedFile, parts: Sequence[bytes], at: int) -> None:
        written.append((at, at + sum(map(len, parts))))
        pwrite(file, parts, at)

    monkeypatch.setattr(SimulatedFile, "pwrite", noted)
    for known, first in ((0, 145), (140, 145), (148, 145)):
        for place in (None, records[143].place, records[146].place):
            for read_bytes in (100, 1 << 20):
                monkeypatch.setattr("vibemq.log.recovery.READ_BYTES", read_bytes)
                started = disk.copy()
                written.clear()
                open_log(started).recover(known_synced=known, from_place=place)
                begin = max(records[first].at, 0 if place is None else place.at)
                assert (written[0][0], written[-1][1]) == (begin, records[-1].end)
                assert [end for _, end in written[:-1]] == [at for at, _ in written[1:]]
                assert len(written) == -(-(records[-1].end - begin) // read_bytes)
                assert started.contents()[segment_name(records[-1].base)] == before[segment_name(records[-1].base)]


# -- the checkers can fail: planted bugs


def test_a_cut_that_is_not_done_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=BIG)
    for number in range(3):
        log.append(event(number), TIME_US, [b"x" * 500])
    write(log)
    log.close()
    data = bytearray(disk.contents()[segment_name(0)])
    data[SEGMENT_HEADER_BYTES + 100] ^= 1  # the first record is torn, two whole ones are behind it
    disk.overwrite(segment_name(0), bytes(data))
    bug = disk.copy()
    for one, planted in ((disk, False), (bug, True)):
        if planted:
            monkeypatch.setattr(Recoverer, "_settle", lambda *_args, **_more: None)
        log, recovery, _ = recovered(one, segment_bytes=BIG)
        assert recovery.cut_bytes > 0
        log.append(event(0), TIME_US, [b"x" * 500])  # the same bytes again: the old successor's link fits
        write(log)
        log.close()
        records = recovered(one, segment_bytes=BIG)[2]
        assert len(records) == (3 if planted else 1)  # with the bug, records that were cut are back


def test_errors_of_the_log_are_one_tree() -> None:
    assert issubclass(CorruptLog, StorageError)

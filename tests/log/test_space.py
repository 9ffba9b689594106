"""Room that is promised is room that the disk has given; and what happens when it gives none."""

import errno

import pytest

from tests.log.building import LOG_ID, SEGMENT_BYTES, TIME_US, acked, event, fill, new_log, open_log
from tests.sim.disk import SimulatedDisk
from vibemq.errors import OutOfSpace
from vibemq.log.folder import create_log
from vibemq.log.log import RECORD_OVERHEAD_BYTES, Log
from vibemq.log.segment import SEGMENT_HEADER_BYTES, segment_name
from vibemq.log.space import RESERVE, ActiveSegment, Space

RESERVE_BYTES = 2000
STEP_BYTES = 1000


def fill_disk(disk: SimulatedDisk, free_bytes: int = 0) -> None:
    """Leave so much of it."""
    disk.capacity_bytes = None
    disk.capacity_bytes = (1 << 60) - disk.free_bytes() + free_bytes


def started(
    *, reserve_bytes: int = RESERVE_BYTES, end: int = SEGMENT_HEADER_BYTES
) -> tuple[SimulatedDisk, Space, ActiveSegment]:
    """Space on a disk with one segment that holds `end` bytes, and has room for just these."""
    disk = SimulatedDisk()
    create_log(disk, LOG_ID, 0, TIME_US)
    space = Space(disk, SEGMENT_BYTES, reserve_bytes, STEP_BYTES)
    space.start()
    active = space.adopt(0, 0)
    active.end = end
    assert space.grow(active, end)
    active.file.truncate(end)
    active.limit = end
    return disk, space, active


def names(disk: SimulatedDisk) -> list[str]:
    return [name for name in disk.list("log") if name != segment_name(0).removeprefix("log/")]


# -- growing


def test_a_segment_grows_by_a_step_and_not_beyond_its_capacity() -> None:
    _, space, active = started()
    for wanted, limit in ((100, 1100), (1100, 1100), (1101, 2101), (3096, 4096), (4096, 4096), (5000, 5000)):
        assert space.grow(active, wanted)
        assert (active.limit, active.file.size()) == (limit, limit)


def test_on_a_full_disk_a_segment_stays_as_it_was() -> None:
    disk, space, active = started(end=500)
    fill_disk(disk, STEP_BYTES + 99)
    assert space.grow(active, 599)
    fill_disk(disk, STEP_BYTES + 99)
    assert not space.grow(active, active.limit + 100)
    assert space.full
    assert active.file.size() == active.limit == 1599
    assert space.grow(active, 1599)


def test_another_error_than_a_full_disk_is_raised() -> None:
    for call in ("allocate", "create"):
        disk, space, active = started()
        disk.fail(call, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            space.admit(active, SEGMENT_BYTES)
        assert not space.full


# -- admission


@pytest.mark.parametrize("length", [1, 100, 1500, SEGMENT_BYTES - 500, SEGMENT_BYTES - 499, SEGMENT_BYTES, 9000])
def test_what_is_admitted_has_its_room(length: int) -> None:
    """In the active segment as long as it fits there, to the byte; else in a file that is ready to be the next one."""
    disk, space, active = started(end=500)
    assert space.admit(active, length)
    fits = 500 + length <= SEGMENT_BYTES
    assert (active.limit >= 500 + length) == fits
    assert names(disk) == ([] if fits else ["next-1.tmp"]) + ["reserve"]
    fill_disk(disk)
    assert space.admit(active, length)
    if not fits:
        following = space.next_segment(length)
        assert following.limit >= SEGMENT_HEADER_BYTES + length
        assert following.capacity == max(SEGMENT_BYTES, SEGMENT_HEADER_BYTES + length)
        assert not following.on_reserve


def test_what_has_no_room_is_refused_until_there_is_some() -> None:
    for length in (600, SEGMENT_BYTES):
        disk, space, active = started(end=500)
        fill_disk(disk, length)
        assert not space.admit(active, length)
        assert space.full
        assert names(disk) == ["reserve"]
        disk.capacity_bytes = None
        assert not space.admit(active, length)
        assert space.returned(active)
        assert space.admit(active, length)


def test_a_disk_that_lets_no_file_be_created_is_full() -> None:
    disk, space, active = started()
    disk.fail("create", errno.EDQUOT)
    assert not space.admit(active, SEGMENT_BYTES)
    assert space.full


@pytest.mark.parametrize("size", [0, 1, 700, 3300, 3550, SEGMENT_BYTES, 9000])
def test_a_publish_that_was_admitted_is_appended_on_a_disk_that_has_filled_up(size: int) -> None:
    for begun in range(0, SEGMENT_BYTES, 300):
        disk = SimulatedDisk()
        log = new_log(disk)
        log.append(event(1), TIME_US, [bytes(begun)])
        assert log.admit(size)
        fill_disk(disk)
        log.append(event(2), TIME_US, [bytes(size)])
        group = log.take_group()
        assert group is not None
        log.write_group(group, sync=True)
        assert not log.disk_full
        assert disk.exists(RESERVE)


def test_admission_asks_the_disk_only_when_the_room_that_is_there_does_not_do() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, 3)
    log.admit(1)  # makes room for much more
    asked = disk.calls["allocate"]
    left = SEGMENT_BYTES - active_end(log) - RECORD_OVERHEAD_BYTES
    assert log.admit(left)
    assert disk.calls["allocate"] == asked
    assert log.admit(left + 1)
    assert disk.calls["allocate"] == asked + 1


def active_end(log: Log) -> int:
    active = log._active
    assert active is not None
    return active.end


# -- the next segment


def test_the_reserve_becomes_a_segment_when_the_disk_is_full() -> None:
    disk, space, _ = started()
    fill_disk(disk)
    with pytest.raises(OutOfSpace, match="reserve is used up"):
        space.next_segment(RESERVE_BYTES - SEGMENT_HEADER_BYTES + 1)
    reserve = space.next_segment(RESERVE_BYTES - SEGMENT_HEADER_BYTES)
    assert (reserve.limit, reserve.capacity, reserve.on_reserve) == (RESERVE_BYTES, RESERVE_BYTES, True)
    assert reserve.file.size() == RESERVE_BYTES
    assert disk.exists(reserve.name)
    assert not disk.exists(RESERVE)
    with pytest.raises(OutOfSpace, match=r"\(0 bytes free\)"):
        space.next_segment(10)


def test_a_spare_that_cannot_grow_waits_for_a_record_that_fits() -> None:
    disk, space, active = started(reserve_bytes=3 * STEP_BYTES, end=SEGMENT_BYTES)
    space.prepare(active)
    fill_disk(disk)
    following = space.next_segment(3 * STEP_BYTES - SEGMENT_HEADER_BYTES)
    assert following.on_reserve
    spare = space.next_segment(100)
    assert (spare.on_reserve, spare.limit >= 100 + SEGMENT_HEADER_BYTES) == (False, True)


def test_files_that_become_segments_have_names_of_their_own() -> None:
    disk, space, _ = started()
    found = {space.next_segment(10).name for _ in range(3)}
    assert len(found) == 3
    assert all(disk.exists(name) for name in found)


def test_an_empty_segment_takes_the_room_of_the_reserve_once() -> None:
    disk, space, active = started()
    fill_disk(disk)
    assert not space.grow(active, 1000)
    space.give_up_reserve(active, 1000)
    assert active.limit >= 1000
    assert space.full
    assert not disk.exists(RESERVE)
    fill_disk(disk)
    with pytest.raises(OutOfSpace):
        space.give_up_reserve(active, SEGMENT_BYTES)
    with pytest.raises(OutOfSpace):
        space.next_segment(10)


def test_consuming_ends_with_a_message_when_the_reserve_of_an_empty_segment_is_used_up() -> None:
    disk = SimulatedDisk()
    log = open_log(disk)
    log.recover()
    fill_disk(disk)
    with pytest.raises(OutOfSpace):  # noqa: PT012 - it may be any of them
        for number in range(1000):
            log.append(acked(number), TIME_US)


# -- taking room ahead, and having it again


@pytest.mark.parametrize(
    ("end", "ahead"), [(600, []), (SEGMENT_BYTES - 500, []), (SEGMENT_BYTES - 499, ["next-1.tmp"])]
)
def test_room_is_taken_half_a_step_ahead(end: int, ahead: list[str]) -> None:
    disk, space, active = started(end=end)
    for _ in range(2):
        space.prepare(active)
        assert names(disk) == [*ahead, "reserve"]
    assert active.limit == (end if ahead else min(end + 500 + STEP_BYTES, SEGMENT_BYTES))
    if ahead:
        assert space.next_segment(10).limit >= STEP_BYTES


def test_no_room_is_taken_ahead_while_the_disk_is_full() -> None:
    disk, space, active = started()
    fill_disk(disk)
    assert not space.admit(active, 1000)
    asked = disk.calls["allocate"]
    space.prepare(active)
    assert disk.calls["allocate"] == asked


def test_service_resumes_when_there_is_the_reserve_and_room_for_a_record() -> None:
    disk, space, active = started()
    assert space.returned(active)
    fill_disk(disk)
    assert not space.admit(active, 1000)
    assert not space.returned(active)
    assert space.full
    space.next_segment(1000)  # it is the reserve
    fill_disk(disk, RESERVE_BYTES)
    assert not space.returned(active)  # the reserve is back, and there is no room beside it
    assert disk.exists(RESERVE)
    fill_disk(disk, STEP_BYTES + 1)
    assert space.returned(active)
    assert not space.full
    assert active.limit > active.end


def test_a_segment_at_its_capacity_needs_no_more_room_for_service_to_resume() -> None:
    disk, space, active = started(end=SEGMENT_BYTES)
    fill_disk(disk)
    assert not space.admit(active, 1)
    assert space.returned(active)
    assert not space.full


# -- the start and the end


def test_a_part_of_a_reserve_is_given_back() -> None:
    disk = SimulatedDisk()
    create_log(disk, LOG_ID, 0, TIME_US)
    fill_disk(disk, RESERVE_BYTES - 1)
    space = Space(disk, SEGMENT_BYTES, RESERVE_BYTES, STEP_BYTES)
    space.start()
    assert space.full
    assert names(disk) == []
    fill_disk(disk, RESERVE_BYTES)
    space.start()
    assert not space.full
    assert names(disk) == ["reserve"]
    fill_disk(disk)
    created = disk.calls["create"]
    space.start()  # it is there already, and keeps its room
    assert (space.full, disk.calls["create"]) == (False, created)


def test_without_a_reserve_nothing_is_taken_at_the_start() -> None:
    disk, space, active = started(reserve_bytes=0)
    assert not space.full
    assert names(disk) == []
    fill_disk(disk)
    with pytest.raises(OutOfSpace):
        space.give_up_reserve(active, 1000)
    with pytest.raises(OutOfSpace):
        space.next_segment(10)


def test_leftovers_go_at_the_start_and_the_spare_at_the_end() -> None:
    disk, space, active = started()
    disk.create("log/next-7.tmp").close()
    space.start()
    assert names(disk) == ["reserve"]
    space.admit(active, SEGMENT_BYTES)
    assert names(disk) == ["next-1.tmp", "reserve"]
    space.close()
    space.close()
    assert names(disk) == ["reserve"]


def test_the_last_segment_goes_on_as_it_was_found() -> None:
    disk, space, _ = started()
    file = disk.open(segment_name(0))
    for size, capacity in ((3000, SEGMENT_BYTES), (5000, 5000)):
        file.truncate(size)
        segment = space.adopt(0, 0)
        assert (segment.name, segment.named, segment.base, segment.previous) == (segment_name(0), True, 0, 0)
        assert (segment.limit, segment.capacity, segment.on_reserve) == (size, capacity, False)

"""What makes a folder a data folder, and what of a folder that never became one may be replaced."""

import pytest
import xxhash

from tests.log.building import LOG_ID, TIME_US
from tests.sim.disk import SimulatedDisk
from vibemq.errors import CorruptLog, FormatUnsupported
from vibemq.log.folder import FORMAT, create_log, create_segment, read_format
from vibemq.log.segment import SegmentHeader, list_bases, read_header, segment_name


def checked(text: bytes) -> bytes:
    """FORMAT with a checksum that fits."""
    return text + f"check {xxhash.xxh3_64_intdigest(text):016x}\n".encode()


def test_a_new_log_is_there_after_a_power_loss() -> None:
    for seed in range(8):
        disk = SimulatedDisk(seed)
        assert read_format(disk) is None
        assert create_log(disk, LOG_ID, 7, TIME_US) == LOG_ID
        disk.crash()
        assert read_format(disk) == LOG_ID
        assert disk.contents()[FORMAT] == checked(b"vibemq data 1\nlog 1122334455667788\n")
        assert disk.list("log") == [segment_name(7).removeprefix("log/")]
        assert read_header(disk, 7, LOG_ID) == SegmentHeader(LOG_ID, 7, 7, 0, TIME_US)


@pytest.mark.parametrize(
    "data",
    [b"", b"vibemq data 1\nlog 1122334455667788\n", checked(b"vibemq data 1\n")[:-1], b"check 0123456789abcdef\n"],
)
def test_a_format_that_is_not_whole(data: bytes) -> None:
    disk = SimulatedDisk()
    disk.write_small(FORMAT, data)
    with pytest.raises(CorruptLog) as caught:
        read_format(disk)
    problem = caught.value
    assert (problem.file, problem.position, problem.offset) == (FORMAT, 0, 0)
    assert problem.problem == "its checksum does not fit"


def test_the_format_of_a_later_version_is_named() -> None:
    disk = SimulatedDisk()
    disk.write_small(FORMAT, checked("vibemq data 2 \u00e9\ncheck daily\nlog 1\n".encode()))
    with pytest.raises(FormatUnsupported, match=r"simulated has format 'vibemq data 2 .*'; this VibeMQ reads format 1"):
        read_format(disk)


def test_a_log_that_was_never_finished_is_begun_anew() -> None:
    disk = SimulatedDisk()
    create_segment(disk, SegmentHeader(5, 0, 0, 0, 1))
    disk.open(segment_name(0)).allocate(5000)
    with pytest.raises(CorruptLog, match="it is missing, but there are records in the log") as caught:
        create_log(disk.copy(), LOG_ID, 1, TIME_US)  # it is not the segment that this log would begin with
    assert (caught.value.file, caught.value.position, caught.value.offset) == (FORMAT, 0, 0)
    create_log(disk, LOG_ID, 0, TIME_US)
    assert read_header(disk, 0, LOG_ID).created_us == TIME_US
    assert list_bases(disk) == [0]


def test_a_log_with_records_and_without_format_is_not_touched() -> None:
    for at in (64, 4999):
        disk = SimulatedDisk()
        create_segment(disk, SegmentHeader(5, 3, 3, 0, 1))
        disk.open(segment_name(3)).allocate(5000)
        disk.open(segment_name(3)).pwrite([b"\1"], at)
        before = disk.contents()
        with pytest.raises(CorruptLog) as caught:
            create_log(disk, LOG_ID, 3, TIME_US)
        assert (caught.value.file, caught.value.offset) == (FORMAT, 3)
        assert disk.contents() == before

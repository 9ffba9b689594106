"""What a failed sync leaves behind: bytes that everybody sees, and that the disk does not have."""

import errno

import pytest

from tests.sim.disk import SimulatedDisk, SimulatedFile


def a_file(disk: SimulatedDisk) -> SimulatedFile:
    file = disk.create("log/f")
    file.pwrite([b"first."], 0)
    file.fdatasync()
    disk.sync_directory("log")
    return file


def after_a_failed_sync(seed: int) -> tuple[SimulatedDisk, SimulatedFile]:
    disk = SimulatedDisk(seed)
    file = a_file(disk)
    file.pwrite([b"second"], 6)
    disk.fail("fdatasync", once=True)
    with pytest.raises(OSError, match="Input/output") as failed:
        file.fdatasync()
    assert failed.value.errno == errno.EIO
    return disk, file


def after_power_loss(disk: SimulatedDisk) -> bytes:
    disk.crash()
    return disk.contents()["log/f"]


def test_a_repeated_sync_succeeds_and_does_not_help() -> None:
    found = set()
    for seed in range(40):
        disk, file = after_a_failed_sync(seed)
        file.fdatasync()
        disk.crash(power=False)
        assert disk.contents()["log/f"] == b"first.second"
        found.add(after_power_loss(disk))
    assert found == {b"first.", b"first.second"}


def test_what_is_written_again_is_durable() -> None:
    for seed in range(40):
        disk, file = after_a_failed_sync(seed)
        file.pwrite([file.pread(6, 6)], 6)
        file.fdatasync()
        assert after_power_loss(disk) == b"first.second"


def test_a_fault_that_comes_once_is_over_and_one_for_good_is_not() -> None:
    disk, file = after_a_failed_sync(0)
    file.fdatasync()
    disk.fail("fdatasync")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            file.fdatasync()
    assert disk.is_troubled
    disk.repair()
    file.fdatasync()
    assert not disk.is_troubled

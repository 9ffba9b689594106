"""What every disk does, and what the simulated one forgets."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sim.disk import SECTOR_BYTES, SimulatedDisk
from vibemq.errors import DataFolderLocked
from vibemq.log import disk as disk_module
from vibemq.log.disk import AnyDisk, Disk

MakeDisk = Callable[[Path], AnyDisk]


def real(folder: Path) -> AnyDisk:
    return Disk(folder / "data")


def simulated(_: Path) -> AnyDisk:
    return SimulatedDisk()


@pytest.fixture(params=[real, simulated])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AnyDisk:
    make: MakeDisk = request.param
    disk = make(tmp_path)
    disk.make_folder()
    disk.make_folder("log")
    return disk


def test_files_are_written_at_positions_and_read_back(disk: AnyDisk) -> None:
    file = disk.create("log/a")
    file.pwrite([b"world"], 6)
    file.pwrite([b"hel", bytearray(b"lo"), memoryview(b" ")], 0)
    file.fdatasync()
    assert file.size() == 11
    assert (file.pread(100, 0), file.pread(3, 4), file.pread(3, 50)) == (b"hello world", b"o w", b"")
    file.close()
    again = disk.open_read("log/a")
    assert again.pread(5, 0) == b"hello"
    again.close()


def test_what_was_cut_reads_as_zeros_when_the_file_grows_again(disk: AnyDisk) -> None:
    file = disk.create("log/a")
    file.pwrite([b"x" * 1000], 0)
    file.truncate(10)
    file.allocate(100)
    assert file.pread(1000, 0) == b"x" * 10 + bytes(90)
    file.allocate(50)
    assert file.size() == 100
    file.close()


def test_names(disk: AnyDisk) -> None:
    assert disk.list("log") == []
    disk.create("log/b").close()
    disk.create("log/a").close()
    disk.rename("log/b", "log/c")
    disk.sync_directory("log")
    assert disk.list("log") == ["a", "c"]
    assert (disk.exists("log/c"), disk.exists("log/b"), disk.exists("log")) == (True, False, True)
    disk.unlink("log/a")
    with pytest.raises(FileNotFoundError):
        disk.unlink("log/a")
    with pytest.raises(FileNotFoundError):
        disk.open("log/a")
    assert disk.list("nothing") == []
    disk.remove_folder("log")
    disk.remove_folder("log")
    assert not disk.exists("log")
    assert disk.free_bytes() > 0


def test_small_files_are_replaced_whole(disk: AnyDisk) -> None:
    assert disk.read_small("FORMAT") is None
    for text in (b"one", b"a longer one", b""):
        disk.write_small("FORMAT", text)
        assert disk.read_small("FORMAT") == text


def test_a_real_disk_that_takes_no_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path)
    file = disk.create("a")
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="took no bytes") as caught:
        file.pwrite([b"x"], 0)
    assert caught.value.errno == errno.EIO
    file.close()


PARTS: tuple[bytes | bytearray | memoryview, ...] = (
    b"one",
    bytearray(b"two"),
    memoryview(b"three"),
    b"",
    b"4",
    b"five",
)
"""More than a few, so that they are joined before they are written."""


@pytest.mark.parametrize("join_bytes_max", [0, 1 << 20])
def test_short_writes_and_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join_bytes_max: int
) -> None:
    pwritev, pwrite, pread = os.pwritev, os.pwrite, os.pread
    monkeypatch.setattr(disk_module, "JOIN_BYTES_MAX", join_bytes_max)
    monkeypatch.setattr(disk_module, "IOV_MAX", 3)
    whole, file = b"".join(PARTS), Disk(tmp_path).create("a")
    for short in (False, True):
        if short:
            monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [bytes(parts[0])[:2]], at))
            monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: (len(data) + 1) // 2], at))
            monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, (length + 1) // 2, at))
        file.truncate(0)
        file.pwrite(PARTS, 5)
        file.pwrite([b"XY", memoryview(b"Z")], 1)
        assert file.pread(100, 0) == b"\0XYZ\0" + whole
        assert [file.pread(length, 5) for length in range(9)] == [whole[:length] for length in range(9)]
    file.close()


@pytest.mark.parametrize("missing", [(), ("posix_fallocate", "fdatasync")])
def test_a_system_with_and_without_calls_for_room_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    calls: list[str] = []

    def call(name: str, real: Callable[..., object], *arguments: object) -> object:
        calls.append(name)
        return real(*arguments)

    for name in ("posix_fallocate", "fdatasync", "fsync", "pwrite"):
        if name in missing:
            monkeypatch.delattr(os, name)
        else:
            monkeypatch.setattr(os, name, partial(call, name, getattr(os, name)))
    file = Disk(tmp_path).create("a")
    file.pwrite([b"text"], 0)
    for length in (10, 0, 7):
        file.allocate(length)
        assert file.pread(100, 0) == b"text" + bytes(6)
    file.fdatasync()
    assert calls == (["pwrite", "fsync"] if missing else ["posix_fallocate", "posix_fallocate", "fdatasync"])
    file.close()


def test_a_simulated_power_loss_loses_reorders_and_tears_at_sectors_what_was_not_synced() -> None:
    survivors: set[bytes] = set()
    for seed in range(300):
        disk = SimulatedDisk(seed)
        file = disk.create("a")
        file.pwrite([b"0" * (4 * SECTOR_BYTES)], 0)
        file.fdatasync()
        disk.sync_directory("")
        file.pwrite([b"1" * (2 * SECTOR_BYTES)], SECTOR_BYTES // 2)
        file.pwrite([b"2"], 3 * SECTOR_BYTES)
        disk.crash()
        data = disk.contents()["a"]
        assert len(data) == 4 * SECTOR_BYTES
        survivors.add(bytes(data[at] for at in (SECTOR_BYTES - 1, SECTOR_BYTES, 2 * SECTOR_BYTES, 3 * SECTOR_BYTES)))
    assert survivors >= {b"0000", b"1112", b"0002", b"1000", b"0010"}


def test_a_simulated_power_loss_loses_names_that_were_not_synced() -> None:
    outcomes: set[tuple[str, ...]] = set()
    for seed in range(100):
        disk = SimulatedDisk(seed)
        for name in ("a", "b"):
            disk.create(name).fdatasync()
        disk.sync_directory("")
        disk.rename("a", "c")
        disk.unlink("b")
        disk.create("d").fdatasync()
        disk.crash()
        outcomes.add(tuple(disk.list()))
    assert outcomes >= {("a", "b"), ("c", "d"), ("b", "c"), ("a", "b", "d")}


def test_a_simulated_disk_repeats_itself() -> None:
    def run(seed: int) -> dict[str, bytes]:
        disk = SimulatedDisk(seed)
        for number in range(20):
            file = disk.create(f"log/{number}")
            file.pwrite([bytes([number]) * 3000], 0)
            if number % 3:
                file.fdatasync()
        disk.crash()
        return disk.contents()

    assert run(5) == run(5)
    assert any(run(seed) != run(5) for seed in range(10))


def test_a_simulated_disk_fails_and_fills_up_on_demand() -> None:
    disk = SimulatedDisk(capacity_bytes=1000)
    file = disk.create("a")
    file.allocate(900)
    with pytest.raises(OSError, match="No space") as caught:
        file.allocate(1001)
    assert caught.value.errno == errno.ENOSPC
    file.pwrite([b"x" * 900], 0)
    file.truncate(100)
    assert disk.free_bytes() == 900
    disk.fail("fdatasync", errno.EIO, after=1)
    file.fdatasync()
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            file.fdatasync()
    disk.heal()
    file.fdatasync()
    disk.crash(power=False)
    with pytest.raises(AssertionError):
        file.fdatasync()


# -- what only the real one can show


def test_folders_and_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "deep" / "data")
    before = os.umask(0)
    try:
        for _ in range(2):
            disk.make_folder()
        disk.create("file").close()
        disk.lock()
    finally:
        os.umask(before)
    modes = [(tmp_path / "deep" / "data" / name).stat().st_mode & 0o777 for name in ("", "file", "LOCK")]
    assert modes == [0o700, 0o600, 0o600]
    disk.unlock()
    disk.unlock()


def test_a_file_that_is_created_anew_is_empty_and_one_for_reading_takes_no_bytes(disk: AnyDisk, tmp_path: Path) -> None:
    disk.create("log/a").pwrite([b"old"], 0)
    assert disk.create("log/a").size() == 0
    if isinstance(disk, Disk):
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.open_read("log/a").pwrite([b"new"], 0)
    assert list(tmp_path.glob("*.tmp")) == []


def test_names_are_synced_with_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, synced, real_fsync = Disk(tmp_path / "data"), list[int](), os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    disk.make_folder()
    disk.make_folder("log")
    disk.make_folder("log")  # it is there: its name was synced
    disk.sync_directory("log")
    disk.write_small("log/small", b"text")
    disk.write_small("small", b"text")
    names = {path.stat().st_ino: path.name for path in (tmp_path, tmp_path / "data", tmp_path / "data" / "log")}
    assert [names.get(inode) for inode in synced] == [tmp_path.name, "data", "log", "log", "data"]
    assert disk.list("log") == ["small"]


def test_the_lock_names_its_owner_and_nothing_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("123456789012345678\nand more of it\n")
    disk, other = Disk(tmp_path), Disk(tmp_path)
    disk.lock()
    assert (tmp_path / "LOCK").read_text() == f"{os.getpid()}\n"
    with pytest.raises(DataFolderLocked, match=f"in use by process {os.getpid()}; stop that broker"):
        other.lock()
    for content, owner in ((b"", "unknown"), (b"\xff", "\ufffd")):
        (tmp_path / "LOCK").write_bytes(content)
        with pytest.raises(DataFolderLocked, match=f"in use by process {owner};"):
            other.lock()
    disk.unlock()
    other.lock()
    other.unlock()


def test_a_folder_is_removed_with_all_that_is_in_it_and_a_link_to_one_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "data")
    disk.make_folder("index/deep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("index", "link", "nothing"):
        disk.remove_folder(name)
        assert not disk.exists(name)
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_folder_that_was_not_locked_is_given_back_without_closing_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", closed.append)
        Disk(tmp_path).unlock()
    assert closed == []


def test_a_folder_that_another_process_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    answers = iter([False])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda _: next(answers, True))
        Disk(tmp_path / "data").make_folder()
    assert list(answers) == []


def test_free_bytes_are_those_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(f_bavail=3, f_frsize=4096, f_bfree=5, f_bsize=512)
    monkeypatch.setattr(os, "statvfs", lambda _: facts)
    assert Disk(tmp_path).free_bytes() == 3 * 4096

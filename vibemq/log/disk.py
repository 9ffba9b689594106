"""The data folder: the only place that calls os.* for data.

Everything above sees `AnyDisk` and `AnyFile`, so that tests can put a simulated disk in their place which loses,
reorders and tears what was not synced. Names are relative to the data folder, with `/` between folder and file.
Errors of the operating system come through as OSError: who calls knows whether one is fatal.

What is durable when: bytes of a file after its `fdatasync`; a file's name after `sync_directory` of its folder. A new
file is therefore written under a temporary name, synced, renamed, and its folder is synced; a crash leaves it whole
or not at all.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from vibemq.errors import DataFolderLocked

IOV_MAX: Final = 1024
JOIN_BYTES_MAX: Final = 1 << 20
"""Up to here, copying many small parts together is cheaper than a vector of them (measured: 0.05 us a part)."""
TEMPORARY: Final = ".tmp"
ZEROS: Final = bytes(1 << 20)


class AnyFile(Protocol):
    """An open file. All positions are explicit, so any thread may use it."""

    def pwrite(self, parts: Sequence[bytes | bytearray | memoryview], at: int) -> None:
        """Write all parts, one after the other, from byte `at` on."""

    def pread(self, length: int, at: int) -> bytes:
        """Up to `length` bytes from `at` on; fewer only at the end of the file."""

    def fdatasync(self) -> None:
        """Return once the bytes and the size of the file are durable."""

    def truncate(self, length: int) -> None:
        """Make the file `length` bytes long; what is cut reads as zeros should the file grow again."""

    def allocate(self, length: int) -> None:
        """Give the first `length` bytes of the file room on the disk, growing it with zeros; OSError when full."""

    def size(self) -> int:
        """The length of the file in bytes."""

    def close(self) -> None:
        """Give the file back. Closing twice does nothing."""


class AnyDisk(Protocol):
    """A data folder."""

    @property
    def path(self) -> str:
        """The folder, as people know it (for messages, and for LMDB)."""

    def list(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder."""

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""

    def make_folder(self, name: str = "") -> None:
        """Create a folder unless it is there, and sync its parent."""

    def create(self, name: str) -> AnyFile:
        """A new file, open for writing and reading; it replaces one of that name."""

    def open(self, name: str) -> AnyFile:
        """An existing file, open for writing and reading."""

    def open_read(self, name: str) -> AnyFile:
        """An existing file, open for reading."""

    def rename(self, old: str, new: str) -> None:
        """Rename within a folder, replacing what was there; durable after `sync_directory`."""

    def unlink(self, name: str) -> None:
        """Remove a file; durable after `sync_directory`."""

    def sync_directory(self, folder: str) -> None:
        """Return once all names in the folder are durable."""

    def free_bytes(self) -> int:
        """What is free on the disk for this user."""

    def read_small(self, name: str) -> bytes | None:
        """A whole small file; None when there is none."""

    def write_small(self, name: str, data: bytes) -> None:
        """Write a small file so that a crash leaves the old one or the new one, and return once it is durable."""

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""

    def lock(self) -> None:
        """Take the folder for this process; DataFolderLocked when another has it."""

    def unlock(self) -> None:
        """Give the folder back."""


class File:
    """A file of the operating system."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Own the descriptor."""
        self._fd = fd

    def pwrite(self, parts: Sequence[bytes | bytearray | memoryview], at: int) -> None:
        """Write all parts; short writes are continued, and long vectors are split at IOV_MAX."""
        if len(parts) > 4:
            length = sum(map(len, parts))
            if length <= JOIN_BYTES_MAX:
                parts = [b"".join(parts)]
        for first in range(0, len(parts), IOV_MAX):
            some = parts[first : first + IOV_MAX]
            length = sum(map(len, some))
            written = os.pwritev(self._fd, some, at)
            if written < length:
                self._write_rest(memoryview(b"".join(some)), written, at)
            at += length

    def _write_rest(self, data: memoryview, written: int, at: int) -> None:
        while written < len(data):
            more = os.pwrite(self._fd, data[written:], at + written)
            if more == 0:
                raise OSError(errno.EIO, "the disk took no bytes")
            written += more

    def pread(self, length: int, at: int) -> bytes:
        """Up to `length` bytes; short reads are continued until the end of the file."""
        data = os.pread(self._fd, length, at)
        if len(data) == length or not data:
            return data
        parts, got = [data], len(data)
        while got < length and (data := os.pread(self._fd, length - got, at + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def fdatasync(self) -> None:
        """fdatasync(2), or fsync(2) where there is none."""
        _datasync(self._fd)

    def truncate(self, length: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(self._fd, length)

    def allocate(self, length: int) -> None:
        """posix_fallocate(3), or writing zeros where there is none."""
        size = self.size()
        if hasattr(os, "posix_fallocate"):
            if length:
                os.posix_fallocate(self._fd, 0, length)
            return
        while size < length:  # pragma: no cover - macOS
            size += os.pwrite(self._fd, ZEROS[: length - size], size)

    def size(self) -> int:
        """The length from fstat(2)."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """close(2)."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Close what was forgotten, in tests that simulate a crash."""
        self.close()


def _datasync(fd: int) -> None:
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:  # pragma: no cover - macOS
        os.fsync(fd)


class Disk:
    """A data folder of the operating system."""

    def __init__(self, folder: str | Path) -> None:
        """Use `folder`; it is created by `make_folder`."""
        self._root = Path(folder)
        self._lock_fd = -1

    @property
    def path(self) -> str:
        """The folder."""
        return str(self._root)

    def list(self, folder: str = "") -> list[str]:
        """The sorted names in a folder."""
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """Whether it is there."""
        return (self._root / name).exists()

    def make_folder(self, name: str = "") -> None:
        """mkdir -p, for the owner alone, and a sync of the parent."""
        folder = self._root / name
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sync_directory(folder.parent)

    def _open(self, name: str, flags: int) -> File:
        return File(os.open(self._root / name, flags | os.O_CLOEXEC, 0o600))

    def create(self, name: str) -> File:
        """A new empty file."""
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def open(self, name: str) -> File:
        """An existing file, to write."""
        return self._open(name, os.O_RDWR)

    def open_read(self, name: str) -> File:
        """An existing file, to read."""
        return self._open(name, os.O_RDONLY)

    def rename(self, old: str, new: str) -> None:
        """rename(2)."""
        os.rename(self._root / old, self._root / new)

    def unlink(self, name: str) -> None:
        """unlink(2)."""
        os.unlink(self._root / name)

    def sync_directory(self, folder: str) -> None:
        """Fsync of the folder."""
        self._sync_directory(self._root / folder)

    def _sync_directory(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        """From statvfs(3)."""
        facts = os.statvfs(self._root)
        return facts.f_bavail * facts.f_frsize

    def read_small(self, name: str) -> bytes | None:
        """The whole file, or None."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write_small(self, name: str, data: bytes) -> None:
        """Temporary name, write, sync, rename, sync of the folder."""
        write_small(self, name, data)

    def remove_folder(self, name: str) -> None:
        """rm -r, if it is there."""
        folder = self._root / name
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)

    def lock(self) -> None:
        """Flock on LOCK, which then holds the process id.

        Raises:
            DataFolderLocked: another process (or another `Disk`) has it; its id is in the message.
        """
        fd = os.open(self._root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            if problem.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise DataFolderLocked(
                f"the data folder {self._root} is in use by process {owner}; stop that broker, or choose another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def unlock(self) -> None:
        """Close LOCK; the file stays, as removing it would race with the next owner."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


def write_small(disk: AnyDisk, name: str, data: bytes) -> None:
    """Replace a small file in one step, on any disk."""
    temporary = name + TEMPORARY
    file = disk.create(temporary)
    try:
        file.pwrite([data], 0)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(temporary, name)
    disk.sync_directory(name.rpartition("/")[0])

"""A disk in memory that forgets: what a power loss, a full disk and a broken one do to a data folder.

Written bytes are visible at once and durable after `fdatasync`; names after `sync_directory`. `crash` takes the power
away: of what was not synced, each 512-byte sector of each write, each change of length and each change of a name
survives or not, one by one, as the seeded chance has it; so writes are lost, torn and reordered. `crash(power=False)`
is the death of the process: all that was written stays. Files opened before a crash are dead after it.

`fail` plants an error in a later call; `capacity_bytes` makes the disk small. A sync that failed has cost what it
should have synced: as on Linux, the cache goes on showing it, no later sync writes it, and the next loss of power
uncovers what the disk really has. Only what is written again is safe.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from random import Random

from vibemq.errors import DataFolderLocked
from vibemq.log.disk import write_small

SECTOR_BYTES = 512


class _Inode:
    """The contents of a file: as seen, as durable, and what lies between."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""
        self.pending: list[tuple[int, bytes | None]] = []  # (at, written), or (length, None) for a change of length
        self.allocated = 0
        self.is_stale = False
        """Something that is seen will never be durable: its sync has failed."""

    def twin(self) -> "_Inode":
        """The same contents, for another disk."""
        other = _Inode()
        other.data, other.durable = bytearray(self.data), self.durable
        other.pending, other.allocated, other.is_stale = list(self.pending), self.allocated, self.is_stale
        return other

    def sync(self) -> None:
        """All that is pending becomes durable."""
        if self.is_stale:
            self._keep_some(lambda: True)
        else:
            self.durable = bytes(self.data)
            self.pending.clear()

    def fail_to_sync(self, random: Random) -> None:
        """Of what is pending, what chance leaves becomes durable; the rest is only seen, until the power fails."""
        self._keep_some(_chance_of_survival(random))
        self.is_stale = True

    def lose_power(self, random: Random) -> None:
        """Keep of the pending changes what chance leaves."""
        self._keep_some(_chance_of_survival(random))
        self.data = bytearray(self.durable)
        self.allocated = len(self.data)
        self.is_stale = False

    def _keep_some(self, survives: Callable[[], bool]) -> None:
        """Make those of the pending changes durable that survive, sector by sector."""
        state = bytearray(self.durable)
        for at, written in self.pending:
            if written is None:
                if survives():
                    _resize(state, at)
                continue
            start = at
            while start < at + len(written):
                end = min(at + len(written), (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
                if survives():
                    _resize(state, max(len(state), end))
                    state[start:end] = written[start - at : end - at]
                start = end
        self.durable = bytes(state)
        self.pending.clear()


def _chance_of_survival(random: Random) -> Callable[[], bool]:
    survival = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    return lambda: random.random() < survival


def _resize(data: bytearray, length: int) -> None:
    if length < len(data):
        del data[length:]
    else:
        data.extend(bytes(length - len(data)))


class SimulatedFile:
    """An open file of a SimulatedDisk."""

    def __init__(self, disk: "SimulatedDisk", inode: _Inode) -> None:
        self._disk, self._inode, self._generation = disk, inode, disk.generation

    def _use(self, operation: str) -> None:
        if self._generation != self._disk.generation:
            raise AssertionError("a file was used that was opened before the crash")
        self._disk.called(operation)

    def pwrite(self, parts: Sequence[bytes | bytearray | memoryview], at: int) -> None:
        data = b"".join(parts)
        try:
            self._use("pwrite")
            self._disk.take_room(self._inode, at + len(data))
        except OSError:
            self._write(data[: self._disk.random.randrange(len(data) + 1)], at)  # some of it may have got there
            raise
        self._write(data, at)

    def _write(self, data: bytes, at: int) -> None:
        inode = self._inode
        _resize(inode.data, max(len(inode.data), at + len(data)))
        inode.data[at : at + len(data)] = data
        inode.pending.append((at, data))

    def pread(self, length: int, at: int) -> bytes:
        self._use("pread")
        return bytes(self._inode.data[at : at + length])

    def fdatasync(self) -> None:
        try:
            self._use("fdatasync")
        except OSError:
            self._inode.fail_to_sync(self._disk.random)
            raise
        self._inode.sync()

    def truncate(self, length: int) -> None:
        self._use("truncate")
        _resize(self._inode.data, length)
        self._inode.allocated = min(self._inode.allocated, length)
        self._inode.pending.append((length, None))

    def allocate(self, length: int) -> None:
        self._use("allocate")
        self._disk.take_room(self._inode, length)
        if length > len(self._inode.data):
            _resize(self._inode.data, length)
            self._inode.pending.append((length, None))

    def size(self) -> int:
        return len(self._inode.data)

    def close(self) -> None:
        """Nothing is lost by closing, and nothing is synced."""


class SimulatedDisk:
    """See the module. The same seed and the same calls give the same disk."""

    path = "simulated"

    def __init__(self, seed: int = 0, capacity_bytes: int | None = None) -> None:
        self.random = Random(seed)
        self.capacity_bytes = capacity_bytes
        self.generation = 0
        self.calls: dict[str, int] = {}
        self._faults: dict[str, tuple[range, int]] = {}
        self._locked = False
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._pending_names: list[tuple[str, dict[str, _Inode | None]]] = []

    # -- what a test does to it

    def fail(self, operation: str, error: int = errno.EIO, after: int = 0, *, once: bool = False) -> None:
        """The call of `operation` after the next `after` ones fails with `error`; unless `once`, all later ones too."""
        first = self.calls.get(operation, 0) + after + 1
        self._faults[operation] = (range(first, first + 1 if once else sys.maxsize), error)

    def heal(self) -> None:
        """No planted error any more."""
        self._faults.clear()

    def repair(self) -> None:
        """No planted error any more, and all the room there can be."""
        self.heal()
        self.capacity_bytes = None

    @property
    def is_full(self) -> bool:
        """Whether its room has an end, which may be near."""
        return self.capacity_bytes is not None

    @property
    def is_troubled(self) -> bool:
        """Whether calls may fail."""
        return bool(self._faults) or self.is_full

    def crash(self, *, power: bool = True) -> None:
        """Lose the process, and with `power` what was not synced."""
        self.generation += 1
        self._locked = False
        if not power:
            return
        survival = self.random.choice((0.0, 0.5, 1.0))
        for _, change in self._pending_names:
            if self.random.random() < survival and self._possible(change):
                _apply(self._durable_names, change)
        self._pending_names.clear()
        for inode in dict.fromkeys([*self._durable_names.values(), *self._names.values()]):
            inode.lose_power(self.random)
        self._names = dict(self._durable_names)

    def _possible(self, change: dict[str, _Inode | None]) -> bool:
        """A rename whose file never got its first name cannot happen; the rename of a durable name can."""
        gone = [name for name, inode in change.items() if inode is None]
        return all(name in self._durable_names for name in gone) or len(change) == 1

    def contents(self) -> dict[str, bytes]:
        """All files as they are seen."""
        return {name: bytes(inode.data) for name, inode in sorted(self._names.items())}

    def overwrite(self, name: str, data: bytes) -> None:
        """Damage a file behind everybody's back, durably."""
        inode = self._names[name]
        inode.data, inode.durable = bytearray(data), bytes(data)
        inode.pending.clear()

    def fork(self, seed: int) -> "SimulatedDisk":
        """Another disk in the same state, what is not durable included, whose chance is that of `seed`."""
        other = SimulatedDisk(seed, self.capacity_bytes)
        twins = {inode: inode.twin() for inode in [*self._names.values(), *self._durable_names.values()]}
        for _, change in self._pending_names:
            twins |= {inode: inode.twin() for inode in change.values() if inode is not None and inode not in twins}
        other._names = {name: twins[inode] for name, inode in self._names.items()}
        other._durable_names = {name: twins[inode] for name, inode in self._durable_names.items()}
        other._pending_names = [
            (folder, {name: None if inode is None else twins[inode] for name, inode in change.items()})
            for folder, change in self._pending_names
        ]
        return other

    def copy(self) -> "SimulatedDisk":
        """Another disk with the same files, all durable."""
        other = SimulatedDisk(self.random.randrange(1 << 32), self.capacity_bytes)
        for name, inode in self._names.items():
            other._names[name] = other._durable_names[name] = _Inode()
            other.overwrite(name, bytes(inode.data))
            other._names[name].allocated = inode.allocated
        return other

    def called(self, operation: str) -> None:
        """Count a call, and raise the error planted for it."""
        count = self.calls[operation] = self.calls.get(operation, 0) + 1
        fault = self._faults.get(operation)
        if fault is not None and count in fault[0]:
            raise OSError(fault[1], os.strerror(fault[1]))

    def take_room(self, inode: _Inode, length: int) -> None:
        """Room for the first `length` bytes of a file; ENOSPC when there is not so much."""
        wanted = max(0, length - inode.allocated)
        if self.capacity_bytes is not None and wanted > self.free_bytes():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode.allocated += wanted

    # -- AnyDisk

    def list(self, folder: str = "") -> list[str]:
        prefix = f"{folder}/" if folder else ""
        inside = [name.removeprefix(prefix) for name in self._names if name.startswith(prefix)]
        return sorted({name.partition("/")[0] for name in inside})

    def exists(self, name: str) -> bool:
        return name in self._names or any(other.startswith(f"{name}/") for other in self._names)

    def make_folder(self, name: str = "") -> None:
        """Folders are there when a file is in them."""

    def _change(self, name: str, change: dict[str, _Inode | None]) -> None:
        _apply(self._names, change)
        self._pending_names.append((name.rpartition("/")[0], change))

    def create(self, name: str) -> SimulatedFile:
        self.called("create")
        if name in self._names:
            file = self.open(name)
            file.truncate(0)
            return file
        self._change(name, {name: _Inode()})
        return self.open(name)

    def open(self, name: str) -> SimulatedFile:
        inode = self._names.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return SimulatedFile(self, inode)

    def open_read(self, name: str) -> SimulatedFile:
        return self.open(name)

    def rename(self, old: str, new: str) -> None:
        self.called("rename")
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        self._change(old, {old: None, new: self._names[old]})

    def unlink(self, name: str) -> None:
        self.called("unlink")
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self._change(name, {name: None})

    def sync_directory(self, folder: str) -> None:
        self.called("sync_directory")
        for changed, change in self._pending_names:
            if changed == folder:
                _apply(self._durable_names, change)
        self._pending_names = [entry for entry in self._pending_names if entry[0] != folder]

    def free_bytes(self) -> int:
        used = sum(inode.allocated for inode in self._names.values())
        return (1 << 60 if self.capacity_bytes is None else self.capacity_bytes) - used

    def read_small(self, name: str) -> bytes | None:
        inode = self._names.get(name)
        return None if inode is None else bytes(inode.data)

    def write_small(self, name: str, data: bytes) -> None:
        write_small(self, name, data)

    def remove_folder(self, name: str) -> None:
        for other in [other for other in self._names if other.startswith(f"{name}/")]:
            self.unlink(other)

    def lock(self) -> None:
        if self._locked:
            raise DataFolderLocked(f"the data folder {self.path} is in use by process 1")
        self._locked = True

    def unlock(self) -> None:
        self._locked = False


def _apply(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode

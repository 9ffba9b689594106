"""The index: where to look in the log. Sparse, disposable, and never ahead of what is synced.

One entry for at least 64 KiB of log: a lookup is the nearest entry before, and a scan of bounded length. What was noted
lives in an overlay in memory until a commit on a background thread writes it, in one transaction with the checkpoint.

    DATA/index/      an LMDB environment with seven tables; integers of keys are big-endian, of values little-endian
      places         offset                       -> checksum, offset, base, at
      times          time_us                      -> checksum, offset, base, at    (the first record of that time)
      sequences      queue, lane, first sequence  -> checksum, offset, base, at
      due            due us, offset, index, queue -> checksum, count, bytes, lane    (messages that wait for their time)
      placed         queue, offset, index         -> checksum, due us                (the same)
      parts          name                         -> checksum, as_of, blob         (the checkpoint)
      meta           "meta"                       -> checksum, version, mark, seals, start

Each checksum is xxh3-64 over key and value, seeded with the log id. Damaged pages can kill a process inside LMDB, so a
child process reads all of it first; an index that is missing, damaged, or of another log is thrown away, and the replay
from zero builds it anew. Nothing is lost with it but time.

One thing the index knows that the log may have lost: how far it was synced. Where its last record is not in the log any
more, that is damage to what was synced, and opening the index is refused before anything is changed.
"""

import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, Self

import lmdb
import xxhash

from vibemq.errors import CorruptLog, StorageError, UsageError
from vibemq.events import Event, SegmentSealed
from vibemq.log.delayed import Base, DelayedOverlay, MemoryBase
from vibemq.log.disk import AnyDisk
from vibemq.log.frame import Mark, Place
from vibemq.log.log import Log
from vibemq.log.reading import DENSE_BYTES, MARK_BYTES
from vibemq.log.segment import NO_SEAL
from vibemq.log.tables import DelayedTables, Tables

FOLDER: Final = "index"
MAP_BYTES: Final = 64 << 30
READERS_MAX: Final = 32
CHECK_TIMEOUT_S: Final = 600
VERSION: Final = 2
TABLES: Final = (b"places", b"times", b"sequences", b"due", b"placed", b"parts", b"meta")

_NO_START: Final = (1 << 64) - 1
_U64: Final = struct.Struct("<Q")
_PLACE: Final = struct.Struct("<3Q")
_META: Final = struct.Struct("<I5Q32sQ")
_KEY: Final = struct.Struct(">Q")
_SEQUENCE_KEY: Final = struct.Struct(">QHQ")
_META_KEY: Final = b"meta"
_PUTS_A_SLICE: Final = 200
_PAUSE_S: Final = 0.0002

# Runs in a process of its own, which may die of what it reads: every entry of every table, in order, with its checksum.
_CHECK: Final = """
import sys, lmdb, xxhash
path, seed, tables = sys.argv[1], int(sys.argv[2]), [name.encode() for name in sys.argv[3:]]
with lmdb.open(path, readonly=True, lock=False, create=False, max_dbs=len(tables)) as env, env.begin() as txn:
    for name in tables:
        table = env.open_db(name, txn, create=False)
        count, last = 0, b""
        for key, value in txn.cursor(table):
            if key <= last or xxhash.xxh3_64_intdigest(key + value[8:], seed) != int.from_bytes(value[:8], "little"):
                sys.exit(f"an entry of table {name.decode()} is damaged")
            count, last = count + 1, key
        if count != txn.stat(table)["entries"]:
            sys.exit(f"table {name.decode()} has lost entries")
"""

# Likewise, beside a broker that may be writing: what is on disk of two tables, entry by entry, on stdout. The lock file
# keeps the broker from using pages again that are being read here. Without that file no broker has this index open; on
# a copy that may not be written to there is none to keep away, and the checksums tell what was torn.
_READ: Final = """
import sys, os, lmdb
path, tables = sys.argv[1], [name.encode() for name in sys.argv[2:]]
def read(lock):
    with lmdb.open(path, readonly=True, lock=lock, create=False, max_dbs=8) as env, env.begin() as txn:
        for name in tables:
            for key, value in txn.cursor(env.open_db(name, txn, create=False)):
                for part in (name, key, value):
                    sys.stdout.buffer.write(len(part).to_bytes(8, "little") + part)
read(lock=os.access(os.path.join(path, "lock.mdb"), os.R_OK | os.W_OK))
"""


class Checkpoint(NamedTuple):
    """Saved state: the parts by name, each with the offset it was saved at; replay goes on from `start`."""

    start: int
    parts: dict[str, tuple[int, bytes]]


class Saved(NamedTuple):
    """What an index holds on disk: the end of the log that it knows, and the checkpoint, if one was taken."""

    mark: Mark
    checkpoint: Checkpoint | None


class Index(Protocol):
    """What the runtime needs of an index. `note` and lookups are for the event-loop thread, lookups for others too."""

    @property
    def mark(self) -> Mark:
        """The end of what was committed, and synced: `known_synced` of `Log.recover` is `mark.offset`."""

    @property
    def sealed(self) -> tuple[int, bytes]:
        """End and seal of the last segment whose seal was committed."""

    @property
    def rebuilt(self) -> str:
        """Why the index was begun anew when it was opened; empty when it was used as it was."""

    def note(self, offset: int, time_us: int, base: int, at: int, event: Event) -> None:
        """A record was appended or replayed; each one is noted, in order."""

    def commit(
        self,
        mark: Mark,
        put: Mapping[str, tuple[int, bytes]] | None = None,
        delete: Collection[str] = (),
        start: int | None = None,
    ) -> bool:
        """Make durable what was noted before `mark`, and parts of a checkpoint.

        `mark` must be synced (`Log.synced_mark`). `put` has the changed parts, each with its offset; the
        others stay. `start` is where a replay over these parts begins; None leaves it. False when there was no room
        (`failure` tells): try again later.
        """

    @property
    def failure(self) -> str:
        """Why the last commit did not happen."""

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, whole."""

    def lookup_offset(self, offset: int) -> Place | None:
        """The nearest known place at or before a record."""

    def lookup_time(self, time_us: int) -> Place | None:
        """The nearest known record from before a time: the first one from that time on comes after it."""

    def lookup_sequence(self, queue: int, lane: int, sequence: int) -> Place | None:
        """Of the known records that made messages of a queue's lane ready, the last at or before a sequence.

        `Log.find_sequence` goes on from there.
        """

    @property
    def overlay(self) -> "Overlay":
        """What was noted and not committed."""

    @property
    def delayed(self) -> Base:
        """The messages that wait for their time, as they were committed; to be read by way of `overlay.delayed`."""

    def close(self) -> None:
        """Give it back. What was not committed is replayed next time."""


class _Noted(NamedTuple):
    """Entries of the overlay: those of a transaction, or all of them."""

    places: list[tuple[int, int, int, int]]
    sequences: list[tuple[int, int, int, int, int, int]]
    seals: list[tuple[int, int, bytes]]


class Overlay:
    """What was noted and not committed yet. `note` costs O(1); the lock is taken for an entry, not for each record."""

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._noted = _Noted([], [], [])
        self._lanes: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        self._lane_last: dict[tuple[int, int], tuple[int, int]] = {}
        self._base, self._next_at = -1, 0
        self.delayed = DelayedOverlay()

    def note(self, offset: int, time_us: int, base: int, at: int, event: Event) -> None:
        """See `Index.note`."""
        is_delayed = self.delayed.note(offset, event)
        if at >= self._next_at or base != self._base or (is_delayed and at >= self._next_at - MARK_BYTES + DENSE_BYTES):
            with self._lock:
                self._noted.places.append((offset, base, at, time_us))
            self._base, self._next_at = base, at + MARK_BYTES
        for queue, lane, sequence, _ in event.arrivals:
            self._note_sequence(offset, queue, lane, sequence, base, at)
        if isinstance(event, SegmentSealed):
            with self._lock:
                self._noted.seals.append((offset, event.end, event.seal))

    def _note_sequence(self, offset: int, queue: int, lane: int, first: int, base: int, at: int) -> None:
        key = (queue, lane)
        last = self._lane_last.get(key)
        if last is not None and last[0] == base and at < last[1]:
            return
        with self._lock:
            self._lane_last[key] = (base, at + MARK_BYTES)
            self._noted.sequences.append((offset, queue, lane, first, base, at))
            self._lanes.setdefault(key, []).append((first, offset, base, at))

    def before(self, offset: int) -> _Noted:
        """The entries for records before `offset`."""
        with self._lock:
            places, sequences, seals = self._noted
            return _Noted(
                places[: bisect_left(places, (offset,))],
                sequences[: bisect_left(sequences, (offset,))],
                seals[: bisect_left(seals, (offset,))],
            )

    def forget(self, noted: _Noted) -> None:
        """These oldest entries are committed."""
        with self._lock:
            del self._noted.places[: len(noted.places)]
            del self._noted.sequences[: len(noted.sequences)]
            del self._noted.seals[: len(noted.seals)]
            for key, count in Counter(entry[1:3] for entry in noted.sequences).items():
                entries = self._lanes[key]
                del entries[:count]
                if not entries:
                    del self._lanes[key]

    def lookup_offset(self, offset: int) -> Place | None:
        """See `Index`."""
        with self._lock:
            found = bisect_left(self._noted.places, (offset + 1,)) - 1
            return Place(*self._noted.places[found][:3]) if found >= 0 else None

    def lookup_time(self, time_us: int) -> Place | None:
        """See `Index`."""
        with self._lock:
            found = bisect_left(self._noted.places, time_us, key=lambda entry: entry[3]) - 1
            return Place(*self._noted.places[found][:3]) if found >= 0 else None

    def lookup_sequence(self, queue: int, lane: int, sequence: int) -> Place | None:
        """See `Index`."""
        with self._lock:
            entries = self._lanes.get((queue, lane), ())
            found = bisect_left(entries, (sequence + 1,)) - 1
            return Place(*entries[found][1:]) if found >= 0 else None


def _check_order(mark: Mark, put: Mapping[str, tuple[int, bytes]], start: int | None) -> None:
    """A checkpoint is never ahead of the index, nor the index of what is synced: whoever breaks that has a bug."""
    ahead = [name for name, (as_of, _) in put.items() if as_of > mark.offset]
    if ahead or (start is not None and start > mark.offset):
        raise UsageError(f"a checkpoint (parts {ahead}, start {start}) may not be ahead of the index at {mark.offset}")


class MemoryIndex:
    """An index in memory, for a disk without room for one, and for simulations. It keeps all entries."""

    def __init__(self) -> None:
        """Empty."""
        self.overlay = Overlay()
        self.mark = Mark(0, 0, 0, 0)
        self.sealed: tuple[int, bytes] = (0, NO_SEAL)
        self.rebuilt = "there was none"
        self.failure = ""
        self._start: int | None = None
        self._parts: dict[str, tuple[int, bytes]] = {}
        self.delayed = MemoryBase()

    def after_crash(self, log: Log) -> "MemoryIndex":
        """What a restart finds: only what was committed, if it belongs to this log; otherwise a new index."""
        found = MemoryIndex()
        if self.mark.offset and log.holds(self.mark):
            kept = self.overlay.before(self.mark.offset)
            for offset, base, at, time_us in kept.places:
                found.overlay._noted.places.append((offset, base, at, time_us))  # noqa: SLF001
            for offset, queue, lane, first, base, at in kept.sequences:
                found.overlay._note_sequence(offset, queue, lane, first, base, at)  # noqa: SLF001
            found.mark, found.sealed, found.rebuilt = self.mark, self.sealed, ""
            found._start, found._parts = self._start, dict(self._parts)
            found.delayed.entries = dict(self.delayed.entries)
        return found

    def note(self, offset: int, time_us: int, base: int, at: int, event: Event) -> None:
        """See `Index`."""
        if offset >= self.mark.offset:
            self.overlay.note(offset, time_us, base, at, event)

    def commit(
        self,
        mark: Mark,
        put: Mapping[str, tuple[int, bytes]] | None = None,
        delete: Collection[str] = (),
        start: int | None = None,
    ) -> bool:
        """See `Index`."""
        _check_order(mark, put or {}, start)
        for _, end, seal in self.overlay.before(mark.offset).seals:
            self.sealed = max(self.sealed, (end, seal))
        operations, floors = self.overlay.delayed.before(mark.offset)
        self.delayed.commit(operations, floors)
        self.overlay.delayed.forget(operations, floors)
        self._parts = {name: part for name, part in self._parts.items() if name not in delete} | dict(put or {})
        self.mark, self._start = mark, self._start if start is None else start
        return True

    def load_checkpoint(self) -> Checkpoint | None:
        """See `Index`."""
        return None if self._start is None else Checkpoint(self._start, dict(self._parts))

    def lookup_offset(self, offset: int) -> Place | None:
        """See `Index`."""
        return self.overlay.lookup_offset(offset)

    def lookup_time(self, time_us: int) -> Place | None:
        """See `Index`."""
        return self.overlay.lookup_time(time_us)

    def lookup_sequence(self, queue: int, lane: int, sequence: int) -> Place | None:
        """See `Index`."""
        return self.overlay.lookup_sequence(queue, lane, sequence)

    def close(self) -> None:
        """Nothing to give back."""


class LmdbIndex:
    """The index of a data folder. Open it after any fork: LMDB does not survive one."""

    def __init__(self, env: lmdb.Environment, log_id: int, rebuilt: str) -> None:
        """Use `LmdbIndex.open`."""
        self._env, self.rebuilt = env, rebuilt
        self._tables = Tables(env, log_id, TABLES)
        self.delayed = DelayedTables(self._tables)
        self.overlay = Overlay()
        self.mark, self.sealed = Mark(0, 0, 0, 0), (0, NO_SEAL)
        self.failure = ""
        self._start = _NO_START
        self._committing = threading.Lock()
        meta = self._tables.get(b"meta", _META_KEY)
        if meta is not None:
            _, *mark, sealed_end, seal, self._start = _META.unpack(meta)
            self.mark, self.sealed = Mark(*mark), (sealed_end, seal)

    @classmethod
    def open(cls, disk: AnyDisk, log: Log, map_bytes: int = MAP_BYTES) -> Self:
        """The index of an opened log (recovered or not), or a new one; `rebuilt` tells why.

        Raises:
            CorruptLog: the log has lost a record that this index knows to have been synced.
            StorageError: the folder cannot be used at all.
        """
        reason = "there was none"
        if disk.exists(f"{FOLDER}/data.mdb"):
            reason = _check(f"{disk.path}/{FOLDER}", log.id)
            if not reason:
                index = cls._open(disk, log.id, "", map_bytes)
                try:
                    if index.mark.offset == 0 or log.holds(index.mark):
                        return index
                except CorruptLog:
                    index.close()
                    raise
                index.close()
                reason = f"it is of another history of this log: its record before {index.mark.offset} is another one"
        disk.remove_folder(FOLDER)
        return cls._open(disk, log.id, reason, map_bytes)

    @classmethod
    def _open(cls, disk: AnyDisk, log_id: int, reason: str, map_bytes: int) -> Self:
        disk.make_folder(FOLDER)
        path = f"{disk.path}/{FOLDER}"
        try:
            env = lmdb.open(path, map_size=map_bytes, max_dbs=len(TABLES), max_readers=READERS_MAX, mode=0o600)
            return cls(env, log_id, reason)
        except lmdb.Error as problem:
            raise StorageError(
                f"the index in {path} cannot be opened: {problem}; remove that folder, it is rebuilt"
            ) from None

    def note(self, offset: int, time_us: int, base: int, at: int, event: Event) -> None:
        """See `Index`."""
        if offset >= self.mark.offset:
            self.overlay.note(offset, time_us, base, at, event)

    def commit(
        self,
        mark: Mark,
        put: Mapping[str, tuple[int, bytes]] | None = None,
        delete: Collection[str] = (),
        start: int | None = None,
    ) -> bool:
        """See `Index`. For a background thread; it gives way to others, and one that comes meanwhile waits."""
        _check_order(mark, put or {}, start)
        with self._committing:
            return self._commit(mark, put or {}, delete, start)

    def _commit(
        self, mark: Mark, put: Mapping[str, tuple[int, bytes]], delete: Collection[str], start: int | None
    ) -> bool:
        noted = self.overlay.before(mark.offset)
        operations, floors = self.overlay.delayed.before(mark.offset)
        sealed = max([self.sealed, *((end, seal) for _, end, seal in noted.seals)])
        new_start = self._start if start is None else start
        tables = self._tables
        try:
            self.delayed.commit(operations, floors)
            with self._env.begin(write=True) as txn:
                self._put_entries(txn, noted)
                for name in delete:
                    tables.delete(txn, b"parts", name.encode())
                for name, (as_of, blob) in put.items():
                    tables.put(txn, b"parts", name.encode(), _U64.pack(as_of) + blob)
                tables.put(txn, b"meta", _META_KEY, _META.pack(VERSION, *mark, *sealed, new_start))
        except lmdb.Error as problem:
            self.failure = f"the index was not written and will be later: {problem}"
            return False
        self.mark, self.sealed, self._start, self.failure = mark, sealed, new_start, ""
        self.overlay.forget(noted)
        self.overlay.delayed.forget(operations, floors)
        return True

    def _put_entries(self, txn: lmdb.Transaction, noted: _Noted) -> None:
        """Write entries, a slice at a time: this thread holds the interpreter while it does."""
        puts = 0
        for offset, base, at, time_us in noted.places:
            place = _PLACE.pack(offset, base, at)
            self._tables.put(txn, b"places", _KEY.pack(offset), place)
            self._tables.put(txn, b"times", _KEY.pack(time_us), place, overwrite=False)
            puts += 2
            if puts % _PUTS_A_SLICE == 0:
                time.sleep(_PAUSE_S)
        for offset, queue, lane, first, base, at in noted.sequences:
            self._tables.put(txn, b"sequences", _SEQUENCE_KEY.pack(queue, lane, first), _PLACE.pack(offset, base, at))
            puts += 1
            if puts % _PUTS_A_SLICE == 0:
                time.sleep(_PAUSE_S)

    def load_checkpoint(self) -> Checkpoint | None:
        """See `Index`."""
        if self._start == _NO_START:
            return None
        parts = {
            key.decode(): (_U64.unpack_from(body)[0], body[8:])
            for key, body in self._tables.slice(b"parts", b"\0", sys.maxsize)
        }
        return Checkpoint(self._start, parts)

    def lookup_offset(self, offset: int) -> Place | None:
        """See `Index`."""
        return self.overlay.lookup_offset(offset) or _place(self._tables.floor(b"places", _KEY.pack(offset)))

    def lookup_time(self, time_us: int) -> Place | None:
        """See `Index`."""
        if time_us <= 0:
            return None
        return self.overlay.lookup_time(time_us) or _place(self._tables.floor(b"times", _KEY.pack(time_us - 1)))

    def lookup_sequence(self, queue: int, lane: int, sequence: int) -> Place | None:
        """See `Index`."""
        found = self.overlay.lookup_sequence(queue, lane, sequence)
        key = _SEQUENCE_KEY.pack(queue, lane, sequence)
        return found or _place(self._tables.floor(b"sequences", key, prefix=10))

    def close(self) -> None:
        """See `Index`."""
        self._env.close()


def _place(value: bytes | None) -> Place | None:
    return None if value is None else Place(*_PLACE.unpack(value))


def _check(path: str, log_id: int) -> str:
    """Read a whole index in a process of its own; returns what is wrong with it."""
    command = [sys.executable, "-I", "-c", _CHECK, path, str(log_id), *(name.decode() for name in TABLES)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False, text=True)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"reading it took more than {CHECK_TIMEOUT_S} s"
    if done.returncode < 0:
        return f"it is damaged: reading it ended with signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return (
        "" if done.returncode == 0 else f"it is damaged, or of another log: {lines[-1] if lines else done.returncode}"
    )


def read_saved(disk: AnyDisk, log_id: int) -> Saved | None:
    """What the index of a data folder holds, read without changing it, also beside a running broker; None: no index.

    It is read in a process of its own, which may die of damaged pages.

    Raises:
        StorageError: the index is damaged, of another log, or not read in ten minutes. Nothing is lost with it: the
            next start builds it anew.
    """
    path = f"{disk.path}/{FOLDER}"
    if not disk.exists(f"{FOLDER}/data.mdb"):
        return None
    command = [sys.executable, "-I", "-c", _READ, path, "meta", "parts"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise StorageError(f"the index cannot be read: it took more than {CHECK_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StorageError(f"the index cannot be read: {lines[-1] if lines else f'exit {done.returncode}'}")
    tables: dict[bytes, dict[bytes, bytes]] = {b"meta": {}, b"parts": {}}
    for name, key, value in _entries(done.stdout):
        if xxhash.xxh3_64_intdigest(key + value[8:], log_id) != _U64.unpack_from(value)[0]:
            raise StorageError(f"the index is damaged, or of another log: an entry of its table {name.decode()}")
        tables[name][key] = value[8:]
    meta = tables[b"meta"].get(_META_KEY)
    if meta is None:
        return None
    version, *mark, _, _, start = _META.unpack(meta)
    if version != VERSION:
        raise StorageError(f"the index has version {version}; this VibeMQ reads version {VERSION}")
    parts = {key.decode(): (_U64.unpack_from(body)[0], body[8:]) for key, body in tables[b"parts"].items()}
    return Saved(Mark(*mark), None if start == _NO_START else Checkpoint(start, parts))


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Table, key and value of each entry that the child wrote."""
    fields, at = list[bytes](), 0
    while at < len(data):
        length = _U64.unpack_from(data, at)[0]
        fields.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return zip(fields[::3], fields[1::3], fields[2::3], strict=True)

"""The tables of the index in LMDB: entries with their checksums, and those of delayed messages in two orders."""

import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

import lmdb
import xxhash

from vibemq.errors import StorageError
from vibemq.log.delayed import DueKey, Waiting, committed

_U64: Final = struct.Struct("<Q")
_DUE: Final = struct.Struct(">QQIQ")
_DUE_VALUE: Final = struct.Struct("<IQH")
_PLACED: Final = struct.Struct(">QQI")
_SLICE: Final = 1_000
"""So many entries are written in one transaction: each may take a page of memory, which LMDB never gives back."""
_READ_SLICE: Final = 2_000
_PAUSE_S: Final = 0.0002


class Tables:
    """The tables by name. Values begin with the checksum over key and value, seeded with the log id."""

    def __init__(self, env: lmdb.Environment, seed: int, names: tuple[bytes, ...]) -> None:
        """Open all of them, and create those that are not there."""
        self.env, self._seed = env, seed
        self._mapped = threading.Lock()
        with env.begin(write=True) as txn:
            self._tables = {name: env.open_db(name, txn) for name in names}

    def release(self) -> None:
        """Let go of the pages that writing has touched: LMDB sees the file anew. For who writes, between transactions.

        Else a large index would stay in the memory of the process for as long as the system has room for it.
        """
        with self._mapped:  # nobody reads meanwhile
            self.env.set_mapsize(self.env.info()["map_size"])

    def put(self, txn: lmdb.Transaction, table: bytes, key: bytes, value: bytes, *, overwrite: bool = True) -> None:
        """Write an entry."""
        checksum = xxhash.xxh3_64_intdigest(key + value, self._seed)
        txn.put(key, _U64.pack(checksum) + value, overwrite=overwrite, db=self._tables[table])

    def delete(self, txn: lmdb.Transaction, table: bytes, key: bytes) -> None:
        """Remove an entry, if it is there."""
        txn.delete(key, db=self._tables[table])

    def _open_value(self, key: bytes, value: bytes) -> bytes:
        if xxhash.xxh3_64_intdigest(key + value[8:], self._seed) != _U64.unpack_from(value)[0]:
            raise StorageError("the index is damaged; start the broker again, it is rebuilt from the log then")
        return value[8:]

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """The value of a key."""
        with self._mapped, self.env.begin() as txn:
            value = txn.get(key, db=self._tables[table])
        return None if value is None else self._open_value(key, value)

    def floor(self, table: bytes, key: bytes, prefix: int = 0) -> bytes | None:
        """The value of the last key at or before `key`, which must agree in the first `prefix` bytes."""
        with self._mapped, self.env.begin() as txn, txn.cursor(self._tables[table]) as cursor:
            at_or_after = cursor.set_range(key)
            if (at_or_after and cursor.key() == key) or (cursor.prev() if at_or_after else cursor.last()):
                found, value = cursor.item()
                if found[:prefix] == key[:prefix]:
                    return self._open_value(found, value)
        return None

    def slice(self, table: bytes, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """So many entries from a key on."""
        found: list[tuple[bytes, bytes]] = []
        with self._mapped, self.env.begin() as txn, txn.cursor(self._tables[table]) as cursor:
            if cursor.set_range(key):
                for at, value in cursor:
                    found.append((at, self._open_value(at, value)))
                    if len(found) == count:
                        break
        return found


class DelayedTables:
    """The committed entries of delayed messages: by due time, and by queue, record and index. A `Base`."""

    def __init__(self, tables: Tables) -> None:
        """They are `due` and `placed` of these."""
        self._tables = tables

    # --- writing

    def commit(self, operations: list[bytes], floors: dict[int, int]) -> None:
        """Take what the overlay had, and remove what is below the floors, a slice at a time.

        To do so again, or to have done a part of it, does no harm: all of it is from records that are durable, and
        comes again, in order, for as long as the mark of the index is before them.
        """
        by_due, by_identity = committed(operations)
        changes: list[tuple[bytes, bytes, bytes | None]] = []
        for due, one in sorted(by_due.items()):
            value = _DUE_VALUE.pack(*one.entry[3:]) if one.came else None
            changes.append((b"due", _DUE.pack(*due), value))
        for placed, one in sorted(by_identity.items()):
            changes.append((b"placed", _PLACED.pack(*placed), _U64.pack(one.entry[0]) if one.came else None))
        self._write(changes)
        for queue, floor in floors.items():
            self._remove_below(queue, floor)
        if floors or len(operations) > _SLICE:
            self._tables.release()

    def _write(self, changes: list[tuple[bytes, bytes, bytes | None]]) -> None:
        for at in range(0, len(changes), _SLICE):
            with self._tables.env.begin(write=True) as txn:
                for number, (table, key, value) in enumerate(changes[at : at + _SLICE]):
                    if value is None:
                        self._tables.delete(txn, table, key)
                    else:
                        self._tables.put(txn, table, key, value)
                    if number % 100 == 0:
                        time.sleep(_PAUSE_S)

    def _remove_below(self, queue: int, floor: int) -> None:
        end = _PLACED.pack(queue, floor, 0)
        while True:
            found = self._tables.slice(b"placed", _PLACED.pack(queue, 0, 0), _READ_SLICE)
            gone: list[tuple[bytes, bytes, bytes | None]] = []
            for key, value in found:
                if key >= end:
                    break
                _, offset, index = _PLACED.unpack(key)
                gone.append((b"due", _DUE.pack(*_U64.unpack(value), offset, index, queue), None))
                gone.append((b"placed", key, None))
            if not gone:
                return
            self._write(sorted(gone))

    # --- reading

    def after(self, key: DueKey) -> Iterator[Waiting]:
        """See `Base`."""
        at = _DUE.pack(*key) + b"\0"
        while True:
            found = self._tables.slice(b"due", at, _READ_SLICE)
            for one, value in found:
                due_us, offset, index, queue = _DUE.unpack(one)
                yield queue, (due_us, offset, index, *_DUE_VALUE.unpack(value))
            if len(found) < _READ_SLICE:
                return
            at = found[-1][0] + b"\0"
            time.sleep(_PAUSE_S)

    def of_record(self, queue: int, offset: int) -> Iterator[Waiting]:
        """See `Base`."""
        return self._placed(queue, _PLACED.pack(queue, offset, 0), _PLACED.pack(queue, offset + 1, 0), 16)

    def of_queue(self, queue: int, offset: int) -> Iterator[Waiting]:
        """See `Base`."""
        return self._placed(queue, _PLACED.pack(queue, offset, 0), _PLACED.pack(queue + 1, 0, 0), _READ_SLICE)

    def _placed(self, queue: int, at: bytes, end: bytes, count: int) -> Iterator[Waiting]:
        while True:
            found = self._tables.slice(b"placed", at, count)
            for key, due in found:
                if key >= end:
                    return
                _, offset, index = _PLACED.unpack(key)
                (due_us,) = _U64.unpack(due)
                value = self._tables.get(b"due", _DUE.pack(due_us, offset, index, queue))
                if value is not None:  # else it goes just now
                    yield queue, (due_us, offset, index, *_DUE_VALUE.unpack(value))
            if len(found) < count:
                return
            at = found[-1][0] + b"\0"

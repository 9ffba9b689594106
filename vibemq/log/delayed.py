"""What waits for its time, in the order of due times and by where it stands: the overlay and the reading of it.

An entry is known by (queue, record offset, index), of which one is there at a time. What was noted and not committed
yet lives in an overlay, packed; a `Base` holds the rest, in the index's own tables. Where both know something of an
entry, the overlay is right. A queue that was purged, or is gone, has a floor: its entries of records below are void.
"""

import struct
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import merge
from typing import Final, NamedTuple, Protocol, TypeAlias

from vibemq.events import (
    Cancelled,
    Entry,
    Event,
    Matured,
    Published,
    QueueDeleted,
    QueuePurged,
    Rescheduled,
    Routed,
    TransactionCommitted,
)

Waiting: TypeAlias = tuple[int, Entry]
"""An entry and its queue before it."""
DueKey: TypeAlias = tuple[int, int, int, int]
"""Where an entry stands in the order of due times: (due us, record offset, index, queue)."""
FIRST: Final[DueKey] = (0, 0, 0, 0)
LAST: Final[DueKey] = ((1 << 64) - 1,) * 4

_OPERATION: Final = struct.Struct(">QQQIQIQHB")  # record, then queue, offset, index: the identity; then the rest
_OFFSET: Final = struct.Struct(">Q")
_RECORD: Final = slice(8, 24)


class Operation(NamedTuple):
    """An entry came, or went, by record `at`."""

    at: int
    queue: int
    entry: Entry
    came: bool


class Page(NamedTuple):
    """Entries in the order of due times. `end` is where the next ones come after; LAST: there are none."""

    entries: list[Waiting]
    end: DueKey


class Base(Protocol):
    """The entries that were committed. What is void may be among them."""

    def after(self, key: DueKey) -> Iterator[Waiting]:
        """In the order of due times, from behind `key` on."""

    def of_record(self, queue: int, offset: int) -> Iterator[Waiting]:
        """Of one record."""

    def of_queue(self, queue: int, offset: int) -> Iterator[Waiting]:
        """Of the records of a queue from `offset` on."""


def due_key(queue: int, entry: Entry) -> DueKey:
    """Where an entry stands in the order of due times."""
    return (*entry[:3], queue)


def _pack(at: int, queue: int, entry: Entry, *, came: bool) -> bytes:
    due_us, offset, index, count, size, lane = entry
    return _OPERATION.pack(at, queue, offset, index, due_us, count, size, lane, came)


def _unpack(operation: bytes) -> Operation:
    at, queue, offset, index, due_us, count, size, lane, came = _OPERATION.unpack(operation)
    return Operation(at, queue, (due_us, offset, index, count, size, lane), bool(came))


class DelayedOverlay:
    """What came and went since the last commit. Noted by one thread, read by any."""

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._operations: list[bytes] = []
        self._of_record: dict[bytes, tuple[bytes, ...]] = {}
        """(queue, record offset), packed -> the operations on its entries, in order."""
        self._floors: dict[int, int] = {}

    def __len__(self) -> int:
        """How many operations are kept."""
        return len(self._operations)

    def note(self, offset: int, event: Event) -> bool:
        """Take what record `offset` says of delayed messages. Whether some are in it."""
        if isinstance(event, Published | Routed):
            if event.due_us:
                self._add(offset, (), event.delayed(offset))
                return True
        elif isinstance(event, TransactionCommitted):
            if come := event.delayed(offset):
                self._add(offset, (), come)
                return True
        elif isinstance(event, Matured):
            self._add(offset, [(event.queue, entry) for entry in event.entries], ())
        elif isinstance(event, Rescheduled | Cancelled):
            before, after = ([(event.queue, entry) for entry in entries] for entries in (event.before, event.after))
            self._add(offset, before, after)
        elif isinstance(event, QueuePurged) or (isinstance(event, QueueDeleted) and not event.until_us):
            with self._lock:
                self._floors[event.queue] = offset
        return False

    def _add(self, at: int, gone: Iterable[Waiting], come: Iterable[Waiting]) -> None:
        packed = [_pack(at, queue, entry, came=False) for queue, entry in gone]
        packed += [_pack(at, queue, entry, came=True) for queue, entry in come]
        by_record: dict[bytes, list[bytes]] = {}
        for operation in packed:
            by_record.setdefault(operation[_RECORD], []).append(operation)
        with self._lock:
            self._operations += packed
            for record, operations in by_record.items():
                self._of_record[record] = (*self._of_record.get(record, ()), *operations)

    # --- committing

    def before(self, offset: int) -> tuple[list[bytes], dict[int, int]]:
        """The operations and floors of records before `offset`."""
        with self._lock:
            operations = self._operations[: bisect_left(self._operations, _OFFSET.pack(offset))]
            return operations, {queue: floor for queue, floor in self._floors.items() if floor < offset}

    def forget(self, operations: list[bytes], floors: dict[int, int]) -> None:
        """These oldest operations are committed, and what is below these floors is removed."""
        with self._lock:
            del self._operations[: len(operations)]
            for record, count in Counter(operation[_RECORD] for operation in operations).items():
                left = self._of_record[record][count:]
                if left:
                    self._of_record[record] = left
                else:
                    del self._of_record[record]
            for queue, floor in floors.items():
                if self._floors.get(queue) == floor:
                    del self._floors[queue]

    # --- reading

    def after(self, base: Base, key: DueKey, until_us: int, count: int, without: Collection[int] = ()) -> Page:
        """The first `count` entries behind `key` that are due before `until_us`, but those of queues `without`."""
        found: list[Waiting] = []
        for place, waiting in self._ordered(base, key, lambda queue: queue not in without):
            if place[0] >= until_us:
                break
            if len(found) == count:
                return Page(found, due_key(*found[-1]))
            found.append(waiting)
        return Page(found, LAST)

    def of_queue_after(self, base: Base, queue: int, key: DueKey) -> Iterator[Entry]:
        """The entries of a queue behind `key`: for one that has many, and not so many of others before them."""
        return (entry for _, (_, entry) in self._ordered(base, key, lambda number: number == queue))

    def _ordered(self, base: Base, key: DueKey, is_wanted: Callable[[int], bool]) -> Iterator[tuple[DueKey, Waiting]]:
        """The entries of some queues behind `key`, with their places, in the order of due times."""
        view = self._view()
        rest = (
            (due_key(queue, entry), (queue, entry))
            for queue, entry in base.after(key)
            if is_wanted(queue) and view.leaves(queue, entry)
        )
        fresh = sorted(
            (place, (queue, entry))
            for queue, entry in view.present()
            if is_wanted(queue) and (place := due_key(queue, entry)) > key
        )
        return merge(rest, fresh)

    def of_records(self, base: Base, queue: int, offsets: Iterable[int]) -> list[Waiting]:
        """The entries of these records that are in a queue."""
        view = self._view()
        return [
            waiting
            for offset in offsets
            for waiting in sorted(
                [*(one for one in base.of_record(queue, offset) if view.leaves(*one)), *view.present_of(queue, offset)]
            )
        ]

    def of_queue(self, base: Base, queue: int, offset: int) -> list[Waiting]:
        """The entries that are in a queue, of records from `offset` on: for a queue that has not too many."""
        view = self._view()
        fresh = (one for one in view.present() if one[0] == queue and one[1][1] >= offset)
        return [*(one for one in base.of_queue(queue, offset) if view.leaves(*one)), *fresh]

    def _view(self) -> "_View":
        with self._lock:
            return _View(dict(self._of_record), dict(self._floors))


class _View:
    """The overlay at one moment. Take it before you look at the base: what is committed in between is in both then."""

    def __init__(self, of_record: dict[bytes, tuple[bytes, ...]], floors: dict[int, int]) -> None:
        self._of_record, self._floors = of_record, floors

    def _is_void(self, queue: int, entry: Entry) -> bool:
        return entry[1] < self._floors.get(queue, 0)

    def leaves(self, queue: int, entry: Entry) -> bool:
        """Whether an entry of the base still stands, and is to be looked for there."""
        operations = self._of_record.get(_OPERATION.pack(0, queue, entry[1], 0, 0, 0, 0, 0, 0)[_RECORD])
        if operations is not None and any(_unpack(one).entry[2] == entry[2] for one in operations):
            return False
        return not self._floors or not self._is_void(queue, entry)

    def present(self) -> Iterator[Waiting]:
        """The entries that are there by the overlay alone."""
        for operations in self._of_record.values():
            yield from self._net(operations)

    def present_of(self, queue: int, offset: int) -> Iterator[Waiting]:
        """Those of one record."""
        return self._net(self._of_record.get(_OPERATION.pack(0, queue, offset, 0, 0, 0, 0, 0, 0)[_RECORD], ()))

    def _net(self, operations: tuple[bytes, ...]) -> Iterator[Waiting]:
        last = {one.entry[2]: one for one in map(_unpack, operations)}
        for one in last.values():
            if one.came and not self._is_void(one.queue, one.entry):
                yield one.queue, one.entry


def committed(operations: list[bytes]) -> tuple[dict[DueKey, Operation], dict[tuple[int, int, int], Operation]]:
    """What comes of operations in order: the last one at each place in the order of due times, and by identity."""
    by_due: dict[DueKey, Operation] = {}
    by_identity: dict[tuple[int, int, int], Operation] = {}
    for one in map(_unpack, operations):
        by_due[due_key(one.queue, one.entry)] = one
        by_identity[one.queue, one.entry[1], one.entry[2]] = one
    return by_due, by_identity


class MemoryBase:
    """The committed entries of an index in memory."""

    def __init__(self) -> None:
        """Empty."""
        self.entries: dict[tuple[int, int, int], Waiting] = {}

    def commit(self, operations: list[bytes], floors: dict[int, int]) -> None:
        """Take what the overlay had; then what is below the floors goes."""
        for identity, one in committed(operations)[1].items():
            if one.came:
                self.entries[identity] = (one.queue, one.entry)
            else:
                self.entries.pop(identity, None)
        if floors:
            self.entries = {key: waiting for key, waiting in self.entries.items() if key[1] >= floors.get(key[0], 0)}

    def after(self, key: DueKey) -> Iterator[Waiting]:
        """See `Base`."""
        entries = list(self.entries.values())  # at once: what is committed meanwhile, on another thread, changes them
        ordered = sorted((due_key(*one), one) for one in entries)
        return (one for place, one in ordered if place > key)

    def of_record(self, queue: int, offset: int) -> Iterator[Waiting]:
        """See `Base`."""
        return (one for key, one in sorted(self.entries.items()) if key[:2] == (queue, offset))

    def of_queue(self, queue: int, offset: int) -> Iterator[Waiting]:
        """See `Base`."""
        return (one for key, one in sorted(self.entries.items()) if key[0] == queue and key[1] >= offset)

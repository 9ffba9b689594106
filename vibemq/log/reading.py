"""Reading the log by place, by offset and from an offset on; from any thread, and from any process beside the writer.

Each call opens the file that it reads: that costs about 5 us, and leaves no descriptor behind that compaction or a
crowd of segments would have to care about.

A reader in another process does not know how far the writer is. It stops at the first bytes that are no record;
before it calls that damage, it takes the proof that they were durable (a later segment, a `synced` further behind)
and then reads them once more: they may have been written meanwhile.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from vibemq.errors import BeyondLog, CorruptLog
from vibemq.events import ARRIVING
from vibemq.log import frame
from vibemq.log.disk import AnyDisk
from vibemq.log.frame import HEADER_BYTES, Damage, Place, Record
from vibemq.log.recovery import survey_tail
from vibemq.log.segment import SEGMENT_HEADER_BYTES, Walk, list_bases, segment_name

MARK_BYTES: Final = 64 << 10
"""A place is remembered for each so many bytes of log."""
DENSE_BYTES: Final = 4 << 10
"""Where messages are likely to be read one by one, a place is remembered for each so many."""
NEAR_BYTES: Final = 16 << 10
"""What is read to find one record behind a place."""
PLACES_MAX: Final = 1 << 16
FOREVER: Final = (1 << 64) - 1

Locate = Callable[[int], Place | None]


class Places:
    """Some places in memory, in the order of the log: one in 64 KiB, and fewer once there are 65,536 of them.

    Written by one thread, read by any.
    """

    def __init__(self) -> None:
        """None yet."""
        self._columns = (array("Q"), array("Q"), array("Q"))
        self._spacing = MARK_BYTES
        self._base = -1
        self._next_at = 0

    def note(self, offset: int, base: int, at: int) -> None:
        """A record stands there; it is remembered when it is far enough from the last or in a new segment."""
        if at < self._next_at and base == self._base:
            return
        offsets, bases, ats = self._columns
        if len(offsets) >= PLACES_MAX:
            self._columns = offsets, bases, ats = offsets[::2], bases[::2], ats[::2]
            self._spacing *= 2
        bases.append(base)
        ats.append(at)
        offsets.append(offset)  # last: a reader in another thread goes by the length of this column
        self._base, self._next_at = base, at + self._spacing

    def floor(self, offset: int) -> Place | None:
        """The last remembered place at or before `offset`."""
        offsets, bases, ats = self._columns
        found = bisect_right(offsets, offset) - 1
        return Place(offsets[found], bases[found], ats[found]) if found >= 0 else None


class Reader:
    """Reads the segments of a folder."""

    def __init__(self, disk: AnyDisk, log_id: int) -> None:
        """Know the folder and the log id; nothing is opened."""
        self._disk, self._log_id = disk, log_id
        self.places = Places()
        self.locate: Locate | None = None
        """A second source of places, such as the index."""

    def read_range(self, base: int, at: int, length: int, end: int = FOREVER) -> list[Record]:
        """The whole records in `length` bytes from byte `at` of a segment on; the first even when it is longer.

        A record must begin there. Offsets from `end` on are not looked at (they may be half written).

        Raises:
            CorruptLog: damage to a record before `end`.
        """
        file = self._disk.open_read(segment_name(base))
        try:
            block = file.pread(max(length, HEADER_BYTES), at)
            records, needed, problem = self._parse(block, base, at, end)
            if not records and needed > len(block):
                records, needed, problem = self._parse(file.pread(needed, at), base, at, end)
        finally:
            file.close()
        following = records[-1].offset + 1 if records else base
        if problem and (end != FOREVER or not records):
            raise CorruptLog(segment_name(base), records[-1].end if records else at, following, problem)
        return records

    def _parse(self, block: bytes, base: int, at: int, end: int) -> tuple[list[Record], int, str]:
        view, index, records = memoryview(block), 0, list[Record]()
        while index < len(block):
            try:
                record = frame.parse(view, index, self._log_id, base, at + index)
            except Damage as damage:
                return records, 0, damage.problem
            if isinstance(record, int):
                return records, record, ""
            records.append(record)
            index += record.stored_bytes
            if record.offset + 1 >= end:
                break
        return records, 0, ""

    def floor(self, offset: int) -> Place:
        """A place at or before `offset`, the nearest that is known.

        Raises:
            BeyondLog: the log begins later.
        """
        return self._floor(list_bases(self._disk), offset)

    def _floor(self, bases: list[int], offset: int) -> Place:
        found = bisect_right(bases, offset) - 1
        if found < 0:
            raise BeyondLog(
                f"record {offset} is no longer in the log, which begins with record {bases[0] if bases else 0}"
            )
        best = Place(bases[found], bases[found], SEGMENT_HEADER_BYTES)
        for place in (self.places.floor(offset), self.locate(offset) if self.locate else None):
            if place is not None and place.base == best.base and place.offset > best.offset:
                best = place
        return best

    def scan(self, from_offset: int, to_offset: int, *, complete: bool) -> Iterator[Record]:
        """The records from `from_offset` up to, and without, `to_offset`, or up to the end of what is there.

        `complete`: all records before `to_offset` are known to be there.

        Raises:
            CorruptLog: damage.
            BeyondLog: the log begins after `from_offset`.
        """
        if from_offset >= to_offset:
            return
        offset, base, at = self.floor(from_offset)
        link: int | None = None
        claim, failed_at = 0, (-1, -1)
        while True:
            file = self._disk.open_read(segment_name(base))
            try:
                walk = Walk(file, self._log_id, base, at, offset, link)
                for record in walk:
                    if record.offset >= to_offset:
                        return
                    if record.offset >= from_offset:
                        yield record
                offset, at, link = walk.offset, walk.at, walk.link
                if offset >= to_offset:
                    return
                successor = next((other for other in list_bases(self._disk) if other > base), None)
                if successor == offset:
                    base, at = successor, SEGMENT_HEADER_BYTES
                    continue
                if failed_at != (base, at):
                    claim = max(
                        survey_tail(file, self._log_id, base, at).synced, successor or 0, to_offset if complete else 0
                    )
                    failed_at = (base, at)
                    continue
            finally:
                file.close()
            if claim > offset:
                raise CorruptLog(segment_name(base), at, offset, walk.problem or "the file ends here")
            return

    def find(self, offset: int, place: Place | None = None) -> Record:
        """The record with this offset. `place` is its own or that of one before it.

        Raises:
            BeyondLog: there is no such record.
            CorruptLog: damage on the way.
        """
        start = place if place is not None and place.offset <= offset else self.floor(offset)
        if start.offset == offset:
            records = self.read_range(start.base, start.at, 4096, offset + 1)
            if records and records[0].offset == offset:
                return records[0]
        for record in self.scan(offset, offset + 1, complete=False):
            return record
        raise BeyondLog(f"record {offset} is not in the log")

    def find_many(self, offsets: Iterable[int]) -> Iterator[Record]:
        """The records with these offsets, in their order: what lies between ascending ones is passed over unread.

        Raises:
            BeyondLog: there is no such record.
            CorruptLog: damage on the way.
        """
        bases, block, at, index = list_bases(self._disk), b"", Place(0, -1, 0), 0
        for offset in offsets:
            index = frame.skip_to(block, index, offset)
            if index < 0:
                at, index = self._floor(bases, offset), 0
                file = self._disk.open_read(segment_name(at.base))
                try:
                    block = file.pread(NEAR_BYTES, at.at)
                finally:
                    file.close()
                index = frame.skip_to(block, 0, offset)
            record: Record | int | None = None
            if index >= 0:
                try:
                    record = frame.parse(memoryview(block), index, self._log_id, at.base, at.at + index)
                except Damage:
                    record = None  # the other way tells what it is
            if isinstance(record, Record) and record.offset == offset:
                yield record
            else:
                block, index = b"", 0
                yield self.find(offset)

    def find_sequence(self, place: Place, queue: int, lane: int, sequence: int, end: int = FOREVER) -> Record:
        """The record that made a message of a queue's lane ready, from the nearest place before it.

        Where that is a DeadLettered or Redriven event, its `refs` tell where the message was published.

        Raises:
            BeyondLog: there is no such message, or its record is not before `end`.
            CorruptLog: damage on the way.
        """
        at = place.at
        while at - place.at < MARK_BYTES:
            records = self.read_range(place.base, at, MARK_BYTES, end)
            for record in records:
                if made_ready(record, queue, lane, sequence):
                    return record
            if not records or records[-1].offset + 1 >= end:
                break
            at = records[-1].end
        raise BeyondLog(f"message {sequence} of queue {queue}, lane {lane}, is not in the log where the index says")


def made_ready(record: Record, queue: int, lane: int, sequence: int) -> bool:
    """Whether this record gave a message that sequence in a queue's lane."""
    return record.tag in ARRIVING and any(
        (to, into) == (queue, lane) and first <= sequence < first + count
        for to, into, first, count in record.event.arrivals
    )

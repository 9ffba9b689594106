"""Where does the log end? Decided once, at the start, by law 6: loss is never silent.

Records are read from the place of the checkpoint to the first bytes that are no whole record. Then:

* something follows that proves that these bytes were once durable -> CorruptLog, and nothing is touched. Proof is: a
  segment that comes after; a valid record behind, found by its magic, whose `synced` is higher; a higher synced
  position in the index.
* nothing but zeros follows -> the normal end.
* anything else -> a torn tail: only what was never confirmed. It is cut, and bytes and records are reported.

A cut truncates the file and syncs it. Stale records behind the new end can therefore never be read again: what the
file gets when it grows are zeros. (The link alone would not do: a record written again with the same bytes has the
same identity, and its old successor would fit.)

What was read may have come from the page cache of a process that died before its sync, or of its sync: after a sync
that failed, Linux goes on showing what it could not write, and no later sync writes it. So everything behind the
highest position that is proven to be durable is written again, and synced, before anything is built on it; the folder
is synced too.
"""

from collections import deque
from collections.abc import Generator
from typing import Final, NamedTuple

from vibemq.errors import CorruptLog
from vibemq.log import frame
from vibemq.log.disk import AnyDisk, AnyFile
from vibemq.log.frame import HEADER_BYTES, Damage, Mark, Place, Record
from vibemq.log.segment import (
    FOLDER,
    READ_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    Walk,
    list_bases,
    read_header,
    segment_name,
)

_ZEROS: Final = bytes(READ_BYTES)


class Recovery(NamedTuple):
    """What recovery found: `records` were read, the log goes on at `end`.

    `problem` is empty when the log ended cleanly. `cut_records` counts those whose headers were still legible.
    """

    end: Place
    mark: Mark
    header: SegmentHeader
    records: int
    cut_bytes: int
    cut_records: int
    removed_segment: str
    problem: str


class Tail(NamedTuple):
    """What lies behind the last whole record: bytes but for zeros at the end, legible headers, highest synced."""

    bytes: int
    records: int
    synced: int


def survey_tail(file: AnyFile, log_id: int, base: int, at: int) -> Tail:
    """Look at everything behind byte `at` of a segment."""
    last, records, synced, origin = at, 0, 0, at
    keep = b""
    while chunk := file.pread(READ_BYTES, at):
        if chunk != _ZEROS[: len(chunk)]:
            last = at + len(chunk.rstrip(b"\0"))
        block = keep + chunk
        for header in frame.find_headers(block, log_id, base, at - len(keep)):
            records += 1
            synced = max(synced, header.synced)
        at += len(chunk)
        keep = block[-(HEADER_BYTES - 1) :]
    return Tail(last - origin, records, synced)


class _Unproven:
    """Where in a segment that begins what nothing proves to be durable: a little before it, or exactly there."""

    def __init__(self, at: int) -> None:
        """All of it, from byte `at` on."""
        self.at = at
        self._synced = 0
        self._claims: deque[tuple[int, int]] = deque()

    def note(self, record: Record) -> None:
        """The next record: it says up to where the log was synced when it was appended."""
        if record.synced > self._synced:
            self._synced = record.synced
            self._claims.append((record.offset, record.at))
            self.prove(record.synced)

    def prove(self, synced: int) -> None:
        """Everything before record `synced` is durable."""
        while self._claims and self._claims[0][0] <= synced:
            self.at = self._claims.popleft()[1]


class Recoverer:
    """One recovery: the segments, where to begin, and what is known to be durable."""

    def __init__(self, disk: AnyDisk, log_id: int, start: int, known_synced: int) -> None:
        """`start` is the first offset that the log must still hold."""
        self._disk, self._log_id, self._start, self._known_synced = disk, log_id, start, known_synced
        self._removed = ""

    def headers(self, *, remove: bool = True) -> list[SegmentHeader]:
        """The headers of all segments, which must follow each other. A last segment that was never whole is removed.

        Raises:
            CorruptLog: one is damaged or missing.
        """
        bases, headers = list_bases(self._disk), list[SegmentHeader]()
        if not bases or bases[0] > self._start:
            missing = segment_name(self._start)
            raise CorruptLog(missing, 0, self._start, "the first segment of the log is missing")
        for base in bases:
            try:
                header = read_header(self._disk, base, self._log_id)
            except Damage as damage:
                if base == bases[-1] and self._never_whole(base):
                    self._remove(base, remove=remove)
                    continue
                raise CorruptLog(segment_name(base), 0, base, damage.problem) from None
            if headers and header.previous != headers[-1].base:
                missing = segment_name(header.previous)
                raise CorruptLog(
                    missing, 0, header.previous, f"this segment is missing; {segment_name(base)} follows it"
                )
            headers.append(header)
        return headers

    def _never_whole(self, base: int) -> bool:
        """Whether a last segment without a valid header holds nothing, and nothing in it was known to be durable."""
        if self._known_synced > base:
            return False
        file = self._disk.open_read(segment_name(base))
        try:
            return survey_tail(file, self._log_id, base, SEGMENT_HEADER_BYTES).bytes == 0
        finally:
            file.close()

    def _remove(self, base: int, *, remove: bool) -> None:
        self._known_synced = max(self._known_synced, base)  # it was begun, so all before it was durable
        self._removed = segment_name(base)
        if remove:
            self._disk.unlink(self._removed)  # the folder is synced with the end, in `_settle`

    def run(
        self, headers: list[SegmentHeader], from_offset: int, place: Place | None, *, cut: bool
    ) -> Generator[Record, None, Recovery]:
        """The records from `from_offset` on; then the end is decided.

        `place` is that of a record at or before `from_offset`, from an index: it was durable.

        Raises:
            CorruptLog: damage to what was durable.
        """
        count, index = 0, _segment_index(headers, from_offset if place is None else place.base)
        header = headers[index]
        mark = Mark(header.base, header.base, 0, header.link)
        link: int | None
        offset, at, link = header.base, SEGMENT_HEADER_BYTES, header.link
        if place is not None and place.at > SEGMENT_HEADER_BYTES:
            if place.base != header.base:
                raise CorruptLog(segment_name(place.base), place.at, place.offset, "this segment is missing")
            offset, at, link = place.offset, place.at, None
            self._known_synced = max(self._known_synced, offset + 1)
        while True:
            file = self._disk.open_read(segment_name(header.base))
            try:
                walk, unproven = Walk(file, self._log_id, header.base, at, offset, link), _Unproven(at)
                for record in walk:
                    unproven.note(record)
                    mark = Mark(record.offset + 1, record.base, record.at, record.identity)
                    if record.offset >= from_offset:
                        count += 1
                        yield record
                tail = self._judge(walk, file, from_offset) if index + 1 == len(headers) else None
            finally:
                file.close()
            if tail is not None:
                break
            index += 1
            self._check_joint(walk, headers[index])
            header, offset, at, link = headers[index], walk.offset, SEGMENT_HEADER_BYTES, walk.link
        if cut:
            unproven.prove(self._known_synced)
            self._settle(header.base, unproven.at, walk.at, cut=tail.bytes > 0)
        end = Place(walk.offset, header.base, walk.at)
        return Recovery(
            end, mark, header, count, tail.bytes, tail.records, self._removed, walk.problem if tail.bytes else ""
        )

    def _check_joint(self, walk: Walk, successor: SegmentHeader) -> None:
        """A segment that has a successor must be whole, and end where that one begins."""
        problem = walk.problem
        if not problem and walk.offset != successor.base:
            problem = (
                f"the segment ends before record {walk.offset}, but the next one begins with record {successor.base}"
            )
        if not problem and walk.link is not None and walk.link != successor.link:
            problem = f"the next segment, {segment_name(successor.base)}, does not follow its last record"
        if problem:
            raise CorruptLog(segment_name(walk.base), walk.at, walk.offset, problem)

    def _judge(self, walk: Walk, file: AnyFile, from_offset: int) -> Tail:
        """What to do with what lies behind the last whole record of the last segment."""
        tail = survey_tail(file, self._log_id, walk.base, walk.at)
        known = max(self._known_synced, tail.synced, from_offset)
        if known > walk.offset:
            problem = walk.problem or "the log ends here"
            problem = f"{problem}, but everything before record {known} is known to have been synced"
            raise CorruptLog(segment_name(walk.base), walk.at, walk.offset, problem)
        return tail

    def _settle(self, base: int, at: int, end: int, *, cut: bool) -> None:
        """Make bytes `at` up to `end` durable, whatever became of them before, and what follows nothing."""
        file = self._disk.open(segment_name(base))
        try:
            if cut:
                file.truncate(end)
            while at < end:
                block = file.pread(min(READ_BYTES, end - at), at)
                file.pwrite([block], at)
                at += len(block)
            file.fdatasync()
        finally:
            file.close()
        self._disk.sync_directory(FOLDER)


def _segment_index(headers: list[SegmentHeader], offset: int) -> int:
    """The last segment that begins at or before `offset`."""
    index = len(headers) - 1
    while index and headers[index].base > offset:
        index -= 1
    return index

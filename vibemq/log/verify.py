"""Read a whole log and tell all that is wrong with it, without changing or refusing anything: `vibemq verify`.

Checked are every segment header, every record (header, body, offset, link), that each segment follows the one before,
and the seal of every segment that a SegmentSealed event tells of. Behind a damaged place the walk goes on at the next
valid header. A torn tail is no problem: it is what the next start will cut. Recovery's rule tells it from damage.

A broker may be writing meanwhile. So the bytes at which a walk ended are looked at once more, after what lies behind
them, before anything is said about them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vibemq.errors import FormatUnsupported
from vibemq.events import SegmentSealed, Tag
from vibemq.log import frame
from vibemq.log.disk import AnyDisk, AnyFile
from vibemq.log.frame import HEADER_BYTES, Damage, Record
from vibemq.log.recovery import survey_tail
from vibemq.log.segment import (
    READ_BYTES,
    SEGMENT_HEADER_BYTES,
    SealBody,
    SegmentHeader,
    Walk,
    list_bases,
    read_header,
    seal_of,
    segment_name,
)


class Problem(NamedTuple):
    """Something wrong at byte `position` of `file`, where record `offset` was expected."""

    file: str
    position: int
    offset: int
    text: str


@dataclass
class Report:
    """What a log holds and what is wrong with it. `seals` were verified, `torn_bytes` never confirmed."""

    segments: int = 0
    records: int = 0
    bytes: int = 0
    seals: int = 0
    torn_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)


class _Verification:
    """One pass over a log."""

    def __init__(self, disk: AnyDisk, log_id: int, known_synced: int) -> None:
        self._disk, self._log_id, self._known_synced = disk, log_id, known_synced
        self.report = Report()
        self._bodies: dict[int, tuple[int, bytes]] = {}
        self._seals: list[SegmentSealed] = []
        self._offset, self._link = 0, 0  # what the next segment must begin with
        self._base = self._end = 0  # where that came to its end

    def problem(self, base: int, position: int, offset: int, text: str) -> None:
        """Note a finding."""
        self.report.problems.append(Problem(segment_name(base), position, offset, text))

    def segment(self, base: int, previous: int | None, *, last: bool) -> None:
        """Check one segment and what it follows."""
        self.report.segments += 1
        file = self._disk.open_read(segment_name(base))
        try:
            if last and self._never_whole(file, base):
                return
            header = self._header(base)
            self._check_joint(header, base, previous)
            self._records(file, base, None if header is None else header.link, last=last)
        finally:
            file.close()

    def _never_whole(self, file: AnyFile, base: int) -> bool:
        """Whether this last segment was only begun: the next start removes it. All before it was synced then."""
        try:
            read_header(self._disk, base, self._log_id)
        except Damage:
            tail = survey_tail(file, self._log_id, base, SEGMENT_HEADER_BYTES)
            if tail.bytes == 0 and self._known_synced <= base:
                self._known_synced = max(self._known_synced, base)
                return True
        return False

    def _check_joint(self, header: SegmentHeader | None, base: int, previous: int | None) -> None:
        """Whether a segment follows the one before, or is the first of the log."""
        if header is None:
            return
        if header.previous != (base if previous is None else previous):
            self.problem(header.previous, 0, header.previous, f"it is missing, and {segment_name(base)} follows it")
        elif self._offset != base:
            self.problem(base, 0, self._offset, f"it begins with record {base}, not {self._offset}")
        elif header.link != self._link:
            self.problem(base, 0, base, "it does not follow the last record of the segment before")

    def _header(self, base: int) -> SegmentHeader | None:
        try:
            return read_header(self._disk, base, self._log_id)
        except Damage as damage:
            self.problem(base, 0, base, damage.problem)
            return None

    def _records(self, file: AnyFile, base: int, link: int | None, *, last: bool) -> None:
        walk, body, whole = Walk(file, self._log_id, base, SEGMENT_HEADER_BYTES, base, link), SealBody(), True
        failed_at = -1
        while True:
            for record in walk:
                body.add(record)
                self._record(record)
            if not walk.problem:
                break
            tail = survey_tail(file, self._log_id, base, walk.at)
            if last and failed_at != walk.at:
                failed_at = walk.at
                continue
            if last and max(tail.synced, self._known_synced) <= walk.offset:
                self.report.torn_bytes = tail.bytes
                break
            whole = False
            self.problem(base, walk.at, walk.offset, walk.problem)
            following = _next_header(file, self._log_id, base, walk.at + 1)
            if following is None:
                break
            walk = Walk(file, self._log_id, base, following.at, following.offset, None)
        self.report.bytes += walk.at
        self._base, self._end = base, walk.at
        self._offset, self._link = walk.offset, walk.link or 0
        if whole and not last:
            self._bodies[base] = (walk.offset, body.digest())

    def end(self) -> None:
        """Check that the log does not end too early, where that was not said already."""
        known, told = self._known_synced, {problem.file for problem in self.report.problems}
        if self.report.segments == 0:
            self.problem(0, 0, 0, "it is missing, and so are all that followed it")
        elif self._offset < known and segment_name(self._base) not in told:
            text = f"the log ends here, but everything before record {known} is known to have been synced"
            self.problem(self._base, self._end, self._offset, text)

    def _record(self, record: Record) -> None:
        self.report.records += 1
        if record.tag != Tag.SEGMENT_SEALED:
            return
        try:
            event = record.event
        except FormatUnsupported as problem:
            self.problem(record.base, record.at, record.offset, str(problem))
            return
        if isinstance(event, SegmentSealed):
            self._seals.append(event)

    def seals(self) -> None:
        """Check every recorded seal against the records, and against the seal before."""
        before: SegmentSealed | None = None
        for event in self._seals:
            if before is not None and (event.base, event.previous) != (before.end, before.seal):
                self.problem(event.base, 0, event.base, "its recorded seal does not follow the seal before")
            before = event
            found = self._bodies.get(event.base)
            if found is None:
                self.problem(
                    event.base, 0, event.base, "its seal cannot be verified: the segment is missing or damaged"
                )
            elif found[0] != event.end or event.seal != seal_of(event.previous, self._log_id, event.base, *found):
                self.problem(
                    event.base, 0, event.base, "its seal does not fit: a record was changed after it was sealed"
                )
            else:
                self.report.seals += 1


def _next_header(file: AnyFile, log_id: int, base: int, at: int) -> Record | None:
    """The next valid header from byte `at` on whose record is whole."""
    while block := file.pread(READ_BYTES, at):
        for header in frame.find_headers(block, log_id, base, at):
            data = memoryview(file.pread(header.stored_bytes, header.at))
            try:
                if not isinstance(frame.parse(data, 0, log_id, base, header.at), int):
                    return header
            except Damage:
                continue
        if len(block) < HEADER_BYTES:
            return None
        at += len(block) - HEADER_BYTES + 1
    return None


def verify(
    disk: AnyDisk, log_id: int, progress: Callable[[int, int], None] | None = None, known_synced: int = 0
) -> Report:
    """Check the whole log of a folder. `progress(done, total)` counts segments.

    `known_synced` is an offset before which all was synced, as for recovery: from the index.
    """
    run, bases = _Verification(disk, log_id, known_synced), list_bases(disk)
    previous: int | None = None
    for index, base in enumerate(bases):
        run.segment(base, previous, last=base == bases[-1])
        previous = base
        if progress is not None:
            progress(index + 1, len(bases))
    run.end()
    run.seals()
    return run.report

"""Is the log whole? Every record, link and seal, the file that names the log, and what the index knows to be durable.

The same rule as at a start tells a torn tail, which was never confirmed, from damage: what a later record, a later
segment or the index proves to have been synced must be there. Nothing is changed, nothing is refused, all that is found
is listed.
"""

from pathlib import Path
from typing import NamedTuple

from vibemq.errors import CorruptLog, StorageError, UsageError
from vibemq.history.source import Progress
from vibemq.log.disk import AnyDisk, Disk
from vibemq.log.folder import FORMAT, read_format
from vibemq.log.frame import Damage
from vibemq.log.index import Saved, read_saved
from vibemq.log.log import Log
from vibemq.log.segment import SEGMENT_HEADER_BYTES, SegmentHeader, list_bases, segment_name
from vibemq.log.verify import Problem, Report, verify


class Verified(NamedTuple):
    """What was found. `about_index`: what could be made of the index; it may be missing or damaged without any loss."""

    report: Report
    about_index: str

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong. A torn tail is not wrong: the next start cuts it."""
        return not self.report.problems


def verify_folder(data: Path, progress: Progress | None = None) -> Verified:
    """Check the log of a data folder; `progress(done, total)` counts segments.

    Raises:
        UsageError: there is no log in it.
        FormatUnsupported: a later version wrote it.
    """
    disk = Disk(data)
    bases = list_bases(disk)
    log_id, problem = _log_id(disk, bases)
    if log_id is None:
        if problem is None:
            raise UsageError(f"there is no log in {disk.path}")
        return Verified(Report(problems=[problem]), "not looked at")
    saved, about_index = _saved(disk, log_id)  # before the log, which is then at least as long as the index says
    report = verify(disk, log_id, progress)
    if problem is not None:
        report.problems.insert(0, problem)
    if saved is not None and problem is None:
        _check_mark(data, saved, report)
    return Verified(report, about_index)


def _log_id(disk: AnyDisk, bases: list[int]) -> tuple[int | None, Problem | None]:
    """The log id, from FORMAT or else from the header of a segment, and what is wrong with FORMAT."""
    try:
        log_id = read_format(disk)
        if log_id is not None:
            return log_id, None
        if not bases:
            return None, None
        text = "it is missing, but there are segments"
    except CorruptLog as damage:
        text = damage.problem
    found = next((one for one in (_id_in(disk, base) for base in bases) if one is not None), None)
    return found, Problem(FORMAT, 0, 0, text)


def _id_in(disk: AnyDisk, base: int) -> int | None:
    file = disk.open_read(segment_name(base))
    try:
        data = file.pread(SEGMENT_HEADER_BYTES, 0)
        log_id = int.from_bytes(data[8:16], "little")
        SegmentHeader.parse(data, log_id)
    except Damage:
        return None
    finally:
        file.close()
    return log_id


def _saved(disk: AnyDisk, log_id: int) -> tuple[Saved | None, str]:
    try:
        saved = read_saved(disk, log_id)
    except StorageError as problem:
        return None, f"{problem}; the next start builds it anew"
    if saved is None:
        return None, "there is none; the next start builds it"
    return saved, f"it knows the log up to offset {saved.mark.offset}"


def _check_mark(data: Path, saved: Saved, report: Report) -> None:
    """What the index knew was synced: if its last record is gone, the end of the log is, whatever else was found."""
    mark = saved.mark
    if mark.offset == 0 or any(found.file == segment_name(mark.base) for found in report.problems):
        return
    try:
        Log.open(Disk(data), new_log_id=lambda: 0, read_only=True).holds(mark)
    except CorruptLog as damage:
        report.problems.append(Problem(damage.file, damage.position, damage.offset, damage.problem))

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
            raise UsageError(f"there is no log in {disk.path}: name the data folder of a broker")
        return Verified(Report(problems=[problem]), "not looked at")
    known_synced, about_index = _known_synced(disk, log_id)  # first: the log is then at least as long as that
    report = verify(disk, log_id, progress, known_synced)
    if problem is not None:
        report.problems.insert(0, problem)
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


def _known_synced(disk: AnyDisk, log_id: int) -> tuple[int, str]:
    """The offset before which all was synced, says the index, and what can be said about the index."""
    try:
        saved = read_saved(disk, log_id)
    except StorageError as problem:
        return 0, f"{problem}; nothing is lost with it, the next start builds it anew"
    if saved is None:
        return 0, "nothing is saved in it yet"
    offset = saved.mark.offset
    text = f"it knows that everything before record {offset} was synced"
    if offset and not _of_this_history(disk, saved):
        return 0, "it is of another history of this log; the next start builds it anew"
    return offset, text


def _of_this_history(disk: AnyDisk, saved: Saved) -> bool:
    """Whether the last record that the index knew stands in the log, or is gone; False: another one stands there."""
    try:
        return Log.open(disk, new_log_id=lambda: 0, read_only=True).holds(saved.mark)
    except (CorruptLog, UsageError):  # the record is gone; or FORMAT is, and what the index knows holds all the same
        return True

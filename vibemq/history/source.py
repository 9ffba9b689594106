"""A data folder, open for reading: its log from any offset on, and what its index has saved of the state.

Nothing is locked and nothing is changed, so a broker may be running on the folder meanwhile. The log then ends where
the broker had written to when the reader got there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from vibemq.errors import UsageError
from vibemq.log.disk import AnyDisk, Disk
from vibemq.log.frame import Record
from vibemq.log.index import Saved, read_saved
from vibemq.log.log import Log
from vibemq.log.segment import list_bases, segment_name

Progress = Callable[[int, int], None]
"""Called with the bytes of log that are done, and how many there are."""

STEP_BYTES: Final = 1 << 20
"""Progress is told so often."""


class History:
    """The log of a data folder, as the module describes it."""

    def __init__(self, disk: AnyDisk, log: Log) -> None:
        """Use `History.open`."""
        self._disk, self._log = disk, log

    @classmethod
    def open(cls, data: Path) -> Self:
        """Open a data folder for reading.

        Raises:
            UsageError: there is no log in it.
            StorageError: of a later version, or FORMAT is damaged.
        """
        disk = Disk(data)
        return cls(disk, Log.open(disk, new_log_id=_none, read_only=True))

    @property
    def path(self) -> str:
        """The folder, for people."""
        return self._disk.path

    @property
    def log_id(self) -> int:
        """What tells this log from all others."""
        return self._log.id

    def records(self, start: int = 0, end: int | None = None, progress: Progress | None = None) -> Iterator[Record]:
        """The records from `start` up to, and without, `end`, or to the end of the log. Every checksum is checked.

        Raises:
            CorruptLog: damage to what was synced.
            BeyondLog: the log begins after `start`.
        """
        records = self._log.scan(start, end)
        return records if progress is None else self._told(records, progress)

    def _told(self, records: Iterator[Record], progress: Progress) -> Iterator[Record]:
        """The same records; `progress` hears of them."""
        total, base, before, next_at = self._bytes(), -1, 0, 0
        for record in records:
            if record.base != base:
                base, before, next_at = record.base, self._bytes(below=record.base), 0
            if record.at >= next_at:
                progress(before + record.at, total)
                next_at = record.at + STEP_BYTES
            yield record
        progress(total, total)

    def _bytes(self, below: int | None = None) -> int:
        """The length of all segments, or of those before one. The last one's includes room that is not used yet."""
        total = 0
        for base in list_bases(self._disk):
            if below is None or base < below:
                file = self._disk.open_read(segment_name(base))
                total += file.size()
                file.close()
        return total

    def saved(self) -> Saved | None:
        """What the index has saved; None when there is no index.

        Raises:
            StorageError: it cannot be used.
        """
        return read_saved(self._disk, self._log.id)

    def holds(self, saved: Saved) -> bool:
        """Whether the index is of this history of the log; False: another record stands where its last one stood.

        Raises:
            CorruptLog: no record stands there, although it was synced.
        """
        return saved.mark.offset == 0 or self._log.holds(saved.mark)


def _none() -> int:
    raise UsageError("a history is read and never begun")

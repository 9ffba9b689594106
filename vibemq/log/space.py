"""Room on the disk, taken before it is needed.

A publish is admitted only when its bytes have room that the disk has already given: in the active segment, which is
allocated a step ahead, or in a spare file that will be the next segment. When the disk gives no more, publishes are
refused, and the reserve, a file that holds its room from the start, becomes the next segment for everything else:
consuming and acking go on.

    log/reserve        room for the time when the disk is full; never written to before it becomes a segment
    log/next-N.tmp     the spare; a leftover of an earlier run is removed at the start

The lock orders the event-loop thread, which may have to take room at once, and the writer thread, which takes it ahead.
"""

import errno
import threading
from typing import Final

from vibemq.errors import OutOfSpace
from vibemq.log.disk import TEMPORARY, AnyDisk, AnyFile
from vibemq.log.segment import FOLDER, SEGMENT_HEADER_BYTES, segment_name

STEP_BYTES: Final = 32 << 20
RESERVE: Final = f"{FOLDER}/reserve"
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class ActiveSegment:
    """A segment that is being written. `end` counts what is buffered too; `limit` is what the disk has given it.

    `name` is a temporary one until the writer thread has written the header and given the file its own (`named`).
    """

    __slots__ = (
        "base",
        "capacity",
        "created_us",
        "end",
        "file",
        "limit",
        "link",
        "name",
        "named",
        "on_reserve",
        "previous",
    )

    def __init__(self, file: AnyFile, name: str, limit: int, capacity: int) -> None:
        """A file that will be, or is, a segment, with `limit` bytes of room, which may grow to `capacity`."""
        self.file, self.name, self.limit, self.capacity = file, name, limit, capacity
        self.base = self.previous = self.link = self.created_us = 0
        self.end = SEGMENT_HEADER_BYTES
        self.named = self.on_reserve = False


class Space:
    """Takes room for segments; knows when there is none."""

    def __init__(self, disk: AnyDisk, segment_bytes: int, reserve_bytes: int, step_bytes: int = STEP_BYTES) -> None:
        """Nothing is touched before `start`."""
        self._disk, self._segment_bytes, self._reserve_bytes = disk, segment_bytes, reserve_bytes
        self._step_bytes = min(step_bytes, segment_bytes)
        self._lock = threading.Lock()
        self._spare: ActiveSegment | None = None
        self._numbers = 0
        self._has_reserve = False
        self.full = False
        """Whether only the reserve is left."""

    def start(self) -> None:
        """Remove leftovers, and take the reserve; without room for it, publishes are refused from the start."""
        for name in self._disk.list(FOLDER):
            if name.endswith(TEMPORARY):
                self._disk.unlink(f"{FOLDER}/{name}")
        with self._lock:
            self.full = not self._take_reserve()

    def grow(self, segment: ActiveSegment, wanted: int) -> bool:
        """Give the segment room for `wanted` bytes in all, and a step more if it may; False when the disk has none."""
        with self._lock:
            return self._grow(segment, wanted)

    def _grow(self, segment: ActiveSegment, wanted: int) -> bool:
        if wanted <= segment.limit:
            return True
        target = max(wanted, min(segment.capacity, wanted + self._step_bytes))
        try:
            segment.file.allocate(target)
        except OSError as problem:
            if problem.errno not in NO_ROOM:
                raise
            self.full = True
            segment.file.truncate(max(segment.limit, segment.end))  # what was given in part goes back
            return False
        segment.limit = target
        return True

    def admit(self, active: ActiveSegment, length: int) -> bool:
        """Whether a record of `length` bytes has room now, in the active segment or, when that is full, in the next."""
        if self.full:
            return False
        with self._lock:
            if active.end + length <= active.capacity:
                return self._grow(active, active.end + length)
            return self._ready_spare(SEGMENT_HEADER_BYTES + length)

    def _temporary_name(self) -> str:
        self._numbers += 1
        return f"{FOLDER}/next-{self._numbers}{TEMPORARY}"

    def _ready_spare(self, length: int) -> bool:
        """Make or grow the spare to `length` bytes; False when the disk has no room."""
        spare = self._spare
        if spare is None:
            name = self._temporary_name()
            try:
                file = self._disk.create(name)
            except OSError as problem:
                if problem.errno not in NO_ROOM:
                    raise
                self.full = True
                return False
            spare = ActiveSegment(file, name, 0, self._segment_bytes)
        spare.capacity = max(spare.capacity, length)
        if not self._grow(spare, length):
            if self._spare is None:
                spare.file.close()
                self._disk.unlink(spare.name)
            return False
        self._spare = spare
        return True

    def next_segment(self, length: int) -> ActiveSegment:
        """The file for the next segment, with room for a first record of `length` bytes.

        Raises:
            OutOfSpace: neither the disk nor the reserve has that room.
        """
        with self._lock:
            wanted = SEGMENT_HEADER_BYTES + length
            if self._ready_spare(wanted) and self._spare is not None:
                spare, self._spare = self._spare, None
                return spare
            if self._has_reserve and wanted <= self._reserve_bytes:
                self._has_reserve = False
                name = self._temporary_name()
                self._disk.rename(RESERVE, name)  # at once: a new reserve may be made before the writer names this one
                segment = ActiveSegment(self._disk.open(name), name, self._reserve_bytes, self._reserve_bytes)
                segment.on_reserve = True
                return segment
        raise self._out_of_space()

    def give_up_reserve(self, segment: ActiveSegment, wanted: int) -> None:
        """Free the reserve for a segment that holds nothing yet and cannot grow.

        Raises:
            OutOfSpace: that was not enough.
        """
        with self._lock:
            if self._has_reserve:
                self._has_reserve = False
                self._disk.unlink(RESERVE)
            if not self._grow(segment, wanted):
                raise self._out_of_space()
            self.full = True

    def _out_of_space(self) -> OutOfSpace:
        return OutOfSpace(
            f"the disk of {self._disk.path} is full and the reserve is used up ({self._disk.free_bytes()} bytes free); "
            f"free some space and start the broker again"
        )

    def prepare(self, active: ActiveSegment) -> None:
        """Take room ahead, on the writer thread: the next step of the active segment, or the next segment."""
        if self.full:
            return
        ahead = active.end + self._step_bytes // 2
        with self._lock:
            if ahead <= active.capacity:
                self._grow(active, ahead)
            elif self._spare is None:
                self._ready_spare(self._step_bytes)

    def returned(self, active: ActiveSegment) -> bool:
        """Try to have the reserve, and room in the active segment, again. True when publishes are admitted."""
        if not self.full:
            return True
        with self._lock:
            room = self._take_reserve() and (active.end >= active.capacity or self._grow(active, active.end + 1))
            self.full = not room
            return room

    def _take_reserve(self) -> bool:
        """Have the reserve file, allocated; a part of it is worth nothing and is given back."""
        if self._reserve_bytes == 0:
            return True
        there = self._disk.exists(RESERVE)
        file = self._disk.open(RESERVE) if there else self._disk.create(RESERVE)
        try:
            file.allocate(self._reserve_bytes)
            self._has_reserve = True
        except OSError as problem:
            if problem.errno not in NO_ROOM:
                raise
            self._has_reserve = False
            self._disk.unlink(RESERVE)
        finally:
            file.close()
        return self._has_reserve

    def adopt(self, base: int, previous: int) -> ActiveSegment:
        """The last segment of the folder, opened to be written further; the caller sets `end` and `link`."""
        name = segment_name(base)
        file = self._disk.open(name)
        segment = ActiveSegment(file, name, file.size(), max(self._segment_bytes, file.size()))
        segment.base, segment.previous, segment.named = base, previous, True
        return segment

    def close(self) -> None:
        """Give back the spare."""
        with self._lock:
            if self._spare is not None:
                self._spare.file.close()
                self._disk.unlink(self._spare.name)
                self._spare = None

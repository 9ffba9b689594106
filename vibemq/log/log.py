"""The append-only log: the one truth of a broker.

    event-loop thread                         writer thread
    append -> buffer  ...  take_group ------> write_group: pwritev, new segments, fdatasync
    group_done <----------------------------- (the writer hands the group back through the runtime)

`append` gives an event its offset and its place at once and does no I/O; `next_offset` counts what was appended,
`written` what the operating system has, `synced` what the disk has. After any failed write or sync nothing is
accepted any more (WriteFailed): what a failed fsync dropped cannot be found out, so only a restart, which reads the
log anew, is safe.

    DATA/FORMAT   the version of the format, and the log id (folder.py)
    DATA/LOCK     held by the process that writes
    DATA/log/     segments (segment.py), the reserve and spare files (space.py)
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, NamedTuple, Self

import xxhash

from vibemq.errors import BeyondLog, CorruptLog, OutOfSpace, UsageError, WriteFailed
from vibemq.events import Event, SegmentSealed, Tag, encode
from vibemq.log import frame
from vibemq.log.disk import AnyDisk
from vibemq.log.folder import create_log, create_segment, read_format
from vibemq.log.frame import HEADER_BYTES, LENGTH_MAX, Buffer, Damage, Mark, Place, Record
from vibemq.log.reading import FOREVER, Locate, Places, Reader
from vibemq.log.recovery import Recoverer, Recovery
from vibemq.log.segment import (
    FOLDER,
    NO_SEAL,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    list_bases,
    read_header,
    segment_name,
)
from vibemq.log.space import ActiveSegment, Space
from vibemq.log.verify import Report, verify

SEGMENT_BYTES: Final = 128 << 20
SEGMENT_BYTES_MIN: Final = 4096
RESERVE_BYTES: Final = 64 << 20
RECORD_OVERHEAD_BYTES: Final = 512
"""What `admit` adds to the bytes of a payload: the header and the facts of a publish."""

Progress = Callable[[int, int], None]


class Chunk(NamedTuple):
    """Buffers that follow each other from byte `at` of a segment on."""

    segment: ActiveSegment
    at: int
    parts: list[Buffer]


class Group:
    """What is written and synced together: everything appended since the group before."""

    __slots__ = ("bytes", "chunks", "end", "mark", "opened")

    def __init__(self, chunks: list[Chunk], size: int, mark: Mark) -> None:
        """Chunks with `size` bytes in all; `mark` is their last record."""
        self.chunks, self.bytes, self.mark = chunks, size, mark
        self.end = mark.offset
        self.opened: list[Mark] = []
        """Where segments begin that writing this group opened: all before the last is synced, whatever the policy."""


class SegmentFacts(NamedTuple):
    """A segment as `verify` and `why` show it; `end` is the offset behind its last record."""

    base: int
    end: int
    file: str


class Log:
    """The log of a data folder, as the module describes it.

    `write_group`, `sync` and `prepare` are for the writer thread, reading is for any, all else for the event loop's.

    `id` is the log id; `next_offset`, `written` and `synced` are offsets: all records before them were appended,
    written, synced. `last_base` and `last_at` tell where the last appended record stands.
    """

    def __init__(
        self, disk: AnyDisk, log_id: int, space: Space, *, start: int, read_only: bool, progress: Progress | None
    ) -> None:
        """Use `Log.open`."""
        self.id = log_id
        self._disk, self._space, self._start, self.read_only, self._progress = disk, space, start, read_only, progress
        self.reader = Reader(disk, log_id)
        self.next_offset = self.written = self.synced = 0
        self.last_base = self.last_at = self.buffered_bytes = 0
        self.mark = self.synced_mark = Mark(0, 0, 0, 0)
        """The end of what was written, and of what was synced."""
        self.sealed_end, self.last_seal = start, NO_SEAL
        self.failure = ""
        """Why nothing is accepted any more; empty while all is well."""
        self._written_mark = self.mark
        self._link = 0
        self._bases: list[int] = []
        self._nothing = xxhash.xxh3_64_intdigest(b"", log_id)
        self._parts: list[Buffer] = []
        self._chunks: list[Chunk] = []
        self._active: ActiveSegment | None = None
        self._writing: ActiveSegment | None = None

    @classmethod
    def open(
        cls,
        disk: AnyDisk,
        *,
        new_log_id: Callable[[], int],
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        read_only: bool = False,
        start: int = 0,
        time_us: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Open the log of a data folder, creating both when they are not there. Then comes `recover`.

        `new_log_id` gives a random u64 for a new log, `start` is the first offset that the log must hold (or begins
        with), `time_us` the time in the header of a first segment. `progress(done, total)` counts segments.
        Read-only takes no lock, changes nothing, and may run beside a writer.

        Raises:
            DataFolderLocked: another process has it.
            FormatUnsupported: a later version wrote it.
            CorruptLog: FORMAT is damaged or missing.
            UsageError: `segment_bytes` below 4 KiB, or nothing there to read.
        """
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise UsageError(f"segments of {segment_bytes} bytes are too small; the least is {SEGMENT_BYTES_MIN}")
        space = Space(disk, segment_bytes, reserve_bytes)
        if read_only:
            log_id = read_format(disk)
            if log_id is None:
                raise UsageError(f"there is no log in {disk.path}: name the data folder of a broker")
            return cls(disk, log_id, space, start=start, read_only=True, progress=progress)
        disk.make_folder()
        disk.lock()
        try:
            disk.make_folder(FOLDER)
            log_id = read_format(disk)
            if log_id is None:
                log_id = create_log(disk, new_log_id(), start, time_us)
            return cls(disk, log_id, space, start=start, read_only=False, progress=progress)
        except BaseException:
            disk.unlock()
            raise

    def recover(
        self,
        from_offset: int = 0,
        from_place: Place | None = None,
        known_synced: int = 0,
        on_record: Callable[[Record], None] | None = None,
        sealed: tuple[int, bytes] | None = None,
    ) -> Recovery:
        """Read the log from `from_offset` to its end, give each record to `on_record`, then decide and settle the end.

        `from_place`: the place of a record at or before `from_offset`; `known_synced`: an offset before which all was
        synced; `sealed`: end and seal of the last sealed segment before `from_offset`. All three come from the index. A
        read-only log is not changed: what would be cut is only reported.

        Raises:
            CorruptLog: damage to what was synced.
        """
        self.reader.places = Places()  # those of a recovery that was broken off would come twice
        if sealed is not None:
            self.sealed_end, self.last_seal = sealed
        recoverer = Recoverer(self._disk, self.id, self._start, known_synced)
        headers = recoverer.headers(remove=not self.read_only)
        if not headers and self.read_only:
            raise CorruptLog(segment_name(self._start), 0, self._start, "the only segment was never whole")
        if not headers:
            headers = [create_segment(self._disk, SegmentHeader(self.id, self._start, self._start, 0, 0))]
        run = recoverer.run(headers, max(from_offset, headers[0].base), from_place, cut=not self.read_only)
        recovery = self._replay(run, headers, on_record)
        self._bases = [header.base for header in headers]
        self._adopt(recovery)
        return recovery

    def _replay(
        self,
        run: Generator[Record, None, Recovery],
        headers: list[SegmentHeader],
        on_record: Callable[[Record], None] | None,
    ) -> Recovery:
        """Note and hand on each record; the value of the generator is the verdict."""
        places, base, done = self.reader.places, -1, 0
        while True:
            try:
                record = next(run)
            except StopIteration as stop:
                verdict: Recovery = stop.value
                return verdict
            places.note(record.offset, record.base, record.at)
            if record.tag == Tag.SEGMENT_SEALED:
                self._note_seal(record.event)
            if on_record is not None:
                on_record(record)
            if record.base != base and self._progress is not None:
                base, done = record.base, done + 1
                self._progress(done, len(headers))

    def _adopt(self, recovery: Recovery) -> None:
        """Go on where recovery found the end."""
        self.mark = self.synced_mark = self._written_mark = recovery.mark
        self.last_base, self.last_at, self._link = recovery.mark.base, recovery.mark.at, recovery.mark.identity
        self.next_offset = self.written = self.synced = recovery.end.offset
        if self.read_only:
            return
        self._space.start()
        active = self._space.adopt(recovery.header.base, recovery.header.previous)
        active.end = recovery.end.at
        self._active = self._writing = active

    # -- appending, on the event-loop thread

    def append(
        self, event: Event, time_us: int, payload: Sequence[Buffer] = (), payload_checksum: int | None = None
    ) -> int:
        """Give the event its place at the end of the log; returns its offset.

        The payload must not change until it is written.
        Parts of the payload are bytes or views of bytes (itemsize 1); their checksum (`frame.payload_checksum`) is
        computed unless given.

        Raises:
            WriteFailed: an earlier write failed; nothing is accepted any more.
            OutOfSpace: not even the reserve has room. The log accepts nothing any more.
        """
        facts = encode(event)
        payload_bytes = 0
        if payload:
            payload_bytes = sum(map(len, payload))
            if payload_checksum is None:
                payload_checksum = frame.payload_checksum(payload, self.id)
        elif payload_checksum is None:
            payload_checksum = self._nothing
        length = HEADER_BYTES + len(facts) + payload_bytes
        active = self._active
        if active is None or active.end + length > active.limit or self.failure:
            active = self._make_room(length, payload_bytes, time_us)
        offset, at = self.next_offset, active.end
        head, self._link = frame.pack(
            self.id,
            offset,
            time_us,
            self.synced,
            self._link,
            event.TAG,
            event.VERSION,
            facts,
            payload_bytes,
            payload_checksum,
        )
        self._parts.append(head)
        if payload:
            self._parts.extend(payload)
        self.reader.places.note(offset, active.base, at)
        active.end = at + length
        self.last_base, self.last_at = active.base, at
        self.buffered_bytes += length
        self.next_offset = offset + 1
        if type(event) is SegmentSealed:
            self._note_seal(event)
        return offset

    def _make_room(self, length: int, payload_bytes: int, time_us: int) -> ActiveSegment:
        """The segment that takes a record of `length` bytes: the active one, grown, or the next one."""
        active = self._usable()
        if payload_bytes > LENGTH_MAX:
            raise UsageError(f"a payload of {payload_bytes} bytes is longer than a record can be")
        wanted = active.end + length
        empty = active.end == SEGMENT_HEADER_BYTES
        try:
            if empty:
                active.capacity = max(active.capacity, wanted)
                if not self._space.grow(active, wanted):
                    self._space.give_up_reserve(active, wanted)
                return active
            if wanted <= active.capacity and self._space.grow(active, wanted):
                return active
            return self._roll(active, length, time_us)
        except OutOfSpace as problem:
            # A smaller record might still fit; it would stand where this one is missing.
            self.failure = f"a record had no room: {problem.text}"
            raise
        except OSError as problem:
            raise self._failed(f"taking room on the disk failed: {problem}") from problem

    def _roll(self, old: ActiveSegment, length: int, time_us: int) -> ActiveSegment:
        new = self._space.next_segment(length)
        new.base, new.previous, new.link, new.created_us = self.next_offset, old.base, self._link, time_us
        self._end_chunk(old)
        self._active = new
        return new

    def _end_chunk(self, segment: ActiveSegment) -> None:
        if self._parts:
            size = sum(map(len, self._parts))
            self._chunks.append(Chunk(segment, segment.end - size, self._parts))
            self._parts = []

    def _usable(self) -> ActiveSegment:
        if self.failure:
            raise WriteFailed(self.failure)
        if self._active is None:
            raise UsageError("recover the log, opened for writing, before using it")
        return self._active

    def _failed(self, failure: str) -> WriteFailed:
        self.failure = (
            self.failure
            or f"{failure}; nothing after record {self.synced - 1} is known to be on the disk, and the broker must end"
        )
        return WriteFailed(self.failure)

    def admit(self, payload_bytes: int) -> bool:
        """Whether a publish of this size has room that the disk has given already; False: the disk is full, refuse it.

        Raises:
            WriteFailed: an earlier write failed.
        """
        active = self._usable()
        length = payload_bytes + RECORD_OVERHEAD_BYTES
        if active.end + length <= active.limit and not self._space.full:
            return True
        try:
            return self._space.admit(active, length)
        except OSError as problem:
            raise self._failed(f"taking room on the disk failed: {problem}") from problem

    @property
    def disk_full(self) -> bool:
        """Whether `admit` refuses because only the reserve is left."""
        return self._space.full

    def space_returned(self) -> bool:
        """Try, once a second while `disk_full`, to have the reserve and some room; True when publishes are admitted."""
        active = self._usable()
        try:
            return self._space.returned(active)
        except OSError as problem:
            raise self._failed(f"taking room on the disk failed: {problem}") from problem

    def take_group(self) -> Group | None:
        """All that was appended since the last call, to be written; None when that is nothing."""
        active = self._usable()
        self._end_chunk(active)
        if not self._chunks:
            return None
        mark = Mark(self.next_offset, self.last_base, self.last_at, self._link)
        group = Group(self._chunks, self.buffered_bytes, mark)
        self._chunks, self.buffered_bytes = [], 0
        return group

    def group_done(self, group: Group, synced: bool) -> None:
        """The group was written, and `synced` or not; the positions move. Groups come back in their order."""
        self._bases.extend(mark.base for mark in group.opened)
        self.written, self.mark = group.end, group.mark
        if synced:
            self.sync_done(group.mark)
        elif group.opened:
            self.sync_done(group.opened[-1])

    def sync_done(self, mark: Mark) -> None:
        """What `sync` returned is known to be synced."""
        if mark.offset > self.synced:
            self.synced, self.synced_mark = mark.offset, mark

    # -- writing, on the writer thread

    def write_group(self, group: Group, sync: bool) -> None:
        """Write a group, opening new segments on the way, and sync it when `sync`.

        Raises:
            WriteFailed: any error; the log accepts nothing any more.
        """
        if self.failure:
            raise WriteFailed(self.failure)
        try:
            for segment, at, parts in group.chunks:
                if not segment.named:
                    self._name_segment(segment)
                    group.opened.append(Mark(segment.base, segment.base, 0, segment.link))
                segment.file.pwrite(parts, at)
            if sync:
                group.chunks[-1].segment.file.fdatasync()
            self._written_mark = group.mark
        except OSError as problem:
            raise self._failed(f"writing the log failed: {problem}") from problem

    def _name_segment(self, segment: ActiveSegment) -> None:
        """Finish the segment before, durably, and then let its successor appear under its name, whole."""
        old = self._writing
        if old is not None:
            old.file.truncate(old.end)
            old.file.fdatasync()
        header = SegmentHeader(self.id, segment.base, segment.previous, segment.link, segment.created_us)
        segment.file.pwrite([header.pack()], 0)
        segment.file.fdatasync()
        name = segment_name(segment.base)
        self._disk.rename(segment.name, name)
        self._disk.sync_directory(FOLDER)
        segment.name, segment.named = name, True
        self._writing = segment
        if old is not None:
            old.file.close()

    def sync(self) -> Mark:
        """Sync all that was written; give the result to `sync_done` on the event-loop thread.

        Raises:
            WriteFailed: the sync failed.
        """
        if self.failure or self._writing is None:
            raise WriteFailed(self.failure or "the log is not open for writing")
        mark = self._written_mark
        try:
            self._writing.file.fdatasync()
        except OSError as problem:
            raise self._failed(f"syncing the log failed: {problem}") from problem
        return mark

    def prepare(self) -> None:
        """Take room ahead; after a group, when nothing waits.

        Raises:
            WriteFailed: the disk refused for another reason than being full.
        """
        active = self._active
        if active is None or self.failure:
            return
        try:
            self._space.prepare(active)
        except OSError as problem:
            raise self._failed(f"taking room on the disk failed: {problem}") from problem

    # -- reading, on any thread

    @property
    def _readable_end(self) -> int:
        return FOREVER if self.read_only else self.written

    def use_index(self, locate: Locate) -> None:
        """Find places through an index too."""
        self.reader.locate = locate

    def read(self, offset: int, place: Place | None = None) -> Record:
        """One record. `place`, if known, is its own or that of one before it.

        Raises:
            BeyondLog: it is not in the log, or not written yet.
            CorruptLog: damage.
        """
        if offset >= self._readable_end:
            raise BeyondLog(f"record {offset} is not written yet")
        return self.reader.find(offset, place)

    def read_many(self, offsets: Sequence[int]) -> Iterator[Record]:
        """The records with these offsets, which ascend; cheaper than one by one.

        Raises:
            BeyondLog: one is not in the log, or not written yet.
            CorruptLog: damage.
        """
        if offsets and offsets[-1] >= self._readable_end:
            raise BeyondLog(f"record {offsets[-1]} is not written yet")
        return self.reader.find_many(offsets)

    def read_range(self, base: int, at: int, length: int) -> list[Record]:
        """The whole records in `length` bytes from byte `at` of a segment on; the first even when it is longer.

        A record must begin there.

        Raises:
            CorruptLog: damage.
        """
        return self.reader.read_range(base, at, length, self._readable_end)

    def scan(self, from_offset: int, to_offset: int | None = None) -> Iterator[Record]:
        """The records from one offset up to (and without) another, or to the end of what is written.

        Raises:
            BeyondLog: the log begins later.
            CorruptLog: damage.
        """
        end = self._readable_end if to_offset is None else min(to_offset, self._readable_end)
        return self.reader.scan(from_offset, end, complete=not self.read_only)

    def find_sequence(self, place: Place, queue: int, lane: int, sequence: int) -> Record:
        """The record that made a message ready, from `Index.lookup_sequence`; see `Reader.find_sequence`."""
        return self.reader.find_sequence(place, queue, lane, sequence, self._readable_end)

    def place_of(self, offset: int) -> Place:
        """Where a record stands.

        Raises:
            BeyondLog: it is not in the log, or not written yet.
        """
        return self.read(offset).place

    def holds(self, mark: Mark) -> bool:
        """Whether the record that a mark names stands there; False: another whole record does, of another past.

        For the mark of an index, made when that record was synced, before or after recovery.

        Raises:
            CorruptLog: no record is there, although that one was synced.
        """
        found = self._identity_at(mark)
        if found is None:
            problem = (
                "the index knows that this record was synced, and it is not there; if this log was replaced by an "
                "older one on purpose, remove the folder index/"
            )
            raise CorruptLog(segment_name(mark.base), mark.at, max(mark.offset - 1, 0), problem)
        return found == (mark.offset, mark.identity)

    def _identity_at(self, mark: Mark) -> tuple[int, int] | None:
        """Offset behind, and identity, of the record at a mark (or of what precedes the segment)."""
        try:
            if mark.at == 0:
                header = read_header(self._disk, mark.base, self.id)
                return header.base, header.link
            file = self._disk.open_read(segment_name(mark.base))
        except (FileNotFoundError, Damage):
            return None
        try:
            data = memoryview(file.pread(HEADER_BYTES, mark.at))
        finally:
            file.close()
        record = frame.parse_header(data, 0, self.id, mark.base, mark.at) if len(data) == HEADER_BYTES else None
        return None if record is None else (record.offset + 1, record.identity)

    # -- segments and seals

    def verify(self, progress: Progress | None = None) -> Report:
        """Check the whole log and list what is wrong with it; for a log opened read-only, recovered or not."""
        return verify(self._disk, self.id, progress)

    def segments(self) -> list[SegmentFacts]:
        """All segments, in order; the end of the last is what is written."""
        bases = list_bases(self._disk) if self.read_only else list(self._bases)
        ends = [*bases[1:], max([self.written, *bases])]
        return [SegmentFacts(base, end, segment_name(base)) for base, end in zip(bases, ends, strict=True)]

    def unsealed(self) -> list[SegmentFacts]:
        """The full segments that no SegmentSealed event tells of, oldest first.

        Seal them in this order (`segment.seal_segment`, with `last_seal` as the seal before) and append the event.
        """
        return [facts for facts in self.segments()[:-1] if facts.base >= self.sealed_end]

    def _note_seal(self, event: Event) -> None:
        if isinstance(event, SegmentSealed) and event.end > self.sealed_end:
            self.sealed_end, self.last_seal = event.end, event.seal

    def close(self) -> None:
        """Give back files and lock. What was not written is lost: write it first."""
        if self._writing is not None:
            self._writing.file.close()
        if self._active is not None:
            self._active.file.close()
            self._space.close()
        self._active = self._writing = None
        if not self.read_only:
            self._disk.unlock()

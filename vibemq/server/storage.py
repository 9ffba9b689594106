"""The log and its index under one roof: opened and replayed at the start, read from when a batch is not in memory."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.errors import BeyondLog, EventNotApplied, FormatUnsupported
from vibemq.log.disk import AnyDisk, Disk
from vibemq.log.frame import Mark, Place, Record
from vibemq.log.index import FOLDER as INDEX_FOLDER
from vibemq.log.index import Checkpoint, Index, LmdbIndex, MemoryIndex
from vibemq.log.log import Log
from vibemq.log.recovery import Recovery
from vibemq.log.segment import SEGMENT_HEADER_BYTES
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.delayed_reading import DelayedReading
from vibemq.server.effects import DelayedOf, DueAfter, Find, Load, Recall, StoredBatch
from vibemq.server.journal import NewRecord
from vibemq.server.payloads import sections

_NONSENSE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a state meets when it is restored from, or applies, what does not fit it."""
NEW_INDEX_BYTES = 1 << 20
"""Free bytes with which a new index is begun on the disk."""
DELAYED_MAX = 50_000
"""What the index may have noted of delayed messages before it is committed: each takes about 300 bytes of memory."""
READ_BYTES = 512 * 1024
"""How much of the log is read at a time for a consumer that works through a backlog."""
ORIGINS_BYTES = 16 << 20
"""Batches of dead letters that one load keeps at hand, to read each of them once."""

FETCHED_MAX = 256
"""Records of such batches that are looked for together ..."""
FETCHED_BYTES = 4 << 20
"""... and what they may have, but for the last of them."""

Progress = Callable[[int, int], None]
"""Called with the number of segments replayed, and how many there are."""


class Opened(NamedTuple):
    """What opening a data folder found."""

    recovery: Recovery
    replayed_from: int
    index_rebuilt: str
    """Why the index was built anew; empty when it was not."""


class Storage:
    """An open data folder, and the state that its log adds up to."""

    def __init__(self, disk: AnyDisk, log: Log, index: Index, state: Projector, opened: Opened) -> None:
        """Use `Storage.open`."""
        self.disk, self.log, self.index, self.state, self.opened = disk, log, index, state, opened
        self.read_bytes = READ_BYTES
        self.delayed = DelayedReading(index, lambda: _Origins(log).part)

    @classmethod
    def open(
        cls,
        data: Path,
        segment_bytes: int,
        reserve_bytes: int,
        new_log_id: Callable[[], int],
        time_us: int,
        progress: Progress | None = None,
    ) -> "Storage":
        """Open a data folder for writing, creating it if need be, and replay what the checkpoint does not hold.

        Raises:
            StorageError: locked, of a later version, damaged, or no room.
        """
        disk = Disk(data)
        log = Log.open(
            disk,
            new_log_id=new_log_id,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
            time_us=time_us,
            progress=progress,
        )
        try:
            return cls.recover(disk, log, open_index)
        except BaseException:
            log.close()
            raise

    @classmethod
    def recover(cls, disk: AnyDisk, log: Log, open_index: Callable[[AnyDisk, Log], Index]) -> "Storage":
        """Replay an opened log over what its index has saved.

        Raises:
            StorageError: the log is damaged, or the index cannot be used at all.
        """
        index = open_index(disk, log)
        known_synced = index.mark.offset  # evidence that outlives the index it came from
        try:
            return cls._replay(disk, log, index, known_synced, index.rebuilt)
        except (EventNotApplied, FormatUnsupported) as problem:
            if index.load_checkpoint() is None:
                raise
            index.close()
            disk.remove_folder(INDEX_FOLDER)
            rebuilt = f"its checkpoint could not be used: {problem.text}"
            return cls._replay(disk, log, open_index(disk, log), known_synced, rebuilt)

    @classmethod
    def _replay(cls, disk: AnyDisk, log: Log, index: Index, known_synced: int, rebuilt: str) -> "Storage":
        checkpoint = index.load_checkpoint()
        state = restore(checkpoint) if checkpoint is not None else Projector()
        start = state.next_offset
        relief = _Relief(index)

        def apply(record: Record) -> None:
            event = record.event
            try:
                state.apply(record.offset, record.time_us, event)
            except _NONSENSE as problem:
                raise EventNotApplied(record.offset, type(event).__name__, repr(problem)) from problem
            index.note(record.offset, record.time_us, record.base, record.at, event)
            relief.note(record)

        recovery = log.recover(
            start, index.lookup_offset(start), known_synced, apply, index.sealed if checkpoint else None
        )
        log.use_index(index.lookup_offset)
        return cls(disk, log, index, state, Opened(recovery, start, rebuilt))

    def append(self, record: NewRecord) -> None:
        """Append what was decided to the log, at the offset that the state already knows."""
        event, time_us, payload = record
        log = self.log
        offset = log.append(event, time_us, payload)
        self.index.note(offset, time_us, log.last_base, log.last_at, event)

    def close(self) -> None:
        """Give back files and lock."""
        self.index.close()
        self.log.close()

    def load(self, load: Load) -> list[StoredBatch]:
        """Read the batch that holds the message, and those of its queue that come soon after. For any thread.

        Raises:
            BeyondLog: it is not written yet.
            CorruptLog: the log is damaged there.
        """
        place = self.index.lookup_sequence(load.queue, load.lane, load.sequence)
        written = self.log.written  # what comes after is in the index already, and not yet in the file
        if place is None or place.offset >= written:
            raise BeyondLog(f"no record is known that holds message {load.sequence} of queue {load.queue}")
        found: list[StoredBatch] = []
        size = 0
        origins = _Origins(self.log)
        for records in self._ranges(place, written):
            for record in records:
                for stored in self._batches(record, load, origins):
                    found.append(stored)
                    size += len(stored.batch.data)
                    # A small record of dead letters may stand for more messages than there is memory.
                    if size >= self.read_bytes:
                        return found
            if found:
                return found
        raise BeyondLog(f"message {load.sequence} of queue {load.queue} is not written yet")

    def _ranges(self, place: Place, written: int) -> Iterator[list[Record]]:
        base, at = place.base, place.at
        while True:
            records = self.log.read_range(base, at, self.read_bytes)
            if records:
                yield records
                if records[-1].offset + 1 >= written:
                    return
                at = records[-1].end
                continue
            following = [facts.base for facts in self.log.segments() if base < facts.base < written]
            if not following:
                return
            base, at = following[0], SEGMENT_HEADER_BYTES

    def _batches(self, record: Record, load: Load, origins: "_Origins") -> Iterator[StoredBatch]:
        """The batches that this record made ready in the queue and lane, without those before the wanted sequence."""
        if record.tag not in e.ARRIVING:
            return
        event, offset, time_us = record.event, record.offset, record.time_us
        for section in sections(event):
            for queue, lane, sequence, count in section.arrivals:
                if (queue, lane) != (load.queue, load.lane) or sequence + count <= load.sequence:
                    continue
                if isinstance(event, e.DeadLettered | e.Redriven | e.Matured):
                    yield from self._referred(record, event, load, sequence, origins)
                    continue
                batch = section.batch(record.payload)
                yield StoredBatch(
                    queue,
                    lane,
                    sequence,
                    offset,
                    section.index,
                    offset,
                    time_us,
                    time_us,
                    batch,
                    dead=section.dead,
                )

    def _referred(
        self,
        record: Record,
        event: e.DeadLettered | e.Redriven | e.Matured,
        load: Load,
        sequence: int,
        origins: "_Origins",
    ) -> Iterator[StoredBatch]:
        refs = event.refs
        for number, (offset, start, count) in enumerate(refs):
            index, end, sequence = start, start + count, sequence + count
            while sequence > load.sequence and index < end:
                origins.fetch(refs, number)
                whole, first, time_us = origins.read(offset, index)
                # A transaction has several batches: messages of it that follow each other may be of two.
                cut = min(end, first + whole.count) - index
                left = end - index
                if sequence - left + cut > load.sequence:
                    yield StoredBatch(
                        load.queue,
                        load.lane,
                        sequence - left,
                        offset,
                        index,
                        record.offset,
                        time_us,
                        record.time_us,
                        Batch(b"".join(whole.cut(index - first, cut))),
                        dead=event.reason if isinstance(event, e.DeadLettered) else 0,
                    )
                index += cut

    def recall(self, recall: Recall) -> e.Event:
        """The event that a Recall asks for. For any thread.

        Raises:
            BeyondLog: it is not written yet.
            CorruptLog: the log is damaged there.
        """
        return self.log.read(recall.offset).event

    def look(self, reading: Find | DueAfter | DelayedOf) -> Any:  # noqa: ANN401 - what `Broker.found` takes for it
        """The answer to what the broker wants to know. For any thread.

        Raises:
            BeyondLog: it is not written yet.
            CorruptLog: the log is damaged there.
        """
        if isinstance(reading, Find):
            return self.find(reading)
        return self.delayed.after(reading) if isinstance(reading, DueAfter) else self.delayed.of(reading)

    def find(self, find: Find) -> int:
        """The sequence that `find` asks for. By halves: each step reads one message. For any thread.

        Raises:
            BeyondLog: the last of them are not written yet.
            CorruptLog: the log is damaged there.
        """
        first, end = find.first, find.end
        while first < end:
            middle = (first + end) // 2
            stored = self.load(Load(find.queue, e.DEFAULT_LANE, middle))[0]
            if stored.ready_us < find.time_us:
                first = max(middle + 1, stored.end)
            else:
                end = min(middle, stored.sequence)
        return min(first, find.end)


class _Relief:
    """Commits the index on the way through a replay, where it has noted much: as far as that is known to be durable."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._mark: Mark | None = None

    def note(self, record: Record) -> None:
        """A record was noted in the index."""
        mark = self._mark
        if mark is None:
            if len(self._index.overlay.delayed) >= DELAYED_MAX and not self._index.failure:
                self._mark = Mark(record.offset + 1, record.base, record.at, record.identity)
        elif record.synced >= mark.offset:
            self._index.commit(mark)
            self._mark = None


class _Origins:
    """The batches in which dead letters were published, the last ones: of a large batch each may have died alone."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: dict[int, tuple[list[int], list[Batch], int]] = {}
        self._bytes = 0

    def fetch(self, refs: Sequence[tuple[int, int, int]], number: int) -> None:
        """Read what a ref needs, and while at it what the next ones do, in the order of the log."""
        if refs[number][0] in self._known:
            return
        wanted = sorted({offset for offset, _, _ in refs[number : number + FETCHED_MAX]}.difference(self._known))
        size = 0
        for record in self._log.read_many(wanted):
            size += self._keep(record)
            if size > FETCHED_BYTES:
                return

    def part(self, offset: int, index: int, count: int) -> tuple[Batch, int]:
        """Messages of one batch of that record, and its time."""
        whole, first, time_us = self.read(offset, index)
        return Batch(b"".join(whole.cut(index - first, count))), time_us

    def read(self, offset: int, index: int) -> tuple[Batch, int, int]:
        """The batch of that record that holds message `index`, the index of its first message, and its time."""
        if offset not in self._known:
            self._keep(self._log.read(offset))
        found = self._known[offset]
        indices, batches, time_us = found
        at = bisect_right(indices, index) - 1
        return batches[at], indices[at], time_us

    def _keep(self, record: Record) -> int:
        its_own = list(sections(record.event))
        batches = [section.batch(record.payload) for section in its_own]
        self._known[record.offset] = [section.index for section in its_own], batches, record.time_us
        size = _bytes(batches)
        self._bytes += size
        while self._bytes > ORIGINS_BYTES and len(self._known) > 1:
            _, oldest, _ = self._known.pop(next(iter(self._known)))
            self._bytes -= _bytes(oldest)
        return size


def _bytes(batches: list[Batch]) -> int:
    return sum(len(batch.data) for batch in batches)


def open_index(disk: AnyDisk, log: Log) -> Index:
    """The index of a data folder; on a disk that has no room to begin one, an index in memory until the next start.

    LMDB begins with a file that it maps and that the disk has not given yet: without room the process would be killed.

    Raises:
        StorageError: the index cannot be used at all.
    """
    if disk.exists(f"{INDEX_FOLDER}/data.mdb") or disk.free_bytes() >= NEW_INDEX_BYTES:
        return LmdbIndex.open(disk, log)
    index = MemoryIndex()
    index.rebuilt = "there was none, and the disk has no room for one: it is kept in memory until the next start"
    return index


def restore(checkpoint: Checkpoint) -> Projector:
    """The state that a checkpoint holds.

    Raises:
        FormatUnsupported: it is of another version, or makes no sense.
    """
    saved = [(key, as_of, blob) for key, (as_of, blob) in checkpoint.parts.items()]
    try:
        state = Projector.restore(saved, checkpoint.start)
        # Values of a wrong kind may go unnoticed until the parts are saved again, which would end the broker.
        if {one.key: parts.encode(one) for one in state.parts()} != {key: blob for key, _, blob in saved}:
            raise ValueError("its parts are not in the form in which parts are saved")
    except (msgspec.MsgspecError, RecursionError, *_NONSENSE) as problem:
        raise FormatUnsupported(f"a checkpoint cannot be read: {problem!r}") from problem
    return state

"""Which dedup ids each queue remembers, and of which message each was.

The ids of a queue stand in slices, in the order in which they came: a part of the checkpoint each, so that what is
full is saved once, however many ids a queue remembers. A slice is named by the record that began it. What one record
brings is never divided: it goes to the newest slice if it fits there, else it begins one. So which slice a record goes
to follows from the slice and the record alone, also in a replay that finds some of them saved at other offsets: a
record belongs to the last slice that began at it or before it.

A slice may be missing from a checkpoint, as its ids were forgotten before its turn to be saved came. Then the replay
puts records into other slices than they once were in, until it comes to the DedupForgotten which that slice went with:
that names records, not slices, and so takes all of these with it.

Beside the slices a queue has one index of its ids, which follows from them and is never saved. It is divided by the
first byte of an id once it is large: a dictionary of a million ids would grow in steps of 50 ms, in which nothing else
runs.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import repeat
from operator import attrgetter
from typing import Any, Final, NamedTuple

from vibemq import events as e
from vibemq.events import DEDUP_BYTES, Hashes

SLICE_IDS: Final = 4096
"""So many ids are in a slice, or those of one record. Part of the fold: changing it changes digests."""
NO_ID: Final = bytes(DEDUP_BYTES)
"""Stands for a message without an id."""
SPLIT_IDS: Final = 8192
"""An index of more ids is divided."""
_SHARDS: Final = 256
_INDEX_BITS: Final = 32
_BEGAN = attrgetter("began")


class Known(NamedTuple):
    """The message that an id belongs to: the one at `place` in record `offset`, published at `time_us`."""

    offset: int
    place: int
    time_us: int


def split(hashes: Hashes) -> list[bytes]:
    """The single ids of a column of them."""
    return [hashes[at : at + DEDUP_BYTES] for at in range(0, len(hashes), DEDUP_BYTES)]


class Slice:
    """Ids of a queue that came one after the other, as columns. It began with record `began`."""

    __slots__ = ("as_of", "began", "ids", "indices", "offsets", "queue", "times_us")

    def __init__(self, queue: int, began: int) -> None:
        """Begin without ids."""
        self.as_of = 0
        self.queue, self.began = queue, began
        self.ids: list[bytes] = []
        self.offsets = array("Q")
        self.indices = array("I")
        self.times_us = array("Q")

    @property
    def key(self) -> str:
        """The stable name of the part."""
        return f"dedup/{self.queue}/{self.began}"

    def has_room(self, count: int) -> bool:
        """Whether so many more ids go in."""
        return not self.ids or len(self.ids) + count <= SLICE_IDS

    def add(self, offset: int, time_us: int, ids: list[bytes], indices: list[int]) -> None:
        """Remember what one record brought."""
        self.ids += ids
        self.indices.extend(indices)
        self.offsets.extend(repeat(offset, len(ids)))
        self.times_us.extend(repeat(time_us, len(ids)))

    def places(self, end: int) -> Iterator[tuple[bytes, int]]:
        """The first ids up to position `end`, with their places."""
        offsets, indices = self.offsets, self.indices
        for at in range(end):
            yield self.ids[at], offsets[at] << _INDEX_BITS | indices[at]

    def drop(self, end: int) -> None:
        """Forget the first ids up to position `end`."""
        del self.ids[:end], self.offsets[:end], self.indices[:end], self.times_us[:end]

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        columns = [self.offsets.tobytes(), self.indices.tobytes(), self.times_us.tobytes()]
        return [self.queue, self.began, b"".join(self.ids), *columns]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Slice":
        """The slice of which this is a snapshot."""
        queue, began, ids, offsets, indices, times_us = snapshot
        restored = cls(queue, began)
        restored.as_of = as_of
        restored.ids = split(ids)
        restored.offsets.frombytes(offsets)
        restored.indices.frombytes(indices)
        restored.times_us.frombytes(times_us)
        return restored


class QueueIds:
    """What one queue remembers: its slices, the oldest first, and the index over them."""

    __slots__ = ("_mask", "_shards", "count", "queue", "slices")

    def __init__(self, queue: int) -> None:
        """Begin with nothing remembered."""
        self.queue = queue
        self.slices: list[Slice] = []
        self.count = 0
        """Ids in all slices; one that came again after its window is there twice."""
        self._shards: list[dict[bytes, int]] = [{}]
        """Id -> record offset and index, in one number; by the first byte of the id where there is more than one."""
        self._mask = 0

    def find(self, one: bytes) -> Known | None:
        """The last message with this id."""
        place = self._shards[one[0] & self._mask].get(one)
        if place is None:
            return None
        offset = place >> _INDEX_BITS
        found = self.slices[self._at(offset)]
        time_us = found.times_us[bisect_left(found.offsets, offset)]
        return Known(offset, place & (1 << _INDEX_BITS) - 1, time_us)

    @property
    def oldest_times(self) -> tuple[int, int]:
        """When the first and the last id of the oldest slice came, in us."""
        times_us = self.slices[0].times_us
        return times_us[0], times_us[-1]

    def oldest_until(self, time_us: int) -> int:
        """The offset below which are the ids of the oldest slice that came at `time_us` or earlier, and no others."""
        oldest = self.slices[0]
        end = bisect_right(oldest.times_us, time_us)
        return oldest.offsets[end] if end < len(oldest.ids) else oldest.offsets[-1] + 1

    def add(self, offset: int, time_us: int, columns: list[tuple[int, Hashes]]) -> None:
        """Remember the ids of record `offset`, if that is still to be done: from which index on, and which."""
        ids, indices = [], []
        for first, hashes in columns:
            found = split(hashes)
            if NO_ID in found:
                indices += [at for at, one in enumerate(found, first) if one != NO_ID]
                ids += [one for one in found if one != NO_ID]
            else:
                indices += range(first, first + len(found))
                ids += found
        if ids and (target := self._slice_for(offset, len(ids))) is not None:
            target.add(offset, time_us, ids, indices)
            base = offset << _INDEX_BITS
            self._note(zip(ids, [base | at for at in indices], strict=True), len(ids))

    def _slice_for(self, offset: int, count: int) -> Slice | None:
        """The slice that takes the ids of a record; None where it holds them already."""
        at = self._at(offset)
        found = self.slices[at] if at >= 0 else None
        if found is not None and found.as_of > offset:
            return None
        if found is None or not found.has_room(count):
            found = Slice(self.queue, offset)
            self.slices.insert(at + 1, found)
        found.as_of = offset + 1
        return found

    def _at(self, offset: int) -> int:
        """The position of the last slice that began at a record or before it; -1: none did."""
        return bisect_right(self.slices, offset, key=_BEGAN) - 1

    def put(self, restored: Slice) -> None:
        """Add a slice from a checkpoint."""
        self.slices.insert(self._at(restored.began) + 1, restored)
        self._note(restored.places(len(restored.ids)), len(restored.ids))

    def _note(self, places: Iterator[tuple[bytes, int]], count: int) -> None:
        self.count += count
        if not self._mask and len(self._shards[0]) + count > SPLIT_IDS:
            self._divide()
        shards, mask = self._shards, self._mask
        for one, place in places:
            shard = shards[one[0] & mask]
            # In a replay a later message with the same id may be known already, from a slice that was saved later.
            if shard.get(one, -1) < place:
                shard[one] = place

    def _divide(self) -> None:
        whole = self._shards[0]
        self._mask, self._shards = _SHARDS - 1, [{} for _ in range(_SHARDS)]
        for one, place in whole.items():
            self._shards[one[0]][one] = place

    def forget(self, offset: int, below: int) -> None:
        """By event `offset`, what records below `below` brought is forgotten."""
        while self.slices and self.slices[0].offsets[0] < below:
            oldest = self.slices[0]
            end = bisect_left(oldest.offsets, below)
            for one, place in oldest.places(end):
                shard = self._shards[one[0] & self._mask]
                if shard.get(one) == place:
                    del shard[one]
            self.count -= end
            if end == len(oldest.ids):
                del self.slices[0]
            else:
                oldest.drop(end)
                oldest.as_of = max(oldest.as_of, offset + 1)

    def parts(self) -> Iterator[Slice]:
        """The slices in order; some may come and go while somebody walks through them."""
        began = -1
        while (at := self._at(began) + 1) < len(self.slices):
            began = self.slices[at].began
            yield self.slices[at]


class Dedup:
    """What all queues remember, and how many ids that is in `total`."""

    def __init__(self) -> None:
        """Begin with nothing remembered."""
        self.queues: dict[int, QueueIds] = {}
        self.total = 0

    def published(self, offset: int, time_us: int, event: e.Published) -> None:
        """Remember the ids of a batch."""
        if event.dedup:
            self._add(offset, time_us, event.queue, [(0, event.dedup)])

    def committed(self, offset: int, time_us: int, event: e.TransactionCommitted) -> None:
        """Remember the ids of all batches of a transaction."""
        columns: dict[int, list[tuple[int, Hashes]]] = {}
        index = 0
        for part in event.published:
            if part.dedup:
                columns.setdefault(part.queue, []).append((index, part.dedup))
            index += part.count
        for queue, its_own in columns.items():
            self._add(offset, time_us, queue, its_own)

    def _add(self, offset: int, time_us: int, queue: int, columns: list[tuple[int, Hashes]]) -> None:
        remembered = self.queues.get(queue)
        if remembered is None:
            remembered = self.queues[queue] = QueueIds(queue)
        self.total -= remembered.count
        remembered.add(offset, time_us, columns)
        self._counted(remembered)

    def forgotten(self, offset: int, event: e.DedupForgotten) -> None:
        """Forget the oldest ids of a queue."""
        if remembered := self.queues.get(event.queue):
            self.total -= remembered.count
            remembered.forget(offset, event.below)
            self._counted(remembered)

    def _counted(self, remembered: QueueIds) -> None:
        self.total += remembered.count
        if not remembered.slices:
            del self.queues[remembered.queue]

    def gone(self, queue: int) -> None:
        """A queue is gone for good."""
        if remembered := self.queues.pop(queue, None):
            self.total -= remembered.count

    def restored(self, snapshot: list[Any], as_of: int) -> None:
        """Add a slice from a checkpoint."""
        part = Slice.restore(snapshot, as_of)
        remembered = self.queues.setdefault(part.queue, QueueIds(part.queue))
        self.total -= remembered.count
        remembered.put(part)
        self.total += remembered.count

    def parts(self) -> Iterator[Slice]:
        """The slices of all queues, in a stable order."""
        for number in sorted(self.queues):
            if remembered := self.queues.get(number):
                yield from remembered.parts()

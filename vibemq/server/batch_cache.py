"""Recent batches in memory, so that what is published is delivered without reading it back.

Bounded by bytes; the oldest entry goes first. What is not here is in the log. A batch counts with its bytes and with
the objects that keep them: of small messages, sent one by one, those are most of it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from typing import Final

from vibemq.server.effects import Origin, StoredBatch

OBJECTS_BYTES: Final = 1024
"""What the objects of a batch take beside its bytes, about: `sys.getsizeof` of them and of their places here."""


class BatchCache:
    """Batches by queue, lane and first sequence; at most `bytes_max` of them, and always the latest one."""

    def __init__(self, bytes_max: int) -> None:
        """Keep up to `bytes_max` bytes of batches."""
        self.bytes_max = bytes_max
        self.bytes = 0
        self._lanes: dict[tuple[int, int], tuple[list[int], list[StoredBatch]]] = {}
        self._order: OrderedDict[StoredBatch, None] = OrderedDict()
        self._bytes_of: Counter[int] = Counter()

    def bytes_of(self, queue: int) -> int:
        """What the batches of a queue take."""
        return self._bytes_of[queue]

    def add(self, stored: StoredBatch) -> None:
        """Keep a batch; a part of it that is here already stays."""
        key = (stored.queue, stored.origin.lane)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = ([], [])
        starts, batches = lane
        at = bisect_left(starts, stored.sequence)
        if at < len(starts) and starts[at] == stored.sequence:
            return
        starts.insert(at, stored.sequence)
        batches.insert(at, stored)
        self._order[stored] = None
        self.bytes += weight(stored)
        self._bytes_of[stored.queue] += weight(stored)
        while self.bytes > self.bytes_max and len(self._order) > 1:
            oldest = next(iter(self._order))
            self.discard(oldest.queue, oldest.origin)

    def find(self, queue: int, lane: int, sequence: int) -> StoredBatch | None:
        """The batch that holds this message."""
        found = self._lanes.get((queue, lane))
        if found is None:
            return None
        at = bisect_right(found[0], sequence) - 1
        if at < 0:
            return None
        stored = found[1][at]
        return stored if sequence < stored.end else None

    def discard(self, queue: int, origin: Origin) -> None:
        """Let go of a batch, if it is still here."""
        found = self._lanes.get((queue, origin.lane))
        if found is None:
            return
        starts, batches = found
        at = bisect_left(starts, origin.sequence)
        if at < len(starts) and batches[at].origin is origin:
            stored = batches.pop(at)
            del starts[at]
            self.bytes -= weight(stored)
            self._bytes_of[queue] -= weight(stored)
            del self._order[stored]
            if not starts:
                del self._lanes[queue, origin.lane]
                if not self._bytes_of[queue]:
                    del self._bytes_of[queue]

    def discard_queue(self, queue: int) -> None:
        """Let go of all batches of a queue. There may be tens of thousands: not each by itself."""
        for key in [key for key in self._lanes if key[0] == queue]:
            _, batches = self._lanes.pop(key)
            for stored in batches:
                self.bytes -= weight(stored)
                del self._order[stored]
        self._bytes_of.pop(queue, None)


def weight(stored: StoredBatch) -> int:
    """What a batch takes, in bytes."""
    return len(stored.batch.data) + OBJECTS_BYTES

"""What waits for its time in a queue, as numbers: how many messages, how many bytes, and a sum that vouches for them.

The entries themselves are in the index, and only there: a million of them is nothing that memory should hold. The sum
of their hashes takes part in the digest in their place: two states that agree in it have the same entries.
"""

import struct
from typing import Any, Final

import xxhash

from vibemq.events import Entry

_ENTRY: Final = struct.Struct("<6Q")
_WRAP: Final = (1 << 64) - 1


def hash_of(entry: Entry) -> int:
    """What an entry adds to the sum."""
    return xxhash.xxh3_64_intdigest(_ENTRY.pack(*entry))


class Delayed:
    """The delayed messages of a queue. What records below `floor` delayed was thrown away."""

    __slots__ = ("bytes", "count", "floor", "sum")

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.bytes = 0
        self.sum = 0
        self.floor = 0

    def add(self, entry: Entry) -> None:
        """These wait from now on."""
        self.count += entry[3]
        self.bytes += entry[4]
        self.sum = (self.sum + hash_of(entry)) & _WRAP

    def remove(self, entry: Entry) -> None:
        """These wait no more."""
        self.count -= entry[3]
        self.bytes -= entry[4]
        self.sum = (self.sum - hash_of(entry)) & _WRAP

    def purge(self, offset: int) -> None:
        """All that waits was thrown away by record `offset`."""
        self.count = self.bytes = self.sum = 0
        self.floor = offset

    def snapshot(self) -> list[Any]:
        """Plain values."""
        return [self.count, self.bytes, self.sum, self.floor]

    @classmethod
    def restore(cls, snapshot: list[Any]) -> "Delayed":
        """What waits, of which this is a snapshot."""
        delayed = cls()
        delayed.count, delayed.bytes, delayed.sum, delayed.floor = snapshot
        return delayed

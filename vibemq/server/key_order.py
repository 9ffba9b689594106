"""Which messages of a group may go out when those of one key have to keep their order.

At most one message of a key is out: held by a consumer, or waiting to be tried again. The next one goes when that one
is settled. Meanwhile it is parked, and messages of other keys pass by. A key is known by its hash; messages without a
key (hash 0) go whenever there is a consumer.

All of it is in memory only. It is built from the group when its first consumer comes: what the group has in `returned`
and what waits is looked up again, what lies behind its cursor is looked at as it is needed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final

from vibemq.projections.group import Group, Lane
from vibemq.projections.intervals import IntervalSet
from vibemq.server.effects import StoredBatch

PARKED_MAX: Final = 100_000
"""With so many parked messages nothing new is looked at: keys that are all stuck must not fill the memory."""
SCAN_MAX: Final = 4096
"""Messages looked at in one go: it takes about a millisecond."""

Find = Callable[[int], StoredBatch | None]
"""The batch that holds a message, or None while it is read from the disk."""


class KeyOrder:
    """The keys of one group. A sequence is in one place: parked, free, or out; or not looked at yet."""

    def __init__(self, group: Group) -> None:
        """Know nothing of the group's messages yet but where they are; what is held is told by `is_held`."""
        ((_, lane),) = group.lanes.items()
        self._scanned = lane.cursor
        """Sequences from here on were not looked at."""
        self._unknown = IntervalSet()
        """Ready, below that, and not looked at."""
        self._unknown_waiting = IntervalSet()
        """Waiting, and not looked at."""
        for start, end in lane.returned:
            self._unknown.add(start, end)
        for _, _, start, end in group.waiting:
            self._unknown_waiting.add(start, end)
        self._owner: dict[int, int] = {}
        """Key -> the message that has it: free, out or waiting."""
        self._key: dict[int, int] = {}
        """The other way round."""
        self._free: list[int] = []
        """May go out; a heap."""
        self._parked: dict[int, deque[int]] = {}
        self._parked_count = 0
        self.was_cut_short = False
        """There was more to look at than one turn allows."""

    # --- what may go out

    def next_free(self, lane: Lane, next_sequence: int, find: Find) -> tuple[int, StoredBatch] | None:
        """The oldest message that may go out, with its batch. None: there is none now, or `find` has it read first.

        It stays the next until it is told to `go_out`.
        """
        budget = SCAN_MAX
        self.was_cut_short = False
        while budget > 0:
            if self._unknown_waiting:
                if not self._look(self._unknown_waiting, find, waiting=True):
                    return None
                budget -= 1
            elif self._unknown:
                if not self._look(self._unknown, find, waiting=False):
                    return None
                budget -= 1
            elif self._free:
                sequence = self._free[0]
                if not _is_ready(lane, sequence):  # dropped, or too old
                    heappop(self._free)
                    self.settled(sequence, sequence + 1)
                    continue
                stored = find(sequence)
                return None if stored is None else (sequence, stored)
            elif self._scanned < next_sequence and self._parked_count < PARKED_MAX:
                looked_at = self._scan(lane, next_sequence, find)
                if not looked_at:
                    return None
                budget -= looked_at
            else:
                return None
        self.was_cut_short = True
        return None

    def _scan(self, lane: Lane, next_sequence: int, find: Find) -> int:
        """Look at the next messages that nobody has looked at; how many that were."""
        end = next_sequence
        if self._scanned < lane.cursor:  # some were dropped, or passed over by those behind them that were
            passed_over = lane.returned.within(self._scanned, lane.cursor)
            self._scanned, end = passed_over[0] if passed_over else (lane.cursor, next_sequence)
        start = self._scanned
        stored = find(start) if start < end else None
        if stored is None:
            return 0
        self._scanned = min(stored.end, end, start + SCAN_MAX)
        self._meet(stored, start, self._scanned, waiting=False)
        return self._scanned - start

    def _look(self, unknown: IntervalSet, find: Find, *, waiting: bool) -> bool:
        start, end = next(iter(unknown))
        stored = find(start)
        if stored is None:
            return False
        end = min(end, stored.end, start + SCAN_MAX)
        unknown.remove(start, end)
        self._meet(stored, start, end, waiting=waiting)
        return True

    def _meet(self, stored: StoredBatch, start: int, end: int, *, waiting: bool) -> None:
        """Learn the keys of messages; those that wait have theirs, the others get it if nobody has."""
        keys = stored.origin.keys
        owner = self._owner
        for sequence in range(start, end):
            key = keys[sequence - stored.sequence] if keys is not None else 0
            if key and key in owner and owner[key] != sequence:
                self._parked.setdefault(key, deque()).append(sequence)
                self._parked_count += 1
                continue
            if key:
                owner[key], self._key[sequence] = sequence, key
            if not waiting:
                heappush(self._free, sequence)

    # --- what became of it

    def go_out(self, lane: Lane, start: int, most: int) -> int:
        """The next free message, `start`, is handed out, and those that follow it as far as they are free too.

        The end of them, which is at most `most`.
        """
        free, end = self._free, start
        while free and free[0] == end < most and _is_ready(lane, end):
            heappop(free)
            end += 1
        assert end > start, f"message {start} is not the next"
        return end

    def is_held(self, start: int, keys: Iterable[int] | None) -> None:
        """Messages from `start` on, of these keys, are held by a consumer: they went out before this was built."""
        for sequence, key in enumerate(keys or (), start):
            if key:
                self._owner[key], self._key[sequence] = sequence, key

    def settled(self, start: int, end: int) -> bool:
        """These are done: their keys go to those that are parked behind them. Whether there were any."""
        found = False
        for sequence in range(start, end):
            key = self._key.pop(sequence, 0)
            if not key:
                continue
            parked = self._parked.get(key)
            if not parked:
                del self._owner[key]
                continue
            heir = parked.popleft()
            self._parked_count -= 1
            if not parked:
                del self._parked[key]
            self._owner[key], self._key[heir] = heir, key
            heappush(self._free, heir)
            found = True
        return found

    def removed(self, start: int, keys: Iterable[int] | None) -> None:
        """Messages from `start` on, of these keys, were dropped or became too old, the oldest first.

        Those that are parked would else count for as long as their key is out, until nothing new is looked at.
        """
        for sequence, key in enumerate(keys or (), start):
            if sequence in self._key:
                self.settled(sequence, sequence + 1)
            elif (parked := self._parked.get(key)) and parked[0] == sequence:
                parked.popleft()
                self._parked_count -= 1
                if not parked:
                    del self._parked[key]

    def ready_again(self, start: int, end: int) -> None:
        """These were out, or waited, and keep their keys."""
        for sequence in range(start, end):
            if self._unknown_waiting.remove(sequence, sequence + 1):  # nobody has looked at it while it waited
                self._unknown.add(sequence, sequence + 1)
            else:
                heappush(self._free, sequence)


def _is_ready(lane: Lane, sequence: int) -> bool:
    return sequence >= lane.cursor or lane.returned.covers(sequence, sequence + 1)

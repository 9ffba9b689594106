"""Ready messages that nobody will get: those that are too old, and those for which there is no room."""

from collections.abc import Callable, Iterable, Iterator

from vibemq import events as e
from vibemq.declaration import Overflow
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, DeadReason
from vibemq.projections.group import Group, Lane
from vibemq.projections.queue import Queue
from vibemq.server.dead_lettering import BY_ITSELF, DeadLettering, Pieces
from vibemq.server.dispatch import Dispatcher, ready_spans
from vibemq.server.journal import Journal
from vibemq.server.subscription import Piece

_TRIMMING = frozenset({Overflow.DROP_OLDEST, Overflow.DEAD_LETTER})
PIECES_MAX = 256
"""Pieces removed in one turn: each is about 10 us of work."""

Removed = Callable[[Queue, Group, Iterable[Piece]], None]


class Removal:
    """Removes ready messages, as far as their batches are in memory; the others are sent for first."""

    def __init__(
        self, journal: Journal, dispatcher: Dispatcher, dead_lettering: DeadLettering, removed: Removed
    ) -> None:
        """Look for batches where the dispatcher does, and tell `removed` what nobody will get."""
        self._journal = journal
        self._dispatcher = dispatcher
        self._dead_lettering = dead_lettering
        self._removed = removed
        self._heads: dict[tuple[int, int], dict[int, tuple[int, int, int]]] = {}
        """(queue, group) -> lane -> (first that is ready, time to live it was looked at with, when it expires in us).

        What is known is not read again: the heads of ten lanes may be more than the memory for batches holds.
        """

    def forget(self, queue: int, group: int) -> None:
        """A group is gone, or will be."""
        self._heads.pop((queue, group), None)

    # --- too old

    def expire(self, queue: Queue, group: Group) -> int:
        """Remove what is too old from the head of each lane. When to look again: 0: there is nothing to wait for."""
        known = self._heads.setdefault((queue.id, group.id), {})
        times = []
        for number, lane in group.lanes.items():
            first, ttl_ms, expires_us = known.get(number, (0, 0, 0))
            is_same = ttl_ms == queue.settings.ttl_ms and first == (
                lane.returned.first if lane.returned else lane.cursor
            )
            if not is_same or 0 < expires_us <= self._journal.now_us:
                expires_us = self._expire_lane(queue, group, number, lane, known)
            if expires_us:
                times.append(expires_us)
            if (queue.id, group.id) in self._dispatcher.loading:  # the other lanes come after that
                break
        return min(times, default=0)

    def _expire_lane(
        self, queue: Queue, group: Group, number: int, lane: Lane, known: dict[int, tuple[int, int, int]]
    ) -> int:
        """Remove what is too old from the head of a lane. When the next one is; 0: that is not known, or never."""
        old: list[Piece] = []
        now_us, ttl_ms, head_us = self._journal.now_us, queue.settings.ttl_ms, 0
        known.pop(number, None)
        spans = _all_ready(queue, number, lane)
        for piece, expires_us in self._pieces(queue, group, number, spans, ttl_ms):
            if not 0 < expires_us <= now_us:
                known[number] = piece.span[1], ttl_ms, expires_us
                head_us = expires_us
                break
            old.append(piece)
            if len(old) >= PIECES_MAX:
                head_us = now_us
                break
        self._remove(queue, group, lane, old, DeadReason.EXPIRED, dead_letter=True)
        return head_us

    def remove_old(self, queue: Queue, group: Group, pieces: list[Piece]) -> None:
        """Remove ready messages of one lane that are too old, wherever they are."""
        self._remove(queue, group, group.lanes[pieces[0].origin.lane], pieces, DeadReason.EXPIRED, dead_letter=True)

    # --- no room

    def may_trim(self, queue: Queue) -> bool:
        """Whether a queue is one that removes what is too much."""
        settings = queue.settings
        return settings.overflow in _TRIMMING or settings.group_max_lag > 0 or queue.id in self._journal.state.dead

    def trim(self, queue: Queue, group: Group) -> bool:
        """Remove the oldest of what is too much. Whether more of it is left, that can be removed at once."""
        over, over_bytes = self._over(queue, group)
        if over <= 0 and over_bytes <= 0:
            return False
        dead_letter = queue.settings.overflow is Overflow.DEAD_LETTER
        pieces = 0
        for number, lane in reversed(list(group.lanes.items())):  # the lowest priority loses first
            old: list[Piece] = []
            for piece, _ in self._pieces(queue, group, number, self._may_go(queue, number, lane), 0):
                if (over <= 0 and over_bytes <= 0) or pieces >= PIECES_MAX:
                    break
                part = _as_far_as_needed(piece, over, over_bytes)
                over -= part.end - part.start
                over_bytes -= part.bytes
                old.append(part)
                pieces += 1
            self._remove(queue, group, lane, old, DeadReason.OVERFLOW, dead_letter=dead_letter)
            if (queue.id, group.id) in self._dispatcher.loading:  # there is more of this lane
                break
        return pieces >= PIECES_MAX

    def _over(self, queue: Queue, group: Group) -> tuple[int, int]:
        """How many messages, and bytes, a group has too many."""
        settings = queue.settings
        limits: list[int] = []
        over_bytes = 0
        if settings.overflow in _TRIMMING or queue.id in self._journal.state.dead:
            limits.append(settings.max_length - queue.delayed.count)
            if DEFAULT_GROUP in queue.groups:
                over_bytes = queue.bytes_of(group) + queue.delayed.bytes - settings.max_bytes
            elif queue.total_bytes:  # of groups an average is known: so many messages are within the limit
                count = queue.next[DEFAULT_LANE] - 1
                limits.append(((settings.max_bytes + 1) * count - 1) // queue.total_bytes)
        if settings.group_max_lag and group.id != DEFAULT_GROUP:
            limits.append(settings.group_max_lag)
        return (group.length(queue.next) - min(limits) if limits else 0), over_bytes

    def _may_go(self, queue: Queue, number: int, lane: Lane) -> Iterable[tuple[int, int]]:
        """What is ready in a lane and may be removed: of a queue that refuses what is too much, only dead letters."""
        dead = self._journal.state.dead.get(queue.id)
        if dead is None or queue.settings.overflow in _TRIMMING:
            return _all_ready(queue, number, lane)
        if number != DEFAULT_LANE:  # not where dead letters are
            return ()
        return (ready for start, end in dead.open for ready in lane.ready_within(start, end))

    # --- both

    def _pieces(
        self, queue: Queue, group: Group, number: int, spans: Iterable[tuple[int, int]], ttl_ms: int
    ) -> Iterator[tuple[Piece, int]]:
        """Ready messages of a lane, with the time at which they expire; as far as they are in memory."""
        for start, end in spans:
            at = start
            while at < end:
                stored = self._dispatcher.find(queue.id, group.id, number, at)
                if stored is None:
                    return
                stop = min(end, stored.end)
                first = at - stored.sequence
                yield Piece(first, first + stop - at, stored.origin, first), stored.expires_us(ttl_ms)
                at = stop

    def _remove(
        self, queue: Queue, group: Group, lane: Lane, pieces: list[Piece], why: DeadReason, *, dead_letter: bool
    ) -> None:
        alike: dict[tuple[int, bool] | None, Pieces] = {}
        # What goes round a circle of dead-letter queues would never end: it is let go at the second time in a row.
        in_circle = bool(pieces) and dead_letter and self._dead_lettering.comes_back_by_itself(queue)
        for piece in pieces:
            was_dead = piece.origin.dead
            goes_on = dead_letter and not (in_circle and was_dead in BY_ITSELF)
            _, start, end = piece.span
            for low, high, failed in lane.attempts(start, end):
                skip = low - start
                part = Piece(piece.start + skip, piece.start + high - start, piece.origin, piece.first + skip)
                alike.setdefault((failed, was_dead > 0) if goes_on else None, Pieces()).add(part)
        for kind, removed in alike.items():
            if kind is not None:
                failed, again = kind
                self._dead_lettering.send(queue, group.id, 0, removed, why, failed, "", again=again)
            else:
                self._journal.record(e.Dropped(queue.id, group.id, tuple(removed.spans), removed.bytes, why))
        self._removed(queue, group, pieces)


def _all_ready(queue: Queue, number: int, lane: Lane) -> Iterator[tuple[int, int]]:
    """All that is ready in a lane, oldest first."""
    return ready_spans(lane, queue.next[number], queue.next[number])


def _as_far_as_needed(piece: Piece, over: int, over_bytes: int) -> Piece:
    """The front of a piece: so many messages, and as many as have so many bytes; all of it where it is not enough."""
    count = piece.end - piece.start
    needed, size = max(0, over), 0
    if over_bytes > 0:
        origin, by_bytes = piece.origin, 0
        while by_bytes < count and size < over_bytes:
            size += origin.lengths[piece.first + by_bytes]
            by_bytes += 1
        needed = max(needed, by_bytes)
    return piece._replace(end=piece.start + min(count, needed))

"""Ready messages that nobody will get: those that are too old, and those for which there is no room."""

from collections.abc import Iterable, Iterator

from vibemq import events as e
from vibemq.events import DEFAULT_GROUP, DeadReason, Overflow, Span
from vibemq.projections.group import Group, Lane
from vibemq.projections.queue import Queue
from vibemq.server.dead_lettering import DeadLettering, Pieces
from vibemq.server.dispatch import Dispatcher, ready_spans
from vibemq.server.journal import Journal
from vibemq.server.subscription import Piece

_TRIMMING = frozenset({Overflow.DROP_OLDEST, Overflow.DEAD_LETTER})
PIECES_MAX = 256
"""Pieces removed in one turn: each is about 10 us of work."""


class Removal:
    """Removes ready messages, as far as their batches are in memory; the others are sent for first."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher, dead_lettering: DeadLettering) -> None:
        """Look for batches where the dispatcher does."""
        self._journal = journal
        self._dispatcher = dispatcher
        self._dead_lettering = dead_lettering

    # --- too old

    def expire(self, queue: Queue, group: Group) -> int:
        """Remove what is too old from the head of each lane. When to look again: 0: there is nothing to wait for."""
        ttl_ms = queue.settings.ttl_ms
        due_us = 0
        for number, lane in list(group.lanes.items()):
            old: list[Piece] = []
            now_us, head_us = self._journal.now_us, 0
            for piece, expires_us in self._from_head(queue, group, number, lane, ttl_ms):
                if not 0 < expires_us <= now_us:
                    head_us = expires_us
                    break
                old.append(piece)
                if len(old) >= PIECES_MAX:
                    head_us = now_us
                    break
            self._remove(queue, group, lane, old, DeadReason.EXPIRED, dead_letter=True)
            if head_us and (not due_us or head_us < due_us):
                due_us = head_us
        return due_us

    def remove_old(self, queue: Queue, group: Group, spans: Iterable[Span]) -> None:
        """Remove ready messages that are too old, wherever they are."""
        for number, start, end in spans:
            stored = self._dispatcher.find(queue.id, group.id, number, start)
            if stored is not None:
                first = start - stored.sequence
                piece = Piece(first, first + end - start, stored.origin, first)
                self._remove(queue, group, group.lanes[number], [piece], DeadReason.EXPIRED, dead_letter=True)

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
            for piece, _ in self._from_head(queue, group, number, lane, 0):
                if (over <= 0 and over_bytes <= 0) or pieces >= PIECES_MAX:
                    break
                part = _as_far_as_needed(piece, over, over_bytes)
                over -= part.end - part.start
                over_bytes -= part.bytes
                old.append(part)
                pieces += 1
            self._remove(queue, group, lane, old, DeadReason.OVERFLOW, dead_letter=dead_letter)
        return pieces >= PIECES_MAX

    def _over(self, queue: Queue, group: Group) -> tuple[int, int]:
        """How many messages, and bytes, a group has too many."""
        settings = queue.settings
        limits: list[int] = []
        over_bytes = 0
        if settings.overflow in _TRIMMING or queue.id in self._journal.state.dead:
            limits.append(settings.max_length)
            over_bytes = queue.bytes - settings.max_bytes
        if settings.group_max_lag and group.id != DEFAULT_GROUP:
            limits.append(settings.group_max_lag)
        return (group.length(queue.next) - min(limits) if limits else 0), over_bytes

    # --- both

    def _from_head(
        self, queue: Queue, group: Group, number: int, lane: Lane, ttl_ms: int
    ) -> Iterator[tuple[Piece, int]]:
        """Ready messages of a lane, oldest first, with the time at which they expire; as far as they are in memory."""
        next_sequence = queue.next[number]
        for start, end in ready_spans(lane, next_sequence, next_sequence):
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
        by_attempts: dict[int, Pieces] = {}
        for piece in pieces:
            _, start, end = piece.span
            for low, high, failed in lane.attempts(start, end):
                skip = low - start
                part = Piece(piece.start + skip, piece.start + high - start, piece.origin, piece.first + skip)
                by_attempts.setdefault(failed if dead_letter else 0, Pieces()).add(part)
        for failed, removed in by_attempts.items():
            if dead_letter:
                self._dead_lettering.send(queue, group.id, 0, removed, why, failed, "")
            else:
                self._journal.record(e.Dropped(queue.id, group.id, tuple(removed.spans), removed.bytes, why))


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

"""Where messages go that nobody could deal with: to the dead-letter queue of their queue.

What is a dead letter there already ends there, so that nothing goes from queue to queue of which nobody knows: it goes
on only where the queue's settings name a dead-letter queue. What was published to such a queue goes the way of any
message; so messages that end together are either all dead letters, or none of them is.
"""

from typing import Final

from vibemq import events as e
from vibemq.declaration import Overflow
from vibemq.events import DeadReason, Span
from vibemq.projections.queue import Queue
from vibemq.server.dispatch import append_span
from vibemq.server.journal import Journal
from vibemq.server.queue_settings import DEAD_LETTER_QUEUE, QueueDefaults, usual_dead_letter_queue
from vibemq.server.subscription import Piece

BY_ITSELF: Final = frozenset({DeadReason.EXPIRED, DeadReason.OVERFLOW})
"""For these a message goes without anybody having had it."""


class Pieces:
    """Messages that end together, collected so that they are one event: spans, where they are, and their bytes."""

    __slots__ = ("bytes", "refs", "spans")

    def __init__(self) -> None:
        """Begin without any."""
        self.spans: list[Span] = []
        self.refs: list[tuple[int, int, int]] = []
        self.bytes = 0

    def add(self, piece: Piece) -> None:
        """One piece more."""
        append_span(self.spans, piece.span)
        offset, index, count = piece.ref
        if self.refs and self.refs[-1][0] == offset and self.refs[-1][1] + self.refs[-1][2] == index:
            self.refs[-1] = offset, self.refs[-1][1], self.refs[-1][2] + count
        else:
            self.refs.append(piece.ref)
        self.bytes += piece.bytes


class DeadLettering:
    """Moves messages to the dead-letter queue of their queue."""

    def __init__(self, journal: Journal, defaults: QueueDefaults, changed: dict[int, None]) -> None:
        """`changed` collects queues that may have something to hand out."""
        self._journal = journal
        self._defaults = defaults
        self._state = journal.state
        self._changed = changed

    def send(
        self,
        queue: Queue,
        group: int,
        subscription: int,
        pieces: Pieces,
        why: DeadReason,
        attempts: int,
        error: str,
        *,
        again: bool,
    ) -> None:
        """These messages are dead, and so many attempts at them failed; `subscription` held them, or 0.

        `again`: they were dead letters in this queue.
        """
        target = self._target(queue, again=again)
        if target is None and why in BY_ITSELF:
            self._journal.record(e.Dropped(queue.id, group, tuple(pieces.spans), pieces.bytes, why))
            return
        self._journal.record(
            e.DeadLettered(
                queue.id,
                group,
                subscription,
                tuple(pieces.spans),
                pieces.bytes,
                why,
                attempts,
                error,
                target.id if target else 0,
                target.next[e.DEFAULT_LANE] if target else 0,
                tuple(pieces.refs),
            )
        )
        if target is not None:
            self._changed[target.id] = None

    def _target(self, queue: Queue, *, again: bool) -> Queue | None:
        """Where the dead letters of a queue go; None: nowhere."""
        name = dead_letter_name(queue.name, queue, again=again)
        if name in {"", queue.name}:
            return None
        return self._state.queue_named(name) or self._create(name)

    def comes_back_by_itself(self, queue: Queue) -> bool:
        """Whether a letter that goes from here may come back without a failure: too old there, or without room."""
        one, seen = queue, set[int]()
        while one.id not in seen:
            seen.add(one.id)
            following = self._state.queue_named(dead_letter_name(one.name, one, again=True))
            if following is None or following is queue:
                return following is queue
            if not following.settings.ttl_ms and following.settings.overflow is not Overflow.DEAD_LETTER:
                return False
            one = following
        return False

    def _create(self, name: str) -> Queue:
        settings = self._defaults.of(name, base=DEAD_LETTER_QUEUE)
        number = self._state.topology.next_queue
        self._journal.record(e.QueueDeclared(number, name, settings, 0))
        return self._state.queues[number]


def dead_letter_name(name: str, queue: Queue | None, *, again: bool = False) -> str:
    """The name of the dead-letter queue of the queue of that name, of which `queue` is known; empty: there is none.

    `again`: for what is a dead letter in that queue.
    """
    if queue is not None and queue.settings.dead_letter_queue:
        return queue.settings.dead_letter_queue
    return "" if again else usual_dead_letter_queue(name)

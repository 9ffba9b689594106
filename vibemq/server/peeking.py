"""Looking at messages without taking them."""

from vibemq.declaration import Mode
from vibemq.events import DEFAULT_LANE
from vibemq.projections.group import Group
from vibemq.projections.queue import Queue
from vibemq.server.dispatch import alike
from vibemq.server.effects import Peeked
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits


class Peeking:
    """Chooses what a peek shows; the runtime reads it."""

    def __init__(self, journal: Journal, limits: Limits) -> None:
        """Look at the journal's state."""
        self._journal = journal
        self._limits = limits

    def peek(
        self,
        connection: int,
        request: int,
        queue: Queue,
        group: Group | None,
        start: int,
        count: int,
        priority: int | None,
    ) -> None:
        """Answer with messages that are ready in a group, from sequence `start` on, highest priority first.

        In mode priority only those of one `priority`, if there is one given. Without a group: those of a queue that are
        kept for the next group that comes.
        """
        only = priority if queue.settings.mode is Mode.PRIORITY else None
        left = min(count, self._limits.peek_messages)
        spans: list[tuple[int, int, int, int, bool]] = []
        if group is None:
            low = max(start, queue.floor)
            high = min(queue.next[DEFAULT_LANE], low + left)
            if low < high:
                spans.append((DEFAULT_LANE, low, high, 0, False))
        else:
            for number, lane in group.lanes.items():
                if only is not None and number != only:
                    continue
                fresh = (max(start, lane.cursor), queue.next[number])
                for low, high in [*lane.returned.within(start, lane.cursor), fresh]:
                    end = min(high, low + left)
                    if low < end:
                        spans += [(number, *part) for part in alike(lane, low, end)]
                        left -= end - low
        self._journal.effects.append(Peeked(self._journal.next_offset, connection, request, queue.id, spans))

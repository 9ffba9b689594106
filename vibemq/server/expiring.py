"""Queues that end by themselves: those with `expires_ms`, when they have had no consumer for so long.

Since when a queue has none is in its state, so that it does not matter how often the broker starts anew. But the first
while after a start is the time in which consumers come back, and nothing ends then.
"""

from heapq import heappop, heappush
from typing import Final

from vibemq.projections.queue import Queue
from vibemq.server.journal import Journal

COMING_BACK_MS: Final = 60_000
"""After a start of the broker a queue has at least so much of its time, or all of it, for its consumers to return."""
LOOK_MS_MIN: Final = 1_000
"""A queue that has consumers is not looked at more often."""


class Expiring:
    """Knows which queue is to end next."""

    def __init__(self, journal: Journal) -> None:
        """Nothing is watched yet."""
        self._journal = journal
        self._state = journal.state
        self._started_us = 0
        self._heap: list[tuple[int, int]] = []  # (when to look, us; queue)
        self._looks_us: dict[int, int] = {}  # queue -> its entry there

    def start(self) -> None:
        """The broker starts: watch all queues from now on."""
        self._started_us = self._journal.now_us
        for queue in self._state.queues.values():
            self.watch(queue)

    def watch(self, queue: Queue) -> None:
        """A queue is new, came back, or has other settings."""
        look_us = self._look_us(queue)
        if look_us is not None and look_us < self._looks_us.get(queue.id, look_us + 1):
            self._looks_us[queue.id] = look_us
            heappush(self._heap, (look_us, queue.id))

    def _look_us(self, queue: Queue) -> int | None:
        """When to look at a queue next: when it is to end, if it stays as it is. None: it does not end by itself."""
        expires_ms = queue.settings.expires_ms
        if not expires_ms or queue.deleted_until_us:
            return None
        if queue.has_consumers:  # if the last of them leaves at once, it ends then
            return self._journal.now_us + max(expires_ms, LOOK_MS_MIN) * 1000
        coming_back_us = self._started_us + min(expires_ms, COMING_BACK_MS) * 1000
        return max(queue.idle_since_us + expires_ms * 1000, coming_back_us)

    def next(self) -> Queue | None:
        """A queue that is to end now, if there is one."""
        now_us = self._journal.now_us
        while self._heap and self._heap[0][0] <= now_us:
            look_us, number = heappop(self._heap)
            if self._looks_us.get(number) != look_us:
                continue
            del self._looks_us[number]
            queue = self._state.queues.get(number)
            if queue is None:
                continue
            due_us = self._look_us(queue)
            if due_us is not None and due_us <= now_us:
                return queue
            self.watch(queue)
        return None

    def next_due_us(self) -> int | None:
        """When there is something to look at."""
        return self._heap[0][0] if self._heap else None

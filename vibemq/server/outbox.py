"""Effects that wait for the disk, and the order in which they leave.

Effects come in the order of the decisions, but what they wait for does not rise with it: an answer waits for all that
was recorded, a delivery only for its message and its subscription. In one queue, first in and first out, such an answer
would hold back deliveries that are free to go, and later ones would overtake them. So the lowest `after` leaves first,
and of equal ones the earlier. Within a subscription `after` never falls: its deliveries stay in order.

What may leave is not always sent at once, as much of it would hold up the loop. Then it leaves in the order in which it
became free: by `after` a long old backlog would keep back the confirms of new publishes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from vibemq.server.effects import Delivery, Effect

DELIVERY_BYTES = 1024
"""What a delivery takes beside its messages, about."""


class Outbox:
    """What waits; true while there is something. `waiting_bytes` is what deliveries take that wait for the disk."""

    __slots__ = ("_count", "_free", "_waiting", "waiting_bytes")

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: list[tuple[int, int, Effect]] = []
        self._free: deque[Effect] = deque()
        self._count = 0
        self.waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._free)

    def sift(self, effects: Iterable[Effect], durable: int) -> Iterator[Effect]:
        """Those of new effects that may leave at once, records below `durable` being durable; the others wait.

        None may leave before what waited and could have left already.
        """
        in_order = self.has_free(durable)
        for effect in effects:
            if effect.after > durable:
                self._count += 1
                heappush(self._waiting, (effect.after, self._count, effect))
                self.waiting_bytes += weight(effect)
            elif in_order:
                self._free.append(effect)
            else:
                yield effect

    def has_free(self, durable: int) -> bool:
        """Whether something waits that may leave now."""
        waiting, free = self._waiting, self._free
        while waiting and waiting[0][0] <= durable:
            effect = heappop(waiting)[2]
            self.waiting_bytes -= weight(effect)
            free.append(effect)
        return bool(free)

    def release(self, durable: int) -> Iterator[Effect]:
        """Those that waited, and may leave now."""
        while self.has_free(durable):
            yield self._free.popleft()


def weight(effect: Effect) -> int:
    """What a delivery takes in memory, about. Answers do not count: consumers must not wait for publishers."""
    if isinstance(effect, Delivery):
        return DELIVERY_BYTES + effect.stored.origin.bytes(effect.first, effect.messages)
    return 0

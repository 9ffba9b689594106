"""Who gets which messages next: ready messages meet consumers with credit.

Consumers of a group take turns: one message each while there are few, equal runs in a row when there are many. A
consumer without credit is passed over, so it holds up nobody.
"""

from collections.abc import Iterator
from itertools import accumulate

from vibemq.events import DEFAULT_GROUP, Delivered, Span
from vibemq.projections.queue import Group, Lane, Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.effects import Delivery, Load, Origin, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.subscription import Subscription

TURN_BYTES_MAX = 2 << 20
"""After so many bytes a subscription gets its next ones in another turn of the loop."""
PIECE_BYTES = 4096
"""A piece of a batch counts as so many at least: a backlog of a million empty messages takes turns too."""


class Consumers:
    """The subscriptions of one group, and whose turn it is."""

    __slots__ = ("after", "subscriptions", "turn")

    def __init__(self) -> None:
        """Begin without consumers."""
        self.subscriptions: list[Subscription] = []
        self.turn = 0
        self.after = 0
        """The highest `after` of a delivery to any of them."""

    def with_credit(self) -> list[Subscription]:
        """Those that may be sent something, beginning with the one whose turn it is."""
        everyone = self.subscriptions
        if self.turn:
            self.turn %= len(everyone) or 1
            everyone = everyone[self.turn :] + everyone[: self.turn]
        return [one for one in everyone if one.has_credit]

    def remove(self, subscription: Subscription) -> None:
        """This one is gone; nobody loses a turn by that."""
        at = self.subscriptions.index(subscription)
        del self.subscriptions[at]
        if at < self.turn:
            self.turn -= 1

    def served(self, subscription: Subscription) -> None:
        """This one had its turn."""
        self.turn = self.subscriptions.index(subscription) + 1


class Dispatcher:
    """Gives the ready messages of one queue to its consumers."""

    def __init__(self, journal: Journal, cache: BatchCache) -> None:
        """Work on the journal's state with batches from `cache`."""
        self._journal = journal
        self._cache = cache
        self.loading: set[int] = set()
        """Queues that wait for a Load."""
        self.sent: dict[int, int] = {}
        """Subscription -> bytes that it was sent in this turn, small pieces counted as more."""

    def dispatch(self, queue: Queue, consumers: Consumers) -> list[Subscription]:
        """Hand out what is ready as far as credit goes, and return who got something."""
        served: list[Subscription] = []
        group = queue.groups[DEFAULT_GROUP]
        takers = self._ready_to_take(consumers.with_credit())
        while takers and queue.id not in self.loading:
            ready = queue.ready
            if not ready:
                break
            share = -(-ready // len(takers))
            for taker in takers[:ready]:
                if self._give(queue, group, consumers, taker, min(share, taker.most)):
                    served.append(taker)
                    consumers.served(taker)
                if queue.id in self.loading or not queue.ready:
                    return served
            takers = self._ready_to_take(takers)
        return served

    def _ready_to_take(self, takers: list[Subscription]) -> list[Subscription]:
        """Those with credit that were not sent enough for one turn: a client that stops reading shows between turns."""
        return [one for one in takers if one.has_credit and not self.is_cut_short(one)]

    def is_cut_short(self, taker: Subscription) -> bool:
        """Whether it was sent all that one turn allows, so that there may be more for it in the next."""
        return self.sent.get(taker.id, 0) >= TURN_BYTES_MAX

    def _give(self, queue: Queue, group: Group, consumers: Consumers, taker: Subscription, count: int) -> bool:
        lease_until_us = self._journal.now_us + queue.settings.lease_ms * 1000
        spans: list[Span] = []
        size = weight = 0
        first, effects = taker.next_delivery, self._journal.effects
        for number, lane in group.lanes.items():
            for start, end in _ready(lane, queue.next[number], count):
                at = start
                while at < end and taker.has_credit and weight < TURN_BYTES_MAX:
                    stored = self._cache.find(queue.id, number, at)
                    if stored is None:
                        self.loading.add(queue.id)
                        self._journal.loads.append(Load(queue.id, number, at))
                        break
                    stop = min(end, stored.end)
                    if lane.failed:  # up to as many pieces as messages
                        stop = min(stop, at + TURN_BYTES_MAX // PIECE_BYTES)
                    pieces = len(effects)
                    at, sent = self._send(lane, consumers, taker, stored, at, stop, lease_until_us)
                    size += sent
                    weight += max(sent, (len(effects) - pieces) * PIECE_BYTES)
                if at > start:
                    # What was never handed out moves the cursor; what came back does not: they stay two spans.
                    append_span(spans, (number, start, at), apart=start == lane.cursor)
                    count -= at - start
                if at < end:
                    break
        if not spans:
            return False
        weight = max(weight, (taker.next_delivery - first) * (TURN_BYTES_MAX // taker.turn_messages_max))
        self.sent[taker.id] = self.sent.get(taker.id, 0) + weight
        self._journal.record(Delivered(queue.id, DEFAULT_GROUP, taker.id, tuple(spans), size, lease_until_us))
        return True

    def _send(
        self,
        lane: Lane,
        consumers: Consumers,
        taker: Subscription,
        stored: StoredBatch,
        start: int,
        end: int,
        lease_until_us: int,
    ) -> tuple[int, int]:
        """Send messages start <= sequence < end of a batch as far as credit goes; how far that was, and the bytes."""
        size, origin = 0, stored.origin
        for low, high, failed, redelivered in alike(lane, start, end):
            first, count = low - stored.sequence, high - low
            part = origin.bytes(first, count)
            if part > taker.credit_bytes:
                count = _affordable(origin, first, count, taker.credit_bytes)
                part = origin.bytes(first, count)
            delivery = taker.sent(origin, first, count, lease_until_us)
            taker.credit_messages -= count
            taker.credit_bytes -= part
            after = max(taker.after, stored.made_ready + 1)
            if redelivered:  # not before the first delivery, which may wait for its consumer's subscription
                after = max(after, consumers.after)
            taker.after = after
            consumers.after = max(consumers.after, after)
            self._journal.effects.append(
                Delivery(after, taker.connection, taker.id, delivery, stored, first, count, failed + 1, redelivered)
            )
            size += part
            if first + count < high - stored.sequence or not taker.has_credit:
                return low + count, size
        return end, size


def _ready(lane: Lane, next_sequence: int, count: int) -> Iterator[tuple[int, int]]:
    """Up to `count` ready messages of a lane as intervals, oldest first."""
    if lane.returned:
        for start, end in lane.returned.lowest(count):
            yield start, end
            count -= end - start
    if count > 0 and lane.cursor < next_sequence:
        yield lane.cursor, min(next_sequence, lane.cursor + count)


def alike(lane: Lane, start: int, end: int) -> Iterator[tuple[int, int, int, bool]]:
    """Cut start <= sequence < end where the number of failed attempts or the redelivered flag changes."""
    known = max(lane.cursor, lane.redelivered_below)
    if not lane.failed and (start >= known or end <= known):
        yield start, end, 0, start < known
        return
    for low, high, failed in lane.attempts(start, end):
        if low < known < high:
            yield low, known, failed, True
            yield known, high, failed, False
        else:
            yield low, high, failed, low < known


def _affordable(origin: Origin, first: int, count: int, size: int) -> int:
    """How many of the messages fit into `size` bytes; at least one, or a large message would wait for ever."""
    sums = accumulate(origin.lengths[first : first + count])
    return max(1, sum(1 for so_far in sums if so_far <= size))


def append_span(spans: list[Span], span: Span, *, apart: bool = False) -> None:
    """Add a span behind the others; it grows the last one where they touch, unless it must stay `apart`."""
    lane, start, end = span
    if spans and spans[-1][0] == lane and spans[-1][2] == start and not apart:
        spans[-1] = (lane, spans[-1][1], end)
    else:
        spans.append(span)

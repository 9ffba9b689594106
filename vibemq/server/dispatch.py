"""Who gets which messages next: ready messages meet consumers with credit.

Consumers of a group take turns: one message each while there are few, equal runs in a row when there are many. A
consumer without credit is passed over, so it holds up nobody. Lanes of higher priority go first.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TypeAlias

from vibemq.declaration import Mode
from vibemq.events import Delivered, Span
from vibemq.projections.group import Group, Lane
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.effects import Delivery, Load, Origin, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.key_order import KeyOrder
from vibemq.server.rates import Bucket
from vibemq.server.subscription import Piece, Subscription

TURN_BYTES_MAX = 2 << 20
"""After so many bytes a subscription gets its next ones in another turn of the loop."""
PIECE_BYTES = 4096
"""A piece of a batch counts as so many at least: a backlog of a million empty messages takes turns too."""


class Consumers:
    """The subscriptions of one group, and whose turn it is."""

    __slots__ = ("after", "deliver_rate", "key_order", "overtaken", "subscriptions", "turn")

    def __init__(self) -> None:
        """Begin without consumers."""
        self.subscriptions: list[Subscription] = []
        self.turn = 0
        self.after = 0
        """The highest `after` of a delivery to any of them."""
        self.overtaken = 0
        """Messages in a row that went before others of a lower priority."""
        self.key_order: KeyOrder | None = None
        """Which keys are out, in a queue that keeps their order."""
        self.deliver_rate: Bucket | None = None
        """How many may go out now, in a queue that limits that."""

    def with_credit(self, *, single_active: bool) -> list[Subscription]:
        """Those that may be sent something, beginning with the one whose turn it is."""
        everyone = self.subscriptions
        if single_active:
            everyone = everyone[:1]
        elif self.turn:
            self.turn %= len(everyone) or 1
            everyone = everyone[self.turn :] + everyone[: self.turn]
        return [one for one in everyone if one.has_credit]

    @property
    def is_looking(self) -> bool:
        """Whether enough keys were looked at in this turn, and there are more."""
        return self.key_order is not None and self.key_order.was_cut_short

    def remove(self, subscription: Subscription) -> None:
        """This one is gone; nobody loses a turn by that."""
        at = self.subscriptions.index(subscription)
        del self.subscriptions[at]
        if at < self.turn:
            self.turn -= 1

    def served(self, subscription: Subscription) -> None:
        """This one had its turn, the last of those that had one."""
        self.turn = self.subscriptions.index(subscription) + 1


_Parcel: TypeAlias = tuple[list[Span], int, int]
"""What one subscription is given in one go: spans, the bytes of their records, and those with small pieces as more."""


class Dispatcher:
    """Gives the ready messages of one group to its consumers."""

    def __init__(self, journal: Journal, cache: BatchCache) -> None:
        """Work on the journal's state with batches from `cache`."""
        self._journal = journal
        self._cache = cache
        self.loading: dict[tuple[int, int], Load] = {}
        """(queue, group) -> the Load that it waits for."""
        self.sent: dict[int, int] = {}
        """Subscription -> bytes that it was sent in this turn, small pieces counted as more."""
        self.too_old: list[Piece] = []
        """Messages that were next in the last `dispatch`, and were not sent as their time was over."""

    def dispatch(self, queue: Queue, group: Group, consumers: Consumers) -> list[Subscription]:
        """Hand out what is ready as far as credit goes, and return who got something."""
        served = self._serve(queue, group, consumers)
        if served:
            consumers.served(served[-1])
        return served

    def _serve(self, queue: Queue, group: Group, consumers: Consumers) -> list[Subscription]:
        served: list[Subscription] = []
        self.too_old.clear()
        settings = queue.settings
        takers = self._ready_to_take(consumers.with_credit(single_active=settings.single_active))
        place = queue.id, group.id
        while takers and place not in self.loading:
            ready = self._may_go_out(queue, group, consumers)
            if not ready:
                break
            share = -(-ready // len(takers))
            given = 0
            for taker in takers[:ready]:
                count = self._give(queue, group, consumers, taker, min(share, taker.most, ready - given))
                if count:
                    given += count
                    served.append(taker)
                if place in self.loading or given >= ready or self.too_old or consumers.is_looking:
                    return served
            if not given:  # what comes next is parked behind its key
                break
            takers = self._ready_to_take(takers)
        return served

    def _may_go_out(self, queue: Queue, group: Group, consumers: Consumers) -> int:
        ready = group.ready(queue.next)
        if ready and consumers.deliver_rate is not None:
            return min(ready, consumers.deliver_rate.available(self._journal.now_us))
        return ready

    def _ready_to_take(self, takers: list[Subscription]) -> list[Subscription]:
        """Those with credit that were not sent enough for one turn: a client that stops reading shows between turns."""
        return [one for one in takers if one.has_credit and not self.is_cut_short(one)]

    def is_cut_short(self, taker: Subscription) -> bool:
        """Whether it was sent all that one turn allows, so that there may be more for it in the next."""
        return self.sent.get(taker.id, 0) >= TURN_BYTES_MAX

    def find(self, queue: int, group: int, lane: int, sequence: int) -> StoredBatch | None:
        """The batch that holds a message; where it is not in memory it is sent for, and the group waits for it."""
        stored = self._cache.find(queue, lane, sequence)
        if stored is None:
            load = Load(queue, lane, sequence)
            if load not in self.loading.values():
                self._journal.loads.append(load)
            self.loading[queue, group] = load
        return stored

    def _give(self, queue: Queue, group: Group, consumers: Consumers, taker: Subscription, count: int) -> int:
        """Hand up to `count` messages to a subscription; how many that were."""
        keeps = queue.settings.mode is not Mode.FAN_OUT_NO_ACK
        lease_until_us = taker.lease_until_us(queue.settings.lease_ms, self._journal.now_us) if keeps else 0
        first, overtaken = taker.next_delivery, None
        if consumers.key_order is not None:
            spans, size, weight = self._pick_by_key(queue, group, consumers, taker, count, lease_until_us)
        else:
            lanes, count, overtaken = self._lanes(queue, group, consumers, count)
            spans, size, weight = self._pick(queue, group, consumers, taker, count, lease_until_us, lanes)
        if not spans:
            return 0
        given = taker.next_delivery - first
        consumers.overtaken = 0 if overtaken is None else overtaken + given
        weight = max(weight, given * (TURN_BYTES_MAX // taker.turn_messages_max))
        self.sent[taker.id] = self.sent.get(taker.id, 0) + weight
        if consumers.deliver_rate is not None:
            consumers.deliver_rate.take(given, self._journal.now_us)
        self._journal.record(Delivered(queue.id, group.id, taker.id, tuple(spans), size, lease_until_us))
        return given

    def _lanes(
        self, queue: Queue, group: Group, consumers: Consumers, count: int
    ) -> tuple[Iterable[tuple[int, Lane]], int, int | None]:
        """The lanes to serve, in order, and up to how many messages: so many that the guard need not look again.

        And how many messages overtook others before these do; None: these overtake nobody.
        """
        guard = queue.settings.priority_guard
        if not guard:
            return group.lanes.items(), count, None
        lanes = [(number, lane) for number, lane in group.lanes.items() if lane.ready(queue.next[number])]
        if len(lanes) < 2:
            return lanes, count, None
        if consumers.overtaken >= guard:
            return lanes[-1:], 1, None
        above = sum(lane.ready(queue.next[number]) for number, lane in lanes[:-1])
        return lanes[:-1], min(count, guard - consumers.overtaken, above), consumers.overtaken

    def _pick(
        self,
        queue: Queue,
        group: Group,
        consumers: Consumers,
        taker: Subscription,
        count: int,
        lease_until_us: int,
        lanes: Iterable[tuple[int, Lane]],
    ) -> _Parcel:
        """Send up to `count` messages of these lanes, oldest first."""
        spans: list[Span] = []
        size = weight = 0
        effects, now_us, find = self._journal.effects, self._journal.now_us, self._cache.find
        is_timed = queue.timed or queue.settings.ttl_ms
        for number, lane in lanes:
            for start, end in ready_spans(lane, queue.next[number], count):
                at = start
                while at < end and taker.has_credit and weight < TURN_BYTES_MAX:
                    stored = find(queue.id, number, at) or self.find(queue.id, group.id, number, at)
                    if stored is None:
                        break
                    stop = min(end, stored.end)
                    if is_timed and 0 < stored.expires_us(queue.settings.ttl_ms) <= now_us:
                        self.too_old.append(_piece(stored, at, stop))
                        break
                    if lane.failed:  # up to as many pieces as messages
                        stop = min(stop, at + TURN_BYTES_MAX // PIECE_BYTES)
                    pieces = len(effects)
                    at, sent = self._send(lane, consumers, taker, stored, at, stop, lease_until_us)
                    size += sent
                    weight += max(sent, (len(effects) - pieces) * PIECE_BYTES)
                if at > start:
                    append_span(spans, (number, start, at))
                    count -= at - start
                if at < end:
                    return spans, size, weight
            if count <= 0:
                break
        return spans, size, weight

    def _pick_by_key(
        self,
        queue: Queue,
        group: Group,
        consumers: Consumers,
        taker: Subscription,
        count: int,
        lease_until_us: int,
    ) -> _Parcel:
        """Send up to `count` messages whose keys are free, one of each key."""
        assert consumers.key_order is not None
        spans: list[Span] = []
        size = weight = 0
        now_us, effects = self._journal.now_us, self._journal.effects
        ((number, lane),) = group.lanes.items()
        is_timed = queue.timed or queue.settings.ttl_ms

        def find(sequence: int) -> StoredBatch | None:
            return self.find(queue.id, group.id, number, sequence)

        while count > 0 and taker.has_credit and weight < TURN_BYTES_MAX:
            found = consumers.key_order.next_free(lane, queue.next[number], find)
            if found is None:
                break
            sequence, stored = found
            end = consumers.key_order.go_out(lane, sequence, min(stored.end, sequence + count))
            if is_timed and 0 < stored.expires_us(queue.settings.ttl_ms) <= now_us:
                self.too_old.append(_piece(stored, sequence, end))
                consumers.key_order.settled(sequence, end)
                weight += PIECE_BYTES
                continue
            pieces = len(effects)
            at, sent = self._send(lane, consumers, taker, stored, sequence, end, lease_until_us)
            if at < end:
                consumers.key_order.ready_again(at, end)
            size += sent
            weight += max(sent, (len(effects) - pieces) * PIECE_BYTES // 8)
            append_span(spans, (number, sequence, at))
            count -= at - sequence
        return spans, size, weight

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


def ready_spans(lane: Lane, next_sequence: int, count: int) -> Iterator[tuple[int, int]]:
    """Up to `count` ready messages of a lane as intervals, oldest first. The lane must not change on the way."""
    for start, end in lane.returned:
        if count <= 0:
            return
        yield start, min(end, start + count)
        count -= end - start
    if count > 0 and lane.cursor < next_sequence:
        yield lane.cursor, min(next_sequence, lane.cursor + count)


def alike(lane: Lane, start: int, end: int) -> Iterator[tuple[int, int, int, bool]]:
    """Cut start <= sequence < end where the number of failed attempts or the redelivered flag changes."""
    if not lane.failed and not lane.untouched:
        known = max(lane.cursor, lane.redelivered_below)
        if start >= known or end <= known:
            yield start, end, 0, start < known
            return
    for low, high, failed in lane.attempts(start, end):
        for part_low, part_high, seen in _seen(lane, low, high):
            yield part_low, part_high, failed, seen or failed > 0


def _seen(lane: Lane, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cut where messages that may have been sent before meet others."""
    if start < lane.redelivered_below:
        yield start, min(end, lane.redelivered_below), True
        start = lane.redelivered_below
    while start < min(end, lane.cursor):
        fresh = lane.untouched.within(start, min(end, lane.cursor))
        low, high = fresh[0] if fresh else (min(end, lane.cursor), 0)
        if start < low:
            yield start, low, True
            start = low
        else:
            yield low, high, False
            start = high
    if start < end:
        yield start, end, False


def _piece(stored: StoredBatch, start: int, end: int) -> Piece:
    """Messages start <= sequence < end of a batch, which nobody holds."""
    first = start - stored.sequence
    return Piece(first, first + end - start, stored.origin, first)


def _affordable(origin: Origin, first: int, count: int, size: int) -> int:
    """How many of the messages fit into `size` bytes; at least one, or a large message would wait for ever."""
    sums = accumulate(origin.lengths[first : first + count])
    return max(1, sum(1 for so_far in sums if so_far <= size))


def append_span(spans: list[Span], span: Span) -> None:
    """Add a span behind the others; it grows the last one where they touch."""
    lane, start, end = span
    if spans and spans[-1][0] == lane and spans[-1][2] == start:
        spans[-1] = (lane, spans[-1][1], end)
    else:
        spans.append(span)

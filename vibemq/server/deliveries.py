"""Subscriptions: credit, acks, failures, leases."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from vibemq import events as e
from vibemq.declaration import Backoff, Mode, QueueSettings
from vibemq.errors import InvalidRequest, LeaseLost, UnknownSubscription, VibeMQError
from vibemq.events import DeadReason, ReleaseReason, Span
from vibemq.projections.group import Group
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.dead_lettering import DeadLettering, Pieces
from vibemq.server.dispatch import Consumers, Dispatcher, append_span
from vibemq.server.effects import Answer, Drained, Ended, LeasesLost, Load, Refusal, Runs, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.key_order import KeyOrder
from vibemq.server.limits import DURATION_MS_MAX, Limits
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.rates import Bucket
from vibemq.server.removal import Removal
from vibemq.server.subscription import COUNT_MAX, Piece, Subscription

LOST_RUNS_MAX = 1024
"""Runs in one LeasesLost: what the protocol allows."""
MADE_READY_MAX = 512
"""Retry delays that end at once; each takes about 5 us. After a time without a broker there may be any number."""


class Deliveries:
    """All subscriptions of the broker. Methods that take a client's `request` answer it through effects."""

    def __init__(
        self, journal: Journal, cache: BatchCache, dispatcher: Dispatcher, limits: Limits, defaults: QueueDefaults
    ) -> None:
        """Continue with the journal's state, in which nobody is subscribed."""
        self._journal = journal
        self._state = journal.state
        self._cache = cache
        self._limits = limits
        self._subscriptions: dict[int, Subscription] = {}
        self._consumers: dict[int, dict[int, Consumers]] = {}  # queue -> group -> its consumers
        self._changed: dict[int, None] = {}  # queues to look at, in order
        self._pulling: dict[int, Subscription] = {}
        self._leases: list[tuple[int, int]] = []  # heap of (due us, subscription)
        self._waiting: list[tuple[int, int, int]] = []  # heap of (due us, queue, group)
        self._again: list[tuple[int, int]] = []  # heap of (due us, queue to look at again)
        self._again_us: dict[int, int] = {}  # queue -> its earliest entry there
        self._dispatcher = dispatcher
        self._dead_lettering = DeadLettering(journal, defaults, self._changed)
        self._removal = Removal(journal, dispatcher, self._dead_lettering, self._removed)
        for queue in self._state.queues.values():
            self.came_back(queue)

    def came_back(self, queue: Queue) -> None:
        """A queue is there that was not watched: do what its messages wait for."""
        self._changed[queue.id] = None
        for group in queue.groups.values():
            for not_before_us, *_ in group.waiting[:1]:
                heappush(self._waiting, (not_before_us, queue.id, group.id))

    # --- coming and going

    def subscribe(self, queue: Queue, group: Group, connection: int, *, exclusive: bool = False) -> Subscription:
        """Add a consumer, without credit."""
        number = self._state.topology.next_subscription
        offset = self._journal.record(e.Subscribed(number, queue.id, group.id, connection))
        subscription = Subscription(number, queue.id, group.id, connection, offset + 1)
        subscription.unacked_max = self._limits.unacked_per_subscription
        subscription.keeps = queue.settings.mode is not Mode.FAN_OUT_NO_ACK
        subscription.exclusive = exclusive
        subscription.lease_ms = queue.settings.lease_ms
        self._subscriptions[number] = subscription
        consumers = self._consumers.setdefault(queue.id, {}).get(group.id)
        if consumers is None:
            consumers = self._consumers[queue.id][group.id] = Consumers()
            if queue.settings.order_by_key:
                consumers.key_order = KeyOrder(group)
        consumers.subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription, *, lost: bool) -> None:
        """Remove a consumer. What it holds is ready again; if it was `lost`, what its client handed on has failed."""
        queue = self._state.queues[subscription.queue]
        if lost and subscription.handed:
            handed = subscription.close(0, subscription.handed)
            self._fail(queue, subscription, handed, ReleaseReason.CONSUMER_LOST, error="the consumer was lost")
        rest = subscription.close_all()
        reason = ReleaseReason.CONSUMER_LOST if lost else ReleaseReason.UNSUBSCRIBED
        self._release(queue, subscription, rest, reason)
        self._journal.record(e.Unsubscribed(subscription.id, queue.id, subscription.group))
        self._forget(subscription)
        self._changed[queue.id] = None

    def end(self, queue: Queue, group: int) -> list[Subscription]:
        """End all subscriptions of a group; what they hold goes back. Those that ended, for `tell_ended`."""
        consumers = self._consumers.get(queue.id, {}).get(group)
        ended = list(consumers.subscriptions) if consumers is not None else []
        for subscription in ended:
            self.unsubscribe(subscription, lost=False)
        self._dispatcher.loading.pop((queue.id, group), None)
        self._removal.forget(queue.id, group)
        return ended

    def tell_ended(self, ended: Iterable[Subscription], error: VibeMQError) -> None:
        """Tell the clients of these subscriptions why they ended, once that is durable."""
        after = self._journal.next_offset
        self._journal.effects += [Ended(after, one.connection, one.id, error) for one in ended]

    def queue_gone(self, queue: Queue) -> None:
        """Let go of a queue's messages; nobody is subscribed to it any more."""
        self._cache.discard_queue(queue.id)
        for place in [place for place in self._dispatcher.loading if place[0] == queue.id]:
            del self._dispatcher.loading[place]

    def purged(self, queue: Queue) -> None:
        """Messages of a queue were thrown away: let go of them, and of what was known of their keys."""
        self._cache.discard_queue(queue.id)
        for group, consumers in self._consumers.get(queue.id, {}).items():
            if consumers.key_order is not None:
                self._order_anew(queue.groups[group], consumers)

    def _order_anew(self, group: Group, consumers: Consumers) -> None:
        consumers.key_order = KeyOrder(group)
        for subscription in consumers.subscriptions:
            for piece in subscription.held():
                consumers.key_order.is_held(piece.span[1], piece.keys)

    def sought(self, queue: Queue, group: Group) -> None:
        """A group begins anew from its cursor: what its consumers hold is theirs no more."""
        consumers = self._consumers.get(queue.id, {}).get(group.id)
        self._dispatcher.loading.pop((queue.id, group.id), None)
        self._changed[queue.id] = None
        for subscription in consumers.subscriptions if consumers is not None else ():
            self._tell_lost(subscription, subscription.close_all())
        if consumers is not None and consumers.key_order is not None:
            consumers.key_order = KeyOrder(group)

    def changed_settings(self, queue: Queue) -> None:
        """A queue has other settings: look at everything that depends on them."""
        self._changed[queue.id] = None
        for consumers in self._consumers.get(queue.id, {}).values():
            consumers.deliver_rate = None

    def _forget(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription.id]
        self._pulling.pop(subscription.id, None)
        groups = self._consumers[subscription.queue]
        consumers = groups[subscription.group]
        consumers.remove(subscription)
        if not consumers.subscriptions:
            del groups[subscription.group]
            if not groups:
                del self._consumers[subscription.queue]

    def find(self, connection: int, number: int) -> Subscription | None:
        """The subscription, if it is this connection's."""
        found = self._subscriptions.get(number)
        return found if found is not None and found.connection == connection else None

    def consumers(self, queue: int, group: int | None = None) -> int:
        """How many consumers a queue has, or one of its groups."""
        groups = self._consumers.get(queue, {})
        if group is None:
            return sum(len(one.subscriptions) for one in groups.values())
        return len(groups[group].subscriptions) if group in groups else 0

    def has_exclusive(self, queue: int, group: int) -> bool:
        """Whether a consumer has the group for itself."""
        consumers = self._consumers.get(queue, {}).get(group)
        return consumers is not None and any(one.exclusive for one in consumers.subscriptions)

    # --- handing out

    def credit(self, connection: int, number: int, messages: int, size: int, handed: int, wait_ms: int) -> None:
        """Let a subscription be sent more. A grant for one that has ended just crossed the news of it on the way.

        Raises:
            InvalidRequest: `handed` above what was delivered.
        """
        subscription = self.find(connection, number)
        if subscription is None:
            return
        if handed > subscription.next_delivery:
            raise InvalidRequest(
                f"handed is {handed}, but only {subscription.next_delivery - 1} messages were delivered"
            )
        subscription.handed = max(subscription.handed, handed)
        limits = self._limits
        subscription.credit_messages = min(subscription.credit_messages + messages, COUNT_MAX)
        subscription.credit_bytes = min(subscription.credit_bytes + size, limits.credit_bytes_per_subscription)
        if wait_ms >= 0:
            subscription.drain_until_us = self._journal.now_us + wait_ms * 1000
            self._pulling[number] = subscription
        self._changed[subscription.queue] = None

    @property
    def has_more(self) -> bool:
        """Whether the next turn has something to hand out."""
        return bool(self._changed)

    def block(self, subscription: Subscription, *, blocked: bool) -> None:
        """The client of a subscription stopped reading what it is sent, or reads again."""
        subscription.blocked = blocked
        self._changed[subscription.queue] = None

    def changed(self, queue: int) -> None:
        """A queue may have something to hand out."""
        self._changed[queue] = None

    def dispatch(self) -> None:
        """Hand out what can be handed out: once a turn of the loop, so that a turn's deliveries are one event each."""
        self._dispatcher.sent.clear()
        if self._changed:
            changed = list(self._changed)
            self._changed.clear()
            for number in changed:
                queue = self._state.queues.get(number)
                if queue is not None and not queue.deleted_until_us:
                    self._look_at(queue)
        if self._pulling:
            self._end_pulls()

    def _look_at(self, queue: Queue) -> None:
        """Remove what is too old, hand out what is ready, and then remove what there is no room for."""
        consumers = self._consumers.get(queue.id, {})
        for group in list(queue.groups.values()):
            takers = consumers.get(group.id)
            if takers is not None and takers.key_order is not None:
                takers.key_order.was_cut_short = False  # only a look in this turn is one that goes on in the next
            if (queue.id, group.id) in self._dispatcher.loading or not group.ready(queue.next):
                continue
            is_timed = queue.timed or queue.settings.ttl_ms
            if is_timed and (due_us := self._removal.expire(queue, group)):
                self._look_again(queue.id, due_us)
            offset = self._journal.next_offset
            if takers is not None:
                self._hand_out(queue, group, takers)
                if self._dispatcher.too_old:
                    self._removal.remove_old(queue, group, self._dispatcher.too_old)
            if self._removal.may_trim(queue) and self._removal.trim(queue, group):
                self._changed[queue.id] = None
            if is_timed and self._journal.next_offset > offset:  # what is first now has another time
                self._changed[queue.id] = None

    def _hand_out(self, queue: Queue, group: Group, consumers: Consumers) -> None:
        now_us = self._journal.now_us
        if queue.settings.deliver_rate and consumers.deliver_rate is None:
            consumers.deliver_rate = Bucket(queue.settings.deliver_rate, now_us)
        for subscription in self._dispatcher.dispatch(queue, group, consumers):
            if subscription.keeps:
                self._watch_lease(subscription, subscription.lease_until_us(queue.settings.lease_ms, now_us))
            if self._dispatcher.is_cut_short(subscription):
                self._changed[queue.id] = None
                if subscription.id in self._pulling:  # it goes on for one more turn
                    subscription.drain_until_us = now_us
            elif subscription.id in self._pulling:
                self._drain(subscription)
        if consumers.deliver_rate is not None and group.ready(queue.next):
            due_us = consumers.deliver_rate.due_us(now_us)
            if due_us > now_us:  # else it is not the rate that they wait for
                self._look_again(queue.id, due_us)
        if consumers.is_looking:
            self._changed[queue.id] = None

    def _removed(self, queue: Queue, group: Group, pieces: Iterable[Piece]) -> None:
        """These were ready, and are gone."""
        consumers = self._consumers.get(queue.id, {}).get(group.id)
        if consumers is not None and consumers.key_order is not None:
            for piece in pieces:
                consumers.key_order.removed(piece.span[1], piece.keys)

    def _look_again(self, queue: int, due_us: int) -> None:
        """Look at a queue at that time, unless that is done earlier anyway."""
        if due_us <= self._journal.now_us:
            self._changed[queue] = None
        elif due_us < self._again_us.get(queue, due_us + 1):
            self._again_us[queue] = due_us
            heappush(self._again, (due_us, queue))

    def loaded(self, load: Load, batches: Sequence[StoredBatch]) -> None:
        """What a Load asked for is here."""
        # The first is what was missed. It is added last, so that a small cache lets go of the others before it: else
        # the same load would be asked for again for ever.
        for stored in reversed(batches):
            self._cache.add(stored)
        for place in [place for place, wanted in self._dispatcher.loading.items() if wanted == load]:
            del self._dispatcher.loading[place]
        self._changed[load.queue] = None

    def _end_pulls(self) -> None:
        for subscription in list(self._pulling.values()):
            until = subscription.drain_until_us
            if (
                until is not None
                and until <= self._journal.now_us
                and (subscription.queue, subscription.group) not in self._dispatcher.loading
                and not self._dispatcher.is_cut_short(subscription)
                and not self._is_looking(subscription)
            ):
                self._drain(subscription)

    def _is_looking(self, subscription: Subscription) -> bool:
        """Whether there are keys that were not looked at yet, and will be in the next turn."""
        return self._consumers[subscription.queue][subscription.group].is_looking

    def _drain(self, subscription: Subscription) -> None:
        del self._pulling[subscription.id]
        subscription.drain_until_us = None
        subscription.credit_messages = subscription.credit_bytes = 0
        self._journal.effects.append(Drained(subscription.after, subscription.connection, subscription.id))

    def _watch_lease(self, subscription: Subscription, due_us: int) -> None:
        """Look at the subscription's leases at that time, unless that is done earlier anyway."""
        if subscription.lease_check_us is None or due_us < subscription.lease_check_us:
            subscription.lease_check_us = due_us
            heappush(self._leases, (due_us, subscription.id))

    # --- ends of deliveries

    def ack(self, connection: int, number: int, deliveries: Runs, request: int) -> None:
        """Settle deliveries. With a request, answer it: LeaseLost where some were no longer this consumer's."""
        subscription = self.find(connection, number)
        if subscription is None:
            self._answer_late(connection, request)
            return
        if not subscription.keeps:
            self._answer(connection, request, 0, 0)
            return
        acked = self.settle(subscription, deliveries)
        if acked.spans:
            self._journal.record(acked)
        asked = sum(end - start for start, end in deliveries)
        self._answer(connection, request, asked, sum(end - start for _, start, end in acked.spans))

    def settle(self, subscription: Subscription, deliveries: Runs) -> e.Acked:
        """Let go of those deliveries that are still the consumer's: what is to be recorded of them."""
        if subscription.is_full:
            self._changed[subscription.queue] = None
        spans: list[Span] = []
        size = 0
        for start, end in deliveries:
            for piece in subscription.close(start, end):
                append_span(spans, piece.span)
                size += piece.bytes
                self._settled(subscription, piece)
        return e.Acked(subscription.queue, subscription.group, subscription.id, tuple(spans), size)

    def nack(
        self,
        connection: int,
        number: int,
        deliveries: Runs,
        request: int,
        *,
        delay_ms: int | None,
        reason: str,
        reject: bool,
    ) -> None:
        """Count a failed attempt for deliveries, or dead-letter them at once when they are rejected."""
        subscription = self.find(connection, number)
        if subscription is None:
            self._answer_late(connection, request)
            return
        if not subscription.keeps:
            self._answer(connection, request, 0, 0)
            return
        queue = self._state.queues[subscription.queue]
        if subscription.is_full:
            self._changed[subscription.queue] = None
        pieces = [piece for start, end in deliveries for piece in subscription.close(start, end)]
        self._fail(queue, subscription, pieces, ReleaseReason.NACKED, delay_ms=delay_ms, error=reason, reject=reject)
        asked = sum(end - start for start, end in deliveries)
        self._answer(connection, request, asked, sum(piece.end - piece.start for piece in pieces))

    def extend(self, connection: int, number: int, deliveries: Runs, lease_ms: int, request: int) -> None:
        """Let a consumer keep deliveries for longer.

        Raises:
            InvalidRequest: a lease above the limit.
        """
        if lease_ms > self._limits.lease_ms:
            raise InvalidRequest(f"a lease of {lease_ms} ms is above the limit of {self._limits.lease_ms}")
        subscription = self.find(connection, number)
        if subscription is None:
            self._answer_late(connection, request)
            return
        if not subscription.keeps:
            self._answer(connection, request, 0, 0)
            return
        queue = self._state.queues[subscription.queue]
        now_us = self._journal.now_us
        until = now_us + lease_ms * 1000 if lease_ms else subscription.lease_until_us(queue.settings.lease_ms, now_us)
        pieces = subscription.extend(deliveries, until)
        if pieces:
            spans: list[Span] = []
            for piece in pieces:
                append_span(spans, piece.span)
            self._journal.record(e.LeaseExtended(queue.id, subscription.group, number, tuple(spans), until))
            self._watch_lease(subscription, until)
        asked = sum(end - start for start, end in deliveries)
        self._answer(connection, request, asked, sum(piece.end - piece.start for piece in pieces))

    def _answer(self, connection: int, request: int, asked: int, done: int) -> None:
        if not request:
            return
        after = self._journal.next_offset
        if asked == done:
            self._journal.effects.append(Answer(after, connection, request, None))
        else:
            error = LeaseLost(
                f"{asked - done} of {asked} messages were no longer yours: "
                f"their leases had ended, or they were settled before"
            )
            self._journal.effects.append(Refusal(after, connection, request, error))

    def _answer_late(self, connection: int, request: int) -> None:
        if request:
            error = LeaseLost("the subscription of these messages has ended: they were given back to the queue")
            self._journal.effects.append(Refusal(0, connection, request, error))

    def _settled(self, subscription: Subscription, piece: Piece) -> None:
        """A consumer is done with these, in one way or another."""
        if piece.origin.keys is not None and (keys := self._key_order(subscription)) is not None:
            _, start, end = piece.span
            if keys.settled(start, end):
                self._changed[subscription.queue] = None
        origin = piece.origin
        origin.settled += piece.end - piece.start
        if origin.settled >= origin.count * len(self._state.queues[subscription.queue].groups):
            self._cache.discard(subscription.queue, origin)

    def _key_order(self, subscription: Subscription) -> KeyOrder | None:
        return self._consumers[subscription.queue][subscription.group].key_order

    def _release(
        self,
        queue: Queue,
        subscription: Subscription,
        pieces: Iterable[Piece],
        reason: ReleaseReason,
        *,
        counted: bool = False,
        not_before_us: int = 0,
        error: str = "",
    ) -> None:
        given_back = Pieces()
        for piece in pieces:
            given_back.add(piece)
        if not given_back.spans:
            return
        number, group = subscription.id, subscription.group
        spans, size = tuple(given_back.spans), given_back.bytes
        self._journal.record(e.Released(queue.id, group, number, spans, size, reason, counted, not_before_us, error))
        if not_before_us:
            heappush(self._waiting, (not_before_us, queue.id, group))
        elif (keys := self._key_order(subscription)) is not None:
            for _, start, end in spans:
                keys.ready_again(start, end)
        self._changed[queue.id] = None

    def _fail(
        self,
        queue: Queue,
        subscription: Subscription,
        pieces: Iterable[Piece],
        reason: ReleaseReason,
        *,
        delay_ms: int | None = None,
        error: str = "",
        reject: bool = False,
    ) -> None:
        """Count a failed attempt for each message: it is ready again, perhaps later, or it is dead."""
        again: dict[int, list[Piece]] = {}
        dead: dict[tuple[DeadReason, int, int, bool], Pieces] = {}
        most = queue.settings.max_attempts
        grows = delay_ms is None and queue.settings.retry_backoff is Backoff.EXPONENTIAL
        for piece in pieces:
            for part, failed, counting in self._by_attempts(queue, subscription, piece):
                if not reject and (not most or counting + 1 < most):
                    again.setdefault(counting + 1 if grows else 0, []).append(part)
                    continue
                why = DeadReason.REJECTED if reject else DeadReason.MAX_ATTEMPTS
                dead.setdefault((why, failed + 1, part.origin.lane, part.origin.dead > 0), Pieces()).add(part)
                self._settled(subscription, part)
        for attempt, parts in again.items():
            not_before_us = self._retry_us(queue.settings, attempt, delay_ms)
            self._release(queue, subscription, parts, reason, counted=True, not_before_us=not_before_us, error=error)
        group, number = subscription.group, subscription.id
        for (why, attempts, _, was_dead), lost in dead.items():
            self._dead_lettering.send(queue, group, number, lost, why, attempts, error, again=was_dead)

    def _retry_us(self, settings: QueueSettings, attempt: int, delay_ms: int | None) -> int:
        """When messages that failed for the `attempt`th time may be tried again; 0: at once."""
        if delay_ms is None:
            delay_ms = settings.retry_delay_ms
            if attempt > 1:
                delay_ms = min(delay_ms << min(attempt - 1, 40), max(settings.retry_delay_max_ms, delay_ms))
            if settings.retry_jitter_percent:
                delay_ms -= delay_ms * settings.retry_jitter_percent * self._chance() // 100_000
        return self._journal.now_us + min(delay_ms, DURATION_MS_MAX) * 1000 if delay_ms else 0

    def _chance(self) -> int:
        """A number from 0 to 999 that looks random and is the same for the same log."""
        return (self._journal.next_offset * 0x9E3779B97F4A7C15 >> 32) % 1000  # Knuth's multiplicative hash

    def _by_attempts(self, queue: Queue, subscription: Subscription, piece: Piece) -> Iterator[tuple[Piece, int, int]]:
        """Parts of a piece, with their failed attempts and those of them that count."""
        number, start, end = piece.span
        lane = queue.groups[subscription.group].lanes[number]
        for low, high, failed, counting in lane.attempts_of_this_life(start, end):
            skip = low - start
            part = Piece(piece.start + skip, piece.start + high - start, piece.origin, piece.first + skip)
            yield part, failed, counting

    # --- time

    def tick(self) -> None:
        """Do what is due: leases that ended, retry delays that are over, pulls that waited long enough."""
        now_us = self._journal.now_us
        while self._leases and self._leases[0][0] <= now_us:
            due_us, number = heappop(self._leases)
            subscription = self._subscriptions.get(number)
            # Another time: a lease that was cut short has its own entry, and this one is of no more use.
            if subscription is not None and subscription.lease_check_us == due_us:
                self._expire(subscription)
        due: dict[tuple[int, int], None] = {}
        while self._waiting and self._waiting[0][0] <= now_us:
            due[heappop(self._waiting)[1:]] = None
        for place in due:
            self._make_ready(*place)
        while self._again and self._again[0][0] <= now_us:
            due_us, number = heappop(self._again)
            self._changed[number] = None
            if self._again_us.get(number) == due_us:
                del self._again_us[number]
        self.dispatch()

    def _expire(self, subscription: Subscription) -> None:
        lost = subscription.expire(self._journal.now_us)
        subscription.lease_check_us = None
        if lost:
            queue = self._state.queues[subscription.queue]
            self._changed[queue.id] = None  # there is room again, though all of them should be dead
            self._fail(queue, subscription, lost, ReleaseReason.LEASE_EXPIRED, error="the lease ended")
            self._tell_lost(subscription, lost)
        if (due_us := subscription.next_lease_us()) is not None:
            self._watch_lease(subscription, due_us)

    def _tell_lost(self, subscription: Subscription, lost: Sequence[Piece]) -> None:
        """A client is to know that these are no longer its."""
        runs = tuple((piece.start, piece.end) for piece in lost)
        # Not before the deliveries themselves, which may still wait for a sync.
        after, connection = subscription.after, subscription.connection
        self._journal.effects += [
            LeasesLost(after, connection, subscription.id, runs[at : at + LOST_RUNS_MAX])
            for at in range(0, len(runs), LOST_RUNS_MAX)
        ]

    def _make_ready(self, number: int, group_number: int) -> None:
        queue = self._state.queues.get(number)
        group = queue.groups.get(group_number) if queue is not None else None
        if queue is None or group is None or queue.deleted_until_us:
            return
        due = []
        for not_before_us, lane, start, end in islice(group.waiting, MADE_READY_MAX):
            if not_before_us > self._journal.now_us:
                break
            due.append((lane, start, end))
        if due:
            self._journal.record(e.MadeReady(number, group_number, tuple(due)))
            self._changed[number] = None
            consumers = self._consumers.get(number, {}).get(group_number)
            if consumers is not None and consumers.key_order is not None:
                for _, start, end in due:
                    consumers.key_order.ready_again(start, end)
        for not_before_us, *_ in group.waiting[:1]:
            heappush(self._waiting, (not_before_us, number, group_number))

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        times = [heap[0][0] for heap in (self._leases, self._waiting, self._again) if heap]
        times += [one.drain_until_us for one in self._pulling.values() if one.drain_until_us is not None]
        return min(times, default=None)

    def require(self, connection: int, number: int) -> Subscription:
        """The subscription of this connection.

        Raises:
            UnknownSubscription: there is none of that number.
        """
        found = self.find(connection, number)
        if found is None:
            raise UnknownSubscription(f"subscription {number} is not, or no longer, one of this connection's")
        return found

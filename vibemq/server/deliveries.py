"""Subscriptions: credit, acks, failures, leases, dead letters."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush

from vibemq import events as e
from vibemq.errors import InvalidRequest, LeaseLost, UnknownQueue, UnknownSubscription
from vibemq.events import DEFAULT_GROUP, DeadReason, QueueSettings, ReleaseReason, Span
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.dispatch import Consumers, Dispatcher, append_span
from vibemq.server.effects import Answer, Drained, Ended, LeasesLost, Refusal, Runs, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.subscription import COUNT_MAX, Piece, Subscription

DEAD_LETTER_SUFFIX = ".dlq"
"""Behind a queue's name: its dead-letter queue, unless it has another."""

LOST_RUNS_MAX = 1024
"""Runs in one LeasesLost: what the protocol allows."""


class _Failure:
    """How a row of deliveries ends that were not acked: collected by outcome, so that each outcome is one event."""

    __slots__ = ("bytes", "refs", "spans")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.refs: list[tuple[int, int, int]] = []
        self.bytes = 0

    def add(self, piece: Piece) -> None:
        append_span(self.spans, piece.span)
        self.refs.append(piece.ref)
        self.bytes += piece.bytes


class Deliveries:
    """All subscriptions of the broker. Methods that take a client's `request` answer it through effects."""

    def __init__(self, journal: Journal, cache: BatchCache, limits: Limits) -> None:
        """Continue with the journal's state, in which nobody is subscribed."""
        self._journal = journal
        self._state = journal.state
        self._cache = cache
        self._limits = limits
        self._dispatcher = Dispatcher(journal, cache)
        self._subscriptions: dict[int, Subscription] = {}
        self._consumers: dict[int, Consumers] = {}
        self._changed: dict[int, None] = {}  # queues to look at, in order
        self._pulling: dict[int, Subscription] = {}
        self._leases: list[tuple[int, int]] = []  # heap of (due us, subscription)
        self._waiting: list[tuple[int, int]] = []  # heap of (due us, queue)
        for queue in self._state.queues.values():
            for not_before_us, *_ in queue.groups[DEFAULT_GROUP].waiting[:1]:
                heappush(self._waiting, (not_before_us, queue.id))

    # --- coming and going

    def subscribe(self, queue: Queue, connection: int) -> Subscription:
        """Add a consumer, without credit."""
        number = self._state.topology.next_subscription
        offset = self._journal.record(e.Subscribed(number, queue.id, DEFAULT_GROUP, connection))
        subscription = Subscription(number, queue.id, DEFAULT_GROUP, connection, offset + 1)
        subscription.unacked_max = self._limits.unacked_per_subscription
        self._subscriptions[number] = subscription
        self._consumers.setdefault(queue.id, Consumers()).subscriptions.append(subscription)
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

    def queue_deleted(self, queue: Queue) -> None:
        """End all subscriptions of a queue that is gone, and let go of its messages."""
        error = UnknownQueue(f"queue {queue.name!r} was deleted")
        after = self._journal.next_offset  # until that is durable, a crash brings the queue back
        for subscription in list(self._consumers.get(queue.id, Consumers()).subscriptions):
            self._journal.effects.append(Ended(after, subscription.connection, subscription.id, error))
            self._forget(subscription)
        self._cache.discard_queue(queue.id)
        self._dispatcher.loading.discard(queue.id)
        self._consumers.pop(queue.id, None)

    def _forget(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription.id]
        self._pulling.pop(subscription.id, None)
        consumers = self._consumers[subscription.queue]
        consumers.remove(subscription)
        if not consumers.subscriptions:
            del self._consumers[subscription.queue]

    def find(self, connection: int, number: int) -> Subscription | None:
        """The subscription, if it is this connection's."""
        found = self._subscriptions.get(number)
        return found if found is not None and found.connection == connection else None

    def consumers(self, queue: int) -> int:
        """How many consumers a queue has."""
        found = self._consumers.get(queue)
        return len(found.subscriptions) if found is not None else 0

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
            changed, self._changed = self._changed, {}
            for number in changed:
                queue, consumers = self._state.queues.get(number), self._consumers.get(number)
                if queue is None or consumers is None or not queue.ready:
                    continue
                lease_until_us = self._journal.now_us + queue.settings.lease_ms * 1000
                for subscription in self._dispatcher.dispatch(queue, consumers):
                    self._watch_lease(subscription, lease_until_us)
                    if self._dispatcher.is_cut_short(subscription):
                        self._changed[number] = None
                        if subscription.id in self._pulling:  # it goes on for one more turn
                            subscription.drain_until_us = self._journal.now_us
                    elif subscription.id in self._pulling:
                        self._drain(subscription)
        if self._pulling:
            self._end_pulls()

    def loaded(self, queue: int, batches: Sequence[StoredBatch]) -> None:
        """What a Load asked for is here."""
        # The first is what was missed. It is added last, so that a small cache lets go of the others before it: else
        # the same load would be asked for again for ever.
        for stored in reversed(batches):
            self._cache.add(stored)
        self._dispatcher.loading.discard(queue)
        self._changed[queue] = None

    def _end_pulls(self) -> None:
        for subscription in list(self._pulling.values()):
            until = subscription.drain_until_us
            if (
                until is not None
                and until <= self._journal.now_us
                and subscription.queue not in self._dispatcher.loading
                and not self._dispatcher.is_cut_short(subscription)
            ):
                self._drain(subscription)

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
        if subscription.is_full:
            self._changed[subscription.queue] = None
        spans: list[Span] = []
        size = asked = done = 0
        for start, end in deliveries:
            asked += end - start
            for piece in subscription.close(start, end):
                append_span(spans, piece.span)
                size += piece.bytes
                done += piece.end - piece.start
                self._settled(subscription.queue, piece)
        if spans:
            self._journal.record(e.Acked(subscription.queue, subscription.group, number, tuple(spans), size))
        self._answer(connection, request, asked, done)

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
        queue = self._state.queues[subscription.queue]
        until = self._journal.now_us + (lease_ms or queue.settings.lease_ms) * 1000
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

    def _settled(self, queue: int, piece: Piece) -> None:
        origin = piece.origin
        origin.settled += piece.end - piece.start
        if origin.settled >= origin.count:
            self._cache.discard(queue, origin)

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
        given_back = _Failure()
        for piece in pieces:
            given_back.add(piece)
        if not given_back.spans:
            return
        self._journal.record(
            e.Released(
                queue.id,
                subscription.group,
                subscription.id,
                tuple(given_back.spans),
                given_back.bytes,
                reason,
                counted,
                not_before_us,
                error,
            )
        )
        if not_before_us:
            heappush(self._waiting, (not_before_us, queue.id))
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
        again: list[Piece] = []
        dead: dict[tuple[DeadReason, int], _Failure] = {}
        most = queue.settings.max_attempts
        for piece in pieces:
            for part, failed in self._by_attempts(queue, subscription, piece):
                if not reject and (not most or failed + 1 < most):
                    again.append(part)
                    continue
                why = DeadReason.REJECTED if reject else DeadReason.MAX_ATTEMPTS
                dead.setdefault((why, failed + 1), _Failure()).add(part)
                self._settled(queue.id, part)
        delay_ms = queue.settings.retry_delay_ms if delay_ms is None else delay_ms
        not_before_us = self._journal.now_us + delay_ms * 1000 if delay_ms else 0
        self._release(queue, subscription, again, reason, counted=True, not_before_us=not_before_us, error=error)
        for (why, attempts), failure in dead.items():
            self._dead_letter(queue, subscription, failure, why, attempts, error)

    def _by_attempts(self, queue: Queue, subscription: Subscription, piece: Piece) -> Iterator[tuple[Piece, int]]:
        number, start, end = piece.span
        lane = queue.groups[subscription.group].lanes[number]
        for low, high, failed in lane.attempts(start, end):
            skip = low - start
            yield Piece(piece.start + skip, piece.start + high - start, piece.origin, piece.first + skip), failed

    def _dead_letter(
        self, queue: Queue, subscription: Subscription, failure: _Failure, why: DeadReason, attempts: int, error: str
    ) -> None:
        target = self._dead_letter_queue(queue)
        self._journal.record(
            e.DeadLettered(
                queue.id,
                subscription.group,
                subscription.id,
                tuple(failure.spans),
                failure.bytes,
                why,
                attempts,
                error,
                target.id if target else 0,
                target.next[e.DEFAULT_LANE] if target else 0,
                tuple(failure.refs),
            )
        )
        if target is not None:
            self._changed[target.id] = None

    def _dead_letter_queue(self, queue: Queue) -> Queue | None:
        """Where the dead letters of a queue go. From a dead-letter queue only where it was told to: else nowhere."""
        name = queue.settings.dead_letter_queue or queue.name + DEAD_LETTER_SUFFIX
        is_last = queue.id in self._state.dead and not queue.settings.dead_letter_queue
        if is_last or name == queue.name:
            return None
        if self._state.queue_named(name) is None:
            settings = QueueSettings(max_attempts=0)
            self._journal.record(e.QueueDeclared(self._state.topology.next_queue, name, settings, 0))
        return self._state.queue_named(name)

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
        due: dict[int, None] = {}
        while self._waiting and self._waiting[0][0] <= now_us:
            due[heappop(self._waiting)[1]] = None
        for number in due:
            self._make_ready(number)
        self.dispatch()

    def _expire(self, subscription: Subscription) -> None:
        lost = subscription.expire(self._journal.now_us)
        subscription.lease_check_us = None
        if lost:
            queue = self._state.queues[subscription.queue]
            self._changed[queue.id] = None  # there is room again, though all of them should be dead
            self._fail(queue, subscription, lost, ReleaseReason.LEASE_EXPIRED, error="the lease ended")
            runs = tuple((piece.start, piece.end) for piece in lost)
            # Not before the deliveries themselves, which may still wait for a sync.
            after, connection = subscription.after, subscription.connection
            self._journal.effects += [
                LeasesLost(after, connection, subscription.id, runs[at : at + LOST_RUNS_MAX])
                for at in range(0, len(runs), LOST_RUNS_MAX)
            ]
        if (due_us := subscription.next_lease_us()) is not None:
            self._watch_lease(subscription, due_us)

    def _make_ready(self, number: int) -> None:
        queue = self._state.queues.get(number)
        if queue is None:
            return
        waiting = queue.groups[DEFAULT_GROUP].waiting
        due = []
        for not_before_us, lane, start, end in waiting:
            if not_before_us > self._journal.now_us:
                break
            due.append((lane, start, end))
        if due:
            self._journal.record(e.MadeReady(number, DEFAULT_GROUP, tuple(due)))
            self._changed[number] = None
            for not_before_us, *_ in queue.groups[DEFAULT_GROUP].waiting[:1]:
                heappush(self._waiting, (not_before_us, number))

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        times = [heap[0][0] for heap in (self._leases, self._waiting) if heap]
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

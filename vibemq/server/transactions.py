"""Transactions: publishes and acks that happen together, as one record, or not at all.

A client collects what it wants to do and sends it with its commit, so the broker holds nothing of an open transaction:
only that an attempt at one is there, by its epoch, and until when. An attempt is in memory only. It ends with the
commit or rollback, with its connection, and when its producer comes by another connection: then what is still on its
way on the old one, which the client believes to be lost, is refused. So a client that has heard TransactionEnded knows
that nothing was done, and that nothing will be.

A commit is decided as a whole before anything is recorded. First is whether it has been carried out already: then it is
answered with what came of it, read back from its record, whatever else might be said. Queues that it creates on the
way are created by records of their own, when nothing can refuse it any more: a crash between may leave them empty.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vibemq import events as e
from vibemq.declaration import Overflow
from vibemq.errors import (
    InvalidRequest,
    LimitExceeded,
    QueueBlocked,
    QueueFull,
    SequenceTooOld,
    TransactionConflict,
    TransactionEnded,
    TransactionTimeout,
)
from vibemq.events import DEFAULT_GROUP
from vibemq.projections.intervals import IntervalSet
from vibemq.server.admission import TAKES_ALL, Admission
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Answer, Committed, Recall, Refusal, Runs, Stored
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.publishers import Publisher, Publishers, Wanted
from vibemq.server.publishing import Decided, Publish, Publishing, Together
from vibemq.server.queues import Queues
from vibemq.server.subscription import Subscription

_EPOCH_BITS = 32


class Commit(NamedTuple):
    """What a connection wants to happen together, as attempt `epoch`.

    In `publishes` request, sequence and oldest are 0. `acks` are deliveries of subscriptions.
    """

    connection: int
    request: int
    epoch: int
    sequence: int
    publishes: Sequence[Publish]
    acks: Sequence[tuple[int, Runs]]
    oldest: int = 0


class _Attempt:
    """An attempt that is open until a time. `blocked` is the sequence that a queue refused it with for now, or 0."""

    __slots__ = ("blocked", "until_us")

    def __init__(self, until_us: int) -> None:
        self.until_us = until_us
        self.blocked = 0


class _Connection:
    """The attempts of a connection, by epoch. `after`: its number is durable with the records below."""

    __slots__ = ("after", "attempts", "next_epoch", "producer")

    def __init__(self, number: int, producer: int, after: int) -> None:
        self.producer = producer
        self.after = after
        self.next_epoch = (number << _EPOCH_BITS) + 1
        self.attempts: dict[int, _Attempt] = {}


class Transactions:
    """Every attempt at a transaction. Methods that take a client's `request` answer it through effects."""

    def __init__(
        self,
        journal: Journal,
        limits: Limits,
        deliveries: Deliveries,
        queues: Queues,
        admission: Admission,
        publishers: Publishers,
        publishing: Publishing,
    ) -> None:
        """Begin with nobody."""
        self._journal = journal
        self._state = journal.state
        self._limits = limits
        self._deliveries = deliveries
        self._queues = queues
        self._admission = admission
        self._publishers = publishers
        self._publishing = publishing
        self._connections: dict[int, _Connection] = {}
        self._of_producer: dict[int, set[int]] = {}

    # --- coming and going

    def connect(self, connection: int, producer: int) -> None:
        """A client is there, which has just been recorded: the attempts of its producer on other connections end."""
        self._connections[connection] = _Connection(connection, producer, self._journal.next_offset)
        if producer:
            others = self._of_producer.setdefault(producer, set())
            for other in others:
                self._connections[other].attempts.clear()
            others.add(connection)

    def disconnect(self, connection: int) -> None:
        """A client is gone."""
        producer = self._connections.pop(connection).producer
        if producer:
            self._of_producer[producer].discard(connection)
            if not self._of_producer[producer]:
                del self._of_producer[producer]

    def begin(self, connection: int, request: int, timeout_ms: int) -> None:
        """Open an attempt, for `timeout_ms`, or with 0 for as long as there may be one.

        Raises:
            LimitExceeded: the connection has too many open.
        """
        own, limits, now_us = self._connections[connection], self._limits, self._journal.now_us
        if len(own.attempts) >= limits.transactions_per_connection:
            own.attempts = {epoch: one for epoch, one in own.attempts.items() if one.until_us > now_us}
        if len(own.attempts) >= limits.transactions_per_connection:
            raise LimitExceeded(
                f"this connection has {len(own.attempts)} transactions open, which is the limit: end some before"
            )
        timeout_ms = min(timeout_ms or limits.transaction_ms, limits.transaction_ms)
        epoch = own.next_epoch
        own.next_epoch += 1
        own.attempts[epoch] = _Attempt(now_us + timeout_ms * 1000)
        # An epoch of a connection that a crash makes unheard of could be given once more.
        result = {"epoch": epoch, "timeout_ms": timeout_ms}
        self._journal.effects.append(Answer(own.after, connection, request, result))

    def rollback(self, connection: int, request: int, epoch: int) -> None:
        """End an attempt. One that has ended already needs no more.

        Raises:
            TransactionEnded: it was never one of this connection's.
        """
        own = self._connections[connection]
        if own.attempts.pop(epoch, None) is None and not connection << _EPOCH_BITS < epoch < own.next_epoch:
            raise TransactionEnded(f"transaction {epoch} is not one of this connection's")
        self._journal.effects.append(Answer(0, connection, request, None))

    def end(self, connection: int, epoch: int) -> None:
        """An attempt is over, as its commit was refused before anybody looked at it."""
        self._connections[connection].attempts.pop(epoch, None)

    # --- committing

    def commit(self, commit: Commit) -> None:
        """Carry out all of a transaction, and end the attempt.

        Raises:
            QueueBlocked: nothing was done for now; the attempt stays open, and Unblocked follows.
            TransactionEnded, TransactionTimeout: the attempt was over.
            TransactionConflict: a delivery is not, or no longer, this consumer's; nothing was done.
            RequestError: one of the batches cannot be stored; nothing was done.
        """
        publisher = self._publishers[commit.connection]
        own = self._connections[commit.connection]
        attempt = own.attempts.pop(commit.epoch, None)
        if self._is_done(publisher, commit, attempt):
            return
        if attempt is None:
            raise TransactionEnded(
                f"transaction {commit.epoch} is not open on this connection: nothing of it was done, begin anew"
            )
        if attempt.until_us <= self._journal.now_us:
            raise TransactionTimeout(f"transaction {commit.epoch} was open for too long: nothing of it was done")
        try:
            self._carry_out(publisher, commit)
        except QueueBlocked:
            attempt.blocked = commit.sequence
            own.attempts[commit.epoch] = attempt
            raise

    def has_stored(self, connection: int, sequence: int) -> bool:
        """Whether a transaction with this sequence of its producer is known to be done: it needs no room."""
        return self._publishing.has_stored(connection, sequence)

    def _is_done(self, publisher: Publisher, commit: Commit, attempt: _Attempt | None) -> bool:
        """Whether this was carried out before. Then its client is told so.

        Raises:
            InvalidRequest: its sequence was used for something else.
            SequenceTooOld: nobody knows any more.
        """
        sequence = commit.sequence
        known = self._state.producers.known.get(publisher.producer) if sequence and publisher.producer else None
        if known is None or sequence > known.highest:
            return False
        found = known.find(sequence)
        if found is not None and found.messages:
            raise InvalidRequest(f"sequence {sequence} was used before, for a batch of {found.messages} messages")
        if found is not None:
            to_topic = tuple(publish.to_topic for publish in commit.publishes)
            self._journal.loads.append(Recall(found.offset, commit.connection, commit.request, to_topic))
            return True
        is_refused = attempt is not None and attempt.blocked == sequence and sequence >= known.oldest
        if sequence < known.remembered_from and not is_refused:
            raise SequenceTooOld(f"sequence {sequence} is below {known.remembered_from}, the oldest that is remembered")
        return False

    def recalled(self, recall: Recall, event: e.Event) -> None:
        """Take the event that a Recall asked for."""
        after, connection, request = recall.offset + 1, recall.connection, recall.request
        assert isinstance(event, e.TransactionCommitted)
        if (len(event.published), len(event.routed)) != (recall.to_topic.count(False), recall.to_topic.count(True)):
            error = InvalidRequest(
                f"sequence {event.producer_sequence} was used before, for a transaction with other publishes"
            )
            self._journal.effects.append(Refusal(after, connection, request, error, of_batch=True))
            return
        stored = _stored(event, recall.to_topic)
        self._journal.effects.append(
            Committed(after, connection, request, recall.offset, duplicate=True, stored=stored)
        )

    def _carry_out(self, publisher: Publisher, commit: Commit) -> None:
        acks = self._held(commit)
        decided, together = self._decide(publisher, commit, acks)
        # From here on nothing can refuse it.
        made = [self._publishing.create(one) for one in decided]
        in_order = sorted(made, key=_to_topic)
        parts = [self._publishing.event(one, 0, together) for one in in_order]
        event = e.TransactionCommitted(
            tuple(part for part in parts if isinstance(part, e.Published)),
            tuple(part for part in parts if isinstance(part, e.Routed)),
            tuple(self._deliveries.settle(subscription, runs) for subscription, runs in acks if subscription.keeps),
            tuple(sum(map(len, one.payload)) for one in in_order),
            commit.epoch,
            publisher.producer if commit.sequence else 0,
            commit.sequence,
            commit.connection,
            commit.oldest,
        )
        offset = self._journal.record(event, [data for one in in_order for data in one.payload])
        index = 0
        for one, part in zip(in_order, parts, strict=True):
            self._publishing.stored(one, part, offset, index)
            index += part.count
        if publisher.bucket is not None:
            publisher.bucket.take(sum(one.batch.count for one in commit.publishes), self._journal.now_us)
        stored = _stored(event, [one.to_topic for one in commit.publishes])
        self._journal.effects.append(
            Committed(offset + 1, commit.connection, commit.request, offset, duplicate=False, stored=stored)
        )

    def _held(self, commit: Commit) -> list[tuple[Subscription, Runs]]:
        """What is to be acked, once for each subscription: runs that the consumer holds whole.

        Raises:
            TransactionConflict: it does not.
        """
        wanted: dict[int, Runs] = {}
        for number, asked in commit.acks:
            wanted[number] = (*wanted.get(number, ()), *asked)
        found = []
        for number, asked in wanted.items():
            subscription = self._deliveries.find(commit.connection, number)
            if subscription is None:
                raise TransactionConflict(
                    f"subscription {number} has ended, and its messages were given back to the queue: nothing was done"
                )
            runs = asked if len(asked) == 1 else _merged(asked)
            if subscription.keeps and not all(subscription.open.covers(start, end) for start, end in runs):
                raise TransactionConflict(
                    f"messages of subscription {number} are no longer yours: their leases had ended, or they were "
                    f"settled before; nothing was done"
                )
            found.append((subscription, runs))
        return found

    # --- what is published

    def _decide(
        self, publisher: Publisher, commit: Commit, acks: Sequence[tuple[Subscription, Runs]]
    ) -> tuple[list[Decided], Together]:
        together = Together()
        freed = self._freed(acks, commit.publishes)
        for name, (count, size) in freed.items():
            together.add_room(name, -count, -size)
        decided: list[Decided] = []
        for publish in commit.publishes:
            self._admission.check_limits(publish.batch)
        self._check_arrivals(commit.publishes)
        for publish in commit.publishes:
            try:
                self._check_turn(publisher, commit, publish)
                self._publishers.check_rate(publisher)
                one = self._publishing.decide(publish, together)
            except QueueBlocked as blocked:
                wanted = self._wanted(commit, publish, freed)
                place = (publish.name, publish.to_topic)
                self._publishers.block(publisher, place, wanted, commit.oldest, blocked.text)
            together.add(one)
            decided.append(one)
        if together.created:
            self._queues.check_count(len(together.created))
        return decided, together

    def _check_arrivals(self, publishes: Sequence[Publish]) -> None:
        """Whether so many queues may be looked at for one transaction, also those that would take nothing of it.

        Raises:
            LimitExceeded: they are too many.
        """
        arrivals, limit = 0, self._limits.transaction_arrivals
        queues: dict[str, int] = {}  # by topic
        for publish in publishes:
            if publish.to_topic and publish.name not in queues:
                queues[publish.name] = len(self._admission.concerned(publish.name, to_topic=True))
            arrivals += max(1, queues[publish.name]) if publish.to_topic else 1
            if arrivals > limit:
                raise LimitExceeded(
                    f"a transaction may put its batches into queues {limit} times (transaction_arrivals), topics "
                    f"counting for each of their queues: use several"
                )

    def _check_turn(self, publisher: Publisher, commit: Commit, publish: Publish) -> None:
        """Whether it is the turn of a commit, where batches of its connection had to wait before.

        Raises:
            QueueBlocked: it is not.
        """
        place = publisher.places.get((publish.name, publish.to_topic)) if publisher.places else None
        if place is not None:
            place.give_up(commit.oldest)
            if place.waits or (commit.sequence and place.expected):
                raise QueueBlocked("what was refused before comes first")
            if not place.expected:
                del publisher.places[publish.name, publish.to_topic]

    def _freed(
        self, acks: Sequence[tuple[Subscription, Runs]], publishes: Sequence[Publish]
    ) -> dict[str, tuple[int, int]]:
        """Messages and bytes that the acks take out of queues, by name: they make room for what is published.

        Where several groups are, one of them alone makes none; and a queue that makes room by itself needs none.
        """
        freed: dict[str, tuple[int, int]] = {}
        names = {publish.name for publish in publishes}
        to_topic = any(publish.to_topic for publish in publishes)
        for subscription, runs in acks:
            queue = self._state.queues[subscription.queue]
            makes_room = subscription.keeps and subscription.group == DEFAULT_GROUP
            if makes_room and (to_topic or queue.name in names) and queue.settings.overflow not in TAKES_ALL:
                name = queue.name
                count, size = freed.get(name, (0, 0))
                pieces = [piece for start, end in runs for piece in subscription.pieces(start, end)]
                count += sum(piece.end - piece.start for piece in pieces)
                freed[name] = count, size + sum(piece.bytes for piece in pieces)
        return freed

    def _wanted(self, commit: Commit, blocked: Publish, freed: dict[str, tuple[int, int]]) -> Wanted:
        """What the queues that a commit waits for must have room for: all that it brings to one of them, not a part.

        Raises:
            QueueFull: it brings more than one of them can ever hold.
        """
        queues = self._admission.concerned(blocked.name, to_topic=blocked.to_topic)
        room = {queue.name: (0, 0) for queue in queues}
        for (name, to_topic), (count, size) in self._publishing.wanted(commit.publishes).items():
            for queue in self._admission.concerned(name, to_topic=to_topic):
                if (known := room.get(queue.name)) is not None:
                    room[queue.name] = known[0] + count, known[1] + size
        most = most_bytes = 0
        for queue in queues:
            (count, size), (gone, gone_bytes) = room[queue.name], freed.get(queue.name, (0, 0))
            settings = queue.settings
            if settings.overflow is Overflow.BLOCK and (count > settings.max_length or size > settings.max_bytes):
                raise QueueFull(
                    f"the transaction brings {count} messages of {size} bytes to queue {queue.name!r}, which can hold "
                    f"{settings.max_length} of {settings.max_bytes} bytes"
                )
            most, most_bytes = max(most, count - gone), max(most_bytes, size - gone_bytes)
        return Wanted(0, most, most_bytes)


def _merged(runs: Runs) -> Runs:
    """The same numbers in runs that do not meet."""
    numbers = IntervalSet()
    for start, end in runs:
        numbers.add(start, end)
    return tuple(numbers)


def _to_topic(decided: Decided) -> bool:
    return decided.publish.to_topic


def _stored(event: e.TransactionCommitted, to_topic: Sequence[bool]) -> tuple[Stored, ...]:
    """What became of the batches of a transaction, in the order in which its client has them."""
    queued, routed = _in_record(event.published, 0), _in_record(event.routed, sum(p.count for p in event.published))
    return tuple(next(routed if one else queued) for one in to_topic)


def _in_record(parts: Sequence[e.Published | e.Routed], index: int) -> Iterator[Stored]:
    for part in parts:
        if isinstance(part, e.Published):
            yield Stored(index, part.sequence, part.dropped, part.due_us, part.duplicates)
        else:
            yield Stored(index, 0, 0 if part.targets else part.count, part.due_us)
        index += part.count

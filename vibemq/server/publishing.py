"""Publishes: what is stored of a batch, and in which queues.

A batch is first decided about, and then recorded: `decide` says what is taken of it and by which queues, or refuses it
and has changed nothing. A queue that is to be created on the way is decided on as what it would be, and comes to be
with `create`. So any number of batches can be decided on before something of them is recorded.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import Mode
from vibemq.errors import InvalidRequest, QueueBlocked, SequenceTooOld, Unroutable
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE
from vibemq.projections.producers import Accepted
from vibemq.projections.queue import Queue
from vibemq.server.admission import Admission
from vibemq.server.batch_cache import BatchCache
from vibemq.server.deduplication import OWN, Deduplication, Fresh, Sifted, check_queue
from vibemq.server.delayed import Delayed
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Confirmed, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.publishers import Place, Publisher, Publishers, Wanted
from vibemq.server.queues import Queues


class Publish(NamedTuple):
    """One batch from a connection, as the protocol has it. With `to_topic` the `name` is a topic, else a queue's."""

    connection: int
    request: int
    name: str
    sequence: int
    batch: Batch
    oldest: int = 0
    to_topic: bool = False
    delay_ms: int = 0
    due_us: int = 0
    dedup: bytes = b""

    @property
    def is_delayed(self) -> bool:
        """Whether its messages are to wait."""
        return self.delay_ms > 0 or self.due_us > 0


class Decided(NamedTuple):
    """What is stored of a batch: `batch`, or None for nothing, in these queues, with `dedup` as its ids.

    `duplicates` are not, in the offsets of which OWN stands for the record that is to be; of the others the last
    `dropped` are not. `unroutable`: it is a dead letter, as nobody wanted it.
    """

    publish: Publish
    queues: Sequence[Queue]
    batch: Batch | None
    dropped: int
    unroutable: bool
    dedup: bytes = b""
    duplicates: tuple[e.Duplicate, ...] = ()

    @property
    def payload(self) -> tuple[memoryview, ...]:
        """What goes into the log."""
        return (self.batch.data,) if self.batch is not None else ()

    def lane(self, queue: Queue) -> int:
        """The lane of a queue that it goes to. Dead letters are all in one lane."""
        is_priority = queue.settings.mode is Mode.PRIORITY and not self.unroutable
        return self.publish.batch.priority if is_priority else DEFAULT_LANE


class Together:
    """What is decided already, and is to be recorded by the same record as a batch, before it.

    `room` has messages and bytes that queues get by that, by name; below 0 where acks make room first. `created` are
    queues that are created before. `arrived` has how many messages lanes get, as (queue, lane). `fresh` has the ids.
    """

    __slots__ = ("arrived", "created", "fresh", "room")

    def __init__(self) -> None:
        """Begin with nothing decided."""
        self.room: dict[str, tuple[int, int]] = {}
        self.created: dict[str, Queue] = {}
        self.fresh = Fresh()
        self.arrived: defaultdict[tuple[int, int], int] = defaultdict(int)

    def add_room(self, name: str, count: int, size: int) -> None:
        """A queue gets so many messages more, or fewer."""
        before = self.room.get(name, (0, 0))
        self.room[name] = before[0] + count, before[1] + size

    def add(self, decided: Decided) -> None:
        """One batch more."""
        if not decided.publish.to_topic:  # those to topics come after all others in the record
            count = decided.batch.count if decided.batch is not None else 0
            self.fresh.add(decided.publish.name, count, decided.dedup)
        for queue in decided.queues:
            if decided.batch is not None:
                self.add_room(queue.name, decided.batch.count, decided.batch.record_bytes)
            if not queue.id:
                self.created[queue.name] = queue


class Publishing:
    """Stores what is published."""

    def __init__(
        self,
        journal: Journal,
        cache: BatchCache,
        deliveries: Deliveries,
        queues: Queues,
        admission: Admission,
        publishers: Publishers,
        deduplication: Deduplication,
        delayed: Delayed,
    ) -> None:
        """Publish to what is in the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._cache = cache
        self._deliveries = deliveries
        self._queues = queues
        self._admission = admission
        self._publishers = publishers
        self._deduplication = deduplication
        self._delayed = delayed

    # --- one batch

    def publish(self, publish: Publish) -> None:
        """Store a batch, unless its producer has had it stored before.

        Raises:
            RequestError: a limit, a full queue, no queue, or a sequence that is not remembered any more.
        """
        publisher = self._publishers[publish.connection]
        place = publisher.places.get((publish.name, publish.to_topic)) if publisher.places else None
        if publish.sequence and publisher.producer and self._confirm_duplicate(publisher, publish, place):
            return
        self._admission.check_limits(publish.batch)
        try:
            if place is not None:
                _check_turn(publisher, publish, place)
            if publisher.bucket is not None:
                self._publishers.check_rate(publisher)
            queue = self._takes_whole(publish)
            decided = self.decide(publish) if queue is None else None
        except QueueBlocked as blocked:
            ((count, size),) = self.wanted([publish]).values()
            wanted = Wanted(publish.sequence, count, size)
            self._publishers.block(publisher, (publish.name, publish.to_topic), wanted, publish.oldest, blocked.text)
        if queue is not None:
            self._store_whole(publisher, publish, queue)
        else:
            assert decided is not None
            self._store(publisher, publish, self.create(decided))
        if publisher.bucket is not None:
            publisher.bucket.take(publish.batch.count, self._journal.now_us)

    def _takes_whole(self, publish: Publish) -> Queue | None:
        """The queue that takes a batch as it is, at once: this is how nearly all are. Else `decide` has to look."""
        if publish.to_topic or publish.dedup or publish.delay_ms or publish.due_us:
            return None
        queue = self._state.queue_named(publish.name)
        if queue is not None and self._admission.admit(queue, publish.batch) < publish.batch.count:
            return None
        return queue

    def _store_whole(self, publisher: Publisher, publish: Publish, queue: Queue) -> None:
        """The same as `_store` for such a batch, in about three quarters of the time."""
        connection, request, _, sequence, batch, oldest, *_ = publish
        lane = batch.priority if queue.settings.mode is Mode.PRIORITY else DEFAULT_LANE
        first, count = queue.next.get(lane, 1), batch.count
        producer, timed = publisher.producer if sequence else 0, batch.ttl_ms > 0
        event = e.Published(
            queue.id, lane, first, count, batch.record_bytes, producer, sequence, connection, oldest, 0, timed
        )
        offset = self._journal.record(event, (batch.data,))
        self._keep(queue, lane, first, offset, 0, batch, dead=0)
        if queue.settings.publish_rate:
            self._admission.bucket(queue).take(count, self._journal.now_us)
        self._journal.effects.append(Confirmed(offset + 1, connection, request, offset, first, False))

    def _store(self, publisher: Publisher, publish: Publish, decided: Decided) -> None:
        event = self.event(decided, publisher.producer)
        offset = self._journal.record(event, decided.payload)
        self.stored(decided, event, offset, 0)
        self._journal.effects.append(
            Confirmed(
                offset + 1,
                publish.connection,
                publish.request,
                offset,
                event.sequence,
                False,
                decided.dropped,
                event.due_us,
                event.duplicates if isinstance(event, e.Published) else (),
            )
        )

    def wanted(self, publishes: Sequence[Publish]) -> dict[tuple[str, bool], tuple[int, int]]:
        """The messages and bytes for which batches want room, by name, and whether that is a topic's.

        What is there already, by its dedup id, wants none.
        """
        found: dict[tuple[str, bool], tuple[int, int]] = {}
        fresh = Fresh()
        for publish in publishes:
            batch: Batch | None = publish.batch
            queue = self._state.queue_named(publish.name)
            if publish.dedup and queue is not None and not publish.to_topic:
                sifted = self._deduplication.sift(queue, publish.batch, publish.dedup, fresh)
                if sifted is not None:
                    batch = sifted.batch
                    fresh.add(publish.name, len(sifted.ids), sifted.dedup(len(sifted.ids)))
            place = publish.name, publish.to_topic
            count, size = found.get(place, (0, 0))
            found[place] = (count + batch.count, size + batch.record_bytes) if batch is not None else (count, size)
        return found

    def has_stored(self, connection: int, sequence: int) -> bool:
        """Whether a batch with this sequence of the connection's producer is known to be stored: it needs no room."""
        known = self._state.producers.known.get(self._publishers[connection].producer)
        return known is not None and known.find(sequence) is not None

    def _confirm_duplicate(self, publisher: Publisher, publish: Publish, place: Place | None) -> bool:
        known = self._state.producers.known.get(publisher.producer)
        sequence, batch = publish.sequence, publish.batch
        if known is None or sequence > known.highest:
            return False
        found = known.find(sequence)
        if found is not None and found.messages == batch.count:
            if place is not None:  # it was refused here, and came by another connection
                place.forget(sequence)
            self._confirm_again(publish, found)
            return True
        if found is not None:
            what = f"a batch of {found.messages} messages" if found.messages else "a transaction"
            raise InvalidRequest(f"sequence {sequence} was used before, for {what}")
        is_refused = place is not None and place.expects(sequence) and sequence >= known.oldest
        if sequence < known.remembered_from and not is_refused:
            raise SequenceTooOld(f"sequence {sequence} is below {known.remembered_from}, the oldest that is remembered")
        return False

    def _confirm_again(self, publish: Publish, stored: Accepted) -> None:
        _, _, offset, sequence, dropped, due_us, duplicates = stored
        connection, request = publish.connection, publish.request
        self._journal.effects.append(
            Confirmed(offset + 1, connection, request, offset, sequence, True, dropped, due_us, duplicates)
        )

    # --- deciding

    def decide(self, publish: Publish, together: Together | None = None) -> Decided:
        """What is stored of a batch, and where. Nothing is changed.

        Raises:
            QueueFull, Unroutable, UnknownQueue, LimitExceeded: nothing.
            QueueBlocked: nothing for now.
        """
        if publish.to_topic:
            check_queue(publish.dedup)
            return self._routed(publish, together)
        return self._queued(publish, together)

    def _admit(self, queue: Queue, batch: Batch, together: Together | None, *, delayed: bool) -> int:
        before = together.room.get(queue.name, (0, 0)) if together is not None else (0, 0)
        return self._admission.admit(queue, batch, before, delayed=delayed)

    def _queued(self, publish: Publish, together: Together | None) -> Decided:
        name, batch = publish.name, publish.batch
        queue = self._state.queue_named(name)
        if queue is None and together is not None:
            queue = together.created.get(name)
        if queue is None:
            queue = self._queues.to_create(name)
        if publish.dedup:
            fresh = together.fresh if together is not None else None
            sifted = self._deduplication.sift(queue, batch, publish.dedup, fresh)
            if sifted is not None:
                return self._without_duplicates(publish, queue, sifted, together)
        count = self._admit(queue, batch, together, delayed=publish.is_delayed)
        taken = batch if count == batch.count else _front(batch, count)
        return Decided(publish, (queue,), taken, batch.count - count, unroutable=False)

    def _without_duplicates(self, publish: Publish, queue: Queue, sifted: Sifted, together: Together | None) -> Decided:
        """What is stored of a batch of which some messages may be there already: these need no room."""
        left = sifted.batch
        count = self._admit(queue, left, together, delayed=publish.is_delayed) if left is not None else 0
        taken = left if left is None or count == left.count else _front(left, count)
        dedup = sifted.dedup(count)
        self._deduplication.check_room(dedup, together.fresh if together is not None else None)
        return Decided(publish, (queue,), taken, sifted.dropped(count), False, dedup, sifted.duplicates(count))

    def _routed(self, publish: Publish, together: Together | None) -> Decided:
        """A batch is stored once, for every queue that is bound to its topic."""
        batch, admission = publish.batch, self._admission
        queues, unroutable = list(admission.bound_to(publish.name)), False
        if not queues:
            if not admission.unroutable:
                raise Unroutable(f"no queue is bound to topic {publish.name!r}: nothing was stored")
            queues, unroutable = [self._for_unroutable(admission.unroutable, together)], True
        # Room in all of them, or none gets it; but a queue that drops the newest goes without.
        delayed = publish.is_delayed
        takers = [one for one in queues if self._admit(one, batch, together, delayed=delayed) == batch.count]
        return Decided(publish, takers, batch, 0 if takers else batch.count, unroutable)

    def _for_unroutable(self, name: str, together: Together | None) -> Queue:
        queue = self._state.queue_named(name)
        if queue is None and together is not None:
            queue = together.created.get(name)
        return queue or self._queues.to_create_for_dead_letters(name)

    # --- recording

    def create(self, decided: Decided) -> Decided:
        """Create the queues that are not there yet: none, or the only one."""
        if len(decided.queues) != 1 or decided.queues[0].id:
            return decided
        (queue,) = decided.queues
        connection = 0 if decided.unroutable else decided.publish.connection
        made = self._state.queue_named(queue.name) or self._queues.create(queue, connection)
        return decided._replace(queues=(made,))

    def event(self, decided: Decided, producer: int, together: Together | None = None) -> e.Published | e.Routed:
        """What is recorded of a batch, in the next record."""
        publish, batch = decided.publish, decided.batch
        due_us = 0
        if publish.is_delayed and not decided.unroutable:  # a dead letter has nothing to wait for
            due_us = self._delayed.due_us(publish.delay_ms, publish.due_us)
        targets = []
        for queue in decided.queues:
            lane = decided.lane(queue)
            sequence = queue.next.get(lane, 1) if not due_us else 0
            if together is not None and not due_us:
                sequence += together.arrived[queue.id, lane]
                together.arrived[queue.id, lane] += batch.count if batch is not None else 0
            targets.append((queue.id, lane, sequence))
        count, size, timed = (batch.count, batch.record_bytes, batch.ttl_ms > 0) if batch is not None else (0, 0, False)
        if not publish.sequence:
            producer = 0
        if publish.to_topic:
            return e.Routed(
                publish.name,
                tuple(targets),
                count,
                size,
                producer,
                publish.sequence,
                publish.connection,
                publish.oldest,
                timed,
                decided.unroutable,
                due_us,
            )
        (target,) = targets
        return e.Published(
            *target,
            count,
            size,
            producer,
            publish.sequence,
            publish.connection,
            publish.oldest,
            decided.dropped,
            timed,
            due_us,
            decided.dedup,
            self._placed(decided.duplicates) if decided.duplicates else (),
        )

    def _placed(self, duplicates: tuple[e.Duplicate, ...]) -> tuple[e.Duplicate, ...]:
        """The same, with the offset of the next record where they are in it."""
        own = self._journal.next_offset
        return tuple((at, own if offset == OWN else offset, index) for at, offset, index in duplicates)

    def stored(self, decided: Decided, event: e.Published | e.Routed | e.Fired, offset: int, index: int) -> None:
        """A batch is in record `offset`, from `index` on: keep it at hand, and count it for the rates."""
        batch, queues = decided.batch, decided.queues
        if decided.dedup:
            self._deduplication.watch(queues[0].id)
        dead = e.DeadReason.UNROUTABLE if decided.unroutable else 0
        arrivals = event.arrivals
        if batch is not None and arrivals:
            for queue, (_, lane, first, _) in zip(queues, arrivals, strict=True):
                self._keep(queue, lane, first, offset, index, batch, dead=dead)
        if not isinstance(event, e.Fired) and event.due_us:
            self._delayed.came(event.delayed(offset, index))
            for queue in queues:  # it takes of their room from now on
                self._deliveries.changed(queue.id)
        for queue in queues:
            if queue.settings.publish_rate:
                self._admission.bucket(queue).take(batch.count if batch is not None else 0, self._journal.now_us)

    def _keep(self, queue: Queue, lane: int, first: int, offset: int, index: int, batch: Batch, *, dead: int) -> None:
        """Keep a new batch in memory, if its turn is likely to come before it would have to go."""
        unacked = queue.groups[DEFAULT_GROUP].unacked_bytes if DEFAULT_GROUP in queue.groups else 0
        # A queue with a long backlog hands out old messages: its new ones would leave the cache before their turn.
        if self._cache.bytes_of(queue.id) - unacked < self._cache.bytes_max // 2:
            now_us = self._journal.now_us
            self._cache.add(StoredBatch(queue.id, lane, first, offset, index, offset, now_us, now_us, batch, dead=dead))
        self._deliveries.changed(queue.id)


def _check_turn(publisher: Publisher, publish: Publish, place: Place) -> None:
    """Whether it is the turn of a batch, at a queue or topic where its connection had to wait.

    Raises:
        QueueBlocked: it is not.
    """
    if not place.has_turn(publish.sequence, publish.oldest):
        raise QueueBlocked("what was refused before comes first")
    if not place.expected and not place.waits:
        del publisher.places[publish.name, publish.to_topic]


def _front(batch: Batch, count: int) -> Batch | None:
    """The first messages of a batch, or None for none."""
    return Batch(b"".join(batch.cut(0, count))) if count else None

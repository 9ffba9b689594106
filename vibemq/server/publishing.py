"""Publishes: what is stored, in which queues, and what happens when one of them has no room or takes no more for now.

A publisher that has to wait is refused with QueueBlocked, and its connection is remembered, with what it wanted room
for: its later batches for that queue are refused as well, so that they stay in order, until it is told Unblocked. So
nothing of what waits is in the broker's memory, and other queues go on.

When it is told, more of its batches may be on their way, sent before it heard that one was refused. They must not
overtake those that it sends again. So the sequences that were refused are remembered, too, and of these only the lowest
is taken next.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import Mode, Overflow
from vibemq.errors import (
    InvalidRequest,
    LimitExceeded,
    QueueBlocked,
    QueueFull,
    SequenceTooOld,
    Unroutable,
)
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE
from vibemq.projections.producers import Accepted
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Confirmed, StoredBatch, Unblocked
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.queues import Queues
from vibemq.server.rates import Bucket

_TAKES_ALL = frozenset({Overflow.DROP_OLDEST, Overflow.DEAD_LETTER})
"""A queue with one of these makes room afterwards."""
EXPECTED_MAX = 2_000
"""So many refused batches are remembered at one place: twice what a client may have on its way."""
PLACES_MAX = 1_000
"""A connection waits at so many queues and topics; what would have to wait at others is refused."""
LOOKS_MAX = 500
"""Places at which somebody waits that are looked at in one turn; each takes about 3 us."""
HYSTERESIS_MAX = 100
"""A full queue must have so much room, or a tenth of its length, before publishers hear of it: not for each message."""


class Publish(NamedTuple):
    """One batch from a connection, as the protocol has it. With `to_topic` the `name` is a topic, else a queue's."""

    connection: int
    request: int
    name: str
    sequence: int
    batch: Batch
    oldest: int = 0
    to_topic: bool = False


class _Refused(NamedTuple):
    """A batch that was refused: the producer's sequence (0: none), and what it wants room for."""

    sequence: int
    messages: int
    bytes: int


class _Place:
    """A queue or topic at which a connection waits: until it is told Unblocked, and then until all has come again.

    `expected` are the refused batches with a sequence, in order. While the connection `waits`, it is owed Unblocked.
    """

    __slots__ = ("_last", "expected", "waits")

    def __init__(self) -> None:
        """Begin with nothing refused."""
        self.expected: list[_Refused] = []
        self.waits = False
        self._last = _Refused(0, 0, 0)

    @property
    def first(self) -> _Refused:
        """What room is to be made for."""
        return self.expected[0] if self.expected else self._last

    def refuse(self, batch: _Refused) -> None:
        """Remember a batch, which comes again."""
        self.waits, self._last = True, batch
        if batch.sequence and not self.expects(batch.sequence):
            self.expected.insert(bisect_left(self.expected, batch), batch)
            del self.expected[EXPECTED_MAX:]

    def expects(self, sequence: int) -> bool:
        """Whether this sequence was refused, and so is not stored."""
        at = bisect_left(self.expected, (sequence,))
        return at < len(self.expected) and self.expected[at].sequence == sequence

    def give_up(self, oldest: int) -> None:
        """The client has given up what is below `oldest`."""
        del self.expected[: bisect_left(self.expected, (oldest,))]

    def forget(self, sequence: int) -> None:
        """This batch was refused for good."""
        self.expected = [one for one in self.expected if one.sequence != sequence]

    def has_turn(self, sequence: int, oldest: int) -> bool:
        """Whether a batch may be looked at now. What is below `oldest` was given up by the client."""
        self.give_up(oldest)
        if self.expected and sequence == self.expected[0].sequence:
            del self.expected[0]
            return True
        return not self.waits and not (sequence and self.expected)


class Publisher:
    """What publishing knows of a connection: its producer's number, its rate, and what it waits for."""

    __slots__ = ("bucket", "places", "producer")

    def __init__(self, producer: int, bucket: Bucket | None) -> None:
        """Begin with nothing blocked."""
        self.producer = producer
        self.bucket = bucket
        self.places: dict[tuple[str, bool], _Place] = {}
        """By name, and whether it is that of a topic."""


class Publishing:
    """Stores what is published."""

    def __init__(
        self,
        journal: Journal,
        cache: BatchCache,
        deliveries: Deliveries,
        limits: Limits,
        queues: Queues,
        unroutable: str,
    ) -> None:
        """`unroutable` is the name of the dead-letter queue for what nobody wants; empty: there is none."""
        self._journal = journal
        self._state = journal.state
        self._cache = cache
        self._deliveries = deliveries
        self._limits = limits
        self._queues = queues
        self._unroutable = unroutable
        self._publishers: dict[int, Publisher] = {}
        self._blocked: dict[int, None] = {}  # connections that wait for something, in order
        self._looks_left = 0
        self._looked_offset = 0
        self._buckets: dict[int, Bucket] = {}  # by queue

    # --- coming and going

    def connect(self, connection: int, producer: int) -> None:
        """A client is there."""
        rate = self._limits.publish_rate_per_connection
        self._publishers[connection] = Publisher(producer, Bucket(rate, self._journal.now_us) if rate else None)

    def disconnect(self, connection: int) -> None:
        """A client is gone."""
        del self._publishers[connection]
        self._blocked.pop(connection, None)

    @property
    def producers(self) -> set[int]:
        """The numbers of the producers that are connected."""
        return {publisher.producer for publisher in self._publishers.values()}

    # --- publishing

    def publish(self, publish: Publish) -> None:
        """Store a batch, unless its producer has had it stored before.

        Raises:
            RequestError: a limit, a full queue, no queue, or a sequence that is not remembered any more.
        """
        publisher = self._publishers[publish.connection]
        place = publisher.places.get((publish.name, publish.to_topic)) if publisher.places else None
        if publish.sequence and publisher.producer and self._confirm_duplicate(publisher, publish, place):
            return
        self._check_limits(publish.batch)
        if place is not None:
            self._check_turn(publisher, publish, place)
        if publisher.bucket is not None:
            self._check_rate(publisher, publish, publisher.bucket, "this connection")
        if publish.to_topic:
            self._route(publisher, publish)
        else:
            self._store(publisher, publish)
        if publisher.bucket is not None:
            publisher.bucket.take(publish.batch.count, self._journal.now_us)

    def _check_turn(self, publisher: Publisher, publish: Publish, place: _Place) -> None:
        """Whether it is the turn of a batch, at a queue or topic where its connection had to wait.

        Raises:
            QueueBlocked: it is not.
        """
        if not place.has_turn(publish.sequence, publish.oldest):
            self._block(publisher, publish, "what was refused before comes first")
        if not place.expected and not place.waits:
            del publisher.places[publish.name, publish.to_topic]

    def refused(self, connection: int, name: str, sequence: int, *, to_topic: bool) -> None:
        """A batch was refused before anybody looked at it: those behind it need not wait until it comes again."""
        places = self._publishers[connection].places
        place = places.get((name, to_topic))
        if place is not None:
            place.forget(sequence)
            if not place.expected and not place.waits:
                del places[name, to_topic]

    def has_stored(self, connection: int, sequence: int) -> bool:
        """Whether a batch with this sequence of the connection's producer is known to be stored: it needs no room."""
        known = self._state.producers.known.get(self._publishers[connection].producer)
        return known is not None and known.find(sequence) is not None

    def _confirm_duplicate(self, publisher: Publisher, publish: Publish, place: _Place | None) -> bool:
        known = self._state.producers.known.get(publisher.producer)
        sequence, batch = publish.sequence, publish.batch
        if known is None or sequence > known.highest:
            return False
        found = known.find(sequence)
        if found is not None and found.messages == batch.count:
            if place is not None:  # it was refused here, and came by another connection
                place.forget(sequence)
            self._confirm(publish, found, duplicate=True)
            return True
        if found is not None:
            raise InvalidRequest(f"sequence {sequence} was used before, for a batch of {found.messages} messages")
        is_refused = place is not None and place.expects(sequence) and sequence >= known.oldest
        if sequence < known.remembered_from and not is_refused:
            raise SequenceTooOld(f"sequence {sequence} is below {known.remembered_from}, the oldest that is remembered")
        return False

    def _confirm(self, publish: Publish, stored: Accepted, *, duplicate: bool) -> None:
        _, _, offset, sequence, dropped = stored
        self._journal.effects.append(
            Confirmed(offset + 1, publish.connection, publish.request, offset, sequence, duplicate, dropped)
        )

    def _check_limits(self, batch: Batch) -> None:
        limits = self._limits
        if batch.count > limits.batch_messages:
            raise LimitExceeded(f"a batch of {batch.count} messages is above the limit of {limits.batch_messages}")
        if batch.record_bytes > limits.message_bytes and max(batch.lengths) > limits.message_bytes:
            raise LimitExceeded(f"a message of {max(batch.lengths)} bytes is above the limit of {limits.message_bytes}")

    def _store(self, publisher: Publisher, publish: Publish) -> None:
        queue = self._state.queue_named(publish.name)
        if queue is None:
            self._check_fits_empty(publish.name, publish.batch)
            queue = self._queues.named_or_new(publish.name, publish.connection)
        wanted = publish.batch
        count = self._admit(publisher, publish, queue)
        batch = wanted if count == wanted.count else _front(wanted, count)
        size = batch.record_bytes if batch is not None else 0
        lane = wanted.priority if queue.settings.mode is Mode.PRIORITY else DEFAULT_LANE
        first = queue.next.get(lane, 1)
        producer, sequence, dropped = publisher.producer, publish.sequence, wanted.count - count
        event = e.Published(
            queue.id,
            lane,
            first,
            count,
            size,
            producer if sequence else 0,
            sequence,
            publish.connection,
            publish.oldest,
            dropped,
            batch is not None and batch.ttl_ms > 0,
        )
        offset = self._journal.record(event, (batch.data,) if batch is not None else ())
        if batch is not None:
            self._keep(queue, lane, first, offset, batch)
        if queue.settings.publish_rate:
            self._bucket(queue).take(count, self._journal.now_us)
        self._journal.effects.append(
            Confirmed(offset + 1, publish.connection, publish.request, offset, first, False, dropped)
        )

    def _keep(self, queue: Queue, lane: int, first: int, offset: int, batch: Batch, *, dead: int = 0) -> None:
        """Keep a new batch in memory, if its turn is likely to come before it would have to go."""
        unacked = queue.groups[DEFAULT_GROUP].unacked_bytes if DEFAULT_GROUP in queue.groups else 0
        # A queue with a long backlog hands out old messages: its new ones would leave the cache before their turn.
        if self._cache.bytes_of(queue.id) - unacked < self._cache.bytes_max // 2:
            now_us = self._journal.now_us
            self._cache.add(StoredBatch(queue.id, lane, first, offset, 0, offset, now_us, now_us, batch, dead=dead))
        self._deliveries.changed(queue.id)

    # --- topics

    def _route(self, publisher: Publisher, publish: Publish) -> None:
        """Store a batch once, for every queue that is bound to its topic."""
        batch = publish.batch
        queues, unroutable = list(self._bound_to(publish.name)), False
        if not queues:
            if not self._unroutable:
                raise Unroutable(f"no queue is bound to topic {publish.name!r}: nothing was stored")
            queues, unroutable = [self._queues.for_dead_letters(self._unroutable)], True
        # Room in all of them, or none gets it; but a queue that drops the newest goes without.
        takers = [queue for queue in queues if self._admit(publisher, publish, queue) == batch.count]
        targets = []
        for queue in takers:
            # Dead letters are all in one lane.
            lane = batch.priority if queue.settings.mode is Mode.PRIORITY and not unroutable else DEFAULT_LANE
            targets.append((queue.id, lane, queue.next.get(lane, 1)))
        event = e.Routed(
            publish.name,
            tuple(targets),
            batch.count,
            batch.record_bytes,
            publisher.producer if publish.sequence else 0,
            publish.sequence,
            publish.connection,
            publish.oldest,
            batch.ttl_ms > 0,
            unroutable,
        )
        offset = self._journal.record(event, (batch.data,))
        for queue, (_, lane, first) in zip(takers, targets, strict=True):
            self._keep(queue, lane, first, offset, batch, dead=e.DeadReason.UNROUTABLE if unroutable else 0)
            if queue.settings.publish_rate:
                self._bucket(queue).take(batch.count, self._journal.now_us)
        dropped = 0 if takers else batch.count
        self._confirm(publish, Accepted(publish.sequence, batch.count, offset, 0, dropped), duplicate=False)

    def _bound_to(self, topic: str) -> Iterator[Queue]:
        for number in self._state.bindings.match(topic):
            queue = self._state.queues[number]
            if not queue.deleted_until_us:
                yield queue

    # --- room and rates

    def _admit(self, publisher: Publisher, publish: Publish, queue: Queue) -> int:
        """How many messages of a batch a queue takes: all of them, unless it drops the newest.

        Raises:
            QueueFull: none, as it has no room.
            QueueBlocked: none for now.
        """
        settings, batch = queue.settings, publish.batch
        if settings.publish_rate:
            self._check_rate(publisher, publish, self._bucket(queue), f"queue {queue.name!r}")
        if settings.overflow in _TAKES_ALL:
            taken = batch.count
        else:
            taken = self._fitting(queue, batch)
            if taken < batch.count and settings.overflow is not Overflow.DROP_NEWEST:
                self._refuse(publisher, publish, queue)
        return taken

    def _fitting(self, queue: Queue, batch: Batch) -> int:
        """How many messages from the front of a batch a queue has room for."""
        settings = queue.settings
        group = queue.groups.get(DEFAULT_GROUP)
        if group is not None:  # what queue.length and queue.bytes are in this case, without the way there
            room = settings.max_length - group.length(queue.next)
            room_bytes = settings.max_bytes - queue.total_bytes + queue.settled_bytes
        else:
            room, room_bytes = settings.max_length - queue.length, settings.max_bytes - queue.bytes
        if batch.count <= room and batch.record_bytes <= room_bytes:
            return batch.count
        count = size = 0
        for length in batch.lengths[: max(0, min(room, batch.count))]:
            size += length
            if size > room_bytes:
                break
            count += 1
        return count

    def _check_fits_empty(self, name: str, batch: Batch) -> None:
        """Whether a queue that is about to be created for a batch can take it: else none is created.

        Raises:
            QueueFull: it cannot.
        """
        settings = self._queues.settings_of(name)
        if settings.overflow is Overflow.REJECT or settings.overflow is Overflow.BLOCK:
            if batch.count > settings.max_length:
                raise QueueFull(f"queue {name!r} could hold {settings.max_length} messages, not {batch.count}")
            if batch.record_bytes > settings.max_bytes:
                raise QueueFull(f"queue {name!r} could hold {settings.max_bytes} bytes, not {batch.record_bytes}")

    def _refuse(self, publisher: Publisher, publish: Publish, queue: Queue) -> None:
        settings, batch = queue.settings, publish.batch
        can_fit = batch.count <= settings.max_length and batch.record_bytes <= settings.max_bytes
        if settings.overflow is Overflow.BLOCK and can_fit:
            self._block(publisher, publish, f"queue {queue.name!r} is full")
        if queue.length + batch.count > settings.max_length:
            raise QueueFull(
                f"queue {queue.name!r} holds {queue.length} messages and cannot take {batch.count} more: "
                f"its max_length is {settings.max_length}"
            )
        raise QueueFull(
            f"queue {queue.name!r} holds {queue.bytes} bytes and cannot take {batch.record_bytes} more: "
            f"its max_bytes is {settings.max_bytes}"
        )

    def _bucket(self, queue: Queue) -> Bucket:
        bucket = self._buckets.get(queue.id)
        if bucket is None:
            bucket = self._buckets[queue.id] = Bucket(queue.settings.publish_rate, self._journal.now_us)
        bucket.rate = queue.settings.publish_rate
        return bucket

    def _check_rate(self, publisher: Publisher, publish: Publish, bucket: Bucket, whose: str) -> None:
        if not bucket.available(self._journal.now_us):
            self._block(publisher, publish, f"the rate of {whose}, {bucket.rate} messages a second, is reached")

    def _block(self, publisher: Publisher, publish: Publish, why: str) -> None:
        """Remember that a connection waits, and refuse its batch."""
        place = publisher.places.get((publish.name, publish.to_topic))
        if place is None:
            self._make_place(publisher, publish.oldest)
            place = publisher.places[publish.name, publish.to_topic] = _Place()
        place.refuse(_Refused(publish.sequence, publish.batch.count, publish.batch.record_bytes))
        self._blocked[publish.connection] = None
        raise QueueBlocked(f"{why}: wait until {publish.name!r} is unblocked, then send again, in order")

    def _make_place(self, publisher: Publisher, oldest: int) -> None:
        """Let a connection wait at one more place.

        Raises:
            LimitExceeded: it waits at too many.
        """
        places = publisher.places
        if len(places) < PLACES_MAX:
            return
        for key, place in list(places.items()):
            place.give_up(oldest)
            if not place.expected and not place.waits:
                del places[key]
        if len(places) >= PLACES_MAX:
            raise LimitExceeded(f"this connection waits at {len(places)} queues and topics, which is the limit")

    @property
    def has_more(self) -> bool:
        """Whether the next turn goes on with looking at who waits."""
        return self._looks_left > 0

    def unblock(self) -> None:
        """Tell those who wait for a queue that takes some again: a part of them, if they are many, and who is next."""
        self._looks_left = min(self._looks_left, len(self._blocked))
        if not self._blocked:
            return
        # A round through all of them ends; it begins anew where something has changed that those before may wait for.
        if not self._looks_left or self._looked_offset != self._journal.next_offset:
            self._looks_left, self._looked_offset = len(self._blocked), self._journal.next_offset
        looks = 0
        while self._looks_left and looks < LOOKS_MAX:
            self._looks_left -= 1
            connection = next(iter(self._blocked))
            del self._blocked[connection]
            looks += len(self._publishers[connection].places)
            if self._waits_still(connection):
                self._blocked[connection] = None

    def _waits_still(self, connection: int) -> bool:
        """Tell a connection of the places that take some again. Whether it waits for others."""
        publisher, waits = self._publishers[connection], False
        for (name, to_topic), place in list(publisher.places.items()):
            if place.waits and self._is_free(publisher, place.first, self._concerned(name, to_topic=to_topic)):
                place.waits = False
                if not place.expected:
                    del publisher.places[name, to_topic]
                self._journal.effects.append(Unblocked(0, connection, name))
            waits = waits or place.waits
        return waits

    def _is_free(self, publisher: Publisher, wanted: _Refused, queues: Sequence[Queue]) -> bool:
        now_us = self._journal.now_us
        if publisher.bucket is not None and not publisher.bucket.available(now_us):
            return False
        return all(self._takes(queue, wanted) for queue in queues)

    def _concerned(self, name: str, *, to_topic: bool) -> Sequence[Queue]:
        if to_topic:
            bound = list(self._bound_to(name))
            if bound or not self._unroutable:
                return bound
            name = self._unroutable
        queue = self._state.queue_named(name)
        return [queue] if queue is not None else []

    def _takes(self, queue: Queue, wanted: _Refused) -> bool:
        settings = queue.settings
        if settings.publish_rate and not self._bucket(queue).available(self._journal.now_us):
            return False
        if settings.overflow is not Overflow.BLOCK:
            return True
        if wanted.messages > settings.max_length or wanted.bytes > settings.max_bytes:
            return True  # it never will: the publisher is to hear that
        room = max(wanted.messages, min(settings.max_length // 10, HYSTERESIS_MAX))
        return queue.length + room <= settings.max_length and queue.bytes + wanted.bytes <= settings.max_bytes

    def next_due_us(self) -> int | None:
        """When somebody may be told that a rate allows more."""
        if not self._buckets and not self._limits.publish_rate_per_connection:
            return None
        times = []
        now_us = self._journal.now_us
        for connection in self._blocked:
            publisher = self._publishers[connection]
            buckets = [publisher.bucket] if publisher.bucket is not None else []
            for (name, to_topic), place in publisher.places.items():
                queues = self._concerned(name, to_topic=to_topic) if place.waits else ()
                buckets += [self._bucket(queue) for queue in queues if queue.settings.publish_rate]
            times += [due_us for bucket in buckets if (due_us := bucket.due_us(now_us)) > now_us]
        return min(times, default=None)

    def queue_gone(self, queue: int) -> None:
        """A queue is not there any more."""
        self._buckets.pop(queue, None)


def _front(batch: Batch, count: int) -> Batch | None:
    """The first messages of a batch, or None for none."""
    return Batch(b"".join(batch.cut(0, count))) if count else None

"""The broker as a pure machine: a command and the time go in, records and effects come out.

Each method is one thing that a client, or the clock, can ask for. It decides on the state in the journal, changes it
by events, and leaves what must be written and sent in the journal. It does no I/O and reads no clock. A command that
cannot be done raises a RequestError before it has changed anything.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.errors import (
    DeclareConflict,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    NotSupported,
    QueueFull,
    SequenceTooOld,
    UnknownQueue,
)
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, Mode, QueueSettings
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.deliveries import DEAD_LETTER_SUFFIX, Deliveries
from vibemq.server.dispatch import alike
from vibemq.server.effects import Answer, Confirmed, Peeked, StoredBatch
from vibemq.server.journal import Journal
from vibemq.server.limits import DURATION_MS_MAX, NAME_BYTES_MAX, Limits

JSON_TURN_MESSAGES_MAX = 256
"""What a JSON subscription is sent in a turn: each message takes about 5 us to write as JSON."""


class Connection:
    """A client that has said hello: its producer's number, and its subscriptions in order."""

    __slots__ = ("codec", "number", "producer", "subscriptions")

    def __init__(self, number: int, codec: str, producer: int) -> None:
        """Begin without subscriptions."""
        self.number, self.codec, self.producer = number, codec, producer
        self.subscriptions: dict[int, None] = {}


class Broker:
    """All decisions. `journal` holds the state and what the runtime has to carry out."""

    def __init__(
        self, state: Projector, limits: Limits, queue_defaults: QueueSettings, *, auto_create: bool = True
    ) -> None:
        """Continue with a state in which nobody is connected."""
        self.journal = Journal(state)
        self.limits = limits
        self._queue_defaults = queue_defaults
        self._auto_create = auto_create
        self._state = state
        self._cache = BatchCache(limits.cache_bytes)
        self.deliveries = Deliveries(self.journal, self._cache, limits)
        self._connections: dict[int, Connection] = {}

    # --- life

    def start(self, version: str, wall_us: int) -> None:
        """Begin. After an unclean end, everything unsettled of a group with consumers is marked as perhaps sent."""
        self.journal.record(e.BrokerStarted(version, not self._state.audit.running, wall_us))

    def stop(self, reason: str) -> None:
        """End; every consumer is gone by this."""
        self._connections.clear()
        self.journal.record(e.BrokerStopped(reason))

    def connect(self, name: str, address: str, codec: str, producer: int) -> int:
        """A client said hello. Return its number."""
        number = self._state.topology.next_connection
        self.journal.record(e.ClientConnected(number, name, address, codec))
        self._connections[number] = Connection(number, codec, producer)
        return number

    def disconnect(self, connection: int, reason: str, *, lost: bool) -> None:
        """A client is gone. If it was `lost`, what its application had in hand counts as a failed attempt."""
        for number in self._connections.pop(connection).subscriptions:
            subscription = self.deliveries.find(connection, number)
            if subscription is not None:
                self.deliveries.unsubscribe(subscription, lost=lost)
        self.journal.record(e.ClientDisconnected(connection, reason))

    def block(self, connection: int, *, blocked: bool) -> None:
        """A client stopped reading, or reads again: it is sent no messages meanwhile."""
        for number in self._connections[connection].subscriptions:
            subscription = self.deliveries.find(connection, number)
            if subscription is not None:
                self.deliveries.block(subscription, blocked=blocked)

    def refused(self, address: str, reason: str, count: int) -> None:
        """Connections were refused before they said hello."""
        self.journal.record(e.ClientRefused(address, reason, count))

    def tick(self) -> None:
        """Time has passed."""
        self.deliveries.tick()
        known = self._state.producers.known
        if len(known) > self.limits.producers:
            present = {connection.producer for connection in self._connections.values()}
            excess = len(known) - self.limits.producers
            oldest = [producer for producer in known if producer not in present][: excess + self.limits.producers // 10]
            if oldest:
                self.journal.record(e.ProducersForgotten(tuple(oldest)))

    # --- publishing

    def publish(
        self, connection: int, request: int, queue_name: str, sequence: int, batch: Batch, oldest: int = 0
    ) -> None:
        """Store a batch, unless this producer has had it stored before. It has its answers for all below `oldest`.

        Raises:
            RequestError: a limit, a full queue, or a sequence that is not remembered any more.
        """
        producer = self._connections[connection].producer if sequence else 0
        if producer and self._confirm_duplicate(connection, request, producer, sequence, batch):
            return
        limits = self.limits
        if batch.count > limits.batch_messages:
            raise LimitExceeded(f"a batch of {batch.count} messages is above the limit of {limits.batch_messages}")
        if batch.record_bytes > limits.message_bytes and max(batch.lengths) > limits.message_bytes:
            raise LimitExceeded(f"a message of {max(batch.lengths)} bytes is above the limit of {limits.message_bytes}")
        queue = self._state.queue_named(queue_name)
        if queue is None:
            self._check_room(queue_name, self._queue_defaults, 0, 0, batch)
            queue = self._queue_or_new(queue_name, connection)
        else:
            self._check_room(queue_name, queue.settings, queue.length, queue.bytes, batch)
        first = queue.next[DEFAULT_LANE]
        event = e.Published(
            queue.id, DEFAULT_LANE, first, batch.count, batch.record_bytes, producer, sequence, connection, oldest
        )
        offset = self.journal.record(event, (batch.data,))
        now_us = self.journal.now_us
        # A queue with a long backlog hands out old messages: its new ones would leave the cache before their turn.
        if self._cache.bytes_of(queue.id) - queue.groups[DEFAULT_GROUP].unacked_bytes < self._cache.bytes_max // 2:
            self._cache.add(StoredBatch(queue.id, DEFAULT_LANE, first, offset, 0, offset, now_us, batch))
        self.journal.effects.append(Confirmed(offset + 1, connection, request, offset, first, duplicate=False))
        self.deliveries.changed(queue.id)

    def _check_room(self, name: str, settings: QueueSettings, length: int, size: int, batch: Batch) -> None:
        """Whether a batch fits behind what a queue holds.

        Raises:
            QueueFull: it does not.
        """
        if length + batch.count > settings.max_length:
            raise QueueFull(f"queue {name!r} holds {length} messages; its max_length is {settings.max_length}")
        if size + batch.record_bytes > settings.max_bytes:
            raise QueueFull(f"queue {name!r} holds {size} bytes; its max_bytes is {settings.max_bytes}")

    def has_stored(self, connection: int, sequence: int) -> bool:
        """Whether a batch with this sequence of the connection's producer is known to be stored: it needs no room."""
        known = self._state.producers.known.get(self._connections[connection].producer)
        return known is not None and known.find(sequence) is not None

    def _confirm_duplicate(self, connection: int, request: int, producer: int, sequence: int, batch: Batch) -> bool:
        known = self._state.producers.known.get(producer)
        if known is None or sequence > known.highest:
            return False
        found = known.find(sequence)
        if found is not None and found.messages == batch.count:
            offset = found.offset
            self.journal.effects.append(
                Confirmed(offset + 1, connection, request, offset, found.sequence, duplicate=True)
            )
            return True
        if found is not None:
            raise InvalidRequest(f"sequence {sequence} was used before, for a batch of {found.messages} messages")
        if sequence < known.remembered_from:
            raise SequenceTooOld(f"sequence {sequence} is below {known.remembered_from}, the oldest that is remembered")
        return False

    # --- queues

    def declare(self, connection: int, request: int, name: str, wanted: dict[str, Any]) -> None:
        """Create a queue; one that is there already must have these settings.

        Raises:
            RequestError: settings that make no sense, or that differ from the queue's.
        """
        queue = self._state.queue_named(name)
        if queue is None:
            settings = self._settings(wanted)
            self._check_dead_letter_queue(name, settings)
            queue = self._new_queue(name, settings, connection)
        else:
            present = msgspec.structs.asdict(queue.settings)
            settings = self._settings({**present, **wanted})
            differing = [key for key, value in msgspec.structs.asdict(settings).items() if present[key] != value]
            if differing:
                what = ", ".join(f"{key} is {present[key]!r}, not {wanted[key]!r}" for key in differing)
                raise DeclareConflict(f"queue {name!r} exists with other settings: {what}")
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, self.describe(queue)))

    def _settings(self, wanted: dict[str, Any]) -> QueueSettings:
        known = QueueSettings.__struct_fields__
        for key in wanted:
            if key not in known:
                raise InvalidRequest(f"a queue has no setting {key!r}; there are {', '.join(known)}")
        if wanted.get("mode", Mode.ROUND_ROBIN) != Mode.ROUND_ROBIN:
            raise NotSupported(f"queue mode {wanted['mode']!r} is not in this version, only {Mode.ROUND_ROBIN.value!r}")
        defaults = msgspec.structs.asdict(self._queue_defaults)
        for key, value in wanted.items():
            expected = type(defaults[key])
            if isinstance(value, bool) or not isinstance(value, expected if expected is not Mode else str):
                raise InvalidRequest(f"setting {key} must be {expected.__name__}, not {value!r}")
            if isinstance(value, int) and not 0 <= value < 1 << 62:
                raise InvalidRequest(f"setting {key} must not be {value}")
        chosen: dict[str, Any] = {**defaults, **wanted, "mode": Mode.ROUND_ROBIN}
        settings = QueueSettings(**chosen)
        if settings.retry_delay_ms > DURATION_MS_MAX:
            raise InvalidRequest(f"retry_delay_ms must be at most {DURATION_MS_MAX}, not {settings.retry_delay_ms}")
        if not 1 <= settings.lease_ms <= self.limits.lease_ms:
            raise InvalidRequest(f"lease_ms must be from 1 to {self.limits.lease_ms}, not {settings.lease_ms}")
        return settings

    def _check_dead_letter_queue(self, name: str, settings: QueueSettings) -> None:
        if settings.dead_letter_queue == name:
            raise InvalidRequest(f"queue {name!r} cannot be its own dead-letter queue")

    def _queue_or_new(self, name: str, connection: int) -> Queue:
        queue = self._state.queue_named(name)
        if queue is not None:
            return queue
        if not self._auto_create:
            raise UnknownQueue(f"there is no queue {name!r}; declare it first (auto_create is off)")
        return self._new_queue(name, self._queue_defaults, connection)

    def _new_queue(self, name: str, settings: QueueSettings, connection: int) -> Queue:
        if len(self._state.queues) >= self.limits.queues:
            raise LimitExceeded(f"there are {len(self._state.queues)} queues, which is the limit")
        if not settings.dead_letter_queue and len(name.encode()) > NAME_BYTES_MAX - len(DEAD_LETTER_SUFFIX):
            raise InvalidName(
                f"the name of a queue may have {NAME_BYTES_MAX - len(DEAD_LETTER_SUFFIX)} bytes, which leaves room for "
                f"{DEAD_LETTER_SUFFIX} behind it; a longer one needs a dead_letter_queue of its own"
            )
        number = self._state.topology.next_queue
        self.journal.record(e.QueueDeclared(number, name, settings, connection))
        return self._state.queues[number]

    def require_queue(self, name: str) -> Queue:
        """The queue of that name.

        Raises:
            UnknownQueue: there is none.
        """
        queue = self._state.queue_named(name)
        if queue is None:
            raise UnknownQueue(f"there is no queue {name!r}")
        return queue

    def describe(self, queue: Queue) -> dict[str, Any]:
        """What people want to know of a queue, as plain values."""
        settings: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(queue.settings))
        return {
            "name": queue.name,
            "mode": settings.pop("mode"),
            "ready": queue.ready,
            "unacked": queue.unacked,
            "waiting": queue.waiting,
            "messages": queue.length,
            "bytes": queue.bytes,
            "consumers": self.deliveries.consumers(queue.id),
            "next_sequence": queue.next[DEFAULT_LANE],
            "dead_letters": queue.id in self._state.dead,
            "settings": settings,
        }

    def list_queues(self, connection: int, request: int) -> None:
        """Answer with all queues, by name."""
        found = [self.describe(self._state.queues[number]) for _, number in sorted(self._state.topology.queues.items())]
        self.journal.effects.append(Answer(0, connection, request, found))

    def show_queue(self, connection: int, request: int, name: str) -> None:
        """Answer with one queue.

        Raises:
            UnknownQueue: there is none of that name.
        """
        found = self.describe(self.require_queue(name))
        self.journal.effects.append(Answer(0, connection, request, found))

    def purge(self, connection: int, request: int, name: str) -> None:
        """Throw away what is ready or waiting.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require_queue(name)
        group = queue.groups[DEFAULT_GROUP]
        count, size = queue.length - group.unacked, queue.bytes - group.unacked_bytes
        kept = tuple(
            (lane, start, end) for held in group.held.values() for lane, spans in held.items() for start, end in spans
        )
        self.journal.record(e.QueuePurged(queue.id, count, size, connection, kept))
        self._cache.discard_queue(queue.id)
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, {"count": count}))

    def delete(self, connection: int, request: int, name: str) -> None:
        """Delete a queue and everything in it.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require_queue(name)
        count = queue.length
        ended = queue.groups[DEFAULT_GROUP].held
        for owner in self._connections.values():
            for number in ended.keys() & owner.subscriptions.keys():
                del owner.subscriptions[number]
        self.journal.record(e.QueueDeleted(queue.id, count, queue.bytes, connection))
        self.deliveries.queue_deleted(queue)
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, {"count": count}))

    def peek(self, connection: int, request: int, name: str, start: int, count: int) -> None:
        """Answer with ready messages from sequence `start` on, and take none.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require_queue(name)
        lane = queue.groups[DEFAULT_GROUP].lanes[DEFAULT_LANE]
        left = min(count, self.limits.peek_messages)
        spans = []
        fresh = (max(start, lane.cursor), queue.next[DEFAULT_LANE])
        for low, high in [*lane.returned.within(start, lane.cursor), fresh]:
            end = min(high, low + left)
            if low < end:
                spans += [(DEFAULT_LANE, *part) for part in alike(lane, low, end)]
                left -= end - low
        self.journal.effects.append(Peeked(self.journal.next_offset, connection, request, queue.id, spans))

    # --- consuming

    def subscribe(self, connection: int, request: int, name: str, group: str | None, messages: int, size: int) -> None:
        """Add a consumer to a queue.

        Raises:
            RequestError: a limit, or something this version cannot do.
        """
        mine = self._connections[connection].subscriptions
        if group is not None:
            raise NotSupported(
                "consumer groups are not in this version: a round-robin queue has one, and no name for it"
            )
        if len(mine) >= self.limits.subscriptions_per_connection:
            raise LimitExceeded(f"a connection may have {self.limits.subscriptions_per_connection} subscriptions")
        queue = self._queue_or_new(name, connection)
        subscription = self.deliveries.subscribe(queue, connection)
        if self._connections[connection].codec == "json":
            subscription.turn_messages_max = JSON_TURN_MESSAGES_MAX
        mine[subscription.id] = None
        result = {
            "subscription": subscription.id,
            "queue": name,
            "lease_ms": queue.settings.lease_ms,
            "credit_bytes_max": self.limits.credit_bytes_per_subscription,
        }
        self.journal.effects.append(Answer(subscription.after, connection, request, result))
        self.deliveries.credit(connection, subscription.id, messages, size, 0, -1)

    def unsubscribe(self, connection: int, request: int, number: int) -> None:
        """End a subscription on its owner's wish.

        Raises:
            UnknownSubscription: there is none of that number.
        """
        self.deliveries.unsubscribe(self.deliveries.require(connection, number), lost=False)
        self._connections[connection].subscriptions.pop(number, None)
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, None))

    def flush(self, connection: int, request: int) -> None:
        """Answer when everything before is durable."""
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, None))

    def digest(self, connection: int, request: int) -> None:
        """Answer with the digest of every projection."""
        result = {"offset": self._state.next_offset, "digests": self._state.digests()}
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, result))

    def loaded(self, queue: int, batches: Sequence[StoredBatch]) -> None:
        """Take the messages that a Load asked for."""
        self.deliveries.loaded(queue, batches)

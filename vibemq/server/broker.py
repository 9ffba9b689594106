"""The broker as a pure machine: a command and the time go in, records and effects come out.

Each method is one thing that a client, or the clock, can ask for. It decides on the state in the journal, changes it
by events, and leaves what must be written and sent in the journal. It does no I/O and reads no clock. A command that
cannot be done raises a RequestError before it has changed anything.

The broker itself knows who is connected; the parts that decide are `publishing`, `publishers`, `transactions`,
`queues`, `groups`, `deliveries`, `dead_letters` and `schedules`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vibemq import events as e
from vibemq.errors import LimitExceeded, UnknownGroup
from vibemq.projections.group import Group
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server.admission import Admission
from vibemq.server.batch_cache import BatchCache
from vibemq.server.dead_letters import DeadLetters
from vibemq.server.deduplication import Deduplication
from vibemq.server.delayed import Delayed, parse_id
from vibemq.server.deliveries import Deliveries
from vibemq.server.dispatch import Dispatcher
from vibemq.server.effects import Answer, DelayedListed, DelayedOf, DelayedShown, DueAfter, Find, Load, StoredBatch
from vibemq.server.groups import Groups, check_group
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.peeking import Peeking
from vibemq.server.publishers import Publishers
from vibemq.server.publishing import Publishing
from vibemq.server.queue_settings import Declaration, QueueDefaults
from vibemq.server.queues import Queues
from vibemq.server.schedules import Calendar, NoCalendar, Schedules
from vibemq.server.subscription import Subscription
from vibemq.server.transactions import Transactions

JSON_TURN_MESSAGES_MAX = 256
"""What a JSON subscription is sent in a turn: each message takes about 5 us to write as JSON."""


class Connection:
    """A client that has said hello: its codec, and its subscriptions in order."""

    __slots__ = ("codec", "number", "subscriptions")

    def __init__(self, number: int, codec: str) -> None:
        """Begin without subscriptions."""
        self.number, self.codec = number, codec
        self.subscriptions: dict[int, None] = {}


class Subscribing(NamedTuple):
    """What a consumer asks for when it comes: a queue or one of its groups, and credit for messages and bytes.

    A group that is to be created begins at `start`, with `at` for a sequence or a time.
    """

    connection: int
    request: int
    queue: str
    group: str | None
    messages: int
    bytes: int
    start: str = "tail"
    at: int = 0
    exclusive: bool = False


class Broker:
    """All decisions. `journal` holds the state and what the runtime has to carry out."""

    def __init__(
        self,
        state: Projector,
        limits: Limits,
        defaults: QueueDefaults,
        *,
        auto_create: bool = True,
        unroutable: str = "",
        calendar: Calendar | None = None,
    ) -> None:
        """Continue with a state in which nobody is connected. Without a `calendar` schedules have intervals only."""
        self.journal = Journal(state)
        self.limits = limits
        self._state = state
        self._cache = BatchCache(limits.cache_bytes)
        dispatcher = Dispatcher(self.journal, self._cache)
        self.deliveries = Deliveries(self.journal, self._cache, dispatcher, limits, defaults)
        self.groups = Groups(self.journal, self.deliveries, limits)
        self._deduplication = Deduplication(self.journal, limits)
        self.queues = Queues(
            self.journal,
            self.deliveries,
            self.groups,
            self._deduplication,
            limits,
            defaults,
            auto_create=auto_create,
        )
        self._admission = Admission(self.journal, limits, unroutable)
        self.publishers = Publishers(self.journal, limits, self._admission)
        self.delayed = Delayed(self.journal, self.deliveries, limits)
        self.publishing = Publishing(
            self.journal,
            self._cache,
            self.deliveries,
            self.queues,
            self._admission,
            self.publishers,
            self._deduplication,
            self.delayed,
        )
        self.schedules = Schedules(self.journal, self.publishing, limits, calendar or NoCalendar())
        self.transactions = Transactions(
            self.journal, limits, self.deliveries, self.queues, self._admission, self.publishers, self.publishing
        )
        self.peeking = Peeking(self.journal, limits)
        self.dead_letters = DeadLetters(self.journal, self.deliveries, dispatcher, limits)
        self._connections: dict[int, Connection] = {}

    # --- life

    def start(self, version: str, wall_us: int, declarations: Mapping[str, Declaration] | None = None) -> None:
        """Begin. After an unclean end, everything unsettled of a group with consumers is marked as perhaps sent.

        `declarations` are queues that shall be there; they went through `check_declarations`.
        """
        self.journal.record(e.BrokerStarted(version, not self._state.audit.running, wall_us))
        self.queues.declare_all(declarations or {})
        self.queues.start()
        for queue in self._state.queues.values():
            self.groups.watch_idle(queue)
        self.schedules.start()
        self.delayed.start()

    def stop(self, reason: str) -> None:
        """End; every consumer is gone by this."""
        self._connections.clear()
        self.journal.record(e.BrokerStopped(reason))

    def connect(self, name: str, address: str, codec: str, producer: int) -> int:
        """A client said hello. Return its number."""
        number = self._state.topology.next_connection
        self.journal.record(e.ClientConnected(number, name, address, codec))
        self._connections[number] = Connection(number, codec)
        self.publishers.connect(number, producer)
        self.transactions.connect(number, producer)
        return number

    def disconnect(self, connection: int, reason: str, *, lost: bool) -> None:
        """A client is gone. If it was `lost`, what its application had in hand counts as a failed attempt."""
        for number in self._connections.pop(connection).subscriptions:
            subscription = self.deliveries.find(connection, number)
            if subscription is not None:
                self._end(subscription, lost=lost)
        self.publishers.disconnect(connection)
        self.transactions.disconnect(connection)
        self.dead_letters.forget(connection)
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
        self.groups.tick()
        for number in self.queues.tick():
            self._admission.queue_gone(number)
        self.schedules.tick()
        self._deduplication.tick()
        self.end_turn()
        known = self._state.producers.known
        if len(known) > self.limits.producers:
            present = self.publishers.producers
            excess = len(known) - self.limits.producers
            oldest = [producer for producer in known if producer not in present][: excess + self.limits.producers // 10]
            if oldest:
                self.journal.record(e.ProducersForgotten(tuple(oldest)))

    def end_turn(self) -> None:
        """Everybody who had something to say was heard: hand out what is ready, go on with what waited."""
        self.dead_letters.work()
        self.delayed.work()
        self.deliveries.dispatch()
        self.publishers.unblock()

    @property
    def has_more(self) -> bool:
        """Whether the next turn has something to do."""
        parts = (self.deliveries, self.publishers, self.dead_letters, self.delayed)
        return any(part.has_more for part in parts)

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        parts = (
            self.deliveries,
            self.groups,
            self.queues,
            self.publishers,
            self.schedules,
            self.delayed,
            self._deduplication,
        )
        times = [due_us for part in parts if (due_us := part.next_due_us()) is not None]
        return min(times, default=None)

    # --- consuming

    def subscribe(self, ask: Subscribing) -> None:
        """Add a consumer to a queue.

        Raises:
            RequestError: a limit, no such group, or somebody has it exclusively.
        """
        if len(self._connections[ask.connection].subscriptions) >= self.limits.subscriptions_per_connection:
            raise LimitExceeded(f"a connection may have {self.limits.subscriptions_per_connection} subscriptions")
        check_group(ask.queue, self.queues.settings_of(ask.queue).mode, ask.group, ask.start)
        queue = self.queues.named_or_new(ask.queue, ask.connection)
        group = self.groups.find(queue, ask.group)
        if group is not None:
            self._join(ask, queue, group)
            return

        def begin(queue: Queue, sequence: int) -> None:
            if ask.connection in self._connections:  # a time was looked up meanwhile
                known = queue.group_named(ask.group) if ask.group is not None else None
                self._join(ask, queue, known or self.groups.create(queue, ask.group, sequence, ask.connection))

        self.groups.at(queue, ask.start, ask.at, ask.connection, ask.request, begin)

    def _join(self, ask: Subscribing, queue: Queue, group: Group) -> None:
        self.groups.check_exclusive(queue, group, exclusive=ask.exclusive)
        connection = self._connections[ask.connection]
        subscription = self.deliveries.subscribe(queue, group, ask.connection, exclusive=ask.exclusive)
        if connection.codec == "json":
            subscription.turn_messages_max = JSON_TURN_MESSAGES_MAX
        connection.subscriptions[subscription.id] = None
        result = {
            "subscription": subscription.id,
            "queue": queue.name,
            "group": group.name or None,
            "lease_ms": queue.settings.lease_ms,
            "credit_bytes_max": self.limits.credit_bytes_per_subscription,
        }
        self.journal.effects.append(Answer(subscription.after, ask.connection, ask.request, result))
        self.deliveries.credit(ask.connection, subscription.id, ask.messages, ask.bytes, 0, -1)

    def unsubscribe(self, connection: int, request: int, number: int) -> None:
        """End a subscription on its owner's wish.

        Raises:
            UnknownSubscription: there is none of that number.
        """
        self._end(self.deliveries.require(connection, number), lost=False)
        self._connections[connection].subscriptions.pop(number, None)
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, None))

    def _end(self, subscription: Subscription, *, lost: bool) -> None:
        self.deliveries.unsubscribe(subscription, lost=lost)
        self.groups.left(self._state.queues[subscription.queue], subscription.group)

    def delete(self, connection: int, request: int, name: str, grace_ms: int | None = None) -> None:
        """Delete a queue and everything in it; for so long, or the queue's own such time, it can be brought back.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.queues.require(name)
        self._forget(self.queues.delete(connection, request, name, grace_ms))
        self._admission.queue_gone(queue.id)

    def delete_group(self, connection: int, request: int, queue_name: str, name: str) -> None:
        """Delete a group, and end its consumers.

        Raises:
            UnknownQueue, UnknownGroup: it is not there.
        """
        queue = self.queues.require(queue_name)
        group = self.groups.require(queue, name)
        error = UnknownGroup(f"group {name!r} of queue {queue_name!r} was deleted")
        self._forget(self.groups.delete(queue, group, connection, error))
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, None))

    def _forget(self, ended: Iterable[Subscription]) -> None:
        """These subscriptions have ended by somebody else's wish."""
        for subscription in ended:
            self._connections[subscription.connection].subscriptions.pop(subscription.id, None)

    def undelete(self, connection: int, request: int, name: str, new_name: str = "") -> None:
        """Bring a deleted queue back, the last one of that name; as `new_name` if that is not empty.

        Raises:
            RequestError: there is none, or it cannot have that name.
        """
        self.delayed.came_back(self.queues.undelete(connection, request, name, new_name))

    # --- the rest

    def list_delayed(self, connection: int, request: int, name: str, behind: tuple[int, int, int], count: int) -> None:
        """Answer with messages of a queue that wait for their time.

        Raises:
            UnknownQueue: it is not there.
        """
        queue = self.queues.require(name)
        count = max(1, min(count, self.limits.peek_messages))
        floor, total = queue.delayed.floor, queue.delayed.count
        effect = DelayedListed(self.journal.next_offset, connection, request, queue.id, floor, behind, count, total)
        self.journal.effects.append(effect)

    def show_delayed(self, connection: int, request: int, name: str, text: str) -> None:
        """Answer with one of them.

        Raises:
            UnknownQueue: it is not there.
            InvalidRequest: that is no id.
        """
        queue = self.queues.require(name)
        place, floor = parse_id(text), queue.delayed.floor
        self.journal.effects.append(
            DelayedShown(self.journal.next_offset, connection, request, queue.id, floor, *place)
        )

    def peek(
        self,
        connection: int,
        request: int,
        name: str,
        group: str | None,
        start: int,
        count: int,
        priority: int | None = None,
    ) -> None:
        """Answer with ready messages from sequence `start` on, and take none; in mode priority of one, if so wished.

        Raises:
            UnknownQueue, UnknownGroup: it is not there.
        """
        queue = self.queues.require(name)
        if queue.settings.mode.has_groups:
            found = None if group is None else self.groups.require(queue, group)
        else:
            check_group(name, queue.settings.mode, group, "tail")
            found = self.groups.find(queue, None)
        self.peeking.peek(connection, request, queue, found, start, count, priority)

    def flush(self, connection: int, request: int) -> None:
        """Answer when everything before is durable."""
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, None))

    def digest(self, connection: int, request: int) -> None:
        """Answer with the digest of every projection."""
        result = {"offset": self._state.next_offset, "digests": self._state.digests()}
        self.journal.effects.append(Answer(self.journal.next_offset, connection, request, result))

    def loaded(self, load: Load, batches: Sequence[StoredBatch]) -> None:
        """Take the messages that a Load asked for."""
        self.deliveries.loaded(load, batches)

    def found(self, reading: Find | DueAfter | DelayedOf, answer: Any) -> None:  # noqa: ANN401 - for each its own
        """Take what was asked for: a sequence, what is due next, or where delayed messages are."""
        if isinstance(reading, Find):
            self.groups.found(reading, answer)
        elif isinstance(reading, DueAfter):
            self.delayed.due_read(reading, *answer)
        else:
            self.delayed.located(reading, answer)

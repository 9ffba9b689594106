"""What queues should do, written naively: an object for each message in each group, and a search through all of them.

Nothing here is shared with the broker but the names of things. The model does not choose who gets a message, and not in
which order messages arrive in a dead-letter queue: it is told of each event, checks that it was allowed, and says
afterwards whether one was forgotten.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vibemq.declaration import Backoff, Mode, Overflow, QueueSettings
from vibemq.events import DeadReason

MS = 1000
EPHEMERAL_US = 60_000 * MS


class State(enum.Enum):
    """Where a message is that is not settled."""

    READY = 1
    UNACKED = 2
    WAITING = 3


@dataclass(frozen=True, eq=False)
class Content:
    """What was published: it stays the same wherever the message goes. `id` is its record and its place there."""

    body: bytes
    id: tuple[int, int]
    key: int = 0
    ttl_us: int = 0


class Why(NamedTuple):
    """Why a message is in a dead-letter queue, and where it came from."""

    reason: DeadReason
    queue: int
    attempts: int
    error: str
    time_us: int
    lane: int


@dataclass(eq=False)
class Message:
    """A message in a queue."""

    content: Content
    lane: int
    sequence: int
    ready_us: int
    why: Why | None = None


@dataclass(eq=False)
class Copy:
    """A message as one group has it."""

    message: Message
    state: State = State.READY
    failed: int = 0
    forgiven: int = 0
    handed_out: bool = False
    due_us: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """(lane, sequence)."""
        return self.message.lane, self.message.sequence


class Outcome(NamedTuple):
    """What has to become of a message that a consumer held: dead, or ready after a delay within these bounds."""

    counted: bool
    dead: DeadReason | None = None
    error: str = ""
    least_us: int = 0
    most_us: int = 0


@dataclass(eq=False)
class Group:
    """What one group has not settled."""

    queue: "Queue"
    number: int
    name: str
    ephemeral: bool
    idle_since_us: int
    copies: list[Copy] = field(default_factory=list)
    cursors: dict[int, int] = field(default_factory=lambda: defaultdict(lambda: 1))
    """Lane -> all from this sequence on was never taken from the queue."""
    sent_below: dict[int, int] = field(default_factory=lambda: defaultdict(lambda: 1))
    """Lane -> all below may have been sent."""
    overtaken: int = 0
    consumers: list["Consumer"] = field(default_factory=list)
    """Oldest first."""

    def of(self, state: State) -> list[Copy]:
        """The messages in that state, by lane and sequence."""
        return sorted((copy for copy in self.copies if copy.state is state), key=lambda copy: copy.place)

    def at(self, place: tuple[int, int]) -> Copy:
        """The message at a lane and sequence."""
        return next(copy for copy in self.copies if copy.place == place)

    def expires_us(self, copy: Copy) -> int:
        """When a message expires, 0: never."""
        message, own_us = copy.message, copy.message.content.ttl_us
        times = [time_us for time_us in (self.queue.settings.ttl_ms * MS, 0 if message.why else own_us) if time_us]
        return message.ready_us + min(times) if times else 0

    def is_expired(self, copy: Copy, now_us: int) -> bool:
        """Whether nobody may get it any more."""
        return 0 < self.expires_us(copy) <= now_us

    def may_have_been_sent(self, copy: Copy) -> bool:
        """Whether a message is marked as redelivered when it is handed out next."""
        lane, sequence = copy.place
        return copy.handed_out or copy.failed > 0 or sequence < self.sent_below[lane]

    def heads(self) -> list[Copy]:
        """The first ready message of each lane, the highest lane first."""
        ready = self.of(State.READY)
        lanes = sorted({copy.message.lane for copy in ready}, reverse=True)
        return [next(copy for copy in ready if copy.message.lane == lane) for lane in lanes]

    @property
    def first_to_go(self) -> Copy | None:
        """What is removed next where there is too much: in a queue that refuses what has no room, a dead letter."""
        if self.queue.drops_the_oldest or self.number:
            return next(reversed(self.heads()), None)
        return next((copy for copy in self.of(State.READY) if copy.message.why is not None), None)

    def has_its_key(self, copy: Copy, others: list[Copy]) -> bool:
        """Whether no other message of its key is out, or goes before it."""
        key = copy.message.content.key
        return not key or not any(
            other.message.content.key == key
            and (other.state is not State.READY or other.message.sequence < copy.message.sequence)
            for other in others
            if other is not copy
        )

    @property
    def guard_has_its_turn(self) -> bool:
        """Whether so many messages overtook others that the lowest lane is next."""
        guard = self.queue.settings.priority_guard
        return guard > 0 and len(self.heads()) > 1 and self.overtaken >= guard

    def next(self, now_us: int) -> Copy | None:
        """What is to be handed out next. Where there are keys, what is too old is passed over on the way."""
        if self.queue.settings.order_by_key:
            alive = [copy for copy in self.copies if copy.state is not State.READY or not self.is_expired(copy, now_us)]
            ready = [copy for copy in self.of(State.READY) if copy in alive]
            return next((copy for copy in ready if self.has_its_key(copy, alive)), None)
        heads = self.heads()
        return (heads[-1] if self.guard_has_its_turn else heads[0]) if heads else None

    def take(self, copy: Copy) -> None:
        """A ready message is no longer ready."""
        assert copy.state is State.READY
        lane, sequence = copy.place
        self.cursors[lane] = max(self.cursors[lane], sequence + 1)

    def settle(self, copy: Copy) -> None:
        """This group is done with it."""
        self.copies.remove(copy)

    @property
    def bytes(self) -> int:
        """What is not settled."""
        return sum(len(copy.message.content.body) for copy in self.copies)


@dataclass(eq=False)
class Consumer:
    """One subscription."""

    number: int
    group: Group
    connection: int
    unacked_max: int
    credit_messages: int = 0
    credit_bytes: int = 0
    exclusive: bool = False
    blocked: bool = False
    """Its client does not read."""
    lease_ms: int = 0
    """What it was told, and counts on."""
    handed: int = 0
    next_delivery: int = 1
    open: dict[int, tuple[Copy, int]] = field(default_factory=dict)
    """Delivery number -> (message, end of its lease)."""
    pull_until_us: int | None = None
    pulled: bool = False

    @property
    def lease_us(self) -> int:
        """How long it may hold what it is given now."""
        return max(self.lease_ms, self.group.queue.settings.lease_ms) * MS

    @property
    def has_credit(self) -> bool:
        """Whether it may be sent something."""
        is_full = len(self.open) >= self.unacked_max
        return self.credit_messages > 0 and self.credit_bytes > 0 and not is_full and not self.blocked

    @property
    def is_served(self) -> bool:
        """Whether its group gives it anything."""
        return not self.group.queue.settings.single_active or self.group.consumers[0] is self

    def take_back(self, runs: Iterable[tuple[int, int]]) -> list[Copy]:
        """Close those deliveries that are still open."""
        asked = [delivery for start, end in runs for delivery in range(start, end)]
        return [self.open.pop(delivery)[0] for delivery in asked if delivery in self.open]


@dataclass(eq=False)
class Queue:
    """One queue. Those that do not fan out have the one group 0."""

    number: int
    name: str
    settings: QueueSettings
    messages: list[Message] = field(default_factory=list)
    """All that ever came."""
    next: dict[int, int] = field(default_factory=lambda: defaultdict(lambda: 1))
    floor: int = 1
    groups: dict[int, Group] = field(default_factory=dict)
    is_dead_letter_queue: bool = False

    @property
    def dead_name(self) -> str:
        """Where its dead letters go; empty: nowhere."""
        return self.settings.dead_letter_queue or ("" if self.name.endswith(".dlq") else f"{self.name}.dlq")

    def dead_name_of(self, message: Message) -> str:
        """Where this message goes when it is dead: what is a dead letter already goes on only where that is said."""
        return self.settings.dead_letter_queue if message.why is not None else self.dead_name

    @property
    def behind(self) -> Group | None:
        """The group with the most before it."""
        return max(self.groups.values(), key=lambda group: len(group.copies), default=None)

    @property
    def unacked(self) -> int:
        """What consumers of all groups hold."""
        return sum(len(group.of(State.UNACKED)) for group in self.groups.values())

    @property
    def length(self) -> int:
        """What that group has not settled."""
        return len(self.behind.copies) if self.behind else 0

    @property
    def bytes(self) -> int:
        """The bytes of that; where there are groups as an average says."""
        return self.bytes_of(self.behind) if self.behind else 0

    def bytes_of(self, group: Group) -> int:
        """The bytes of what a group has not settled."""
        if not self.settings.mode.has_groups:
            return group.bytes
        return len(group.copies) * sum(len(one.content.body) for one in self.messages) // max(1, len(self.messages))

    def group_named(self, name: str | None) -> Group | None:
        """The group of that name."""
        return next((group for group in self.groups.values() if group.name == name), None)

    def lane_of(self, priority: int) -> int:
        """Where messages of that priority go."""
        return priority if self.settings.mode is Mode.PRIORITY else 0

    def fitting(self, sizes: list[int]) -> int:
        """How many messages from the front there is room for."""
        room, room_bytes = self.settings.max_length - self.length, self.settings.max_bytes - self.bytes
        count = 0
        while count < len(sizes) and count + 1 <= room and sum(sizes[: count + 1]) <= room_bytes:
            count += 1
        return count

    @property
    def drops_the_oldest(self) -> bool:
        """Whether it takes everything, and makes room after."""
        return self.settings.overflow in {Overflow.DROP_OLDEST, Overflow.DEAD_LETTER}

    def excess(self, group: Group) -> tuple[int, int]:
        """By how many messages, and bytes, a group has more than it may."""
        counts, size = [0], 0
        if self.drops_the_oldest or self.is_dead_letter_queue:
            counts.append(len(group.copies) - self.settings.max_length)
            size = self.bytes_of(group) - self.settings.max_bytes
        if self.settings.group_max_lag and group.number:
            counts.append(len(group.copies) - self.settings.group_max_lag)
        return max(counts), max(0, size)

    def add(self, content: Content, lane: int, now_us: int, why: Why | None = None, attempts: int = 0) -> None:
        """A message becomes ready; `attempts` failed before, and are forgiven."""
        message = Message(content, lane, self.next[lane], now_us, why)
        self.next[lane] += 1
        self.messages.append(message)
        for group in self.groups.values():
            group.copies.append(Copy(message, failed=attempts, forgiven=attempts))


class Model:
    """All queues and consumers."""

    def __init__(self) -> None:
        self.queues: dict[int, Queue] = {}
        self.deleted: dict[int, tuple[Queue, int]] = {}
        """Queues that can be brought back, and until when, oldest first."""
        self.consumers: dict[int, Consumer] = {}
        self.now_us = 0
        self.pending: dict[Copy, Outcome] = {}
        """Messages that consumers no longer hold, and that nothing was heard of yet."""

    def named(self, name: str) -> Queue | None:
        """The queue of that name."""
        return next((queue for queue in self.queues.values() if queue.name == name), None)

    @property
    def groups(self) -> list[Group]:
        """Of all queues."""
        return [group for queue in self.queues.values() for group in queue.groups.values()]

    # --- queues and groups

    def declared(self, number: int, name: str, settings: QueueSettings) -> None:
        """A queue came."""
        queue = self.queues[number] = Queue(number, name, settings)
        if not settings.mode.has_groups:
            queue.groups[0] = Group(queue, 0, "", ephemeral=False, idle_since_us=0)

    def group_created(self, queue: Queue, number: int, name: str, sequence: int, *, ephemeral: bool) -> None:
        """A group begins at a sequence."""
        assert queue.floor <= sequence <= queue.next[0]
        group = queue.groups[number] = Group(queue, number, name, ephemeral, self.now_us)
        self._begin(group, sequence)

    def _begin(self, group: Group, sequence: int) -> None:
        group.cursors[0] = sequence
        group.copies = [Copy(message) for message in group.queue.messages if message.sequence >= sequence]

    def sought(self, group: Group, sequence: int) -> list[tuple[int, int]]:
        """A group goes on from somewhere else. What its consumers lost by that: (consumer, delivery)."""
        assert group.queue.floor <= sequence <= group.queue.next[0]
        group.sent_below[0] = max(group.sent_below[0], group.cursors[0])
        self._begin(group, sequence)
        lost = [(consumer.number, delivery) for consumer in group.consumers for delivery in consumer.open]
        for consumer in group.consumers:
            consumer.open.clear()
        return lost

    def group_deleted(self, group: Group) -> None:
        """A group is gone; its consumers left before."""
        assert not group.consumers
        del group.queue.groups[group.number]

    def purge(self, queue: Queue) -> int:
        """Throw away what nobody holds; how many that were, in the group that is furthest behind."""
        count = sum(copy.state is not State.UNACKED for copy in queue.behind.copies) if queue.behind else 0
        for group in queue.groups.values():
            group.copies = group.of(State.UNACKED)
            for lane, end in queue.next.items():
                group.cursors[lane] = end
        queue.floor = queue.next[0]
        return count

    def idle_until_us(self, group: Group) -> int | None:
        """When a group without consumers goes."""
        idle_us = EPHEMERAL_US if group.ephemeral else group.queue.settings.group_idle_ms * MS
        return group.idle_since_us + idle_us if group.number and idle_us and not group.consumers else None

    # --- consumers

    def joined(self, consumer: Consumer) -> None:
        """A consumer came."""
        self.consumers[consumer.number] = consumer
        consumer.group.consumers.append(consumer)

    def leave(self, consumer: Consumer, *, lost: bool) -> None:
        """A consumer goes: what its client had handed on fails if it was lost, the rest goes back."""
        if lost:
            handed = consumer.take_back([(0, consumer.handed)])
            self.fail(consumer.group, handed, None, error="the consumer was lost")
        for copy in consumer.take_back([(0, consumer.next_delivery)]):
            self.pending[copy] = Outcome(counted=False)
        del self.consumers[consumer.number]
        consumer.group.consumers.remove(consumer)
        consumer.group.idle_since_us = self.now_us
        if not consumer.group.consumers:
            consumer.group.overtaken = 0

    def deliver(self, consumer: Consumer, content: tuple[int, int], attempt: int, *, redelivered: bool) -> Copy:
        """A message was handed to a consumer. It is the next one, and told apart by what it is."""
        group = consumer.group
        queue, copy = group.queue, group.next(self.now_us)
        assert copy is not None
        assert copy.message.content.id == content
        assert consumer.is_served, "only the oldest is served where one alone is active"
        assert not group.is_expired(copy, self.now_us), "nobody gets what is too old"
        assert copy.failed + 1 == attempt
        assert group.may_have_been_sent(copy) == redelivered
        overtakes = queue.settings.priority_guard and len(group.heads()) > 1 and not group.guard_has_its_turn
        group.overtaken = group.overtaken + 1 if overtakes else 0
        group.take(copy)
        consumer.pulled = True
        if queue.settings.mode is Mode.FAN_OUT_NO_ACK:
            group.settle(copy)
        else:
            copy.state, copy.handed_out = State.UNACKED, True
            consumer.open[consumer.next_delivery] = copy, self.now_us + consumer.lease_us
        consumer.next_delivery += 1
        return copy

    # --- ends of deliveries

    def fail(self, group: Group, copies: list[Copy], delay_us: int | None, error: str, *, reject: bool = False) -> None:
        """An attempt failed for each."""
        settings = group.queue.settings
        for copy in copies:
            copy.failed += 1
            counting = copy.failed - copy.forgiven
            if reject:
                self.pending[copy] = Outcome(counted=True, dead=DeadReason.REJECTED, error=error)
            elif settings.max_attempts and counting >= settings.max_attempts:
                self.pending[copy] = Outcome(counted=True, dead=DeadReason.MAX_ATTEMPTS, error=error)
            else:
                least_us, most_us = (delay_us, delay_us) if delay_us is not None else retry_us(settings, counting)
                self.pending[copy] = Outcome(True, None, error, least_us, most_us)

    def released(self, copy: Copy, not_before_us: int, error: str, *, counted: bool) -> None:
        """A message went back to its queue."""
        outcome = self.pending.pop(copy)
        delay_us = not_before_us - self.now_us if not_before_us else 0
        assert outcome == Outcome(counted, None, error, outcome.least_us, outcome.most_us)
        assert outcome.least_us <= delay_us <= outcome.most_us
        copy.state, copy.due_us = State.WAITING if delay_us else State.READY, not_before_us

    def removed(self, group: Group, copy: Copy, why: DeadReason, *, to_dead_letters: bool) -> None:
        """A ready message was taken from its queue, as it was too old, or too much."""
        queue = group.queue
        if why is DeadReason.EXPIRED:
            assert to_dead_letters == (
                queue.dead_name_of(copy.message) != "" and not self.has_gone_round(queue, copy.message)
            )
            assert group.is_expired(copy, self.now_us)
            assert copy in group.heads() or queue.settings.order_by_key, "it goes when it is first in its lane"
        else:
            assert why is DeadReason.OVERFLOW
            assert to_dead_letters == (
                queue.settings.overflow is Overflow.DEAD_LETTER
                and queue.dead_name_of(copy.message) != ""
                and not self.has_gone_round(queue, copy.message)
            )
            assert any(queue.excess(group)), "nothing goes while there is room"
            assert copy is group.first_to_go, "the oldest of the lowest lane goes first"
        group.take(copy)
        group.settle(copy)

    def has_gone_round(self, queue: Queue, message: Message) -> bool:
        """Whether a message came here too old, or for want of room, and may come back in the same way."""
        if message.why is None or message.why.reason not in {DeadReason.EXPIRED, DeadReason.OVERFLOW}:
            return False
        at = queue
        for _ in self.queues:
            following = self.named(at.settings.dead_letter_queue)
            if following is None or following is queue:
                return following is queue and not queue.settings.mode.has_groups
            if not following.settings.ttl_ms and following.settings.overflow is not Overflow.DEAD_LETTER:
                return False
            at = following
        return False

    def tick(self) -> list[tuple[int, int]]:
        """Time has passed; the deliveries (consumer, number) whose leases have ended by that."""
        lost = []
        for number, consumer in self.consumers.items():
            for delivery, (_, until_us) in list(consumer.open.items()):
                if until_us <= self.now_us:
                    lost.append((number, delivery))
                    self.fail(consumer.group, consumer.take_back([(delivery, delivery + 1)]), None, "the lease ended")
        return lost

    def next_due_us(self) -> int | None:
        """When something happens by itself."""
        times = [until_us for consumer in self.consumers.values() for _, until_us in consumer.open.values()]
        times += [copy.due_us for group in self.groups for copy in group.of(State.WAITING)]
        times += [one.pull_until_us for one in self.consumers.values() if one.pull_until_us is not None]
        times += [due_us for group in self.groups if (due_us := self.idle_until_us(group)) is not None]
        times += [until_us for _, until_us in self.deleted.values()]
        return min(times, default=None)

    def restart(self, *, clean: bool) -> None:
        """Nobody is connected any more; after a crash anything that could be sent may have been."""
        for group in self.groups:
            if group.consumers:
                group.idle_since_us = self.now_us
                if not clean:
                    group.sent_below.update(group.queue.next)
            for copy in group.of(State.UNACKED):
                copy.state = State.READY
            group.consumers.clear()
            group.overtaken = 0
        self.consumers.clear()


def retry_us(settings: QueueSettings, attempt: int) -> tuple[int, int]:
    """The shortest and the longest time that a message waits after its `attempt`th failure."""
    delay_us = settings.retry_delay_ms * MS
    if settings.retry_backoff is Backoff.EXPONENTIAL:
        for _ in range(attempt - 1):
            delay_us = min(2 * delay_us, max(settings.retry_delay_max_ms * MS, delay_us))
    return delay_us * (100 - settings.retry_jitter_percent) // 100, delay_us

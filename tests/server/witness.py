"""Tells the naive model what the broker did, event by event, and checks that the events say what happened."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.server.model import MS, Consumer, Content, Copy, Group, Message, Model, Queue, State, Why
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import Mode
from vibemq.server.effects import Delivery


class Sending(NamedTuple):
    """A batch that is being published."""

    bodies: list[bytes]
    keys: list[int]
    ttl_ms: int
    priority: int

    @property
    def batch(self) -> Batch:
        """The batch itself."""
        return Batch(b"".join(pack(self.bodies, None, self.priority, self.ttl_ms, self.keys)))


class Witness:
    """What has to be remembered between the events of one command."""

    def __init__(self, model: Model, unacked_max: int) -> None:
        self.model = model
        self.unacked_max = unacked_max
        self.sending: Sending | None = None
        """What is being published."""
        self.committing: list[tuple[bool, Sending]] = []
        """What is being published together, and whether it is to a topic."""
        self._index = 0
        self.redriven: list[tuple[Queue, Copy]] = []
        """What went back to work since somebody asked for it: where to, and the dead letter that it was."""
        self.just_died: list[Message] = []
        """The dead letters that the last command, or turn, brought."""
        self.created: dict[tuple[int, int], int] = {}
        """(queue, group) -> where it began, of new groups."""
        self.lost: Counter[tuple[int, int]] = Counter()
        """(subscription, delivery): those that consumers are to be told that they lost."""
        self._removals: list[tuple[Group, Copy, e.DeadReason, bool]] = []
        self._deliveries: deque[Delivery] = deque()
        self._hear: dict[type[e.Event], Callable[[int, Any], None]] = {
            e.QueueDeclared: self._queue_declared,
            e.QueueChanged: self._queue_changed,
            e.QueueRenamed: self._queue_renamed,
            e.QueueDeleted: self._queue_deleted,
            e.QueueUndeleted: self._queue_undeleted,
            e.Published: self._published,
            e.Routed: self._routed,
            e.TransactionCommitted: self._committed,
            e.GroupCreated: self._group_created,
            e.GroupDeleted: self._group_deleted,
            e.GroupSought: self._group_sought,
            e.Subscribed: self._subscribed,
            e.Unsubscribed: self._unsubscribed,
            e.Delivered: self._delivered,
            e.Released: self._released,
            e.MadeReady: self._made_ready,
            e.Dropped: self._dropped,
            e.DeadLettered: self._dead_lettered,
            e.Redriven: self._redriven,
        }

    def hear(self, first: int, events: Sequence[e.Event], deliveries: Sequence[Delivery]) -> None:
        """What one command, or turn, has come to: events from record `first` on, and what is sent to consumers."""
        self._deliveries.extend(deliveries)
        self.just_died.clear()
        for offset, event in enumerate(events, first):
            if not isinstance(event, e.QueueDeclared) and not self._goes_on_with(event):
                self._check_removals()
            if (hear := self._hear.get(type(event))) is not None:
                hear(offset, event)
        self._check_removals()
        assert not self._deliveries, "every delivery is written down"
        assert not self.model.pending, "every message that a consumer held went somewhere"

    def _group(self, event: Any) -> Group:  # noqa: ANN401 - any event with these fields
        return self.model.queues[event.queue].groups[event.group]

    def _copies(self, event: Any) -> list[Copy]:  # noqa: ANN401 - any event with these fields
        """The messages of its spans, of which it says how many bytes they have."""
        group = self._group(event)
        copies = [group.at((lane, at)) for lane, start, end in event.spans for at in range(start, end)]
        assert event.bytes == bytes_of(copies)
        return copies

    # --- queues, groups, consumers

    def _queue_declared(self, _: int, event: e.QueueDeclared) -> None:
        self.model.declared(event.queue, event.name, event.settings)

    def _queue_deleted(self, _: int, event: e.QueueDeleted) -> None:
        if event.queue in self.model.deleted:  # now for good
            queue, until_us = self.model.deleted.pop(event.queue)
            assert until_us <= self.model.now_us
        else:
            queue = self.model.queues.pop(event.queue)
            if event.until_us:
                self.model.deleted[event.queue] = queue, event.until_us
        assert (event.count, event.bytes) == (queue.length, queue.bytes)

    def _queue_undeleted(self, _: int, event: e.QueueUndeleted) -> None:
        queue, _until_us = self.model.deleted.pop(event.queue)
        queue.name = event.name
        self.model.queues[event.queue] = queue

    def _queue_changed(self, _: int, event: e.QueueChanged) -> None:
        self.model.queues[event.queue].settings = event.settings

    def _queue_renamed(self, _: int, event: e.QueueRenamed) -> None:
        self.model.queues[event.queue].name = event.name

    def _group_created(self, _: int, event: e.GroupCreated) -> None:
        queue = self.model.queues[event.queue]
        self.model.group_created(queue, event.group, event.name, event.sequence, ephemeral=event.ephemeral)
        self.created[event.queue, event.group] = event.sequence

    def _group_deleted(self, _: int, event: e.GroupDeleted) -> None:
        group = self._group(event)
        due_us = self.model.idle_until_us(group)
        assert event.connection or (due_us is not None and due_us <= self.model.now_us)
        self.model.group_deleted(group)

    def _group_sought(self, _: int, event: e.GroupSought) -> None:
        self.lost.update(self.model.sought(self._group(event), event.sequence))

    def _subscribed(self, _: int, event: e.Subscribed) -> None:
        assert event.subscription not in self.model.consumers
        consumer = Consumer(event.subscription, self._group(event), event.connection, self.unacked_max)
        consumer.lease_ms = consumer.group.queue.settings.lease_ms
        self.model.joined(consumer)

    def _unsubscribed(self, _: int, event: e.Unsubscribed) -> None:
        assert event.subscription not in self.model.consumers

    # --- messages come

    def _published(self, offset: int, event: e.Published) -> None:
        assert self.sending is not None
        assert event.count + event.dropped == len(self.sending.bodies)
        assert event.timed == (event.count > 0 and self.sending.ttl_ms > 0)
        self._arrived(offset, event.queue, event.lane, event.sequence, event.count, None)

    def _routed(self, offset: int, event: e.Routed) -> None:
        why = Why(e.DeadReason.UNROUTABLE, 0, 0, event.topic, self.model.now_us, 0) if event.unroutable else None
        for queue, lane, sequence in event.targets:
            self._arrived(offset, queue, lane, sequence, event.count, why)

    def _committed(self, offset: int, event: e.TransactionCommitted) -> None:
        """Batches for queues are before those for topics. What is acked the model knows from who asked for it."""
        in_order = [
            sending for is_topic in (False, True) for to_topic, sending in self.committing if to_topic is is_topic
        ]
        parts: tuple[e.Published | e.Routed, ...] = (*event.published, *event.routed)
        for part, self.sending in zip(parts, in_order, strict=True):
            self._hear[type(part)](offset, part)
            self._index += part.count
        self._index = 0

    def _arrived(self, offset: int, number: int, lane: int, sequence: int, count: int, why: Why | None) -> None:
        assert self.sending is not None
        bodies, keys, ttl_ms, priority = self.sending
        queue = self.model.queues[number]
        assert lane == (0 if why else queue.lane_of(priority))
        assert sequence == queue.next[lane]
        queue.is_dead_letter_queue |= why is not None and not queue.settings.mode.has_groups
        for index, (body, key) in enumerate(zip(bodies[:count], keys[:count], strict=True)):
            queue.add(Content(body, (offset, self._index + index), key, ttl_ms * MS), lane, self.model.now_us, why)

    # --- messages are handed out, and come back

    def _delivered(self, _: int, event: e.Delivered) -> None:
        """A consumer was given messages, by the deliveries that come next."""
        consumer = self.model.consumers[event.subscription]
        keeps = consumer.group.queue.settings.mode is not Mode.FAN_OUT_NO_ACK
        assert event.lease_until_us == (self.model.now_us + consumer.lease_us if keeps else 0)
        wanted = [(lane, at) for lane, start, end in event.spans for at in range(start, end)]
        given: list[Copy] = []
        while len(given) < len(wanted):
            given += self._sent(consumer, self._deliveries.popleft())
        assert [copy.place for copy in given] == wanted
        assert event.bytes == bytes_of(given)

    def _sent(self, consumer: Consumer, effect: Delivery) -> list[Copy]:
        """The messages of one delivery."""
        stored, first, count = effect.stored, effect.first, effect.messages
        assert effect.subscription == consumer.number
        assert effect.after > stored.made_ready, "nothing is sent before it is durable"
        assert effect.delivery == consumer.next_delivery
        bodies = stored.batch.bodies()[first : first + count]
        size = sum(map(len, bodies))
        assert consumer.has_credit, "nobody is sent anything without credit"
        assert count == 1 or size <= consumer.credit_bytes, "only a lone message may be larger than the credit"
        assert len(consumer.open) + count <= consumer.unacked_max
        given = []
        for at, body in enumerate(bodies, first):
            identity = (stored.origin.offset, stored.origin.index + at)
            copy = self.model.deliver(consumer, identity, effect.attempt, redelivered=effect.redelivered)
            assert copy.message.content.body == body
            given.append(copy)
        consumer.credit_messages -= count
        consumer.credit_bytes -= size
        assert consumer.credit_messages >= 0
        return given

    def _released(self, _: int, event: e.Released) -> None:
        for copy in self._copies(event):
            self.model.released(copy, event.not_before_us, event.error, counted=event.counted)

    def _made_ready(self, _: int, event: e.MadeReady) -> None:
        group = self._group(event)
        for copy in [group.at((lane, at)) for lane, start, end in event.spans for at in range(start, end)]:
            assert copy.state is State.WAITING
            assert copy.due_us <= self.model.now_us
            copy.state = State.READY

    # --- messages go

    def _goes_on_with(self, event: e.Event) -> bool:
        """Whether an event is about more messages that are removed in one go with those before."""
        is_removal = isinstance(event, e.DeadLettered | e.Dropped)
        return is_removal and all(group is self._group(event) for group, *_ in self._removals)

    def _check_removals(self) -> None:
        """Of what was removed in one go the oldest went first, of the lowest lane where there was too much."""
        removals, self._removals = self._removals, []
        for group, copy, reason, to_dead_letters in sorted(removals, key=lambda one: one[1].place):
            self.model.removed(group, copy, reason, to_dead_letters=to_dead_letters)

    def _dropped(self, _: int, event: e.Dropped) -> None:
        self._removals += [(self._group(event), copy, event.reason, False) for copy in self._copies(event)]

    def _dead_lettered(self, _: int, event: e.DeadLettered) -> None:
        """Messages left a queue for another, or for nowhere."""
        queue, copies = self.model.queues[event.queue], self._copies(event)
        assert ids(event) == [copy.message.content.id for copy in copies]
        for copy in copies:
            assert copy.failed == event.attempts
            if not event.subscription:
                self._removals.append((self._group(event), copy, event.reason, True))
                continue
            outcome = self.model.pending.pop(copy)
            assert (outcome.dead, outcome.error) == (event.reason, event.error)
            self._group(event).settle(copy)
        (name,) = {queue.dead_name_of(copy.message) for copy in copies}
        assert (event.dead_queue == 0) == (not name)
        if event.dead_queue:
            target = self.model.queues[event.dead_queue]
            assert target.name == name
            assert event.dead_sequence == target.next[0]
            target.is_dead_letter_queue = not target.settings.mode.has_groups
            for copy in copies:
                why = Why(event.reason, queue.number, event.attempts, event.error, self.model.now_us, copy.message.lane)
                target.add(copy.message.content, 0, self.model.now_us, why)
                self.just_died.append(target.messages[-1])

    def _redriven(self, _: int, event: e.Redriven) -> None:
        """Dead letters went back to work, with the attempts that they had."""
        queue, target = self.model.queues[event.queue].groups[0], self.model.queues[event.target]
        copies = [queue.at((lane, at)) for lane, start, end in event.spans for at in range(start, end)]
        assert ids(event) == [copy.message.content.id for copy in copies]
        assert event.bytes == bytes_of(copies)
        sizes = [len(copy.message.content.body) for copy in copies]
        assert target.drops_the_oldest or target.fitting(sizes) == len(sizes), "nothing goes where there is no room"
        for at, copy in enumerate(copies):
            queue.take(copy)
            queue.settle(copy)
            why = copy.message.why
            assert why is not None
            assert why.attempts == event.attempts
            lane = target.lane_of(why.lane)
            assert (event.lane, event.sequence + at) == (lane, target.next[lane])
            self.redriven.append((target, copy))
            target.add(copy.message.content, lane, self.model.now_us, None, why.attempts)


def ids(event: e.DeadLettered | e.Redriven) -> list[tuple[int, int]]:
    """Which messages these are."""
    return [(offset, index + at) for offset, index, count in event.refs for at in range(count)]


def bytes_of(copies: list[Copy]) -> int:
    """What their records have."""
    return sum(len(copy.message.content.body) for copy in copies)

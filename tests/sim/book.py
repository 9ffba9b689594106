"""What is where, written down message by message as the events tell it: the broker's state once more, and naively.

The broker keeps intervals; here every message in every queue is an entry, and every group has three lists of entries:
ready, held by a consumer, waiting for its time. Each event moves entries from one to another, and one that does not fit
(a message is handed out that is not ready, is settled twice, leaves what nobody saw come) is a Violation. Whether the
broker was right to decide so is the business of `rules`.

The book remembers every event. After a crash it forgets those that the log has lost, and adds up the others again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.checker import Copy, Name, Violation
from tests.sim.contents import Dead, Entry, Group, Queue, Told, Where, wheres
from tests.sim.dedup import DedupBook
from tests.sim.delayed import DelayedBook
from tests.sim.mail import Message
from tests.sim.schedules import ScheduleBook
from tests.sim.transactions import parts_of
from vibemq import events as e
from vibemq.declaration import Mode, QueueSettings
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, DeadReason, Spans


class Book:
    """All queues, and what became of everything that ever came to one."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.told: list[Told] = []
        self._begin()

    def _begin(self) -> None:
        self.queues: dict[int, Queue] = {}
        self.names: dict[str, int] = {}
        self.messages: dict[str, Message] = {}
        """By id."""
        self.ids: dict[Name, str] = {}
        self.answers: dict[tuple[int, bool, int], tuple[int, int]] = {}
        """(record, whether to a topic, which of these) -> index and sequence of the first message of a publish."""
        self.came_to: dict[Name, set[str]] = {}
        """The queues that each came to."""
        self.acked: set[Copy] = set()
        self.ended: dict[Copy, str] = {}
        """Copies that ended in another way, and in which."""
        self.connections: dict[int, str] = {}
        self.delayed, self.dedup, self.schedules = DelayedBook(self), DedupBook(self), ScheduleBook(self)
        self._apply: dict[type, Callable[[Any, Told], None]] = {
            e.BrokerStarted: self._everyone_left,
            e.BrokerStopped: self._everyone_left,
            e.QueueDeclared: self._declared,
            e.QueueChanged: self._changed,
            e.QueueRenamed: self._renamed,
            e.QueueDeleted: self._deleted,
            e.QueueUndeleted: self._undeleted,
            e.QueuePurged: self._purged,
            e.GroupCreated: self._group_created,
            e.GroupDeleted: self._group_deleted,
            e.GroupSought: self._sought,
            e.Bound: lambda event, _: self.queues[event.queue].patterns.add(event.pattern),
            e.Unbound: lambda event, _: self.queues[event.queue].patterns.remove(event.pattern),
            e.Published: self._published,
            e.Routed: self._routed,
            e.MadeReady: self._made_ready,
            e.Subscribed: self._subscribed,
            e.Unsubscribed: self._unsubscribed,
            e.Delivered: self._delivered,
            e.Acked: self._acked,
            e.Released: self._released,
            e.Dropped: self._dropped,
            e.DeadLettered: self._dead_lettered,
            e.Redriven: self._redriven,
            **self.delayed.applies,
            **self.dedup.applies,
            **self.schedules.applies,
        }

    # --- the book itself

    def write(self, told: Told) -> None:
        """One event more."""
        self.begin(told)
        for part in parts_of(told):
            self.apply(part)

    def begin(self, told: Told) -> None:
        """One event more, of which the parts follow."""
        self.told.append(told)
        self._remember_answers(told.event, len(self.told) - 1)

    def apply(self, part: Told) -> None:
        """An event, or a part of one, which is the last."""
        apply = self._apply.get(type(part.event))
        if apply is not None:
            apply(part.event, part)

    def _remember_answers(self, event: e.Event, offset: int) -> None:
        if isinstance(event, e.Published):
            self.answers[offset, False, 0] = 0, event.sequence
        elif isinstance(event, e.Routed):
            self.answers[offset, True, 0] = 0, 0
        elif isinstance(event, e.TransactionCommitted):
            index = 0
            for number, part in enumerate(event.published):
                self.answers[offset, False, number] = index, part.sequence
                index += part.count
            for number, part_by_topic in enumerate(event.routed):
                self.answers[offset, True, number] = index, 0
                index += part_by_topic.count

    def cut(self, offset: int) -> bool:
        """Only the events below that offset are known any more. Whether others were."""
        if offset == len(self.told):
            return False
        told = self.told[:offset]
        self.told.clear()
        self._begin()
        for one in told:
            self.write(one)
        return True

    def queue_named(self, name: str) -> Queue | None:
        """The queue of that name."""
        number = self.names.get(name)
        return None if number is None else self.queues[number]

    def last_deleted(self, name: str) -> Queue | None:
        """The last queue of that name that was deleted and may come back."""
        deleted = [queue for queue in self.queues.values() if queue.deleted_until_us and queue.name == name]
        return max(deleted, key=lambda queue: queue.deleted_at, default=None)

    def known_as(self, name: str) -> int | None:
        """The queue of that name; without one the last that was deleted."""
        last = self.last_deleted(name)
        return self.names.get(name, last.id if last is not None else None)

    def there(self) -> Iterator[Queue]:
        """The queues that are not deleted."""
        return (queue for queue in self.queues.values() if not queue.deleted_until_us)

    # --- ends

    def _end(self, queue: Queue, group: Group, where: Where, how: str) -> None:
        """A copy is settled for good; the empty string is an ack."""
        group.forget(where)
        entry = queue.entry(where)
        copy = Copy(entry.message.name, queue.of(group, entry))
        if copy in self.acked or copy in self.ended:
            raise Violation(f"{copy} ends a second time: {how or 'acked'}, after {self.ended.get(copy, 'an ack')}")
        if how:
            self.ended[copy] = how
        else:
            self.acked.add(copy)

    def _end_all(self, queue: Queue, group: Group, how: str) -> None:
        for where in list(group.unsettled()):
            self._end(queue, group, where, how)

    # --- queues

    def _declared(self, event: e.QueueDeclared, told: Told) -> None:
        if event.name in self.names or event.queue in self.queues:
            raise Violation(f"{event} declares what is there")
        self.queues[event.queue] = Queue(event)
        self.queues[event.queue].idle_since_us = told.time_us
        self.names[event.name] = event.queue

    def _changed(self, event: e.QueueChanged, told: Told) -> None:
        queue = self.queues[event.queue]
        if queue.settings.expires_ms != event.settings.expires_ms:
            queue.idle_since_us = told.time_us
        queue.settings = event.settings

    def _renamed(self, event: e.QueueRenamed, _: Told) -> None:
        queue = self.queues[event.queue]
        del self.names[queue.name]
        queue.name = event.name
        self.names[event.name] = event.queue

    def _deleted(self, event: e.QueueDeleted, _: Told) -> None:
        queue = self.queues[event.queue]
        for group in queue.groups.values():
            if group.held or group.consumers:
                raise Violation(f"queue {queue.name} is deleted, and consumers hold {group.held}")
        if not queue.deleted_until_us:
            del self.names[queue.name]
        queue.deleted_until_us, queue.deleted_at = event.until_us, len(self.told)
        if not event.until_us:
            for group in queue.groups.values():
                self._end_all(queue, group, "deleted with the queue")
            self.delayed.end_all(queue, "deleted with the queue")
            self.dedup.queues.pop(event.queue, None)
            del self.queues[event.queue]

    def _undeleted(self, event: e.QueueUndeleted, told: Told) -> None:
        queue = self.queues[event.queue]
        queue.idle_since_us = told.time_us
        queue.name, queue.deleted_until_us = event.name, 0
        self.names[event.name] = event.queue

    def _purged(self, event: e.QueuePurged, _: Told) -> None:
        queue = self.queues[event.queue]
        for group in queue.groups.values():
            for where in list(group.unsettled()):
                if where not in group.held:
                    self._end(queue, group, where, "purged")
            group.ready.clear()
            group.waiting.clear()
        self.delayed.end_all(queue, "purged")
        queue.floor = queue.next()

    # --- groups and consumers

    def _group_created(self, event: e.GroupCreated, told: Told) -> None:
        queue = self.queues[event.queue]
        of = f"{queue.id}/{event.name}@{len(self.told)}"
        group = queue.groups[event.group] = Group(event.group, event.name, of, ephemeral=event.ephemeral)
        group.ready[DEFAULT_LANE] = list(range(event.sequence, queue.next()))
        group.idle_since_us = told.time_us

    def _group_deleted(self, event: e.GroupDeleted, _: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups.pop(event.group)
        if group.held or group.consumers:
            raise Violation(f"group {group.name} is deleted, and consumers hold {group.held}")
        self._end_all(queue, group, "deleted with the group")

    def _sought(self, event: e.GroupSought, _: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[event.group]
        self._end_all(queue, group, "sought past")
        group.of = f"{queue.id}/{group.name}@{len(self.told)}"
        group.held.clear()
        group.waiting.clear()
        group.failed.clear()
        group.former.clear()
        group.ready = {DEFAULT_LANE: list(range(event.sequence, queue.next()))}

    def _subscribed(self, event: e.Subscribed, _: Told) -> None:
        self.queues[event.queue].groups[event.group].consumers.append(event.subscription)

    def _unsubscribed(self, event: e.Unsubscribed, told: Told) -> None:
        group = self.queues[event.queue].groups[event.group]
        group.consumers.remove(event.subscription)
        group.idle_since_us = self.queues[event.queue].idle_since_us = told.time_us
        if event.subscription in group.held.values():
            raise Violation(f"{event} leaves with {group.held}")

    def _everyone_left(self, _: e.Event, told: Told) -> None:
        for queue in self.queues.values():
            if queue.has_consumers:
                queue.idle_since_us = told.time_us
            for group in queue.groups.values():
                for where in group.held:
                    group.add(where)
                group.held.clear()
                if group.consumers:
                    group.idle_since_us = told.time_us
                group.consumers.clear()

    # --- messages come

    def came(self, number: int, lane: int, sequence: int, entries: list[Entry]) -> None:
        """Messages are ready in a queue, which they were not before."""
        queue = self.queues[number]
        known = queue.lanes.setdefault(lane, [])
        if sequence != len(known) + 1:
            raise Violation(f"queue {queue.name}, lane {lane}: message {sequence} after {len(known)}")
        known += entries
        new = range(sequence, len(known) + 1)
        for group in queue.groups.values():
            group.ready.setdefault(lane, []).extend(new)
        for entry in entries:
            self.came_to[entry.message.name].add(str(number))
            if not queue.groups:
                self._nobody_wants(queue, entry)

    def _nobody_wants(self, queue: Queue, entry: Entry) -> None:
        copy = Copy(entry.message.name, f"{entry.of}>{queue.id}/" if entry.of else f"{queue.id}/")
        self.ended[copy] = "for no group"

    def new(self, messages: tuple[Message, ...]) -> None:
        """Messages are stored, which were not before."""
        for message in messages:
            if self.ids.setdefault(message.name, message.id) != message.id:
                raise Violation(f"{message.name} is stored twice, as {self.ids[message.name]} and {message.id}")
            self.messages[message.id] = message
            self.came_to[message.name] = set()

    def own(self, queue: int) -> str:
        """Whose copies new messages of a queue are; with groups that is for each of them to say."""
        return "" if self.queues[queue].settings.mode.has_groups else str(queue)

    def _published(self, event: e.Published, told: Told) -> None:
        if len(told.messages) != event.count or sum(one.size for one in told.messages) != event.bytes:
            raise Violation(f"{event} with {told.messages}")
        self.new(told.messages)
        self.dedup.remember(event, told)
        if event.due_us:
            self.delayed.wait(event.queue, event.lane, event.due_us, told.messages)
        elif told.messages:
            of = self.own(event.queue)
            entries = [Entry(message, told.time_us, of) for message in told.messages]
            self.came(event.queue, event.lane, event.sequence, entries)

    def _routed(self, event: e.Routed, told: Told) -> None:
        if len(told.messages) != event.count or sum(one.size for one in told.messages) != event.bytes:
            raise Violation(f"{event} with {told.messages}")
        self.new(told.messages)
        if event.due_us:
            for queue, lane, _ in event.targets:
                self.delayed.wait(queue, lane, event.due_us, told.messages)
            return
        dead = None
        if event.unroutable:
            dead = Dead(0, DEFAULT_LANE, DeadReason.UNROUTABLE, 0, event.topic, told.time_us)
        for queue, lane, sequence in event.targets:
            of = self.own(queue)
            entries = [Entry(message, told.time_us, of, dead=dead) for message in told.messages]
            self.came(queue, lane, sequence, entries)
            if dead:
                self.queues[queue].keeps_dead()

    def _referred(self, refs: Iterable[tuple[int, int, int]]) -> list[Message]:
        return [self.messages[f"{offset}-{index + at}"] for offset, index, count in refs for at in range(count)]

    # --- messages go

    def _delivered(self, event: e.Delivered, _: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[event.group]
        if event.subscription not in group.consumers:
            raise Violation(f"{event} for a consumer that is not there")
        for where in wheres(event.spans):
            group.take(where, "handed out")
            if queue.settings.mode is Mode.FAN_OUT_NO_ACK:
                self._end(queue, group, where, "sent without acks")
            else:
                group.held[where] = event.subscription

    def _give_up(self, group: Group, subscription: int, spans: Spans) -> list[Where]:
        """What a subscription holds no more."""
        found = wheres(spans)
        for where in found:
            if group.held.pop(where, None) != subscription:
                raise Violation(f"message {where} of group {group.name!r} is not held by subscription {subscription}")
        return found

    def _acked(self, event: e.Acked, _: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[event.group]
        for where in self._give_up(group, event.subscription, event.spans):
            self._end(queue, group, where, "")

    def _released(self, event: e.Released, _: Told) -> None:
        group = self.queues[event.queue].groups[event.group]
        for where in self._give_up(group, event.subscription, event.spans):
            if event.counted:
                group.failed[where] += 1
            if event.not_before_us:
                group.waiting[where] = event.not_before_us
            else:
                group.add(where)

    def _made_ready(self, event: e.MadeReady, _: Told) -> None:
        group = self.queues[event.queue].groups[event.group]
        for where in wheres(event.spans):
            if group.waiting.pop(where, None) is None:
                raise Violation(f"message {where} of group {group.name!r} is made ready, and did not wait")
            group.add(where)

    def _take(self, group: Group, subscription: int, spans: Spans, why: str) -> list[Where]:
        """What leaves a group, held by somebody or ready."""
        if subscription:
            return self._give_up(group, subscription, spans)
        found = wheres(spans)
        for where in found:
            group.take(where, why)
        return found

    def _dropped(self, event: e.Dropped, _: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[event.group]
        how = {DeadReason.EXPIRED: "expired", DeadReason.OVERFLOW: "dropped"}[DeadReason(event.reason)]
        for where in self._take(group, 0, event.spans, how):
            self._end(queue, group, where, how)

    def _dead_lettered(self, event: e.DeadLettered, told: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[event.group]
        moved = []
        for where in self._take(group, event.subscription, event.spans, "dead"):
            entry = queue.entry(where)
            of = queue.of(group, entry)
            dead = Dead(queue.id, where[0], event.reason, event.attempts, event.error, told.time_us)
            moved.append(Entry(entry.message, told.time_us, of, dead=dead))
            if event.dead_queue:
                group.forget(where)
                self._part(event.dead_queue, moved[-1])
            else:
                self._end(queue, group, where, "dead, with nowhere to go")
        self._same(moved, event.refs, event)
        if event.dead_queue:
            self.came(event.dead_queue, DEFAULT_LANE, event.dead_sequence, moved)
            self.queues[event.dead_queue].keeps_dead()

    def _redriven(self, event: e.Redriven, told: Told) -> None:
        queue = self.queues[event.queue]
        group = queue.groups[DEFAULT_GROUP]
        target = self.queues[event.target]
        moved = []
        for where in self._take(group, 0, event.spans, "redriven"):
            entry = queue.entry(where)
            moved.append(Entry(entry.message, told.time_us, entry.of))
            group.forget(where)
            self._part(event.target, moved[-1])
        self._same(moved, event.refs, event)
        self.came(event.target, event.lane, event.sequence, moved)
        for group in target.groups.values():
            for at in range(len(moved)):
                group.former[event.lane, event.sequence + at] = event.attempts

    def _part(self, queue: int, entry: Entry) -> None:
        """A copy comes to a queue; where that has groups, each of them has a copy of its own of it."""
        if self.queues[queue].settings.mode.has_groups:
            copy = Copy(entry.message.name, entry.of)
            if copy in self.acked or self.ended.get(copy, "parted") != "parted":
                raise Violation(f"{copy} comes to groups, and was settled")
            self.ended[copy] = "parted"

    def _same(self, moved: list[Entry], refs: tuple[tuple[int, int, int], ...], event: e.Event) -> None:
        if [entry.message for entry in moved] != self._referred(refs):
            raise Violation(f"{event} refers to other messages than it moves: {[one.message.id for one in moved]}")

    @property
    def settings(self) -> dict[str, QueueSettings]:
        """What each queue has now, by name."""
        return {queue.name: queue.settings for queue in self.there()}

"""The state of the broker: all parts, and which event goes to which of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vibemq import events as e
from vibemq.errors import FormatUnsupported
from vibemq.projections import part as parts
from vibemq.projections.audit import Audit
from vibemq.projections.bindings import Bindings
from vibemq.projections.dead_letter import DeadLetters
from vibemq.projections.dedup import Dedup
from vibemq.projections.part import Part
from vibemq.projections.producers import Producers
from vibemq.projections.queue import Queue
from vibemq.projections.schedules import Schedule
from vibemq.projections.topology import Topology


class Projector:
    """Folds events into parts. `next_offset` is the offset of the event that comes next.

    After `restore` a part may already hold events that are applied again; they are skipped by its `as_of`.
    """

    def __init__(self) -> None:
        """Begin before the first event."""
        self.next_offset = 0
        self.topology = Topology()
        self.producers = Producers()
        self.audit = Audit()
        self.queues: dict[int, Queue] = {}
        self.bindings = Bindings()
        """The index of the patterns that the queues have; no part, it follows from them."""
        self.dead: dict[int, DeadLetters] = {}
        self.dedup = Dedup()
        self._several: set[Part] | None = None  # parts that take the event at hand, which has several things for them
        self.schedules: dict[int, Schedule] = {}
        self._settled_offset = 0  # below it a part may be missing: the checkpoint was taken after its end
        # What is not listed concerns the audit alone.
        self._apply: dict[type[e.Event], Callable[[int, int, Any], None]] = {
            e.BrokerStarted: self._broker_started,
            e.BrokerStopped: self._broker_stopped,
            e.ClientConnected: self._client_connected,
            e.ClientDisconnected: self._client_disconnected,
            e.QueueDeclared: self._queue_declared,
            e.QueueDeleted: self._queue_deleted,
            e.QueueChanged: self._queue_changed,
            e.QueueRenamed: self._queue_renamed,
            e.QueueUndeleted: self._queue_undeleted,
            e.QueuePurged: self._queue_purged,
            e.GroupCreated: self._group_created,
            e.GroupDeleted: self._group_deleted,
            e.GroupSought: self._group_sought,
            e.Bound: self._bound,
            e.Unbound: self._unbound,
            e.Published: self._published,
            e.Routed: self._routed,
            e.TransactionCommitted: self._transaction_committed,
            e.MadeReady: self._made_ready,
            e.Matured: self._matured,
            e.Rescheduled: self._redelayed,
            e.Cancelled: self._redelayed,
            e.ProducersForgotten: self._producers_forgotten,
            e.DedupForgotten: self._dedup_forgotten,
            e.Subscribed: self._subscribed,
            e.Unsubscribed: self._unsubscribed,
            e.Delivered: self._delivered,
            e.Acked: self._acked,
            e.Released: self._released,
            e.Dropped: self._dropped,
            e.DeadLettered: self._dead_lettered,
            e.Redriven: self._redriven,
            e.ScheduleSet: self._schedule_set,
            e.SchedulePaused: self._schedule_paused,
            e.ScheduleDeleted: self._schedule_deleted,
            e.Fired: self._fired,
            e.Misfired: self._misfired,
        }

    def apply(self, offset: int, time_us: int, event: e.Event) -> None:
        """Add one event. Offsets follow each other without a gap."""
        assert offset == self.next_offset, f"event {offset} after {self.next_offset - 1}"
        self.next_offset = offset + 1
        if self.audit.as_of <= offset:
            self.audit.apply(time_us, event)
            self.audit.as_of = offset + 1
        apply = self._apply.get(type(event))
        if apply is not None:
            apply(offset, time_us, event)

    # --- parts

    def parts(self) -> Iterator[Part]:
        """All parts, in a stable order.

        Events may be applied while somebody walks through them: a queue that is gone by its turn is passed over. The
        audit, which every event changes, is the last: whoever saves the parts on the way saves with it how far the
        others may have got, and those that went.
        """
        yield self.topology
        yield self.producers
        for number in sorted(self.queues):
            if (queue := self.queues.get(number)) is not None:
                yield queue
        for number in sorted(self.dead):
            if (dead := self.dead.get(number)) is not None:
                yield dead
        yield from self.dedup.parts()
        for number in sorted(self.schedules):
            if (schedule := self.schedules.get(number)) is not None:
                yield schedule
        yield self.audit

    def digests(self) -> dict[str, str]:
        """The digest of every part by its key, and under `all` the digest of these."""
        found = {part.key: parts.digest(part) for part in self.parts()}
        whole = hashlib.sha256("".join(f"{key} {value}\n" for key, value in found.items()).encode())
        return {**found, "all": whole.hexdigest()}

    @classmethod
    def restore(cls, saved: Iterable[tuple[str, int, bytes]], start: int) -> "Projector":
        """The state from saved parts (key, as_of, canonical bytes), to be continued with event `start`.

        Raises:
            FormatUnsupported: a part of an unknown kind.
        """
        projector = cls()
        projector.next_offset = start
        for key, as_of, data in saved:
            projector._settled_offset = max(projector._settled_offset, as_of)
            projector._restore_part(key, as_of, parts.decode(data))
        return projector

    def _restore_part(self, key: str, as_of: int, snapshot: list[Any]) -> None:
        kind, _, number = key.partition("/")
        if kind == "topology":
            self.topology = Topology.restore(snapshot, as_of)
        elif kind == "producers":
            self.producers = Producers.restore(snapshot, as_of)
        elif kind == "audit":
            self.audit = Audit.restore(snapshot, as_of)
        elif kind == "queue":
            queue = self.queues[int(number)] = Queue.restore(snapshot, as_of)
            for pattern in queue.patterns:
                self.bindings.add(queue.id, pattern)
        elif kind == "dead":
            self.dead[int(number)] = DeadLetters.restore(snapshot, as_of)
        elif kind == "dedup":
            self.dedup.restored(snapshot, as_of)
        elif kind == "schedule":
            self.schedules[int(number)] = Schedule.restore(snapshot, as_of)
        else:
            raise FormatUnsupported(f"a checkpoint holds a part {key!r} that this version does not know")

    def queue_named(self, name: str) -> Queue | None:
        """The queue of that name."""
        number = self.topology.queues.get(name)
        return None if number is None else self.queues[number]

    def _queue(self, number: int, offset: int) -> Queue | None:
        """The queue if this event is still to be added to it."""
        queue = self.queues.get(number)
        if queue is None:
            assert offset < self._settled_offset, f"event {offset} is about queue {number}, which is not there"
            return None
        return queue if self._fresh(queue, offset) else None

    def _dead(self, number: int, offset: int) -> DeadLetters | None:
        dead = self.dead.get(number)
        return dead if dead is not None and self._fresh(dead, offset) else None

    def _dead_or_new(self, number: int, offset: int) -> DeadLetters | None:
        """The dead letters of a queue that is there, if this event is still to be added to them.

        Where a queue fans out nobody could say when one is done with, and nothing is kept of them.
        """
        queue = self.queues.get(number)
        if number not in self.dead and queue is not None and not queue.settings.mode.has_groups:
            self.dead[number] = DeadLetters(number)
        return self._dead(number, offset)

    def _schedule(self, number: int, offset: int) -> Schedule | None:
        """The schedule if this event is still to be added to it."""
        schedule = self.schedules.get(number)
        if schedule is None:
            assert offset < self._settled_offset, f"event {offset} is about schedule {number}, which is not there"
            return None
        return schedule if self._fresh(schedule, offset) else None

    def _fresh(self, part: Part, offset: int) -> bool:
        """Whether this event is still to be added to a part, which is asked for that as often as it has something."""
        if part.as_of > offset:
            return self._several is not None and part in self._several
        part.as_of = offset + 1
        if self._several is not None:
            self._several.add(part)
        return True

    # --- which event goes where

    def _everyone_left(self, offset: int, time_us: int, *, clean: bool) -> None:
        if self._fresh(self.topology, offset):
            self.topology.everyone_left()
        for queue in self.queues.values():
            if self._fresh(queue, offset):
                queue.everyone_left(time_us, clean=clean)

    def _broker_started(self, offset: int, time_us: int, event: e.BrokerStarted) -> None:
        self._everyone_left(offset, time_us, clean=event.clean)

    def _broker_stopped(self, offset: int, time_us: int, event: e.BrokerStopped) -> None:
        self._everyone_left(offset, time_us, clean=True)

    def _client_connected(self, offset: int, time_us: int, event: e.ClientConnected) -> None:
        if self._fresh(self.topology, offset):
            self.topology.client_connected(event, time_us)

    def _client_disconnected(self, offset: int, time_us: int, event: e.ClientDisconnected) -> None:
        if self._fresh(self.topology, offset):
            self.topology.client_disconnected(event)

    def _queue_declared(self, offset: int, time_us: int, event: e.QueueDeclared) -> None:
        if event.queue not in self.queues:
            self.queues[event.queue] = Queue(event, time_us)
            self.queues[event.queue].as_of = offset + 1
        if self._fresh(self.topology, offset):
            self.topology.queue_declared(event)

    def _queue_changed(self, offset: int, time_us: int, event: e.QueueChanged) -> None:
        if queue := self._queue(event.queue, offset):
            queue.changed(event, time_us)

    def _queue_renamed(self, offset: int, time_us: int, event: e.QueueRenamed) -> None:
        if queue := self._queue(event.queue, offset):
            queue.renamed(event)
        if self._fresh(self.topology, offset):
            self.topology.queue_renamed(event)

    def _queue_deleted(self, offset: int, time_us: int, event: e.QueueDeleted) -> None:
        if not event.until_us:
            self.dead.pop(event.queue, None)
            self.dedup.gone(event.queue)
            if gone := self.queues.pop(event.queue, None):
                for pattern in gone.patterns:
                    self.bindings.discard(gone.id, pattern)
        elif queue := self._queue(event.queue, offset):
            queue.deleted(event)
        if self._fresh(self.topology, offset):
            self.topology.queue_deleted(event)

    def _queue_undeleted(self, offset: int, time_us: int, event: e.QueueUndeleted) -> None:
        if queue := self._queue(event.queue, offset):
            queue.undeleted(event, time_us)
        if self._fresh(self.topology, offset):
            self.topology.queue_undeleted(event)

    def _group_created(self, offset: int, time_us: int, event: e.GroupCreated) -> None:
        if queue := self._queue(event.queue, offset):
            queue.group_created(event, time_us)

    def _group_deleted(self, offset: int, time_us: int, event: e.GroupDeleted) -> None:
        if queue := self._queue(event.queue, offset):
            queue.group_deleted(event)

    def _group_sought(self, offset: int, time_us: int, event: e.GroupSought) -> None:
        if queue := self._queue(event.queue, offset):
            queue.group_sought(event)

    def _queue_purged(self, offset: int, time_us: int, event: e.QueuePurged) -> None:
        if queue := self._queue(event.queue, offset):
            queue.purged(event)
            queue.delayed.purge(offset)
        if dead := self._dead(event.queue, offset):
            dead.purged(event.kept)

    def _bound(self, offset: int, time_us: int, event: e.Bound) -> None:
        queue = self._queue(event.queue, offset)
        if queue is not None and event.pattern not in queue.patterns:
            queue.bound(event)
            self.bindings.add(event.queue, event.pattern)

    def _unbound(self, offset: int, time_us: int, event: e.Unbound) -> None:
        if queue := self._queue(event.queue, offset):
            queue.unbound(event)
            self.bindings.discard(event.queue, event.pattern)

    def _published(self, offset: int, time_us: int, event: e.Published) -> None:
        self._came(offset, event)
        if event.dedup:
            self.dedup.published(offset, time_us, event)
        if event.producer and self._fresh(self.producers, offset):
            self.producers.published(offset, event)

    def _came(self, offset: int, event: e.Published, index: int = 0) -> None:
        """A batch, which is in the record from `index` on, came to its queue."""
        queue = self._queue(event.queue, offset)
        if queue is not None and event.due_us:
            for _, entry in event.delayed(offset, index):
                queue.delay(entry, timed=event.timed)
        elif queue is not None:
            queue.published(event)

    def _routed(self, offset: int, time_us: int, event: e.Routed) -> None:
        self._came_by_topic(offset, time_us, event)
        if event.producer and self._fresh(self.producers, offset):
            self.producers.published(offset, event)

    def _came_by_topic(self, offset: int, time_us: int, event: e.Routed, index: int = 0) -> None:
        """A batch, which is in the record from `index` on, came to the queues that are bound to its topic."""
        for number, lane, sequence in event.targets:
            if queue := self._queue(number, offset):
                if event.due_us:
                    queue.delay((event.due_us, offset, index, event.count, event.bytes, lane), timed=event.timed)
                else:
                    queue.routed(event, lane, sequence)
            if event.unroutable and (dead := self._dead_or_new(number, offset)):
                dead.received_unroutable(offset, time_us, sequence, event)

    def _transaction_committed(self, offset: int, time_us: int, event: e.TransactionCommitted) -> None:
        self._several = set()
        # What is acked goes before something comes: a full queue may take as much again.
        for acked in event.acked:
            self._acked(offset, time_us, acked)
        index = 0
        for published in event.published:
            self._came(offset, published, index)
            index += published.count
        for routed in event.routed:
            self._came_by_topic(offset, time_us, routed, index)
            index += routed.count
        self._several = None
        self.dedup.committed(offset, time_us, event)
        if event.producer and self._fresh(self.producers, offset):
            self.producers.committed(offset, event)

    def _matured(self, offset: int, time_us: int, event: e.Matured) -> None:
        if queue := self._queue(event.queue, offset):
            queue.matured(event)

    def _redelayed(self, offset: int, time_us: int, event: e.Rescheduled | e.Cancelled) -> None:
        if queue := self._queue(event.queue, offset):
            queue.redelayed(event)

    def _made_ready(self, offset: int, time_us: int, event: e.MadeReady) -> None:
        if queue := self._queue(event.queue, offset):
            queue.made_ready(event)

    def _producers_forgotten(self, offset: int, time_us: int, event: e.ProducersForgotten) -> None:
        if self._fresh(self.producers, offset):
            self.producers.forgotten(event)

    def _dedup_forgotten(self, offset: int, time_us: int, event: e.DedupForgotten) -> None:
        self.dedup.forgotten(offset, event)

    def _subscribed(self, offset: int, time_us: int, event: e.Subscribed) -> None:
        if queue := self._queue(event.queue, offset):
            queue.subscribed(event)
        if self._fresh(self.topology, offset):
            self.topology.subscribed(event)

    def _unsubscribed(self, offset: int, time_us: int, event: e.Unsubscribed) -> None:
        if queue := self._queue(event.queue, offset):
            queue.unsubscribed(event, time_us)
        if self._fresh(self.topology, offset):
            self.topology.unsubscribed(event)

    def _delivered(self, offset: int, time_us: int, event: e.Delivered) -> None:
        if queue := self._queue(event.queue, offset):
            queue.delivered(event)

    def _acked(self, offset: int, time_us: int, event: e.Acked) -> None:
        if queue := self._queue(event.queue, offset):
            queue.acked(event)
        if self.dead and (dead := self._dead(event.queue, offset)):
            dead.settled(event.spans)

    def _released(self, offset: int, time_us: int, event: e.Released) -> None:
        if queue := self._queue(event.queue, offset):
            queue.released(event)

    def _dropped(self, offset: int, time_us: int, event: e.Dropped) -> None:
        if queue := self._queue(event.queue, offset):
            queue.dropped(event)
        if dead := self._dead(event.queue, offset):
            dead.settled(event.spans)

    def _redriven(self, offset: int, time_us: int, event: e.Redriven) -> None:
        if queue := self._queue(event.queue, offset):
            queue.redriven(event)
        if dead := self._dead(event.queue, offset):
            dead.settled(event.spans)
        if target := self._queue(event.target, offset):
            target.received_redriven(event)

    def _dead_lettered(self, offset: int, time_us: int, event: e.DeadLettered) -> None:
        if queue := self._queue(event.queue, offset):
            queue.dead_lettered(event)
        if dead := self._dead(event.queue, offset):
            dead.settled(event.spans)
        if not event.dead_queue:
            return
        if target := self._queue(event.dead_queue, offset):
            target.received_dead(event)
        if dead := self._dead_or_new(event.dead_queue, offset):
            dead.received(offset, time_us, event)

    def _schedule_set(self, offset: int, time_us: int, event: e.ScheduleSet) -> None:
        if event.schedule == offset and offset not in self.schedules:
            self.schedules[offset] = Schedule(event, time_us)
            self.schedules[offset].as_of = offset + 1
        elif schedule := self._schedule(event.schedule, offset):
            schedule.changed(event, time_us)

    def _schedule_paused(self, offset: int, time_us: int, event: e.SchedulePaused) -> None:
        if schedule := self._schedule(event.schedule, offset):
            schedule.set_paused(event)

    def _schedule_deleted(self, offset: int, time_us: int, event: e.ScheduleDeleted) -> None:
        self.schedules.pop(event.schedule, None)

    def _fired(self, offset: int, time_us: int, event: e.Fired) -> None:
        for number, lane, sequence in event.targets:
            if queue := self._queue(number, offset):
                queue.routed(event, lane, sequence)
        if schedule := self._schedule(event.schedule, offset):
            schedule.fired(event)

    def _misfired(self, offset: int, time_us: int, event: e.Misfired) -> None:
        if schedule := self._schedule(event.schedule, offset):
            schedule.misfired(event)

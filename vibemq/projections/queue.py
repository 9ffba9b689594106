"""A queue as a projection: its settings, what it is bound to, how far its lanes are numbered, and its groups.

Each lane numbers its messages from 1 as they become ready: a priority is a lane of its own, all else is lane 0. The
groups work through the lanes: queues that fan out have one for each subscriber, the others the one DEFAULT_GROUP.
"""

from typing import Any

import msgspec

from vibemq import events as e
from vibemq.declaration import Mode, QueueSettings
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE
from vibemq.projections.delayed import Delayed
from vibemq.projections.group import Group


class Queue:
    """One queue. `as_of`, `id` and `declared_us` say where it stands; what changes is applied event by event."""

    __slots__ = (
        "as_of",
        "declared_us",
        "delayed",
        "deleted_until_us",
        "floor",
        "groups",
        "id",
        "idle_since_us",
        "name",
        "next",
        "next_group",
        "patterns",
        "settings",
        "settled_bytes",
        "timed",
        "total_bytes",
    )

    def __init__(self, declared: e.QueueDeclared, time_us: int) -> None:
        """Create the empty queue that was declared at `time_us`."""
        self.as_of = 0
        self.id, self.name, self.settings = declared.queue, declared.name, declared.settings
        self.declared_us = time_us
        self.idle_since_us = time_us
        """It has had no consumers since then, if it has none; counted anew when its `expires_ms` is another."""
        self.deleted_until_us = 0
        """It was deleted, and can be brought back up to this time; 0: it was not."""
        self.patterns: dict[str, None] = {}
        """The patterns of topics that it is bound to; also while it is deleted and can be brought back."""
        self.next: dict[int, int] = {DEFAULT_LANE: 1}
        """Lane -> the sequence of its next message."""
        self.floor = 1
        """No group goes back to sequences below: they were purged."""
        self.timed = False
        """Some messages may have come with a time to live of their own."""
        self.total_bytes = 0
        """The bytes of all records that ever came."""
        self.settled_bytes = 0
        """Those of them that are settled; not counted where there are several groups."""
        self.next_group = DEFAULT_GROUP + 1
        self.delayed = Delayed()
        """What waits for its time, and is in no lane yet."""
        self.groups: dict[int, Group] = {}
        if not self.settings.mode.has_groups:
            self.groups[DEFAULT_GROUP] = Group(DEFAULT_GROUP, "")

    # --- counts

    @property
    def key(self) -> str:
        """The stable name of the part."""
        return f"queue/{self.id}"

    @property
    def behind(self) -> Group | None:
        """The group that has the most before it; None where there is none."""
        only = self.groups.get(DEFAULT_GROUP)
        if only is not None:
            return only
        return max(self.groups.values(), key=lambda group: group.length(self.next), default=None)

    @property
    def length(self) -> int:
        """Messages that are not settled, of the group that is furthest behind."""
        group = self.behind
        return 0 if group is None else group.length(self.next)

    @property
    def bytes(self) -> int:
        """The bytes of their records."""
        group = self.behind
        return 0 if group is None else self.bytes_of(group)

    def bytes_of(self, group: Group) -> int:
        """The bytes of what a group has not settled; of a named one an estimate, from the average of all that came."""
        if group.id == DEFAULT_GROUP:
            return self.total_bytes - self.settled_bytes
        return group.length(self.next) * self.total_bytes // max(1, self.next[DEFAULT_LANE] - 1)

    @property
    def filled(self) -> int:
        """Messages that count for its `max_length`: those that wait for their time have their room from the start."""
        return self.length + self.delayed.count

    @property
    def filled_bytes(self) -> int:
        """Bytes that count for its `max_bytes`."""
        return self.bytes + self.delayed.bytes

    @property
    def unacked(self) -> int:
        """Messages that consumers hold, of the group that is furthest behind."""
        group = self.behind
        return 0 if group is None else group.unacked

    @property
    def waiting(self) -> int:
        """Messages that are not yet due, of the group that is furthest behind."""
        group = self.behind
        return 0 if group is None else group.waiting_count

    @property
    def ready(self) -> int:
        """Messages that a consumer could get now, of the group that is furthest behind."""
        group = self.behind
        return 0 if group is None else group.ready(self.next)

    def group_named(self, name: str) -> Group | None:
        """The group of that name."""
        return next((group for group in self.groups.values() if group.name == name), None)

    @property
    def has_consumers(self) -> bool:
        """Whether somebody takes part in any of its groups."""
        return any(group.held for group in self.groups.values())

    # --- messages come

    def published(self, event: e.Published) -> None:
        """A batch became ready."""
        self._grow(event.lane, event.sequence, event.count, event.bytes)
        if event.timed:
            self.timed = True

    def routed(self, event: e.Routed | e.Fired, lane: int, sequence: int) -> None:
        """A batch that was published to a topic, or by a schedule, became ready here, one of its targets."""
        self._grow(lane, sequence, event.count, event.bytes)
        if event.timed:
            self.timed = True

    def received_dead(self, event: e.DeadLettered) -> None:
        """This is a dead-letter queue, and got these."""
        self._grow(DEFAULT_LANE, event.dead_sequence, event.count, event.bytes)

    def received_redriven(self, event: e.Redriven) -> None:
        """Dead letters came back to work; their former attempts still count, and are forgiven."""
        self._grow(event.lane, event.sequence, event.count, event.bytes)
        self.timed = True
        if event.attempts:
            for group in self.groups.values():
                group.lanes[event.lane].forgive(event.sequence, event.sequence + event.count, event.attempts)

    def _grow(self, lane: int, sequence: int, count: int, size: int) -> None:
        expected = self.next.get(lane)
        if expected is None:
            self.next[lane] = expected = 1
            for group in self.groups.values():
                group.add_lane(lane)
        assert sequence == expected, f"{self.name}: sequence {sequence} after {expected - 1}"
        self.next[lane] = sequence + count
        self.total_bytes += size

    # --- messages wait for their time

    def delay(self, entry: e.Entry, *, timed: bool) -> None:
        """A batch came that is not ready yet."""
        self.delayed.add(entry)
        self.timed = self.timed or timed

    def matured(self, event: e.Matured) -> None:
        """Delayed messages became ready."""
        for entry in event.entries:
            self.delayed.remove(entry)
        self._grow(event.lane, event.sequence, event.count, event.bytes)

    def redelayed(self, event: e.Rescheduled | e.Cancelled) -> None:
        """Delayed messages wait for another time, or were taken back."""
        for entry in event.before:
            self.delayed.remove(entry)
        for entry in event.after:
            self.delayed.add(entry)

    # --- groups and consumers

    def group_created(self, event: e.GroupCreated, time_us: int) -> None:
        """A group begins."""
        group = self.groups[event.group] = Group(event.group, event.name, ephemeral=event.ephemeral)
        for number in self.next:
            group.add_lane(number)
        group.lanes[DEFAULT_LANE].cursor = event.sequence
        group.idle_since_us = time_us
        self.next_group = event.group + 1

    def group_deleted(self, event: e.GroupDeleted) -> None:
        """A group is gone."""
        del self.groups[event.group]

    def group_sought(self, event: e.GroupSought) -> None:
        """A group goes on from somewhere else."""
        self.groups[event.group].seek(event.sequence)

    def subscribed(self, event: e.Subscribed) -> None:
        """A consumer came."""
        self.groups[event.group].join(event.subscription)

    def unsubscribed(self, event: e.Unsubscribed, time_us: int) -> None:
        """A consumer left; its messages were released before."""
        self.groups[event.group].leave(event.subscription, time_us)
        self.idle_since_us = time_us

    def everyone_left(self, time_us: int, *, clean: bool) -> None:
        """The broker stopped or started: no consumer is there any more."""
        if self.has_consumers:
            self.idle_since_us = time_us
        for group in self.groups.values():
            group.leave_all(time_us, clean=clean, next_sequences=self.next)

    # --- messages go

    def delivered(self, event: e.Delivered) -> None:
        """A consumer holds these now; where nothing is acked they are done with."""
        group = self.groups[event.group]
        if self.settings.mode is Mode.FAN_OUT_NO_ACK:
            group.take_ready(event.spans)
            group.forget(event.spans)
            return
        group.hand_out(event.subscription, event.spans)
        group.unacked_bytes += event.bytes

    def acked(self, event: e.Acked) -> None:
        """A consumer is done with these."""
        self._settle_held(event.group, event.subscription, event.spans, event.bytes)

    def dead_lettered(self, event: e.DeadLettered) -> None:
        """These left the queue."""
        if event.subscription:
            self._settle_held(event.group, event.subscription, event.spans, event.bytes)
        else:
            self._settle_ready(event.group, event.spans, event.bytes)

    def dropped(self, event: e.Dropped) -> None:
        """These were thrown away."""
        self._settle_ready(event.group, event.spans, event.bytes)

    def redriven(self, event: e.Redriven) -> None:
        """These dead letters went back to work."""
        self._settle_ready(DEFAULT_GROUP, event.spans, event.bytes)

    def _settle_held(self, number: int, subscription: int, spans: e.Spans, size: int) -> None:
        group = self.groups[number]
        group.take_back(subscription, spans)
        group.unacked_bytes -= size
        group.forget(spans)
        if number == DEFAULT_GROUP:
            self.settled_bytes += size

    def _settle_ready(self, number: int, spans: e.Spans, size: int) -> None:
        group = self.groups[number]
        group.take_ready(spans)
        group.forget(spans)
        if number == DEFAULT_GROUP:
            self.settled_bytes += size

    def released(self, event: e.Released) -> None:
        """A consumer gave these back, or lost them."""
        group = self.groups[event.group]
        group.unacked_bytes -= event.bytes
        group.give_back(event)

    def made_ready(self, event: e.MadeReady) -> None:
        """These have waited long enough."""
        self.groups[event.group].end_waiting(event.spans)

    def purged(self, event: e.QueuePurged) -> None:
        """Everything that nobody holds is gone, but for what is delayed."""
        for group in self.groups.values():
            group.purge(self.next)
        self.floor = self.next[DEFAULT_LANE]
        if DEFAULT_GROUP in self.groups:
            self.settled_bytes += event.bytes

    # --- the queue itself

    def changed(self, event: e.QueueChanged, time_us: int) -> None:
        """It has other settings."""
        if event.settings.expires_ms != self.settings.expires_ms:
            self.idle_since_us = time_us
        self.settings = event.settings

    def renamed(self, event: e.QueueRenamed) -> None:
        """It has another name."""
        self.name = event.name

    def deleted(self, event: e.QueueDeleted) -> None:
        """It is gone, but can come back."""
        self.deleted_until_us = event.until_us

    def undeleted(self, event: e.QueueUndeleted, time_us: int) -> None:
        """It is back."""
        self.idle_since_us = time_us
        self.name, self.deleted_until_us = event.name, 0

    def bound(self, event: e.Bound) -> None:
        """It gets what is published to more topics."""
        self.patterns[event.pattern] = None

    def unbound(self, event: e.Unbound) -> None:
        """It gets what is published to fewer topics."""
        del self.patterns[event.pattern]

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            self.id,
            self.name,
            self.settings,
            self.declared_us,
            self.deleted_until_us,
            self.idle_since_us,
            sorted(self.next.items()),
            self.floor,
            self.timed,
            self.total_bytes,
            self.settled_bytes,
            self.next_group,
            sorted(self.patterns),
            self.delayed.snapshot(),
            [group.snapshot() for _, group in sorted(self.groups.items())],
        ]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Queue":
        """The queue of which this is a snapshot."""
        number, name, settings, declared_us, deleted_until_us, idle_since_us, next_sequences, *rest = snapshot
        declared = e.QueueDeclared(number, name, msgspec.convert(settings, QueueSettings), 0)
        queue = cls(declared, declared_us)
        queue.as_of = as_of
        queue.deleted_until_us, queue.idle_since_us = deleted_until_us, idle_since_us
        queue.next = {lane: sequence for lane, sequence in next_sequences}  # noqa: C416 - pairs are lists here
        queue.floor, queue.timed, queue.total_bytes, queue.settled_bytes, queue.next_group, *rest = rest
        patterns, delayed, groups = rest
        queue.delayed = Delayed.restore(delayed)
        queue.patterns = dict.fromkeys(patterns)
        restored = [Group.restore(group) for group in groups]
        queue.groups = {group.id: group for group in restored}
        return queue

"""The story of one message: which events are about it, from its publish to its end."""

from typing import NamedTuple, TypeAlias

from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.errors import UsageError
from vibemq.history.names import Names
from vibemq.history.replay import kind_of
from vibemq.history.waiting import due_of, place_of

Publish: TypeAlias = e.Published | e.Routed | e.Fired
"""What publishes one batch."""


class MessageId(NamedTuple):
    """Where a message was published: the record, and its place in the batch."""

    offset: int
    place: int

    @classmethod
    def parse(cls, text: str) -> "MessageId":
        """The id as clients get it, `12-0`.

        Raises:
            UsageError: it is none.
        """
        offset, dash, place = text.partition("-")
        if not (dash and offset.isdecimal() and place.isdecimal() and text.isascii()):
            raise UsageError(
                f"{text!r} is no message id: it looks like 12-0, as a receipt or `consume --json` gives it"
            )
        return cls(int(offset), int(place))


def publishes_of(event: e.Event) -> tuple[Publish, ...]:
    """The batches that a record publishes, in the order in which their messages are counted."""
    if isinstance(event, e.TransactionCommitted):
        return (*event.published, *event.routed)
    return (event,) if isinstance(event, e.Published | e.Routed | e.Fired) else ()


def duplicates_of(event: e.Event) -> tuple[e.Duplicate, ...]:
    """What was published and not stored, as another message with its dedup id was there."""
    return tuple(one for part in publishes_of(event) for one in getattr(part, "duplicates", ()))


class _Place:
    """A message in one queue: which groups have not settled it, and which of them hold it now."""

    __slots__ = ("floor", "held", "lane", "mode", "queue", "sequence", "unsettled")

    def __init__(self, queue: int, lane: int, sequence: int, names: Names) -> None:
        self.queue, self.lane, self.sequence = queue, lane, sequence
        self.mode = names.mode(queue)
        self.unsettled = dict.fromkeys(names.groups(queue))
        self.held: dict[int, None] = {}
        self.floor = not self.mode.has_groups
        """Nothing that is settled can come back: there is one group, or the queue was purged."""

    @property
    def ended(self) -> bool:
        """Whether the message is done with here."""
        return self.floor and not self.unsettled

    def settle(self, group: int) -> None:
        """The group is done with it."""
        self.unsettled.pop(group, None)
        self.held.pop(group, None)

    def index(self, spans: e.Spans) -> int | None:
        """At which place among the messages of these spans it is; None: it is not."""
        before = 0
        for lane, first, end in spans:
            if lane == self.lane and first <= self.sequence < end:
                return before + self.sequence - first
            before += end - first
        return None


class Story:
    """One message from its publish to its end, through all queues and groups that it passes, and its second lives."""

    def __init__(self, message: MessageId) -> None:
        """Wait for its publish."""
        self.id = message
        self.born = False
        self._places: list[_Place] = []
        self._waiting: dict[int, None] = {}
        """The queues in which it waits for its time."""

    @property
    def alive(self) -> bool:
        """Whether something can still happen to it."""
        return bool(self._places or self._waiting)

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.born and not self.alive

    def touch(self, offset: int, event: e.Event, names: Names) -> bool:
        """Whether this event is about the message. Every event from its publish on must be shown in order.

        Raises:
            UsageError: the record that the id names did not publish it.
        """
        if offset == self.id.offset:
            self._publish(event, names)
            return True
        touched = self._touch_waiting(event, names)
        parts = event.acked if isinstance(event, e.TransactionCommitted) else (event,)
        for place in list(self._places):
            for part in parts:
                touched |= self._touch_place(place, part, names)
        self._places = [place for place in self._places if not place.ended]
        return touched or any(self.id == (offset, index) for _, offset, index in duplicates_of(event))

    def _publish(self, event: e.Event, names: Names) -> None:
        """Find the message in the record that its id names: in a transaction its index counts through all batches."""
        parts = publishes_of(event)
        if not parts:
            raise UsageError(f"record {self.id.offset} published no message: it is {kind_of(event.TAG)}")
        count, place = sum(part.count for part in parts), self.id.place
        if place >= count:
            last = f"the last is {self.id.offset}-{count - 1}" if count else "none was stored"
            raise UsageError(f"record {self.id.offset} holds {count} messages: {last}")
        self.born = True
        for part in parts:
            if place < part.count:
                self._arrive(part, place, names)
                return
            place -= part.count

    def _arrive(self, part: Publish, place: int, names: Names) -> None:
        for queue, lane, first, _ in part.arrivals:
            self._places.append(_Place(queue, lane, first + place, names))
        if not isinstance(part, e.Fired):
            self._waiting |= {queue: None for queue, _ in part.delayed(self.id.offset)}

    def _touch_waiting(self, event: e.Event, names: Names) -> bool:
        """What an event means for the message where it waits for its time."""
        queue = getattr(event, "queue", 0)
        if queue not in self._waiting:
            return False
        if isinstance(event, e.QueueDeleted | e.QueueUndeleted | e.QueuePurged):
            if isinstance(event, e.QueuePurged) or (isinstance(event, e.QueueDeleted) and not event.until_us):
                del self._waiting[queue]
            return True
        if isinstance(event, e.Matured):
            index = place_of(event.entries, *self.id)
            if index is None:
                return False
            del self._waiting[queue]
            self._places.append(_Place(queue, event.lane, event.sequence + index, names))
            return True
        if not isinstance(event, e.Rescheduled | e.Cancelled):
            return False
        before, after = due_of(event.before, *self.id), due_of(event.after, *self.id)
        if before and not after:
            del self._waiting[queue]
        return before != after

    def _touch_place(self, place: _Place, event: e.Event, names: Names) -> bool:
        if isinstance(event, e.BrokerStarted | e.BrokerStopped):
            was_held = bool(place.held)
            place.held.clear()
            return was_held
        if getattr(event, "queue", 0) != place.queue:
            return False
        if (index := place.index(getattr(event, "spans", ()))) is not None:
            self._touch_spans(place, index, event, names)
            return True
        if isinstance(event, e.QueueDeleted | e.QueueUndeleted):
            if isinstance(event, e.QueueDeleted) and not event.until_us:
                self._places.remove(place)
            return True
        if isinstance(event, e.QueuePurged):
            kept = len(place.held)
            thrown_away = len(place.unsettled) > kept
            place.unsettled, place.floor = dict(place.held), True
            return thrown_away
        return _touch_group(place, event)

    def _touch_spans(self, place: _Place, index: int, event: e.Event, names: Names) -> None:
        group = getattr(event, "group", e.DEFAULT_GROUP)
        if isinstance(event, e.Delivered):
            if place.mode is Mode.FAN_OUT_NO_ACK:
                place.settle(group)
            else:
                place.held[group] = None
        elif isinstance(event, e.Released):
            place.held.pop(group, None)
        elif isinstance(event, e.Acked | e.Dropped | e.DeadLettered | e.Redriven):
            place.settle(group)
            for queue, lane, first, _ in event.arrivals:
                self._places.append(_Place(queue, lane, first + index, names))


def _touch_group(place: _Place, event: e.Event) -> bool:
    """What an event about a group as a whole means for a message."""
    if isinstance(event, e.GroupCreated):
        if event.sequence > place.sequence:
            return False
        place.unsettled[event.group] = None
        return True
    if not isinstance(event, e.GroupDeleted | e.GroupSought):
        return False
    touched = event.group in place.unsettled
    place.settle(event.group)
    if isinstance(event, e.GroupSought) and event.sequence <= place.sequence:
        place.unsettled[event.group] = None
        return True
    return touched

"""The audit trail: events by queue, client, message, kind and time, with the names that their numbers stood for.

The log is read from its beginning whatever the filter asks for, because the names come from the events that introduced
them. Of records that are not asked for only the header and the checksums are looked at; reading ends where nothing can
follow any more: at `until_us`, or with the event that settled the message for good. In a queue that fans out nothing
does before the queue is purged or deleted: a group may go back, or a new one begin before it.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.errors import BeyondLog, UsageError
from vibemq.history.names import NAMING, Client, Names
from vibemq.history.replay import kind_of
from vibemq.history.wording import words

KINDS: Final = {kind_of(tag): tag for tag in e.CATALOGUE}
"""The kinds of event by name."""


class Recorded(Protocol):
    """What the trail needs of a record."""

    @property
    def offset(self) -> int:
        """Its number."""

    @property
    def time_us(self) -> int:
        """When it was appended."""

    @property
    def tag(self) -> int:
        """The kind of event."""

    @property
    def event(self) -> e.Event:
        """The event."""


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


class Filter(NamedTuple):
    """What is asked for; None and empty ask for everything. Times are in microseconds: since <= time < until.

    `client` is a name, an address with or without its port, or `#` and the number of a connection.
    """

    queue: str | None = None
    client: str | None = None
    message: MessageId | None = None
    kinds: frozenset[int] = frozenset()
    since_us: int = 0
    until_us: int | None = None


class Entry(NamedTuple):
    """One event of the trail. `queue` and `group` are the names of those it is about.

    What is published to a topic is about any number of queues: they are in its `text`, and `queue` is None.
    """

    offset: int
    time_us: int
    kind: str
    queue: str | None
    group: str | None
    client: Client | None
    text: str
    event: e.Event


def select(records: Iterable[Recorded], wanted: Filter) -> Iterator[Entry]:
    """The events that a filter asks for, in the order of the log. `records` begin with the first one of the log.

    Raises:
        UsageError: the message that is asked for was never published.
        BeyondLog: the log ends before the record that the message's id names.
    """
    names, story = Names(), None if wanted.message is None else Story(wanted.message)
    for record in records:
        if wanted.until_us is not None and record.time_us >= wanted.until_us:
            return
        tag = record.tag
        shown = record.time_us >= wanted.since_us and (not wanted.kinds or tag in wanted.kinds)
        followed = story is not None and (story.alive or record.offset == story.id.offset)
        if not followed and tag not in NAMING and (story is not None or not shown):
            continue
        event = record.event
        names.introduce(event)
        touched = story is None or (followed and story.touch(record.offset, event, names))
        if shown and touched and _is_of(event, names, wanted):
            yield _entry(record, event, names)
        names.forget(event)
        if story is not None and story.ended:
            return
    if story is not None and not story.born and wanted.until_us is None:
        raise BeyondLog(
            f"the log has no record {story.id.offset} yet, and so no message {story.id.offset}-{story.id.place}"
        )


def _entry(record: Recorded, event: e.Event, names: Names) -> Entry:
    number = getattr(event, "queue", None)
    return Entry(
        record.offset,
        record.time_us,
        kind_of(record.tag),
        None if number is None else names.queue(number),
        names.group(event),
        names.client(event),
        words(record.offset, event, names),
        event,
    )


def queues_of(event: e.Event) -> tuple[int, ...]:
    """The queues that an event is about: its own first, then those that messages went to."""
    if isinstance(event, e.Routed):
        return tuple(queue for queue, _, _ in event.targets)
    numbers = (getattr(event, "queue", 0), getattr(event, "dead_queue", 0), getattr(event, "target", 0))
    return tuple(number for number in numbers if number)


def _is_of(event: e.Event, names: Names, wanted: Filter) -> bool:
    """Whether the event is about the queue and the client that are asked for."""
    if wanted.queue is not None:
        numbers = queues_of(event)
        if wanted.queue not in [*map(names.queue, numbers), *map(names.former, numbers)]:
            return False
    if wanted.client is None:
        return True
    client = names.client(event)
    if client is not None:
        return wanted.client in {client.name or None, f"#{client.connection}"} or _at(client.address, wanted.client)
    return isinstance(event, e.ClientRefused) and _at(event.address, wanted.client)


def _at(address: str, wanted: str) -> bool:
    return wanted in {address, address.rpartition(":")[0]}


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

    @property
    def alive(self) -> bool:
        """Whether something can still happen to it."""
        return bool(self._places)

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.born and not self._places

    def touch(self, offset: int, event: e.Event, names: Names) -> bool:
        """Whether this event is about the message. Every event from its publish on must be shown in order.

        Raises:
            UsageError: the record that the id names did not publish it.
        """
        if offset == self.id.offset:
            self._publish(event, names)
            return True
        touched = False
        for place in list(self._places):
            touched |= self._touch_place(place, event, names)
        self._places = [place for place in self._places if not place.ended]
        return touched

    def _publish(self, event: e.Event, names: Names) -> None:
        if not isinstance(event, e.Published | e.Routed):
            raise UsageError(f"record {self.id.offset} published no message: it is {kind_of(event.TAG)}")
        if self.id.place >= event.count:
            last = f"the last is {self.id.offset}-{event.count - 1}" if event.count else "the queue was full"
            raise UsageError(f"record {self.id.offset} holds {event.count} messages: {last}")
        self.born = True
        for queue, lane, first, _ in event.arrivals:
            self._places.append(_Place(queue, lane, first + self.id.place, names))

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

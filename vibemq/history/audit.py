"""The audit trail: events by queue, client, message, kind and time, with the names that their numbers stood for.

The log is read from its beginning whatever the filter asks for, because the names come from the events that introduced
them. Of records that are not asked for only the header and the checksums are looked at; reading ends where nothing can
follow any more: at `until_us`, or with the event that settled the message.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from vibemq import events as e
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
    """One event of the trail. `queue` is the name of the queue it is about."""

    offset: int
    time_us: int
    kind: str
    queue: str | None
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
        touched = story is None or (followed and story.touch(record.offset, event))
        if shown and touched and _is_of(event, names, wanted):
            number = getattr(event, "queue", None)
            queue = None if number is None else names.queue(number)
            text = words(record.offset, event, names)
            yield Entry(record.offset, record.time_us, kind_of(tag), queue, names.client(event), text, event)
        names.forget(event)
        if story is not None and story.ended:
            return
    if story is not None and not story.born and wanted.until_us is None:
        raise BeyondLog(
            f"the log has no record {story.id.offset} yet, and so no message {story.id.offset}-{story.id.place}"
        )


def _is_of(event: e.Event, names: Names, wanted: Filter) -> bool:
    """Whether the event is about the queue and the client that are asked for."""
    if wanted.queue is not None:
        numbers = (getattr(event, "queue", 0), getattr(event, "dead_queue", 0))
        if wanted.queue not in [names.queue(number) for number in numbers if number]:
            return False
    if wanted.client is None:
        return True
    client = names.client(event)
    if client is not None:
        return wanted.client in {client.name or None, f"#{client.connection}"} or _at(client.address, wanted.client)
    return isinstance(event, e.ClientRefused) and _at(event.address, wanted.client)


def _at(address: str, wanted: str) -> bool:
    return wanted in {address, address.rpartition(":")[0]}


class Story:
    """One message from its publish to its end, through the queues that it passes."""

    def __init__(self, message: MessageId) -> None:
        """Wait for its publish."""
        self.id = message
        self.born = self.ended = False
        self._queue = self._lane = self._sequence = 0
        self._held = False

    @property
    def alive(self) -> bool:
        """Whether something can still happen to it."""
        return self.born and not self.ended

    def touch(self, offset: int, event: e.Event) -> bool:
        """Whether this event is about the message. Every event from its publish on must be shown in order.

        Raises:
            UsageError: the record that the id names did not publish it.
        """
        if offset == self.id.offset:
            self._publish(event)
            return True
        if isinstance(event, e.BrokerStarted | e.BrokerStopped):
            held, self._held = self._held, False
            return held
        if getattr(event, "queue", 0) != self._queue:
            return False
        if isinstance(event, e.QueueDeleted):
            self.ended = True
            return True
        if isinstance(event, e.QueuePurged):
            self.ended = not self._held
            return self.ended
        return self._touch_spans(event)

    def _publish(self, event: e.Event) -> None:
        if not isinstance(event, e.Published):
            raise UsageError(f"record {self.id.offset} published no message: it is {kind_of(event.TAG)}")
        if self.id.place >= event.count:
            raise UsageError(
                f"record {self.id.offset} holds {event.count} messages: the last is {self.id.offset}-{event.count - 1}"
            )
        self.born = True
        self._queue, self._lane, self._sequence = event.queue, event.lane, event.sequence + self.id.place

    def _touch_spans(self, event: e.Event) -> bool:
        before = 0
        for lane, first, end in getattr(event, "spans", ()):
            if lane == self._lane and first <= self._sequence < end:
                break
            before += end - first
        else:
            return False
        if isinstance(event, e.Delivered):
            self._held = True
        elif isinstance(event, e.Released):
            self._held = False
        elif isinstance(event, e.Acked):
            self.ended = True
        elif isinstance(event, e.DeadLettered):
            self._held, self.ended = False, not event.dead_queue
            place = before + self._sequence - first
            self._queue, self._lane, self._sequence = event.dead_queue, e.DEFAULT_LANE, event.dead_sequence + place
        return True

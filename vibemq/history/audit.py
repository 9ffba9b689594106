"""The audit trail: events by queue, client, message, kind and time, with the names that their numbers stood for.

The log is read from its beginning whatever the filter asks for, because the names come from the events that introduced
them. Of records that are not asked for only the header and the checksums are looked at; reading ends where nothing can
follow any more: at `until_us`, or with the event that settled the message for good. In a queue that fans out nothing
does before the queue is purged or deleted: a group may go back, or a new one begin before it.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from vibemq import events as e
from vibemq.errors import BeyondLog
from vibemq.history.names import NAMING, Client, Names
from vibemq.history.replay import kind_of
from vibemq.history.story import MessageId, Story
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

    What is published to a topic, by a schedule or in a transaction is about any number of queues: they are in its
    `text`, and `queue` is None.
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
    if isinstance(event, e.TransactionCommitted):
        parts: tuple[e.Event, ...] = (*event.published, *event.routed, *event.acked)
        return tuple(dict.fromkeys(queue for part in parts for queue in queues_of(part)))
    if isinstance(event, e.Routed | e.Fired):
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

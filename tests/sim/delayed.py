"""Messages that wait for their time: what the book says of them, and what the broker may decide about them.

In the book each of them is by itself, under its id; the events speak of entries, rows of messages of one record.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from tests.checker import Copy, Violation
from tests.sim.contents import Delayed, Entry, Queue, Told
from tests.sim.mail import Message, name_of
from vibemq import events as e
from vibemq.protocol import messages as m
from vibemq.protocol.json_lines import rfc3339
from vibemq.server import effects as f

if TYPE_CHECKING:
    from tests.sim.book import Book

NEVER_US: Final = (1 << 63) - 1
"""The latest due time there is."""
Until: TypeAlias = tuple[int, int]
"""When a message is due, and its lane."""


def spread(entries: Iterable[e.Entry]) -> dict[str, Until]:
    """Each message of some entries, by its id."""
    return {
        f"{offset}-{index + at}": (due_us, lane)
        for due_us, offset, index, count, _, lane in entries
        for at in range(count)
    }


def resolved(command: m.Command, now_us: int) -> m.Command:
    """A command about delayed messages, with what it means at that time."""
    if not isinstance(command, m.Reschedule):
        return command
    wanted_us = min(command.due_us or now_us + command.delay_ms * 1000, NEVER_US)
    return msgspec.structs.replace(command, due_us=max(wanted_us, now_us), delay_ms=0)


class DelayedBook:
    """Who waits where, and until when."""

    def __init__(self, book: "Book") -> None:
        """Write into this book."""
        self._book = book
        self.applies: dict[type, Callable[[Any, Told], None]] = {
            e.Matured: self._matured,
            e.Rescheduled: self._rescheduled,
            e.Cancelled: self._cancelled,
        }

    def wait(self, queue: int, lane: int, due_us: int, messages: Iterable[Message]) -> None:
        """Messages came that are not ready yet."""
        for message in messages:
            self._book.queues[queue].delayed[message.id] = Delayed(due_us, lane, message)

    def end_all(self, queue: Queue, how: str) -> None:
        """Nobody waits there any more."""
        for one in list(queue.delayed):
            self.end(queue, one, how)

    def end(self, queue: Queue, one: str, how: str) -> None:
        """A message is gone before it was ready."""
        copy = Copy(queue.delayed.pop(one).message.name, str(queue.id))
        if copy in self._book.ended:
            raise Violation(f"{copy} ends a second time: {how}, after {self._book.ended[copy]}")
        self._book.ended[copy] = how

    def _take(self, queue: Queue, entries: tuple[e.Entry, ...]) -> list[tuple[str, Delayed]]:
        """Whole rows that wait there."""
        found = []
        for entry in entries:
            row = [(one, queue.delayed.get(one)) for one in spread([entry])]
            if any(known is None or (known.due_us, known.lane) != (entry[0], entry[5]) for _, known in row):
                raise Violation(f"{entry} does not wait in queue {queue.name}")
            there = [(one, waits) for one, waits in row if waits is not None]
            if sum(waits.message.size for _, waits in there) != entry[4]:
                raise Violation(f"{entry} of queue {queue.name} does not have these bytes")
            found += there
        if len(dict(found)) != len(found):
            raise Violation(f"{entries} has messages twice")
        return found

    def _matured(self, event: e.Matured, told: Told) -> None:
        queue = self._book.queues[event.queue]
        found = self._take(queue, event.entries)
        for one, _ in found:
            del queue.delayed[one]
        of = self._book.own(event.queue)
        self._book.came(
            event.queue, event.lane, event.sequence, [Entry(waits.message, told.time_us, of) for _, waits in found]
        )

    def _rescheduled(self, event: e.Rescheduled, _: Told) -> None:
        queue = self._book.queues[event.queue]
        after = spread(event.after)
        for one, waits in self._take(queue, event.before):
            queue.delayed[one] = waits._replace(due_us=after[one][0])
        self._take(queue, event.after)

    def _cancelled(self, event: e.Cancelled, _: Told) -> None:
        queue = self._book.queues[event.queue]
        left = spread(event.after)
        for one, _waits in self._take(queue, event.before):
            if one not in left:
                self.end(queue, one, "cancelled")
        self._take(queue, event.after)


class DelayedAnswers:
    """What clients are told of what waits: it is what is there."""

    def __init__(self, book: "Book") -> None:
        """Judge by this book."""
        self._book = book

    def listed(self, ask: f.DelayedListed, answer: dict[str, Any]) -> None:
        """A page of the list: the first due first, from behind a place on."""
        waits = self._book.queues[ask.queue].delayed
        ordered = sorted((one.due_us, *place_of(identity)) for identity, one in waits.items())
        behind = [place for place in ordered if place > ask.behind]
        page = behind[: ask.most]
        wanted = {
            "messages": [(f"{offset}-{index}", rfc3339(due_us)) for due_us, offset, index in page],
            "count": len(waits),
            "next": list(page[-1] if page else ask.behind) if len(behind) > len(page) else None,
        }
        found = answer | {"messages": [(one["id"], one["due_at"]) for one in answer["messages"]]}
        if found != wanted:
            raise Violation(f"{ask} is answered with {found}, where {wanted} is there")

    def shown(self, ask: f.DelayedShown, answer: dict[str, Any] | None) -> None:
        """One message, if it waits there."""
        waits = self._book.queues[ask.queue].delayed.get(f"{ask.offset}-{ask.at}")
        found = answer and (answer["due_at"], name_of(answer["body"]))
        if found != (waits and (rfc3339(waits.due_us), waits.message.name)):
            raise Violation(f"{ask} is answered with {answer}, where {waits} is there")

    def counted(self, name: str, answer: dict[str, Any]) -> None:
        """What is shown of a queue."""
        queue = self._book.queue_named(name)
        if queue is None or (answer["delayed"], answer["messages"]) != (len(queue.delayed), queue.length):
            raise Violation(f"queue {name} is shown with {answer}, where {queue and queue.delayed} are delayed")


def place_of(identity: str) -> tuple[int, int]:
    """The record of a message, and its index there."""
    offset, _, index = identity.partition("-")
    return int(offset), int(index)


class DelayedRules:
    """What may be decided.

    What was due before the broker began is overdue, and so is what a deleted queue brings back: it comes at a limited
    rate, and others that are in time may go before it.
    """

    def __init__(self, book: "Book") -> None:
        """Judge by this book."""
        self._book = book
        self.since_us = 0
        """What is due before that is overdue."""
        self.started_us = 0
        self.judges: dict[type, Callable[[Any, Told, Any], None]] = {
            e.Matured: self._matured,
            e.Rescheduled: self._rescheduled,
            e.Cancelled: self._cancelled,
            e.BrokerStarted: self._started,
        }

    def _started(self, _: e.Event, told: Told, __: m.Command | None) -> None:
        self.since_us = self.started_us = told.time_us

    def are_late(self, event: e.Matured) -> bool:
        """Whether they had been due before they could come."""
        return event.entries[0][0] < self.since_us

    def came_back(self, queue: Queue, told: Told) -> None:
        """A deleted queue is about to be there again."""
        if queue.delayed:
            self.since_us = told.time_us

    def check_due(self, event: e.Published | e.Routed, told: Told, cause: m.Publish) -> None:
        """A publish waits for as long as it was asked to, and no longer."""
        wanted_us = cause.due_us or (told.time_us + cause.delay_ms * 1000 if cause.delay_ms else 0)
        wanted_us = min(wanted_us, NEVER_US)
        is_dead = isinstance(event, e.Routed) and event.unroutable
        if event.due_us != (wanted_us if wanted_us > told.time_us and not is_dead else 0):
            raise Violation(f"{event} at {told.time_us}, where {wanted_us} was asked for")

    def _there(self, number: int, event: e.Event) -> Queue:
        queue = self._book.queues[number]
        if queue.deleted_until_us:
            raise Violation(f"{event} in a queue that is deleted")
        return queue

    def _matured(self, event: e.Matured, told: Told, _: m.Command | None) -> None:
        """Nobody too early, and the first due first, but for those that are late anyway."""
        queue = self._there(event.queue, event)
        found = spread(event.entries)
        if early := [one for one, (due_us, _) in found.items() if due_us > told.time_us]:
            raise Violation(f"{early} of queue {queue.name} are ready at {told.time_us}, and not due yet")
        dues = [entry[:3] for entry in event.entries]
        if dues != sorted(dues):
            raise Violation(f"{event} is not in the order of due times")
        are_late = {due_us < self.since_us for due_us, _, _ in dues}
        overtaken = [
            one
            for one, waits in queue.delayed.items()
            if one not in found
            and waits.lane == event.lane
            and waits.due_us < dues[-1][0]
            and (waits.due_us < self.since_us) in are_late
        ]
        if overtaken or len(are_late) > 1:
            raise Violation(f"{event} overtakes {overtaken} in queue {queue.name}")
        if sum(entry[4] for entry in event.entries) != event.bytes:
            raise Violation(f"{event} has other bytes than its entries")

    def _rescheduled(self, event: e.Rescheduled, told: Told, cause: m.Command | None) -> None:
        self._there(event.queue, event)
        if not isinstance(cause, m.Reschedule):
            raise Violation(f"{event} for {cause}")
        wanted_us = cause.due_us
        before, after = spread(event.before), spread(event.after)
        if before.keys() != after.keys():
            raise Violation(f"{event} loses or adds messages")
        for one, until in after.items():
            due_us, lane = before[one]
            if until != (wanted_us if one in cause.ids else due_us, lane):
                raise Violation(f"{event} at {told.time_us} for {cause}: {one} waits until {until}")
        if not before.keys() >= set(cause.ids):
            raise Violation(f"{event} leaves out some of {cause}")

    def _cancelled(self, event: e.Cancelled, _: Told, cause: m.Command | None) -> None:
        self._there(event.queue, event)
        if not isinstance(cause, m.CancelDelayed):
            raise Violation(f"{event} for {cause}")
        before, after = spread(event.before), spread(event.after)
        if before.keys() - after.keys() != set(cause.ids) or any(before[one] != after[one] for one in after):
            raise Violation(f"{event} takes back others than {cause}")

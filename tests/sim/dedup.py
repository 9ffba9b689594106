"""Dedup ids: which messages a queue remembers by theirs, and what it may take for a message that was there already."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.checker import Name, Violation
from tests.sim.contents import Told
from tests.sim.mail import names_in, split
from vibemq import events as e
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.book import Book


class Remembered(NamedTuple):
    """The message that an id belongs to, and when it was published."""

    offset: int
    place: int
    """Its index in that record."""
    time_us: int


class DedupBook:
    """What is remembered."""

    def __init__(self, book: "Book") -> None:
        """Nothing."""
        self._book = book
        self.queues: dict[int, dict[bytes, Remembered]] = {}
        self.applies: dict[type, Callable[[Any, Told], None]] = {e.DedupForgotten: self._forgotten}

    def remember(self, event: e.Published, told: Told) -> None:
        """A batch was stored."""
        for message in told.messages:
            if message.dedup:
                offset, _, index = message.id.partition("-")
                found = Remembered(int(offset), int(index), told.time_us)
                self.queues.setdefault(event.queue, {})[message.dedup] = found

    def _forgotten(self, event: e.DedupForgotten, _: Told) -> None:
        known = self.queues.get(event.queue, {})
        self.queues[event.queue] = {one: found for one, found in known.items() if found.offset >= event.below}


class DedupRules:
    """What may be decided."""

    def __init__(self, book: "Book") -> None:
        """Judge by this book."""
        self._book = book
        self.left_out: set[Name] = set()
        """What was not stored of batches of which the rest was."""
        self.judges: dict[type, Callable[[Any, Told, Any], None]] = {e.DedupForgotten: self._forgotten}

    def check_batch(self, event: e.Published, told: Told, cause: m.Publish) -> None:
        """What is stored of a batch is all that was not there already, as far as there was room; and in its order."""
        twice = {position for position, _, _ in event.duplicates}
        wanted = names_in(cause.batch)
        names = [name for position, name in enumerate(wanted) if position not in twice]
        self.left_out.update(names[event.count :], (wanted[position] for position in twice))
        if len(twice) != len(event.duplicates) or event.count + event.dropped != len(names):
            raise Violation(f"{event} of {cause.batch.count} messages")
        if [message.name for message in told.messages] != names[: event.count]:
            raise Violation(f"{event} stores {told.messages} of {names}")
        self._check_ids(event, told, split(cause.dedup) or [b""] * cause.batch.count)

    def _check_ids(self, event: e.Published, told: Told, ids: list[bytes]) -> None:
        queue = self._book.queues[event.queue]
        window_us = queue.settings.dedup_window_ms * 1000
        known = dict(self._book.dedup.queues.get(event.queue, {}))
        duplicates = {position: (offset, index) for position, offset, index in event.duplicates}
        stored = iter(told.messages)
        for position, one in enumerate(ids):
            found = known.get(one) if one else None
            if position in duplicates:
                if found is None or duplicates[position] != (found.offset, found.place):
                    raise Violation(f"{event}: message {position} is said to be a duplicate, and {found} is known")
                if found.time_us + window_us <= told.time_us:
                    raise Violation(f"{event}: message {position} is not stored, and {found} is long past")
                continue
            message = next(stored, None)
            if message is None:
                return
            if message.dedup != (one if window_us else b""):
                raise Violation(f"{event}: message {position} is stored with another dedup id than it was sent with")
            if found is not None and found.time_us + window_us > told.time_us:
                raise Violation(f"{event}: message {position} is stored, and {found} has the same dedup id")
            if message.dedup:
                offset, _, index = message.id.partition("-")
                known[one] = Remembered(int(offset), int(index), told.time_us)

    def _forgotten(self, event: e.DedupForgotten, told: Told, _: m.Command | None) -> None:
        window_us = self._book.queues[event.queue].settings.dedup_window_ms * 1000
        for found in self._book.dedup.queues.get(event.queue, {}).values():
            if found.offset < event.below and found.time_us + window_us > told.time_us:
                raise Violation(f"{event} at {told.time_us}, and {found} is in the window of {window_us} us")

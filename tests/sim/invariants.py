"""What must hold of the broker itself, whatever its clients see: after each event, and over the whole log.

`Watch` sees each event as it is appended. It has it judged by the `rules` and by the `timing`, writes it into the
`book`, and compares the broker's counts with those of the book; after a restart, and at the end, its whole state.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.checker import Violation
from tests.sim import mail
from tests.sim.book import Book, Entry, Queue, Told, wheres
from tests.sim.features import Features
from tests.sim.rules import Rules, ready_in, word
from tests.sim.timing import Timing
from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE
from vibemq.projections.group import Group as LiveGroup
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue as LiveQueue
from vibemq.protocol import messages as m
from vibemq.server import effects as f


class Sent(NamedTuple):
    """What a consumer is sent under one of its delivery numbers."""

    queue: int
    group: int
    lane: int
    sequence: int
    of: str
    message: mail.Message
    attempt: int
    key: int
    """The key by which these come in order; 0: all of the lane do."""


class Watch:
    """Looks at each event when it happens."""

    def __init__(self, counts: Counter[str]) -> None:
        """Nothing has happened."""
        self.counts = counts
        self.book = Book()
        self.rules = Rules(self.book)
        self.timing = Timing(counts)
        self.features = Features()
        self.last_us = 0
        self.sent: dict[int, list[Sent]] = {}
        """Subscription -> what it is sent, from delivery number 1 on. What a crash takes back may have arrived."""
        self.deleted: dict[tuple[int, int], int] = {}
        """(connection, request) -> the queue that is gone for good by it."""
        self._touched: dict[int, None] = {}

    def restarted(self, offset: int, state: Projector) -> None:
        """A broker goes on from a log that ends before record `offset`."""
        self.timing.restarted()
        if self.book.cut(offset):
            self.rules.latest.clear()
        self.rules.restarted()
        self.last_us = state.audit.last_us
        self._touched.clear()
        compare(self.book, state)

    def happened(
        self, event: e.Event, time_us: int, now_us: int, payload: bytes = b"", cause: m.Command | None = None
    ) -> None:
        """An event of broker time `time_us` was appended `now_us`, as `cause` was carried out."""
        if time_us < self.last_us:
            raise Violation(f"time went back by {self.last_us - time_us} us with {event}")
        self.last_us = time_us
        book = self.book
        told = Told(event, time_us, mail.read(payload, len(book.told)))
        self.rules.judge(told, cause)
        queue = book.queues.get(getattr(event, "queue", 0))
        self.timing.happened(event, time_us, now_us, queue)
        self.features.happened(event, queue, book)
        if isinstance(event, e.Delivered) and queue is not None:
            self._send(event, queue)
        elif isinstance(event, e.Subscribed):
            self.sent[event.subscription] = []
        elif isinstance(event, e.QueueDeleted) and not event.until_us and isinstance(cause, m.Delete):
            self.deleted[event.connection, cause.request] = event.queue
        book.write(told)
        for number in (*_concerned(event),):
            self._touched[number] = None

    def _send(self, event: e.Delivered, queue: Queue) -> None:
        group = queue.groups[event.group]
        for where in wheres(event.spans):
            entry = queue.entry(where)
            key = entry.message.key if queue.settings.order_by_key else 0
            sent = Sent(
                queue.id,
                group.id,
                *where,
                queue.of(group, entry),
                entry.message,
                group.attempts(where) + 1,
                key,
            )
            self.sent[event.subscription].append(sent)

    def settled(self, state: Projector) -> None:
        """The events of a decision are all there: the queues that they are about must be as the book has them."""
        for number in self._touched:
            queue, live = self.book.queues.get(number), state.queues.get(number)
            if (queue is None) != (live is None):
                raise Violation(f"queue {number} is there for the book or for the broker only")
            if queue is not None and live is not None:
                check_counts(queue, live)
        self._touched.clear()

    def ticked(self, now_us: int) -> None:
        """The broker has done all that was due by now."""
        self.timing.ticked(now_us, self.book)

    # --- answers

    def peeked(self, effect: f.Peeked, cause: m.Command | None) -> None:
        """What a peek shows is what is there."""
        if isinstance(cause, m.Peek):
            wanted = self._peek(cause)
        elif isinstance(cause, m.DeadLetters):
            wanted = self._dead(cause, effect)
        else:
            raise Violation(f"{effect} for {cause}")
        found = [
            (lane, sequence, failed)
            for lane, start, end, failed, _ in effect.spans
            for sequence in range(start, end)
        ]  # fmt: skip
        if found != wanted:
            raise Violation(f"{cause} is shown {found}, where {wanted} is there")

    def _peek(self, ask: m.Peek) -> list[tuple[int, int, int]]:
        queue = self.book.queue_named(ask.queue)
        assert queue is not None
        if queue.settings.mode.has_groups and ask.group is None:
            first = max(ask.start, queue.floor)
            return [(DEFAULT_LANE, number, 0) for number in range(first, min(queue.next(), first + ask.count))]
        group = queue.groups[DEFAULT_GROUP] if ask.group is None else queue.named(ask.group)
        assert group is not None
        found = [(*where, group.attempts(where)) for where in ready_in(group, ask.start)]
        if ask.priority is not None and queue.settings.mode is Mode.PRIORITY:
            found = [one for one in found if one[0] == ask.priority]
        return found[: ask.count]

    def _dead(self, ask: m.DeadLetters, effect: f.Peeked) -> list[tuple[int, int, int]]:
        if not effect.queue:
            return []
        queue = self.book.queues[effect.queue]
        group = queue.groups[DEFAULT_GROUP]
        found: list[tuple[int, int, int]] = []
        why: list[tuple[str, str, int, str]] = []
        for where in ready_in(group, ask.start):
            entry = queue.entry(where)
            if entry.dead is not None and self._is_wanted(entry, ask, queue):
                found.append((*where, group.attempts(where)))
                why.append((queue.name, word(entry.dead.reason), entry.dead.attempts, entry.dead.error))
        found, why = found[: ask.count], why[: ask.count]
        told = [
            (reason["queue"], *(reason["dead"][key] for key in ("reason", "attempts", "error")))
            for (_, start, end, _, _), reason in zip(effect.spans, effect.why, strict=True)
            for _ in range(start, end)
        ]
        if told != why:
            raise Violation(f"{ask} is told {told}, where it is {why}")
        return found

    def _is_wanted(self, entry: Entry, ask: m.DeadLetters, queue: Queue) -> bool:
        assert entry.dead is not None
        source = ask.source or (ask.queue if ask.queue != queue.name else "")
        return (not ask.reason or ask.reason == word(entry.dead.reason)) and (
            not source or self.book.known_as(source) == entry.dead.queue
        )


def _concerned(event: Any) -> Iterable[int]:  # noqa: ANN401 - any event
    """The queues that an event is about."""
    if isinstance(event, e.Routed):
        return [queue for queue, _, _ in event.targets]
    numbers = (getattr(event, field, 0) for field in ("queue", "dead_queue", "target"))
    return [number for number in numbers if number]


def check_counts(queue: Queue, live: LiveQueue) -> None:
    """The broker's counts of a queue are those of the book."""
    if queue.groups.keys() != live.groups.keys():
        raise Violation(f"queue {queue.name} has groups {list(live.groups)}, not {list(queue.groups)}")
    for number, group in queue.groups.items():
        there = live.groups[number]
        counts = there.ready(live.next), there.unacked, there.waiting_count
        wanted = group.ready_count, len(group.held), len(group.waiting)
        if counts != wanted:
            raise Violation(
                f"queue {queue.name}, group {group.name!r}: {counts} messages are ready, held and waiting, not {wanted}"
            )
        if there.unacked_bytes < 0 or (not there.unacked and there.unacked_bytes):
            raise Violation(f"queue {queue.name}, group {group.name!r}: {there.unacked_bytes} bytes are unacked")


def compare(book: Book, state: Projector) -> None:
    """The broker's whole state is that of the book."""
    if book.queues.keys() != state.queues.keys() or book.names != state.topology.queues:
        raise Violation(f"there are queues {state.topology.queues}, not {book.names}")
    for number, queue in book.queues.items():
        live = state.queues[number]
        check_counts(queue, live)
        if (queue.name, queue.settings, queue.floor) != (live.name, live.settings, live.floor):
            raise Violation(f"queue {queue.name} is {live.name} with {live.settings}, not {queue.settings}")
        if queue.patterns != live.patterns.keys():
            raise Violation(f"queue {queue.name} is bound to {live.patterns}, not {queue.patterns}")
        if queue.bytes != live.bytes:
            raise Violation(f"queue {queue.name} has {live.bytes} bytes, not {queue.bytes}")
        for group in queue.groups.values():
            there = live.groups[group.id]
            ready = {(lane, sequence) for lane, sequences in group.ready.items() for sequence in sequences}
            if (ready, group.held, group.waiting) != _contents(there, live):
                raise Violation(f"queue {queue.name}, group {group.name!r} does not have what it should")


def _contents(group: LiveGroup, queue: LiveQueue) -> tuple[set[Any], dict[Any, int], dict[Any, int]]:
    ready = {
        (number, sequence)
        for number, lane in group.lanes.items()
        for start, end in [*lane.returned, (lane.cursor, queue.next[number])]
        for sequence in range(start, end)
    }
    held = {
        (lane, sequence): subscription
        for subscription, lanes in group.held.items()
        for lane, sequences in lanes.items()
        for start, end in sequences
        for sequence in range(start, end)
    }
    waiting = {
        (lane, sequence): until_us
        for until_us, lane, start, end in group.waiting
        for sequence in range(start, end)
    }  # fmt: skip
    return ready, held, waiting

"""What must hold of the broker itself, whatever its clients see: after each event, and over the whole log.

`Watch` sees each event as it is appended. It has it judged by the `rules` and by the `timing`, writes it into the
`book`, and compares the broker's counts with those of the book; after a restart, and at the end, its whole state.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.checker import Name, Violation
from tests.sim import mail
from tests.sim.book import Book
from tests.sim.contents import Entry, Queue, Told, Where, wheres
from tests.sim.delayed import DelayedAnswers
from tests.sim.features import Features
from tests.sim.rules import Rules, ready_in, word
from tests.sim.timing import Timing
from tests.sim.transactions import Attempts, acked_by, causes_of, parts_of
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
        self.attempts = Attempts()
        self.answers = DelayedAnswers(self.book)
        self.deleted: dict[tuple[int, int], int] = {}
        """(connection, request) -> the queue that is gone for good by it."""
        self.taken_back: dict[tuple[int, int], list[tuple[Name, str]]] = {}
        """(connection, request) -> the messages that are taken back by it, and whose copies that are."""
        self._touched: dict[int, None] = {}

    def restarted(self, offset: int, state: Projector) -> None:
        """A broker goes on from a log that ends before record `offset`."""
        self.timing.restarted()
        self.attempts.restarted(offset)
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
        self.rules.together.clear()
        told = Told(event, time_us, mail.read(event, payload, len(book.told)))
        if isinstance(event, e.TransactionCommitted):
            causes = self._check_transaction(event, told, cause)
            book.begin(told)
            self.rules.in_transaction = True
            for part, its_cause in zip(parts_of(told), causes, strict=True):
                self._judge(part, now_us, its_cause)
                book.apply(part)
            self.rules.in_transaction = False
            return
        self._judge(told, now_us, cause)
        if isinstance(event, e.Delivered):
            self._send(event, book.queues[event.queue])
        elif isinstance(event, e.Subscribed):
            self.sent[event.subscription] = []
        elif isinstance(event, e.QueueDeleted) and not event.until_us and isinstance(cause, m.Delete):
            self.deleted[event.connection, cause.request] = event.queue
        elif isinstance(event, e.Cancelled) and isinstance(cause, m.CancelDelayed):
            waits = book.queues[event.queue].delayed
            names = [(waits[one].message.name, str(event.queue)) for one in cause.ids if one in waits]
            self.taken_back[event.connection, cause.request] = names
        elif isinstance(event, e.ClientDisconnected):
            self.attempts.close_all(event.connection)
        book.begin(told)
        book.apply(told)

    def _judge(self, part: Told, now_us: int, cause: m.Command | None) -> None:
        """An event, or a part of one, is about to be written into the book."""
        event, time_us, _ = part
        self.rules.judge(part, cause)
        queue = self.book.queues.get(getattr(event, "queue", 0))
        self.timing.happened(event, time_us, now_us, queue)
        self.timing.delays.happened(part, now_us)
        self.features.happened(event, queue, self.book)
        if isinstance(event, e.Matured):
            self.features.seen("overdue" if self.rules.delayed.are_late(event) else "delayed")
        self._touched |= dict.fromkeys(_concerned(event))

    def _check_transaction(self, event: e.TransactionCommitted, told: Told, cause: m.Command | None) -> list[m.Command]:
        """Whether a transaction may happen, and is all that was asked; the requests behind its parts."""
        if not isinstance(cause, m.Commit) or cause.epoch != event.epoch or cause.sequence != event.producer_sequence:
            raise Violation(f"{event} for {cause}")
        self.attempts.check(event, len(self.book.told), told.time_us)
        acked = acked_by(event)
        wanted: dict[int, set[Where]] = {}
        for ack in cause.acks:
            row = self.sent[ack.subscription]
            if self._needs_no_ack(row):
                continue
            asked, are_last = _asked_for(row, ack)
            if not are_last:
                raise Violation(f"{event} acks deliveries for {cause} that were sent once more meanwhile")
            wanted.setdefault(ack.subscription, set()).update((sent.lane, sent.sequence) for sent in asked)
        if acked != wanted:
            raise Violation(f"{event} acks {acked}, where {wanted} was asked for")
        self.features.seen("transactions")
        if acked and event.published:
            self.features.seen("consume, transform, produce")
        return causes_of(event, cause)

    def _needs_no_ack(self, row: list[Sent]) -> bool:
        """Whether what was sent was done with then."""
        queue = self.book.queues.get(row[0].queue) if row else None
        return queue is not None and queue.settings.mode is Mode.FAN_OUT_NO_ACK

    def must_commit(self, commit: m.Commit, connection: int, now_us: int) -> bool:
        """Whether nothing can be said against a commit: it is open, publishes nothing, and acks what is held."""
        if commit.publishes or not self.attempts.is_open(commit.epoch, connection, now_us):
            return False
        for ack in commit.acks:
            row = self.sent.get(ack.subscription, [])
            asked, are_last = _asked_for(row, ack)
            if not are_last:
                return False
            for sent in asked:
                queue = self.book.queues.get(sent.queue)
                group = queue.groups.get(sent.group) if queue is not None else None
                if group is None or group.held.get((sent.lane, sent.sequence)) != ack.subscription:
                    return False
        return True

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


def _asked_for(row: list[Sent], ack: m.TransactionAck) -> tuple[list[Sent], bool]:
    """What these deliveries are, and whether none of it was sent to the same consumer again since then."""
    numbers = [number for start, end in ack.deliveries for number in range(start, end)]
    asked = [row[number - 1] for number in numbers]
    places = {(one.lane, one.sequence): number for number, one in enumerate(row, start=1)}
    return asked, all(places[one.lane, one.sequence] == number for one, number in zip(asked, numbers, strict=True))


def _concerned(event: Any) -> Iterable[int]:  # noqa: ANN401 - any event
    """The queues that an event is about."""
    if isinstance(event, e.Routed):
        return [queue for queue, _, _ in event.targets]
    numbers = (getattr(event, field, 0) for field in ("queue", "dead_queue", "target"))
    return [number for number in numbers if number]


def check_counts(queue: Queue, live: LiveQueue) -> None:
    """The broker's counts of a queue are those of the book."""
    delayed = len(queue.delayed), queue.delayed_bytes
    if (live.delayed.count, live.delayed.bytes) != delayed:
        raise Violation(f"queue {queue.name} has {live.delayed} that are delayed, not {delayed}")
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
        _compare_ids(book, state, number)
        for group in queue.groups.values():
            there = live.groups[group.id]
            ready = {(lane, sequence) for lane, sequences in group.ready.items() for sequence in sequences}
            if (ready, group.held, group.waiting) != _contents(there, live):
                raise Violation(f"queue {queue.name}, group {group.name!r} does not have what it should")


def _compare_ids(book: Book, state: Projector, number: int) -> None:
    """The broker remembers the dedup ids that the book does."""
    known, live = book.dedup.queues.get(number, {}), state.dedup.queues.get(number)
    for one, wanted in known.items():
        found = live.find(one) if live is not None else None
        if found is None or tuple(found) != tuple(wanted):
            raise Violation(f"of queue {number} {found} is remembered, not {wanted}")


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

"""Messages that wait for their time: when it comes they become ready, and until then they can be taken back or put off.

The entries are in the index on the disk. In memory are two windows on them, each with the soonest few thousand: one on
what is due from the broker's start on, which becomes ready on time, and one on what was due before, which does at a
limited rate, the oldest first, so that consumers are not run down after a downtime. What is behind the end of a window
is read when the window gets low; what comes and goes while a reading is on its way is added to what was read.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final, TypeAlias

from vibemq import events as e
from vibemq.errors import InvalidRequest, RequestError, UnknownMessage, UnknownQueue
from vibemq.projections.queue import Queue
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Answer, DelayedOf, DueAfter, DueKey, Refusal, Waiting
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.rates import Bucket

WINDOW: Final = 2_048
"""Entries that are read at a time: to take them in is about 2 ms of work, as much as a turn may have."""
LOW: Final = 1_024
"""With fewer in a window more are read."""
HIGH: Final = 2 * WINDOW
"""With more in a window the later ones are let go; the index has them."""
TURN: Final = 500
"""Entries that become ready in one turn: each takes about 3 us."""
TURN_BYTES: Final = 64 * TURN
"""What they take in the log, about."""
HELD_US: Final = 20_000
"""After so long it is tried again, where the disk is full."""
GRAIN_US: Final = 5_000
"""What is due within this time becomes ready together."""
SLICE_US: Final = 20_000
"""What is overdue becomes ready so often, as many as the rate allows for that time."""
DUE_MAX: Final = (1 << 63) - 1
"""The latest time there is: in about 292,000 years."""
EVER: Final = 1 << 64
_FIRST: Final[DueKey] = (0, 0, 0, 0)
_LAST: Final[DueKey] = (EVER - 1,) * 4

Identity: TypeAlias = tuple[int, int, int]
"""(queue, record offset, index): what an entry is known by, whatever it is due."""


def _key(queue: int, entry: e.Entry) -> DueKey:
    return (*entry[:3], queue)


class Window:
    """The soonest of the entries that are due from `begin_us` on, and before `end_us`.

    It has all of them up to `horizon`, but for those that are void or of queues that are deleted for now.
    """

    def __init__(self, begin_us: int, end_us: int, *, is_empty: bool) -> None:
        """Know nothing yet; `is_empty`: there are none."""
        self.begin_us, self.end_us = begin_us, end_us
        self.horizon: DueKey = _LAST if is_empty else (begin_us, 0, 0, 0)
        self.question = 0
        """The number of the reading that is on its way; 0: none is."""
        self._entries: dict[Identity, e.Entry] = {}
        self._heap: list[DueKey] = []
        self._changes: list[tuple[int, e.Entry, bool]] = []

    def __len__(self) -> int:
        """How many entries it has."""
        return len(self._entries)

    @property
    def is_low(self) -> bool:
        """Whether more is to be read."""
        return len(self._entries) < LOW and self.horizon != _LAST and not self.question

    def reading(self, question: int, without: frozenset[int]) -> DueAfter:
        """What to read next."""
        self.question = question
        self._changes = []
        return DueAfter(self.horizon, self.end_us, WINDOW, without, question)

    def read(self, entries: Iterable[Waiting], horizon: DueKey) -> None:
        """The reading is there."""
        found = {(queue, entry[1], entry[2]): entry for queue, entry in entries}
        for queue, entry, came in self._changes:
            if came:
                found[queue, entry[1], entry[2]] = entry
            else:
                found.pop((queue, entry[1], entry[2]), None)
        self.question, self._changes = 0, []
        begin, self.horizon = self.horizon, horizon
        for (queue, _, _), entry in found.items():
            if begin < _key(queue, entry) <= horizon and entry[0] < self.end_us:
                self._push(queue, entry)

    def add(self, queue: int, entry: e.Entry) -> None:
        """An entry came."""
        if self.begin_us <= entry[0] < self.end_us:
            if self.question:
                self._changes.append((queue, entry, True))
            if _key(queue, entry) <= self.horizon:
                self._push(queue, entry)
                if len(self._entries) > HIGH:
                    self._cut()

    def remove(self, queue: int, entry: e.Entry) -> None:
        """An entry went."""
        if self.question:
            self._changes.append((queue, entry, False))
        identity = (queue, entry[1], entry[2])
        if self._entries.get(identity) == entry:
            del self._entries[identity]

    def _push(self, queue: int, entry: e.Entry) -> None:
        self._entries[queue, entry[1], entry[2]] = entry
        heappush(self._heap, _key(queue, entry))
        if len(self._heap) > 2 * len(self._entries) + LOW:  # of what was taken back
            self._heap = [_key(number, one) for (number, _, _), one in self._entries.items()]
            heapify(self._heap)

    def _cut(self) -> None:
        """Let the later ones go."""
        ordered = sorted(_key(queue, entry) for (queue, _, _), entry in self._entries.items())
        for _, offset, index, queue in ordered[WINDOW:]:
            del self._entries[queue, offset, index]
        self._heap = ordered[:WINDOW]
        self.horizon = self._heap[-1]
        self.question = 0  # what is on its way is of behind the new horizon

    def first_us(self) -> int | None:
        """When the first one is due."""
        while self._heap:
            due_us, offset, index, queue = self._heap[0]
            entry = self._entries.get((queue, offset, index))
            if entry is not None and entry[0] == due_us:
                return due_us
            heappop(self._heap)
        return None

    def take(self, now_us: int) -> Waiting | None:
        """Remove the first one, if it is due."""
        due_us = self.first_us()
        if due_us is None or due_us > now_us:
            return None
        _, offset, index, queue = heappop(self._heap)
        return queue, self._entries.pop((queue, offset, index))


class _Asked:
    """What a client wants of some messages, by record, until it was looked up where they are."""

    __slots__ = ("connection", "due_us", "indices", "queue", "request", "stale")

    def __init__(self, connection: int, request: int, queue: int, ids: Iterable[str], due_us: int | None) -> None:
        self.connection, self.request, self.queue, self.due_us = connection, request, queue, due_us
        found: dict[int, set[int]] = {}
        for text in ids:
            offset, index = parse_id(text)
            found.setdefault(offset, set()).add(index)
        self.indices = {offset: sorted(indices) for offset, indices in found.items()}
        self.stale = False
        """One of the records had its entries changed after they were asked for."""

    @property
    def ordered(self) -> tuple[tuple[int, ...], ...]:
        """The indices for each of the records."""
        return tuple(tuple(indices) for indices in self.indices.values())

    def within(self, entry: e.Entry) -> list[int]:
        """The messages of an entry that are wanted."""
        _, offset, first, count, _, _ = entry
        indices = self.indices[offset]
        return indices[bisect_left(indices, first) : bisect_left(indices, first + count)]


class Delayed:
    """Lets messages become ready when they are due."""

    def __init__(self, journal: Journal, deliveries: Deliveries, limits: Limits) -> None:
        """Continue with the journal's state; nothing is released before `start`."""
        self._journal = journal
        self._state = journal.state
        self._deliveries = deliveries
        self._bucket = Bucket(limits.overdue_rate, 0)
        self._next_question = 1
        self._asked: dict[int, _Asked] = {}
        self._released_us = self._overdue_us = 0
        self._held_until_us = 0
        self._has_more = False
        self.has_room: Callable[[int], bool] = lambda _: True
        """Whether the disk has room for so many bytes. Without it nothing becomes ready: the reserve is for acks."""
        self.is_pressing = False
        """Messages became ready just now that should be on the disk soon: from there they are read."""
        self._current = self._overdue = Window(0, 0, is_empty=True)

    def start(self) -> None:
        """Begin: what is due from now on comes on time, what was due before at the limited rate."""
        now_us = self._journal.now_us
        is_empty = not any(queue.delayed.count for queue in self._state.queues.values())
        self._current = Window(now_us, EVER, is_empty=is_empty)
        self._overdue = Window(0, now_us, is_empty=is_empty)
        self._look_further()

    # --- what comes and goes

    def due_us(self, delay_ms: int, due_us: int) -> int:
        """When a message is due that is to wait so long, or until then; 0: it is not to wait at all."""
        wanted_us = min(due_us or self._journal.now_us + delay_ms * 1000, DUE_MAX)
        return wanted_us if wanted_us > self._journal.now_us else 0

    def came(self, entries: Iterable[Waiting]) -> None:
        """Messages were stored that wait for their time: what an event's `delayed` gives."""
        for queue, entry in entries:
            self._current.add(queue, entry)

    def _changed(self, queue: int, gone: Iterable[e.Entry], come: Iterable[e.Entry] = ()) -> None:
        for entry in gone:
            self._current.remove(queue, entry)
            self._overdue.remove(queue, entry)
            for asked in self._asked.values():
                asked.stale = asked.stale or (asked.queue == queue and entry[1] in asked.indices)
        for entry in come:
            self._current.add(queue, entry)
            self._overdue.add(queue, entry)

    # --- what is due

    def work(self) -> None:
        """Let become ready what is due: a part of it, if that is much."""
        now_us = self._journal.now_us
        self._has_more = self.is_pressing = False
        first_us = self._current.first_us()
        is_due = first_us is not None and first_us <= now_us and now_us >= self._released_us + GRAIN_US
        is_overdue = len(self._overdue) > 0 and now_us >= self._overdue_us + SLICE_US
        if (is_due or is_overdue) and not self._may_write(now_us):
            is_due = is_overdue = False
        if is_due:
            self._has_more = self._release(self._current, TURN) >= TURN
            self._released_us = 0 if self._has_more else now_us
            self.is_pressing = True
        if is_overdue:
            self._release(self._overdue, TURN, self._bucket)
            self._overdue_us = now_us
        self._look_further()

    def _may_write(self, now_us: int) -> bool:
        if now_us >= self._held_until_us and not self.has_room(TURN_BYTES):
            self._held_until_us = now_us + HELD_US
        return now_us >= self._held_until_us

    def _release(self, window: Window, entries_max: int, bucket: Bucket | None = None) -> int:
        """Let the first entries become ready that are due. How many there were."""
        now_us = self._journal.now_us
        left = entries_max if bucket is None else bucket.available(now_us)
        ripe: dict[tuple[int, int], list[e.Entry]] = {}
        taken = 0
        while taken < entries_max and left > 0 and (one := window.take(now_us)) is not None:
            queue, entry = one
            taken += 1
            if self._stands(queue, entry):
                ripe.setdefault((queue, entry[5]), []).append(entry)
                if bucket is not None:
                    left -= entry[3]
                    bucket.take(entry[3], now_us)
        for (number, lane), entries in ripe.items():
            queue_of = self._state.queues[number]
            first, size = queue_of.next.get(lane, 1), sum(entry[4] for entry in entries)
            self._journal.record(e.Matured(number, lane, first, tuple(entries), size))
            self._changed(number, entries)
            self._deliveries.changed(number)
        return taken

    def _stands(self, number: int, entry: e.Entry) -> bool:
        """Whether an entry is there still, and its queue, and that is not deleted for now."""
        queue = self._state.queues.get(number)
        return queue is not None and not queue.deleted_until_us and entry[1] >= queue.delayed.floor

    def _look_further(self) -> None:
        for window in (self._current, self._overdue):
            if window.is_low:
                deleted = self._state.topology.deleted
                without = frozenset(number for number in deleted if self._state.queues[number].delayed.count)
                self._journal.loads.append(window.reading(self._question(), without))

    def _question(self) -> int:
        self._next_question += 1
        return self._next_question - 1

    def came_back(self, queue: Queue) -> None:
        """A deleted queue is there again: what was due meanwhile is overdue."""
        if queue.delayed.count:
            self.start()

    def due_read(self, reading: DueAfter, entries: Iterable[Waiting], horizon: DueKey) -> None:
        """What `reading` asked for is here."""
        for window in (self._current, self._overdue):
            if window.question == reading.question:
                window.read(entries, horizon)

    @property
    def has_more(self) -> bool:
        """Whether the next turn has something to do."""
        return self._has_more

    def next_due_us(self) -> int | None:
        """When there is something to do next."""
        times = []
        first_us = self._current.first_us()
        if first_us is not None:
            times.append(max(first_us, self._released_us + GRAIN_US))
        if len(self._overdue):
            times.append(max(self._overdue_us + SLICE_US, self._bucket.due_us(self._journal.now_us)))
        return max(min(times), self._held_until_us) if times else None

    # --- what clients want of them

    def cancel(self, connection: int, request: int, queue: Queue, ids: Iterable[str]) -> None:
        """Take messages back; answers when it was looked up where they are.

        Raises:
            InvalidRequest: an id that is none.
        """
        self._ask(_Asked(connection, request, queue.id, ids, None))

    def reschedule(
        self, connection: int, request: int, queue: Queue, ids: Iterable[str], delay_ms: int, due_us: int
    ) -> None:
        """Let messages wait for another time, or for none; answers when it was looked up where they are.

        Raises:
            InvalidRequest: an id that is none, or two times.
        """
        if delay_ms and due_us:
            raise InvalidRequest("a message waits for a delay, or until a time, not both")
        now_us = self._journal.now_us
        self._ask(_Asked(connection, request, queue.id, ids, self.due_us(delay_ms, due_us) or now_us))

    def _ask(self, asked: _Asked) -> None:
        question = self._question()
        self._asked[question] = asked
        asked.stale = False
        self._journal.loads.append(DelayedOf(asked.queue, tuple(asked.indices), asked.ordered, question))

    def located(self, reading: DelayedOf, found: Iterable[tuple[e.Entry, tuple[int, ...]]]) -> None:
        """What `reading` asked for is here: entries, and the bytes of each of their messages."""
        asked = self._asked.pop(reading.question)
        if asked.stale:
            self._ask(asked)
            return
        try:
            self._carry_out(asked, found)
        except RequestError as error:
            self._journal.effects.append(Refusal(0, asked.connection, asked.request, error))

    def _carry_out(self, asked: _Asked, found: Iterable[tuple[e.Entry, tuple[int, ...]]]) -> None:
        queue = self._state.queues.get(asked.queue)
        if queue is None or queue.deleted_until_us:
            raise UnknownQueue("the queue was deleted meanwhile")
        before: list[e.Entry] = []
        after: list[e.Entry] = []
        left = {(offset, index) for offset, indices in asked.indices.items() for index in indices}
        count = len(left)
        for entry, lengths in found:
            wanted = asked.within(entry)
            if wanted and entry[1] >= queue.delayed.floor:
                before.append(entry)
                after += _divided(entry, lengths, set(wanted), asked.due_us)
                left.difference_update((entry[1], index) for index in wanted)
        if left:
            names = ", ".join(f"{offset}-{index}" for offset, index in sorted(left)[:5])
            raise UnknownMessage(f"in queue {queue.name!r} no message waits for its time that has the id {names}")
        kind = e.Cancelled if asked.due_us is None else e.Rescheduled
        self._journal.record(kind(queue.id, tuple(before), tuple(after), asked.connection))
        self._changed(queue.id, before, after)
        answer = {"count": count} if asked.due_us is None else {"count": count, "due_us": asked.due_us}
        self._journal.effects.append(Answer(self._journal.next_offset, asked.connection, asked.request, answer))


def _divided(entry: e.Entry, lengths: tuple[int, ...], wanted: set[int], due_us: int | None) -> list[e.Entry]:
    """What becomes of an entry when the `wanted` messages of it are due at another time, or never."""
    was_us, offset, index, count, _, lane = entry
    pieces: list[e.Entry] = []
    start = index
    for at in range(index + 1, index + count + 1):
        if at == index + count or (at in wanted) != (start in wanted):
            moved = start in wanted
            if not moved or due_us is not None:
                size = sum(lengths[start - index : at - index])
                new_us = due_us if moved and due_us is not None else was_us
                pieces.append((new_us, offset, start, at - start, size, lane))
            start = at
    return pieces


def parse_id(text: str) -> tuple[int, int]:
    """The record and the index of an id.

    Raises:
        InvalidRequest: it is none.
    """
    offset, hyphen, index = text.partition("-")
    if hyphen and offset.isascii() and offset.isdecimal() and index.isascii() and index.isdecimal():
        numbers = int(offset), int(index)
        if numbers[0] < EVER and numbers[1] < 1 << 32:
            return numbers
    raise InvalidRequest(
        f"the id of a message is as in 17-0, the number of its record and its place there: not {text!r}"
    )

"""Dead letters for people: which there are and why, and sending them back to work."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count as counting
from typing import Any, Final, NamedTuple

from vibemq import events as e
from vibemq.declaration import Mode, Overflow
from vibemq.errors import QueueFull, RequestError, UnknownQueue
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE, DeadReason
from vibemq.projections.dead_letter import DeadRun
from vibemq.projections.queue import Queue
from vibemq.server.dead_lettering import Pieces, dead_letter_name
from vibemq.server.deliveries import Deliveries
from vibemq.server.dispatch import Dispatcher, alike
from vibemq.server.effects import Answer, Peeked, Refusal
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.subscription import Piece

RUNS_AT_ONCE: Final = 1_000
SLICES_MAX: Final = 5
"""So many times RUNS_AT_ONCE are looked at in one step of the event loop: about 2 ms."""
MOVES_MAX: Final = 200
"""Rows of messages that one request sends back: each takes about 20 us."""
MOVED_MAX: Final = 1_000
"""Messages that one request sends back: what one step may do."""


class Filter(NamedTuple):
    """Which dead letters are meant. What is empty, or 0, lets everything through."""

    reason: str = ""
    source: str = ""
    error: str = ""
    since_us: int = 0
    until_us: int = 0


class Redriving(NamedTuple):
    """A request to send dead letters back: `most` of them, to `target` or where they were.

    They are those from sequence `start` on and before `end`; 0: all that are there.
    """

    connection: int
    request: int
    queue: str
    target: str
    start: int
    end: int
    most: int
    wanted: Filter


class _Selection(NamedTuple):
    """Dead letters start <= sequence < end, all of one run, and the queue they go back to."""

    start: int
    end: int
    run: DeadRun
    target: Queue | None


@dataclass(slots=True)
class _Look:
    """A request for a list that is not answered yet: what was found, and from where on to look further."""

    connection: int
    request: int
    name: str
    start: int
    left: int
    wanted: Filter
    spans: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    why: list[dict[str, Any]] = field(default_factory=list)


class DeadLetters:
    """Lists dead letters and sends them back."""

    def __init__(self, journal: Journal, deliveries: Deliveries, dispatcher: Dispatcher, limits: Limits) -> None:
        """Look at the journal's state, with batches from where the dispatcher has them."""
        self._journal = journal
        self._state = journal.state
        self._deliveries = deliveries
        self._dispatcher = dispatcher
        self._limits = limits
        self._waiting: list[Redriving] = []
        self._looks: deque[_Look] = deque()

    @property
    def has_more(self) -> bool:
        """Whether the next turn has something to look at."""
        return bool(self._looks)

    # --- which

    def peek(self, connection: int, request: int, name: str, start: int, count: int, wanted: Filter) -> None:
        """Answer with dead letters from sequence `start` on, and why each is one; at once, or after some turns.

        Raises:
            UnknownQueue: there is no such queue.
        """
        self._look(_Look(connection, request, name, start, min(count, self._limits.peek_messages), wanted))

    def _look(self, look: _Look) -> None:
        """Look a slice further, and answer, or go on in a later turn."""
        queue, wanted = self._resolve(look.name, look.wanted)
        for low, high, run in self._matching(queue, look.start, wanted) if queue is not None else ():
            assert queue is not None
            if low == high:
                look.start = low
                self._looks.append(look)
                return
            end = min(high, low + look.left)
            if low < end:
                lane = queue.groups[DEFAULT_GROUP].lanes[DEFAULT_LANE]
                parts = [(DEFAULT_LANE, *part) for part in alike(lane, low, end)]
                look.spans += parts
                look.why += [{"queue": queue.name, "dead": self._describe(run)}] * len(parts)
                look.left -= end - low
            if not look.left:
                break
        number = queue.id if queue is not None else 0
        offset = self._journal.next_offset
        self._journal.effects.append(Peeked(offset, look.connection, look.request, number, look.spans, look.why))

    def _resolve(self, name: str, wanted: Filter) -> tuple[Queue | None, Filter]:
        """The dead-letter queue that is meant: of that name, or of the queue of that name.

        None: there is none yet, or it is one that fans out, whose groups each deal with its letters in their own way.
        """
        queue = self._state.queue_named(name)
        if queue is not None and queue.id in self._state.dead:
            return queue, wanted
        dead = self._state.queue_named(dead_letter_name(name, queue))
        if dead is None and queue is None:
            raise UnknownQueue(f"there is no queue {name!r}, and no dead letters of one")
        if dead is None or dead.id not in self._state.dead:
            return None, wanted
        return dead, wanted if wanted.source else wanted._replace(source=name)

    def _matching(self, queue: Queue, start: int, wanted: Filter) -> Iterator[tuple[int, int, DeadRun]]:
        """Dead letters that are ready, from `start` on, as (first, end, run).

        When it has looked at as many as one step may, it ends with one whose first is its end: from there it goes on.
        """
        dead = self._state.dead[queue.id]
        lane = queue.groups[DEFAULT_GROUP].lanes[DEFAULT_LANE]
        source = self._source(wanted.source)
        for slices in counting():
            runs = dead.beginning(start, RUNS_AT_ONCE)  # they change when some are moved
            if not runs:
                return
            if slices == SLICES_MAX:
                yield start, start, runs[0]
                return
            for run in runs:
                if self._fits(run, wanted, source):
                    low, high = max(start, run.start), run.end
                    yield from ((first, end, run) for first, end in lane.ready_within(low, high))
            start = runs[-1].end

    def _source(self, name: str) -> int | None:
        """The number of the queue of that name, else the last that was deleted; None: any queue."""
        if not name:
            return None
        topology = self._state.topology
        if name in topology.queues:
            return topology.queues[name]
        return next((number for number in reversed(topology.deleted) if topology.deleted[number][0] == name), -1)

    def _fits(self, run: DeadRun, wanted: Filter, source: int | None) -> bool:
        return (
            (not wanted.reason or _word(run.reason) == wanted.reason)
            and (source is None or run.queue == source)
            and wanted.error in run.error
            and wanted.since_us <= run.time_us
            and (not wanted.until_us or run.time_us < wanted.until_us)
        )

    def _describe(self, run: DeadRun) -> dict[str, Any]:
        source = self._state.queues.get(run.queue)
        return {
            "reason": _word(run.reason),
            "queue": source.name if source is not None else None,
            "attempts": run.attempts,
            "error": run.error,
            "dead_us": run.time_us,
        }

    # --- back to work

    def redrive(self, ask: Redriving, *, dry_run: bool) -> None:
        """Send dead letters back, as many as are in memory; the answer tells where to go on, and up to where.

        What is sent back may come again as another letter, at the end: whoever goes on beyond the `end` of the first
        answer may never be done.

        Raises:
            RequestError: no such queue, or no room where they are to go.
        """
        if dry_run:
            self._count(ask)
        elif not self._move(ask):
            self._waiting.append(ask)

    def work(self) -> None:
        """Go on with those that waited for messages to be read, and with one that has more to look at."""
        if self._looks:
            look = self._looks.popleft()
            try:
                self._look(look)
            except RequestError as error:
                self._journal.effects.append(Refusal(0, look.connection, look.request, error))
        waiting, self._waiting = self._waiting, []
        for ask in waiting:
            try:
                if not self._move(ask):
                    self._waiting.append(ask)
            except RequestError as error:
                self._journal.effects.append(Refusal(0, ask.connection, ask.request, error))

    def forget(self, connection: int) -> None:
        """A client is gone, and waits no more."""
        self._waiting = [ask for ask in self._waiting if ask.connection != connection]
        self._looks = deque(look for look in self._looks if look.connection != connection)

    def _count(self, ask: Redriving) -> None:
        """Answer with how many would go where."""
        dead, wanted = self._resolve(ask.queue, ask.wanted)
        counts: Counter[str] = Counter()
        left, following = min(ask.most, MOVED_MAX), 0
        for part in self._selections(ask, dead, wanted) if dead is not None else ():
            if part.start == part.end:
                following = part.start
                break
            if part.target is None:
                counts[""] += part.end - part.start
                continue
            end = min(part.end, part.start + left)
            counts[part.target.name] += end - part.start
            left -= end - part.start
            if end < part.end:
                following = end
                break
        self._answer(ask, dead, counts, following)

    def _selections(self, ask: Redriving, dead: Queue, wanted: Filter) -> Iterator[_Selection]:
        chosen = None
        if ask.target:
            chosen = self._state.queue_named(ask.target)
            if chosen is None:
                raise UnknownQueue(f"there is no queue {ask.target!r} to send dead letters to")
        for start, end, run in self._matching(dead, ask.start, wanted):
            if ask.end:
                if start >= ask.end:
                    return
                end = min(end, ask.end)  # noqa: PLW2901 - what lies behind it is not asked for
            target = chosen or self._state.queues.get(run.queue)
            if target is not None and (target.deleted_until_us or target is dead):
                target = None
            yield _Selection(start, end, run, target)

    def _move(self, ask: Redriving) -> bool:
        """Send back what can be at once; whether that was answered, else it waits for messages to be read."""
        dead, wanted = self._resolve(ask.queue, ask.wanted)
        counts: Counter[str] = Counter()
        left, following, moves = min(ask.most, MOVED_MAX), 0, 0
        for part in self._selections(ask, dead, wanted) if dead is not None else ():
            assert dead is not None
            if part.start == part.end:
                left, following = 0, part.start
                break
            if part.target is None:  # the queue that they came from is gone
                counts[""] += part.end - part.start
                continue
            at, moved = part.start, 1
            while moved and at < part.end and left > 0 and moves < MOVES_MAX:
                moves += 1
                try:
                    moved = self._move_some(ask, dead, part, at, min(part.end - at, left))
                except QueueFull:
                    if not counts.total():
                        raise
                    left = moved = 0  # what went is told first
                counts[part.target.name] += moved
                at += moved
                left -= moved
            if at < part.end:
                following = at
                break
        if following and left > 0 and not counts.total():
            return False
        self._answer(ask, dead, counts, following)
        return True

    def _move_some(self, ask: Redriving, dead: Queue, part: _Selection, at: int, most: int) -> int:
        """Send back messages of one batch; 0: it must be read first.

        Raises:
            QueueFull: there is no room for even one.
        """
        target, run = part.target, part.run
        assert target is not None
        stored = self._dispatcher.find(dead.id, DEFAULT_GROUP, DEFAULT_LANE, at)
        if stored is None:
            return 0
        first = at - stored.sequence
        count = min(most, stored.end - at)
        room = self._room(target, count, stored.origin.lengths[first : first + count])
        piece = Piece(first, first + room, stored.origin, first)
        pieces = Pieces()
        pieces.add(piece)
        lane = run.lane if target.settings.mode is Mode.PRIORITY else DEFAULT_LANE
        self._journal.record(
            e.Redriven(
                dead.id,
                tuple(pieces.spans),
                pieces.bytes,
                run.attempts,
                target.id,
                lane,
                target.next.get(lane, 1),
                tuple(pieces.refs),
                ask.connection,
            )
        )
        self._deliveries.changed(target.id)
        self._deliveries.changed(dead.id)  # something else is first there now, and may be too old
        return room

    def _room(self, target: Queue, count: int, lengths: Any) -> int:  # noqa: ANN401 - a memoryview or a tuple
        """For how many of these messages a queue has room.

        Raises:
            QueueFull: for none.
        """
        settings = target.settings
        if settings.overflow is Overflow.DROP_OLDEST or settings.overflow is Overflow.DEAD_LETTER:
            return count
        room, room_bytes = settings.max_length - target.filled, settings.max_bytes - target.filled_bytes
        fitting = size = 0
        for length in lengths[: max(0, room)]:
            size += length
            if size > room_bytes:
                break
            fitting += 1
        if not fitting:
            raise QueueFull(f"queue {target.name!r} has no room for the dead letter that is next: nothing was moved")
        return fitting

    def _answer(self, ask: Redriving, dead: Queue | None, counts: Counter[str], following: int) -> None:
        moved = {name: count for name, count in counts.items() if name and count}
        result = {
            "count": sum(moved.values()),
            "next": following,
            "end": ask.end or (0 if dead is None else dead.next.get(DEFAULT_LANE, 1)),
            "targets": moved,
            "homeless": counts[""],
        }
        self._journal.effects.append(Answer(self._journal.next_offset, ask.connection, ask.request, result))


def _word(reason: int) -> str:
    return DeadReason(reason).name.lower().replace("_", "-")


REASONS: Final = tuple(_word(reason) for reason in DeadReason)
"""Why messages become dead letters, as clients write it."""

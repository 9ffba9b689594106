"""What the broker keeps of a subscription in memory only: its credit, and what is on its way to the client.

Every message that is sent gets the subscription's next delivery number. A Run remembers which messages a row of
numbers means, `open` which numbers are not settled. A message that is sent again gets a new number; so an ack that
comes too late finds its number closed and settles nothing.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vibemq.projections.intervals import IntervalSet
from vibemq.server.effects import Origin

COUNT_MAX = (1 << 32) - 1
RUNS_MIN = 256
"""Below this many runs nobody looks for settled ones in the middle."""


class Run:
    """Delivery numbers `start` .. `end - 1`: messages of `origin` from its position `first` on."""

    __slots__ = ("end", "first", "lease_until_us", "origin", "start")

    def __init__(self, start: int, end: int, origin: Origin, first: int, lease_until_us: int) -> None:
        """Remember a delivery."""
        self.start, self.end, self.origin, self.first, self.lease_until_us = start, end, origin, first, lease_until_us

    def part(self, start: int, end: int, lease_until_us: int) -> "list[Run]":
        """The run of some of its numbers, with a lease of their own; none for none."""
        if start >= end:
            return []
        return [Run(start, end, self.origin, self.first + start - self.start, lease_until_us)]


class Piece(NamedTuple):
    """Part of a run: delivery numbers, and where the messages are."""

    start: int
    end: int
    origin: Origin
    first: int

    @property
    def span(self) -> tuple[int, int, int]:
        """(lane, first sequence, end)."""
        sequence = self.origin.sequence + self.first
        return self.origin.lane, sequence, sequence + self.end - self.start

    @property
    def ref(self) -> tuple[int, int, int]:
        """(record offset, index, count)."""
        return self.origin.offset, self.origin.index + self.first, self.end - self.start

    @property
    def keys(self) -> Sequence[int] | None:
        """The hash of each message's key."""
        keys = self.origin.keys
        return None if keys is None else keys[self.first : self.first + self.end - self.start]

    @property
    def bytes(self) -> int:
        """The bytes of the records."""
        return self.origin.bytes(self.first, self.end - self.start)


class Subscription:
    """One consumer."""

    __slots__ = (
        "_runs_bound",
        "after",
        "blocked",
        "connection",
        "credit_bytes",
        "credit_messages",
        "drain_until_us",
        "exclusive",
        "group",
        "handed",
        "id",
        "keeps",
        "lease_check_us",
        "lease_ms",
        "next_delivery",
        "open",
        "queue",
        "runs",
        "turn_messages_max",
        "unacked_max",
    )

    def __init__(self, number: int, queue: int, group: int, connection: int, after: int) -> None:
        """Begin without credit. Nothing may be sent before records below `after` are durable."""
        self.id, self.queue, self.group, self.connection, self.after = number, queue, group, connection, after
        self.credit_messages = 0
        self.credit_bytes = 0
        self.next_delivery = 1
        self.handed = 0
        self.turn_messages_max = COUNT_MAX
        """It is sent at most so many in a turn."""
        self.unacked_max = COUNT_MAX
        """It is sent nothing more while it holds so many."""
        self.exclusive = False
        """Nobody else may take part in its group."""
        self.keeps = True
        """It holds what it was sent until that is settled; else it is done with it at once."""
        self.blocked = False
        """Its client does not read what it was sent."""
        self.drain_until_us: int | None = None
        self.lease_check_us: int | None = None
        self.lease_ms = 0
        """The lease that its client was told: it extends in step with that, so it is given no shorter one."""
        self.open = IntervalSet()
        self.runs: list[Run] = []
        self._runs_bound = RUNS_MIN

    @property
    def has_credit(self) -> bool:
        """Whether it may be sent something."""
        return self.credit_messages > 0 and self.credit_bytes > 0 and not self.blocked and not self.is_full

    @property
    def most(self) -> int:
        """How many messages it may be sent in one go."""
        return min(self.credit_messages, self.turn_messages_max, self.unacked_max - self.open.total)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many unacked messages as it may."""
        return self.open.total >= self.unacked_max

    def sent(self, origin: Origin, first: int, count: int, lease_until_us: int) -> int:
        """Messages are on their way: give them numbers, and return the first."""
        start = self.next_delivery
        end = self.next_delivery = start + count
        if self.keeps:
            self.open.add(start, end)
            self.runs.append(Run(start, end, origin, first, lease_until_us))
        return start

    def lease_until_us(self, lease_ms: int, now_us: int) -> int:
        """When a lease ends that begins now, in a queue of which `lease_ms` is the lease."""
        return now_us + max(lease_ms, self.lease_ms) * 1000

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Where the deliveries start <= number < end are; all of them must be open."""
        runs = self.runs
        at = bisect_right(runs, start, key=_run_start) - 1 if len(runs) > 1 else 0
        while start < end:
            run = runs[at]
            stop = min(end, run.end)
            yield Piece(start, stop, run.origin, run.first + start - run.start)
            start = stop
            at += 1

    def close(self, start: int, end: int) -> list[Piece]:
        """Settle what is open of start <= number < end, and tell where it is."""
        if self.open.covers(start, end):
            found = list(self.pieces(start, end))
        else:
            found = [piece for low, high in self.open.within(start, end) for piece in self.pieces(low, high)]
        self.open.remove(start, end)
        self._forget_runs()
        return found

    def held(self) -> Iterator[Piece]:
        """Everything that is open."""
        for start, end in self.open:
            yield from self.pieces(start, end)

    def close_all(self) -> list[Piece]:
        """Settle everything that is open."""
        return self.close(0, self.next_delivery)

    def expire(self, now_us: int) -> list[Piece]:
        """Settle what is open and whose lease has ended, and tell where it is."""
        found: list[Piece] = []
        kept: list[Run] = []
        for run in self.runs:
            if run.lease_until_us > now_us:
                kept.append(run)
                continue
            for low, high in self.open.within(run.start, run.end):
                found.append(Piece(low, high, run.origin, run.first + low - run.start))
            self.open.remove(run.start, run.end)
        # A run of which nothing was open goes too: `next_lease_us` would name its end for ever.
        self.runs = kept
        return found

    def extend(self, deliveries: Iterable[tuple[int, int]], lease_until_us: int) -> list[Piece]:
        """Give those of the deliveries that are open a new end of lease, and tell where they are."""
        wanted = IntervalSet()
        for start, end in deliveries:
            for low, high in self.open.within(start, end):
                wanted.add(low, high)
        found = [piece for low, high in wanted for piece in self.pieces(low, high)]
        runs: list[Run] = []
        for run in self.runs:
            at = run.start
            for low, high in wanted.within(run.start, run.end):
                runs += run.part(at, low, run.lease_until_us) + run.part(low, high, lease_until_us)
                at = high
            runs += [run] if at == run.start else run.part(at, run.end, run.lease_until_us)
        self.runs = runs
        return found

    def next_lease_us(self) -> int | None:
        """When the next lease ends."""
        return min((run.lease_until_us for run in self.runs), default=None)

    def _forget_runs(self) -> None:
        """Drop the runs of which nothing is open; those at the front at once, others when they are many."""
        runs, still_open = self.runs, self.open
        if not still_open:
            runs.clear()
            return
        lowest, done = still_open.first, 0
        while runs[done].end <= lowest:
            done += 1
        del runs[:done]
        if len(runs) > self._runs_bound:  # doubling, so that looking at all of them costs little for each
            self.runs = [run for run in runs if still_open.within(run.start, run.end)]
            self._runs_bound = max(RUNS_MIN, 2 * len(self.runs))


def _run_start(run: Run) -> int:
    return run.start

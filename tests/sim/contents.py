"""What a queue holds, message by message: what the book of a history is made of."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from tests.checker import Violation
from tests.sim.mail import Message
from vibemq import events as e
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE

Where: TypeAlias = tuple[int, int]
"""A lane, and a sequence in it."""


class Dead(NamedTuple):
    """Why an entry is in a dead-letter queue, and where it came from."""

    queue: int
    lane: int
    reason: int
    attempts: int
    error: str
    time_us: int


class Delayed(NamedTuple):
    """A message that waits for its time in a queue, and has no place there yet."""

    due_us: int
    lane: int
    message: Message


class Entry:
    """A message in a queue. `of` is whose copy it is, as the checker has it; a copy that moves keeps that."""

    __slots__ = ("dead", "message", "of", "ready_us")

    def __init__(self, message: Message, ready_us: int, of: str, dead: Dead | None = None) -> None:
        """It is ready since then."""
        self.message, self.ready_us, self.of, self.dead = message, ready_us, of, dead


class Group:
    """A group: where its entries are."""

    def __init__(self, number: int, name: str, of: str, *, ephemeral: bool) -> None:
        """Nothing has come to it. `of` begins the names of its copies; empty where the queue has no groups."""
        self.id, self.name, self.of, self.ephemeral = number, name, of, ephemeral
        self.ready: dict[int, list[int]] = {}
        """Lane -> sequences, ascending."""
        self.held: dict[Where, int] = {}
        """-> the subscription."""
        self.waiting: dict[Where, int] = {}
        """-> when it is ready, in us."""
        self.failed: Counter[Where] = Counter()
        """Attempts that failed since it came here."""
        self.former: Counter[Where] = Counter()
        """And in lives before, of what was redriven while the group was there, and not sent back since."""
        self.consumers: list[int] = []
        self.idle_since_us = 0

    @property
    def ready_count(self) -> int:
        """How many are ready."""
        return sum(map(len, self.ready.values()))

    @property
    def length(self) -> int:
        """How many are not settled."""
        return self.ready_count + len(self.held) + len(self.waiting)

    def attempts(self, where: Where) -> int:
        """How many attempts failed, in all lives."""
        return self.former[where] + self.failed[where]

    def forget(self, where: Where) -> None:
        """It is here no more."""
        self.failed.pop(where, None)
        self.former.pop(where, None)

    def lanes(self) -> list[int]:
        """The lanes in which something is ready, highest first."""
        return sorted((lane for lane, sequences in self.ready.items() if sequences), reverse=True)

    def add(self, where: Where) -> None:
        """It is ready now."""
        lane, sequence = where
        insort(self.ready.setdefault(lane, []), sequence)

    def take(self, where: Where, why: str) -> None:
        """It is ready no more."""
        lane, sequence = where
        sequences = self.ready.get(lane, [])
        at = bisect_left(sequences, sequence)
        if at == len(sequences) or sequences[at] != sequence:
            raise Violation(f"message {sequence} of lane {lane} is {why}, and was not ready in group {self.name!r}")
        del sequences[at]

    def unsettled(self) -> Iterator[Where]:
        """All that is there."""
        yield from ((lane, sequence) for lane, sequences in self.ready.items() for sequence in sequences)
        yield from self.held
        yield from self.waiting


class Queue:
    """A queue: its entries, also those that are settled, and its groups."""

    def __init__(self, event: e.QueueDeclared) -> None:
        """Nothing has come to it."""
        self.id, self.name, self.settings = event.queue, event.name, event.settings
        self.lanes: dict[int, list[Entry]] = {DEFAULT_LANE: []}
        self.floor = 1
        self.patterns: set[str] = set()
        self.deleted_until_us = self.deleted_at = 0
        self.idle_since_us = 0
        """Since when it has had no consumers, if it has none."""
        self.has_dead = False
        self.delayed: dict[str, Delayed] = {}
        """By the message's id."""
        self.groups: dict[int, Group] = {}
        if not self.settings.mode.has_groups:
            self.groups[DEFAULT_GROUP] = Group(DEFAULT_GROUP, "", "", ephemeral=False)

    @property
    def has_consumers(self) -> bool:
        """Whether somebody takes part in any of its groups."""
        return any(group.consumers for group in self.groups.values())

    def keeps_dead(self) -> None:
        """Dead letters came. Where a queue fans out, nobody could say when one is done with."""
        self.has_dead = not self.settings.mode.has_groups

    def next(self, lane: int = DEFAULT_LANE) -> int:
        """The sequence of the next message of a lane."""
        return len(self.lanes.get(lane, ())) + 1

    def entry(self, where: Where) -> Entry:
        """What is there."""
        return self.lanes[where[0]][where[1] - 1]

    def of(self, group: Group, entry: Entry) -> str:
        """Whose copy of an entry a group has."""
        return f"{entry.of}>{group.of}" if group.of and entry.of else group.of or entry.of

    @property
    def delayed_bytes(self) -> int:
        """The bytes of what waits for its time."""
        return sum(one.message.size for one in self.delayed.values())

    @property
    def length(self) -> int:
        """Messages that are there and not settled, of the group that is furthest behind."""
        return max((group.length for group in self.groups.values()), default=0)

    @property
    def bytes(self) -> int:
        """The bytes of those."""
        group = max(self.groups.values(), key=lambda group: group.length, default=None)
        return 0 if group is None else self.bytes_of(group)

    def bytes_of(self, group: Group) -> int:
        """The bytes of what is not settled in a group; of a named one they are an estimate, as the broker promises."""
        if group.of:
            return self.bytes_with(group.length)
        return sum(self.entry(where).message.size for where in group.unsettled())

    def bytes_with(self, length: int) -> int:
        """The bytes of so many messages of the average size."""
        lane = self.lanes[DEFAULT_LANE]
        return length * sum(entry.message.size for entry in lane) // max(1, len(lane))

    def named(self, name: str) -> Group | None:
        """The group of that name."""
        return next((group for group in self.groups.values() if group.name == name), None)


def wheres(spans: Iterable[e.Span]) -> list[Where]:
    """Each message of the spans."""
    return [(lane, sequence) for lane, start, end in spans for sequence in range(start, end)]


class Told(NamedTuple):
    """An event that happened."""

    event: e.Event
    time_us: int
    messages: tuple[Message, ...]

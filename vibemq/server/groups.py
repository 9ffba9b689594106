"""Groups of queues that fan out: each gets every message, and works through them at its own pace."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from vibemq import events as e
from vibemq.declaration import Mode
from vibemq.errors import (
    ConsumerExclusive,
    InvalidRequest,
    LimitExceeded,
    RequestError,
    UnknownGroup,
    UnknownQueue,
)
from vibemq.events import DEFAULT_GROUP, DEFAULT_LANE
from vibemq.projections.group import Group
from vibemq.projections.queue import Queue
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Answer, Find, Refusal
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.subscription import Subscription

EPHEMERAL_PREFIX: Final = "$"
"""Names that begin so are the broker's: of groups that go soon after their consumers."""
EPHEMERAL_IDLE_MS: Final = 60_000
"""How long such a group outlives its last consumer, so that a client can come back to it."""

Then = Callable[[Queue, int], None]
"""What to do at a sequence of a queue."""


class Groups:
    """Finds, makes and moves groups."""

    def __init__(self, journal: Journal, deliveries: Deliveries, limits: Limits) -> None:
        """Continue with the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._deliveries = deliveries
        self._limits = limits
        self._asked: dict[int, Callable[[int], None]] = {}
        self._next_question = 1
        self._idle: list[tuple[int, int, int]] = []  # heap of (due us, queue, group)
        self._idle_us: dict[tuple[int, int], int] = {}  # (queue, group) -> its earliest entry there

    # --- who takes part in what

    def find(self, queue: Queue, name: str | None) -> Group | None:
        """The group that a consumer asks for, and that `check_group` lets it; None: it is to be created.

        Raises:
            UnknownGroup: a name that a client cannot choose.
        """
        if not queue.settings.mode.has_groups:
            return queue.groups[DEFAULT_GROUP]
        if name is None:
            return None
        group = queue.group_named(name)
        if group is None and name.startswith(EPHEMERAL_PREFIX):
            raise UnknownGroup(
                f"queue {queue.name!r} has no group {name!r} (any more), and the broker chooses such names"
            )
        return group

    def require(self, queue: Queue, name: str) -> Group:
        """The group of that name.

        Raises:
            UnknownGroup: there is none.
        """
        group = queue.group_named(name) if queue.settings.mode.has_groups else None
        if group is None:
            raise UnknownGroup(f"queue {queue.name!r} has no group {name!r}")
        return group

    def check_exclusive(self, queue: Queue, group: Group, *, exclusive: bool) -> None:
        """Whether one more consumer may take part.

        Raises:
            ConsumerExclusive: it may not.
        """
        if self._deliveries.has_exclusive(queue.id, group.id):
            raise ConsumerExclusive(f"a consumer has queue {queue.name!r} for itself")
        if exclusive and (count := self._deliveries.consumers(queue.id, group.id)):
            consumers = f"{count} consumer{'s' * (count > 1)}"
            raise ConsumerExclusive(f"queue {queue.name!r} has {consumers}: nobody can have it for itself now")

    def create(self, queue: Queue, name: str | None, sequence: int, connection: int) -> Group:
        """A new group that begins at a sequence; without a name one of the broker's.

        Raises:
            LimitExceeded: there are too many.
        """
        if len(queue.groups) >= self._limits.groups_per_queue:
            raise LimitExceeded(f"queue {queue.name!r} has {len(queue.groups)} groups, which is the limit")
        number = queue.next_group
        name_or_own = name or f"{EPHEMERAL_PREFIX}{number}"
        self._journal.record(e.GroupCreated(queue.id, number, name_or_own, sequence, name is None, connection))
        return queue.groups[number]

    # --- where a group begins

    def at(self, queue: Queue, start: str, at: int, connection: int, request: int, then: Then) -> None:
        """Do something at a place of a queue: at once, or when its time was looked up; errors answer the request."""
        first, end = queue.floor, queue.next[DEFAULT_LANE]
        if start == "time":
            question = self._next_question
            self._next_question += 1
            self._asked[question] = lambda found: self._later(queue.id, found, connection, request, then)
            self._journal.loads.append(Find(queue.id, at, first, end, question))
            return
        places = {"head": first, "tail": end, "sequence": min(max(at, first), end)}
        then(queue, places[start])

    def found(self, find: Find, sequence: int) -> None:
        """What `find` asked for is here."""
        self._asked.pop(find.question)(sequence)

    def _later(self, number: int, sequence: int, connection: int, request: int, then: Then) -> None:
        try:
            queue = self._state.queues.get(number)
            if queue is None or queue.deleted_until_us:
                raise UnknownQueue("the queue was deleted meanwhile")
            then(queue, max(sequence, queue.floor))
        except RequestError as error:
            self._journal.effects.append(Refusal(0, connection, request, error))

    def seek(self, connection: int, request: int, queue: Queue, name: str, start: str, at: int) -> None:
        """Let a group go on from somewhere else, and answer where that is.

        Raises:
            UnknownGroup: there is none of that name.
        """
        self.require(queue, name)

        def move(queue: Queue, sequence: int) -> None:
            group = self.require(queue, name)
            self._journal.record(e.GroupSought(queue.id, group.id, sequence, connection))
            self._deliveries.sought(queue, group)
            answer = {"sequence": sequence}
            self._journal.effects.append(Answer(self._journal.next_offset, connection, request, answer))

        self.at(queue, start, at, connection, request, move)

    # --- how a group ends

    def delete(self, queue: Queue, group: Group, connection: int, error: RequestError) -> list[Subscription]:
        """Delete a group, and end its consumers with that error. Those that ended."""
        ended = self._deliveries.end(queue, group.id)
        self._journal.record(e.GroupDeleted(queue.id, group.id, connection))
        self._deliveries.tell_ended(ended, error)
        return ended

    def watch_idle(self, queue: Queue) -> None:
        """The groups of a queue may be other ones: look at those without consumers when their time is over."""
        for group in queue.groups.values():
            self._watch(queue, group)

    def left(self, queue: Queue, number: int) -> None:
        """A consumer has left a group."""
        group = queue.groups.get(number)
        if group is not None:
            self._watch(queue, group)

    def _watch(self, queue: Queue, group: Group) -> None:
        """Look at a group when it has been without consumers for too long, unless that is done earlier anyway."""
        due_us, place = self._idle_until_us(queue, group), (queue.id, group.id)
        if due_us is not None and due_us < self._idle_us.get(place, due_us + 1):
            self._idle_us[place] = due_us
            heappush(self._idle, (due_us, *place))

    def _idle_until_us(self, queue: Queue, group: Group) -> int | None:
        """When a group without consumers is to be deleted; None: not at all, or not as things are."""
        idle_ms = EPHEMERAL_IDLE_MS if group.ephemeral else queue.settings.group_idle_ms
        if group.id == DEFAULT_GROUP or group.held or not idle_ms:
            return None
        return group.idle_since_us + idle_ms * 1000

    def tick(self) -> None:
        """Delete the groups that nobody came back to."""
        while self._idle and self._idle[0][0] <= self._journal.now_us:
            entry_us, number, group_number = heappop(self._idle)
            if self._idle_us.get((number, group_number)) == entry_us:
                del self._idle_us[number, group_number]
            queue = self._state.queues.get(number)
            group = queue.groups.get(group_number) if queue is not None else None
            if queue is None or group is None or queue.deleted_until_us:
                continue
            due_us = self._idle_until_us(queue, group)
            if due_us is not None and due_us <= self._journal.now_us:
                self.delete(queue, group, 0, UnknownGroup("the group had no consumers for too long"))
            else:
                self._watch(queue, group)

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        return self._idle[0][0] if self._idle else None


def check_group(queue: str, mode: Mode, name: str | None, start: str) -> None:
    """Whether a consumer of a queue, which need not exist yet, may ask for that group and that start.

    Raises:
        UnknownGroup: a queue of that mode has no groups, or not yet one that only the broker could have named.
        InvalidRequest: a start, where there is nothing to choose.
    """
    if mode.has_groups:
        return
    if name is not None:
        raise UnknownGroup(
            f"queue {queue!r} has no group {name!r}: in mode {mode.value}, which it has or would be created with, all "
            "consumers share the messages. Declare a queue with mode fan-out for groups"
        )
    if start != "tail":
        raise InvalidRequest(
            f"a start is for groups: in mode {mode.value} all consumers of queue {queue!r} share the messages"
        )

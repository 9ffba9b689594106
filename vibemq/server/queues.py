"""The administration of queues: which there are, and what they are like."""

from typing import Any

import msgspec

from vibemq import events as e
from vibemq.errors import DeclareConflict, InvalidName, LimitExceeded, UnknownQueue
from vibemq.events import DEFAULT_LANE, QueueSettings
from vibemq.projections.queue import Queue
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Answer
from vibemq.server.groups import Groups
from vibemq.server.journal import Journal
from vibemq.server.limits import NAME_BYTES_MAX, Limits
from vibemq.server.queue_settings import DEAD_LETTER_SUFFIX, QueueDefaults, checked, differences
from vibemq.server.subscription import Subscription


class Queues:
    """Makes, changes and ends queues."""

    def __init__(
        self,
        journal: Journal,
        deliveries: Deliveries,
        groups: Groups,
        limits: Limits,
        defaults: QueueDefaults,
        *,
        auto_create: bool,
    ) -> None:
        """Continue with the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._deliveries = deliveries
        self._groups = groups
        self._limits = limits
        self._defaults = defaults
        self._auto_create = auto_create

    def named_or_new(self, name: str, connection: int) -> Queue:
        """The queue of that name, created with its defaults if need be.

        Raises:
            UnknownQueue: there is none, and none may be created on the way.
        """
        queue = self._state.queue_named(name)
        if queue is not None:
            return queue
        if not self._auto_create:
            raise UnknownQueue(f"there is no queue {name!r}; declare it first (auto_create is off)")
        return self._new(name, self._defaults.of(name), connection)

    def _new(self, name: str, settings: QueueSettings, connection: int) -> Queue:
        if len(self._state.queues) >= self._limits.queues:
            raise LimitExceeded(f"there are {len(self._state.queues)} queues, which is the limit")
        if not settings.dead_letter_queue and len(name.encode()) > NAME_BYTES_MAX - len(DEAD_LETTER_SUFFIX):
            raise InvalidName(
                f"the name of a queue may have {NAME_BYTES_MAX - len(DEAD_LETTER_SUFFIX)} bytes, which leaves room for "
                f"{DEAD_LETTER_SUFFIX} behind it; a longer one needs a dead_letter_queue of its own"
            )
        number = self._state.topology.next_queue
        self._journal.record(e.QueueDeclared(number, name, settings, connection))
        return self._state.queues[number]

    def require(self, name: str) -> Queue:
        """The queue of that name.

        Raises:
            UnknownQueue: there is none.
        """
        queue = self._state.queue_named(name)
        if queue is None:
            raise UnknownQueue(f"there is no queue {name!r}")
        return queue

    def declare(self, connection: int, request: int, name: str, wanted: dict[str, Any]) -> None:
        """Create a queue; one that is there already must have these settings.

        Raises:
            RequestError: settings that make no sense, or that differ from the queue's.
        """
        given = checked(wanted, self._limits)
        queue = self._state.queue_named(name)
        if queue is None:
            queue = self._new(name, self._defaults.of(name, given), connection)
        elif found := differences(queue.settings, given):
            what = ", ".join(f"{one['setting']} is {one['live']!r}, not {one['declared']!r}" for one in found)
            raise DeclareConflict(f"queue {name!r} exists with other settings: {what}")
        self._journal.effects.append(Answer(self._journal.next_offset, connection, request, self.describe(queue)))

    def describe(self, queue: Queue) -> dict[str, Any]:
        """What people want to know of a queue, as plain values."""
        settings: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(queue.settings))
        return {
            "name": queue.name,
            "mode": settings.pop("mode"),
            "ready": queue.ready,
            "unacked": queue.unacked,
            "waiting": queue.waiting,
            "messages": queue.length,
            "bytes": queue.bytes,
            "consumers": self._deliveries.consumers(queue.id),
            "next_sequence": queue.next[DEFAULT_LANE],
            "dead_letters": queue.id in self._state.dead,
            "settings": settings,
        }

    def list_all(self, connection: int, request: int) -> None:
        """Answer with all queues, by name."""
        found = [self.describe(self._state.queues[number]) for _, number in sorted(self._state.topology.queues.items())]
        self._journal.effects.append(Answer(0, connection, request, found))

    def show(self, connection: int, request: int, name: str) -> None:
        """Answer with one queue.

        Raises:
            UnknownQueue: there is none of that name.
        """
        self._journal.effects.append(Answer(0, connection, request, self.describe(self.require(name))))

    def purge(self, connection: int, request: int, name: str) -> None:
        """Throw away what is ready or waiting.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require(name)
        behind = queue.behind
        held_bytes = behind.unacked_bytes if behind is not None else 0
        count, size = queue.length - queue.unacked, max(0, queue.bytes - held_bytes)
        kept = tuple(
            (lane, start, end)
            for group in queue.groups.values()
            for held in group.held.values()
            for lane, spans in held.items()
            for start, end in spans
        )
        self._journal.record(e.QueuePurged(queue.id, count, size, connection, kept))
        self._deliveries.purged(queue)
        self._journal.effects.append(Answer(self._journal.next_offset, connection, request, {"count": count}))

    def delete(self, connection: int, request: int, name: str) -> list[Subscription]:
        """Delete a queue and everything in it. The subscriptions that ended by that.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require(name)
        ended = [one for group in list(queue.groups) for one in self._deliveries.end(queue, group)]
        count, size = queue.length, queue.bytes
        self._journal.record(e.QueueDeleted(queue.id, count, size, connection))
        self._deliveries.queue_gone(queue)
        self._deliveries.tell_ended(ended, UnknownQueue(f"queue {name!r} was deleted"))
        result = {"count": count, "until_us": 0}
        self._journal.effects.append(Answer(self._journal.next_offset, connection, request, result))
        return ended

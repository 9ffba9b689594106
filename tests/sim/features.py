"""Which features a history exercises, and under which faults: what the table in docs/testing.md counts.

A feature has met a fault when it was at work in a history both before that fault and after it: so whatever the feature
keeps, on disk or in memory, was there when the fault came, and was used when it was over. Of what is done once, and
lasts, it is enough that it was done before: whether it has lasted is judged after each restart, and at the end.
"""

from typing import Any, Final

from tests.sim.book import Book
from tests.sim.contents import Queue
from vibemq import events as e
from vibemq.declaration import Backoff, Mode, Overflow
from vibemq.events import DeadReason

FEATURES: Final = {
    "round-robin": "messages handed out",
    "priority": "messages handed out",
    "priority guard": "messages of a priority queue with a guard handed out",
    "fan-out": "messages handed out",
    "fan-out-no-ack": "messages handed out",
    "named groups": "messages handed out",
    "ephemeral groups": "messages handed out",
    "seek": "groups sought",
    "groups deleted": "by a client, or after their idle time",
    "single active consumer": "messages handed out",
    "exclusive consumer": "consumers that had a group for themselves",
    "order by key": "messages with keys handed out",
    "retries": "messages released to be tried again later",
    "exponential backoff": "the same, with a growing delay",
    "leases": "leases that ended",
    "TTL": "messages expired",
    "overflow: reject": "publishes refused for want of room in their queue",
    "overflow: drop-oldest": "messages dropped",
    "overflow: drop-newest": "messages not stored",
    "overflow: dead-letter": "messages moved",
    "overflow: block": "publishers told to go on",
    "group lag": "messages a group lost for being behind",
    "publish rate": "publishers that had to wait",
    "deliver rate": "messages handed out",
    "topics": "batches routed",
    "unroutable": "batches that nobody was bound to",
    "dead letters": "messages dead-lettered",
    "redrive": "messages sent back to work",
    "purge": "queues purged",
    "change": "queues changed",
    "rename": "queues renamed",
    "delete, undelete": "queues brought back",
    "delayed": "messages that became ready when they were due",
    "overdue": "the same, at a limited rate, as they had been due before the broker began",
    "cancel": "delayed messages taken back",
    "reschedule": "delayed messages put off, or called",
    "transactions": "committed",
    "consume, transform, produce": "committed transactions that acked and published",
    "transaction conflicts": "commits refused, as what they acked was not held any more",
    "commits too late": "commits refused, as their attempt was over",
    "repeated commits": "commits that were recognised as done already",
    "dedup ids": "messages recognised by theirs, and not stored again",
    "dedup window": "ids forgotten",
    "schedules": "messages published",
    "misfires": "times of schedules that were left out",
    "expiring queues": "queues that ended by themselves",
}
"""What is counted of each."""

LASTING: Final = frozenset(
    {"seek", "groups deleted", "purge", "change", "rename", "delete, undelete", "overdue", "cancel", "reschedule"}
)
"""What is done once."""

FAULTS: Final = {
    "kill": "kills",
    "power loss": "power losses",
    "stop": "stops",
    "disk error": "died of the disk",
    "full disk": "disks filled",
    "cut connection": "cuts",
    "silent client": "time-outs",
    "slow client": "blocked",
    "clock set": "clocks set",
    "checkpoint": "checkpoints",
}
"""And what the world counts of each."""

_MODES = {mode: str(mode) for mode in Mode}


class Features:
    """What one history has exercised so far."""

    def __init__(self) -> None:
        """Nothing."""
        self._moment = 0
        self._seen: dict[str, tuple[int, int]] = {}
        self._faults: list[tuple[str, int]] = []

    def seen(self, feature: str) -> None:
        """A feature is at work."""
        moment = self._moment
        self._seen[feature] = self._seen.get(feature, (moment, moment))[0], moment

    def hit(self, fault: str) -> None:
        """A fault has come."""
        self._moment += 1
        self._faults.append((fault, self._moment))
        self._moment += 1

    @property
    def known(self) -> set[str]:
        """The features that were at work."""
        return set(self._seen)

    def cells(self) -> set[tuple[str, str]]:
        """The pairs of a feature and a fault that met."""
        return {
            (feature, fault)
            for feature, (first, last) in self._seen.items()
            for fault, moment in self._faults
            if first < moment and (moment < last or feature in LASTING)
        }

    def happened(self, event: e.Event, queue: Queue | None, book: Book) -> None:
        """An event that is about `queue`, where there is one, is about to be written into the book."""
        note = _NOTES.get(type(event))
        if note is not None:
            note(self, event, queue, book)


def _delivered(it: Features, event: e.Delivered, queue: Queue, _: Book) -> None:
    settings, group = queue.settings, queue.groups[event.group]
    it.seen(_MODES[settings.mode])
    if settings.priority_guard:
        it.seen("priority guard")
    if group.of:
        it.seen("ephemeral groups" if group.ephemeral else "named groups")
    if settings.single_active and len(group.consumers) > 1:
        it.seen("single active consumer")
    if settings.order_by_key:
        it.seen("order by key")
    if settings.deliver_rate:
        it.seen("deliver rate")


def _released(it: Features, event: e.Released, queue: Queue, _: Book) -> None:
    if event.not_before_us:
        it.seen("retries")
        if queue.settings.retry_backoff is Backoff.EXPONENTIAL:
            it.seen("exponential backoff")
    _lease_ended(it, event)


def _lease_ended(it: Features, event: e.Released | e.DeadLettered) -> None:
    if event.error == "the lease ended":
        it.seen("leases")


def _removed(it: Features, event: e.Dropped | e.DeadLettered, queue: Queue, _: Book) -> None:
    if event.reason == DeadReason.EXPIRED:
        it.seen("TTL")
    elif event.reason == DeadReason.OVERFLOW:
        trims = queue.settings.overflow in {Overflow.DROP_OLDEST, Overflow.DEAD_LETTER}
        it.seen(f"overflow: {queue.settings.overflow}" if trims else "group lag")
        if queue.settings.group_max_lag:
            it.seen("group lag")
    if isinstance(event, e.DeadLettered):
        it.seen("dead letters")
        _lease_ended(it, event)


def _published(it: Features, event: e.Published, _: Queue, __: Book) -> None:
    if event.dropped:
        it.seen("overflow: drop-newest")


def _fired(it: Features, event: e.Fired, _: Queue | None, __: Book) -> None:
    it.seen("schedules")
    if event.missed:
        it.seen("misfires")


def _deleted(it: Features, event: e.QueueDeleted, queue: Queue, _: Book) -> None:
    if not event.connection and not queue.deleted_until_us:
        it.seen("expiring queues")


_NOTES: Final[dict[type, Any]] = {
    e.Delivered: _delivered,
    e.Released: _released,
    e.Dropped: _removed,
    e.DeadLettered: _removed,
    e.Published: _published,
    e.Routed: lambda it, event, _, __: it.seen("unroutable" if event.unroutable else "topics"),
    e.Cancelled: lambda it, *_: it.seen("cancel"),
    e.Rescheduled: lambda it, *_: it.seen("reschedule"),
    e.DedupForgotten: lambda it, *_: it.seen("dedup window"),
    e.Fired: _fired,
    e.Misfired: lambda it, *_: it.seen("misfires"),
    e.QueueDeleted: _deleted,
    e.Redriven: lambda it, *_: it.seen("redrive"),
    e.GroupSought: lambda it, *_: it.seen("seek"),
    e.GroupDeleted: lambda it, *_: it.seen("groups deleted"),
    e.QueuePurged: lambda it, *_: it.seen("purge"),
    e.QueueChanged: lambda it, *_: it.seen("change"),
    e.QueueRenamed: lambda it, *_: it.seen("rename"),
    e.QueueUndeleted: lambda it, *_: it.seen("delete, undelete"),
}

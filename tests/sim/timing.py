"""Leases and retry delays, by the monotonic clock.

The broker's own clock is not asked: so it shows when a lease ends too early or too late because time was taken from
elsewhere.
"""

from collections import Counter
from typing import Any, TypeAlias

from tests.checker import Violation
from tests.sim.book import Book
from tests.sim.contents import Queue, Told, wheres
from tests.sim.delayed import spread
from tests.sim.rules import LEASE_ENDED
from vibemq import events as e
from vibemq.declaration import Mode

SLACK_US = 2
"""The clock counts seconds as float."""

Key: TypeAlias = tuple[int, int, int, int]
"""Queue, group, lane, sequence."""


class Delays:
    """Messages that wait for their time, by the monotonic clock: none is ready before it."""

    def __init__(self, counts: Counter[str]) -> None:
        """Nobody waits."""
        self._counts = counts
        self._until: dict[tuple[int, str], int] = {}
        """By queue and message."""

    def restarted(self) -> None:
        """A delay may be over sooner, as a wall clock that went on meanwhile is believed."""
        self._until.clear()

    def happened(self, part: Told, now_us: int) -> None:
        """An event, or a part of one, was appended `now_us`."""
        event, time_us, messages = part
        if isinstance(event, e.Published | e.Routed) and event.due_us:
            queues = [event.queue] if isinstance(event, e.Published) else [queue for queue, _, _ in event.targets]
            for message in messages:
                self._until |= {(queue, message.id): now_us + event.due_us - time_us for queue in queues}
        elif isinstance(event, e.Rescheduled):
            for one, (due_us, _) in spread(event.after).items():
                self._until[event.queue, one] = now_us + due_us - time_us
        elif isinstance(event, e.Matured):
            for one in spread(event.entries):
                left_us = self._until.pop((event.queue, one), now_us) - now_us
                self._counts["due times reached"] += 1
                if left_us > SLACK_US:
                    raise Violation(f"message {one} of queue {event.queue} is ready {left_us} us too early")


class Timing:
    """Leases and retry delays, in microseconds of the monotonic clock."""

    def __init__(self, counts: Counter[str]) -> None:
        """Nobody holds anything."""
        self._counts = counts
        self.leases: dict[Key, int] = {}
        self.waiting: dict[Key, int] = {}
        self.delays = Delays(counts)
        self.told_us: dict[int, int] = {}
        """Subscription -> the lease that its client was told: it is given no shorter one."""

    def restarted(self) -> None:
        """Nobody holds anything; a delay may be over sooner, as a wall clock that went on meanwhile is believed."""
        self.leases.clear()
        self.waiting.clear()
        self.delays.restarted()

    def happened(self, event: e.Event, time_us: int, now_us: int, queue: Queue | None) -> None:
        """An event of broker time `time_us` was appended `now_us`."""
        if isinstance(event, e.Subscribed) and queue is not None:
            self.told_us[event.subscription] = queue.settings.lease_ms * 1000
        elif isinstance(event, e.Delivered) and queue is not None:
            self._delivered(event, time_us, now_us, queue)
        elif isinstance(event, e.LeaseExtended):
            self._lease(event, time_us, now_us)
        elif isinstance(event, e.MadeReady):
            self._is_over(self.waiting, event, now_us, "delays")
        elif isinstance(event, e.Acked):
            self._give_up(event)
        elif isinstance(event, e.Released | e.DeadLettered):
            self._failed(event, time_us, now_us)
        elif isinstance(event, e.GroupSought):
            for until in (self.leases, self.waiting):
                for key in [key for key in until if key[:2] == (event.queue, event.group)]:
                    del until[key]

    def _delivered(self, event: e.Delivered, time_us: int, now_us: int, queue: Queue) -> None:
        keeps = queue.settings.mode is not Mode.FAN_OUT_NO_ACK
        lease_us = max(queue.settings.lease_ms * 1000, self.told_us[event.subscription]) if keeps else 0
        lasts_us = event.lease_until_us - time_us if event.lease_until_us else 0
        if lasts_us != lease_us:
            raise Violation(f"a lease of {lasts_us} us, where the queue's is {lease_us}")
        if keeps:
            self._lease(event, time_us, now_us)

    def _failed(self, event: e.Released | e.DeadLettered, time_us: int, now_us: int) -> None:
        if event.error == LEASE_ENDED and event.subscription:
            self._is_over(self.leases, event, now_us, "leases")
        self._give_up(event)
        if isinstance(event, e.Released) and event.not_before_us:
            self.waiting |= dict.fromkeys(_keys(event), now_us + event.not_before_us - time_us)

    def _lease(self, event: e.Delivered | e.LeaseExtended, time_us: int, now_us: int) -> None:
        self.leases |= dict.fromkeys(_keys(event), now_us + event.lease_until_us - time_us)

    def _give_up(self, event: Any) -> None:  # noqa: ANN401 - an event with spans
        for key in _keys(event):
            self.leases.pop(key, None)

    def _is_over(self, until: dict[Key, int], event: Any, now_us: int, what: str) -> None:  # noqa: ANN401 - likewise
        self._counts[f"{what} ended"] += 1
        for key in _keys(event):
            left_us = until.pop(key, now_us) - now_us
            if left_us > SLACK_US:
                raise Violation(f"{what} ended {left_us} us too early: message {key[3]} of queue {key[0]}")

    def ticked(self, now_us: int, book: Book) -> None:
        """The broker has done all that was due by now."""
        for what, until in (("leases", self.leases), ("delays", self.waiting)):
            if until and min(until.values()) < now_us - SLACK_US:
                late = [key for key, end_us in until.items() if end_us < now_us - SLACK_US and _is_out(book, key)]
                if late:
                    raise Violation(f"{what} go on past their ends: message {late[0][3]} of queue {late[0][0]}")


def _keys(event: Any) -> list[Key]:  # noqa: ANN401 - an event with spans
    return [(event.queue, event.group, *where) for where in wheres(event.spans)]


def _is_out(book: Book, key: Key) -> bool:
    """Whether a message is held or waits: what was purged or deleted is not heard of again."""
    queue = book.queues.get(key[0])
    group = queue.groups.get(key[1]) if queue is not None and not queue.deleted_until_us else None
    return group is not None and (key[2:] in group.held or key[2:] in group.waiting)

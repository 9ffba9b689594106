"""Schedules: what the book says of them, and what the broker may decide about them.

Intervals only: what a cron expression means is for other tests to say.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.checker import Name, Violation
from tests.sim.contents import Dead, Entry, Told
from tests.sim.mail import fired_name
from vibemq import events as e
from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.book import Book

LATE_US = 60_000_000
"""What is late by more was missed."""


class Schedule:
    """One of them."""

    def __init__(self, event: e.ScheduleSet, time_us: int) -> None:
        """It is new."""
        self.name, self.spec, self.next_us, self.anchor_us = event.name, event.spec, event.next_us, time_us
        self.paused = False
        self.count = 0
        self.last_us = 0

    def times_after(self, time_us: int) -> int:
        """The first of its times after that one; 0: none."""
        every_us, spec = self.spec.every_ms * 1000, self.spec
        start_us = spec.start_us or self.anchor_us
        least = 0 if spec.start_us else 1
        found_us = start_us + max(least, (time_us - start_us) // every_us + 1) * every_us
        return 0 if spec.end_us and found_us >= spec.end_us else found_us

    def until(self, now_us: int) -> tuple[int, int]:
        """How many of its times there are from the next up to now, and the last of them."""
        last_us = now_us if not self.spec.end_us else min(now_us, self.spec.end_us - 1)
        count = (last_us - self.next_us) // (self.spec.every_ms * 1000)
        return count + 1, self.next_us + count * self.spec.every_ms * 1000


class ScheduleBook:
    """All of them, and what they have published."""

    def __init__(self, book: "Book") -> None:
        """None."""
        self._book = book
        self.schedules: dict[int, Schedule] = {}
        self.fired: set[Name] = set()
        self.applies: dict[type, Callable[[Any, Told], None]] = {
            e.ScheduleSet: self._set,
            e.SchedulePaused: self._paused,
            e.ScheduleDeleted: self._deleted,
            e.Fired: self._fired,
            e.Misfired: self._misfired,
        }

    def _set(self, event: e.ScheduleSet, told: Told) -> None:
        known = self.schedules.get(event.schedule)
        if known is None:
            self.schedules[event.schedule] = Schedule(event, told.time_us)
            return
        if known.spec.timing != event.spec.timing:
            known.anchor_us = told.time_us
        known.spec, known.next_us = event.spec, event.next_us

    def _paused(self, event: e.SchedulePaused, _: Told) -> None:
        known = self.schedules[event.schedule]
        known.paused, known.next_us = event.paused, event.next_us

    def _deleted(self, event: e.ScheduleDeleted, _: Told) -> None:
        del self.schedules[event.schedule]

    def _fired(self, event: e.Fired, told: Told) -> None:
        known = self.schedules[event.schedule]
        known.count, known.last_us, known.next_us = known.count + 1, event.due_us, event.next_us
        (message,) = told.messages
        self._book.new(told.messages)
        self.fired.add(message.name)
        dead: Dead | None = None
        for queue, lane, sequence in event.targets:
            self._book.came(queue, lane, sequence, [Entry(message, told.time_us, self._book.own(queue), dead=dead)])

    def _misfired(self, event: e.Misfired, _: Told) -> None:
        self.schedules[event.schedule].next_us = event.next_us


class ScheduleRules:
    """What may be decided."""

    def __init__(self, book: "Book") -> None:
        """Judge by this book."""
        self._book = book
        self.judges: dict[type, Callable[[Any, Told, Any], None]] = {
            e.ScheduleSet: self._set,
            e.SchedulePaused: self._paused,
            e.ScheduleDeleted: self._deleted,
            e.Fired: self._fired,
            e.Misfired: self._misfired,
        }

    def _set(self, event: e.ScheduleSet, told: Told, cause: m.Command | None) -> None:
        if not isinstance(cause, m.SetSchedule) or cause.name != event.name:
            raise Violation(f"{event} for {cause}")
        known = self._book.schedules.schedules.get(event.schedule)
        if known is None and any(one.name == event.name for one in self._book.schedules.schedules.values()):
            raise Violation(f"{event} has the name of another")
        if known is None and event.next_us <= told.time_us:
            raise Violation(f"{event} is to publish at a time that is over")

    def _paused(self, event: e.SchedulePaused, told: Told, cause: m.Command | None) -> None:
        known = self._book.schedules.schedules[event.schedule]
        if not isinstance(cause, m.PauseSchedule) or (cause.name, cause.paused) != (known.name, event.paused):
            raise Violation(f"{event} for {cause}")
        if event.next_us != (0 if event.paused else known.times_after(told.time_us)):
            raise Violation(f"{event} goes on at another time than {known.times_after(told.time_us)}")

    def _deleted(self, event: e.ScheduleDeleted, _: Told, cause: m.Command | None) -> None:
        known = self._book.schedules.schedules[event.schedule]
        asked = isinstance(cause, m.DeleteSchedule) and cause.name == known.name
        if not asked and (event.connection or known.next_us or known.paused):
            raise Violation(f"{event} of a schedule that is to go on at {known.next_us}, for {cause}")

    def _due(self, event: e.Fired | e.Misfired, now_us: int) -> Schedule:
        known = self._book.schedules.schedules[event.schedule]
        if known.paused or not known.next_us or known.next_us > now_us:
            raise Violation(f"{event} at {now_us}, where {known.next_us} is the next time")
        return known

    def _goes_on(self, known: Schedule, spec: ScheduleSpec, at_us: int) -> int:
        """When it is due next after it has published for a time."""
        return 0 if 0 < spec.times <= known.count + 1 else known.times_after(at_us)

    def _fired(self, event: e.Fired, told: Told, _: m.Command | None) -> None:
        known, now_us = self._due(event, told.time_us), told.time_us
        wanted_us, missed = known.next_us, 0
        if now_us - known.next_us > LATE_US and known.spec.misfire is not Misfire.ALL:
            if known.spec.misfire is Misfire.SKIP:
                raise Violation(f"{event} at {now_us} makes up for {known.next_us}, which was to be left out")
            count, wanted_us = known.until(now_us)
            missed = count - 1
        next_us = self._goes_on(known, known.spec, wanted_us)
        if (event.due_us, event.missed, event.next_us) != (wanted_us, missed, next_us):
            raise Violation(f"{event} at {now_us}, where {wanted_us} was due, {missed} were missed, next is {next_us}")
        if [message.name for message in told.messages] != [fired_name(known.name, event.due_us)]:
            raise Violation(f"{event} published {told.messages}")
        if event.due_us <= known.last_us:
            raise Violation(f"{event} is for a time that had its message")

    def _misfired(self, event: e.Misfired, told: Told, _: m.Command | None) -> None:
        known, now_us = self._due(event, told.time_us), told.time_us
        is_late = now_us - known.next_us > LATE_US
        has_all = known.spec.misfire is Misfire.ALL and event.missed == 1  # but it makes up for so many only
        skips = is_late and known.spec.misfire is not Misfire.ONCE and not has_all
        count, last_us = known.until(now_us) if is_late and not has_all else (1, known.next_us)
        if (event.missed, event.next_us) != (count, known.times_after(last_us)):
            raise Violation(f"{event} at {now_us}, where {count} up to {last_us} were missed")
        queue = self._book.queue_named(known.spec.queue)
        has_reason = queue is None or known.spec.to_topic or queue.settings.max_length < 1000 or (
            queue.settings.max_bytes < 10_000 or queue.settings.publish_rate
        )  # fmt: skip
        if not skips and not has_reason:
            raise Violation(f"{event} leaves out what queue {known.spec.queue} has room for")

"""Schedules: messages that the broker publishes by itself, again and again.

When a schedule is due it publishes, and says when it is due next, in one record: so nothing is published twice,
whatever a crash leaves of the log. What it could not publish (the queue is full, or is none) is left out, and recorded
as that.

A time that is over for longer than LATE_US was missed: the broker was away, or its disk was full. What becomes of it,
and of all times since, is the schedule's `misfire` policy.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Any, Final, Protocol

from vibemq import events as e
from vibemq.batch import TTL_MS_MAX, Batch, pack, pack_headers
from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.errors import InvalidRequest, LimitExceeded, NotSupported, RequestError, UnknownSchedule
from vibemq.projections.schedules import Schedule
from vibemq.server.effects import Answer
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish, Publishing

EVERY_MS_MIN: Final = 100
LATE_US: Final = 60_000_000
"""What is late by more was missed; what is late by less comes late."""
FIRES_MAX: Final = 20
"""Messages published in one turn: each takes broker and log about 50 us, a cron expression as much again."""
BYTES_MAX: Final = 256 * 1024
"""Bytes of them, above which the turn ends."""
HELD_US: Final = 20_000
"""After so long it is tried again, where the disk is full or the log is behind."""
COUNTED_MAX: Final = 50
"""Missed times of a cron expression are counted one by one, in one go, up to so many."""
OWN_HEADERS: Final = ("schedule", "scheduled_for", "topic")
"""Headers that the broker adds."""
LAST_US: Final = 253_402_300_799_000_000
"""The end of the year 9999: there are no times after."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Calendar(Protocol):
    """Knows time zones, and what a cron expression means in them."""

    def next_us(self, cron: str, zone: str, after_us: int) -> int:
        """The first time after `after_us` that matches; 0: there is none in the next decades.

        Raises:
            InvalidRequest: no cron expression, or no time zone.
            NotSupported: this installation cannot tell.
        """


class NoCalendar:
    """Knows none: for schedules at intervals."""

    def next_us(self, cron: str, zone: str, after_us: int) -> int:  # noqa: ARG002 - as Calendar has it
        """See Calendar."""
        raise NotSupported("this broker has no calendar: it takes schedules with every_ms only, not with cron")


class Times:
    """The times at which a schedule publishes."""

    __slots__ = ("_calendar", "_every_us", "_from_us", "_least", "_spec")

    def __init__(self, spec: ScheduleSpec, anchor_us: int, calendar: Calendar) -> None:
        """Intervals without a start are counted from `anchor_us`, which is no such time itself."""
        self._spec, self._calendar = spec, calendar
        self._every_us = spec.every_ms * 1000
        self._from_us = spec.start_us or anchor_us
        self._least = 0 if spec.start_us else 1

    def after(self, time_us: int) -> int:
        """The first one after that time; 0: there is none.

        Raises:
            InvalidRequest, NotSupported: as the calendar.
        """
        spec = self._spec
        if self._every_us:
            past = (time_us - self._from_us) // self._every_us + 1
            found_us = self._from_us + max(self._least, past) * self._every_us
        else:
            found_us = self._calendar.next_us(spec.cron, spec.zone, max(time_us, spec.start_us - 1))
        return 0 if found_us > LAST_US or (spec.end_us and found_us >= spec.end_us) else found_us

    def count(self, first_us: int, now_us: int) -> tuple[int, int]:
        """How many there are from `first_us`, which is one, up to now, and the last of them.

        Of a cron expression no more are counted than COUNTED_MAX.
        """
        if self._every_us:
            end_us = min(now_us + 1, self._spec.end_us or now_us + 1)
            count = (end_us - 1 - first_us) // self._every_us + 1
            return count, first_us + (count - 1) * self._every_us
        last_us, count = first_us, 1
        while 0 < (next_us := self.after(last_us)) <= now_us:
            if count == COUNTED_MAX:
                return count, self._last(next_us, now_us)
            last_us, count = next_us, count + 1
        return count, last_us

    def _last(self, known_us: int, now_us: int) -> int:
        """The last one up to now, by halves; `known_us` is one. They are whole seconds."""
        low, high = known_us, now_us
        while high - low >= 1_000_000:
            middle = (low + high) // 2
            if 0 < (found := self.after(middle)) <= now_us:
                low = found
            else:
                high = middle
        return low


class Schedules:
    """All schedules. Methods that take a client's `request` answer it through effects."""

    def __init__(self, journal: Journal, publishing: Publishing, limits: Limits, calendar: Calendar) -> None:
        """Continue with the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._publishing = publishing
        self._limits = limits
        self._calendar = calendar
        self._names: dict[str, int] = {one.name: number for number, one in self._state.schedules.items()}
        self._due: list[tuple[int, int]] = []
        """A heap of (due us, number). What is not true any more is passed over in its turn."""
        self._held_until_us = 0
        self._caught_up: dict[int, int] = {}
        """Number -> missed times that got their messages in a row."""
        self.has_room: Callable[[int], bool] = lambda _: True
        """Whether so many bytes may be published now. The runtime knows: it has the disk."""

    def start(self) -> None:
        """Go on. What had come to its end when the broker did is ended."""
        for schedule in list(self._state.schedules.values()):
            self._watch(schedule)

    # --- what clients ask for

    def set(self, connection: int, request: int, name: str, spec: ScheduleSpec) -> None:
        """Make a schedule, or change the one of that name. One that is the same goes on as if nothing was said.

        Raises:
            InvalidRequest: what cannot be, or would never publish.
            LimitExceeded: too many schedules, or too large a message.
            NotSupported: a cron expression, and this installation knows none.
        """
        known = self._named(name)
        if known is None or known.spec != spec:
            self._check(name, spec)
            known = self._make(connection, name, spec) if known is None else self._change(connection, known, spec)
        self._answer(connection, request, describe(known))

    def _check(self, name: str, spec: ScheduleSpec) -> None:
        if bool(spec.cron) == bool(spec.every_ms):
            raise InvalidRequest(f"schedule {name!r} needs either cron or every_ms, to know when")
        if spec.every_ms and spec.every_ms < EVERY_MS_MIN:
            raise InvalidRequest(f"the shortest interval of a schedule is {EVERY_MS_MIN} ms, not {spec.every_ms}")
        if spec.every_ms and spec.zone != "UTC":
            raise InvalidRequest("a zone goes with cron: an interval is the same everywhere")
        if spec.end_us and spec.end_us <= spec.start_us:
            raise InvalidRequest(f"the end of schedule {name!r} must come after its start")
        taken = [key for key in OWN_HEADERS if key in spec.headers]
        if taken:
            raise InvalidRequest(
                f"header {taken[0]!r} is the broker's own on what a schedule publishes: name it otherwise"
            )
        if spec.ttl_ms > TTL_MS_MAX:
            raise InvalidRequest(f"a message may wait for up to {TTL_MS_MAX} ms, or with 0 for ever")
        size = _batch(name, spec, LAST_US).record_bytes
        most = min(self._limits.schedule_bytes, self._limits.message_bytes)
        if size > most:
            raise LimitExceeded(f"the message of a schedule may have {most} bytes with its headers, not {size}")

    def _make(self, connection: int, name: str, spec: ScheduleSpec) -> Schedule:
        if len(self._names) >= self._limits.schedules:
            raise LimitExceeded(f"there are {len(self._names)} schedules, which is the limit")
        next_us = self._next(name, spec, self._journal.now_us)
        number = self._journal.next_offset
        self._journal.record(e.ScheduleSet(number, name, spec, next_us, connection))
        self._names[name] = number
        schedule = self._state.schedules[number]
        self._watch(schedule)
        return schedule

    def _change(self, connection: int, schedule: Schedule, spec: ScheduleSpec) -> Schedule:
        if 0 < spec.times <= schedule.count:
            raise InvalidRequest(
                f"schedule {schedule.name!r} has published {schedule.count} messages: it cannot end after {spec.times}"
            )
        next_us = self._next(schedule.name, spec, schedule.anchor_with(spec, self._journal.now_us))
        if schedule.paused:
            next_us = 0
        elif spec.timing == schedule.spec.timing and not 0 < spec.end_us <= schedule.next_us:
            next_us = schedule.next_us  # it may be due, or have missed some
        self._journal.record(e.ScheduleSet(schedule.id, schedule.name, spec, next_us, connection))
        self._watch(schedule)
        return schedule

    def _next(self, name: str, spec: ScheduleSpec, anchor_us: int) -> int:
        """When it publishes next, from now on.

        Raises:
            InvalidRequest: never.
        """
        next_us = Times(spec, anchor_us, self._calendar).after(self._journal.now_us)
        if not next_us:
            when = f"cron {spec.cron!r}" if spec.cron else f"every {spec.every_ms} ms"
            end = ", with its start and end," if spec.start_us or spec.end_us else ""
            raise InvalidRequest(f"schedule {name!r} would never publish: {when}{end} comes at no time from now on")
        return next_us

    def list_all(self, connection: int, request: int, name: str | None) -> None:
        """Answer with the schedule of that name; or with all by name, without their messages.

        Raises:
            UnknownSchedule: there is none of that name.
        """
        if name is not None:
            found = [describe(self._require(name))]
        else:
            found = [describe(self._state.schedules[number]) for _, number in sorted(self._names.items())]
            for one in found:
                del one["body"], one["headers"]
        self._answer(connection, request, found)

    def pause(self, connection: int, request: int, name: str, *, paused: bool) -> None:
        """Pause a schedule, or let it go on, at its next time from now.

        Raises:
            UnknownSchedule: there is none of that name.
            InvalidRequest: it has no time any more.
        """
        schedule = self._require(name)
        if schedule.paused != paused:
            next_us = 0 if paused else self._next(name, schedule.spec, schedule.anchor_us)
            self._journal.record(e.SchedulePaused(schedule.id, paused, next_us, connection))
            self._watch(schedule)
        self._answer(connection, request, describe(schedule))

    def delete(self, connection: int, request: int, name: str) -> None:
        """Delete a schedule. What it has published stays.

        Raises:
            UnknownSchedule: there is none of that name.
        """
        self._delete(self._require(name), connection)
        self._answer(connection, request, None)

    def _delete(self, schedule: Schedule, connection: int) -> None:
        del self._names[schedule.name]
        self._caught_up.pop(schedule.id, None)
        self._journal.record(e.ScheduleDeleted(schedule.id, connection))

    def _named(self, name: str) -> Schedule | None:
        number = self._names.get(name)
        return None if number is None else self._state.schedules[number]

    def _require(self, name: str) -> Schedule:
        schedule = self._named(name)
        if schedule is None:
            raise UnknownSchedule(f"there is no schedule {name!r}")
        return schedule

    def _answer(self, connection: int, request: int, result: object) -> None:
        self._journal.effects.append(Answer(self._journal.next_offset, connection, request, result))

    # --- time

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        return max(self._due[0][0], self._held_until_us) if self._due else None

    def tick(self) -> None:
        """Publish what is due, the first due first; a part of it, if it is much, and the rest in the next tick."""
        now_us, size = self._journal.now_us, 0
        if now_us < self._held_until_us:
            return
        fires = 0
        while self._due and self._due[0][0] <= now_us and fires < FIRES_MAX and size < BYTES_MAX:
            due_us, number = self._due[0]
            schedule = self._state.schedules.get(number)
            if schedule is None or schedule.next_us != due_us:
                heappop(self._due)
                continue
            size += _bytes_of(schedule.spec)
            if not self.has_room(size):
                self._held_until_us = now_us + HELD_US
                return
            heappop(self._due)
            fires += self._come_to(schedule)
            self._watch(schedule)

    def _watch(self, schedule: Schedule) -> None:
        """Look at it again when it is due, or end it if it never is."""
        if schedule.next_us:
            heappush(self._due, (schedule.next_us, schedule.id))
            if len(self._due) > 2 * len(self._names) + 100:  # most of it is not true any more
                self._due = [(one.next_us, one.id) for one in self._state.schedules.values() if one.next_us]
                heapify(self._due)
        elif not schedule.paused:
            self._delete(schedule, 0)

    def _come_to(self, schedule: Schedule) -> int:
        """Do what a schedule that is due has to do; return how much work it was."""
        times = Times(schedule.spec, schedule.anchor_us, self._calendar)
        try:
            if self._journal.now_us - schedule.next_us > LATE_US:
                return self._catch_up(schedule, times)
            self._caught_up.pop(schedule.id, None)
            self._fire(schedule, schedule.next_us, times.after(schedule.next_us), 0)
        except (InvalidRequest, NotSupported) as problem:  # it was set with another calendar
            self._journal.record(e.SchedulePaused(schedule.id, True, 0, 0))
            self._journal.record(e.Misfired(schedule.id, 1, 0, problem.text))
        return 2 if schedule.spec.cron else 1

    def _catch_up(self, schedule: Schedule, times: Times) -> int:
        """Do what its policy wants with the times that were missed."""
        now_us, policy = self._journal.now_us, schedule.spec.misfire
        caught_up = self._caught_up.get(schedule.id, 0)
        if policy is Misfire.ALL and caught_up < self._limits.schedule_catch_up:
            self._caught_up[schedule.id] = caught_up + 1
            self._fire(schedule, schedule.next_us, times.after(schedule.next_us), 0)
            return 2 if schedule.spec.cron else 1
        count, last_us = times.count(schedule.next_us, now_us)
        if policy is Misfire.ONCE:
            self._fire(schedule, last_us, times.after(last_us), count - 1)
        else:
            most = f"; {caught_up} before were made up for" if caught_up else ""
            why = f"the broker was away, or its disk was full{most}"
            self._journal.record(e.Misfired(schedule.id, count, times.after(last_us), why))
        return FIRES_MAX

    def _fire(self, schedule: Schedule, due_us: int, next_us: int, missed: int) -> None:
        """Publish the message of a schedule for the time `due_us`, and go on with `next_us`; or leave it out."""
        spec, publishing = schedule.spec, self._publishing
        batch = _batch(schedule.name, spec, due_us)
        try:
            decided = publishing.decide(Publish(0, 0, spec.queue, 0, batch, to_topic=spec.to_topic))
            if decided.unroutable or decided.dropped:
                why = "no queue is bound to topic" if decided.unroutable else "there is no room in"
                raise RequestError(f"{why} {spec.queue!r}")
            decided = publishing.create(decided)
        except RequestError as problem:
            self._journal.record(e.Misfired(schedule.id, missed + 1, next_us, problem.text))
            return
        if 0 < spec.times <= schedule.count + 1:
            next_us = 0
        targets = []
        for queue in decided.queues:
            lane = decided.lane(queue)
            targets.append((queue.id, lane, queue.next.get(lane, 1)))
        fired = e.Fired(
            schedule.id, due_us, next_us, missed, tuple(targets), 1, batch.record_bytes, timed=batch.ttl_ms > 0
        )
        offset = self._journal.record(fired, decided.payload)
        publishing.stored(decided, fired, offset, 0)


def _batch(name: str, spec: ScheduleSpec, due_us: int) -> Batch:
    """What a schedule publishes for a time.

    Raises:
        InvalidRequest: headers that are none.
    """
    due = (_EPOCH + timedelta(microseconds=due_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    topic = {"topic": spec.queue} if spec.to_topic else {}
    headers = {**spec.headers, **topic, "schedule": name, "scheduled_for": due}
    return Batch(b"".join(pack([spec.body], [headers], spec.priority, spec.ttl_ms)))


def _bytes_of(spec: ScheduleSpec) -> int:
    """About so many bytes are written when it publishes."""
    return 1024 + len(spec.body) + (len(pack_headers(spec.headers)) if spec.headers else 0)


def describe(schedule: Schedule) -> dict[str, Any]:
    """What people want to know of a schedule, as plain values."""
    spec = schedule.spec
    return {
        "name": schedule.name,
        "queue": spec.queue,
        "to_topic": spec.to_topic,
        "cron": spec.cron,
        "zone": spec.zone,
        "every_ms": spec.every_ms,
        "start_us": spec.start_us,
        "end_us": spec.end_us,
        "times": spec.times,
        "misfire": spec.misfire.value,
        "paused": schedule.paused,
        "fired": schedule.count,
        "missed": schedule.missed,
        "last_us": schedule.last_us,
        "next_us": schedule.next_us,
        "problem": schedule.problem,
        "body": spec.body,
        "headers": spec.headers,
        "priority": spec.priority,
        "ttl_ms": spec.ttl_ms,
    }

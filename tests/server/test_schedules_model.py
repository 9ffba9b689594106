"""Schedules against a naive model, through random histories with restarts; and a crash at every record of a log.

The model knows no `next_us`: it goes through all minutes and all intervals there are, one by one. Every schedule has a
queue of its own, so that what happens to it depends on no other.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

import msgspec
import pytest

from tests.server.rig import START_US, Rig
from vibemq import events as e
from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.errors import InvalidRequest, LimitExceeded, UnknownSchedule
from vibemq.projections.schedules import Schedule
from vibemq.server import schedules as module
from vibemq.server.limits import Limits
from vibemq.server.schedules import Schedules, Times

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LIMITS: Final = Limits(schedules=4)
MINUTES: Final = range(
    (START_US - 3600 * SECOND_US) // MINUTE_US * MINUTE_US, START_US + 30 * 86_400 * SECOND_US, MINUTE_US
)


def minutes(matches: Callable[[datetime], bool]) -> list[int]:
    """All minutes of a month that match."""
    return [us for us in MINUTES if matches(EPOCH + timedelta(microseconds=us))]


CRONS: Final = {
    "*/5 * * * *": minutes(lambda at: at.minute % 5 == 0),
    "7,40 */2 * * *": minutes(lambda at: at.minute in {7, 40} and at.hour % 2 == 0),
    "30 23 * * TUE": minutes(lambda at: (at.hour, at.minute, at.weekday()) == (23, 30, 1)),
}
TICKS_MAX: Final = 1000
Happened = tuple[str, int, int]
"""fired: (its due time, times left out before); misfired: (0, times left out); gone."""


def all_times(spec: ScheduleSpec, anchor_us: int) -> Sequence[int]:
    """All times of a schedule in a month, from its anchor or start up to its end, whoever asks."""
    if spec.cron:
        found: Sequence[int] = CRONS[spec.cron]
    else:
        every_us = spec.every_ms * 1000
        found = range(spec.start_us or anchor_us + every_us, MINUTES[-1], every_us)
    found = found[bisect_left(found, spec.start_us) :]
    return found[: bisect_left(found, spec.end_us)] if spec.end_us else found


class Modelled:
    """A schedule as one would think of it."""

    def __init__(self, spec: ScheduleSpec, now_us: int) -> None:
        self.spec, self.anchor_us, self.done_us = spec, now_us, now_us
        """Times up to `done_us` are dealt with."""
        self.paused, self.count, self.missed = False, 0, 0

    def pending(self, now_us: int) -> list[int]:
        found = all_times(self.spec, self.anchor_us)
        return list(found[bisect_right(found, self.done_us) : bisect_right(found, now_us)])

    def comes_again(self, now_us: int) -> bool:
        """Whether there is a time after now."""
        found = all_times(self.spec, self.anchor_us)
        return bisect_right(found, now_us) < len(found)

    def drain(self, now_us: int, room: int) -> Iterator[Happened]:
        """What happens up to now, with room for so many messages in its queue."""
        while not self.paused:
            if not self.comes_again(self.done_us) or 0 < self.spec.times <= self.count:
                yield ("gone", 0, 0)
                return
            pending = self.pending(now_us)
            if not pending:
                return
            take = 1
            if now_us - pending[0] > MINUTE_US and self.spec.misfire is not Misfire.ALL:
                take = len(pending)
            counted = min(take, module.COUNTED_MAX) if self.spec.cron else take
            self.done_us = pending[take - 1]
            if room and not (take > 1 and self.spec.misfire is Misfire.SKIP) and not self._is_skipped(pending, now_us):
                room -= 1
                self.count, self.missed = self.count + 1, self.missed + counted - 1
                yield ("fired", self.done_us, counted - 1)
            else:
                self.missed += counted
                yield ("misfired", 0, counted)

    def _is_skipped(self, pending: list[int], now_us: int) -> bool:
        return self.spec.misfire is Misfire.SKIP and now_us - pending[0] > MINUTE_US


class History:
    """A broker and the model, step by step."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.rig = Rig(LIMITS)
        self.model: dict[str, Modelled] = {}
        self.room: dict[str, int] = {}
        for name in "abcdef":
            self.room[name] = self.random.choice([0, 2, 5, 1 << 20, 1 << 20])
            self.rig.broker.queues.declare(1, 1, name, {"max_length": max(1, self.room[name])})
            if not self.room[name]:
                self.rig.broker.queues.change(1, 1, name, {"max_bytes": 1})

    def run(self, steps: int) -> None:
        kinds: dict[Callable[[], None], int] = {
            self.set: 5,
            self.set_alike: 3,
            self.pass_time: 12,
            self.pause: 3,
            self.delete: 1,
            self.purge: 2,
            self.restart: 3,
            self.look: 3,
        }
        for step in self.random.choices(list(kinds), list(kinds.values()), k=steps):
            step()
            self.rig.take()
        self.restart()
        self.look()

    def spec(self, name: str) -> ScheduleSpec:
        random, now_us = self.random, self.rig.now_us
        said: dict[str, Any] = {"queue": name, "misfire": random.choice(list(Misfire))}
        if random.random() < 0.5:
            said["cron"] = random.choice(list(CRONS))
        else:
            said["every_ms"] = random.choice([7_000, 30_000, 600_000, 3_600_000])
        if random.random() < 0.3:
            said["start_us"] = now_us + random.randint(-3600, 3600) * SECOND_US
        if random.random() < 0.3:
            said["end_us"] = now_us + random.randint(0, 4 * 3600) * SECOND_US + random.choice([0, 1])
        if random.random() < 0.3:
            said["times"] = random.randint(1, 6)
        return ScheduleSpec(**said)

    def set(self) -> None:
        name = self.random.choice("abcdef")
        self._set(name, self.spec(name))

    def set_alike(self) -> None:
        """Change something, but no time."""
        if not self.model:
            return
        name = self.random.choice(sorted(self.model))
        known = self.model[name].spec
        changed: dict[str, Any] = {"body": self.random.randbytes(2)}
        if self.random.random() < 0.3:
            changed["misfire"] = self.random.choice(list(Misfire))
        if self.random.random() < 0.3:
            changed["end_us"] = self.random.choice([0, self.rig.now_us + self.random.randint(1, 7200) * SECOND_US])
        self._set(name, msgspec.structs.replace(known, **changed))

    def _set(self, name: str, spec: ScheduleSpec) -> None:
        now_us, known = self.rig.now_us, self.model.get(name)
        wanted = Modelled(spec, now_us)
        if known is not None:
            wanted.paused, wanted.count, wanted.missed = known.paused, known.count, known.missed
            if known.spec.timing == spec.timing:
                wanted.anchor_us, wanted.done_us = known.anchor_us, known.done_us
        refused: type[Exception] | None = None
        if 0 < spec.end_us <= spec.start_us or 0 < spec.times <= wanted.count or not wanted.comes_again(now_us):
            refused = InvalidRequest
        elif known is None and len(self.model) >= LIMITS.schedules:
            refused = LimitExceeded
        if known is not None and known.spec == spec:
            refused, wanted = None, known
        if refused is None:
            self.rig.broker.schedules.set(1, 1, name, spec)
            self.model[name] = wanted
        else:
            with pytest.raises((InvalidRequest, LimitExceeded)):
                self.rig.broker.schedules.set(1, 1, name, spec)

    def pause(self) -> None:
        name, paused = self.random.choice("abcdef"), self.random.random() < 0.5
        known = self.model.get(name)
        if known is None:
            with pytest.raises(UnknownSchedule):
                self.rig.broker.schedules.pause(1, 1, name, paused=paused)
            return
        if not paused and known.paused and not known.comes_again(self.rig.now_us):
            with pytest.raises(InvalidRequest):
                self.rig.broker.schedules.pause(1, 1, name, paused=paused)
            return
        self.rig.broker.schedules.pause(1, 1, name, paused=paused)
        if known.paused and not paused:
            known.done_us = self.rig.now_us
        known.paused = paused

    def delete(self) -> None:
        name = self.random.choice("abcdef")
        if self.model.pop(name, None) is not None:
            self.rig.broker.schedules.delete(1, 1, name)

    def purge(self) -> None:
        self.rig.broker.queues.purge(1, 1, self.random.choice("abcdef"))

    def restart(self) -> None:
        """A crash, and some time until the broker is there again."""
        self.rig.take()
        if self.random.random() < 0.7:
            self.rig.pass_time(self.random.choice([1, 30, 61, 300, 7200]) * SECOND_US)
        self.rig.begin(self.rig.replayed())
        self.drain()

    def pass_time(self) -> None:
        self.rig.pass_time(
            self.random.choice([1, 1, 10, 30, 60, 61, 200, 1800]) * SECOND_US + self.random.choice([0, 1])
        )
        self.drain()

    def drain(self) -> None:
        rooms = {name: self._room(name) for name in self.model}
        self.rig.take()
        schedules = self.rig.broker.schedules
        for _ in range(TICKS_MAX):
            due_us = schedules.next_due_us()
            if due_us is None or due_us > self.rig.now_us:
                break
            self.rig.broker.tick()
        else:
            raise AssertionError("there is no end to what is due")
        names = {one.schedule: one.name for one, _, _ in self.rig.log if isinstance(one, e.ScheduleSet)}
        happened: dict[str, list[Happened]] = {}
        for event in self.rig.take()[0]:
            if isinstance(event, e.Fired):
                happened.setdefault(names[event.schedule], []).append(("fired", event.due_us, event.missed))
            elif isinstance(event, e.Misfired):
                happened.setdefault(names[event.schedule], []).append(("misfired", 0, event.missed))
            elif isinstance(event, e.ScheduleDeleted):
                happened.setdefault(names[event.schedule], []).append(("gone", 0, 0))
        for name, one in list(self.model.items()):
            expected = list(one.drain(self.rig.now_us, rooms[name]))
            assert happened.pop(name, []) == expected, name
            if ("gone", 0, 0) in expected:
                del self.model[name]
        assert not happened

    def _room(self, name: str) -> int:
        queue = self.rig.state.queue_named(name)
        assert queue is not None
        return max(0, self.room[name] - queue.length)

    def look(self) -> None:
        self.rig.take()
        assert self.rig.replayed().digests() == self.rig.state.digests()
        shown = {one.name: (one.paused, one.count, one.missed) for one in self.rig.state.schedules.values()}
        assert shown == {name: (one.paused, one.count, one.missed) for name, one in self.model.items()}


def histories(seeds: Iterable[int]) -> None:
    """Several histories: a bug shows in one of them."""
    for seed in seeds:
        History(seed).run(120)


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_are_those_of_the_model(seed: int) -> None:
    histories([seed])


def _drifting(self: Times, time_us: int) -> int:
    spec = self._spec
    found = time_us + self._every_us if self._every_us else AFTER(self, time_us)
    return 0 if 0 < spec.end_us <= found else found


def _inclusive_end(self: Times, time_us: int) -> int:
    spec, end_us = self._spec, self._spec.end_us
    self._spec = msgspec.structs.replace(spec, end_us=end_us + 1 if end_us else 0)
    found = AFTER(self, time_us)
    self._spec = spec
    return found


AFTER, COUNT, FIRED, MISFIRED, PAUSED = Times.after, Times.count, Schedule.fired, Schedule.misfired, Schedule.set_paused
CHANGED = Schedule.changed


def _uncounted(self: Schedule, event: e.Fired) -> None:
    FIRED(self, event)
    self.count -= 1


def _unmissed(self: Schedule, event: e.Misfired) -> None:
    MISFIRED(self, msgspec.structs.replace(event, missed=0))


def _never_paused(self: Schedule, event: e.SchedulePaused) -> None:
    next_us = self.next_us
    PAUSED(self, event)
    self.next_us = self.next_us or next_us


def _made_up(self: Schedule, event: e.SchedulePaused) -> None:
    PAUSED(
        self,
        msgspec.structs.replace(event, next_us=event.next_us and max(self.last_us, event.next_us - 600 * SECOND_US)),
    )


def _goes_on_when_changed(self: Schedule, event: e.ScheduleSet, time_us: int) -> None:
    CHANGED(self, event, time_us)
    self.paused = False


PLANTED: Final[dict[str, tuple[object, str, object]]] = {
    "everything is late": (module, "LATE_US", 0),
    "nothing is ever late": (module, "LATE_US", 1 << 60),
    "one message stands for the first that was missed": (
        Times,
        "count",
        lambda self, *at: (COUNT(self, *at)[0], at[0]),
    ),
    "one too few is counted": (Times, "count", lambda self, *at: (COUNT(self, *at)[0] - 1, COUNT(self, *at)[1])),
    "intervals drift": (Times, "after", _drifting),
    "the end is a time, too": (Times, "after", _inclusive_end),
    "another message moves the times": (Schedule, "anchor_with", lambda _self, _spec, time_us: time_us),
    "messages are not counted": (Schedule, "fired", _uncounted),
    "what was left out is not counted": (Schedule, "misfired", _unmissed),
    "a pause does not hold": (Schedule, "set_paused", _never_paused),
    "a pause is made up for": (Schedule, "set_paused", _made_up),
    "a change ends a pause": (Schedule, "changed", _goes_on_when_changed),
    "a restart forgets": (Schedules, "start", lambda _self: None),
    "a policy is the other": (
        Schedules,
        "_catch_up",
        lambda self, schedule, times: self._fire(schedule, schedule.next_us, times.after(schedule.next_us), 0) or 1,
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PLANTED[bug])
    with pytest.raises((AssertionError, InvalidRequest, pytest.fail.Exception)):
        histories(range(40))


# --- a crash anywhere


def eventful() -> Rig:
    """A log with firings of all kinds, between other things."""
    rig = Rig()
    schedules = rig.broker.schedules
    for name, said in (
        ("all", {"every_ms": 7_000, "misfire": Misfire.ALL}),
        ("late", {"cron": "* * * * *", "misfire": Misfire.ALL}),
        ("once", {"every_ms": 11_000, "misfire": Misfire.ONCE}),
        ("skip", {"every_ms": 13_000, "misfire": Misfire.SKIP}),
        ("few", {"every_ms": 5_000, "times": 9, "misfire": Misfire.ALL}),
    ):
        schedules.set(1, 1, name, ScheduleSpec(queue=f"{name}-jobs", **said))
    run_until(rig, START_US + 70 * SECOND_US)
    rig.pass_time(200 * SECOND_US)  # a time at which it was stopped, or the disk full
    run_until(rig, rig.now_us + 40 * SECOND_US)
    return rig


def run_until(rig: Rig, end_us: int) -> None:
    while True:
        due_us = rig.broker.schedules.next_due_us()
        if due_us is None or due_us > end_us:
            break
        rig.pass_time(max(0, due_us - rig.now_us))
        rig.broker.tick()
        rig.take()
    rig.pass_time(max(0, end_us - rig.now_us))
    rig.take()


def check_each_time_once(rig: Rig) -> None:
    """No time has two firings; and those that make up for all have every one."""
    specs: dict[int, tuple[ScheduleSpec, int]] = {}
    fired: dict[int, list[int]] = {}
    for event, time_us, _ in rig.log:
        if isinstance(event, e.ScheduleSet):
            specs[event.schedule] = event.spec, time_us
        elif isinstance(event, e.Fired):
            fired.setdefault(event.schedule, []).append(event.due_us)
    for number, (spec, set_us) in specs.items():
        dues = fired.get(number, [])
        assert len(dues) == len(set(dues)), "published twice"
        assert dues == sorted(dues)
        if spec.misfire is Misfire.ALL:
            every_us = spec.every_ms * 1000
            if every_us:
                expected = list(range(set_us + every_us, rig.now_us + 1, every_us))
            else:
                expected = list(range(-(-(set_us + 1) // MINUTE_US) * MINUTE_US, rig.now_us + 1, MINUTE_US))
            assert dues == expected[: spec.times or None]


@pytest.mark.parametrize("away_us", [0, 20 * SECOND_US, 600 * SECOND_US])
def test_a_crash_at_any_record_publishes_no_time_twice_and_loses_none_that_is_made_up_for(away_us: int) -> None:
    whole = eventful()
    check_each_time_once(whole)
    assert sum(isinstance(record.event, e.Fired) for record in whole.log) > 70
    for cut in range(1, len(whole.log) + 1):
        crash(whole, cut, away_us)


def crash(whole: Rig, cut: int, away_us: int) -> None:
    """The log ends after `cut` records; the broker comes back later and goes on for a while."""
    rig = Rig()
    rig.log = whole.log[:cut]
    rig.now_us = rig.log[-1].time_us + away_us
    rig.begin(rig.replayed())
    rig.take()
    run_until(rig, rig.now_us + 90 * SECOND_US)
    check_each_time_once(rig)


def test_a_time_that_is_recorded_behind_its_firing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = eventful()
    start = Schedules.start

    def forgets(self: Schedules) -> None:
        """What comes next had been a second record, and that was lost."""
        for schedule in self._state.schedules.values():
            schedule.next_us = schedule.last_us or schedule.next_us
        start(self)

    monkeypatch.setattr(Schedules, "start", forgets)
    with pytest.raises(AssertionError, match="published twice"):
        crash(whole, len(whole.log), 0)

"""Schedules: what publishes itself again and again, and how far it has come."""

from typing import Any

import msgspec

from vibemq import events as e
from vibemq.declaration import ScheduleSpec


class Schedule:
    """One schedule. `next_us` is a fact of the last event, never computed here: what follows from it is decided."""

    __slots__ = (
        "anchor_us",
        "as_of",
        "count",
        "id",
        "last_us",
        "missed",
        "name",
        "next_us",
        "paused",
        "problem",
        "spec",
    )

    def __init__(self, made: e.ScheduleSet, time_us: int) -> None:
        """Begin as it was made at `time_us`."""
        self.as_of = 0
        self.id, self.name, self.spec, self.next_us = made.schedule, made.name, made.spec, made.next_us
        self.anchor_us = time_us
        """When its times were set: intervals without a start count from here."""
        self.paused = False
        self.count = 0
        """Messages that it published."""
        self.missed = 0
        """Times that were left out."""
        self.last_us = 0
        """The time that its last message was for; 0: there was none."""
        self.problem = ""
        """Why the last time was left out; empty when it was not."""

    @property
    def key(self) -> str:
        """The stable name of the part."""
        return f"schedule/{self.id}"

    def anchor_with(self, spec: ScheduleSpec, time_us: int) -> int:
        """From when intervals would count if it were changed to `spec` at `time_us`: another message moves no time."""
        return self.anchor_us if spec.timing == self.spec.timing else time_us

    def changed(self, event: e.ScheduleSet, time_us: int) -> None:
        """It was set again, otherwise."""
        self.anchor_us = self.anchor_with(event.spec, time_us)
        self.spec, self.next_us = event.spec, event.next_us

    def set_paused(self, event: e.SchedulePaused) -> None:
        """It was paused, or goes on."""
        self.paused, self.next_us = event.paused, event.next_us

    def fired(self, event: e.Fired) -> None:
        """It published its message."""
        self.count += 1
        self.missed += event.missed
        self.last_us, self.next_us, self.problem = event.due_us, event.next_us, ""

    def misfired(self, event: e.Misfired) -> None:
        """It left times out."""
        self.missed += event.missed
        self.next_us, self.problem = event.next_us, event.reason

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            self.id,
            self.name,
            self.spec,
            self.anchor_us,
            self.paused,
            self.count,
            self.missed,
            self.last_us,
            self.next_us,
            self.problem,
        ]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Schedule":
        """The schedule of which this is a snapshot."""
        number, name, spec, anchor_us, paused, count, missed, last_us, next_us, problem = snapshot
        made = e.ScheduleSet(number, name, msgspec.convert(spec, ScheduleSpec), next_us, 0)
        schedule = cls(made, anchor_us)
        schedule.as_of, schedule.paused, schedule.count, schedule.missed = as_of, paused, count, missed
        schedule.last_us, schedule.problem = last_us, problem
        return schedule

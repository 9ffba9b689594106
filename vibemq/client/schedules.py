"""Messages that the broker publishes by itself, again and again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from vibemq.batch import PRIORITY_NORMAL, Headers, pack_headers
from vibemq.client.administration import Administration
from vibemq.client.moment import Moment, moment, time_us
from vibemq.client.outgoing import Body, MessageHeaders, Priority, priority_number
from vibemq.client.peeked import body_of, headers_of, number_of
from vibemq.durations import Duration, milliseconds
from vibemq.errors import LimitExceeded, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import CONTROL_BYTES_MAX, Misfire, check_name, check_topic

MESSAGE_BYTES_MAX: Final = CONTROL_BYTES_MAX - 4096
"""A longer message would not fit the frame, and end the connection; what the broker takes is less."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is published again and again, when, and how it went so far."""

    name: str
    queue: str
    """Or the topic, with `to_topic`."""
    to_topic: bool
    body: bytes
    headers: Headers
    priority: int
    ttl: float | None
    """Seconds; None: for ever."""
    cron: str | None
    zone: str
    every: float | None
    """Seconds."""
    start: datetime | None
    end: datetime | None
    times: int | None
    misfire: str
    paused: bool
    fired: int
    """How many messages it has published."""
    missed: int
    """How many times it left out."""
    last_at: datetime | None
    """The last time for which it published a message."""
    next_at: datetime | None
    """The next; None where there is none, as it is paused or at its end."""
    problem: str
    """Why the last time was left out; empty when it was not."""


class Schedules(Administration):
    """The part of a client that looks after schedules."""

    async def set_schedule(
        self,
        name: str,
        queue: str,
        body: Body,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        zone: str = "UTC",
        start: Moment | None = None,
        end: Moment | None = None,
        times: int | None = None,
        misfire: Misfire = "once",
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        to_topic: bool = False,
    ) -> Schedule:
        """Let the broker publish a message again and again: make a schedule, or change the one of that name.

        Either by `cron`, which is minute, hour, day of the month, month and day of the week in the time `zone`, as in
        "30 8 * * mon-fri", or `every` so long, counted from `start`. Nothing is published before `start`, nor from
        `end` on, nor after so many `times`. Its messages have the headers `schedule` and `scheduled_for`.

        `misfire` is what becomes of times at which the broker was away: "skip" leaves them out, "once" makes up for all
        of them with one message, "all" with one for each.

        Raises:
            UsageError: neither or both of `cron` and `every`, or a value that cannot be.
            InvalidRequest: the broker cannot read `cron`, or knows no such `zone`.
            NotSupported: `cron`, where the broker was installed without vibemq[schedules].
            LimitExceeded: too many schedules, or too large a message.
        """
        _check_sendable(name, queue, body, headers, to_topic=to_topic)
        if (cron is None) == (every is None):
            raise UsageError("a schedule has either cron or every")
        if times is not None and times < 1:
            raise UsageError(f"times is {times}: a schedule publishes at least one message; None: any number")
        wanted = m.SetSchedule(
            request=1,
            name=name,
            queue=queue,
            to_topic=to_topic,
            body=bytes(body),
            headers=dict(headers or {}),
            priority=PRIORITY_NORMAL if priority is None else priority_number(priority),
            ttl_ms=_positive_ms(ttl, "ttl"),
            cron=cron or "",
            zone=zone,
            every_ms=_positive_ms(every, "every"),
            start_us=0 if start is None else time_us(start, "start"),
            end_us=0 if end is None else time_us(end, "end"),
            times=times or 0,
            misfire=misfire,
        )
        return _schedule(
            await self._mapping(
                lambda number: msgspec.structs.replace(wanted, request=number), what=f"set schedule {name!r}"
            )
        )

    async def schedules(self, name: str | None = None) -> list[Schedule]:
        """All schedules by name; or the one of that `name`, and only then with its body and headers.

        Raises:
            UnknownSchedule: there is none of that name.
        """
        found = await self._list(lambda number: m.ListSchedules(request=number, name=name), what="schedules")
        return [_schedule(one) for one in found]

    async def pause_schedule(self, name: str) -> Schedule:
        """Let a schedule publish nothing until it is resumed.

        Raises:
            UnknownSchedule: there is none of that name.
        """
        return await self._pause(name, paused=True)

    async def resume_schedule(self, name: str) -> Schedule:
        """Let a schedule go on from now on: what would have been in between is not made up for.

        Raises:
            UnknownSchedule: there is none of that name.
        """
        return await self._pause(name, paused=False)

    async def _pause(self, name: str, *, paused: bool) -> Schedule:
        check_name(name, "schedule")
        return _schedule(
            await self._mapping(
                lambda number: m.PauseSchedule(request=number, name=name, paused=paused),
                what=f"{'pause' if paused else 'resume'} schedule {name!r}",
            )
        )

    async def delete_schedule(self, name: str) -> None:
        """Delete a schedule; what it has published stays.

        Raises:
            UnknownSchedule: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(name, "schedule")
        await self._mapping(
            lambda number: m.DeleteSchedule(request=number, name=name), what=f"delete schedule {name!r}", once=True
        )


def _positive_ms(duration: Duration | None, what: str) -> int:
    if duration is None:
        return 0
    duration_ms = milliseconds(duration, what)
    if not duration_ms:
        raise UsageError(f"{what} is {duration}: it must be from 1 ms on")
    return duration_ms


def _schedule(facts: Mapping[str, object]) -> Schedule:
    return Schedule(
        name=str(facts.get("name", "")),
        queue=str(facts.get("queue", "")),
        to_topic=bool(facts.get("to_topic")),
        body=body_of(facts),
        headers=headers_of(facts),
        priority=number_of(facts.get("priority")),
        ttl=number_of(facts.get("ttl_ms")) / 1_000 or None,
        cron=str(facts.get("cron") or "") or None,
        zone=str(facts.get("zone", "UTC")),
        every=number_of(facts.get("every_ms")) / 1_000 or None,
        start=_time(facts, "start_us"),
        end=_time(facts, "end_us"),
        times=number_of(facts.get("times")) or None,
        misfire=str(facts.get("misfire", "")),
        paused=bool(facts.get("paused")),
        fired=number_of(facts.get("fired")),
        missed=number_of(facts.get("missed")),
        last_at=_time(facts, "last_us"),
        next_at=_time(facts, "next_us"),
        problem=str(facts.get("problem", "")),
    )


def _time(facts: Mapping[str, object], name: str) -> datetime | None:
    at_us = number_of(facts.get(name))
    return moment(at_us) if at_us else None


def _check_sendable(name: str, queue: str, body: Body, headers: MessageHeaders | None, *, to_topic: bool) -> None:
    """Whether a schedule of that name may publish that message there."""
    check_name(name, "schedule")
    if to_topic:
        check_topic(queue)
    else:
        check_name(queue)
    size = len(body) + len(pack_headers(headers or {}))
    if size > MESSAGE_BYTES_MAX:
        raise LimitExceeded(f"a message of {size} bytes is too large for a schedule: nothing was sent")

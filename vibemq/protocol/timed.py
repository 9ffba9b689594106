"""What clients say of time: messages that wait for theirs, schedules, and how long a transaction may take."""

from typing import Any

import msgspec

from vibemq.batch import PRIORITY_NORMAL
from vibemq.protocol.control import Control
from vibemq.protocol.fields import Count, Duration, MessageIds, Misfire, Number, Priority, Request, Word


class Begin(Control, frozen=True, kw_only=True):
    """Begin an attempt at a transaction, which ends after `timeout_ms` (0: the broker's longest) if not committed.

    What is published and acked in it comes with Commit. Done.result: {"epoch", "timeout_ms"}.
    """

    request: Request
    timeout_ms: Duration = 0


class Rollback(Control, frozen=True, kw_only=True):
    """End an attempt at a transaction without doing anything of it."""

    request: Request
    epoch: Number


class ListDelayed(Control, frozen=True, kw_only=True):
    """Ask for messages of a queue that wait for their time, the first due first, from after `after` on.

    Done.result: {"messages": [{"id", "due_at", "published_at", "bytes"}], "count": all there are, "next": what to ask
    `after` next, or null}. `after` is (due us, offset, index), all that a message needs to be found again.
    """

    request: Request
    queue: str
    after: tuple[Number, Number, Number] = (0, 0, 0)
    count: Count = 100


class ShowDelayed(Control, frozen=True, kw_only=True):
    """Ask for one message that waits for its time, with body and headers. Done.result: as Peek, and "due_at"."""

    request: Request
    queue: str
    id: Word


class CancelDelayed(Control, frozen=True, kw_only=True):
    """Take messages back that wait for their time: all, or with UnknownMessage none. Done.result: {"count": n}."""

    request: Request
    queue: str
    ids: MessageIds


class Reschedule(Control, frozen=True, kw_only=True):
    """Let messages wait for another time: `delay_ms` from now on, or until `due_us`; neither: they are ready at once.

    All of them, or with UnknownMessage none. Done.result: {"count": n, "due_us": t}.
    """

    request: Request
    queue: str
    ids: MessageIds
    delay_ms: Number = 0
    due_us: Number = 0


class SetSchedule(Control, frozen=True, kw_only=True):
    """Publish a message again and again: make a schedule, or change the one of that name.

    Either `cron`, five fields, in time zone `zone`, or `every_ms`, counted from `start_us` (0: now). Nothing before
    `start_us`, and nothing from `end_us` on (0: no end), nor after `times` messages (0: any number). `misfire` says
    what becomes of the times at which the broker was away: "skip" them, make up for all of them "once", or for "all".
    Done.result: what ListSchedules gives of it.
    """

    request: Request
    name: Word
    queue: str
    to_topic: bool = False
    body: bytes = b""
    """In JSON `body` is a text, or `body_base64` is there in its place, as in a message."""
    headers: dict[str, Any] = msgspec.field(default_factory=dict)
    priority: Priority = PRIORITY_NORMAL
    ttl_ms: Duration = 0
    cron: Word = ""
    zone: Word = "UTC"
    every_ms: Duration = 0
    start_us: Number = 0
    end_us: Number = 0
    times: Number = 0
    misfire: Misfire = "once"


class ListSchedules(Control, frozen=True, kw_only=True):
    """Ask for all schedules, or the one of a `name`.

    Done.result: a list of {"name", "queue", "to_topic", "cron", "zone", "every_ms", "start_us", "end_us", "times",
    "misfire", "paused", "fired", "missed", "last_us", "next_us", "problem", "body", "headers", "priority", "ttl_ms"};
    body and headers only where one is asked for by name. `problem`: why the last time was left out, if it was.
    """

    request: Request
    name: Word | None = None


class PauseSchedule(Control, frozen=True, kw_only=True):
    """Pause a schedule, or let it go on: what would have been in between is not made up for. Done.result: as of Set."""

    request: Request
    name: Word
    paused: bool = True


class DeleteSchedule(Control, frozen=True, kw_only=True):
    """Delete a schedule."""

    request: Request
    name: Word

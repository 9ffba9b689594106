"""Dead letters: looking at them, and sending them back to work."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypedDict

import msgspec

from vibemq.client.administration import Administration
from vibemq.client.moment import microseconds
from vibemq.client.peeked import DeadLetter, dead_letter
from vibemq.errors import UsageError, VibeMQError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import check_name

REDRIVE_MESSAGES_MAX: Final = 1000
"""What one request may move."""
STEPS_A_SECOND: Final = 10
"""With a rate, about so many requests a second."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive has moved, or with `dry_run` would move: all, and by the queue that it went to.

    `homeless` is how many stay, as the queue that they came from is gone: they can only go `to` another.
    """

    moved: int = 0
    targets: dict[str, int] = field(default_factory=dict)
    homeless: int = 0


class _Filter(TypedDict):
    reason: str
    source: str
    error: str
    since_us: int
    until_us: int


def _filter(
    reason: str | None, source: str | None, error: str | None, since: datetime | None, until: datetime | None
) -> _Filter:
    return {
        "reason": reason or "",
        "source": source or "",
        "error": error or "",
        "since_us": 0 if since is None else microseconds(since, "since"),
        "until_us": 0 if until is None else microseconds(until, "until"),
    }


class DeadLetters(Administration):
    """The part of a client that looks after dead letters.

    `queue` is always theirs (by default the name of the queue they came from, and `.dlq`), or the one they came from.
    The filters go together: the name of a `reason` ("max-attempts", "rejected", "expired", "overflow", "unroutable"),
    the `source` queue, a part of the text of the last `error`, dead `since` a time and before `until` another.
    """

    async def dead_letters(
        self,
        queue: str,
        *,
        start: int = 0,
        count: int = 100,
        reason: str | None = None,
        source: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[DeadLetter]:
        """Up to `count` dead letters from sequence `start` on that pass the filters; none is taken.

        Raises:
            UnknownQueue: there is none of that name.
        """
        check_name(queue)
        filters = _filter(reason, source, error, since, until)
        found = await self._list(
            lambda number: m.DeadLetters(request=number, queue=queue, start=start, count=count, **filters),
            what=f"dead letters of {queue!r}",
        )
        return [dead_letter(queue, one) for one in found]

    async def redrive(
        self,
        queue: str,
        *,
        to: str | None = None,
        start: int = 0,
        end: int | None = None,
        reason: str | None = None,
        source: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        count: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        on_progress: Callable[[Redriven], object] | None = None,
    ) -> Redriven:
        """Send dead letters back to the queues they came from, or to the queue `to`; their attempts count on.

        They are those from sequence `start` on, and before `end` (None: all that there are when it begins; what comes
        back meanwhile is not sent again) that pass the filters.
        `count` is how many at most (None: all of them), `rate` how many a second. With `dry_run` nothing
        is moved, and what would be is counted. `on_progress` is called after each
        request with what was moved until then; a blocking client calls it on its own thread. Stopping half-way leaves
        the rest where it is.

        Raises:
            UnknownQueue: there is none of that name.
            QueueFull: the target takes no more; the text says how many it took before.
            ConnectionLost: the connection broke, and what the last request has moved is not known.
        """
        check_name(queue)
        if to is not None:
            check_name(to)
        if count is not None and count < 1:
            raise UsageError(f"count is {count}: redrive at least one message, or all with None")
        if rate is not None and not rate > 0:
            raise UsageError(f"rate is {rate}: messages a second are more than 0")
        if end is not None and end <= start:
            return Redriven()
        filters = _filter(reason, source, error, since, until)
        wanted = m.Redrive(request=1, queue=queue, target=to or "", end=end or 0, dry_run=dry_run, **filters)
        step = (
            REDRIVE_MESSAGES_MAX
            if rate is None or dry_run
            else max(1, int(min(rate / STEPS_A_SECOND, REDRIVE_MESSAGES_MAX)))
        )
        loop = asyncio.get_running_loop()
        began, done = loop.time(), Redriven()
        while True:
            most = step if count is None else min(step, count - done.moved)
            answer = await self._redrive_some(msgspec.structs.replace(wanted, start=start, count=most), done)
            done, start = _added(done, answer), _number(answer.get("next"))
            wanted = msgspec.structs.replace(wanted, end=wanted.end or _number(answer.get("end")))
            if on_progress is not None:
                on_progress(done)
            if not start or (count is not None and done.moved >= count):
                return done
            if rate is not None and not dry_run:
                await asyncio.sleep(began + done.moved / rate - loop.time())

    async def _redrive_some(self, wanted: m.Redrive, done: Redriven) -> dict[str, object]:
        try:
            return await self._mapping(
                lambda number: msgspec.structs.replace(wanted, request=number),
                what=f"redrive {wanted.queue!r}",
                once=not wanted.dry_run,
            )
        except VibeMQError as problem:
            if not done.moved:
                raise
            raise type(problem)(f"{problem} ({done.moved} messages were redriven before)") from None


def _added(done: Redriven, answer: dict[str, object]) -> Redriven:
    targets = dict(done.targets)
    more = answer.get("targets")
    for queue, count in more.items() if isinstance(more, dict) else ():
        targets[str(queue)] = targets.get(str(queue), 0) + _number(count)
    return Redriven(done.moved + _number(answer.get("count")), targets, done.homeless + _number(answer.get("homeless")))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0

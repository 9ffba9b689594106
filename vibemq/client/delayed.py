"""Messages that wait for their time: looking at them, taking them back, and giving them another time."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from vibemq.batch import Headers, pack_headers
from vibemq.client.administration import Administration
from vibemq.client.moment import Moment, moment, waiting_time
from vibemq.client.peeked import body_of, headers_of, number_of, time_of
from vibemq.durations import Duration
from vibemq.errors import UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import RUNS_MAX, check_name

PAGE: Final = 500
"""Messages that one request lists."""

After: TypeAlias = tuple[int, int, int]
"""Behind which message a page begins: when that is due, and its offset and index."""
MessageIds: TypeAlias = str | Iterable[str]
"""The id of a message, as its receipt gives it, or several."""


@dataclass(frozen=True, slots=True)
class DelayedMessage:
    """A message that waits for its time."""

    id: str
    queue: str
    due_at: datetime
    published_at: datetime
    size: int
    """Bytes, with headers."""


@dataclass(frozen=True, slots=True)
class ShownDelayed(DelayedMessage):
    """A message that waits for its time, with what is in it."""

    body: bytes
    headers: Headers


class Delayed(Administration):
    """The part of a client that looks after messages which wait for their time.

    What changes them raises ConnectionLost when the connection breaks before the answer: whether it was done is not
    known, and what was done cannot be done again.
    """

    async def delayed(self, queue: str) -> AsyncIterator[DelayedMessage]:
        """The messages of a queue that wait for their time, the first due first: `async for one in client.delayed(q)`.

        They are asked for in pages, as the loop goes on: there may be millions. How many there are show_queue() tells.

        Raises:
            UnknownQueue: there is none of that name.
        """
        after: After | None = (0, 0, 0)
        while after is not None:
            page, after = await self.delayed_page(queue, after)
            for one in page:
                yield one

    async def delayed_page(self, queue: str, after: After) -> tuple[list[DelayedMessage], After | None]:
        """Some messages that wait for their time, and where the next page begins; None: nowhere."""
        check_name(queue)
        found = await self._mapping(
            lambda number: m.ListDelayed(request=number, queue=queue, after=after, count=PAGE),
            what=f"delayed messages of {queue!r}",
        )
        messages, then = found.get("messages"), found.get("next")
        page = [
            DelayedMessage(*_facts(queue, one))
            for one in (messages if isinstance(messages, list) else [])
            if isinstance(one, dict)
        ]
        if not page or not isinstance(then, list | tuple):
            return page, None
        due_us, offset, index = map(number_of, then)
        return page, (due_us, offset, index)

    async def show_delayed(self, queue: str, message_id: str) -> ShownDelayed:
        """A message that waits for its time, with body and headers.

        Raises:
            UnknownQueue: there is none of that name.
            UnknownMessage: no message of that id waits there.
        """
        check_name(queue)
        facts = await self._mapping(
            lambda number: m.ShowDelayed(request=number, queue=queue, id=message_id),
            what=f"delayed message {message_id} of {queue!r}",
        )
        body, headers = body_of(facts), headers_of(facts)
        size = len(body) + (len(pack_headers(headers)) if headers else 0)
        return ShownDelayed(*_facts(queue, facts | {"bytes": size}), body=body, headers=headers)

    async def cancel_delayed(self, queue: str, ids: MessageIds) -> int:
        """Take messages back that wait for their time, all of them or none; returns how many.

        Raises:
            UnknownQueue: there is none of that name.
            UnknownMessage: one of them does not wait (any more), and nothing was done.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        wanted = _ids(queue, ids)
        result = await self._mapping(
            lambda number: m.CancelDelayed(request=number, queue=queue, ids=wanted),
            what=f"cancel delayed messages of {queue!r}",
            once=True,
        )
        return number_of(result.get("count"))

    async def reschedule(
        self, queue: str, ids: MessageIds, *, delay: Duration | None = None, deliver_at: Moment | None = None
    ) -> datetime:
        """Let messages wait for another time, all of them or none: `delay` from now on, or until `deliver_at`.

        Returns when they are due.

        Raises:
            UnknownQueue, UnknownMessage, ConnectionLost: as cancel_delayed().
        """
        if delay is deliver_at is None:
            raise UsageError("reschedule: say for how long (delay) or until when (deliver_at) the messages wait")
        result = await self._reschedule(queue, ids, *waiting_time(delay, deliver_at))
        return moment(number_of(result.get("due_us")))

    async def release_delayed(self, queue: str, ids: MessageIds) -> int:
        """Let messages be ready at once, all of them or none; returns how many.

        Raises:
            UnknownQueue, UnknownMessage, ConnectionLost: as cancel_delayed().
        """
        return number_of((await self._reschedule(queue, ids, 0, 0)).get("count"))

    async def _reschedule(self, queue: str, ids: MessageIds, delay_ms: int, due_us: int) -> dict[str, object]:
        wanted = _ids(queue, ids)
        return await self._mapping(
            lambda number: m.Reschedule(request=number, queue=queue, ids=wanted, delay_ms=delay_ms, due_us=due_us),
            what=f"reschedule messages of {queue!r}",
            once=True,
        )


def _ids(queue: str, ids: MessageIds) -> tuple[str, ...]:
    check_name(queue)
    wanted = (ids,) if isinstance(ids, str) else tuple(ids)
    if not 0 < len(wanted) <= RUNS_MAX:
        raise UsageError(f"{len(wanted)} ids of messages: give 1 to {RUNS_MAX} at a time")
    return wanted


def _facts(queue: str, facts: dict[str, object]) -> tuple[str, str, datetime, datetime, int]:
    size = number_of(facts.get("bytes"))
    return str(facts.get("id", "")), queue, time_of(facts, "due_at"), time_of(facts, "published_at"), size

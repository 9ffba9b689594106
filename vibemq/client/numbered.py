"""Transactions that a program numbers by itself, so that it can send one again after a crash of its own.

The producer's number (the option `producer` of connect()) and the numbers are kept by the program, with what they stand
for; the broker carries out each of them once. An outbox works by it. A client that does this publishes nothing else:
its ordinary publishes take numbers of the same sequence.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vibemq.batch import MESSAGES_MAX, Batch, pack
from vibemq.client.link import Link
from vibemq.client.outgoing import FRAME_OVERHEAD, MessageHeaders, Place, Route
from vibemq.client.publisher import NO_HASH
from vibemq.client.requests import Pending, Requests
from vibemq.errors import (
    ConnectionLost,
    MalformedFrame,
    RequestTimeout,
    TransactionEnded,
    UsageError,
    VibeMQError,
)
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import PUBLISHES_MAX, check_name, check_topic
from vibemq.protocol.keys import dedup_hash, key_hash


class NumberedMessage(NamedTuple):
    """A message; `headers` have the key and the topic in them."""

    route: Route
    body: bytes
    headers: MessageHeaders | None
    key: str | None
    dedup_id: str | None


class NumberedCommits:
    """Commits under numbers that grow, one at a time."""

    def __init__(self, link: Link, requests: Requests, timeout: float) -> None:
        """Over `link`; a commit may take up to `timeout` seconds."""
        self._link = link
        self._requests = requests
        self._timeout = timeout
        self._of_others = link.handlers[m.Committed]
        link.handlers[m.Committed] = self._committed

    async def commit(self, number: int, messages: Sequence[NumberedMessage]) -> bool:
        """Publish these messages as this number, all or none; whether it had been done before.

        A queue that has no room is not waited for. Numbers below this one are not used again.

        Raises:
            InvalidRequest: the number was used before, for other messages; or these cannot be.
            RequestTimeout: no answer in time: it may still be carried out.
            VibeMQError: what the broker says; nothing of it was done then.
        """
        publishes = tuple(self._publishes(messages))
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await self._attempt(number, publishes)
                    except ConnectionLost:
                        if self._link.closed is not None:
                            raise
                    except TransactionEnded:
                        # Its connection is gone, or another one of this producer came: it was not carried out by this
                        # attempt. The pause keeps two programs that take turns at this from being all that happens.
                        await asyncio.sleep(0.01)
        except TimeoutError:
            raise RequestTimeout(f"commit: no answer within {self._timeout:g} s: it may still be carried out") from None

    async def _attempt(self, number: int, publishes: tuple[m.Publish, ...]) -> bool:
        begun = await self._answer(lambda request: m.Begin(request=request))
        epoch = begun.get("epoch") if isinstance(begun, dict) else None
        if not isinstance(epoch, int):
            raise MalformedFrame(f"the broker answered a begin with {begun!r}")
        try:
            answer = await self._answer(lambda request: m.Commit(request, epoch, number, publishes, (), oldest=number))
        except VibeMQError:
            if self._link.is_open:  # where a queue blocked it, the attempt is still open
                rollback = Pending(lambda request: m.Rollback(request=request, epoch=epoch), _ignore, _ignore, _nothing)
                self._requests.start(rollback)
            raise
        if not isinstance(answer, m.Committed):
            raise MalformedFrame(f"the broker answered a commit with {answer!r}")
        return answer.duplicate

    async def _answer(self, make: Callable[[int], m.Command]) -> object:
        """The answer to a request, which is sent once.

        Raises:
            ConnectionLost: there was none.
        """
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def failed(error: VibeMQError) -> None:
            if not answer.done():
                answer.set_exception(error)

        def done(result: object) -> None:
            if not answer.done():
                answer.set_result(result)

        pending = Pending(make, done, failed, lambda: failed(ConnectionLost("the connection broke")))
        self._requests.start(pending)
        try:
            return await answer
        finally:
            self._requests.forget(pending)

    def _committed(self, reply: m.Committed) -> None:
        if not self._requests.answered(reply.request, reply):
            self._of_others(reply)

    # --- what is sent ----------------------------------------------------------------------------------------------

    def _publishes(self, messages: Sequence[NumberedMessage]) -> list[m.Publish]:
        """Batches, in which messages for one queue or topic stay in order.

        Raises:
            VibeMQError: what the broker would never take.
        """
        parts: list[list[NumberedMessage]] = []
        growing: dict[Place, list[NumberedMessage]] = {}
        most = min(self._link.limits.batch_messages_max, MESSAGES_MAX)
        for message in messages:
            part = growing.get(message.route.place)
            if part is None or part[0].route != message.route or len(part) == most:
                part = growing[message.route.place] = []
                parts.append(part)
            part.append(message)
        if len(parts) > PUBLISHES_MAX:
            raise UsageError(f"a transaction has at most {PUBLISHES_MAX} batches, not {len(parts)}")
        publishes = [self._publish(part) for part in parts]
        size = sum(len(one.batch.data) + len(one.dedup) + FRAME_OVERHEAD for one in publishes) + binary.COMMIT.size
        if size > self._link.limits.frame_bytes_max:
            raise UsageError(
                f"a transaction of {size} bytes is above the {self._link.limits.frame_bytes_max} that the broker takes"
            )
        return publishes

    def _publish(self, part: Sequence[NumberedMessage]) -> m.Publish:
        route = part[0].route
        if route.to_topic:
            check_topic(route.name)
        else:
            check_name(route.name)
        keys = [0 if one.key is None else key_hash(one.key) for one in part]
        hashes = [NO_HASH if one.dedup_id is None else dedup_hash(one.dedup_id) for one in part]
        headers = [one.headers for one in part]
        batch = Batch(b"".join(pack([one.body for one in part], headers, route.priority, route.ttl_ms, keys)))
        largest, limit = max(batch.lengths), self._link.limits.message_bytes_max
        if limit and largest > limit:
            raise UsageError(f"a message of {largest} bytes, headers included, is above the {limit} the broker takes")
        dedup = b"".join(hashes) if any(map(NO_HASH.__ne__, hashes)) else b""
        return m.Publish(0, route.name, 0, batch, 0, route.to_topic, 0, route.due_us, dedup)


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

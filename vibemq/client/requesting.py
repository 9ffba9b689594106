"""Requests that are answered by messages: one queue for all replies to this client, told apart by a header.

    request() -> queue of whoever does the work -> message.reply() -> reply.<producer> -> whoever waits, by correlation

The reply queue is an ordinary one, declared with the first request and on each connection after it. It expires a minute
after its consumer is gone, and goes with the client when that is closed. A request waits no longer than its requester:
its time to live is the timeout. A reply for which nobody waits any more is acked and counted, and that is all.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from vibemq.client.consumer import Messages
from vibemq.client.link import Link
from vibemq.client.message import Message
from vibemq.client.outgoing import (
    CORRELATION_HEADER,
    REPLY_TO_HEADER,
    Body,
    MessageHeaders,
    Priority,
    Route,
    stamped,
)
from vibemq.client.publisher import Publisher
from vibemq.client.queues import declare_of
from vibemq.client.requests import Pending, Requests
from vibemq.durations import Duration
from vibemq.errors import InvalidRequest, QueueFull, RequestTimeout, UsageError, VibeMQError
from vibemq.protocol import messages as m

EXPIRES_SECONDS: Final = 60
"""How long the reply queue outlives its consumer: replies wait so long for a client that has lost its connection."""
AGAIN_SECONDS: Final = 0.5
"""Pause before a consumer of replies that was ended is begun anew."""


class Sink(Protocol):
    """Who waits for replies."""

    def replied(self, message: Message) -> None:
        """A reply came."""

    def failed(self, error: VibeMQError) -> None:
        """None will come any more."""


class Requester:
    """Publishes requests, and hands replies to those who wait for them."""

    def __init__(
        self,
        link: Link,
        requests: Requests,
        publisher: Publisher,
        consume: Callable[[str], Messages[Message]],
    ) -> None:
        """Nothing is declared before the first request. `consume` makes a consumer of a queue."""
        self._link = link
        self._requests = requests
        self._publisher = publisher
        self._consume = consume
        self._declare = declare_of(
            f"reply.{link.producer:016x}", "ignore", {"expires": EXPIRES_SECONDS, "delete_grace": 0}
        )
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[str, Sink] = {}
        self._number = 0
        link.on_closed.append(self._closed)

    @property
    def queue(self) -> str:
        """The name of the reply queue."""
        return self._declare.queue

    async def close(self) -> None:
        """The client is about to close: nobody waits for replies any more."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self._link.is_open:  # else it expires
            self._requests.start(
                Pending(
                    lambda number: m.Delete(request=number, queue=self.queue, grace_ms=0), _ignore, _ignore, _nothing
                )
            )

    # --- from the application --------------------------------------------------------------------------------------

    async def ask(self, request: "Request", sink: Sink) -> str:
        """Publish a request whose replies go to `sink`, and return once it is durable; gives what to `forget`.

        Raises:
            VibeMQError: it could not be published, or nobody could be told where to reply to.
        """
        await self._start()
        self._number += 1
        correlation = f"{self._number:x}"
        self._waiting[correlation] = sink
        headers = {**(request.headers or {}), REPLY_TO_HEADER: self.queue, CORRELATION_HEADER: correlation}
        try:
            publisher = self._publisher
            if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
                await publisher.room()
            stamp = stamped(headers, request.key, None)
            receipt = await publisher.add(request.route, request.body, stamp, request.key)
            if receipt.dropped:
                raise QueueFull(f"queue {request.route.name!r} is full, and dropped the request")
        except BaseException:
            self.forget(correlation)
            raise
        return correlation

    def forget(self, correlation: str) -> None:
        """Nobody waits for replies to this request any more."""
        self._waiting.pop(correlation, None)

    # --- replies ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Have a reply queue, and consume it."""
        if self._task is not None:
            return
        async with self._starting:
            if self._task is None:
                messages = await self._begin()
                self._task = asyncio.get_running_loop().create_task(self._serve(messages), name="vibemq replies")

    async def _begin(self) -> Messages[Message]:
        await self._requests.call(self._numbered, what=f"declare {self.queue!r}")
        if self._declare_again not in self._link.on_open:
            self._link.on_open.append(self._declare_again)
        messages = self._consume(self.queue)
        await messages.start()  # its hook comes behind ours: the queue is there when it subscribes again
        return messages

    def _numbered(self, number: int) -> m.Command:
        return msgspec.structs.replace(self._declare, request=number)

    def _declare_again(self) -> None:
        self._requests.start(Pending(self._numbered, _ignore, _ignore, _nothing))

    async def _serve(self, messages: Messages[Message]) -> None:
        """Hand out replies for as long as the client is open."""
        while True:
            with suppress(VibeMQError):
                async for message in messages:
                    await message.ack()
                    self._hand_out(message)
            if self._link.closed is not None:
                return
            with suppress(VibeMQError):
                await messages.stop()
            while self._link.closed is None:  # somebody has deleted the queue: have it anew, for what comes from now on
                await asyncio.sleep(AGAIN_SECONDS)
                with suppress(VibeMQError):
                    messages = await self._begin()
                    break

    def _hand_out(self, message: Message) -> None:
        try:
            correlation = message.headers.get(CORRELATION_HEADER)
        except InvalidRequest:  # whoever sent this does not answer a request
            correlation = None
        sink = self._waiting.get(correlation) if isinstance(correlation, str) else None
        if sink is not None:
            sink.replied(message)
        else:
            self._publisher.stats.replies_late += 1

    def _closed(self, error: VibeMQError) -> None:
        waiting, self._waiting = self._waiting, {}
        for sink in waiting.values():
            sink.failed(error)


class Request:
    """What is asked of whom: a message, and how long its requester waits."""

    __slots__ = ("body", "headers", "key", "route", "seconds")

    def __init__(
        self,
        queue: str,
        body: Body,
        seconds: float,
        headers: MessageHeaders | None,
        priority: Priority | None,
        key: str | None,
    ) -> None:
        """Nobody is to begin work on it when its requester has gone, so it lives for `seconds`.

        Raises:
            UsageError: a priority or a time that cannot be.
        """
        if not seconds > 0:
            raise UsageError("the timeout of a request must be longer than 0 seconds")
        ttl: Duration = seconds
        self.route = Route.of(queue, priority, ttl)
        self.body, self.seconds, self.headers, self.key = body, seconds, headers, key

    @property
    def late(self) -> RequestTimeout:
        """What to say when no reply came."""
        return RequestTimeout(
            f"request to {self.route.name!r}: no reply within {self.seconds:g} s. Who has begun work on it may go on; "
            f"nobody begins any more."
        )


class Reply:
    """Waits for one reply."""

    def __init__(self) -> None:
        """None has come."""
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def replied(self, message: Message) -> None:
        """It came; a second one is of no interest."""
        if not self.future.done():
            self.future.set_result(message)

    def failed(self, error: VibeMQError) -> None:
        """It will not come."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen, also where the publish fails first


async def reply_to(requester: Requester, request: Request) -> Message:
    """The first reply to a request.

    Raises:
        RequestTimeout: none came in time.
        VibeMQError: the request could not be published.
    """
    reply = Reply()
    correlation = ""
    try:
        async with asyncio.timeout(request.seconds):
            correlation = await requester.ask(request, reply)
            return await reply.future
    except TimeoutError:
        raise request.late from None
    finally:
        requester.forget(correlation)


class Replies(AsyncIterator[Message]):
    """Many replies to one request, as they come: `async with client.request_many(...) as replies: async for ...`.

    The iteration ends with the timeout, or after so many replies as were asked for. Leaving the context forgets what is
    still to come.
    """

    def __init__(self, requester: Requester, request: Request, most: int | None) -> None:
        """Publish `request` when entered, or iterated.

        Raises:
            UsageError: `most` below 1.
        """
        if most is not None and most < 1:
            raise UsageError(f"max_replies is {most}: wait for at least one reply, or for any number with None")
        self._requester = requester
        self._request = request
        self._left = most
        self._correlation: str | None = None
        self._came: deque[Message] = deque()
        self._seen: set[str] = set()
        self._arrived = asyncio.Event()
        self._error: VibeMQError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    async def __aenter__(self) -> Self:
        await self._ask()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def __anext__(self) -> Message:
        if self._correlation is None:
            await self._ask()
        while not self._came:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._came.popleft()

    async def _ask(self) -> None:
        if self._correlation is not None or self._over:
            raise UsageError("replies are asked for once: make another request")
        self._timer = asyncio.get_running_loop().call_later(self._request.seconds, self._end)
        try:
            async with asyncio.timeout(self._request.seconds):
                self._correlation = await self._requester.ask(self._request, self)
        except TimeoutError:
            raise self._request.late from None
        if self._over:  # all that were wanted came before the broker had confirmed the request
            self._end()

    def _end(self) -> None:
        """No more replies are taken; those that came can still be iterated."""
        self._over = True
        self._arrived.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._correlation is not None:
            self._requester.forget(self._correlation)

    def replied(self, message: Message) -> None:
        """A reply came, or came once more after a lost connection."""
        if self._over or message.id in self._seen:
            return
        self._seen.add(message.id)
        self._came.append(message)
        self._arrived.set()
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self._end()

    def failed(self, error: VibeMQError) -> None:
        """No more will come."""
        self._error = error
        self._arrived.set()


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

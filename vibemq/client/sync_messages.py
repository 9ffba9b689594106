"""What a blocking client consumes: a thread iterates, while the loop of the client runs on another.

What would happen once a message does not travel between them: messages are taken from the buffer of the consumer by the
thread that iterates, for `list.pop` needs no lock, and acks are collected and handed over together.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import TypeVar

from vibemq.client.client import Client
from vibemq.client.consumer import Batches, Messages
from vibemq.client.membership import Membership
from vibemq.client.message import Received
from vibemq.client.outgoing import Body, MessageHeaders, Receipt
from vibemq.client.settling import Failure
from vibemq.client.subscription import Subscription
from vibemq.durations import Duration, milliseconds
from vibemq.errors import ClientClosed, VibeMQError

T = TypeVar("T")


class Bridge:
    """A loop on a thread, and the way into it."""

    def __init__(self) -> None:
        """Prepare; `start` starts the thread."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        # A daemon: a client that was never closed must not keep the program from ending.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="vibemq client", daemon=True)
        self._settled: deque[tuple[Subscription, int, Failure | None]] = deque()
        self._handing_over = False

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stop.wait()

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """End the loop and its thread."""
        loop, self._loop = self._loop, None
        if loop is not None and self._stop is not None:
            loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def call(self, coroutine: Coroutine[object, object, T]) -> T:
        """Run a coroutine in the loop, and wait for its result. An interrupt cancels it.

        Raises:
            ClientClosed: the client is not open.
        """
        if self._loop is None:
            coroutine.close()
            raise ClientClosed("the client is not open: use it inside `with vibemq.connect_sync(url) as client`")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have something called in the loop, and do not wait for it.

        Raises:
            ClientClosed: the client is not open.
        """
        if self._loop is None:
            raise ClientClosed("the client is not open: use it inside `with vibemq.connect_sync(url) as client`")
        self._loop.call_soon_threadsafe(callback)

    def settle(self, subscription: Subscription, number: int, failure: Failure | None) -> None:
        """Settle a delivery soon: one call into the loop takes all that was settled until then."""
        if self._loop is None:
            raise ClientClosed("the client was closed: the message comes again")
        self._settled.append((subscription, number, failure))
        if not self._handing_over:
            self._handing_over = True
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False  # first: what is appended from now on is either taken below, or calls again
        while self._settled:
            subscription, number, failure = self._settled.popleft()
            if failure is None:
                subscription.ack(number)
            else:
                subscription.fail(number, failure)


class SyncMessage(Received, gc=False, eq=False):
    """A message of a blocking client. What is done first with it counts: settling it again does nothing."""

    bridge: Bridge | None = None
    """What settles it."""

    @property
    def _over(self) -> Bridge:
        assert self.bridge is not None
        return self.bridge

    def ack(self, *, confirm: bool = False) -> None:
        """It is done, and will not come again. Returns once that is queued; with `confirm` once it is durable.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours, and may come again.
        """
        self._settle(None, confirm=confirm)

    def nack(self, *, delay: Duration | None = None, reason: str = "", confirm: bool = False) -> None:
        """It failed: it comes again after `delay` (None: as the queue is set), until its attempts are used up.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours.
        """
        self._settle(Failure.nack(delay, reason), confirm=confirm)

    def reject(self, *, reason: str = "", confirm: bool = False) -> None:
        """It can never succeed: it goes to the dead letters at once, with `reason`.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours.
        """
        self._settle(Failure(None, reason, reject=True), confirm=confirm)

    def extend(self, seconds: Duration = 0.0) -> None:
        """Work on it takes longer: its lease ends `seconds` from now (0: the queue's own lease).

        Raises:
            LeaseLost: the lease had ended already.
        """
        self._over.call(self.parcel.subscription.extend(self.delivery, milliseconds(seconds, "seconds")))

    def reply(self, body: Body, *, headers: MessageHeaders | None = None) -> Receipt:
        """Answer a request, as Message.reply().

        Raises:
            UnknownQueue: the requester is gone.
            UsageError: the message is no request.
        """
        return self._over.call(self.parcel.subscription.reply(self, body, headers))

    def _settle(self, failure: Failure | None, *, confirm: bool) -> None:
        if confirm:
            self._over.call(self.parcel.subscription.settle(self, failure, confirm=True))
        elif not self.settled:
            self.settled = True
            self._over.settle(self.parcel.subscription, self.delivery, failure)


class SyncBatches(Iterator[list[SyncMessage]]):
    """The messages of a consumer in lists."""

    def __init__(self, bridge: Bridge, batches: Batches[SyncMessage]) -> None:
        """Iterate `batches` over `bridge`."""
        self._bridge = bridge
        self._batches = batches

    def __next__(self) -> list[SyncMessage]:
        try:
            return self._bridge.call(self._batches.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class SyncMessages(Iterator[SyncMessage]):
    """The messages of one consumer, for one thread."""

    def __init__(self, bridge: Bridge, messages: Messages[SyncMessage]) -> None:
        """Iterate `messages` over `bridge`."""
        self._bridge = bridge
        self._messages = messages

    @property
    def queue(self) -> str:
        """The name of the queue, as it was given."""
        return self._messages.queue

    @property
    def group(self) -> str | None:
        """The name of the group; None where the queue has none."""
        return self._messages.group

    def __next__(self) -> SyncMessage:
        try:
            return self._messages.ready.pop()
        except IndexError:
            pass
        try:
            return self._bridge.call(self._messages.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def batches(self, max_messages: int = 1000) -> SyncBatches:
        """An iterator of lists: what is there at once, up to `max_messages`, waiting for at least one.

        Raises:
            UsageError: `max_messages` below 1.
        """
        return SyncBatches(self._bridge, self._messages.batches(max_messages))


class SyncConsuming:
    """What consume() returns: enter it to subscribe, and leave it to give back what is not settled."""

    def __init__(self, bridge: Bridge, client: Client, membership: Membership, prefetch: int) -> None:
        """Subscribe over `bridge` when entered."""
        self._bridge = bridge
        self._client = client
        self._membership = membership
        self._prefetch = prefetch
        self._messages: Messages[SyncMessage] | None = None

    def __enter__(self) -> SyncMessages:
        self._messages = self._bridge.call(self._start())
        return SyncMessages(self._bridge, self._messages)

    async def _start(self) -> Messages[SyncMessage]:
        bridge = self._bridge
        messages = self._client.messages_of(
            lambda parcel, number, body: SyncMessage(parcel, number, body, bridge=bridge),
            self._membership,
            self._prefetch,
        )
        await messages.start()
        return messages

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._messages is not None
        try:
            self._bridge.call(self._messages.stop())
        except VibeMQError:
            if error is None:  # else what happened first is what the caller must see
                raise

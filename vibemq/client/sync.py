"""The blocking client: the asynchronous one in a loop of its own, on a thread of its own.

A call travels to that loop and its result comes back. What would happen once a message does not travel: messages are
taken from the buffer of the consumer by the thread that iterates, for `list.pop` needs no lock, and acks are collected
and handed over together.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

from vibemq.client.client import Client, address_of
from vibemq.client.consumer import Batches, Messages
from vibemq.client.message import Received
from vibemq.client.options import ConnectOptions, Options
from vibemq.client.peeked import PeekedMessage
from vibemq.client.publisher import Body, MessageHeaders, Receipt
from vibemq.client.queues import QueueSettings
from vibemq.client.settling import Failure
from vibemq.client.stats import Stats
from vibemq.client.subscription import Subscription
from vibemq.durations import Duration, milliseconds
from vibemq.errors import ClientClosed, VibeMQError

T = TypeVar("T")


def connect_sync(url: str | None = None, **options: Unpack[ConnectOptions]) -> "SyncClient":
    """A blocking client, to be used as `with connect_sync(url) as client`; URL and options as for connect().

    Raises:
        UsageError: a URL or an option that cannot be.
    """
    return SyncClient(Client(address_of(url), Options.of(options)))


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

    def __init__(self, bridge: Bridge, client: Client, queue: str, prefetch: int, group: str | None) -> None:
        """Subscribe over `bridge` when entered."""
        self._bridge = bridge
        self._client = client
        self._wanted = (queue, prefetch, group)
        self._messages: Messages[SyncMessage] | None = None

    def __enter__(self) -> SyncMessages:
        self._messages = self._bridge.call(self._start())
        return SyncMessages(self._bridge, self._messages)

    async def _start(self) -> Messages[SyncMessage]:
        bridge = self._bridge
        queue, prefetch, group = self._wanted
        messages = self._client.messages_of(
            lambda parcel, number, body: SyncMessage(parcel, number, body, bridge=bridge), queue, prefetch, group
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


class SyncClient:
    """A blocking client: the verbs of Client. Threads may share it; each consumer belongs to one of them."""

    def __init__(self, client: Client) -> None:
        """Drive `client`, which must not be open."""
        self._client = client
        self._bridge = Bridge()

    def __repr__(self) -> str:
        return f"<SyncClient over {self._client!r}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """What happened that no call reports."""
        return self._client.stats

    def open(self) -> None:
        """Connect, as Client.open()."""
        self._bridge.start()
        try:
            self._bridge.call(self._client.open())
        except BaseException:
            self._bridge.stop()
            raise

    def close(self) -> None:
        """Send what was settled, and end; closing again does nothing."""
        try:
            self._bridge.call(self._client.close())
        except ClientClosed:
            return
        finally:
            self._bridge.stop()

    def publish(
        self,
        queue: str,
        body: Body,
        *,
        headers: MessageHeaders | None = None,
        priority: int | None = None,
        ttl: Duration | None = None,
        delay: Duration | None = None,
        dedup_id: str | None = None,
    ) -> Receipt:
        """Store a message, as Client.publish(). One at a time this waits for the disk each time: see publish_many()."""
        return self._bridge.call(
            self._client.publish(
                queue, body, headers=headers, priority=priority, ttl=ttl, delay=delay, dedup_id=dedup_id
            )
        )

    def publish_many(
        self, queue: str, bodies: Sequence[Body], *, headers: Sequence[MessageHeaders | None] | None = None
    ) -> list[Receipt]:
        """Store messages as one batch, as Client.publish_many()."""
        return self._bridge.call(self._client.publish_many(queue, bodies, headers=headers))

    def flush(self) -> None:
        """Return once all that was published and settled before is durable, as Client.flush()."""
        self._bridge.call(self._client.flush())

    def consume(self, queue: str, prefetch: int = 500, group: str | None = None) -> SyncConsuming:
        """Take part in a queue: `with client.consume(queue) as messages`, then iterate `messages`."""
        return SyncConsuming(self._bridge, self._client, queue, prefetch, group)

    def pull(self, queue: str, max_messages: int = 100, wait: Duration = 0.0) -> list[SyncMessage]:
        """What is there, up to `max_messages`, as Client.pull(). [] when there is nothing."""
        bridge = self._bridge
        return bridge.call(
            self._client.pull_as(
                lambda parcel, number, body: SyncMessage(parcel, number, body, bridge=bridge), queue, max_messages, wait
            )
        )

    def ack_all(self, batch: Iterable[Received]) -> None:
        """Ack messages, and return once that is durable, as Client.ack_all()."""
        self._bridge.call(self._client.ack_all(batch))

    def declare(self, name: str, **settings: Unpack[QueueSettings]) -> dict[str, object]:
        """Create a queue, or check that it has these settings, as Client.declare()."""
        return self._bridge.call(self._client.declare(name, **settings))

    def list_queues(self) -> list[dict[str, object]]:
        """All queues by name, each as show_queue() gives it."""
        return self._bridge.call(self._client.list_queues())

    def show_queue(self, name: str) -> dict[str, object]:
        """The counts and settings of a queue, as Client.show_queue()."""
        return self._bridge.call(self._client.show_queue(name))

    def purge(self, name: str) -> int:
        """Throw away what is ready in a queue, as Client.purge()."""
        return self._bridge.call(self._client.purge(name))

    def delete(self, name: str) -> int:
        """Delete a queue, as Client.delete()."""
        return self._bridge.call(self._client.delete(name))

    def peek(self, queue: str, start: int = 0, count: int = 100) -> list[PeekedMessage]:
        """Ready messages, none of which is taken, as Client.peek()."""
        return self._bridge.call(self._client.peek(queue, start, count))

    def digest(self) -> dict[str, object]:
        """The digest of every projection of the broker."""
        return self._bridge.call(self._client.digest())

    def ping(self) -> float:
        """How many seconds the broker took to answer."""
        return self._bridge.call(self._client.ping())

"""The asynchronous client: every verb of a broker, over one connection that comes back when it breaks."""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

from vibemq.client.consumer import Consuming, Messages
from vibemq.client.link import Link
from vibemq.client.message import M, Message, Parcel, Received
from vibemq.client.options import ConnectOptions, Options
from vibemq.client.peeked import PeekedMessage, peeked
from vibemq.client.publisher import Body, MessageHeaders, Publisher, Receipt
from vibemq.client.puller import Puller
from vibemq.client.queues import QueueSettings, Settings, settings_of
from vibemq.client.requests import Requests
from vibemq.client.settling import runs_of
from vibemq.client.stats import Stats
from vibemq.client.subscription import Subscription, Subscriptions
from vibemq.client.url import DEFAULT_URL, Address, parse
from vibemq.durations import Duration, milliseconds
from vibemq.errors import ConnectionLost, NotSupported, RequestTimeout, UsageError, VibeMQError
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import check_name


def connect(url: str | None = None, **options: Unpack[ConnectOptions]) -> "Client":
    """A client of the broker at `url`, to be used as `async with connect(url) as client`.

    Without a URL it is VIBEMQ_URL of the environment, and without that vibemq://127.0.0.1:2925. The options are
    explained in vibemq.client.options.

    Raises:
        UsageError: a URL or an option that cannot be.
    """
    return Client(address_of(url), Options.of(options))


def address_of(url: str | None) -> Address:
    """Where the broker is: at `url`, else where VIBEMQ_URL says, else on this machine.

    Raises:
        UsageError: a URL that cannot be.
    """
    return parse(url or os.environ.get("VIBEMQ_URL") or DEFAULT_URL)


class Client:
    """A connection to a broker. Its methods may be called from any task of the loop in which it was opened."""

    def __init__(self, address: Address, options: Options) -> None:
        """Prepare; entering the client, or `open`, connects."""
        self._address = address
        self._options = options
        self._pullers: dict[str, Puller] = {}
        self._pings: list[asyncio.Future[None]] = []
        self._opened = False
        self.stats = Stats()
        """What happened that no call reports."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in {"_link", "_requests", "_publisher", "_subscriptions"}:  # made by open(), in the loop that runs
                raise UsageError("the client is not open: use it inside `async with vibemq.connect(url) as client`")
            raise AttributeError(f"a client has no attribute {name!r}")

    # --- coming and going ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect; a broker that is not there yet is tried until the connect timeout.

        Raises:
            ConnectionFailed: nobody there; says where, why, and what to do.
            ProtocolError: whoever is there does not speak this protocol.
        """
        if self._opened:
            raise UsageError("this client was opened before: make another one with connect()")
        self._opened = True
        link = self._link = Link(self._address, self._options, self.stats)
        self._requests = Requests(link, self._options.timeout)
        self._publisher = Publisher(link, self._options, self.stats)
        self._subscriptions = Subscriptions(link, self._requests, self.stats)
        link.handlers[m.Failed] = self._failed
        link.handlers[m.Pong] = self._pong
        link.on_writable = self._publisher.pump
        link.on_open += [self._publisher.pump, self._requests.resume, self._ping_again]
        link.on_closed.append(self._fail_pings)
        await link.open()

    async def close(self) -> None:
        """Send what was settled, and end. What still waits for an answer raises ClientClosed."""
        if self._opened:
            self._subscriptions.flush()
            await self._link.close()

    # --- publishing ------------------------------------------------------------------------------------------------

    async def publish(
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
        """Store a message; returns once it is durable. Calls that meet in one turn of the loop travel together.

        Cancelling the call does not take the message back.

        Raises:
            RequestTimeout: not confirmed in time; the text says whether it may still be stored.
            LimitExceeded: larger than the broker takes.
            QueueFull: the queue takes no more.
            NotSupported: priority, ttl, delay and dedup_id are not in this version.
        """
        if not (priority is ttl is delay is dedup_id is None):
            raise _not_supported(priority=priority, ttl=ttl, delay=delay, dedup_id=dedup_id)
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        return await publisher.add(queue, body, headers)

    async def publish_many(
        self, queue: str, bodies: Sequence[Body], *, headers: Sequence[MessageHeaders | None] | None = None
    ) -> list[Receipt]:
        """Store messages as one batch; returns once all are durable, with their receipts in the same order.

        `headers` has an entry for each body. What is above the broker's limits for a batch goes in several, and when
        one of them is refused the others may be stored.

        Raises:
            RequestTimeout, LimitExceeded, QueueFull: as publish().
        """
        if not bodies:
            return []
        publisher = self._publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        futures = publisher.add_many(queue, bodies, headers)
        if len(futures) == 1:
            return await futures[0]
        return list(chain.from_iterable(await asyncio.gather(*futures)))

    async def flush(self) -> None:
        """Return once all that was published and settled before is durable.

        A publish that failed is reported by its own call. Settlements that a lost lease or a broken connection made
        void are not reported, and their messages come again: ack_all() and ack(confirm=True) report them.

        Raises:
            RequestTimeout: no answer in time.
        """
        try:
            async with asyncio.timeout(self._options.timeout):
                await self._publisher.answered()
        except TimeoutError:
            raise RequestTimeout(f"flush: publishes had no answer within {self._options.timeout:g} s") from None
        self._subscriptions.flush()
        await self._requests.call(lambda number: m.Flush(request=number), what="flush")

    # --- consuming -------------------------------------------------------------------------------------------------

    def consume(self, queue: str, prefetch: int = 500, group: str | None = None) -> Consuming[Message]:
        """Take part in a queue: `async with client.consume(queue) as messages`, then iterate `messages`.

        Up to `prefetch` messages are sent ahead of the application. Leaving the context sends what was settled, and
        gives the rest back without counting an attempt.

        Raises:
            NotSupported: groups are not in this version.
        """
        return Consuming(self.messages_of(Message, queue, prefetch, group))

    def messages_of(
        self, make: Callable[[Parcel, int, bytes], M], queue: str, prefetch: int, group: str | None
    ) -> Messages[M]:
        """A consumer that is not subscribed yet, whose messages are made by `make`."""
        if group is not None:
            raise _not_supported(group=group)
        check_name(queue)
        if prefetch < 1:
            raise UsageError(f"prefetch is {prefetch}: at least one message must be on its way")
        return Messages(
            self._link,
            self._requests,
            self._subscriptions,
            make,
            queue,
            prefetch=prefetch,
            prefetch_bytes=self._options.prefetch_bytes,
            timeout=self._options.timeout,
        )

    async def pull(self, queue: str, max_messages: int = 100, wait: Duration = 0.0) -> list[Message]:
        """What is there, up to `max_messages`; waits up to `wait` for the first. [] when there is nothing.

        Raises:
            RequestTimeout: the broker did not answer.
        """
        return await self.pull_as(Message, queue, max_messages, wait)

    async def pull_as(
        self, make: Callable[[Parcel, int, bytes], M], queue: str, max_messages: int, wait: Duration
    ) -> list[M]:
        """As pull(), with messages made by `make`."""
        if max_messages < 1:
            raise UsageError(f"max_messages is {max_messages}: ask for at least one")
        check_name(queue)
        puller = self._pullers.get(queue)
        if puller is None:
            puller = Puller(self._requests, self._subscriptions, queue, self._options.prefetch_bytes)
            self._pullers[queue] = puller
        return await puller.pull(make, max_messages, milliseconds(wait, "wait"), self._options.timeout)

    async def ack_all(self, batch: Iterable[Received]) -> None:
        """Ack messages, and return once that is durable. What was settled before is passed over.

        Raises:
            LeaseLost: some were no longer this client's, and may come again; all others are acked.
        """
        deliveries: dict[Subscription, list[int]] = {}
        parcel: Parcel | None = None
        numbers: list[int] = []
        for message in batch:
            if not message.settled:
                message.settled = True
                if message.parcel is not parcel:  # seldom: one lookup serves a row of messages
                    parcel = message.parcel
                    numbers = deliveries.setdefault(parcel.subscription, [])
                numbers.append(message.delivery)
        if len(deliveries) == 1:
            ((only, numbers),) = deliveries.items()
            await only.settle_confirmed(runs_of(numbers), None)
            return
        results = await asyncio.gather(
            *(one.settle_confirmed(runs_of(numbers), None) for one, numbers in deliveries.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # --- queues ----------------------------------------------------------------------------------------------------

    async def declare(self, name: str, **settings: Unpack[QueueSettings]) -> dict[str, object]:
        """Create a queue, or check that it has these settings; returns what show_queue() does.

        Raises:
            DeclareConflict: it exists with other settings.
            UsageError: a setting that does not exist.
        """
        check_name(name)
        wanted: Settings = settings_of(settings)
        result = await self._requests.call(
            lambda number: m.Declare(request=number, queue=name, settings=wanted), what=f"declare {name!r}"
        )
        return _mapping(result)

    async def list_queues(self) -> list[dict[str, object]]:
        """All queues by name, each as show_queue() gives it."""
        result = await self._requests.call(lambda number: m.ListQueues(request=number), what="list_queues")
        return [_mapping(one) for one in _sequence(result)]

    async def show_queue(self, name: str) -> dict[str, object]:
        """The counts and settings of a queue.

        Raises:
            UnknownQueue: there is none of that name.
        """
        check_name(name)
        return _mapping(
            await self._requests.call(lambda number: m.ShowQueue(request=number, queue=name), what=f"show {name!r}")
        )

    async def purge(self, name: str) -> int:
        """Throw away what is ready in a queue; returns how many messages that were.

        Raises:
            UnknownQueue: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known. Not sent again: by then there
                may be other messages.
        """
        check_name(name)
        return await self._count(lambda number: m.Purge(request=number, queue=name), f"purge {name!r}")

    async def delete(self, name: str) -> int:
        """Delete a queue; returns how many messages it held.

        Raises:
            UnknownQueue: there is none of that name.
            ConnectionLost: the connection broke, and whether it was done is not known.
        """
        check_name(name)
        return await self._count(lambda number: m.Delete(request=number, queue=name), f"delete {name!r}")

    async def _count(self, make: Callable[[int], m.Command], what: str) -> int:
        lost = ConnectionLost(f"{what}: the connection broke before the answer; whether it was done is not known")
        count = _mapping(await self._requests.call(make, what=what, lost=lost)).get("count")
        return count if isinstance(count, int) else 0

    async def peek(self, queue: str, start: int = 0, count: int = 100) -> list[PeekedMessage]:
        """Up to `count` ready messages from sequence `start` on; none is taken.

        Raises:
            UnknownQueue: there is none of that name.
        """
        check_name(queue)
        result = await self._requests.call(
            lambda number: m.Peek(request=number, queue=queue, start=start, count=count), what=f"peek {queue!r}"
        )
        return [peeked(queue, _mapping(one)) for one in _sequence(result)]

    async def digest(self) -> dict[str, object]:
        """The digest of every projection of the broker, and the offset at which it holds."""
        return _mapping(await self._requests.call(lambda number: m.Digest(request=number), what="digest"))

    async def ping(self) -> float:
        """How many seconds the broker took to answer; over a reconnect, where there was one.

        Raises:
            RequestTimeout: it did not answer.
        """
        if self._link.closed is not None:
            raise self._link.closed
        loop = asyncio.get_running_loop()
        began = loop.time()
        pong = loop.create_future()
        self._pings.append(pong)
        if self._link.is_open:
            self._link.send(binary.encode_command(m.Ping()))
        try:
            async with asyncio.timeout(self._options.timeout):
                await pong
        except TimeoutError:
            raise RequestTimeout(f"ping: no answer from {self._address} within {self._options.timeout:g} s") from None
        finally:
            if pong in self._pings:
                self._pings.remove(pong)
        return loop.time() - began

    def _pong(self, _: m.Pong) -> None:
        pings, self._pings = self._pings, []  # any sign of life will do
        for pong in pings:
            if not pong.done():
                pong.set_result(None)

    def _ping_again(self) -> None:
        if self._pings:
            self._link.send(binary.encode_command(m.Ping()))

    def _fail_pings(self, error: VibeMQError) -> None:
        for pong in self._pings:
            if not pong.done():
                pong.set_exception(error)

    def _failed(self, reply: m.Failed) -> None:
        if not self._publisher.failed(reply):
            self._requests.failed(reply)


def _not_supported(**given: object) -> NotSupported:
    names = " and ".join(name for name, value in given.items() if value is not None)
    return NotSupported(f"{names}: not in this version of the broker; leave it out")


def _mapping(result: object) -> dict[str, object]:
    return result if isinstance(result, dict) else {}


def _sequence(result: object) -> list[object]:
    return result if isinstance(result, list) else []

"""The asynchronous client: every verb of a broker, over one connection that comes back when it breaks."""

import asyncio
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self, Unpack

from vibemq.client.consumer import Consuming, Messages
from vibemq.client.dead_letters import DeadLetters
from vibemq.client.declaring import Declarations
from vibemq.client.delayed import Delayed
from vibemq.client.link import Link
from vibemq.client.membership import Membership, StartAt
from vibemq.client.message import M, Message, Parcel, Received
from vibemq.client.numbered import NumberedCommits
from vibemq.client.options import ConnectOptions, Options
from vibemq.client.outgoing import Body, MessageHeaders, Priority
from vibemq.client.publisher import Publisher
from vibemq.client.publishing import Publishing
from vibemq.client.puller import Puller
from vibemq.client.requesting import Replies, Request, Requester, reply_to
from vibemq.client.requests import Requests
from vibemq.client.schedules import Schedules
from vibemq.client.settling import runs_of
from vibemq.client.stats import Stats
from vibemq.client.subscription import Subscription, Subscriptions
from vibemq.client.transaction import DEFAULT_SECONDS, Transaction
from vibemq.client.url import DEFAULT_URL, Address, parse
from vibemq.durations import Duration, milliseconds
from vibemq.errors import RequestTimeout, UsageError, VibeMQError
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import WAIT_MS_MAX

REPLIES_PREFETCH: Final = 500
"""Replies that the broker sends ahead."""


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


class Client(Publishing, DeadLetters, Delayed, Schedules):
    """A connection to a broker. Its methods may be called from any task of the loop in which it was opened."""

    def __init__(self, address: Address, options: Options) -> None:
        """Prepare; entering the client, or `open`, connects."""
        self._address = address
        self._options = options
        self._pullers: dict[tuple[str, str | None, bool], Puller] = {}
        self._pings: list[asyncio.Future[None]] = []
        self._opened = False
        self.stats = Stats()
        """What happened that no call reports."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in {
                "_link",
                "_requests",
                "_publisher",
                "_subscriptions",
                "_requester",
            }:  # made by open(), in the loop that runs
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
            DeclareConflict: a queue that connect() was told to declare has other settings.
        """
        if self._opened:
            raise UsageError("this client was opened before: make another one with connect()")
        self._opened = True
        link = self._link = Link(self._address, self._options, self.stats)
        self._requests = Requests(link, self._options.timeout)
        self._publisher = Publisher(link, self._options, self.stats)
        self._subscriptions = Subscriptions(link, self._requests, self._publisher)
        self._requester = Requester(link, self._requests, self._publisher, self._consume_replies)
        link.handlers[m.Failed] = self._failed
        link.handlers[m.Pong] = self._pong
        link.on_writable = self._publisher.outbox.pump
        # What is to be declared comes first, so that what is published and consumed finds its queue.
        link.on_open += [self._requests.resume, self._publisher.outbox.pump, self._ping_again]
        link.on_closed.append(self._fail_pings)
        declarations = Declarations(link, self._requests, self._options.declare, self._options.timeout, self.stats)
        await link.open()
        try:
            await declarations.done()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send what was settled, and end. What still waits for an answer raises ClientClosed."""
        if self._opened:
            self._subscriptions.flush()
            await self._requester.close()
            await self._link.close()

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

    def consume(
        self,
        queue: str,
        prefetch: int = 500,
        group: str | None = None,
        *,
        start: StartAt = "tail",
        exclusive: bool = False,
    ) -> Consuming[Message]:
        """Take part in a queue: `async with client.consume(queue) as messages`, then iterate `messages`.

        Up to `prefetch` messages are sent ahead of the application. Leaving the context sends what was settled, and
        gives the rest back without counting an attempt.

        Queues that fan out have groups, and each gets every message. A `group` that is not there is created, and begins
        at `start`: the "tail", the "head", a sequence, or a datetime. Without a name it is a group of this consumer's
        own, which is deleted 60 seconds after its consumer went. With `exclusive` nobody else may take part.

        Entering the context raises:
            UnknownGroup: the queue is of a mode that has no groups.
            ConsumerExclusive: somebody else has it for himself, or this consumer wants it so and there are others.
        """
        return Consuming(self.messages_of(Message, Membership(queue, group, start, exclusive), prefetch))

    def messages_of(
        self, make: Callable[[Parcel, int, bytes], M], membership: Membership, prefetch: int
    ) -> Messages[M]:
        """A consumer that is not subscribed yet, whose messages are made by `make`."""
        if prefetch < 1:
            raise UsageError(f"prefetch is {prefetch}: at least one message must be on its way")
        return Messages(
            self._link,
            self._requests,
            self._subscriptions,
            make,
            membership,
            prefetch=prefetch,
            prefetch_bytes=self._options.prefetch_bytes,
            timeout=self._options.timeout,
        )

    async def pull(
        self,
        queue: str,
        max_messages: int = 100,
        wait: Duration = 0.0,
        *,
        group: str | None = None,
        start: StartAt = "tail",
        exclusive: bool = False,
    ) -> list[Message]:
        """What is there, up to `max_messages`; waits up to `wait` for the first. [] when there is nothing.

        `group`, `start` and `exclusive` are those of consume(). From the first pull on the client takes part.

        Raises:
            RequestTimeout: the broker did not answer.
            UnknownGroup, ConsumerExclusive: as consume().
        """
        return await self.pull_as(Message, Membership(queue, group, start, exclusive), max_messages, wait)

    async def pull_as(
        self, make: Callable[[Parcel, int, bytes], M], membership: Membership, max_messages: int, wait: Duration
    ) -> list[M]:
        """As pull(), with messages made by `make`."""
        if max_messages < 1:
            raise UsageError(f"max_messages is {max_messages}: ask for at least one")
        wait_ms = milliseconds(wait, "wait")
        if wait_ms > WAIT_MS_MAX:
            raise UsageError(f"wait is {wait}: a pull waits for at most {WAIT_MS_MAX // 1_000:,} seconds, 24 days")
        key = membership.queue, membership.group, membership.exclusive
        puller = self._pullers.get(key)
        if puller is None:
            puller = Puller(self._requests, self._subscriptions, membership, self._options.prefetch_bytes)
            self._pullers[key] = puller
        puller.membership.start = membership.start
        return await puller.pull(make, max_messages, wait_ms, self._options.timeout)

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

    # --- requests --------------------------------------------------------------------------------------------------

    async def request(
        self,
        queue: str,
        body: Body,
        *,
        timeout: Duration | None = None,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> Message:
        """Ask whoever consumes a queue, and return the reply, which is acked already. They answer with message.reply().

        Waits for `timeout` (None: as long as any call of this client); nobody begins work on the request later than
        that. Cancelling the call forgets the reply. The request is durable, and so is the reply: when a connection
        breaks, or the broker starts anew, it comes all the same.

        Raises:
            RequestTimeout: no reply in time.
            VibeMQError: the request could not be published.
        """
        request = Request(queue, body, self._seconds(timeout), headers, priority, key)
        return await reply_to(self._requester, request)

    def request_many(
        self,
        queue: str,
        body: Body,
        *,
        timeout: Duration | None = None,
        max_replies: int | None = None,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> Replies:
        """Ask, and iterate over the replies of all who answer, or all that one of them sends.

        `async with client.request_many(queue, body, timeout=5) as replies`, then `async for reply in replies`. The
        iteration ends with the timeout, or after `max_replies`, and raises nothing when there were none.

        Entering the context raises:
            VibeMQError: the request could not be published.
        """
        request = Request(queue, body, self._seconds(timeout), headers, priority, key)
        return Replies(self._requester, request, max_replies)

    def _seconds(self, timeout: Duration | None) -> float:
        return self._options.timeout if timeout is None else milliseconds(timeout, "timeout") / 1_000

    def _consume_replies(self, queue: str) -> Messages[Message]:
        return self.messages_of(Message, Membership(queue, None), REPLIES_PREFETCH)

    # --- transactions ----------------------------------------------------------------------------------------------

    def transaction(self, timeout: Duration = DEFAULT_SECONDS) -> Transaction:
        """Publishes and acks that happen together, or not at all: `async with client.transaction() as tx`.

        `tx` collects them: tx.publish(), tx.publish_many(), tx.ack() and so on are not awaited, and nothing is sent
        before the end of the block, which commits; an exception rolls back. From the first of them on it may be open
        for `timeout`, and for as long as the broker allows (15 minutes unless configured).

        Leaving the block raises:
            TransactionConflict: a message that it acks is not this client's any more. Nothing was done.
            TransactionTimeout: it was open for too long. Nothing was done.
            VibeMQError: what one of its publishes would have raised. Nothing was done.
            RequestTimeout: no answer in time; the text says whether it may still be carried out.
        """
        return self.transaction_of(timeout, asyncio.get_running_loop().call_soon)

    def transaction_of(self, timeout: Duration, call_soon: Callable[[Callable[[], None]], object]) -> Transaction:
        """As transaction(), for a program on another thread: `call_soon` calls into the loop."""
        return Transaction(self._link, self._requests, self._publisher, timeout, self._options.timeout, call_soon)

    def numbered_commits(self) -> NumberedCommits:
        """Transactions that the program numbers by itself. For what has the option `producer`, as an outbox has."""
        return NumberedCommits(self._link, self._requests, self._options.timeout)

    # --- signs of life ---------------------------------------------------------------------------------------------

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
        if not self._publisher.outbox.failed(reply):
            self._requests.failed(reply)

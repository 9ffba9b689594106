"""Transactions: publishes and acks that happen together, or not at all.

    open --commit()--> committing --Committed--> committed
      |                    | a definite refusal
      +----rollback()------+--> ended: nothing was done, and what was acked in it is held as before

Everything is collected here and sent with the commit, as one frame. Begin is sent with the first of it, so that its
answer, the epoch of this attempt, is there by then. A commit without an answer is sent again on the next connection,
with the same number of the producer. It is answered by what came of it; or with TransactionEnded, as its epoch ended
with the old connection: then it was not carried out and never will be, and another attempt may be begun.
"""

import asyncio
import enum
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, NoReturn, Self, Unpack

from vibemq.batch import MESSAGES_MAX, pack_headers
from vibemq.client.committing import OutgoingCommit, Part
from vibemq.client.link import Link
from vibemq.client.message import Received
from vibemq.client.outgoing import (
    Body,
    MessageHeaders,
    Place,
    PublishManyOptions,
    PublishOptions,
    Receipt,
    Route,
    TopicManyOptions,
    TopicOptions,
    check_dedup_id,
    reply_of,
    stamped,
)
from vibemq.client.publisher import NO_HASH, Publisher, bytes_of
from vibemq.client.publishing import stamped_all
from vibemq.client.requests import Pending, Requests
from vibemq.client.settling import in_pieces, runs_of
from vibemq.client.subscription import Subscription
from vibemq.durations import Duration, milliseconds
from vibemq.errors import (
    ConnectionFailed,
    LimitExceeded,
    MalformedFrame,
    RequestTimeout,
    SequenceTooOld,
    TransactionConflict,
    TransactionEnded,
    TransactionTimeout,
    UsageError,
    VibeMQError,
)
from vibemq.protocol import messages as m
from vibemq.protocol.fields import PUBLISHES_MAX, RUNS_MAX
from vibemq.protocol.keys import dedup_hash, key_hash

DEFAULT_SECONDS: Final = 60.0
"""How long a transaction may be open unless its program says something else."""


class State(enum.Enum):
    """Where a transaction is."""

    OPEN = enum.auto()
    COMMITTING = enum.auto()
    COMMITTED = enum.auto()
    ENDED = enum.auto()


class Collected:
    """Messages that were published in a transaction: their receipts are there once it is committed."""

    __slots__ = ("_count", "_first", "_transaction")

    def __init__(self, transaction: "Transaction", first: int, count: int) -> None:
        """So many messages, from the transaction's message `first` on."""
        self._transaction, self._first, self._count = transaction, first, count

    @property
    def receipts(self) -> list[Receipt]:
        """The receipt of each message.

        Raises:
            UsageError: the transaction is not committed.
        """
        return self._transaction.receipts[self._first : self._first + self._count]

    @property
    def receipt(self) -> Receipt:
        """The receipt of the message.

        Raises:
            UsageError: the transaction is not committed, or it is not one message.
        """
        if self._count != 1:
            raise UsageError(f"these are {self._count} messages: look at their receipts")
        return self.receipts[0]

    def __await__(self) -> NoReturn:
        """Tell whoever awaits it, as every other publish is awaited.

        Raises:
            UsageError: always.
        """
        raise UsageError("what is published in a transaction is only collected: call it without await, and commit")


class Transaction:
    """What client.transaction() returns: collects publishes and acks, and carries them out together.

    Use it as `async with`: leaving it commits, and an exception rolls back. It belongs to one task.
    """

    def __init__(
        self,
        link: Link,
        requests: Requests,
        publisher: Publisher,
        timeout: Duration,
        call_timeout: float,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        """Open for `timeout`; the broker is told by `call_soon` as soon as there is something to commit.

        Raises:
            UsageError: a timeout that cannot be.
        """
        self._link = link
        self._requests = requests
        self._publisher = publisher
        self._seconds = milliseconds(timeout, "timeout") / 1_000
        if not self._seconds:
            raise UsageError("the timeout of a transaction must be longer than 0 seconds")
        self._call_timeout = call_timeout
        self._call_soon = call_soon
        self._state = State.OPEN
        self._parts: list[Part] = []
        self._growing: dict[Place, Part] = {}  # the last part of each place, so that what is published stays in order
        self._messages = self._bytes = 0
        self._acked: dict[tuple[Subscription, int], Received] = {}
        self._receipts: list[Receipt] = []
        self._deadline = 0.0
        self._epoch: asyncio.Future[int] | None = None
        self._connects = 0  # on which connection of this client the epoch holds
        self._outgoing: OutgoingCommit | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._state.name.lower()}: {self._messages} published, {len(self._acked)} acked>"
        )

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of all that was published in it, in the order of the calls.

        Raises:
            UsageError: it is not committed.
        """
        if self._state is not State.COMMITTED:
            raise UsageError(f"there are receipts once the transaction is committed: it is {self._state.name.lower()}")
        return self._receipts

    # --- what is to happen -----------------------------------------------------------------------------------------

    def publish(self, queue: str, body: Body, **options: Unpack[PublishOptions]) -> Collected:
        """Store a message when the transaction is committed; all else is as in Client.publish().

        Raises:
            LimitExceeded: the message, or the transaction, is larger than the broker takes.
            UsageError, InvalidName, InvalidRequest: what can never be stored.
        """
        dedup_id = options.get("dedup_id")
        if dedup_id is not None:
            check_dedup_id(dedup_id)
        return self._one(_route(queue, options), body, options.get("headers"), options.get("key"), dedup_id)

    def publish_topic(self, topic: str, body: Body, **options: Unpack[TopicOptions]) -> Collected:
        """Store a message in every queue that is bound to `topic`, as publish()."""
        route = _route(topic, options, to_topic=True)
        return self._one(route, body, options.get("headers"), options.get("key"), None)

    def publish_many(self, queue: str, bodies: Sequence[Body], **options: Unpack[PublishManyOptions]) -> Collected:
        """Store messages, as publish(); the arguments are those of Client.publish_many()."""
        headers, keys, dedup_ids = options.get("headers"), options.get("keys"), options.get("dedup_ids")
        return self._many(_route(queue, options), bodies, headers, keys, dedup_ids)

    def publish_topic_many(self, topic: str, bodies: Sequence[Body], **options: Unpack[TopicManyOptions]) -> Collected:
        """Store messages in every queue that is bound to `topic`, as publish_many()."""
        route = _route(topic, options, to_topic=True)
        return self._many(route, bodies, options.get("headers"), options.get("keys"), None)

    def reply(self, message: Received, body: Body, *, headers: MessageHeaders | None = None) -> Collected:
        """Answer a request when the transaction is committed, as Message.reply().

        Raises:
            UsageError: the message is no request.
        """
        queue, values = reply_of(message.headers, headers)
        return self._one(Route(queue), body, values, None, None)

    def ack(self, message: Received) -> None:
        """Let a message be done when the transaction is committed. Until then it is held, and its lease goes on.

        Raises:
            TransactionConflict: it is not this client's any more: its connection or its subscription has ended.
            UsageError: it was settled before, or is acked in another transaction.
        """
        self._check_open()
        subscription = message.parcel.subscription
        key = subscription, message.delivery
        if key in self._acked:
            return
        if message.settled:
            raise UsageError(f"message {message.id} was settled before, or is acked in another transaction")
        _check_held(subscription)
        message.settled = True
        self._acked[key] = message
        self._begin_soon()

    def ack_all(self, batch: Iterable[Received]) -> None:
        """Ack messages, as ack()."""
        for message in batch:
            self.ack(message)

    def _one(
        self, route: Route, body: Body, headers: MessageHeaders | None, key: str | None, dedup_id: str | None
    ) -> Collected:
        values = stamped(headers, key, route.name if route.to_topic else None)
        return self._many(route, [body], [values], None if key is None else [key], [dedup_id], is_stamped=True)

    def _many(
        self,
        route: Route,
        bodies: Sequence[Body],
        headers: Sequence[MessageHeaders | None] | None,
        keys: Sequence[str | None] | None,
        dedup_ids: Sequence[str | None] | None,
        *,
        is_stamped: bool = False,
    ) -> Collected:
        self._check_open()
        self._publisher.check(route)
        if not is_stamped:
            headers = stamped_all(route, bodies, headers, keys, dedup_ids)
        # All is checked before any of it is taken: a call that fails leaves nothing behind.
        plain = [bytes_of(body) for body in bodies]
        copies = [None] * len(plain) if headers is None else [dict(one) if one else None for one in headers]
        sizes = [len(body) + (len(pack_headers(one)) if one else 0) for body, one in zip(plain, copies, strict=True)]
        hashes = [0 if key is None else key_hash(key) for key in keys or [None] * len(plain)]
        ids = [NO_HASH if one is None else dedup_hash(one) for one in dedup_ids or [None] * len(plain)]
        for size in sizes:
            self._publisher.check_size(size)
        self._check_bytes(sum(sizes))
        first = self._messages
        for row in zip(plain, copies, hashes, ids, strict=True):
            self._take(self._part(route), *row)
        if plain:
            self._begin_soon()
        return Collected(self, first, len(plain))

    def _check_bytes(self, size: int) -> None:
        limit = self._link.limits.frame_bytes_max
        if self._bytes + size > limit:
            raise LimitExceeded(
                f"a transaction has at most {limit} bytes, and these messages would make it "
                f"{self._bytes + size}: nothing was sent; use several transactions"
            )
        self._bytes += size

    def _part(self, route: Route) -> Part:
        most = min(self._link.limits.batch_messages_max, MESSAGES_MAX)
        part = self._growing.get(route.place)
        if part is None or part.route != route or len(part.bodies) == most:
            part = self._growing[route.place] = Part(route)
            self._parts.append(part)
        return part

    def _take(self, part: Part, body: bytes, headers: MessageHeaders | None, key: int, hashed: bytes) -> None:
        part.bodies.append(body)
        part.headers.append(headers)
        part.keys.append(key)
        part.hashes.append(hashed)
        part.slots.append(self._messages)
        self._messages += 1

    def _check_open(self) -> None:
        if self._state is not State.OPEN:
            raise UsageError(f"this transaction is {self._state.name.lower()}: begin another one")

    # --- coming and going ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state is State.OPEN:  # else the program has committed it, or rolled it back, by itself
            if kind is None:
                await self.commit()
            else:
                await self.rollback()

    async def commit(self) -> list[Receipt]:
        """Carry out all of it, and return once that is durable; gives the receipts. What is empty sends nothing.

        Raises:
            TransactionConflict: a message that it acks is not this client's any more. Nothing was done.
            TransactionTimeout: it was open for too long. Nothing was done.
            TransactionEnded: the broker knows no such attempt. Nothing was done.
            RequestTimeout: no answer in time; the text says whether it may still be carried out.
            QueueFull, Unroutable, LimitExceeded, ...: what one of its publishes would have raised. Nothing was done.
        """
        self._check_open()
        self._state = State.COMMITTING
        try:
            if self._parts or self._acked:
                self._receipts = await self._carry_out()
        except BaseException as error:
            self._over(is_known=not self._may_be_done(error))
            raise
        self._state = State.COMMITTED
        for subscription, _ in self._acked:
            subscription.settled += not subscription.void
        return self._receipts

    async def rollback(self) -> None:
        """Do nothing of it. What was acked in it is held as before, and can be settled in another way."""
        self._check_open()
        self._over(is_known=True)

    def _may_be_done(self, error: BaseException) -> bool:
        """Whether the broker may carry it out all the same."""
        is_open = isinstance(error, ConnectionFailed | SequenceTooOld | asyncio.CancelledError)
        return is_open and self._outgoing is not None and self._outgoing.sent

    def _over(self, *, is_known: bool) -> None:
        """It ended, and when that `is_known`, nothing of it was done."""
        self._state = State.ENDED
        if is_known:
            for message in self._acked.values():
                message.settled = False
        if self._epoch is not None and self._epoch.done() and self._epoch.exception() is None:
            self._roll_back(self._epoch.result())

    def _roll_back(self, epoch: int) -> None:
        """Let the broker forget an attempt; on another connection it has done so."""
        if self._link.is_open and self._link.closed is None and self._connects == self._publisher.stats.connects:
            self._requests.start(
                Pending(lambda number: m.Rollback(request=number, epoch=epoch), _ignore, _ignore, _nothing)
            )

    # --- the attempt -----------------------------------------------------------------------------------------------

    def _begin_soon(self) -> None:
        if not self._deadline:
            self._deadline = self._publisher.loop.time() + self._seconds
            self._call_soon(self._begin_first)

    def _begin_first(self) -> None:
        if self._epoch is None and self._state is State.OPEN:
            self._begin()

    def _begin(self) -> None:
        """Ask for the epoch of a new attempt, now or when the broker is back."""
        epoch = self._epoch = self._publisher.loop.create_future()

        def opened(result: object) -> None:
            number = result.get("epoch") if isinstance(result, dict) else None
            if not isinstance(number, int):
                raise MalformedFrame(f"the broker answered a begin with {result!r}")
            self._connects = self._publisher.stats.connects
            if self._state is State.ENDED:
                self._roll_back(number)
            elif not epoch.done():
                epoch.set_result(number)

        def refused(error: VibeMQError) -> None:
            if not epoch.done():
                epoch.set_exception(error)
                epoch.exception()  # seen, also where it is never committed

        try:
            self._requests.start(Pending(self._begin_request, opened, refused, None))
        except VibeMQError as problem:
            refused(problem)

    def _begin_request(self, number: int) -> m.Begin:
        left_ms = int((self._deadline - self._publisher.loop.time()) * 1_000)
        return m.Begin(request=number, timeout_ms=max(1, left_ms))

    async def _carry_out(self) -> list[Receipt]:
        acks = self._acks()
        batches = [part.sealed() for part in self._parts]
        if len(batches) > PUBLISHES_MAX:
            raise LimitExceeded(
                f"a transaction has at most {PUBLISHES_MAX} batches, not {len(batches)}: nothing was sent; "
                f"use several transactions, or fewer queues and priorities in one"
            )
        began = self._publisher.loop.time()
        while True:
            for subscription, _ in self._acked:
                _check_held(subscription)
            if self._epoch is None:
                self._begin()
            epoch = await self._opened()
            if self._connects != self._publisher.stats.connects:  # that connection is gone, and its attempts with it
                self._begin()
                continue
            expires = self._publisher.loop.time() + self._call_timeout
            commit = self._outgoing = OutgoingCommit(epoch, self._parts, batches, acks, began, expires)
            if not commit.fits(self._link.limits):
                raise LimitExceeded(
                    f"a transaction of {commit.size} bytes is above the {self._link.limits.frame_bytes_max} "
                    f"that the broker takes: nothing was sent; use several transactions"
                )
            try:
                return await self._answer(commit)
            except TransactionTimeout:
                raise
            except TransactionEnded:
                if self._connects == self._publisher.stats.connects:
                    raise
                # It was of a connection that is gone: so it was not carried out, and never will be.
                self._begin()

    def _acks(self) -> list[m.TransactionAck]:
        numbers: dict[Subscription, list[int]] = {}
        for subscription, number in self._acked:
            numbers.setdefault(subscription, []).append(number)
        runs = {subscription: runs_of(sorted(some)) for subscription, some in numbers.items()}
        count = sum(map(len, runs.values()))
        if count > RUNS_MAX:
            raise LimitExceeded(
                f"a transaction acks at most {RUNS_MAX} rows of messages that came one behind the other, not {count}: "
                f"nothing was sent; use several transactions"
            )
        return [m.TransactionAck(one.number, piece) for one, some in runs.items() for piece in in_pieces(some)]

    async def _opened(self) -> int:
        """The epoch of this attempt.

        Raises:
            RequestTimeout, TransactionTimeout: there was none in time, and nothing was sent.
        """
        assert self._epoch is not None
        try:
            async with asyncio.timeout_at(min(self._publisher.loop.time() + self._call_timeout, self._deadline)):
                return await asyncio.shield(self._epoch)
        except TimeoutError:
            if self._publisher.loop.time() >= self._deadline:
                raise self._late() from None
            raise RequestTimeout(
                f"commit: the broker did not answer within {self._call_timeout:g} s. Nothing of it was done."
            ) from None

    async def _answer(self, commit: OutgoingCommit) -> list[Receipt]:
        """Send a commit, and wait for what comes of it."""
        outbox = self._publisher.outbox
        # When it was sent the broker sees to the deadline. Until then nothing was done, and nothing will be.
        timer = self._publisher.loop.call_at(self._deadline, outbox.withdraw, commit, self._late())
        outbox.add(commit)
        outbox.pump()
        try:
            return await commit.done
        except asyncio.CancelledError:
            outbox.abandon(commit)
            raise
        finally:
            timer.cancel()

    def _late(self) -> TransactionTimeout:
        return TransactionTimeout(f"the transaction was open for {self._seconds:g} s: nothing of it was done")


def _route(name: str, options: TopicOptions | TopicManyOptions, *, to_topic: bool = False) -> Route:
    priority, ttl = options.get("priority"), options.get("ttl")
    return Route.of(name, priority, ttl, options.get("delay"), options.get("deliver_at"), to_topic=to_topic)


def _check_held(subscription: Subscription) -> None:
    if subscription.void:
        raise TransactionConflict(
            f"the connection or the subscription through which messages of {subscription.queue!r} came has ended: they "
            f"come again, and nothing of the transaction was done. Commit it before you leave `consume`."
        )


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

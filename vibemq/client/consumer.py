"""Consuming: messages arrive ahead of the application, within the credit that it was given.

    Deliver -> parcels, as they came -> ready, a few message objects -> the application
                        counted as handed over: credit goes back <-----------'

Credit goes back in steps of half the prefetch. Until a message is handed over its lease is extended here; afterwards
that is up to the application. When the connection breaks, what is buffered is dropped, and the consumer subscribes
again: the broker sends those messages once more.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Generic

from vibemq.client.link import Link
from vibemq.client.membership import Membership
from vibemq.client.message import M, Parcel
from vibemq.client.requests import Pending, Requests
from vibemq.client.settling import merged, runs_of
from vibemq.client.subscription import Subscription, Subscriptions
from vibemq.errors import ConsumerExclusive, RequestTimeout, ShuttingDown, UsageError, VibeMQError

EXCLUSIVE_RETRY_SECONDS: Final = 0.5
"""Pause before a consumer asks again that was refused as the broker has not noticed yet that its connection broke."""


class Messages(AsyncIterator[M], Generic[M]):
    """The messages of one consumer. Several tasks may iterate it together: each message goes to one of them."""

    def __init__(
        self,
        link: Link,
        requests: Requests,
        subscriptions: Subscriptions,
        make: Callable[[Parcel, int, bytes], M],
        membership: Membership,
        *,
        prefetch: int,
        prefetch_bytes: int,
        timeout: float,
    ) -> None:
        """Prepare; `start` subscribes."""
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._requests = requests
        self._subscriptions = subscriptions
        self._make = make
        self._membership = membership
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._bytes_max = prefetch_bytes  # of these the broker keeps so many as credit
        self._timeout = timeout
        self._step = max(1, prefetch // 2)
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._subscription: Subscription | None = None
        self._parcels: deque[Parcel] = deque()
        self.ready: list[M] = []
        """Made, and not handed over yet; the next one is the last, as pop() then costs the least."""
        self._chunk = self._chunk_bytes = 0  # how much was put into `ready` last
        self._owed = self._owed_bytes = 0  # handed over, and its credit not given back
        self._end = 1  # no delivery from this number on has arrived
        self._reported = 0
        self._report_scheduled = False
        self._arrived = asyncio.Event()
        self._error: VibeMQError | None = None
        self._closed = False
        self._extender: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_until = 0.0

    @property
    def queue(self) -> str:
        """The name of the queue, as it was given."""
        return self._membership.queue

    @property
    def group(self) -> str | None:
        """The name of the group; None where the queue has none."""
        return self._membership.group or self._membership.given

    # --- coming and going ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Subscribe, and return when the broker has confirmed it.

        Raises:
            VibeMQError: what the broker answered, or RequestTimeout.
        """
        if self._link.closed is not None:
            raise self._link.closed
        self._link.on_open.append(self._subscribe)
        self._link.on_closed.append(self.ended)
        try:
            if self._link.is_open:
                self._subscribe()
            async with asyncio.timeout(self._timeout):
                await self._started
        except TimeoutError:
            await self.stop()
            raise RequestTimeout(f"consume {self.queue!r}: no answer within {self._timeout:g} s") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Send what was settled, give the rest back, and return when that is durable."""
        if self._closed:
            return
        self._closed = True
        self._link.on_open.remove(self._subscribe)
        self._link.on_closed.remove(self.ended)
        self._arrived.set()
        subscription = self._subscription
        self._forget()
        if subscription is not None:
            await subscription.unsubscribe()

    def _subscribe(self) -> None:
        self._stop_retry()
        if self._error is not None:  # it ended for good; the application, busy with a message, will hear of it
            return
        self._requests.start(
            Pending(
                lambda number: self._membership.subscribe(number, self._prefetch, self._prefetch_bytes),
                self._subscribed,
                self._refused,
                self._stop_retry,  # on_open subscribes anew
            )
        )

    def _subscribed(self, result: object) -> None:
        subscription = self._subscriptions.add(result, self)
        if self._closed:
            self._subscriptions.abandon(subscription.number)
            return
        self._subscription = subscription
        self._membership.joined(subscription.group)
        self._bytes_max = min(self._prefetch_bytes, subscription.credit_bytes_max)
        if subscription.lease_ms:
            self._extender = self._loop.call_later(subscription.lease_ms / 3000, self._extend)
        if not self._started.done():
            self._started.set_result(None)

    def _refused(self, error: VibeMQError) -> None:
        if self._closed or isinstance(error, ShuttingDown):  # then the next broker is asked
            return
        if self._membership.gone(error):
            self._subscriptions.stats.groups_lost += 1
            self._subscribe()
        elif isinstance(error, ConsumerExclusive) and self._loop.time() < self._retry_until:
            # Perhaps it is this consumer, on the connection that broke: the broker may notice that later than we do.
            self._retry = self._loop.call_later(EXCLUSIVE_RETRY_SECONDS, self._subscribe_again)
        else:
            self.ended(error)

    def _subscribe_again(self) -> None:
        if self._link.is_open:  # else on_open does it
            self._subscribe()

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def ended(self, error: VibeMQError) -> None:
        """No more messages will come. What was buffered is not this client's any more."""
        self._error = error
        self._forget()
        self._arrived.set()
        if not self._started.done():
            self._started.set_exception(error)

    def _forget(self) -> None:
        """Drop the subscription and what it brought."""
        if self._extender is not None:
            self._extender.cancel()
            self._extender = None
        self._stop_retry()
        self._subscription = None
        self._subscriptions.stats.deliveries_dropped += self._buffered
        self.ready.clear()
        self._parcels.clear()
        self._chunk = self._chunk_bytes = self._owed = self._owed_bytes = self._reported = 0
        self._end = 1

    # --- from the broker -------------------------------------------------------------------------------------------

    def delivered(self, parcel: Parcel) -> None:
        """Messages came."""
        self._parcels.append(parcel)
        self._end = parcel.end
        self._arrived.set()

    def drained(self) -> None:
        """Not for consumers: they never ask."""

    def cut(self) -> None:
        """The connection broke: all that is buffered will come again."""
        self._forget()
        self._retry_until = self._loop.time() + self._timeout

    def leases_lost(self, deliveries: tuple[tuple[int, int], ...]) -> None:
        """Drop what is not this client's any more."""
        before = self._buffered
        for message in [one for one in self.ready if within(one.delivery, deliveries)]:
            with suppress(ValueError):  # the thread of a blocking client may take it at this moment
                self.ready.remove(message)
        kept: deque[Parcel] = deque()
        for parcel in self._parcels:
            parts = parcel.without(deliveries)
            kept.extend(parts)
            # Never handed over, and yet the credit for it is used.
            self._owed += parcel.left - sum(part.left for part in parts)
            self._owed_bytes += parcel.left_bytes - sum(part.left_bytes for part in parts)
        self._parcels = kept
        self._subscriptions.stats.deliveries_dropped += before - self._buffered
        self._give_back()

    @property
    def _buffered(self) -> int:
        return len(self.ready) + sum(parcel.left for parcel in self._parcels)

    def _extend(self) -> None:
        subscription = self._subscription
        if subscription is None:
            return
        runs = runs_of([message.delivery for message in reversed(self.ready)])
        runs = merged([*runs, *((parcel.next, parcel.end) for parcel in self._parcels)])
        if runs:
            subscription.extend_buffered(runs)
        self._extender = self._loop.call_later(subscription.lease_ms / 3000, self._extend)

    # --- to the application ----------------------------------------------------------------------------------------

    async def __anext__(self) -> M:
        if not self.ready:
            await self._fill()
        if not self._report_scheduled:
            self._report_later()
        return self.ready.pop()

    def batches(self, max_messages: int = 1000) -> "Batches[M]":
        """An iterator of lists: what is there at once, up to `max_messages`, waiting for at least one.

        Raises:
            UsageError: `max_messages` below 1.
        """
        if max_messages < 1:
            raise UsageError(f"max_messages is {max_messages}: a batch has at least one message")
        return Batches(self, max_messages)

    async def take(self, most: int) -> list[M]:
        """Between one and `most` messages, waiting for the first.

        Raises:
            StopAsyncIteration: the consumer was left.
            VibeMQError: the subscription has ended.
        """
        await self._some()
        if not self._report_scheduled:
            self._report_later()
        if self.ready:
            taken = self.ready[: -most - 1 : -1]
            del self.ready[-len(taken) :]
            return taken
        taken, size = self._make_messages(most)
        self._owed += len(taken)
        self._owed_bytes += size
        self._give_back()
        return taken

    async def _fill(self) -> None:
        """Have at least one message in `ready`."""
        await self._some()
        if not self.ready:  # else another task that iterates has filled it
            messages, self._chunk_bytes = self._make_messages(self._step)
            self._chunk = len(messages)
            messages.reverse()
            self.ready[:] = messages

    async def _some(self) -> None:
        """Wait until something is there. What was ready before is handed over by now."""
        while not self.ready:
            self._owed += self._chunk
            self._owed_bytes += self._chunk_bytes
            self._chunk = self._chunk_bytes = 0
            self._give_back()
            if self._parcels:
                return
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    def _make_messages(self, most: int) -> tuple[list[M], int]:
        """Up to `most` messages of the parcels, and their bytes."""
        made: list[M] = []
        size = 0
        while self._parcels and most > len(made):
            parcel = self._parcels[0]
            before = parcel.left_bytes
            made += parcel.take(most - len(made), self._make)
            size += before - parcel.left_bytes
            if not parcel.left:
                self._parcels.popleft()
        return made, size

    # --- credit ----------------------------------------------------------------------------------------------------

    @property
    def _handed(self) -> int:
        """Every delivery below this number was handed over."""
        if self.ready:
            return self.ready[-1].delivery
        return self._parcels[0].next if self._parcels else self._end

    def _give_back(self) -> None:
        if self._owed >= self._step or self._owed_bytes * 2 >= self._bytes_max:
            self._credit()

    def _credit(self) -> None:
        if self._subscription is not None:
            self._reported = self._handed
            self._subscription.credit(self._owed, self._owed_bytes, self._reported)
            self._owed = self._owed_bytes = 0

    def _report_later(self) -> None:
        self._report_scheduled = True
        self._loop.call_soon(self._report)

    def _report(self) -> None:
        """At the end of a turn: tell what is in the hands of the application, so that an attempt counts if it dies.

        Where everything is settled already, as with a loop that acks at once, there is nothing to tell.
        """
        self._report_scheduled = False
        subscription = self._subscription
        if subscription is not None:
            subscription.flush()
            handed = self._handed
            if handed > self._reported and handed - 1 > subscription.settled:
                self._credit()


class Batches(AsyncIterator[list[M]], Generic[M]):
    """The messages of a consumer in lists."""

    def __init__(self, messages: Messages[M], most: int) -> None:
        """Up to `most` messages a list."""
        self._messages = messages
        self._most = most

    async def __anext__(self) -> list[M]:
        return await self._messages.take(self._most)


class Consuming(Generic[M]):
    """What consume() returns: `async with` it to subscribe, and leave it to give back what is not settled."""

    def __init__(self, messages: Messages[M]) -> None:
        """Subscribe when entered."""
        self._messages = messages

    async def __aenter__(self) -> Messages[M]:
        await self._messages.start()
        return self._messages

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._messages.stop()
        except VibeMQError:
            if error is None:  # else what happened first is what the caller must see
                raise


def within(number: int, deliveries: tuple[tuple[int, int], ...]) -> bool:
    """Whether `number` is in one of the runs."""
    return any(first <= number < end for first, end in deliveries)

"""A message as the application gets it.

One Deliver frame becomes one Parcel, and its messages are made only when they are handed out: three references each,
what is the same for all stays in the parcel.
"""

from collections.abc import Callable
from copy import copy
from datetime import datetime
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from vibemq.batch import HEADERS, Batch, Headers, unpack_headers
from vibemq.client.moment import moment
from vibemq.client.outgoing import Body, MessageHeaders, Receipt
from vibemq.client.settling import Failure
from vibemq.durations import Duration, milliseconds
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from vibemq.client.subscription import Subscription

_SHOWN: Final = 40

M = TypeVar("M", bound="Received")


class Parcel:
    """What one Deliver frame brought: `left` messages are not handed out yet, the next has delivery number `next`."""

    next: int
    end: int
    left_bytes: int

    __slots__ = (
        "_bodies",
        "_data",
        "_starts",
        "deliver",
        "end",
        "header_lengths",
        "left_bytes",
        "lengths",
        "next",
        "queue",
        "record_bytes",
        "subscription",
    )

    def __init__(self, subscription: "Subscription", deliver: m.Deliver) -> None:
        """Check the batch in `deliver` and keep it as it came.

        Raises:
            InvalidRequest: the batch does not add up.
        """
        parts = deliver.parts
        batch = Batch(parts[0] if len(parts) == 1 else b"".join(parts))
        self.subscription, self.queue, self.deliver = subscription, subscription.queue, deliver
        self.next, self.end = deliver.delivery, deliver.delivery + batch.count
        self.lengths = batch.lengths
        self.left_bytes = self.record_bytes = batch.record_bytes
        self.header_lengths = batch.header_lengths if batch.flags & HEADERS else None
        self._bodies = batch.bodies()
        self._data = batch.data[batch.records_at :] if self.header_lengths is not None else None
        self._starts: list[int] | None = None

    @property
    def left(self) -> int:
        """How many messages are not handed out."""
        return self.end - self.next

    def take(self, most: int, make: Callable[["Parcel", int, bytes], M]) -> list[M]:
        """Up to `most` of the messages that are left, in order."""
        start, stop = self.next, min(self.end, self.next + most)
        first = self.deliver.delivery
        bodies = self._bodies if stop - start == len(self._bodies) else self._bodies[start - first : stop - first]
        self.next = stop
        self.left_bytes -= self.bytes_between(start, stop)
        if stop == self.end:
            self._bodies = []
        return list(map(make, repeat(self), range(start, stop), bodies))

    def without(self, deliveries: tuple[tuple[int, int], ...]) -> "list[Parcel]":
        """What is left of it besides these runs of deliveries, as parcels."""
        found = []
        at = self.next
        for first, end in [*sorted(deliveries), (self.end, self.end)]:
            if at < min(first, self.end):
                part = copy(self)
                part.next, part.end = at, min(first, self.end)
                part.left_bytes = self.bytes_between(part.next, part.end)
                found.append(part)
            at = max(at, end)
        return found

    def bytes_between(self, first: int, end: int) -> int:
        """How many bytes the deliveries `first` up to `end` have, headers included."""
        base = self.deliver.delivery
        if end - first == len(self.lengths):
            return self.record_bytes
        return sum(self.lengths[first - base : end - base])

    def headers(self, number: int) -> Headers:
        """The headers of delivery `number`, decoded anew each time."""
        if self.header_lengths is None or self._data is None:
            return {}
        at = number - self.deliver.delivery
        size = self.header_lengths[at]
        if not size:
            return {}
        if self._starts is None:  # once a parcel: adding up for each message would be quadratic
            self._starts = list(accumulate(self.lengths, initial=0))
        start = self._starts[at]
        return unpack_headers(self._data[start : start + size])


class Received(msgspec.Struct, gc=False, eq=False):
    """The facts of a message; Message and SyncMessage add what can be done with it.

    The garbage collector does not track messages: there are many, and it would look at all of them again and again.
    Nothing that a message refers to refers back to it once it is handed out, so nothing leaks by that.
    """

    parcel: Parcel
    """What it came in."""
    delivery: int
    """The number that acks of it carry: the subscription's deliveries, counted from 1."""
    body: bytes
    """What was published, as it was."""
    settled: bool = False
    """Whether it was acked, nacked or rejected here."""

    @property
    def headers(self) -> Headers:
        """The headers that the producer gave; decoded at each access, so keep the result to look at many.

        Raises:
            InvalidRequest: the producer sent headers that are no map of text to plain values.
        """
        return self.parcel.headers(self.delivery)

    @property
    def id(self) -> str:
        """The name of the message in the broker, the same as in the Receipt of its publish."""
        deliver = self.parcel.deliver
        return f"{deliver.offset}-{deliver.index + self.delivery - deliver.delivery}"

    @property
    def queue(self) -> str:
        """The queue it was taken from."""
        return self.parcel.queue

    @property
    def sequence(self) -> int:
        """Its place in the queue, from 1."""
        deliver = self.parcel.deliver
        return deliver.sequence + self.delivery - deliver.delivery

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.parcel.deliver.attempt

    @property
    def redelivered(self) -> bool:
        """Whether it may have been sent to a consumer before."""
        return self.parcel.deliver.redelivered

    @property
    def published_at(self) -> datetime:
        """When the broker stored it, UTC."""
        return moment(self.parcel.deliver.time_us)

    def __repr__(self) -> str:
        body = self.body
        shown = repr(body) if len(body) <= _SHOWN else f"{body[:_SHOWN]!r}... {len(body)} bytes"
        again = f", attempt {self.attempt}, redelivered" if self.redelivered else ""
        return f"<{type(self).__name__} {self.id} from {self.queue!r}: {shown}{again}>"


class Message(Received, gc=False, eq=False):
    """A message of an asynchronous client. What is done first with it counts: settling it again does nothing."""

    async def ack(self, *, confirm: bool = False) -> None:
        """It is done, and will not come again.

        Returns once that is queued, to be sent at the end of this turn of the loop; with `confirm` once it is durable.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours, and may come again.
        """
        subscription = self.parcel.subscription
        if self.settled or confirm:
            await subscription.settle(self, None, confirm=confirm)
            return
        self.settled = True
        number = self.delivery
        if number == subscription.ack_end:  # the common case: it follows the message that was acked before it
            subscription.ack_end = number + 1
        else:
            subscription.ack(number)

    async def nack(self, *, delay: Duration | None = None, reason: str = "", confirm: bool = False) -> None:
        """It failed: it comes again after `delay` (None: as the queue is set), until its attempts are used up.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours.
        """
        await self.parcel.subscription.settle(self, Failure.nack(delay, reason), confirm=confirm)

    async def reject(self, *, reason: str = "", confirm: bool = False) -> None:
        """It can never succeed: it goes to the dead letters at once, with `reason`.

        Raises:
            LeaseLost: with `confirm`: the message is no longer yours.
        """
        await self.parcel.subscription.settle(self, Failure(None, reason, reject=True), confirm=confirm)

    async def extend(self, seconds: Duration = 0.0) -> None:
        """Work on it takes longer: its lease ends `seconds` from now (0: the queue's own lease).

        Returns once that holds.

        Raises:
            LeaseLost: the lease had ended already.
        """
        await self.parcel.subscription.extend(self.delivery, milliseconds(seconds, "seconds"))

    async def reply(self, body: Body, *, headers: MessageHeaders | None = None) -> Receipt:
        """Answer a request; returns once the reply is durable. It does not ack: do that as well, before or after.

        There may be several replies, to a requester that waits for them. To reply and ack together, use a transaction.

        Raises:
            UnknownQueue: the requester is gone.
            UsageError: the message is no request.
        """
        return await self.parcel.subscription.reply(self, body, headers)

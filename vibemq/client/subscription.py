"""One subscription on one connection: what was delivered through it can be settled only through it.

Settlements of one turn of the loop are collected and sent together at its end, neighbours merged into runs. When the
connection breaks the subscription is void: the broker hands its messages out again, so what is settled now settles
nothing.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from vibemq.client.link import Link
from vibemq.client.message import Parcel, Received
from vibemq.client.outgoing import Body, MessageHeaders, Receipt, reply_of
from vibemq.client.publisher import Publisher
from vibemq.client.requests import Pending, Requests
from vibemq.client.settling import Failure, in_pieces, merged, request_of
from vibemq.errors import (
    ClientClosed,
    ConnectionLost,
    LeaseLost,
    MalformedFrame,
    ShuttingDown,
    UnknownSubscription,
    VibeMQError,
    from_wire,
)
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import COUNT_MAX

LOST_RUNS_MAX: Final = 1024
"""So many lost leases a subscription remembers; of what is older it says that it may be lost."""


class Taker(Protocol):
    """Who gets what a subscription brings."""

    def delivered(self, parcel: Parcel) -> None:
        """Messages came."""

    def leases_lost(self, deliveries: tuple[tuple[int, int], ...]) -> None:
        """These messages are no longer this client's."""

    def drained(self) -> None:
        """All that was asked for has come."""

    def cut(self) -> None:
        """The connection broke."""

    def ended(self, error: VibeMQError) -> None:
        """The broker ended the subscription."""


class Subscription:
    """Settles deliveries. The run of acks `ack_first` up to `ack_end` is still growing; 0 means that there is none."""

    __slots__ = (
        "_failure",
        "_loop",
        "_lost",
        "_lost_before",
        "_runs",
        "_scheduled",
        "_subscriptions",
        "_unsent",
        "ack_end",
        "ack_first",
        "credit_bytes_max",
        "group",
        "lease_ms",
        "number",
        "queue",
        "settled",
        "taker",
        "void",
    )

    def __init__(
        self,
        subscriptions: "Subscriptions",
        number: int,
        queue: str,
        lease_ms: int,
        taker: Taker,
        credit_bytes_max: int = COUNT_MAX,
        group: str | None = None,
    ) -> None:
        """The broker's subscription `number` to `queue`."""
        self._subscriptions = subscriptions
        self._loop = asyncio.get_running_loop()
        self.number, self.queue, self.lease_ms, self.taker = number, queue, lease_ms, taker
        self.credit_bytes_max = credit_bytes_max
        """Credit above so many bytes the broker does not keep."""
        self.group = group
        """The name of its group, where it has one."""
        self.void = False
        self.ack_first = self.ack_end = 0
        self.settled = 0
        """How many deliveries were settled, up to the last `flush`."""
        self._runs: list[tuple[int, int]] = []
        self._failure: Failure | None = None  # how the deliveries in _runs are settled; None: acked
        self._unsent: list[m.Ack | m.Nack] = []
        self._scheduled = False
        self._lost: deque[tuple[int, int]] = deque()
        self._lost_before = 0

    def leases_lost(self, deliveries: tuple[tuple[int, int], ...]) -> None:
        """The broker took these back: settling them settles nothing, also where that is on its way already."""
        self._lost.extend(deliveries)
        while len(self._lost) > LOST_RUNS_MAX:
            self._lost_before = max(self._lost_before, self._lost.popleft()[1])
        self.taker.leases_lost(deliveries)

    def ack(self, number: int) -> None:
        """Ack a delivery that does not follow the one acked before."""
        if self.void:
            self._subscriptions.stats.acks_void += 1
            return
        if self._failure is not None:
            self._end_group(None)
        elif self.ack_end:
            self._runs.append((self.ack_first, self.ack_end))
        self.ack_first, self.ack_end = number, number + 1
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def fail(self, number: int, failure: Failure) -> None:
        """Nack or reject a delivery."""
        if self.void:
            self._subscriptions.stats.acks_void += 1
            return
        if failure != self._failure:
            self._end_group(failure)
        self._runs.append((number, number + 1))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def _end_group(self, failure: Failure | None) -> None:
        """What follows is settled in another way, `failure`: make requests of what there is."""
        if self.ack_end:
            self._runs.append((self.ack_first, self.ack_end))
            self.ack_first = self.ack_end = 0
        runs, self._runs = self._runs, []
        if runs:
            runs = merged(runs)
            self.settled += sum(end - first for first, end in runs)
            self._unsent += [request_of(self.number, self._failure, piece) for piece in in_pieces(runs)]
        self._failure = failure

    def flush(self) -> None:
        """Send what was settled."""
        self._scheduled = False
        self._end_group(None)
        unsent, self._unsent = self._unsent, []
        if unsent and not self.void:
            self._subscriptions.send([buffer for request in unsent for buffer in binary.encode_command(request)])

    async def settle(self, message: Received, failure: Failure | None, *, confirm: bool) -> None:
        """Settle a message, or with `confirm` wait until an earlier settlement of it is durable."""
        if message.settled:
            if confirm:
                await self._confirm_earlier(message.delivery)
            return
        message.settled = True
        if confirm:
            await self.settle_confirmed([(message.delivery, message.delivery + 1)], failure)
        elif failure is None:
            self.ack(message.delivery)
        else:
            self.fail(message.delivery, failure)

    async def settle_confirmed(self, runs: list[tuple[int, int]], failure: Failure | None) -> None:
        """Settle runs of deliveries and return when that is durable.

        Raises:
            LeaseLost: some of them were no longer this client's; the others are settled.
        """
        self.flush()
        self._check()
        pieces = list(in_pieces(runs))
        if len(pieces) == 1:  # nearly always, and this sends it at once
            await self._settle_piece(pieces[0], failure)
        else:
            await asyncio.gather(*(self._settle_piece(piece, failure) for piece in pieces))

    async def _settle_piece(self, piece: tuple[tuple[int, int], ...], failure: Failure | None) -> None:
        self.settled += sum(end - first for first, end in piece)  # not before it is sent: a pull may be given up then
        await self._subscriptions.requests.call(
            lambda number: request_of(self.number, failure, piece, number), what="ack", lost=_lost()
        )

    async def _confirm_earlier(self, number: int) -> None:
        """Wait for a settlement that asked for no answer: had it come too late, the broker said so before."""
        self.flush()
        self._check()
        await self._subscriptions.requests.call(lambda request: m.Flush(request=request), what="ack", lost=_lost())
        if number < self._lost_before or any(first <= number < end for first, end in self._lost):
            raise LeaseLost("the lease of this message had ended when it was settled: it may come again")

    async def extend(self, number: int, lease_ms: int) -> None:
        """Give a delivery a new lease.

        Raises:
            LeaseLost: it had ended.
        """
        self._check()
        runs = ((number, number + 1),)
        await self._subscriptions.requests.call(
            lambda request: m.Extend(subscription=self.number, deliveries=runs, lease_ms=lease_ms, request=request),
            what="extend",
            lost=_lost(),
        )

    async def reply(self, message: Received, body: Body, headers: MessageHeaders | None) -> Receipt:
        """Send a reply to whoever has requested it.

        Raises:
            UnknownQueue: the requester is gone.
            UsageError: nobody has requested one.
        """
        queue, values = reply_of(message.headers, headers)
        publisher = self._subscriptions.publisher
        if publisher.room_messages <= 0 or publisher.room_bytes <= 0:
            await publisher.room()
        return await publisher.add(queue, body, values)

    def extend_buffered(self, runs: list[tuple[int, int]]) -> None:
        """Keep what the application has not seen yet: give it the queue's own lease again."""
        if not self.void:
            for piece in in_pieces(runs):
                self._subscriptions.send(binary.encode_command(m.Extend(subscription=self.number, deliveries=piece)))

    def credit(self, messages: int, size: int, handed: int, wait_ms: int = -1) -> None:
        """Let the broker send more."""
        if not self.void:
            self._subscriptions.send(
                binary.encode_command(
                    m.Credit(subscription=self.number, messages=messages, bytes=size, handed=handed, wait_ms=wait_ms)
                )
            )

    async def unsubscribe(self) -> None:
        """Send what was settled, then give the rest back; returns when all of that is durable."""
        self.flush()
        if not self.void:
            self.void = True
            await self._subscriptions.unsubscribe(self.number)

    def make_void(self) -> None:
        """The connection is gone, or the subscription ended."""
        self._end_group(None)
        unsent, self._unsent = self._unsent, []
        self._subscriptions.stats.acks_void += sum(
            end - first for request in unsent for first, end in request.deliveries
        )
        self.void = True

    def _check(self) -> None:
        if self.void:
            raise _lost()


def _lost() -> LeaseLost:
    return LeaseLost(
        "the connection or the subscription through which this message came has ended: whether it was settled is not "
        "known, and it may come again"
    )


class Subscriptions:
    """The subscriptions of the present connection, by number."""

    def __init__(self, link: Link, requests: Requests, publisher: Publisher) -> None:
        """Hand what comes over `link` to whom it is for; replies to it go by `publisher`."""
        self._link = link
        self._present: dict[int, Subscription] = {}
        self.requests = requests
        self.publisher = publisher
        self.stats = publisher.stats
        link.handlers[m.Deliver] = self._deliver
        link.handlers[m.Drained] = self._drained
        link.handlers[m.LeasesLost] = self._leases_lost
        link.handlers[m.Ended] = self._ended
        link.on_cut.append(self._cut)

    def send(self, buffers: list[bytes | memoryview]) -> None:
        """Send on the connection of these subscriptions."""
        self._link.send(buffers)

    def add(self, result: object, taker: Taker) -> Subscription:
        """The subscription that the answer `result` to a Subscribe tells of."""
        facts = result if isinstance(result, dict) else {}
        number, queue, lease_ms = facts.get("subscription"), facts.get("queue"), facts.get("lease_ms", 0)
        if not isinstance(number, int) or not isinstance(queue, str) or not isinstance(lease_ms, int):
            raise MalformedFrame(f"the broker answered a subscribe with {result!r}")
        credit_bytes_max = facts.get("credit_bytes_max", COUNT_MAX)  # an older broker does not say
        if not isinstance(credit_bytes_max, int):
            raise MalformedFrame(f"the broker answered a subscribe with {result!r}")
        group = facts.get("group")
        name = group if isinstance(group, str) and group else None
        subscription = Subscription(self, number, queue, lease_ms, taker, credit_bytes_max, name)
        self._present[number] = subscription
        return subscription

    async def unsubscribe(self, number: int) -> None:
        """End a subscription; from now on nothing of it reaches its taker. A broken connection ends it as well."""
        self._present.pop(number, None)
        gone = ConnectionLost("the connection broke")
        try:
            await self.requests.call(
                lambda request: m.Unsubscribe(request=request, subscription=number), what="unsubscribe", lost=gone
            )
        except (ConnectionLost, UnknownSubscription, ShuttingDown, ClientClosed):
            return

    def abandon(self, number: int) -> None:
        """End a subscription that nobody waits for."""
        self._present.pop(number, None)
        self.requests.start(
            Pending(lambda request: m.Unsubscribe(request=request, subscription=number), _ignore, _ignore, _nothing)
        )

    def flush(self) -> None:
        """Send everything that was settled."""
        for subscription in self._present.values():
            subscription.flush()

    def _deliver(self, reply: m.Deliver) -> None:
        subscription = self._present.get(reply.subscription)
        if subscription is not None:  # else it crossed the Unsubscribe, and goes back by that
            subscription.taker.delivered(Parcel(subscription, reply))

    def _drained(self, reply: m.Drained) -> None:
        subscription = self._present.get(reply.subscription)
        if subscription is not None:
            subscription.taker.drained()

    def _leases_lost(self, reply: m.LeasesLost) -> None:
        subscription = self._present.get(reply.subscription)
        if subscription is not None:
            subscription.leases_lost(reply.deliveries)

    def _ended(self, reply: m.Ended) -> None:
        subscription = self._present.pop(reply.subscription, None)
        if subscription is not None:
            subscription.make_void()
            subscription.taker.ended(from_wire(reply.code, reply.text))

    def _cut(self) -> None:
        present, self._present = self._present, {}
        for subscription in present.values():
            subscription.make_void()
            subscription.taker.cut()


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

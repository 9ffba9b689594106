"""Publishing: single messages become batches, batches are kept until they are answered.

    publish() -> forming, by queue --end of the loop's turn--> queued --window--> sent --Confirmed or Failed--> done
                                                                  ^                 |
                                                                  +-- connection ---+
                                                                      breaks

A batch gets its producer sequences when it is formed, and keeps them: sent again after a reconnect, in the old order
and before anything new, the broker recognises what it has already.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, repeat
from typing import Final, TypeAlias, cast

import msgspec

from vibemq.batch import MESSAGES_MAX, HeaderValue, pack, pack_headers
from vibemq.client.link import Link
from vibemq.client.options import Options
from vibemq.client.stats import Stats
from vibemq.errors import LimitExceeded, RequestTimeout, ShuttingDown, UsageError, VibeMQError, from_wire
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import check_name

COALESCED_BYTES_MAX: Final = 1024 * 1024
"""Above this, what was published one by one goes into several batches: the broker stores one while the next travels."""
FRAME_OVERHEAD: Final = binary.PUBLISH.size + 255
"""What a frame has besides the batch: fixed fields and the longest name."""
BATCH_OVERHEAD: Final = 8
MESSAGE_OVERHEAD: Final = 8
"""What a message adds to the columns of its batch, at most."""

MessageHeaders: TypeAlias = Mapping[str, HeaderValue]
Body: TypeAlias = bytes | bytearray | memoryview
"""What is not bytes is copied at the call."""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """A message is durable. `duplicate`: an earlier try had stored it already."""

    queue: str
    sequence: int
    offset: int
    batch_index: int
    duplicate: bool

    @property
    def id(self) -> str:
        """The name of the message, for `vibemq why` and in Message.id."""
        return f"{self.offset}-{self.batch_index}"


class Outgoing:
    """A batch without an answer. `futures` wait for one message each, or `whole` for all of them."""

    __slots__ = (
        "abandoned",
        "count",
        "data",
        "expires",
        "futures",
        "queue",
        "record_bytes",
        "sent",
        "sequence",
        "whole",
    )

    def __init__(self, queue: str, sequence: int, data: bytes, count: int, record_bytes: int, expires: float) -> None:
        """Messages `sequence` and on of this producer."""
        self.queue, self.sequence, self.data, self.count = queue, sequence, data, count
        self.record_bytes, self.expires = record_bytes, expires
        self.futures: list[asyncio.Future[Receipt]] = []
        self.whole: asyncio.Future[list[Receipt]] | None = None
        self.sent = self.abandoned = False

    def confirmed(self, reply: m.Confirmed) -> None:
        """Tell everybody who waits. Who was cancelled meanwhile is passed over."""
        numbers = count(reply.sequence)
        receipts = map(
            Receipt, repeat(self.queue), numbers, repeat(reply.offset), range(self.count), repeat(reply.duplicate)
        )
        if self.whole is not None:
            if not self.whole.done():
                self.whole.set_result(list(receipts))
            return
        for future, receipt in zip(self.futures, receipts, strict=True):
            try:
                future.set_result(receipt)
            except asyncio.InvalidStateError:
                continue

    def failed(self, error: VibeMQError) -> None:
        """Tell everybody who waits."""
        for future in self.futures if self.whole is None else [self.whole]:
            if not future.done():
                future.set_exception(error)


class Forming:
    """What was published to one queue in this turn of the loop."""

    __slots__ = ("bodies", "futures", "headers")

    def __init__(self) -> None:
        """Begin empty."""
        self.bodies: list[bytes] = []
        self.headers: list[tuple[int, MessageHeaders | None]] | None = None
        """Size and values, from the first message that has any."""
        self.futures: list[asyncio.Future[Receipt]] = []


class Publisher:
    """All publishes of a client."""

    def __init__(self, link: Link, options: Options, stats: Stats) -> None:
        """Publish over `link`."""
        self._loop = asyncio.get_running_loop()
        self._new_future = self._loop.create_future
        self._link = link
        self._timeout = options.timeout
        self._stats = stats
        self._forming: dict[str, Forming] = {}
        self._queued: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._sent_bytes = 0
        self._sequence = 1
        self._timer: asyncio.TimerHandle | None = None
        self._marks: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.room_messages = options.pending_messages_max
        """How many more messages may be pending: publish() waits for `room` when this or `room_bytes` is used up."""
        self.room_bytes = options.pending_bytes_max
        link.handlers[m.Confirmed] = self._confirmed
        link.on_cut.append(self._cut)
        link.on_closed.append(self._closed)

    # --- from the application --------------------------------------------------------------------------------------

    def add(self, queue: str, body: Body, headers: MessageHeaders | None) -> "asyncio.Future[Receipt]":
        """Take one message; the future is done when it is durable.

        Raises:
            VibeMQError: a name or headers that cannot be, a message above the limit, or the client is closed.
        """
        forming = self._forming.get(queue)
        if forming is None:
            forming = self._form(queue)
        if type(body) is not bytes:
            body = _bytes_of(body)
        size = len(body)
        if headers or forming.headers is not None:
            size += _add_headers(forming, headers)
        if size > COALESCED_BYTES_MAX:
            try:
                self._check_size(size)
            except LimitExceeded:
                if forming.headers is not None:
                    forming.headers.pop()  # they must not become those of the next message
                raise
        self.room_messages -= 1
        self.room_bytes -= size
        forming.bodies.append(body)
        future: asyncio.Future[Receipt] = self._new_future()
        forming.futures.append(future)
        return future

    def add_many(
        self, queue: str, bodies: Sequence[Body], headers: Sequence[MessageHeaders | None] | None
    ) -> list["asyncio.Future[list[Receipt]]"]:
        """Take messages that belong together: in one batch, or as few as the limits allow.

        Raises:
            VibeMQError: a name or headers that cannot be, a message above the limit, or the client is closed.
        """
        self._check(queue)
        if set(map(type, bodies)) == {bytes}:
            plain = cast("Sequence[bytes]", bodies)
        else:
            plain = [_bytes_of(body) for body in bodies]
        sizes = list(map(len, plain))
        if headers is not None:
            if len(headers) != len(bodies):
                raise UsageError(f"publish_many got {len(bodies)} messages and headers for {len(headers)}")
            headers = [dict(one) if one else None for one in headers]
            sizes = [size + len(pack_headers(one)) if one else size for size, one in zip(sizes, headers, strict=True)]
        self._check_size(max(sizes))
        self._seal_forming()
        futures = []
        for first, end in self._cuts(sizes, self._batch_bytes_max):
            some = None if headers is None else headers[first:end]
            batch = self._batch(queue, plain[first:end], some, sum(sizes[first:end]))
            batch.whole = self._loop.create_future()
            futures.append(batch.whole)
            self.room_messages -= batch.count
            self.room_bytes -= batch.record_bytes
        self.pump()
        return futures

    async def room(self) -> None:
        """Wait until a message may be added.

        Raises:
            RequestTimeout: there was no room for as long as a call may take. The message was not sent.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while (self.room_messages <= 0 or self.room_bytes <= 0) and self._link.closed is None:
                    waiter: asyncio.Future[None] = self._new_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise RequestTimeout(
                f"publish: too much waits to be confirmed, and there was no room for {self._timeout:g} s. "
                f"The message was not sent."
            ) from None
        except asyncio.CancelledError:
            self._wake()  # it may have been this one's turn
            raise

    async def answered(self) -> None:
        """Wait until everything that was added so far has its answer."""
        self._seal_forming()
        self.pump()
        if self._sent or self._queued:
            mark: asyncio.Future[None] = self._new_future()
            self._marks.append((self._sequence, mark))
            await mark

    # --- forming batches -------------------------------------------------------------------------------------------

    def _form(self, queue: str) -> Forming:
        self._check(queue)
        if not self._forming:
            self._loop.call_soon(self._flush)
        forming = self._forming[queue] = Forming()
        return forming

    def _check(self, queue: str) -> None:
        if self._link.closed is not None:
            raise self._link.closed
        check_name(queue)

    @property
    def _batch_bytes_max(self) -> int:
        limits = self._link.limits
        return min(limits.frame_bytes_max - FRAME_OVERHEAD, limits.publish_window_bytes) - BATCH_OVERHEAD

    def _check_size(self, size: int) -> None:
        limit = self._batch_bytes_max - MESSAGE_OVERHEAD
        if self._link.limits.message_bytes_max:
            limit = min(limit, self._link.limits.message_bytes_max)
        if size > limit:
            raise LimitExceeded(
                f"a message of {size} bytes, headers included, is above the {limit} that the broker takes: "
                f"nothing was sent. Split it, or store it elsewhere and publish where."
            )

    def _cuts(self, sizes: Sequence[int], bytes_max: int) -> Iterator[tuple[int, int]]:
        """Cut messages of these sizes into batches: (first, end) of each."""
        most = min(self._link.limits.batch_messages_max, MESSAGES_MAX)
        if len(sizes) <= most and sum(sizes) + MESSAGE_OVERHEAD * len(sizes) <= bytes_max:
            yield 0, len(sizes)
            return
        first = total = 0
        for at, size in enumerate(sizes):
            total += size + MESSAGE_OVERHEAD
            if at > first and (total > bytes_max or at - first == most):
                yield first, at
                first, total = at, size + MESSAGE_OVERHEAD
        yield first, len(sizes)

    def _flush(self) -> None:
        self._seal_forming()
        self.pump()

    def _seal_forming(self) -> None:
        if not self._forming:
            return
        forming, self._forming = self._forming, {}
        for queue, one in forming.items():
            if one.bodies:
                self._seal(queue, one)

    def _seal(self, queue: str, one: Forming) -> None:
        sizes = list(map(len, one.bodies))
        headers = one.headers
        if headers is not None:
            sizes = [size + packed for size, (packed, _) in zip(sizes, headers, strict=True)]
        for first, end in self._cuts(sizes, min(COALESCED_BYTES_MAX, self._batch_bytes_max)):
            some = None if headers is None else [values for _, values in headers[first:end]]
            batch = self._batch(queue, one.bodies[first:end], some, sum(sizes[first:end]))
            batch.futures = one.futures[first:end]

    def _batch(
        self, queue: str, bodies: Sequence[bytes], headers: Sequence[MessageHeaders | None] | None, size: int
    ) -> Outgoing:
        data = b"".join(pack(bodies, headers))
        batch = Outgoing(queue, self._sequence, data, len(bodies), size, self._loop.time() + self._timeout)
        self._sequence += batch.count
        self._queued.append(batch)
        if self._timer is None:
            self._timer = self._loop.call_at(batch.expires, self._expire)
        return batch

    # --- to and from the broker ------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what the window and the transport have room for."""
        link, queued, sent = self._link, self._queued, self._sent
        limits = link.limits
        while queued and link.writable and len(sent) < limits.publish_window_batches:
            batch = queued[0]
            size = len(batch.data)
            if sent and self._sent_bytes + size > limits.publish_window_bytes:
                break
            queued.popleft()
            if size > self._batch_bytes_max + BATCH_OVERHEAD:  # formed for another broker, or before its limits changed
                batch.failed(LimitExceeded(f"a batch of {size} bytes is above what the broker now takes"))
                self._answered(batch)
                continue
            number = link.number()
            sent[number] = batch
            self._sent_bytes += size
            self._stats.batches_resent += batch.sent
            batch.sent = True
            oldest = next(iter(sent.values())).sequence
            link.send(binary.encode_publish(number, batch.queue.encode(), batch.sequence, [batch.data], oldest))

    def _confirmed(self, reply: m.Confirmed) -> None:
        batch = self._sent.pop(reply.request, None)
        if batch is None:
            return
        self._sent_bytes -= len(batch.data)
        batch.confirmed(reply)
        self._answered(batch)
        if self._queued:
            self.pump()

    def failed(self, reply: m.Failed) -> bool:
        """Take the refusal of a publish; False when it is not one."""
        batch = self._sent.get(reply.request)
        if batch is None:
            return False
        error = from_wire(reply.code, reply.text)
        if not isinstance(error, ShuttingDown):  # then it stays, to be sent to the next broker
            del self._sent[reply.request]
            self._sent_bytes -= len(batch.data)
            batch.failed(error)
            self._answered(batch)
            self.pump()
        return True

    def _answered(self, batch: Outgoing) -> None:
        self.room_messages += batch.count
        self.room_bytes += batch.record_bytes
        if self._waiters:
            self._wake()
        if self._marks:
            oldest = next(iter(self._sent.values()), None) or next(iter(self._queued), None)
            while self._marks and (oldest is None or self._marks[0][0] <= oldest.sequence):
                _, mark = self._marks.popleft()
                if not mark.done():
                    mark.set_result(None)

    def _wake(self) -> None:
        if self.room_bytes <= 0:
            return
        for _ in range(min(len(self._waiters), self.room_messages)):
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _cut(self) -> None:
        self._queued.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._sent_bytes = 0
        self._drop_abandoned()

    def _drop_abandoned(self) -> None:
        """Forget what nobody waits for and what is on no connection."""
        abandoned = [batch for batch in self._queued if batch.abandoned]
        if abandoned:
            self._queued = deque(batch for batch in self._queued if not batch.abandoned)
            for batch in abandoned:
                self._answered(batch)

    def _expire(self) -> None:
        """Give up on the batches that waited too long. Those on their way keep their place in the window."""
        self._timer = None
        now = self._loop.time()
        for batch in [*self._sent.values(), *self._queued]:
            if batch.abandoned:
                continue
            if batch.expires > now:
                self._timer = self._loop.call_at(batch.expires, self._expire)
                break
            batch.abandoned = True
            known = "It may still be stored." if batch.sent else "It was not sent."
            batch.failed(RequestTimeout(f"publish: not confirmed within {self._timeout:g} s. {known}"))
        self._drop_abandoned()

    def _closed(self, error: VibeMQError) -> None:
        self._seal_forming()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batches = [*self._sent.values(), *self._queued]
        self._sent.clear()
        self._queued.clear()
        for batch in batches:
            known = (
                "the publish was not confirmed; it may still be stored" if batch.sent else "the publish was not sent"
            )
            batch.failed(type(error)(f"{error}: {known}"))
            self._answered(batch)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _add_headers(forming: Forming, headers: MessageHeaders | None) -> int:
    """Keep the headers of the next message, as they are now, and give their size."""
    if forming.headers is None:
        forming.headers = [(0, None)] * len(forming.bodies)
    if not headers:
        forming.headers.append((0, None))
        return 0
    values = dict(headers)
    size = len(pack_headers(values))
    forming.headers.append((size, values))
    return size


def _bytes_of(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise UsageError(f"the body of a message is bytes, not {type(body).__name__}: encode it, as in text.encode()")

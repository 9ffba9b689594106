"""Publishing: single messages become batches.

    publish() -> forming, by route --end of the loop's turn--> outbox

A route is what a batch has one of: the queue or topic, the priority, the times to live and to wait. Messages of one
route stay in the order of the calls.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias, cast

from vibemq.batch import MESSAGES_MAX, pack, pack_headers
from vibemq.client.link import Link
from vibemq.client.options import Options
from vibemq.client.outbox import BATCH_OVERHEAD, Outbox
from vibemq.client.outgoing import Body, MessageHeaders, Outgoing, OutgoingBatch, Receipt, Route, batch_bytes_max
from vibemq.client.stats import Stats
from vibemq.errors import LimitExceeded, RequestTimeout, UsageError, VibeMQError
from vibemq.protocol.fields import HASH_BYTES, check_name, check_topic
from vibemq.protocol.keys import dedup_hash, key_hash

COALESCED_BYTES_MAX: Final = 1024 * 1024
"""Above this, what was published one by one goes into several batches: the broker stores one while the next travels."""
MESSAGE_OVERHEAD: Final = 16
"""What a message adds to the columns of its batch, at most."""
NO_HASH: Final = bytes(HASH_BYTES)
"""Stands for a message without a dedup id among others that have one."""

To: TypeAlias = str | Route
"""Where messages go. A plain name is a route too, that of most messages: to make one for each would take time."""


class Forming:
    """What was published on one route in this turn of the loop."""

    __slots__ = ("bodies", "futures", "hashes", "headers", "keys", "route")

    def __init__(self, route: Route) -> None:
        """Begin empty."""
        self.route = route
        self.bodies: list[bytes] = []
        self.headers: list[tuple[int, MessageHeaders | None]] | None = None
        """Size and values, from the first message that has any."""
        self.keys: list[int] | None = None
        """Hashes, likewise. Who has a key has a header."""
        self.hashes: list[bytes] | None = None
        """Hashes of dedup ids, likewise; who has one has an entry among the headers, be it empty."""
        self.futures: list[asyncio.Future[Receipt]] = []


class Publisher:
    """All publishes of a client."""

    def __init__(self, link: Link, options: Options, stats: Stats) -> None:
        """Publish over `link`."""
        self._loop = self.loop = asyncio.get_running_loop()
        self.stats = stats
        self._new_future = self._loop.create_future
        self._link = link
        self._timeout = options.timeout
        self._forming: dict[To, Forming] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.room_messages = options.pending_messages_max
        """How many more messages may be pending: publish() waits for `room` when this or `room_bytes` is used up."""
        self.room_bytes = options.pending_bytes_max
        link.on_closed.append(self._closing)
        self.outbox = Outbox(link, options.timeout, stats, self._answered)
        link.on_closed.append(self._closed)

    # --- from the application --------------------------------------------------------------------------------------

    def add(
        self,
        to: To,
        body: Body,
        headers: MessageHeaders | None,
        key: str | None = None,
        dedup_id: str | None = None,
    ) -> "asyncio.Future[Receipt]":
        """Take one message; the future is done when it is durable. With a `key` the headers tell it, too.

        Raises:
            VibeMQError: a name or headers that cannot be, a message above the limit, or the client is closed.
        """
        forming = self._forming.get(to)
        if forming is None:
            forming = self._form(to)
        if type(body) is not bytes:
            body = bytes_of(body)
        size = len(body)
        if headers or dedup_id is not None or forming.headers is not None:
            size += _add_headers(forming, headers, key, dedup_id)
        if size > COALESCED_BYTES_MAX:
            try:
                self.check_size(size)
            except LimitExceeded:
                _take_headers_back(forming)  # they must not become those of the next message
                raise
        self.room_messages -= 1
        self.room_bytes -= size
        forming.bodies.append(body)
        future: asyncio.Future[Receipt] = self._new_future()
        forming.futures.append(future)
        return future

    def add_many(
        self,
        route: Route,
        bodies: Sequence[Body],
        headers: Sequence[MessageHeaders | None] | None,
        keys: Sequence[str | None] | None = None,
        dedup_ids: Sequence[str | None] | None = None,
    ) -> list["asyncio.Future[list[Receipt]]"]:
        """Take messages that belong together: in one batch, or as few as the limits allow.

        Raises:
            VibeMQError: a name or headers that cannot be, a message above the limit, or the client is closed.
        """
        self.check(route)
        if set(map(type, bodies)) == {bytes}:
            plain = cast("Sequence[bytes]", bodies)
        else:
            plain = [bytes_of(body) for body in bodies]
        sizes = list(map(len, plain))
        if headers is not None:
            headers = [dict(one) if one else None for one in headers]
            sizes = [size + len(pack_headers(one)) if one else size for size, one in zip(sizes, headers, strict=True)]
        key_hashes = None if keys is None else [0 if key is None else key_hash(key) for key in keys]
        hashes = None if dedup_ids is None else [NO_HASH if one is None else dedup_hash(one) for one in dedup_ids]
        self.check_size(max(sizes))
        self._seal_forming()
        futures = []
        for first, end in self._cuts(sizes, batch_bytes_max(self._link.limits), hashed=bool(hashes)):
            batch = self._batch(
                route,
                plain[first:end],
                None if headers is None else headers[first:end],
                key_hashes and key_hashes[first:end],
                hashes and hashes[first:end],
                sum(sizes[first:end]),
            )
            batch.whole = self._loop.create_future()
            futures.append(batch.whole)
            self.room_messages -= batch.count
            self.room_bytes -= batch.published_bytes
        self.outbox.pump()
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
                f"The message was not sent.{self.outbox.blocked}"
            ) from None
        except asyncio.CancelledError:
            self._wake()  # it may have been this one's turn
            raise

    async def answered(self) -> None:
        """Wait until everything that was added so far has its answer."""
        self._flush()
        await self.outbox.answered()

    # --- forming batches -------------------------------------------------------------------------------------------

    def _form(self, to: To) -> Forming:
        route = Route(to) if isinstance(to, str) else to
        self.check(route)
        if not self._forming:
            self._loop.call_soon(self._flush)
        forming = self._forming[to] = Forming(route)
        return forming

    def check(self, route: Route) -> None:
        """Check where messages are to go.

        Raises:
            VibeMQError: a name that cannot be, or the client is closed.
        """
        if self._link.closed is not None:
            raise self._link.closed
        if route.to_topic:
            check_topic(route.name)
        else:
            check_name(route.name)

    def check_size(self, size: int) -> None:
        """Check the size of a message, headers included.

        Raises:
            LimitExceeded: it is above what the broker takes.
        """
        limits = self._link.limits
        limit = batch_bytes_max(limits) - BATCH_OVERHEAD - MESSAGE_OVERHEAD - HASH_BYTES
        if limits.message_bytes_max:
            limit = min(limit, limits.message_bytes_max)
        if size > limit:
            raise LimitExceeded(
                f"a message of {size} bytes, headers included, is above the {limit} that the broker takes: "
                f"nothing was sent. Split it, or store it elsewhere and publish where."
            )

    def _cuts(self, sizes: Sequence[int], bytes_max: int, *, hashed: bool) -> Iterator[tuple[int, int]]:
        """Cut messages of these sizes into batches: (first, end) of each."""
        most = min(self._link.limits.batch_messages_max, MESSAGES_MAX)
        overhead = MESSAGE_OVERHEAD + (HASH_BYTES if hashed else 0)
        if len(sizes) <= most and sum(sizes) + overhead * len(sizes) + BATCH_OVERHEAD <= bytes_max:
            yield 0, len(sizes)
            return
        first, total = 0, BATCH_OVERHEAD
        for at, size in enumerate(sizes):
            total += size + overhead
            if at > first and (total > bytes_max or at - first == most):
                yield first, at
                first, total = at, BATCH_OVERHEAD + size + overhead
        yield first, len(sizes)

    def _flush(self) -> None:
        self._seal_forming()
        self.outbox.pump()

    def _seal_forming(self) -> None:
        if not self._forming:
            return
        forming, self._forming = self._forming, {}
        for one in forming.values():
            if one.bodies:
                self._seal(one)

    def _seal(self, one: Forming) -> None:
        sizes = list(map(len, one.bodies))
        headers, keys, hashes = one.headers, one.keys, one.hashes
        if headers is not None:
            sizes = [size + packed for size, (packed, _) in zip(sizes, headers, strict=True)]
        bytes_max = min(COALESCED_BYTES_MAX, batch_bytes_max(self._link.limits))
        for first, end in self._cuts(sizes, bytes_max, hashed=hashes is not None):
            batch = self._batch(
                one.route,
                one.bodies[first:end],
                None if headers is None else [values for _, values in headers[first:end]],
                keys and keys[first:end],
                hashes and hashes[first:end],
                sum(sizes[first:end]),
            )
            batch.futures = one.futures[first:end]

    def _batch(
        self,
        route: Route,
        bodies: Sequence[bytes],
        headers: Sequence[MessageHeaders | None] | None,
        keys: Sequence[int] | None,
        hashes: Sequence[bytes] | None,
        size: int,
    ) -> OutgoingBatch:
        data = b"".join(pack(bodies, headers, route.priority, route.ttl_ms, keys))
        dedup = b"".join(hashes) if hashes and any(map(NO_HASH.__ne__, hashes)) else b""
        now = self._loop.time()
        batch = OutgoingBatch(route, data, len(bodies), size, now, now + self._timeout, dedup)
        self.outbox.add(batch)
        return batch

    # --- room ------------------------------------------------------------------------------------------------------

    def _answered(self, batch: Outgoing) -> None:
        self.room_messages += batch.published
        self.room_bytes += batch.published_bytes
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        if self.room_bytes <= 0:
            return
        for _ in range(min(len(self._waiters), self.room_messages)):
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _closing(self, _: VibeMQError) -> None:
        self._seal_forming()  # to the outbox, which tells all that waits there

    def _closed(self, _: VibeMQError) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _add_headers(forming: Forming, headers: MessageHeaders | None, key: str | None, dedup_id: str | None) -> int:
    """Keep the headers, the key and the dedup id of the next message, as they are now, and give the headers' size."""
    values = dict(headers) if headers else None
    size = len(pack_headers(values)) if values else 0
    number = 0 if key is None else key_hash(key)
    hashed = NO_HASH if dedup_id is None else dedup_hash(dedup_id)
    if forming.headers is None:
        forming.headers = [(0, None)] * len(forming.bodies)
    forming.headers.append((size, values))
    if number and forming.keys is None:
        forming.keys = [0] * len(forming.bodies)
    if forming.keys is not None:
        forming.keys.append(number)
    if dedup_id is not None and forming.hashes is None:
        forming.hashes = [NO_HASH] * len(forming.bodies)
    if forming.hashes is not None:
        forming.hashes.append(hashed)
    return size


def _take_headers_back(forming: Forming) -> None:
    if forming.headers is not None:
        forming.headers.pop()
    if forming.keys is not None:
        forming.keys.pop()
    if forming.hashes is not None:
        forming.hashes.pop()


def bytes_of(body: object) -> bytes:
    """A body, copied where it is not bytes.

    Raises:
        UsageError: it is no bytes at all.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise UsageError(f"the body of a message is bytes, not {type(body).__name__}: encode it, as in text.encode()")

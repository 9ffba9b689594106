"""The commit of a transaction: what is in it, and what comes back."""

import asyncio
from collections.abc import Callable, Sequence

from vibemq.batch import pack
from vibemq.client.outgoing import MessageHeaders, Outgoing, Place, Receipt, Route, publish_frame, receipts_of
from vibemq.client.publisher import NO_HASH
from vibemq.errors import MalformedFrame, VibeMQError
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.frames import HEAD_BYTES


class Part:
    """What goes as one batch. `slots` are the places of its messages among all that the transaction publishes."""

    __slots__ = ("bodies", "hashes", "headers", "keys", "route", "slots")

    def __init__(self, route: Route) -> None:
        """Begin empty."""
        self.route = route
        self.bodies: list[bytes] = []
        self.headers: list[MessageHeaders | None] = []
        self.keys: list[int] = []
        self.hashes: list[bytes] = []
        self.slots: list[int] = []

    def sealed(self) -> tuple[bytes, bytes]:
        """The batch, and the hashes of the dedup ids, if there are any."""
        route = self.route
        data = b"".join(pack(self.bodies, self.headers, route.priority, route.ttl_ms, self.keys))
        return data, b"".join(self.hashes) if any(map(NO_HASH.__ne__, self.hashes)) else b""


class OutgoingCommit(Outgoing):
    """The commit of an attempt, without an answer."""

    __slots__ = ("_acks", "_batches", "_epoch", "_parts", "done")

    def __init__(
        self,
        epoch: int,
        parts: Sequence[Part],
        batches: Sequence[tuple[bytes, bytes]],
        acks: Sequence[m.TransactionAck],
        began: float,
        expires: float,
    ) -> None:
        """Commit attempt `epoch`, with `batches` as the parts give them. The program asked for it at `began`."""
        places: dict[Place, None] = dict.fromkeys(part.route.place for part in parts)
        super().__init__(tuple(places), 0, 0, began, expires)
        self._epoch, self._parts, self._batches, self._acks = epoch, parts, batches, acks
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Receipt]] = loop.create_future()
        self.size = sum(map(len, self.frame(0, 0, loop.time))) - HEAD_BYTES

    def fits(self, limits: m.Welcome) -> bool:
        """Whether its frame does."""
        return self.size <= limits.frame_bytes_max

    def frame(self, number: int, oldest: int, clock: Callable[[], float]) -> list[bytes | memoryview]:
        """The commit."""
        publishes = [
            publish_frame(part.route, [data], dedup, self.began, clock)
            for part, (data, dedup) in zip(self._parts, self._batches, strict=True)
        ]
        return binary.encode_commit(number, self._epoch, self.sequence, publishes, self._acks, oldest)

    def confirmed(self, reply: m.Confirmed | m.Committed) -> None:
        """It is carried out: the receipts of all messages, in the order in which they were published."""
        if not isinstance(reply, m.Committed) or len(reply.stored) != len(self._parts):
            raise MalformedFrame(f"the broker answered a commit of {len(self._parts)} batches with {reply}")
        receipts: dict[int, Receipt] = {}
        for part, stored in zip(self._parts, reply.stored, strict=True):
            made = receipts_of(
                part.route, len(part.bodies), reply.offset, stored, stored.index, duplicate=reply.duplicate
            )
            receipts.update(zip(part.slots, made, strict=True))
        if not self.done.done():
            self.done.set_result([receipts[slot] for slot in range(len(receipts))])

    def failed(self, error: VibeMQError) -> None:
        """It was refused, or given up."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # seen, also where nobody waits any more

    @property
    def fate(self) -> str:
        """What is known of it while it has no answer."""
        if self.blocked:
            return "a queue that it publishes to is full, or takes no more for now; nothing of it was done"
        return "it may still be carried out" if self.sent else "it was not sent, and nothing of it was done"

    @property
    def expired(self) -> str:
        """What to say when it was not answered in time."""
        return "commit: no answer"

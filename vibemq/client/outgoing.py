"""What is published: where it goes, the batch it travels in, and the receipt that comes back."""

import asyncio
from collections.abc import Iterator, Mapping
from itertools import count, repeat
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from vibemq.batch import PRIORITY_MAX, PRIORITY_NORMAL, Batch, HeaderValue
from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError, VibeMQError
from vibemq.protocol import messages as m

MessageHeaders: TypeAlias = Mapping[str, HeaderValue]
Body: TypeAlias = bytes | bytearray | memoryview
"""What is not bytes is copied at the call."""
Priority: TypeAlias = int | Literal["low", "normal", "high", "critical"]
"""0 to 9, or a name: low is 1, normal 4 (which is what a message has of which nothing is said), high 7, critical 9."""
Place: TypeAlias = tuple[str, bool]
"""A name, and whether it is that of a topic: what blocks, blocks as a whole."""

PRIORITIES: Final[Mapping[str, int]] = {"low": 1, "normal": PRIORITY_NORMAL, "high": 7, "critical": 9}
KEY_HEADER: Final = "key"
TOPIC_HEADER: Final = "topic"


class Route(NamedTuple):
    """What the messages of one batch have in common."""

    name: str
    to_topic: bool = False
    priority: int = PRIORITY_NORMAL
    ttl_ms: int = 0

    @classmethod
    def of(cls, name: str, priority: Priority | None, ttl: Duration | None, *, to_topic: bool = False) -> "Route":
        """The route of messages for which an application says this.

        Raises:
            UsageError: a priority or a time to live that cannot be.
        """
        ttl_ms = 0 if ttl is None else milliseconds(ttl, "ttl")
        if ttl is not None and not ttl_ms:
            raise UsageError(
                f"ttl is {ttl}: it must be from 1 ms to about 35 years; leave it out where a message may wait for ever"
            )
        return cls(name, to_topic, PRIORITY_NORMAL if priority is None else priority_number(priority), ttl_ms)

    @property
    def place(self) -> Place:
        """Where it goes."""
        return self.name, self.to_topic


def priority_number(priority: object) -> int:
    """The priority that an application says, as it travels.

    Raises:
        UsageError: there is no such priority.
    """
    number = PRIORITIES.get(priority) if isinstance(priority, str) else priority
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= PRIORITY_MAX:
        raise UsageError(f"priority is {priority!r}: write 0 to {PRIORITY_MAX}, or one of {', '.join(PRIORITIES)}")
    return number


def stamped(headers: MessageHeaders | None, key: object, topic: str | None) -> MessageHeaders | None:
    """The headers with the key and the topic in them: a consumer sees both there.

    Raises:
        UsageError: a key that is no text, or empty.
    """
    if key is not None:
        if not isinstance(key, str) or not key:
            raise UsageError(f"key is {key!r}: a key is text; None says that a message has none")
        headers = {**(headers or {}), KEY_HEADER: key}
    return headers if topic is None else {**(headers or {}), TOPIC_HEADER: topic}


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """A message is durable. `duplicate`: an earlier try had stored it already.

    `dropped`: it is not, as the queue is full and drops what is new. It has no sequence then; its id tells the broker's
    record of that. What went to a topic has the topic as `queue` and no sequence, for each queue gives it its own.
    """

    queue: str
    sequence: int
    offset: int
    batch_index: int
    duplicate: bool
    dropped: bool = False

    @property
    def id(self) -> str:
        """The name of the message, for `vibemq why` and in Message.id."""
        return f"{self.offset}-{self.batch_index}"


class Outgoing:
    """A batch without an answer. `futures` wait for one message each, or `whole` for all of them.

    Messages that were published one by one travel together only for speed: when their queue has no room for all of them
    the first `front` are tried, and what has its answer leaves the batch. `published` and `published_bytes` count what
    was in it at first.

    `order` counts the batches of this client. `sequence` is the producer's number of its first message, and 0 until it
    is sent. `sent`: the broker may have stored it. `blocked`: it has not, and waits for its queue. `waited`: it
    had to, at least once.
    """

    __slots__ = (
        "abandoned",
        "blocked",
        "count",
        "data",
        "expires",
        "front",
        "futures",
        "order",
        "published",
        "published_bytes",
        "route",
        "sent",
        "sent_bytes",
        "sequence",
        "waited",
        "whole",
    )

    def __init__(self, route: Route, data: bytes, count: int, record_bytes: int, expires: float) -> None:
        """`count` messages as `data`, given up at loop time `expires`."""
        self.route, self.data, self.expires = route, data, expires
        self.count = self.front = self.published = count
        self.published_bytes = record_bytes
        self.order = self.sequence = self.sent_bytes = 0
        self.futures: list[asyncio.Future[Receipt]] = []
        self.whole: asyncio.Future[list[Receipt]] | None = None
        self.sent = self.blocked = self.waited = self.abandoned = False

    @property
    def payload(self) -> bytes:
        """The bytes of the messages that are tried."""
        return self.data if self.front == self.count else b"".join(Batch(self.data).cut(0, self.front))

    def try_less(self) -> bool:
        """There was no room: try half of that next. False: it was one message, or they are to be stored together."""
        if self.whole is not None or self.front == 1:
            return False
        self.front //= 2
        return True

    def go_on(self) -> bool:
        """The front has its answer: go on with what is behind it, if there is something."""
        if self.front == self.count:
            return False
        rest = self.count - self.front
        self.data = b"".join(Batch(self.data).cut(self.front, rest))
        del self.futures[: self.front]
        self.count, self.front = rest, min(self.front, rest)
        return True

    def confirmed(self, reply: m.Confirmed) -> None:
        """Tell those who wait for the front. Who was cancelled meanwhile is passed over."""
        receipts = self._receipts(reply)
        if self.whole is not None:
            if not self.whole.done():
                self.whole.set_result(list(receipts))
            return
        for future, receipt in zip(self.futures[: self.front], receipts, strict=True):
            try:
                future.set_result(receipt)
            except asyncio.InvalidStateError:
                continue

    def _receipts(self, reply: m.Confirmed) -> Iterator[Receipt]:
        stored = self.front - reply.dropped
        numbers = repeat(0) if self.route.to_topic else count(reply.sequence)
        name, offset, duplicate = repeat(self.route.name), repeat(reply.offset), repeat(reply.duplicate)
        if not reply.dropped:
            return map(Receipt, name, numbers, offset, range(stored), duplicate)
        return (
            Receipt(self.route.name, next(numbers), reply.offset, at, reply.duplicate)
            if at < stored
            else Receipt(self.route.name, 0, reply.offset, at, reply.duplicate, dropped=True)
            for at in range(self.front)
        )

    def failed(self, error: VibeMQError) -> None:
        """Tell everybody who waits."""
        for future in self.futures if self.whole is None else [self.whole]:
            if not future.done():
                future.set_exception(error)

    @property
    def fate(self) -> str:
        """What is known of it while it has no answer."""
        if self.blocked:
            what = "topic" if self.route.to_topic else "queue"
            return f"the {what} {self.route.name!r} is full, or takes no more for now; it was not stored"
        return "it may still be stored" if self.sent else "it was not sent"

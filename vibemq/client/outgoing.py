"""What is published: where it goes, the batch it travels in, and the receipt that comes back."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count, repeat
from typing import Final, Literal, NamedTuple, TypeAlias, TypedDict

import msgspec

from vibemq.batch import PRIORITY_MAX, PRIORITY_NORMAL, Batch, HeaderValue
from vibemq.client.moment import Moment, moment, waiting_time
from vibemq.durations import Duration, milliseconds
from vibemq.errors import UsageError, VibeMQError
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import HASH_BYTES

MessageHeaders: TypeAlias = Mapping[str, HeaderValue]
Body: TypeAlias = bytes | bytearray | memoryview
"""What is not bytes is copied at the call."""
Priority: TypeAlias = int | Literal["low", "normal", "high", "critical"]
"""0 to 9, or a name: low is 1, normal 4 (which is what a message has of which nothing is said), high 7, critical 9."""
Place: TypeAlias = tuple[str, bool]
"""A name, and whether it is that of a topic: what blocks, blocks as a whole."""

PRIORITIES: Final[Mapping[str, int]] = {"low": 1, "normal": PRIORITY_NORMAL, "high": 7, "critical": 9}
FRAME_OVERHEAD: Final = binary.PUBLISH.size + 255 + binary.TIME.size + binary.COUNT.size
"""What a frame has besides batch and hashes, at most: fixed fields, the longest name, a time to wait."""
KEY_HEADER: Final = "key"
TOPIC_HEADER: Final = "topic"
REPLY_TO_HEADER: Final = "reply-to"
"""The queue that a requester reads replies from."""
CORRELATION_HEADER: Final = "correlation-id"
"""Which of its requests it is: the same in request and reply."""


class TopicOptions(TypedDict, total=False):
    """What may be said of a message besides where it goes; Client.publish() explains each."""

    headers: MessageHeaders | None
    priority: Priority | None
    ttl: Duration | None
    key: str | None
    delay: Duration | None
    deliver_at: Moment | None


class PublishOptions(TopicOptions, total=False):
    """Likewise of a message that goes to a queue."""

    dedup_id: str | None


class TopicManyOptions(TypedDict, total=False):
    """What may be said of several messages; `headers` and `keys` have an entry for each."""

    headers: Sequence[MessageHeaders | None] | None
    priority: Priority | None
    ttl: Duration | None
    keys: Sequence[str | None] | None
    delay: Duration | None
    deliver_at: Moment | None


class PublishManyOptions(TopicManyOptions, total=False):
    """Likewise of several messages that go to a queue; `dedup_ids` have an entry for each, too."""

    dedup_ids: Sequence[str | None] | None


class Route(NamedTuple):
    """What the messages of one batch have in common."""

    name: str
    to_topic: bool = False
    priority: int = PRIORITY_NORMAL
    ttl_ms: int = 0
    delay_ms: int = 0
    due_us: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        priority: Priority | None = None,
        ttl: Duration | None = None,
        delay: Duration | None = None,
        deliver_at: Moment | None = None,
        *,
        to_topic: bool = False,
    ) -> "Route":
        """The route of messages for which an application says this.

        Raises:
            UsageError: a priority, a time to live, or a time to wait that cannot be.
        """
        ttl_ms = 0 if ttl is None else milliseconds(ttl, "ttl")
        if ttl is not None and not ttl_ms:
            raise UsageError(
                f"ttl is {ttl}: it must be from 1 ms to about 35 years; leave it out where a message may wait for ever"
            )
        number = PRIORITY_NORMAL if priority is None else priority_number(priority)
        return cls(name, to_topic, number, ttl_ms, *waiting_time(delay, deliver_at))

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


def check_dedup_id(dedup_id: object) -> None:
    """Check a dedup id that an application gave.

    Raises:
        UsageError: it is no text, or empty.
    """
    if not isinstance(dedup_id, str) or not dedup_id:
        raise UsageError(f"dedup_id is {dedup_id!r}: it is text; None says that a message has none")


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


def reply_of(request: Mapping[str, HeaderValue], headers: MessageHeaders | None) -> tuple[str, MessageHeaders]:
    """The queue for a reply to a message with the headers `request`, and the headers of the reply.

    Raises:
        UsageError: nobody waits for a reply to that message.
    """
    queue, correlation = request.get(REPLY_TO_HEADER), request.get(CORRELATION_HEADER)
    if not isinstance(queue, str) or not queue:
        raise UsageError(f"this message is no request: it has no header {REPLY_TO_HEADER}")
    return queue, {**(headers or {}), CORRELATION_HEADER: correlation}


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """A message is durable. `duplicate`: it was there already, stored by an earlier try, or with the same dedup id.

    In the latter case it was another message, `duplicate_of`; `id` is the one that is there, so these are the same.

    `dropped`: it is not, as the queue is full and drops what is new. It has no sequence then; its id tells the broker's
    record of that. What went to a topic has the topic as `queue` and no sequence, for each queue gives it its own. What
    waits for its time has none yet.
    """

    queue: str
    sequence: int
    offset: int
    batch_index: int
    duplicate: bool
    dropped: bool = False
    due_us: int = 0
    """When it will be ready, in microseconds since 1970; 0: it is."""
    was_known: bool = False
    """Whether its dedup id was that of another message."""

    @property
    def id(self) -> str:
        """The name of the message, for `vibemq why` and in Message.id."""
        return f"{self.offset}-{self.batch_index}"

    @property
    def duplicate_of(self) -> str | None:
        """The id of the message that was there with the same dedup id; None where this one was stored."""
        return self.id if self.was_known else None

    @property
    def due_at(self) -> datetime | None:
        """When it will be ready, UTC; None where it did not have to wait."""
        return moment(self.due_us) if self.due_us else None


def receipts_of(
    route: Route, messages: int, offset: int, answer: m.Confirmed | m.Stored, first: int = 0, *, duplicate: bool
) -> Iterator[Receipt]:
    """What became of so many messages of a batch that is in record `offset`, from index `first` on."""
    numbers = repeat(0) if route.to_topic or answer.due_us else count(answer.sequence)
    name, due_us, known = route.name, answer.due_us, answer.duplicates
    if not (answer.dropped or due_us or known):
        return map(Receipt, repeat(name), numbers, repeat(offset), range(first, first + messages), repeat(duplicate))
    there = {position: (record, index) for position, record, index in known}
    end = first + messages - answer.dropped - len(there)
    indices = count(first)

    def receipt(position: int) -> Receipt:
        found = there.get(position)
        if found is not None:
            return Receipt(name, 0, *found, duplicate=True, was_known=True)
        index = next(indices)
        if index < end:
            return Receipt(name, next(numbers), offset, index, duplicate, due_us=due_us)
        return Receipt(name, 0, offset, index, duplicate, dropped=True)

    return map(receipt, range(messages))


class Outgoing:
    """What takes a number of the producer and is sent until it is answered: a batch, or a transaction.

    `order` counts them in this client. `sequence` is the producer's number of what is first in it, and 0 until it is
    sent; it takes `numbers` of them. `sent`: the broker may have carried it out. `blocked`: it has not, and it waits
    for a queue. `waited`: it had to, at least once. `abandoned`: nobody waits for it any more.

    `places` is where it goes. `published` messages of `published_bytes` bytes count as pending until it is answered.
    `numbers` is how many of the producer's numbers it takes, and `size` how many bytes of the broker's window. The
    program gave it at loop time `began`, and it is given up at `expires`.
    """

    __slots__ = (
        "abandoned",
        "began",
        "blocked",
        "expires",
        "numbers",
        "order",
        "places",
        "published",
        "published_bytes",
        "sent",
        "sent_bytes",
        "sequence",
        "size",
        "waited",
    )

    def __init__(self, places: tuple[Place, ...], published: int, size: int, began: float, expires: float) -> None:
        """Nothing of it was sent."""
        self.places, self.published, self.size, self.began, self.expires = places, published, size, began, expires
        self.numbers = 1
        self.order = self.sequence = self.sent_bytes = self.published_bytes = 0
        self.sent = self.blocked = self.waited = self.abandoned = False

    def fits(self, limits: m.Welcome) -> bool:
        """Whether the broker takes a frame as large."""
        raise NotImplementedError

    def frame(self, number: int, oldest: int, clock: Callable[[], float]) -> list[bytes | memoryview]:
        """The buffers to send as request `number`; `clock` gives the loop's time."""
        raise NotImplementedError

    def try_less(self) -> bool:
        """There was no room: try a part of it next, if it may be parted."""
        return False

    def go_on(self) -> bool:
        """A part of it has its answer: go on with what is left, if there is something."""
        return False

    def confirmed(self, reply: m.Confirmed | m.Committed) -> None:
        """Tell those who wait what became of what was tried."""
        raise NotImplementedError

    def failed(self, error: VibeMQError) -> None:
        """Tell everybody who waits."""
        raise NotImplementedError

    @property
    def fate(self) -> str:
        """What is known of it while it has no answer."""
        raise NotImplementedError

    @property
    def expired(self) -> str:
        """What to say when it had no answer in time."""
        raise NotImplementedError


class OutgoingBatch(Outgoing):
    """A batch without an answer. `futures` wait for one message each, or `whole` for all of them.

    Messages that were published one by one travel together only for speed: when their queue has no room for all of them
    the first `front` are tried, and what has its answer leaves the batch. `dedup` has the hashes of their ids, if any.
    """

    __slots__ = ("count", "data", "dedup", "front", "futures", "route", "whole")

    def __init__(
        self, route: Route, data: bytes, count: int, record_bytes: int, began: float, expires: float, dedup: bytes
    ) -> None:
        """`count` messages as `data`, with the hashes of their ids in `dedup`."""
        super().__init__((route.place,), count, len(data) + len(dedup), began, expires)
        self.published_bytes = record_bytes
        self.route, self.data, self.dedup = route, data, dedup
        self.count = self.front = self.numbers = count
        self.futures: list[asyncio.Future[Receipt]] = []
        self.whole: asyncio.Future[list[Receipt]] | None = None

    def fits(self, limits: m.Welcome) -> bool:
        """Whether a batch may be as large."""
        return self.size <= batch_bytes_max(limits)

    def frame(self, number: int, oldest: int, clock: Callable[[], float]) -> list[bytes | memoryview]:
        """The publish of what is tried."""
        parts: list[bytes | memoryview]
        parts = [self.data] if self.front == self.count else Batch(self.data).cut(0, self.front)
        hashes = self.dedup and self.dedup[: self.front * HASH_BYTES]
        return publish_frame(self.route, parts, hashes, self.began, clock, number, self.sequence, oldest)

    def try_less(self) -> bool:
        """Half of it, unless it was one message, or they are to be stored together."""
        if self.whole is not None or self.front == 1:
            return False
        self.front = self.numbers = self.front // 2
        return True

    def go_on(self) -> bool:
        """With what is behind the front, which has its answer."""
        if self.front == self.count:
            return False
        rest = self.count - self.front
        self.data = b"".join(Batch(self.data).cut(self.front, rest))
        self.dedup = self.dedup[self.front * HASH_BYTES :]
        del self.futures[: self.front]
        self.count, self.front = rest, min(self.front, rest)
        self.numbers, self.size = self.front, len(self.data) + len(self.dedup)
        return True

    def confirmed(self, reply: m.Confirmed | m.Committed) -> None:
        """Tell those who wait for the front. Who was cancelled meanwhile is passed over."""
        assert isinstance(reply, m.Confirmed)
        receipts = receipts_of(self.route, self.front, reply.offset, reply, duplicate=reply.duplicate)
        if self.whole is not None:
            if not self.whole.done():
                self.whole.set_result(list(receipts))
            return
        for future, receipt in zip(self.futures[: self.front], receipts, strict=True):
            try:
                future.set_result(receipt)
            except asyncio.InvalidStateError:
                continue

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

    @property
    def expired(self) -> str:
        """What to say when it was not confirmed in time."""
        return "publish: not confirmed"


def publish_frame(
    route: Route,
    batch: list[bytes | memoryview],
    dedup: bytes,
    began: float,
    clock: Callable[[], float],
    number: int = 0,
    sequence: int = 0,
    oldest: int = 0,
) -> list[bytes | memoryview]:
    """The buffers of a publish. A delay counts from the call, however long the batch had to wait to be sent."""
    return binary.encode_publish(
        number,
        route.name.encode(),
        sequence,
        batch,
        oldest,
        to_topic=route.to_topic,
        delay_ms=route.delay_ms and max(0, route.delay_ms - int((clock() - began) * 1_000)),
        due_us=route.due_us,
        dedup=dedup,
    )


def batch_bytes_max(limits: m.Welcome) -> int:
    """How many bytes a batch may have, with the hashes of dedup ids."""
    return min(limits.frame_bytes_max - FRAME_OVERHEAD, limits.publish_window_bytes)

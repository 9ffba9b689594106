"""What client and broker say to each other, as values, whatever the codec.

Requests carry a number that the client chose, never 0, and get exactly one answer with it: Confirmed, Done or Failed.
An Ack or Nack with request 0 asks for none. Durations are milliseconds, times microseconds since 1970 (UTC).
`deliveries` are half-open runs (first, end) of a subscription's delivery numbers, which count what it was sent from 1;
a message that is sent again gets a new number, so an ack can never settle a later delivery than the one it means.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from vibemq.batch import MESSAGES_MAX, PRIORITY_NORMAL, Batch
from vibemq.errors import RequestError
from vibemq.protocol.fields import (
    Count,
    Deliveries,
    Duration,
    Number,
    Priority,
    Producer,
    Request,
    RequestOrNone,
    Settings,
    Text,
    Version,
    Wait,
    Word,
)

VERSION = 1
"""The protocol version that this code speaks."""


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")


class Control(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=_kebab):
    """Base of what travels as a map: MessagePack in the binary codec, an object in JSON."""


# --- from the client ------------------------------------------------------------------------------------------------


class Hello(Control, frozen=True, kw_only=True):
    """The first frame of a connection. `producer` makes resent publishes recognisable; 0: there will be none."""

    request: Request = 1
    version_min: Version = VERSION
    version_max: Version = VERSION
    client: Word = ""
    heartbeat_ms: Duration = 0
    producer: Producer = 0
    compression: Annotated[tuple[Word, ...], msgspec.Meta(max_length=16)] = ()


class Publish(msgspec.Struct, frozen=True):
    """Store `batch` in `queue`. `sequence` numbers the producer's messages; the batch takes `batch.count` of them.

    `oldest` is the sequence of the producer's oldest batch without an answer: what is below it will not be sent again.
    """

    request: int
    queue: str
    sequence: int
    batch: Batch
    oldest: int = 0


class Subscribe(Control, frozen=True, kw_only=True):
    """Take part in a queue, with credit for `messages` and `bytes` from the start."""

    request: Request
    queue: str
    group: str | None = None
    messages: Count = 0
    bytes: Count = 0


class Unsubscribe(Control, frozen=True, kw_only=True):
    """End a subscription: what it holds goes back without counting an attempt."""

    request: Request
    subscription: Number


class Credit(Control, frozen=True, kw_only=True):
    """Grant more messages and bytes. `handed` is the delivery number below which all was given to the application.

    With `wait_ms` >= 0 the broker answers Drained as soon as it has sent something, or after that time, and takes back
    the credit that is left: this is how a client pulls.
    """

    subscription: Number
    messages: Count
    bytes: Count
    handed: Number = 0
    wait_ms: Wait = -1


class Ack(Control, frozen=True, kw_only=True):
    """These deliveries are done."""

    subscription: Number
    deliveries: Deliveries
    request: RequestOrNone = 0


class Nack(Control, frozen=True, kw_only=True):
    """These deliveries failed, or with `reject` can never succeed and go to the dead letters at once.

    A `reason` longer than TEXT_MAX is cut by the broker: a long text is no cause to leave a message unsettled.
    """

    subscription: Number
    deliveries: Deliveries
    request: RequestOrNone = 0
    delay_ms: Duration | None = None
    reason: str = ""
    reject: bool = False


class Extend(Control, frozen=True, kw_only=True):
    """The client still works on these deliveries: their lease ends `lease_ms` from now (0: the queue's own lease)."""

    subscription: Number
    deliveries: Deliveries
    lease_ms: Duration = 0
    request: RequestOrNone = 0


class Declare(Control, frozen=True, kw_only=True):
    """Create a queue, or check that it has these settings. Settings that are not given take their defaults."""

    request: Request
    queue: str
    settings: Settings = {}


class ListQueues(Control, frozen=True, kw_only=True):
    """Ask for all queues. Done.result: a list of what ShowQueue gives."""

    request: Request


class ShowQueue(Control, frozen=True, kw_only=True):
    """Ask for one queue: its settings and counts."""

    request: Request
    queue: str


class Purge(Control, frozen=True, kw_only=True):
    """Throw away what is ready in a queue. Done.result: {"count": n}."""

    request: Request
    queue: str


class Delete(Control, frozen=True, kw_only=True):
    """Delete a queue with all it holds. Done.result: {"count": n}."""

    request: Request
    queue: str


class Peek(Control, frozen=True, kw_only=True):
    """Read up to `count` ready messages from sequence `start` on, and take none. Done.result: see docs/protocol.md."""

    request: Request
    queue: str
    start: Number = 0
    count: Count = 100


class Flush(Control, frozen=True, kw_only=True):
    """Answered when all that this connection sent before is durable."""

    request: Request


class Digest(Control, frozen=True, kw_only=True):
    """Ask for the digest of every projection, and the offset at which it holds."""

    request: Request


class Ping(Control, frozen=True, kw_only=True):
    """Anything is a sign of life; this is for when there is nothing else to say. Answered by Pong."""


class Goodbye(Control, frozen=True, kw_only=True):
    """The sender is about to close: in order when `code` is 0."""

    code: Count = 0
    text: Text = ""


Command: TypeAlias = (
    Hello
    | Publish
    | Subscribe
    | Unsubscribe
    | Credit
    | Ack
    | Nack
    | Extend
    | Declare
    | ListQueues
    | ShowQueue
    | Purge
    | Delete
    | Peek
    | Flush
    | Digest
    | Ping
    | Goodbye
)


class Refused(msgspec.Struct, frozen=True):
    """What a session gives in place of a command that cannot be.

    The broker answers Failed with `request` and the error's code and text. `request` is 0 where the command carries no
    number that could be read.
    """

    request: int
    error: RequestError


# --- from the broker ------------------------------------------------------------------------------------------------


class Welcome(Control, frozen=True, kw_only=True):
    """The answer to Hello: what was agreed, and the limits that hold.

    A client may have `publish_window_bytes` of batches, and `publish_window_batches` of them, sent and not answered.
    """

    request: Request
    version: Version
    broker: str
    connection: Number
    heartbeat_ms: Duration
    frame_bytes_max: Count
    batch_messages_max: Count
    publish_window_bytes: Number
    publish_window_batches: Count
    message_bytes_max: Count = 0
    compression: str = ""


class Confirmed(Control, frozen=True, kw_only=True):
    """The batch is durable as record `offset`; its first message has `sequence`. `duplicate`: it was already there."""

    request: Request
    offset: Number
    sequence: Number
    duplicate: bool = False


class Deliver(msgspec.Struct, frozen=True):
    """Messages for a subscription: numbers `delivery` and on, sequences `sequence` and on, from one record.

    `parts` are the bytes of a batch. All of its messages have the same `attempt` and `redelivered`.
    """

    subscription: int
    delivery: int
    sequence: int
    offset: int
    index: int
    time_us: int
    attempt: int
    redelivered: bool
    parts: list[bytes | memoryview]


class Done(Control, frozen=True, kw_only=True):
    """A request succeeded, and everything that it changed is durable."""

    request: Request
    result: Any = None


class Failed(Control, frozen=True, kw_only=True):
    """A request failed and changed nothing. `code` is stable (docs/protocol.md), `text` is for people.

    Request 0: something that the client sent without a number was refused; its author wants to know.
    """

    request: RequestOrNone
    code: Count
    text: str


class Drained(Control, frozen=True, kw_only=True):
    """The answer to Credit with `wait_ms`: all that there was has been sent, and no credit is left."""

    subscription: Number


class LeasesLost(Control, frozen=True, kw_only=True):
    """The leases of these deliveries ended; acks for them are void."""

    subscription: Number
    deliveries: Deliveries


class Ended(Control, frozen=True, kw_only=True):
    """The broker ended a subscription, for instance because its queue was deleted."""

    subscription: Number
    code: Count
    text: str


class Pong(Control, frozen=True, kw_only=True):
    """The answer to Ping."""


Reply: TypeAlias = Welcome | Confirmed | Deliver | Done | Failed | Drained | LeasesLost | Ended | Ping | Pong | Goodbye

# --- JSON shapes of what is opaque bytes in the binary codec --------------------------------------------------------


class JsonNewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a client sends in JSON: one of `body` (text) and `body_base64`."""

    body: str | None = None
    body_base64: str | None = None
    headers: dict[str, str | int | float | bool | None] = {}


class JsonMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that the broker sends in JSON: the body as text, or as base64 where it is not UTF-8.

    Headers that are no map from text to plain values come as `headers_base64`: a producer's mistake stays visible.
    """

    body: str | None = None
    body_base64: str | None = None
    headers: dict[str, Any] = {}
    headers_base64: str | None = None
    id: str | None = None
    queue: str | None = None
    sequence: int | None = None
    attempt: int | None = None
    redelivered: bool | None = None
    published_at: str | None = None


class JsonPublish(Control, frozen=True, kw_only=True, tag="publish"):
    """Publish in JSON."""

    request: Request
    queue: str
    messages: Annotated[tuple[JsonNewMessage, ...], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    sequence: Number = 0
    oldest: Number = 0
    priority: Priority = PRIORITY_NORMAL

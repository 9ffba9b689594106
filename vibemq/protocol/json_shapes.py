"""Messages in JSON whose shape is another than in the binary codec: what is opaque bytes there is objects here."""

from typing import Annotated, Any

import msgspec

from vibemq.batch import MESSAGES_MAX, PRIORITY_NORMAL
from vibemq.protocol import messages as m
from vibemq.protocol.fields import PUBLISHES_MAX, RUNS_MAX, Duration, Number, Priority, Request, Word


class JsonNewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a client sends in JSON: one of `body` (text) and `body_base64`."""

    body: str | None = None
    body_base64: str | None = None
    headers: dict[str, str | int | float | bool | None] = {}
    dedup_id: str = ""
    """Another message with the same, in the queue's dedup window, is not stored; empty: it has none."""
    key: Word = ""
    """Messages of one key stay in order, in a queue that has `order_by_key`. It becomes the header `key`."""


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


class JsonPublishPart(msgspec.Struct, frozen=True, kw_only=True):
    """A batch in JSON: what JsonPublish has, without what numbers it."""

    queue: str
    messages: Annotated[tuple[JsonNewMessage, ...], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    priority: Priority = PRIORITY_NORMAL
    ttl_ms: Duration = 0
    to_topic: bool = False
    """`queue` is a topic, and becomes the header `topic` of each message."""
    delay_ms: Number = 0
    due_us: Number = 0


class JsonPublish(JsonPublishPart, frozen=True, kw_only=True, tag_field="type", tag="publish"):
    """Publish in JSON."""

    request: Request
    sequence: Number = 0
    oldest: Number = 0


class JsonCommit(m.Control, frozen=True, kw_only=True, tag="commit"):
    """Commit in JSON. The `request` of each of its publishes means nothing, and need not be there."""

    request: Request
    epoch: Number
    sequence: Number = 0
    oldest: Number = 0
    publishes: Annotated[tuple[JsonPublishPart, ...], msgspec.Meta(max_length=PUBLISHES_MAX)] = ()
    acks: Annotated[tuple[m.TransactionAck, ...], msgspec.Meta(max_length=RUNS_MAX)] = ()


class JsonSetSchedule(m.SetSchedule, frozen=True, kw_only=True, tag="set-schedule"):
    """SetSchedule in JSON: the body as that of a message."""

    body: str | None = None  # type: ignore[assignment]  # what it is called matters more than what it descends from
    body_base64: str | None = None

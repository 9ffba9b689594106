"""A row of an outbox: a message that waits to be published, and how it is written to the table and read from it."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, cast

from vibemq.client import Body, MessageHeaders
from vibemq.client.outgoing import (
    Place,
    PublishManyOptions,
    PublishOptions,
    Route,
    TopicOptions,
    check_dedup_id,
    stamped,
)
from vibemq.errors import InvalidRequest, UsageError
from vibemq.protocol.fields import NUMBER_MAX, check_name, check_topic

COLUMNS: Final = (
    "queue",
    "to_topic",
    "body",
    "headers",
    "priority",
    "ttl_ms",
    "message_key",
    "due_us",
    "dedup_id",
)
"""What add() writes; the other columns are the relay's."""


@dataclass(frozen=True, slots=True)
class Row:
    """A message with its place in the table. `refused_seconds` ago it was refused for the first time; None: never."""

    id: int
    queue: str
    to_topic: bool
    body: bytes
    headers: str | None
    priority: int | None
    ttl_ms: int | None
    message_key: str | None
    due_us: int | None
    dedup_id: str | None
    refused_seconds: float | None = None

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Row":
        """The row of which a database gave these values: id, COLUMNS, and how long ago it was refused."""
        number, queue, to_topic, body, *rest = values
        # What other programs insert into SQLite may be text: it has no types to speak of.
        return cls(number, queue, bool(to_topic), body.encode() if isinstance(body, str) else bytes(body), *rest)

    @property
    def place(self) -> Place:
        """Where it goes."""
        return self.queue, self.to_topic

    def stamped_headers(self) -> MessageHeaders | None:
        """The headers that the message has, with key and topic: other programs may have written only the columns.

        Raises:
            InvalidRequest: the column has something else in it.
        """
        try:
            headers = json.loads(self.headers or "{}")
        except ValueError as problem:
            raise InvalidRequest(f"the headers are no JSON: {problem}") from None
        if not isinstance(headers, dict):
            raise InvalidRequest("the headers are JSON, but no object")
        return stamped(headers, self.message_key, self.queue if self.to_topic else None)


def values_of(queue: str, body: Body, options: PublishOptions, *, to_topic: bool = False) -> tuple[object, ...]:
    """What stands in COLUMNS for a message. What never could be published is refused here, where its author sees it.

    Raises:
        UsageError: arguments of which there can be no message; InvalidName, InvalidRequest: a name that cannot be.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise UsageError(f"the body of a message is bytes, not {type(body).__name__}: encode it, as in text.encode()")
    if to_topic:
        check_topic(queue)
    else:
        check_name(queue)
    delay, key, dedup_id = options.get("delay"), options.get("key"), options.get("dedup_id")
    route = Route.of(queue, options.get("priority"), options.get("ttl"), delay, options.get("deliver_at"))
    if dedup_id is not None:
        check_dedup_id(dedup_id)
    headers = stamped(options.get("headers"), key, queue if to_topic else None)
    # A delay counts from here on: how long the relay takes is none of the application's business.
    due_us = min(NUMBER_MAX, time.time_ns() // 1_000 + route.delay_ms * 1_000) if route.delay_ms else route.due_us
    return (
        queue,
        to_topic,
        bytes(body),
        _json(headers) if headers else None,
        None if options.get("priority") is None else route.priority,
        route.ttl_ms or None,
        key,
        due_us or None,
        dedup_id,
    )


def _json(headers: MessageHeaders) -> str:
    for name, value in headers.items():
        if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(f"header {name!r} is {value!r}: headers of an outbox are JSON, which has no such value")
    try:
        return json.dumps(dict(headers), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise UsageError(f"the headers of an outbox are JSON: {problem}") from None


def topic_values_of(topic: str, body: Body, options: TopicOptions) -> tuple[object, ...]:
    """As values_of(), of a message for a topic: it takes no dedup id, as one queue may know it and another not.

    Raises:
        UsageError, InvalidName, InvalidRequest: likewise.
    """
    if "dedup_id" in options:
        raise UsageError("a topic takes no dedup_id: one queue may know it, and another not. Publish to the queues")
    return values_of(topic, body, cast("PublishOptions", options), to_topic=True)


def many_values_of(queue: str, bodies: Sequence[Body], options: PublishManyOptions) -> list[tuple[object, ...]]:
    """As values_of(), of many messages.

    Raises:
        UsageError, InvalidName: likewise, or a list that is not as long as that of the bodies.
    """
    keyed = options.get("headers"), options.get("keys"), options.get("dedup_ids")
    for what, given in zip(("headers", "keys", "dedup_ids"), keyed, strict=True):
        if given is not None and len(given) != len(bodies):
            raise UsageError(f"there are {len(bodies)} messages, and {what} for {len(given)}")
    shared: PublishOptions = {
        "priority": options.get("priority"),
        "ttl": options.get("ttl"),
        "delay": options.get("delay"),
        "deliver_at": options.get("deliver_at"),
    }
    columns = (given or repeat(None) for given in keyed)
    return [
        values_of(queue, body, {**shared, "headers": headers, "key": key, "dedup_id": dedup_id})
        for body, headers, key, dedup_id in zip(bodies, *columns, strict=False)
    ]

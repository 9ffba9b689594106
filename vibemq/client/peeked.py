"""Messages that were looked at and not taken."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

from vibemq.batch import Headers
from vibemq.client.moment import moment


@dataclass(frozen=True, slots=True)
class PeekedMessage:
    """The facts of a message; there is nothing to ack."""

    body: bytes
    headers: Headers
    id: str
    queue: str
    sequence: int
    attempt: int
    redelivered: bool
    published_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter(PeekedMessage):
    """A message that is in a dead-letter queue, and why."""

    reason: str
    """max-attempts, rejected, expired, overflow or unroutable."""
    source: str | None
    """The queue that it came from, by its present name; None when that is gone, or there never was one."""
    attempts: int
    """How many failed."""
    error: str
    """What the last nack or reject gave as its reason; the topic, of what was unroutable."""
    dead_at: datetime
    """When it died, UTC."""


class _Facts(TypedDict):
    body: bytes
    headers: Headers
    id: str
    queue: str
    sequence: int
    attempt: int
    redelivered: bool
    published_at: datetime


def peeked(queue: str, facts: dict[str, object]) -> PeekedMessage:
    """The message in one entry of the answer to a Peek."""
    return PeekedMessage(**_facts(queue, facts))


def dead_letter(queue: str, facts: dict[str, object]) -> DeadLetter:
    """The message in one entry of the answer to a DeadLetters of `queue`, which may be where it came from."""
    found = facts.get("dead")
    dead = found if isinstance(found, dict) else {}
    source = dead.get("queue")
    return DeadLetter(
        **_facts(str(facts.get("queue", queue)), facts),
        reason=str(dead.get("reason", "")),
        source=source if isinstance(source, str) else None,
        attempts=number_of(dead.get("attempts")),
        error=str(dead.get("error", "")),
        dead_at=time_of(dead, "at"),
    )


def _facts(queue: str, facts: dict[str, object]) -> _Facts:
    return {
        "body": body_of(facts),
        "headers": headers_of(facts),
        "id": str(facts.get("id", "")),
        "queue": queue,
        "sequence": number_of(facts.get("sequence")),
        "attempt": number_of(facts.get("attempt", 1)),
        "redelivered": bool(facts.get("redelivered")),
        "published_at": time_of(facts, "published_at"),
    }


def headers_of(facts: Mapping[str, object]) -> Headers:
    """The headers in the facts of a message."""
    headers = facts.get("headers")
    return headers if isinstance(headers, dict) else {}


def body_of(facts: Mapping[str, object]) -> bytes:
    """The body in the facts of a message."""
    body = facts.get("body")
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return base64.b64decode(str(facts.get("body_base64") or ""))


def number_of(value: object) -> int:
    """A number in the facts of a message; 0 where it is none."""
    return value if isinstance(value, int) else 0


def time_of(facts: Mapping[str, object], name: str) -> datetime:
    """A time in the facts of a message, UTC."""
    text = facts.get(name)
    if isinstance(text, str):
        return datetime.fromisoformat(text).astimezone(UTC)
    return moment(number_of(facts.get(f"{name}_us")))

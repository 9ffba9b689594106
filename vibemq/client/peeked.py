"""A message that was looked at and not taken."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vibemq.batch import Headers
from vibemq.client.message import EPOCH


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


def peeked(queue: str, facts: dict[str, object]) -> PeekedMessage:
    """The message in one entry of the answer to a Peek."""
    headers = facts.get("headers")
    return PeekedMessage(
        body=_body(facts),
        headers=headers if isinstance(headers, dict) else {},
        id=str(facts.get("id", "")),
        queue=queue,
        sequence=_number(facts.get("sequence")),
        attempt=_number(facts.get("attempt", 1)),
        redelivered=bool(facts.get("redelivered")),
        published_at=_time(facts),
    )


def _body(facts: dict[str, object]) -> bytes:
    body = facts.get("body")
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return base64.b64decode(str(facts.get("body_base64") or ""))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _time(facts: dict[str, object]) -> datetime:
    text = facts.get("published_at")
    if isinstance(text, str):
        return datetime.fromisoformat(text).astimezone(UTC)
    return EPOCH + timedelta(microseconds=_number(facts.get("published_at_us")))

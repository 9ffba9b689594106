"""The messages of a simulated history: each body says which one it is, and is all there is to know of it."""

import re
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final, NamedTuple

from tests.checker import Name, Violation
from vibemq import events as e
from vibemq.batch import HEADERS, Batch
from vibemq.events import DEDUP_BYTES
from vibemq.protocol.keys import dedup_hash, key_hash

KEYS: Final = ("", "a", "b", "c")
KEY_OF: Final = {key_hash(key) if key else 0: key for key in KEYS}
"""By hash."""
DEDUP_OF: Final = {bytes(DEDUP_BYTES): "", **{dedup_hash(one): one for one in ("one", "two", "three", "four", "five")}}
"""Dedup ids, by hash."""
DEDUP_HASHES: Final = list(DEDUP_OF)
_BODY = re.compile(rb"((\d+)/(\d+)/)\1*")


class Message(NamedTuple):
    """A message as the log holds it."""

    name: Name
    id: str
    size: int
    key: int
    """The hash of its key; 0 without one."""
    ttl_us: int
    """How long it may wait by its own wish; 0: for ever."""
    dedup: bytes = b""
    """The hash of its dedup id; empty without one."""


def body_of(name: Name, random: Random) -> bytes:
    """A body for that message: its name, some times over."""
    return b"%s/%d/" % (name.writer.encode(), name.number) * random.choice((1, 1, 8, 40))


def name_of(body: bytes) -> Name:
    """Which message a body is; what nobody wrote is nobody's."""
    found = _BODY.fullmatch(body)
    return Name(f"nobody: {body!r}", 0) if found is None else Name(found[2].decode(), int(found[3]))


def fired_name(schedule: str, due_us: int) -> Name:
    """The message that a schedule publishes for some time."""
    return Name(f"schedule {schedule}", due_us)


def names_in(batch: Batch) -> list[Name]:
    """Which messages a batch holds. Those of a schedule have all the same body, and say in headers which they are."""
    if not batch.flags & HEADERS:
        return [name_of(body) for body in batch.bodies()]
    return [
        fired_name(str(headers["schedule"]), _us(str(headers["scheduled_for"])))
        if "schedule" in headers
        else name_of(body)
        for body, headers in zip(batch.bodies(), batch.headers(), strict=True)
    ]


def _us(text: str) -> int:
    """A time as RFC 3339 has it."""
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def read(event: e.Event, payload: bytes, offset: int) -> tuple[Message, ...]:
    """The messages of an event's payload, which is that of record `offset`."""
    if not payload:
        return ()
    if isinstance(event, e.TransactionCommitted):
        return _read_all(event, payload, offset)
    return _read(payload, offset, 0, event.dedup if isinstance(event, e.Published) else b"")


def _read_all(event: e.TransactionCommitted, payload: bytes, offset: int) -> tuple[Message, ...]:
    found: list[Message] = []
    at = 0
    for size, part in zip(event.batches, (*event.published, *event.routed), strict=True):
        if size:
            dedup = part.dedup if isinstance(part, e.Published) else b""
            found += _read(payload[at : at + size], offset, len(found), dedup)
        at += size
    if at != len(payload):
        raise Violation(f"{event} has {len(payload)} bytes, and its batches are {at}")
    return tuple(found)


def _read(payload: bytes, offset: int, index: int, dedup: bytes) -> tuple[Message, ...]:
    batch = Batch(payload)
    keys = batch.keys or (0,) * batch.count
    ids = split(dedup) or [b""] * batch.count
    return tuple(
        Message(name, f"{offset}-{number}", size, key, batch.ttl_ms * 1000, one)
        for number, (name, size, key, one) in enumerate(
            zip(names_in(batch), batch.lengths, keys, ids, strict=True), index
        )
    )


def split(dedup: bytes) -> list[bytes]:
    """The hashed ids of a column of them; empty where a message has none."""
    found = [dedup[at : at + DEDUP_BYTES] for at in range(0, len(dedup), DEDUP_BYTES)]
    return [one if any(one) else b"" for one in found]

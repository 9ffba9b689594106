"""The messages of a simulated history: each body says which one it is, and is all there is to know of it."""

import re
from random import Random
from typing import Final, NamedTuple

from tests.checker import Name
from vibemq.batch import Batch
from vibemq.protocol.keys import key_hash

KEYS: Final = ("", "a", "b", "c")
KEY_OF: Final = {key_hash(key) if key else 0: key for key in KEYS}
"""By hash."""
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


def body_of(name: Name, random: Random) -> bytes:
    """A body for that message: its name, some times over."""
    return b"%s/%d/" % (name.writer.encode(), name.number) * random.choice((1, 1, 8, 40))


def name_of(body: bytes) -> Name:
    """Which message a body is; what nobody wrote is nobody's."""
    found = _BODY.fullmatch(body)
    return Name(f"nobody: {body!r}", 0) if found is None else Name(found[2].decode(), int(found[3]))


def read(payload: bytes, offset: int) -> tuple[Message, ...]:
    """The messages of a batch that is the payload of record `offset`."""
    if not payload:
        return ()
    batch = Batch(payload)
    keys = batch.keys or (0,) * batch.count
    return tuple(
        Message(name_of(body), f"{offset}-{index}", size, key, batch.ttl_ms * 1000)
        for index, (body, size, key) in enumerate(zip(batch.bodies(), batch.lengths, keys, strict=True))
    )

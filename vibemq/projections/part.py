"""What all projections have in common.

The state is a set of parts, each a fold over the events that concern it. A part's `apply` reads the event and the
part, and nothing else: so parts can be saved at different offsets, one after the other between two turns of the loop,
and a replay from the oldest of these offsets brings all of them to the same state. `as_of` says which events a part
already holds.
"""

import hashlib
from typing import Any, Protocol

import msgspec

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Part(Protocol):
    """One projection: queue, topology, dead letters ..."""

    as_of: int
    """Every event of this part with a lower offset has been applied."""

    @property
    def key(self) -> str:
        """The stable name of the part."""
        ...

    def snapshot(self) -> Any:  # noqa: ANN401 - plain values, whatever nesting the part needs
        """The whole state as plain values in one canonical order."""
        ...


def encode(part: Part) -> bytes:
    """The canonical bytes of a part: the same state gives the same bytes on any machine."""
    return _encoder.encode(part.snapshot())


def decode(data: bytes) -> Any:  # noqa: ANN401 - the inverse of snapshot
    """What `encode` was given."""
    return msgspec.msgpack.decode(data)


def digest(part: Part) -> str:
    """SHA-256 of the canonical bytes, as hex."""
    return hashlib.sha256(encode(part)).hexdigest()

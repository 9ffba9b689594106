"""Where in the payload of a record its batches are.

A record has one batch, or none; only that of a transaction has many, one behind the other. A message is at an index
of its record, which counts through all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vibemq import events as e
from vibemq.batch import Batch
from vibemq.events import Arrival, DeadReason


@dataclass(frozen=True, slots=True)
class Section:
    """A batch, as bytes `at` .. `end - 1` of a payload, or to its end without `end`: messages `index` and on of it.

    It made these `arrivals` ready, for which it is `dead`, or 0.
    """

    at: int
    end: int | None
    index: int
    arrivals: tuple[Arrival, ...]
    dead: int

    def batch(self, payload: bytes | memoryview) -> Batch:
        """The batch, in bytes of its own."""
        return Batch(bytes(payload[self.at : self.end]))


def sections(event: e.Event) -> Iterator[Section]:
    """The batches in the payload of an event that has one."""
    if not isinstance(event, e.TransactionCommitted):
        yield Section(0, None, 0, event.arrivals, _dead(event))
        return
    at = index = 0
    parts: tuple[e.Published | e.Routed, ...] = (*event.published, *event.routed)
    for part, size in zip(parts, event.batches, strict=True):
        if size:
            yield Section(at, at + size, index, part.arrivals, _dead(part))
            at, index = at + size, index + part.count


def _dead(event: e.Event) -> int:
    return DeadReason.UNROUTABLE if isinstance(event, e.Routed) and event.unroutable else 0

"""What each producer has had accepted, so that a batch sent again is recognised and not stored twice.

A client has at most BATCHES_REMEMBERED batches unanswered, so only these can come again: that is all that is kept.
"""

from collections import deque
from typing import Any, Final, NamedTuple

from vibemq import events as e

BATCHES_REMEMBERED: Final = 1024
"""How many accepted batches are remembered of each producer. Part of the fold: changing it changes digests."""


class Accepted(NamedTuple):
    """A batch that was stored: the producer's sequence of its first message, and what was confirmed for it."""

    first: int
    messages: int
    offset: int
    sequence: int


class Producer:
    """One producer: its latest accepted batches, and the highest sequence it ever had accepted."""

    __slots__ = ("batches", "highest")

    def __init__(self) -> None:
        """Begin with nothing accepted."""
        self.batches: deque[Accepted] = deque(maxlen=BATCHES_REMEMBERED)
        self.highest = 0

    def find(self, first: int) -> Accepted | None:
        """The remembered batch that begins with sequence `first`."""
        return next((batch for batch in reversed(self.batches) if batch.first == first), None)

    @property
    def oldest(self) -> int:
        """Below this sequence nothing is remembered."""
        return self.batches[0].first if len(self.batches) == BATCHES_REMEMBERED else 0


class Producers:
    """Producers in the order of their last publish."""

    key = "producers"

    def __init__(self) -> None:
        """Begin with nobody."""
        self.as_of = 0
        self.known: dict[int, Producer] = {}

    def published(self, offset: int, event: e.Published) -> None:
        """Remember a batch."""
        producer = self.known.pop(event.producer, None) or Producer()
        self.known[event.producer] = producer
        first = event.producer_sequence
        producer.batches.append(Accepted(first, event.count, offset, event.sequence))
        producer.highest = max(producer.highest, first + event.count - 1)

    def forgotten(self, event: e.ProducersForgotten) -> None:
        """Drop these producers."""
        for producer in event.producers:
            self.known.pop(producer, None)

    def snapshot(self) -> list[Any]:
        """Plain values; the order of the producers is part of the state."""
        return [[number, producer.highest, list(producer.batches)] for number, producer in self.known.items()]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Producers":
        """The producers of which this is a snapshot."""
        producers = cls()
        producers.as_of = as_of
        for number, highest, batches in snapshot:
            producer = producers.known[number] = Producer()
            producer.highest = highest
            producer.batches.extend(Accepted(*batch) for batch in batches)
        return producers

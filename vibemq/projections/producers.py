"""What each producer has had accepted, so that a batch sent again is recognised and not stored twice.

With each batch a producer says from which sequence on it has no answers: only what is above can come again, and that is
all that is kept; of a producer that does not say so, the last BATCHES_REMEMBERED batches.
"""

from collections import deque
from typing import Any, Final, NamedTuple

from vibemq import events as e

BATCHES_REMEMBERED: Final = 1024
"""How many accepted batches are remembered of each producer. Part of the fold: changing it changes digests."""
DUPLICATES_REMEMBERED: Final = 1 << 17
"""And how many duplicates in them, twice what a batch can have; the oldest batches go. Likewise."""


class Accepted(NamedTuple):
    """A batch that was stored: the producer's sequence of its first message, and what was confirmed for it.

    The last `dropped` of its `messages`, and its `duplicates`, were not stored; what was waits, or waited, until
    `due_us`, if that is not 0. A transaction has 0 `messages`, and takes one sequence; what was confirmed for it is in
    its record.
    """

    first: int
    messages: int
    offset: int
    sequence: int
    dropped: int = 0
    due_us: int = 0
    duplicates: tuple[e.Duplicate, ...] = ()


class Producer:
    """One producer: its latest accepted batches, the highest sequence it had accepted, the oldest it may send again."""

    __slots__ = ("batches", "highest", "oldest")

    def __init__(self) -> None:
        """Begin with nothing accepted."""
        self.batches: deque[Accepted] = deque(maxlen=BATCHES_REMEMBERED)
        self.highest = 0
        self.oldest = 0

    def find(self, first: int) -> Accepted | None:
        """The remembered batch that begins with sequence `first`."""
        return next((batch for batch in reversed(self.batches) if batch.first == first), None)

    def bound_duplicates(self) -> None:
        """Let the oldest batches go while there are too many duplicates in all."""
        count = sum(len(batch.duplicates) for batch in self.batches)
        while count > DUPLICATES_REMEMBERED:
            count -= len(self.batches.popleft().duplicates)
            self.oldest = max(self.oldest, self.batches[0].first)

    @property
    def remembered_from(self) -> int:
        """Below this sequence nothing is remembered."""
        full = len(self.batches) == BATCHES_REMEMBERED
        return max(self.oldest, self.batches[0].first) if full else self.oldest


class Producers:
    """Producers in the order of their last publish."""

    key = "producers"

    def __init__(self) -> None:
        """Begin with nobody."""
        self.as_of = 0
        self.known: dict[int, Producer] = {}

    def published(self, offset: int, event: e.Published | e.Routed) -> None:
        """Remember a batch."""
        duplicates: tuple[e.Duplicate, ...] = ()
        if isinstance(event, e.Published):
            dropped, duplicates = event.dropped, event.duplicates
            messages = event.count + dropped + len(duplicates)
        else:  # routed to nobody, as none had room: dropped
            messages, dropped = event.count, 0 if event.targets else event.count
        first, sequence = event.producer_sequence, event.sequence
        self._accept(event, Accepted(first, messages, offset, sequence, dropped, event.due_us, duplicates))

    def committed(self, offset: int, event: e.TransactionCommitted) -> None:
        """Remember a transaction."""
        self._accept(event, Accepted(event.producer_sequence, 0, offset, 0))

    def _accept(self, event: e.Published | e.Routed | e.TransactionCommitted, accepted: Accepted) -> None:
        producer = self.known.pop(event.producer, None) or Producer()
        self.known[event.producer] = producer
        producer.batches.append(accepted)
        producer.highest = max(producer.highest, accepted.first + max(1, accepted.messages) - 1)
        if event.producer_oldest > producer.oldest:
            producer.oldest = oldest = event.producer_oldest
            while producer.batches[0].first < oldest:  # the batch itself is not below it
                producer.batches.popleft()
        if accepted.duplicates:
            producer.bound_duplicates()

    def forgotten(self, event: e.ProducersForgotten) -> None:
        """Drop these producers."""
        for producer in event.producers:
            self.known.pop(producer, None)

    def snapshot(self) -> list[Any]:
        """Plain values; the order of the producers is part of the state."""
        return [[number, one.highest, one.oldest, list(one.batches)] for number, one in self.known.items()]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Producers":
        """The producers of which this is a snapshot."""
        producers = cls()
        producers.as_of = as_of
        for number, highest, oldest, batches in snapshot:
            producer = producers.known[number] = Producer()
            producer.highest, producer.oldest = highest, oldest
            for batch in batches:
                duplicates = [tuple(map(tuple, found)) for found in batch[6:]]
                producer.batches.append(Accepted(*batch[:6], *duplicates))
        return producers

"""Who publishes, and who of them waits: for room in a queue, or for a rate.

A publisher that has to wait is refused with QueueBlocked, and its connection is remembered, with what it wanted room
for: its later batches for that queue are refused as well, so that they stay in order, until it is told Unblocked. So
nothing of what waits is in the broker's memory, and other queues go on.

When it is told, more of its batches may be on their way, sent before it heard that one was refused. They must not
overtake those that it sends again. So the sequences that were refused are remembered, too, and of these only the lowest
is taken next.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from vibemq.declaration import Overflow
from vibemq.errors import LimitExceeded, QueueBlocked
from vibemq.projections.queue import Queue
from vibemq.server.admission import Admission
from vibemq.server.effects import Unblocked
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.rates import Bucket

EXPECTED_MAX = 2_000
"""So many refused batches are remembered at one place: twice what a client may have on its way."""
PLACES_MAX = 1_000
"""A connection waits at so many queues and topics; what would have to wait at others is refused."""
LOOKS_MAX = 500
"""Places at which somebody waits that are looked at in one turn; each takes about 3 us."""
HYSTERESIS_MAX = 100
"""A full queue must have so much room, or a tenth of its length, before publishers hear of it: not for each message."""


class Wanted(NamedTuple):
    """A batch that was refused: the producer's sequence (0: none), and what it wants room for."""

    sequence: int
    messages: int
    bytes: int


class Place:
    """A queue or topic at which a connection waits: until it is told Unblocked, and then until all has come again.

    `expected` are the refused batches with a sequence, in order. While the connection `waits`, it is owed Unblocked.
    """

    __slots__ = ("_last", "expected", "waits")

    def __init__(self) -> None:
        """Begin with nothing refused."""
        self.expected: list[Wanted] = []
        self.waits = False
        self._last = Wanted(0, 0, 0)

    @property
    def first(self) -> Wanted:
        """What room is to be made for."""
        return self.expected[0] if self.expected else self._last

    def refuse(self, batch: Wanted) -> None:
        """Remember a batch, which comes again."""
        if not self.waits:  # what is refused behind one that waits is not what room is to be made for
            self.waits, self._last = True, batch
        if batch.sequence and not self.expects(batch.sequence):
            self.expected.insert(bisect_left(self.expected, batch), batch)
            del self.expected[EXPECTED_MAX:]

    def expects(self, sequence: int) -> bool:
        """Whether this sequence was refused, and so is not stored."""
        at = bisect_left(self.expected, (sequence,))
        return at < len(self.expected) and self.expected[at].sequence == sequence

    def give_up(self, oldest: int) -> None:
        """The client has given up what is below `oldest`."""
        del self.expected[: bisect_left(self.expected, (oldest,))]

    def forget(self, sequence: int) -> None:
        """This batch was refused for good."""
        self.expected = [one for one in self.expected if one.sequence != sequence]

    def has_turn(self, sequence: int, oldest: int) -> bool:
        """Whether a batch may be looked at now. What is below `oldest` was given up by the client."""
        self.give_up(oldest)
        if self.expected and sequence == self.expected[0].sequence:
            del self.expected[0]
            return True
        return not self.waits and not (sequence and self.expected)


class Publisher:
    """What is known of a connection as a publisher: its producer's number, its rate, and what it waits for."""

    __slots__ = ("bucket", "connection", "places", "producer")

    def __init__(self, connection: int, producer: int, bucket: Bucket | None) -> None:
        """Begin with nothing blocked."""
        self.connection = connection
        self.producer = producer
        self.bucket = bucket
        self.places: dict[tuple[str, bool], Place] = {}
        """By name, and whether it is that of a topic."""


class Publishers:
    """Every connection, as far as it publishes."""

    def __init__(self, journal: Journal, limits: Limits, admission: Admission) -> None:
        """Begin with nobody."""
        self._journal = journal
        self._limits = limits
        self._admission = admission
        self._all: dict[int, Publisher] = {}
        self._blocked: dict[int, None] = {}  # connections that wait for something, in order
        self._looks_left = 0
        self._looked_offset = 0

    # --- coming and going

    def connect(self, connection: int, producer: int) -> None:
        """A client is there."""
        rate = self._limits.publish_rate_per_connection
        bucket = Bucket(rate, self._journal.now_us) if rate else None
        self._all[connection] = Publisher(connection, producer, bucket)

    def disconnect(self, connection: int) -> None:
        """A client is gone."""
        del self._all[connection]
        self._blocked.pop(connection, None)

    def __getitem__(self, connection: int) -> Publisher:
        """What is known of a connection."""
        return self._all[connection]

    @property
    def producers(self) -> set[int]:
        """The numbers of the producers that are connected."""
        return {publisher.producer for publisher in self._all.values()}

    # --- waiting

    def check_rate(self, publisher: Publisher) -> None:
        """Whether a connection may publish now.

        Raises:
            QueueBlocked: it has published so much that it has to wait.
        """
        bucket = publisher.bucket
        if bucket is not None and not bucket.available(self._journal.now_us):
            raise QueueBlocked(f"the rate of this connection, {bucket.rate} messages a second, is reached")

    def block(self, publisher: Publisher, place: tuple[str, bool], wanted: Wanted, oldest: int, why: str) -> NoReturn:
        """Remember that a connection waits at a place, and refuse what it wanted to publish.

        Raises:
            QueueBlocked: always, unless it waits at too many places.
            LimitExceeded: it waits at too many.
        """
        found = publisher.places.get(place)
        if found is None:
            self._make_place(publisher, oldest)
            found = publisher.places[place] = Place()
        found.refuse(wanted)
        self._blocked[publisher.connection] = None
        raise QueueBlocked(f"{why}: wait until {place[0]!r} is unblocked, then send again, in order")

    def refused(self, connection: int, name: str, sequence: int, *, to_topic: bool) -> None:
        """A batch was refused before anybody looked at it: those behind it need not wait until it comes again."""
        places = self._all[connection].places
        place = places.get((name, to_topic))
        if place is not None:
            place.forget(sequence)
            if not place.expected and not place.waits:
                del places[name, to_topic]

    def _make_place(self, publisher: Publisher, oldest: int) -> None:
        """Let a connection wait at one more place.

        Raises:
            LimitExceeded: it waits at too many.
        """
        places = publisher.places
        if len(places) < PLACES_MAX:
            return
        for key, place in list(places.items()):
            place.give_up(oldest)
            if not place.expected and not place.waits:
                del places[key]
        if len(places) >= PLACES_MAX:
            raise LimitExceeded(f"this connection waits at {len(places)} queues and topics, which is the limit")

    # --- going on

    @property
    def has_more(self) -> bool:
        """Whether the next turn goes on with looking at who waits."""
        return self._looks_left > 0

    def unblock(self) -> None:
        """Tell those who wait for a queue that takes some again: a part of them, if they are many, and who is next."""
        self._looks_left = min(self._looks_left, len(self._blocked))
        if not self._blocked:
            return
        # A round through all of them ends; it begins anew where something has changed that those before may wait for.
        if not self._looks_left or self._looked_offset != self._journal.next_offset:
            self._looks_left, self._looked_offset = len(self._blocked), self._journal.next_offset
        looks = 0
        while self._looks_left and looks < LOOKS_MAX:
            self._looks_left -= 1
            connection = next(iter(self._blocked))
            del self._blocked[connection]
            looks += len(self._all[connection].places)
            if self._waits_still(connection):
                self._blocked[connection] = None

    def _waits_still(self, connection: int) -> bool:
        """Tell a connection of the places that take some again. Whether it waits for others."""
        publisher, waits = self._all[connection], False
        for (name, to_topic), place in list(publisher.places.items()):
            if place.waits:
                queues = self._admission.concerned(name, to_topic=to_topic)
                if self._is_free(publisher, place.first, queues):
                    place.waits = False
                    if not place.expected:
                        del publisher.places[name, to_topic]
                    self._journal.effects.append(Unblocked(0, connection, name))
            waits = waits or place.waits
        return waits

    def _is_free(self, publisher: Publisher, wanted: Wanted, queues: Sequence[Queue]) -> bool:
        now_us = self._journal.now_us
        if publisher.bucket is not None and not publisher.bucket.available(now_us):
            return False
        return all(self._takes(queue, wanted) for queue in queues)

    def _takes(self, queue: Queue, wanted: Wanted) -> bool:
        settings = queue.settings
        if settings.publish_rate and not self._admission.bucket(queue).available(self._journal.now_us):
            return False
        if settings.overflow is not Overflow.BLOCK:
            return True
        if wanted.messages > settings.max_length or wanted.bytes > settings.max_bytes:
            return True  # it never will: the publisher is to hear that
        room = max(wanted.messages, min(settings.max_length // 10, HYSTERESIS_MAX))
        return queue.filled + room <= settings.max_length and queue.filled_bytes + wanted.bytes <= settings.max_bytes

    def next_due_us(self) -> int | None:
        """When somebody may be told that a rate allows more."""
        if not self._admission.has_rates and not self._limits.publish_rate_per_connection:
            return None
        times = []
        now_us = self._journal.now_us
        for connection in self._blocked:
            publisher = self._all[connection]
            buckets = [publisher.bucket] if publisher.bucket is not None else []
            for (name, to_topic), place in publisher.places.items():
                queues = self._admission.concerned(name, to_topic=to_topic) if place.waits else ()
                buckets += [self._admission.bucket(queue) for queue in queues if queue.settings.publish_rate]
            times += [due_us for bucket in buckets if (due_us := bucket.due_us(now_us)) > now_us]
        return min(times, default=None)

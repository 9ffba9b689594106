"""The machine with everything that publishers do: room, queues that block, batches sent again, topics."""

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from hypothesis.stateful import rule

from tests.server.machine import RANDOM, Machine, refused
from tests.server.model import Queue
from tests.server.witness import Sending
from vibemq import events as e
from vibemq.declaration import Overflow
from vibemq.errors import QueueBlocked, QueueFull, RequestError, SequenceTooOld, Unroutable
from vibemq.server import effects as f
from vibemq.server.publishers import HYSTERESIS_MAX
from vibemq.server.publishing import Publish

PATTERNS: Final = ("t.*", "t.#", "t.x", "#.y")
TOPICS: Final[dict[str, set[str]]] = {
    "t.x": {"t.*", "t.#", "t.x"},
    "t.y": {"t.*", "t.#", "#.y"},
    "t": {"t.#"},
    "y": {"#.y"},
    "u": set(),
}
"""Which of the patterns take in which topic."""
Taken: TypeAlias = list[tuple[Queue, int]]
"""How many messages, from the front of a batch, which queue takes."""
Key: TypeAlias = tuple[int, str, bool]
"""A connection, a name, and whether it is that of a topic."""


class Place:
    """Where a connection was told to wait: what the broker knows of that."""

    def __init__(self) -> None:
        self.waits = False
        self.expected: dict[int, tuple[int, int]] = {}
        """By sequence: messages and bytes that were refused and are to come again."""
        self.last = (0, 0)

    @property
    def first(self) -> tuple[int, int]:
        """What room is to be made for."""
        return self.expected[min(self.expected)] if self.expected else self.last

    def refuse(self, sequence: int, count: int, size: int) -> None:
        """Something comes again later. Room is made for the first that waits, not for what is kept back behind it."""
        if not self.waits:
            self.waits, self.last = True, (count, size)
        if sequence:
            self.expected[sequence] = count, size

    def give_up(self, oldest: int) -> None:
        """`oldest` is the first that the client has not given up."""
        self.expected = {number: wanted for number, wanted in self.expected.items() if number >= oldest}

    def has_turn(self, sequence: int, oldest: int) -> bool:
        """Whether a batch is not kept back by others."""
        self.give_up(oldest)
        if self.expected and sequence == min(self.expected):
            del self.expected[sequence]
            return True
        return not self.waits and not (sequence and self.expected)


class Done(NamedTuple):
    """A batch that was stored, with what was confirmed."""

    publish: Publish
    confirmed: f.Confirmed


class PublishingMachine(Machine):
    """Publishers, too."""

    TARGETS: ClassVar[Sequence[str]]
    """Queues to publish to."""
    KEYS: ClassVar[Sequence[int]] = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Done] = []
        self.places: dict[Key, Place] = {}
        self.outstanding: dict[Key, dict[int, Sending]] = {}
        """What clients were refused and will send again, by sequence."""
        self.oldest: dict[int, int] = {}
        """Connection -> the highest `oldest` of what it had stored."""
        self.bindings: dict[int, set[str]] = {}

    def batch(self, random: Random) -> Sending:
        """Some messages."""
        sizes = [random.randint(5, 20) for _ in range(random.choice([1, 1, 3, 8]))]
        bodies = []
        for size in sizes:
            self.bodies += 1
            bodies.append(b"%d" % self.bodies + bytes(size - 4))
        keys = [random.choice(self.KEYS) for _ in sizes]
        return Sending(bodies, keys, random.choice([0, 0, 0, 0, 0, 0, 15, 40]), random.choice([0, 4, 4, 9]))

    @rule(random=RANDOM)
    def publish(self, random: Random) -> None:
        self.publish_to(random, random.choice(self.TARGETS), to_topic=False)

    @rule(random=RANDOM)
    def publish_to_topic(self, random: Random) -> None:
        self.publish_to(random, random.choice(list(TOPICS)), to_topic=True)

    def publish_to(self, random: Random, name: str, *, to_topic: bool) -> None:
        """Publish a new batch."""
        if not to_topic:
            self.declared(random, name)
        connection, sending, sequence = self.connection(random), self.batch(random), 0
        if random.random() < 0.5:
            sequence = self.connections[connection]
            self.connections[connection] += len(sending.bodies)
        self.send((connection, name, to_topic), sequence, sending)
        if random.random() < 0.75:
            self.turn()

    @rule(random=RANDOM)
    def resend(self, random: Random) -> None:
        """Send again what was refused, mostly in order; or give it up."""
        if not self.outstanding:
            return
        key = random.choice(list(self.outstanding))
        waiting = self.outstanding[key]
        sequence = min(waiting) if random.random() < 0.8 else random.choice(list(waiting))
        if random.random() < 0.1:
            del waiting[sequence]
        else:
            self.send(key, sequence, waiting[sequence])
        if not waiting:
            self.outstanding.pop(key, None)

    def send(self, key: Key, sequence: int, sending: Sending) -> None:
        """Publish a batch, and check what is said to that."""
        connection, name, to_topic = key
        unanswered = [n for (owner, *_), waiting in self.outstanding.items() if owner == connection for n in waiting]
        oldest = min([sequence, *unanswered]) if sequence else 0
        expected = self.expected(key, sequence, oldest, sending)
        self.witness.sending = sending
        publish = Publish(connection, 1, name, sequence, sending.batch, oldest, to_topic)
        refusal = refused(lambda: self.rig.broker.publishing.publish(publish))
        self.outstanding.get(key, {}).pop(sequence, None)
        if isinstance(expected, list):
            assert refusal is None
            self.check_stored(publish, sending, expected)
            return
        assert type(refusal) is expected
        assert self.settle() == []
        if expected is QueueBlocked:
            count, size = len(sending.bodies), sum(map(len, sending.bodies))
            self.places.setdefault(key, Place()).refuse(sequence, count, size)
            if sequence:
                self.outstanding.setdefault(key, {})[sequence] = sending

    def check_stored(self, publish: Publish, sending: Sending, taken: Taken) -> None:
        """What was taken was confirmed."""
        count, lane = len(sending.bodies), sending.priority
        first, stored = 1, count  # in a queue that is made on the way
        for queue, some in taken:
            first, stored = queue.next[queue.lane_of(lane)], some
        if publish.to_topic:  # one queue that takes it is enough
            first, stored = 0, count if any(some == count for _, some in taken) or not taken else 0
        (confirmed,) = self.settle()
        offset = next(at for at in range(len(self.rig.log) - 1, -1, -1) if is_publish(self.rig.log[at].event))
        assert confirmed == f.Confirmed(
            offset + 1, publish.connection, 1, offset, first, duplicate=False, dropped=count - stored
        )
        if publish.sequence:
            self.done.append(Done(publish, confirmed))
            self.oldest[publish.connection] = max(self.oldest.get(publish.connection, 0), publish.oldest)

    # --- what is to be expected

    def expected(self, key: Key, sequence: int, oldest: int, sending: Sending) -> Taken | type[RequestError]:
        """Which queues take how much of a batch; or what is said instead."""
        _, name, to_topic = key
        if (place := self.places.get(key)) is not None:
            if not place.has_turn(sequence, oldest):
                return QueueBlocked
            if not place.waits and not place.expected:
                del self.places[key]
        queues = self.or_unroutable(name, to_topic=to_topic)
        if to_topic and not queues and not self.UNROUTABLE:
            return Unroutable
        taken = []
        for queue in queues:
            admitted = self.admitted(queue, sending)
            if not isinstance(admitted, int):
                return admitted
            taken.append((queue, admitted))
        return taken

    def concerned(self, name: str, *, to_topic: bool) -> list[Queue]:
        """The queues that get what is published to a queue, or topic."""
        if to_topic:
            found = [number for number, patterns in self.bindings.items() if patterns & TOPICS[name]]
            return [self.model.queues[number] for number in sorted(found) if number in self.model.queues]
        queue = self.model.named(name)
        return [queue] if queue is not None else []

    def or_unroutable(self, name: str, *, to_topic: bool) -> list[Queue]:
        """The same, or where messages go that no queue is bound to."""
        found = self.concerned(name, to_topic=to_topic)
        if found or not to_topic or not self.UNROUTABLE:
            return found
        return self.concerned(self.UNROUTABLE, to_topic=False)

    def admitted(self, queue: Queue, sending: Sending) -> int | type[RequestError]:
        """How many messages of a batch a queue takes; or what is said instead."""
        sizes, settings = [len(body) for body in sending.bodies], queue.settings
        if queue.drops_the_oldest:
            return len(sizes)
        count = queue.fitting(sizes)
        if count == len(sizes) or settings.overflow is Overflow.DROP_NEWEST:
            return count
        fits_ever = len(sizes) <= settings.max_length and sum(sizes) <= settings.max_bytes
        return QueueBlocked if settings.overflow is Overflow.BLOCK and fits_ever else QueueFull

    # --- queues that block

    def is_handled(self, effect: f.Effect) -> bool:
        if isinstance(effect, f.Unblocked):
            keys = [(effect.connection, effect.name, to_topic) for to_topic in (False, True)]
            free = [key for key in keys if key in self.places and self.is_free(key)]
            assert free, "nobody is to hear of room before there is some"
            key = free[0]
            place = self.places[key]
            place.waits = False
            if not place.expected:
                del self.places[key]
            return True
        return super().is_handled(effect)

    def is_free(self, key: Key) -> bool:
        """Whether somebody who waits is to be told that there is room."""
        _, name, to_topic = key
        place = self.places[key]
        return place.waits and all(
            self.has_room(queue, *place.first) for queue in self.or_unroutable(name, to_topic=to_topic)
        )

    def has_room(self, queue: Queue, count: int, size: int) -> bool:
        settings = queue.settings
        if settings.overflow is not Overflow.BLOCK or count > settings.max_length or size > settings.max_bytes:
            return True
        room = max(count, min(settings.max_length // 10, HYSTERESIS_MAX))
        return queue.length + room <= settings.max_length and queue.bytes + size <= settings.max_bytes

    @rule()
    def turn(self) -> None:
        super().turn()
        assert not any(self.is_free(key) for key in self.places), "somebody waits for a queue that has room"

    # --- the rest

    @rule(random=RANDOM)
    def publish_again(self, random: Random) -> None:
        """A batch whose confirm got lost, or so the client thinks."""
        done = [one for one in self.done if one.publish.connection in self.connections]
        if not done:
            return
        publish, confirmed = random.choice(done if random.random() < 0.2 else done[-2:])
        refusal = refused(lambda: self.rig.broker.publishing.publish(publish))
        if refusal is None:
            assert self.settle() == [confirmed._replace(duplicate=True)]
        else:
            assert type(refusal) is SequenceTooOld
            assert publish.sequence < self.oldest[publish.connection]
            assert self.settle() == []

    @rule(random=RANDOM)
    def bind(self, random: Random) -> None:
        if not self.model.queues:
            return
        queue, pattern = random.choice(list(self.model.queues.values())), random.choice(PATTERNS)
        patterns = self.bindings.setdefault(queue.number, set())
        queues = self.rig.broker.queues
        command: Any = queues.unbind if pattern in patterns else queues.bind
        command(self.connection(random), 1, queue.name, pattern)
        patterns ^= {pattern}
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": 1}

    def disconnected(self, connection: int) -> None:
        super().disconnected(connection)
        self.places = {key: place for key, place in self.places.items() if key[0] != connection}
        self.outstanding = {key: waiting for key, waiting in self.outstanding.items() if key[0] != connection}

    def restarted(self) -> None:
        super().restarted()
        self.places.clear()
        self.outstanding.clear()
        self.done.clear()


def is_publish(event: e.Event) -> bool:
    """Whether a batch was stored."""
    return isinstance(event, e.Published | e.Routed)

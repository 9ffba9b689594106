"""The machine with everything that publishers do: room, queues that block, batches sent again, topics."""

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from hypothesis.stateful import rule

from tests.server.machine import RANDOM, Machine, refused
from tests.server.model import Queue
from tests.server.witness import Sending
from vibemq import events as e
from vibemq.errors import QueueBlocked, QueueFull, RequestError, Unroutable
from vibemq.server import effects as f
from vibemq.server.publishing import HYSTERESIS_MAX, Publish

PATTERNS: Final = ("t.*", "t.#", "t.x", "#.y")
TOPICS: Final[dict[str, set[str]]] = {
    "t.x": {"t.*", "t.#", "t.x"},
    "t.y": {"t.*", "t.#", "#.y"},
    "t": {"t.#"},
    "y": {"#.y"},
    "u": set[str](),
}
"""Which of the patterns take in which topic."""
Taken: TypeAlias = list[tuple[Queue, int]]
"""How many messages, from the front of a batch, which queue takes."""


class Blocked(NamedTuple):
    """What a connection waits for that was told to wait."""

    to_topic: bool
    messages: int
    bytes: int


class Done(NamedTuple):
    """A batch that was stored, with what was confirmed."""

    connection: int
    name: str
    to_topic: bool
    sequence: int
    sending: Sending
    confirmed: f.Confirmed


class PublishingMachine(Machine):
    """Publishers, too."""

    TARGETS: ClassVar[Sequence[str]]
    """Queues to publish to."""
    KEYS: ClassVar[Sequence[int]] = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Done] = []
        self.blocked: dict[tuple[int, str], Blocked] = {}
        self.bindings: dict[int, set[str]] = {}

    def batch(self, random: Random) -> Sending:
        """Some messages."""
        sizes = [random.randint(5, 20) for _ in range(random.choice([1, 1, 3, 8]))]
        bodies = []
        for size in sizes:
            self.bodies += 1
            bodies.append(b"%d" % self.bodies + bytes(size - 4))
        keys = [random.choice(self.KEYS) for _ in sizes]
        return Sending(bodies, keys, random.choice([0, 0, 0, 15, 40]), random.choice([0, 4, 4, 9]))

    @rule(random=RANDOM)
    def publish(self, random: Random) -> None:
        self.send(random, random.choice(self.TARGETS), to_topic=False)

    @rule(random=RANDOM)
    def publish_to_topic(self, random: Random) -> None:
        self.send(random, random.choice(list(TOPICS)), to_topic=True)

    def send(self, random: Random, name: str, *, to_topic: bool) -> None:
        """Publish a batch, and check what is said to that."""
        connection, sending = self.connection(random), self.batch(random)
        sequence = self.connections[connection] if random.random() < 0.5 else 0
        expected = self.expected(connection, name, sending, to_topic=to_topic)
        self.witness.sending = sending
        publish = Publish(connection, 1, name, sequence, sending.batch, 0, to_topic)
        refusal = refused(lambda: self.rig.broker.publishing.publish(publish))
        if isinstance(expected, list):
            assert refusal is None
            self.check_stored(publish, sending, expected)
        else:
            assert type(refusal) is expected
            assert self.settle() == []
            if expected is QueueBlocked and (connection, name) not in self.blocked:
                self.blocked[connection, name] = Blocked(to_topic, len(sending.bodies), sum(map(len, sending.bodies)))
        if random.random() < 0.75:
            self.turn()

    def check_stored(self, publish: Publish, sending: Sending, taken: Taken) -> None:
        """What was taken was confirmed."""
        name, count, lane = publish.name, len(sending.bodies), sending.priority
        first, stored = 1, count  # in a queue that is made on the way
        for queue, some in taken:
            first, stored = queue.next[queue.lane_of(lane)], some
        if publish.to_topic:  # one queue that takes it is enough
            first, stored = 0, count if any(some == count for _, some in taken) or not taken else 0
        (confirmed,) = self.settle()
        offset = next(at for at in range(len(self.rig.log) - 1, -1, -1) if is_publish(self.rig.log[at].event))
        expected = f.Confirmed(
            offset + 1, publish.connection, 1, offset, first, duplicate=False, dropped=count - stored
        )
        assert confirmed == expected
        if publish.sequence:
            self.connections[publish.connection] += count
            self.done.append(Done(publish.connection, name, publish.to_topic, publish.sequence, sending, confirmed))

    # --- what is to be expected

    def expected(self, connection: int, name: str, sending: Sending, *, to_topic: bool) -> Taken | type[RequestError]:
        """Which queues take how much of a batch; or what is said instead."""
        if (connection, name) in self.blocked:
            return QueueBlocked
        if not to_topic:
            queue = self.model.named(name)
            queues = [queue] if queue is not None else []
        elif not (queues := self.bound_to(name)):
            if not self.UNROUTABLE:
                return Unroutable
            queue = self.model.named(self.UNROUTABLE)
            queues = [queue] if queue is not None else []
        taken = []
        for queue in queues:
            admitted = self.admitted(queue, sending)
            if not isinstance(admitted, int):
                return admitted
            taken.append((queue, admitted))
        return taken

    def bound_to(self, topic: str) -> list[Queue]:
        """The queues that get what is published to a topic."""
        found = [number for number, patterns in self.bindings.items() if patterns & TOPICS[topic]]
        return [self.model.queues[number] for number in sorted(found)]

    def admitted(self, queue: Queue, sending: Sending) -> int | type[RequestError]:
        """How many messages of a batch a queue takes; or what is said instead."""
        sizes, settings = [len(body) for body in sending.bodies], queue.settings
        if queue.drops_the_oldest:
            return len(sizes)
        count = queue.fitting(sizes)
        if count == len(sizes) or settings.overflow is e.Overflow.DROP_NEWEST:
            return count
        fits_ever = len(sizes) <= settings.max_length and sum(sizes) <= settings.max_bytes
        return QueueBlocked if settings.overflow is e.Overflow.BLOCK and fits_ever else QueueFull

    # --- queues that block

    def is_handled(self, effect: f.Effect) -> bool:
        if isinstance(effect, f.Unblocked):
            assert self.is_free(effect.name, self.blocked.pop((effect.connection, effect.name)))
            return True
        return super().is_handled(effect)

    def is_free(self, name: str, wanted: Blocked) -> bool:
        """Whether there is room for what was refused."""
        queue = self.model.named(name)
        queues = self.bound_to(name) if wanted.to_topic else [queue] if queue is not None else []
        return all(self.has_room(queue, wanted) for queue in queues)

    def has_room(self, queue: Queue, wanted: Blocked) -> bool:
        settings = queue.settings
        if settings.overflow is not e.Overflow.BLOCK:
            return True
        if wanted.messages > settings.max_length or wanted.bytes > settings.max_bytes:
            return True
        room = max(wanted.messages, min(settings.max_length // 10, HYSTERESIS_MAX))
        return queue.length + room <= settings.max_length and queue.bytes + wanted.bytes <= settings.max_bytes

    @rule()
    def turn(self) -> None:
        super().turn()
        for (_, name), wanted in self.blocked.items():
            assert not self.is_free(name, wanted), "somebody waits for a queue that has room"

    # --- the rest

    @rule(random=RANDOM)
    def publish_again(self, random: Random) -> None:
        if not self.done:
            return
        one = random.choice(self.done)
        if one.connection in self.connections:
            again = Publish(one.connection, 1, one.name, one.sequence, one.sending.batch, 0, one.to_topic)
            self.rig.broker.publishing.publish(again)
            assert self.settle() == [one.confirmed._replace(duplicate=True)]

    @rule(random=RANDOM)
    def bind(self, random: Random) -> None:
        if not self.model.queues:
            return
        number, pattern = random.choice(list(self.model.queues)), random.choice(PATTERNS)
        patterns = self.bindings.setdefault(number, set())
        kind: Any = e.Unbound if pattern in patterns else e.Bound
        self.rig.broker.journal.record(kind(number, pattern, 0))
        patterns ^= {pattern}
        assert self.settle() == []

    def disconnected(self, connection: int) -> None:
        for place in [place for place in self.blocked if place[0] == connection]:
            del self.blocked[place]

    def deleted(self, queue: Queue) -> None:
        self.bindings.pop(queue.number, None)
        self.done = [one for one in self.done if one.name != queue.name]

    def restarted(self) -> None:
        self.blocked.clear()
        self.done.clear()


def is_publish(event: e.Event) -> bool:
    """Whether a batch was stored."""
    return isinstance(event, e.Published | e.Routed)

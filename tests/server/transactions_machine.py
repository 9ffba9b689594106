"""The machine with transactions: committed whole or not at all, again, late, and by a client that has come anew."""

from collections import defaultdict
from random import Random
from typing import Final, NamedTuple

from hypothesis.stateful import rule

from tests.server.machine import RANDOM, refused
from tests.server.model import MS, Consumer, Queue
from tests.server.publishing_machine import TOPICS, Key, Place, PublishingMachine, Taken
from tests.server.witness import Sending
from vibemq import events as e
from vibemq.declaration import Mode, Overflow
from vibemq.errors import (
    QueueBlocked,
    QueueFull,
    RequestError,
    SequenceTooOld,
    TransactionConflict,
    TransactionEnded,
    TransactionTimeout,
    Unroutable,
)
from vibemq.server import effects as f
from vibemq.server.publishing import Publish
from vibemq.server.transactions import Commit

TIMEOUT_MS: Final = 40
QUEUES_MAX: Final = 6
"""With fewer queues some are created on the way."""


class Part(NamedTuple):
    """A batch that is to be stored by a transaction."""

    key: Key
    sending: Sending


class Ask(NamedTuple):
    """A transaction as its client has it. `acks` are those of its consumers."""

    epoch: int
    sequence: int
    oldest: int
    parts: list[Part]
    acks: list[tuple[Consumer, tuple[tuple[int, int], ...]]]

    def commit(self, connection: int, request: int) -> Commit:
        """How it is sent by a connection."""
        publishes = [
            Publish(connection, 0, name, 0, sending.batch, 0, to_topic) for (_, name, to_topic), sending in self.parts
        ]
        acks = [(consumer.number, runs) for consumer, runs in self.acks]
        return Commit(connection, request, self.epoch, self.sequence, publishes, acks, self.oldest)


class Together:
    """What a transaction does to queues, as far as it was looked at, by their numbers."""

    def __init__(self) -> None:
        self.count: dict[int, int] = defaultdict(int)
        self.bytes: dict[int, int] = defaultdict(int)
        self.freed: dict[int, int] = defaultdict(int)
        self.freed_bytes: dict[int, int] = defaultdict(int)

    def add(self, queue: Queue, sizes: list[int]) -> None:
        """Messages come."""
        self.count[queue.number] += len(sizes)
        self.bytes[queue.number] += sum(sizes)

    def fitting(self, queue: Queue, sizes: list[int]) -> int:
        """How many messages from the front a queue has room for then."""
        number, settings = queue.number, queue.settings
        length = queue.length + self.count[number] - self.freed[number]
        size = queue.bytes + self.bytes[number] - self.freed_bytes[number]
        count = 0
        while count < len(sizes):
            if length + count + 1 > settings.max_length or size + sum(sizes[: count + 1]) > settings.max_bytes:
                break
            count += 1
        return count


def blocks(queue: Queue) -> bool:
    """Whether publishers wait for room in a queue."""
    return queue.settings.overflow is Overflow.BLOCK


class TransactionsMachine(PublishingMachine):
    """Transactions, too."""

    def __init__(self) -> None:
        super().__init__()
        self.producer_of: dict[int, int] = {}
        self.attempts: dict[int, dict[int, int]] = {}
        """Connection -> epoch -> until when it is open."""
        self.committed: dict[int, list[tuple[Ask, f.Committed]]] = {}
        """Connection -> what it knows to be carried out, that has a sequence."""
        self.recalls: dict[int, f.Committed] = {}
        """Request -> how it is to be answered when the record has been read."""

    def connect(self) -> None:
        before = set(self.connections)
        super().connect()
        for number in set(self.connections) - before:
            self.producer_of[number], self.attempts[number] = self.producers, {}

    @rule(random=RANDOM)
    def begin(self, random: Random) -> None:
        """Open an attempt, and leave it."""
        self.epoch(self.connection(random), random)

    def epoch(self, connection: int, random: Random) -> int:
        """A new attempt."""
        timeout_ms = random.choice([0, 3, TIMEOUT_MS])
        self.rig.broker.transactions.begin(connection, 1, timeout_ms)
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        epoch = int(answer.result["epoch"])
        assert all(epoch not in attempts for attempts in self.attempts.values())
        self.attempts[connection][epoch] = self.rig.now_us + (timeout_ms or self.LIMITS.transaction_ms) * MS
        return epoch

    @rule(random=RANDOM)
    def rollback(self, random: Random) -> None:
        """Give an attempt up."""
        connection = self.connection(random)
        if self.attempts[connection]:
            epoch = random.choice(list(self.attempts[connection]))
            del self.attempts[connection][epoch]
            self.rig.broker.transactions.rollback(connection, 1, epoch)
            assert self.settle() == [f.Answer(0, connection, 1, None)]

    # --- committing

    @rule(random=RANDOM)
    def commit(self, random: Random) -> None:
        """Some publishes and acks, which may be too late."""
        consumer = self.consumer(random) if random.random() < 0.8 else None
        connection = consumer.connection if consumer is not None else self.connection(random)
        if connection not in self.connections:
            return
        mine = [one for one in self.model.consumers.values() if one.connection == connection and one.open]
        parts = [self.part(random, connection) for _ in range(random.choice([0, 1, 1, 2, 4]))]
        acking = random.sample(mine, min(len(mine), random.choice([0, 1, 1, 2])))
        acks = [(one, self.held(random, one)) for one in acking]
        sequence = oldest = 0
        if random.random() < 0.6:
            sequence = self.connections[connection]
            self.connections[connection] += 1
            unanswered = [n for (who, *_), waiting in self.outstanding.items() if who == connection for n in waiting]
            oldest = min([sequence, *unanswered])
        attempts = list(self.attempts[connection])
        epoch = random.choice(attempts) if attempts and random.random() < 0.6 else self.epoch(connection, random)
        self.attempt(connection, Ask(epoch, sequence, oldest, parts, acks), random)
        if random.random() < 0.75:
            self.turn()

    def part(self, random: Random, connection: int) -> Part:
        """A batch for a queue or a topic."""
        if random.random() < 0.25:
            return Part((connection, random.choice(list(TOPICS)), True), self.batch(random))
        name = random.choice(self.TARGETS)
        if random.random() < 0.2 and len(self.model.queues) < QUEUES_MAX:
            name = f"new.{random.randrange(QUEUES_MAX)}"
        elif random.random() < 0.7:
            self.declared(random, name)
        return Part((connection, name, False), self.batch(random))

    def held(self, random: Random, consumer: Consumer) -> tuple[tuple[int, int], ...]:
        """Some of what a consumer holds; sometimes of what it held."""
        if random.random() < 0.15:
            return self.runs(random, consumer)
        numbers = sorted(consumer.open)
        chosen = random.sample(numbers, random.randint(1, min(len(numbers), 6)))
        return tuple((number, number + 1) for number in chosen)

    def attempt(self, connection: int, ask: Ask, random: Random) -> None:
        """Commit, and check what is said to that."""
        request, together = self.request(), Together()
        known = self.attempts[connection].get(ask.epoch)
        expected: list[Taken] | type[RequestError]
        blocked: Part | None = None
        if known is None:
            expected = TransactionEnded
        elif known <= self.rig.now_us:
            expected = TransactionTimeout
        elif any(self.is_gone(consumer, runs) for consumer, runs in ask.acks):
            expected = TransactionConflict
        else:
            self.free(ask, together)
            expected, blocked = self.taking(ask, together)
        commit = ask.commit(connection, request)
        refusal = refused(lambda: self.rig.broker.transactions.commit(commit))
        assert (refusal and type(refusal)) == (None if isinstance(expected, list) else expected)
        if blocked is not None:  # the attempt stays open
            wanted = self.wanted(ask, blocked, together)
            self.places.setdefault(blocked.key, Place()).refuse(0, *wanted)
        else:
            self.attempts[connection].pop(ask.epoch, None)
        if not isinstance(expected, list):
            self.check_nothing_done()
            return
        for consumer, runs in ask.acks:
            for copy in consumer.take_back(runs):
                consumer.group.settle(copy)
        stored = self.stored(ask, expected)
        self.witness.committing = [(to_topic, sending) for (_, _, to_topic), sending in ask.parts]
        (committed,) = self.settle()
        offset = len(self.rig.log) - 1
        assert isinstance(self.rig.log[offset].event, e.TransactionCommitted)
        assert committed == f.Committed(offset + 1, connection, request, offset, duplicate=False, stored=stored)
        if ask.sequence:
            self.oldest[connection] = max(self.oldest.get(connection, 0), ask.oldest)
            self.committed.setdefault(connection, []).append((ask, committed))
        if random.random() < 0.3:  # it is over
            again = ask._replace(sequence=0, acks=[])
            assert type(refused(lambda: self.rig.broker.transactions.commit(again.commit(connection, 1)))) is (
                TransactionEnded
            )
            self.check_nothing_done()

    def check_nothing_done(self) -> None:
        """A commit left no record, and said nothing else."""
        known = len(self.rig.log)
        assert self.settle() == []
        assert len(self.rig.log) == known

    def is_gone(self, consumer: Consumer, runs: tuple[tuple[int, int], ...]) -> bool:
        """Whether some of these are not the consumer's any more."""
        if consumer.number not in self.model.consumers:
            return True
        if consumer.group.queue.settings.mode is Mode.FAN_OUT_NO_ACK:
            return False
        return any(number not in consumer.open for start, end in runs for number in range(start, end))

    def free(self, ask: Ask, together: Together) -> None:
        """What is acked makes room where it is of the one group."""
        for consumer, runs in ask.acks:
            queue = consumer.group.queue
            if not queue.settings.mode.has_groups:
                for number in {number for start, end in runs for number in range(start, end)}:
                    together.freed[queue.number] += 1
                    together.freed_bytes[queue.number] += len(consumer.open[number][0].message.content.body)

    def taking(self, ask: Ask, together: Together) -> tuple[list[Taken] | type[RequestError], Part | None]:
        """For each batch what queues take of it, or what is said instead; and the batch that has to wait."""
        found: list[Taken] = []
        for part in ask.parts:
            _, name, to_topic = part.key
            queues = self.or_unroutable(name, to_topic=to_topic)
            if to_topic and not queues and not self.UNROUTABLE and not self.has_to_wait(ask, part.key):
                return Unroutable, None
            sizes = [len(body) for body in part.sending.bodies]
            taken = QueueBlocked if self.has_to_wait(ask, part.key) else self.taken(ask, queues, sizes, together)
            if taken is QueueBlocked:
                will_never_fit = any(blocks(queue) and self.is_too_much(queue, ask) for queue in queues)
                return (QueueFull, None) if will_never_fit else (QueueBlocked, part)
            if not isinstance(taken, list):
                return taken, None
            if to_topic:  # all of it or nothing
                taken = [(queue, count) for queue, count in taken if count == len(sizes)]
            for queue, count in taken:
                together.add(queue, sizes[:count])
            found.append(taken)
        return found, None

    def has_to_wait(self, ask: Ask, key: Key) -> bool:
        """Whether something else comes first."""
        if (place := self.places.get(key)) is None:
            return False
        place.give_up(ask.oldest)
        if not place.waits and not place.expected:
            del self.places[key]
        return place.waits or bool(ask.sequence and place.expected)

    def taken(self, ask: Ask, queues: list[Queue], sizes: list[int], together: Together) -> Taken | type[RequestError]:
        """What queues take of a batch; or what is said instead."""
        taken = []
        for queue in queues:
            count = len(sizes) if queue.drops_the_oldest else together.fitting(queue, sizes)
            if count < len(sizes) and queue.settings.overflow is not Overflow.DROP_NEWEST:
                return QueueBlocked if blocks(queue) and not self.is_too_much(queue, ask) else QueueFull
            taken.append((queue, count))
        return taken

    def brought(self, queue: Queue, ask: Ask) -> list[int]:
        """The sizes of all that a transaction brings to a queue."""
        return [
            len(body)
            for (_, name, to_topic), sending in ask.parts
            if queue in self.or_unroutable(name, to_topic=to_topic)
            for body in sending.bodies
        ]

    def is_too_much(self, queue: Queue, ask: Ask) -> bool:
        """Whether a transaction brings more to a queue than that can ever hold."""
        sizes = self.brought(queue, ask)
        return len(sizes) > queue.settings.max_length or sum(sizes) > queue.settings.max_bytes

    def wanted(self, ask: Ask, blocked: Part, together: Together) -> tuple[int, int]:
        """What room is to be made for: all that the transaction brings to the queues that one batch is for."""
        _, name, to_topic = blocked.key
        count = size = 0
        for queue in self.or_unroutable(name, to_topic=to_topic):
            sizes = self.brought(queue, ask)
            count = max(count, len(sizes) - together.freed[queue.number])
            size = max(size, sum(sizes) - together.freed_bytes[queue.number])
        return count, size

    def stored(self, ask: Ask, found: list[Taken]) -> tuple[f.Stored, ...]:
        """What its client is to hear of each batch."""
        arrived: dict[tuple[str, int], int] = defaultdict(int)
        answers, index = dict[int, f.Stored](), 0
        for at, part in sorted(enumerate(ask.parts), key=lambda one: one[1].key[2]):
            (_, name, to_topic), sending = part
            count, taken = len(sending.bodies), found[at]
            if to_topic:
                stored = count if taken or not self.or_unroutable(name, to_topic=True) else 0
                answers[at] = f.Stored(index, 0, count - stored)
                index += count
                continue
            stored = taken[0][1] if taken else count
            queue = self.model.named(name)
            lane = queue.lane_of(sending.priority) if queue is not None else 0
            first = (queue.next[lane] if queue is not None else 1) + arrived[name, lane]
            answers[at] = f.Stored(index, first, count - stored)
            arrived[name, lane] += stored
            index += stored
        return tuple(answers[at] for at in range(len(ask.parts)))

    # --- once more

    @rule(random=RANDOM)
    def commit_again(self, random: Random) -> None:
        """The answer got lost, or so the client thinks."""
        connections = [one for one in self.connections if self.committed.get(one)]
        if connections:
            connection = random.choice(connections)
            known = self.committed[connection]
            ask, committed = random.choice(known if random.random() < 0.2 else known[-2:])
            self.recall(connection, ask, committed)

    def recall(self, connection: int, ask: Ask, committed: f.Committed) -> None:
        """Commit what is carried out."""
        request = self.request()
        refusal = refused(lambda: self.rig.broker.transactions.commit(ask.commit(connection, request)))
        if refusal is None:
            self.recalls[request] = committed._replace(connection=connection, request=request, duplicate=True)
        else:
            assert type(refusal) is SequenceTooOld
            assert ask.sequence < self.oldest[connection]
        self.check_nothing_done()

    @rule(random=RANDOM)
    def come_anew(self, random: Random) -> None:
        """A client comes by another connection, and what it sent by the old one arrives after that."""
        if not self.connections or random.random() < 0.7:
            return
        old = self.connection(random)
        new = self.rig.broker.connect("c", "here", "binary", self.producer_of[old])
        self.connections[new] = self.connections[old]
        self.producer_of[new], self.attempts[new] = self.producer_of[old], {}
        self.oldest[new] = self.oldest.get(old, 0)
        self.committed[new] = self.committed.get(old, [])
        assert self.settle() == []
        late = [Ask(epoch, self.connections[new] + 7, 0, [self.part(random, old)], []) for epoch in self.attempts[old]]
        for ask in late:
            for connection in (old, new):
                refusal = refused(lambda: self.rig.broker.transactions.commit(ask.commit(connection, 1)))  # noqa: B023
                assert type(refusal) is TransactionEnded
                self.check_nothing_done()
        for ask, committed in self.committed[new][-1:]:
            self.recall(new, ask, committed)
        self.hang_up(old, lost=random.random() < 0.5)

    def hang_up(self, number: int, *, lost: bool) -> None:
        """A connection ends."""
        del self.connections[number]
        self.rig.broker.disconnect(number, "gone", lost=lost)
        for consumer in [one for one in self.model.consumers.values() if one.connection == number]:
            self.model.leave(consumer, lost=lost)
        assert self.settle() == []
        self.disconnected(number)

    def is_handled(self, effect: f.Effect) -> bool:
        if isinstance(effect, f.Committed) and effect.duplicate and effect.connection in self.connections:
            assert effect == self.recalls.pop(effect.request)
            return True
        return super().is_handled(effect)

    def disconnected(self, connection: int) -> None:
        super().disconnected(connection)
        del self.attempts[connection], self.producer_of[connection]
        self.committed.pop(connection, None)
        self.recalls = {request: one for request, one in self.recalls.items() if one.connection != connection}

    def restarted(self) -> None:
        super().restarted()
        for known in (self.attempts, self.committed, self.recalls, self.producer_of):
            known.clear()

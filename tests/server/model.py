"""What queues should do, written naively: an object for each message, and a search through all of them for everything.

Nothing here is shared with the broker. The model does not choose who gets a message: it is told of each delivery,
checks that it was allowed, and says afterwards whether one was forgotten. It is told in which order messages arrive in
a dead-letter queue, too, and checks that they are the right ones.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field


class State(enum.Enum):
    """Where a message is."""

    READY = 1
    UNACKED = 2
    WAITING = 3
    SETTLED = 4


@dataclass(eq=False)
class Message:
    """One message in one queue."""

    body: bytes
    id: tuple[int, int]
    sequence: int
    state: State = State.READY
    failed: int = 0
    handed_out: bool = False
    maybe_sent: bool = False
    due_us: int = 0


@dataclass(eq=False)
class Consumer:
    """One subscription."""

    number: int
    queue: "ModelQueue"
    connection: int
    credit_messages: int
    credit_bytes: int
    handed: int = 0
    next_delivery: int = 1
    open: dict[int, tuple[Message, int]] = field(default_factory=dict)
    """Delivery number -> (message, end of its lease)."""
    pull_until_us: int | None = None
    pulled: bool = False

    @property
    def has_credit(self) -> bool:
        """Whether it may be sent something."""
        return self.credit_messages > 0 and self.credit_bytes > 0


@dataclass(eq=False)
class ModelQueue:
    """One queue."""

    name: str
    max_attempts: int
    lease_us: int
    retry_us: int
    dead_name: str
    messages: list[Message] = field(default_factory=list)
    next: int = 1
    is_dead_letter_queue: bool = False
    has_own_target: bool = False
    """Whether it was told where its dead letters go, which holds for a dead-letter queue too."""
    served: list[int] = field(default_factory=list)
    """Who got a run of messages, in order."""

    def add(self, body: bytes, identity: tuple[int, int]) -> None:
        """A message becomes ready."""
        self.messages.append(Message(body, identity, self.next))
        self.next += 1

    def of(self, state: State) -> list[Message]:
        """The messages in that state, oldest first."""
        return [message for message in self.messages if message.state is state]


class Model:
    """All queues and consumers."""

    def __init__(self) -> None:
        self.queues: dict[str, ModelQueue] = {}
        self.consumers: dict[int, Consumer] = {}
        self.now_us = 0
        self.dead: list[tuple[ModelQueue, Message]] = []
        """Messages that have failed for good, and that nothing was heard of yet."""

    def of_queue(self, queue: ModelQueue) -> list[Consumer]:
        """Its consumers, oldest first."""
        return [consumer for consumer in self.consumers.values() if consumer.queue is queue]

    def deliver(self, number: int, delivery: int, bodies: list[bytes], attempt: int, *, redelivered: bool) -> None:
        """Messages were handed to a consumer: the oldest ready ones, within its credit, told apart by what they are."""
        consumer = self.consumers[number]
        queue = consumer.queue
        assert delivery == consumer.next_delivery
        assert consumer.has_credit, "nobody is sent anything without credit"
        size = sum(map(len, bodies))
        assert len(bodies) == 1 or size <= consumer.credit_bytes, "only a lone message may be larger than the credit"
        for body in bodies:
            message = queue.of(State.READY)[0]
            assert message.body == body
            assert message.failed + 1 == attempt
            assert (message.handed_out or message.maybe_sent) == redelivered
            message.state, message.handed_out = State.UNACKED, True
            consumer.open[consumer.next_delivery] = message, self.now_us + queue.lease_us
            consumer.next_delivery += 1
        consumer.credit_messages -= len(bodies)
        consumer.credit_bytes -= size
        consumer.pulled = True
        assert consumer.credit_messages >= 0
        if queue.served[-1:] != [number]:
            queue.served.append(number)

    def take_back(self, number: int, runs: Iterable[tuple[int, int]]) -> list[Message]:
        """Close those deliveries that are still open."""
        consumer = self.consumers.get(number)
        if consumer is None:
            return []
        asked = [delivery for start, end in runs for delivery in range(start, end)]
        return [consumer.open.pop(delivery)[0] for delivery in asked if delivery in consumer.open]

    def settle(self, messages: list[Message]) -> None:
        """These are done."""
        for message in messages:
            message.state = State.SETTLED

    def fail(self, queue: ModelQueue, messages: list[Message], delay_us: int | None, *, reject: bool = False) -> None:
        """An attempt failed for each."""
        delay_us = queue.retry_us if delay_us is None else delay_us
        for message in messages:
            message.failed += 1
            if reject or (queue.max_attempts and message.failed >= queue.max_attempts):
                message.state = State.SETTLED
                self.dead.append((queue, message))
            elif delay_us:
                message.state, message.due_us = State.WAITING, self.now_us + delay_us
            else:
                message.state = State.READY

    def leave(self, number: int, *, lost: bool) -> None:
        """A consumer goes."""
        consumer = self.consumers[number]
        if lost:
            self.fail(consumer.queue, self.take_back(number, [(0, consumer.handed)]), None)
        for message in self.take_back(number, [(0, consumer.next_delivery)]):
            message.state = State.READY
        del self.consumers[number]

    def tick(self) -> list[tuple[int, int]]:
        """Time has passed; the deliveries (consumer, number) whose leases have ended by that."""
        lost = []
        for number, consumer in self.consumers.items():
            for delivery, (_, until_us) in list(consumer.open.items()):
                if until_us <= self.now_us:
                    lost.append((number, delivery))
                    self.fail(consumer.queue, self.take_back(number, [(delivery, delivery + 1)]), None)
        for queue in self.queues.values():
            for message in queue.of(State.WAITING):
                if message.due_us <= self.now_us:
                    message.state = State.READY
        return lost

    def next_due_us(self) -> int | None:
        """When something happens by itself."""
        times = [until_us for consumer in self.consumers.values() for _, until_us in consumer.open.values()]
        times += [message.due_us for queue in self.queues.values() for message in queue.of(State.WAITING)]
        times += [one.pull_until_us for one in self.consumers.values() if one.pull_until_us is not None]
        return min(times, default=None)

    def purge(self, queue: ModelQueue) -> int:
        """Throw away what nobody holds; how many that were."""
        gone = queue.of(State.READY) + queue.of(State.WAITING)
        self.settle(gone)
        return len(gone)

    def delete(self, queue: ModelQueue) -> None:
        """Forget a queue and its consumers."""
        del self.queues[queue.name]
        self.consumers = {n: consumer for n, consumer in self.consumers.items() if consumer.queue is not queue}

    def restart(self, *, clean: bool) -> None:
        """Nobody is connected any more; after a crash anything that could be sent may have been."""
        for queue in self.queues.values():
            if self.of_queue(queue) and not clean:
                for message in queue.messages:
                    message.maybe_sent = True
            for message in queue.of(State.UNACKED):
                message.state = State.READY
            queue.served.clear()
        self.consumers.clear()

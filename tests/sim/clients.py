"""Clients of the simulated broker: they publish, consume, make mistakes, leave, come back and send again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.sim.checker import Checker, Violation
from vibemq.batch import Batch, pack
from vibemq.errors import RequestError
from vibemq.server import effects as f
from vibemq.server.broker import Broker

QUEUES = ("work", "work", "jobs")
DEAD = "dead"
SETTINGS: dict[str, dict[str, Any]] = {
    "work": {"max_attempts": 3, "lease_ms": 40, "retry_delay_ms": 15, "dead_letter_queue": DEAD},
    "jobs": {"max_attempts": 2, "lease_ms": 25, "dead_letter_queue": DEAD},
    DEAD: {"max_attempts": 0, "lease_ms": 60},
}


@dataclass
class Unconfirmed:
    """A batch that was sent, and may have to be sent again."""

    queue: str
    sequence: int
    bodies: list[bytes]


@dataclass
class Consumer:
    """A subscription as its client sees it."""

    queue: str
    open: dict[int, bytes] = field(default_factory=dict)
    received: int = 0


class Client:
    """One client, with a producer's number that survives its connections."""

    def __init__(self, producer: int, random: Random, checker: Checker) -> None:
        self.producer, self.random, self.checker = producer, random, checker
        self.connection = 0
        self.sequence = 1
        self.published = 0
        self.unconfirmed: list[Unconfirmed] = []
        self.requests: dict[int, Callable[[], None]] = {}
        self.publishes: dict[int, Unconfirmed] = {}
        self.next_request = 1
        self.consumers: dict[int, Consumer] = {}

    # --- coming and going

    def connect(self, broker: Broker) -> None:
        """Say hello, declare what is used, and send again what was not confirmed."""
        self.connection = broker.connect(f"client {self.producer}", "simulated", "binary", self.producer)
        for name in sorted(SETTINGS):
            broker.declare(self.connection, self.ask(), name, SETTINGS[name])
        for batch in self.unconfirmed:
            self.send(broker, batch)

    def lost(self) -> None:
        """The connection is gone, with all that was asked on it."""
        self.connection = 0
        self.requests.clear()
        self.publishes.clear()
        self.consumers.clear()

    def ask(self, answered: Callable[[], None] | None = None) -> int:
        """The number of a new request."""
        number = self.next_request
        self.next_request += 1
        if answered is not None:
            self.requests[number] = answered
        return number

    # --- what it does

    def act(self, broker: Broker) -> None:
        """Do something."""
        if not self.connection:
            self.connect(broker)
            return
        actions = (self.publish, self.subscribe, self.credit, self.ack, self.nack, self.extend, self.leave, self.wreck)
        action = self.random.choices(actions, (30, 6, 18, 34, 12, 3, 3, 0.3))[0]
        with suppress(RequestError):  # refused: the client knows, and goes on
            action(broker)

    def publish(self, broker: Broker) -> None:
        """Publish a new batch."""
        bodies = []
        for _ in range(self.random.choice((1, 1, 2, 7))):
            self.published += 1
            bodies.append(b"%d/%d/" % (self.producer, self.published) * self.random.choice((1, 1, 8, 40)))
        batch = Unconfirmed(self.random.choice(QUEUES), self.sequence, bodies)
        self.sequence += len(bodies)
        self.unconfirmed.append(batch)
        self.send(broker, batch)

    def send(self, broker: Broker, batch: Unconfirmed) -> None:
        """Send a batch, for the first time or again."""
        self.checker.attempted(batch.queue, batch.bodies)
        request = self.ask()
        self.publishes[request] = batch
        data = Batch(b"".join(pack(batch.bodies)))
        broker.publish(self.connection, request, batch.queue, batch.sequence, data)

    def subscribe(self, broker: Broker) -> None:
        """Consume from a queue."""
        if len(self.consumers) < 3:
            queue = self.random.choice((*QUEUES, DEAD))
            credit = self.random.choice((0, 3, 50))
            broker.subscribe(self.connection, self.ask(), queue, None, credit, 100_000)

    def _consumer(self) -> tuple[int, Consumer] | None:
        return self.random.choice(list(self.consumers.items())) if self.consumers else None

    def credit(self, broker: Broker) -> None:
        """Ask for more, and tell what the application has seen."""
        if found := self._consumer():
            number, consumer = found
            handed = self.random.randint(0, consumer.received + 1)
            wait_ms = self.random.choice((-1, -1, -1, 5))
            messages, size = self.random.choice(((1, 50), (5, 1000), (30, 100_000)))
            broker.deliveries.credit(self.connection, number, messages, size, handed, wait_ms)

    def _some(self, consumer: Consumer) -> list[int]:
        """Some deliveries, rather old ones; sometimes of those that are settled already."""
        known = sorted(consumer.open)
        if not known or self.random.random() < 0.05:
            known = list(range(1, consumer.received + 1))
        return known[: self.random.randint(1, 10)]

    def ack(self, broker: Broker) -> None:
        """Ack some, and perhaps wait for it to be durable."""
        if (found := self._consumer()) is None:
            return
        number, consumer = found
        if not (chosen := self._some(consumer)):
            return
        bodies = {consumer.open.pop(delivery) for delivery in chosen if delivery in consumer.open}
        self.checker.ack_asked |= bodies
        confirm = self.random.random() < 0.5
        request = self.ask(lambda: self.checker.ack_confirmed.update(bodies)) if confirm else 0
        broker.deliveries.ack(self.connection, number, runs_of(chosen), request)

    def nack(self, broker: Broker) -> None:
        """Fail or reject some."""
        if (found := self._consumer()) is None:
            return
        number, consumer = found
        if not (chosen := self._some(consumer)):
            return
        bodies = {consumer.open.pop(delivery) for delivery in chosen if delivery in consumer.open}
        reject = self.random.random() < 0.3
        if reject and consumer.queue == DEAD:
            self.checker.excused |= bodies
        delay_ms = self.random.choice((None, 0, 30))
        broker.deliveries.nack(
            self.connection, number, runs_of(chosen), 0, delay_ms=delay_ms, reason="no", reject=reject
        )

    def extend(self, broker: Broker) -> None:
        """Keep some for longer, or for less long."""
        if (found := self._consumer()) and (chosen := self._some(found[1])):
            lease_ms = self.random.choice((0, 5, 100))
            broker.deliveries.extend(self.connection, found[0], runs_of(chosen), lease_ms, 0)

    def leave(self, broker: Broker) -> None:
        """Unsubscribe or disconnect."""
        found = self._consumer()
        if found and self.random.random() < 0.7:
            del self.consumers[found[0]]
            broker.unsubscribe(self.connection, self.ask(), found[0])
        else:
            broker.disconnect(self.connection, "left", lost=self.random.random() < 0.5)
            self.lost()

    def wreck(self, broker: Broker) -> None:
        """Purge, or delete and declare again."""
        queue = self.random.choice(QUEUES)
        self.checker.excuse(queue)
        if self.random.random() < 0.5:
            broker.purge(self.connection, self.ask(), queue)
            return
        there = [body for body in sorted(self.checker.confirmed) if self.checker.origin[body] == queue]
        broker.delete(self.connection, self.ask(lambda: self.checker.deleted(queue, there)), queue)
        broker.declare(self.connection, self.ask(), queue, SETTINGS[queue])

    # --- what it is told

    def receive(self, effect: f.Effect) -> None:
        """Something reached the client."""
        if isinstance(effect, f.Confirmed):
            batch = self.publishes.pop(effect.request)
            self.unconfirmed.remove(batch)
            self.checker.publish_confirmed(batch.bodies, effect.offset)
        elif isinstance(effect, f.Answer):
            self._receive_answer(effect)
        elif isinstance(effect, f.Refusal):
            self.requests.pop(effect.request, None)
        elif isinstance(effect, f.Delivery):
            self._receive_messages(effect)
        elif isinstance(effect, f.LeasesLost) and (consumer := self.consumers.get(effect.subscription)):
            for start, end in effect.deliveries:
                for delivery in range(start, end):
                    consumer.open.pop(delivery, None)
        elif isinstance(effect, f.Ended):
            self.consumers.pop(effect.subscription, None)

    def _receive_answer(self, effect: f.Answer) -> None:
        if isinstance(effect.result, dict) and "subscription" in effect.result:
            self.consumers[effect.result["subscription"]] = Consumer(effect.result["queue"])
        elif (answered := self.requests.pop(effect.request, None)) is not None:
            answered()

    def _receive_messages(self, effect: f.Delivery) -> None:
        consumer = self.consumers.get(effect.subscription)
        if consumer is None:
            return  # it has unsubscribed meanwhile
        stored, first = effect.stored, effect.first
        if effect.delivery <= consumer.received:
            raise Violation(f"delivery {effect.delivery} came after delivery {consumer.received}")
        bodies = stored.batch.bodies()[first : first + effect.messages]
        for at, body in enumerate(bodies):
            identity = stored.origin.offset, stored.origin.index + first + at
            self.checker.delivered(consumer.queue, body, identity, redelivered=effect.redelivered)
            consumer.open[effect.delivery + at] = body
        consumer.received = effect.delivery + effect.messages - 1


def runs_of(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Sorted numbers as half-open runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return tuple(runs)

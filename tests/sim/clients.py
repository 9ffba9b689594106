"""Clients of the simulated broker: they publish, consume, make mistakes, leave, come back and send again.

They know what any client knows: what they said, and what the bytes they get say. All of it goes into the history that
the checker judges; only the order in which things must come on one connection is judged here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.checker import Delivery, History, Name, Violation
from tests.sim import json_session
from tests.sim.json_session import JsonSession
from tests.sim.network import Wire
from vibemq.batch import Batch, pack
from vibemq.errors import HeartbeatMissed, UnknownQueue
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.session import ClientSession

QUEUES = ("work", "work", "jobs")
DEAD = "dead"
SETTINGS: dict[str, dict[str, Any]] = {
    "work": {"max_attempts": 3, "lease_ms": 40, "retry_delay_ms": 15, "dead_letter_queue": DEAD},
    "jobs": {"max_attempts": 2, "lease_ms": 25, "dead_letter_queue": DEAD, "max_length": 60},
    DEAD: {"max_attempts": 0, "lease_ms": 60},
}
CREDIT_BYTES = 100_000


_OFTEN = {
    "publish": 60,
    "subscribe": 8,
    "credit": 36,
    "ack": 80,
    "nack": 20,
    "extend": 6,
    "look": 2,
    "leave": 4,
    "wreck": 1,
}
ACTIONS = [action for action, weight in _OFTEN.items() for _ in range(weight)]


@dataclass(eq=False)
class Unconfirmed:
    """A batch that may have to be sent again; `refused`: the broker does not want it now."""

    queue: str
    sequence: int
    names: list[Name]
    batch: Batch
    refused: bool = False


@dataclass
class Consumer:
    """A subscription as its client sees it: what it holds, what came last, how many more may come."""

    queue: str
    open: dict[int, Name] = field(default_factory=dict)
    received: int = 0
    room: int = 0


class Client:
    """One client, with a producer's number that survives its connections."""

    def __init__(self, producer: int, random: Random, history: History, *, json: bool) -> None:
        """Be nowhere yet. `random` is begun anew for each step by whoever owns it."""
        self.producer, self.random, self.history = producer, random, history
        self.speaks_json = json
        self.wire: Wire | None = None
        self.session: ClientSession | JsonSession = ClientSession()
        self.moment = 0
        """The present, as the world counts it."""
        self.told = ""
        """What it did last, for people."""
        self.sequence = 1
        self.published = 0
        self.unconfirmed: list[Unconfirmed] = []
        self.heard: list[str] = []
        """What came last, for people."""
        self.unanswered: set[int] = set()
        self.requests: dict[int, Callable[[], None]] = {}
        self.publishes: dict[int, Unconfirmed] = {}
        self.subscribing: dict[int, Consumer] = {}
        self.next_request = 1
        self.consumers: dict[int, Consumer] = {}
        self.left: set[int] = set()
        self.wrecked: set[str] = set()
        """Queues that it has ever asked to purge or to delete."""
        self._told_by: dict[type, Callable[[Any], None]] = {
            m.Welcome: self._welcome,
            m.Confirmed: self._confirmed,
            m.Done: self._done,
            m.Failed: self._failed,
            m.LeasesLost: self._leases_lost,
            m.Ended: self._ended,
            m.Goodbye: self._goodbye,
        }

    # --- coming and going

    def connect(self) -> Wire:
        """Say hello on a new connection, and send again what was not confirmed."""
        self.forget()
        wire = self.wire = Wire(self)
        self.session = JsonSession() if self.speaks_json else ClientSession()
        hello = m.Hello(request=self.ask(), client=f"client {self.producer}", producer=self.producer)
        wire.up.write([self.session.begin(hello)], self.moment)
        for batch in self.unconfirmed:
            self.send(batch)
        return wire

    def declare(self) -> None:
        """Declare everything."""
        for name in sorted(SETTINGS):
            self.say(m.Declare(request=self.ask(), queue=name, settings=SETTINGS[name]))

    def forget(self) -> None:
        """The connection is gone, with all that was asked on it."""
        if self.wire is not None:
            self.wire.client = None
            self.wire.up.end()
        self.wire = None
        for known in (
            self.unanswered, self.requests, self.publishes, self.subscribing, self.consumers, self.left
        ):  # fmt: skip
            known.clear()

    def say(self, command: m.Command) -> None:
        """Send a command."""
        assert self.wire is not None
        parts = [json_session.encode(command)] if self.speaks_json else binary.encode_command(command)
        self.wire.up.write(parts, self.moment)

    def ask(self, answered: Callable[[], None] | None = None) -> int:
        """The number of a new request."""
        number = self.next_request
        self.next_request += 1
        self.unanswered.add(number)
        if answered is not None:
            self.requests[number] = answered
        return number

    # --- what it does

    def act(self) -> None:
        """Do something; `told` says what."""
        if not self.consumers and self.random.random() < 0.5:
            action = self.subscribe
        else:
            action = getattr(self, self.random.choice(ACTIONS))
        self.told = f"{action.__name__}: nothing to do it with"
        action()

    def publish(self) -> None:
        """Publish a new batch, or one again that was refused."""
        again = [batch for batch in self.unconfirmed if batch.refused]
        if again and self.random.random() < 0.5:
            self.send(self.random.choice(again))
            return
        queue, first = self.random.choice(QUEUES), self.published + 1
        self.published += self.random.choice((1, 1, 2, 7))
        names = [Name(str(self.producer), number) for number in range(first, self.published + 1)]
        bodies = [b"%d/%d/" % (self.producer, name.number) * self.random.choice((1, 1, 8, 40)) for name in names]
        batch = Unconfirmed(queue, self.sequence, names, Batch(b"".join(pack(bodies))))
        self.sequence += len(names)
        self.unconfirmed.append(batch)
        self.history.queues |= dict.fromkeys(names, queue)
        self.history.attempted.update(names)
        self.send(batch)

    def send(self, batch: Unconfirmed) -> None:
        """Send a batch, for the first time or again."""
        batch.refused = False
        request = self.ask()
        self.publishes[request] = batch
        oldest = min(one.sequence for one in self.unconfirmed)
        self.say(m.Publish(request, batch.queue, batch.sequence, batch.batch, oldest))
        self.told = f"publish {len(batch.names)} from {batch.names[0].number} on to {batch.queue}"

    def subscribe(self) -> None:
        """Consume from a queue."""
        if len(self.consumers) < 3:
            self.subscribe_to(self.random.choice((*QUEUES, DEAD)), self.random.choice((0, 3, 50, 50)))

    def subscribe_to(self, queue: str, credit: int) -> None:
        """Consume from this queue."""
        request = self.ask()
        self.subscribing[request] = Consumer(queue, room=credit)
        self.say(m.Subscribe(request=request, queue=queue, messages=credit, bytes=CREDIT_BYTES))
        self.told = f"subscribe to {queue} with credit for {credit}"

    def _consumer(self) -> tuple[int, Consumer] | None:
        return self.random.choice(list(self.consumers.items())) if self.consumers else None

    def credit(self) -> None:
        """Ask for more, and tell what the application has seen."""
        if found := self._consumer():
            number, consumer = found
            handed = self.random.randint(0, consumer.received + 1)
            wait_ms = self.random.choice((-1, -1, -1, 5))
            count, size = self.random.choice(((1, 50), (5, 1000), (30, CREDIT_BYTES)))
            consumer.room += count
            self.say(m.Credit(subscription=number, messages=count, bytes=size, handed=handed, wait_ms=wait_ms))
            self.told = f"grant {count} to subscription {number}"

    def _some(self, consumer: Consumer) -> list[int]:
        """Some deliveries, rather old ones; sometimes of those that are settled already."""
        known = sorted(consumer.open)
        if not known or self.random.random() < 0.05:
            known = list(range(1, consumer.received + 1))
        return known[: self.random.randint(1, 10)]

    def _chosen(self) -> tuple[int, Consumer, list[int], set[Name]] | None:
        """Some deliveries of a subscription, and which messages of them it still has: now it has them no more."""
        if (found := self._consumer()) is None or not (chosen := self._some(found[1])):
            return None
        opened = found[1].open
        return *found, chosen, {opened.pop(delivery) for delivery in chosen if delivery in opened}

    def ack(self) -> None:
        """Ack some, and perhaps wait for it to be durable."""
        if found := self._chosen():
            number, _, chosen, names = found
            self.settle(number, chosen, names, confirm=self.random.random() < 0.5)

    def settle(self, number: int, chosen: list[int], names: set[Name], *, confirm: bool) -> None:
        """Ack these deliveries, which are these messages."""

        def confirmed() -> None:
            for name in names:
                self.history.acked_at(name, self.moment)

        self.history.asked |= names
        request = self.ask(confirmed) if confirm else 0
        self.say(m.Ack(request=request, subscription=number, deliveries=runs_of(chosen)))
        self.told = f"ack {runs_of(chosen)} of subscription {number}{', and wait' * confirm}"

    def nack(self) -> None:
        """Fail or reject some."""
        if (found := self._chosen()) is None:
            return
        number, consumer, chosen, names = found
        reject = self.random.random() < 0.3
        if reject and consumer.queue == DEAD:
            self.history.excused |= names
        delay_ms = self.random.choice((None, 0, 30))
        self.say(m.Nack(subscription=number, deliveries=runs_of(chosen), delay_ms=delay_ms, reason="no", reject=reject))
        self.told = f"{'reject' if reject else 'nack'} {runs_of(chosen)} of subscription {number}"

    def extend(self) -> None:
        """Keep some for longer, or for less long."""
        if (found := self._consumer()) and (chosen := self._some(found[1])):
            lease_ms = self.random.choice((0, 5, 100))
            self.say(m.Extend(subscription=found[0], deliveries=runs_of(chosen), lease_ms=lease_ms))
            self.told = f"extend {runs_of(chosen)} of subscription {found[0]} to {lease_ms} ms"

    def look(self) -> None:
        """Ask for what changes nothing."""
        queue = self.random.choice((*QUEUES, DEAD, ""))
        ask = m.ShowQueue(request=self.ask(), queue=queue) if queue else m.Ping()
        self.say(ask)
        self.told = f"ask: {ask}"

    def leave(self) -> None:
        """Unsubscribe, say goodbye, or just close."""
        found = self._consumer()
        if found and self.random.random() < 0.7:
            del self.consumers[found[0]]
            self.left.add(found[0])
            self.say(m.Unsubscribe(request=self.ask(), subscription=found[0]))
            self.told = f"unsubscribe {found[0]}"
            return
        if self.random.random() < 0.7:
            self.say(m.Goodbye(code=0))
        self.forget()
        self.told = "leave"

    def wreck(self) -> None:
        """Purge, or delete and declare again."""
        queue = self.random.choice(QUEUES)
        self.wrecked.add(queue)
        if self.random.random() < 0.5:
            self.say(m.Purge(request=self.ask(), queue=queue))
            self.told = f"purge {queue}"
            return
        there = [name for name in sorted(self.history.confirmed) if self.history.queues[name] == queue]

        def deleted() -> None:
            for name in there:
                self.history.gone.setdefault((queue, name), self.moment)

        self.say(m.Delete(request=self.ask(deleted), queue=queue))
        self.say(m.Declare(request=self.ask(), queue=queue, settings=SETTINGS[queue]))
        self.told = f"delete {queue}, and declare it again"

    # --- what it is told

    def hear(self, data: bytes, since: int) -> None:
        """Bytes came, written at `since` or later."""
        self.heard.clear()
        try:
            for reply in self.session.receive(memoryview(data)):
                self.heard.append(type(reply).__name__)
                if isinstance(reply, m.Deliver):
                    self._delivered(reply, since)
                elif (told := self._told_by.get(type(reply))) is not None:
                    told(reply)
        except HeartbeatMissed:  # the last that is said on a connection
            self.forget()

    def _answered(self, request: int) -> None:
        if request not in self.unanswered:
            raise Violation(f"client {self.producer} has an answer to request {request}, which has none to come")
        self.unanswered.remove(request)

    def _welcome(self, reply: m.Welcome) -> None:
        self._answered(reply.request)

    def _goodbye(self, reply: m.Goodbye) -> None:
        if reply.code == HeartbeatMissed.code:
            raise HeartbeatMissed(reply.text)
        if reply.code:
            raise Violation(f"client {self.producer} was sent away: {reply.text}")

    def _ended(self, reply: m.Ended) -> None:
        self.consumers.pop(reply.subscription, None)
        self.left.add(reply.subscription)

    def _leases_lost(self, reply: m.LeasesLost) -> None:
        if (consumer := self.consumers.get(reply.subscription)) is not None:
            for start, end in reply.deliveries:
                for delivery in range(start, end):
                    consumer.open.pop(delivery, None)

    def _confirmed(self, reply: m.Confirmed) -> None:
        self._answered(reply.request)
        batch = self.publishes.pop(reply.request)
        if batch in self.unconfirmed:  # else it was sent twice on this connection, and this is the second answer
            self.unconfirmed.remove(batch)
        for index, name in enumerate(batch.names):
            self._same_identity(name, f"{reply.offset}-{index}")
            self.history.confirmed.add(name)

    def _same_identity(self, name: Name, identity: str) -> None:
        if self.history.ids.setdefault(name, identity) != identity:
            raise Violation(f"{name} was stored twice, as {self.history.ids[name]} and {identity}")

    def _done(self, reply: m.Done) -> None:
        self._answered(reply.request)
        if isinstance(reply.result, dict) and "ready" in reply.result:
            counts = {key: reply.result[key] for key in ("messages", "ready", "unacked", "waiting")}
            if counts["messages"] != counts["ready"] + counts["unacked"] + counts["waiting"]:
                raise Violation(f"a queue is shown with {counts}")
        if reply.request in self.subscribing:
            consumer = self.subscribing.pop(reply.request)
            self.consumers[reply.result["subscription"]] = consumer
        elif (answered := self.requests.pop(reply.request, None)) is not None:
            answered()

    def _failed(self, reply: m.Failed) -> None:
        if reply.request:
            self._answered(reply.request)
        self.requests.pop(reply.request, None)
        self.subscribing.pop(reply.request, None)
        if (batch := self.publishes.pop(reply.request, None)) is not None:
            batch.refused = batch in self.unconfirmed
        if reply.code == UnknownQueue.code:
            self.declare()

    def _delivered(self, reply: m.Deliver, since: int) -> None:
        consumer = self.consumers.get(reply.subscription)
        if consumer is None:
            if reply.subscription not in self.left:
                raise Violation(f"a delivery for subscription {reply.subscription}, which is not there")
            return
        if reply.delivery <= consumer.received:
            raise Violation(f"delivery {reply.delivery} came after delivery {consumer.received}")
        for at, body in enumerate(Batch(b"".join(reply.parts)).bodies()):
            name = name_of(body)
            identity = f"{reply.offset}-{reply.index + at}"
            self.history.delivered.append(
                Delivery(name, since, self.moment, reply.redelivered, identity, consumer.queue)
            )
            consumer.open[reply.delivery + at] = name
            consumer.received = reply.delivery + at
            consumer.room -= 1
        if consumer.room < 0:
            raise Violation(f"subscription {reply.subscription} was sent {-consumer.room} more than it has room for")


def name_of(body: bytes) -> Name:
    """Which message a body is: each repeats its name."""
    found = re.fullmatch(rb"((\d+)/(\d+)/)\1*", body)
    return Name(f"nobody: {body!r}", 0) if found is None else Name(found[2].decode(), int(found[3]))


def runs_of(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Sorted numbers as half-open runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return tuple(runs)

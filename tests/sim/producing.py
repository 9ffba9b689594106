"""The part of a simulated client that publishes: it keeps what was not confirmed, and sends it again."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.checker import Name, Violation
from tests.sim.mail import KEY_OF, body_of
from tests.sim.scene import DEAD, TOPICS
from vibemq.batch import PRIORITY_NORMAL, Batch, pack
from vibemq.errors import QueueBlocked, UnknownQueue, Unroutable
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

_HASHES = list(KEY_OF)


class Fate(enum.Enum):
    """What is known of a batch without a confirm."""

    SENT = 1
    REFUSED = 2
    """The broker does not want it now."""
    BLOCKED = 3
    """Neither, and will say when."""


@dataclass(eq=False)
class Unconfirmed:
    """A batch that may have to be sent again."""

    target: str
    to_topic: bool
    sequence: int
    names: list[Name]
    batch: Batch
    fate: Fate = Fate.BLOCKED
    sent: int = 0
    """How many times."""


class Producing:
    """Batches on their way. What was refused as blocked waits, and what comes after it for the same queue, too."""

    def __init__(self, client: "Client") -> None:
        """Nothing was published."""
        self.client = client
        self.unconfirmed: list[Unconfirmed] = []
        self.sequence = 1
        self.published = 0
        self._sent: dict[int, Unconfirmed] = {}
        self.blocked: set[str] = set()
        self.had_to_wait: set[str] = set()

    def forget(self) -> None:
        """The connection is gone, and with it what the broker wanted to say."""
        self._sent.clear()
        self.blocked.clear()
        self.had_to_wait.clear()

    def connected(self) -> None:
        """Send again what was not confirmed, in order."""
        for batch in self.unconfirmed:
            self.send(batch)

    # --- what it does

    def publish(self) -> None:
        """Publish a new batch, or one again that was refused; or give that up."""
        client, random = self.client, self.client.random
        again = [batch for batch in self.unconfirmed if batch.fate is Fate.REFUSED]
        if again and random.random() < 0.5:
            batch = random.choice(again)
            if random.random() < 0.2:
                self.give_up(batch)
            else:
                self.send(batch)
            return
        to_topic = random.random() < 0.25
        target = random.choice(TOPICS) if to_topic else random.choice((*client.scene.names * 4, DEAD))
        batch = self._new(target, to_topic=to_topic)
        self.unconfirmed.append(batch)
        client.history.attempted.update(batch.names)
        if target in self.blocked:
            client.told = f"publish to {target}, which is blocked"
        else:
            self.send(batch)

    def _new(self, target: str, *, to_topic: bool) -> Unconfirmed:
        random, writer, first = self.client.random, str(self.client.producer), self.published + 1
        self.published += random.choice((1, 1, 2, 7))
        names = [Name(writer, number) for number in range(first, self.published + 1)]
        bodies = [body_of(name, random) for name in names]
        priority = random.choice((0, PRIORITY_NORMAL, PRIORITY_NORMAL, 9))
        ttl_ms = random.choice((0, 0, 0, 0, 0, 30, 100))
        keys = [random.choice(_HASHES) for _ in names] if random.random() < 0.5 else None
        packed = b"".join(pack(bodies, priority=priority, ttl_ms=ttl_ms, keys=keys))
        batch = Unconfirmed(target, to_topic, self.sequence, names, Batch(packed))
        self.sequence += len(names)
        return batch

    def send(self, batch: Unconfirmed) -> None:
        """Send a batch, for the first time or again."""
        client = self.client
        batch.fate = Fate.SENT
        batch.sent += 1
        request = client.ask(lambda _: None, self._failed)
        self._sent[request] = batch
        oldest = min(one.sequence for one in self.unconfirmed)
        client.say(m.Publish(request, batch.target, batch.sequence, batch.batch, oldest, batch.to_topic))
        client.told = f"publish {len(batch.names)} from {batch.names[0].number} on to {batch.target}"

    def waiting_for(self, name: str) -> list[Unconfirmed]:
        """What waits until it is told to go on."""
        return [batch for batch in self.unconfirmed if batch.target == name and batch.fate is Fate.BLOCKED]

    def give_up(self, batch: Unconfirmed) -> None:
        """Send it no more. What was sent on one connection only, and was refused there, cannot be stored."""
        self.unconfirmed.remove(batch)
        if batch.sent == 1:
            self.client.history.denied.update(batch.names)
        self.client.told = f"give up what was published from {batch.names[0].number} on"

    # --- what it is told

    def confirmed(self, reply: m.Confirmed) -> None:
        """A batch is durable, but for what was dropped of it."""
        self.client.answered(reply.request)
        batch, history = self._sent.pop(reply.request), self.client.history
        if batch in self.unconfirmed:  # else it was sent twice on this connection, and this is the second answer
            self.unconfirmed.remove(batch)
        stored = len(batch.names) - reply.dropped
        if reply.sequence != self.client.watch.book.sequences[reply.offset]:
            raise Violation(f"{reply}, but it is message {self.client.watch.book.sequences[reply.offset]}")
        history.denied.update(batch.names[stored:])
        for index, name in enumerate(batch.names[:stored]):
            identity = f"{reply.offset}-{index}"
            if history.ids.setdefault(name, identity) != identity:
                raise Violation(f"{name} was stored twice, as {history.ids[name]} and {identity}")
            history.confirmed.add(name)

    def _failed(self, reply: m.Failed) -> None:
        batch = self._sent.pop(reply.request)
        if batch not in self.unconfirmed:
            return
        if reply.code == QueueBlocked.code:
            batch.fate = Fate.BLOCKED
            if "the rate of" in reply.text:
                self.client.features.seen("publish rate")
            self.blocked.add(batch.target)
            self.had_to_wait.add(batch.target)
            return
        batch.fate = Fate.REFUSED
        if reply.code == Unroutable.code:
            self.give_up(batch)
        elif reply.code == UnknownQueue.code:
            self.client.operating.declare_all()

    def unblocked(self, reply: m.Unblocked) -> None:
        """Send again what was refused, in order, and then what was not sent.

        It may come twice: a refusal is told at once, and may overtake what was said before it.
        """
        if reply.queue not in self.had_to_wait:
            raise Violation(f"client {self.client.producer} is told to go on with {reply.queue}, and did not wait")
        self.blocked.discard(reply.queue)
        self.client.features.seen("overflow: block")
        for batch in self.waiting_for(reply.queue):
            self.send(batch)

"""The part of a simulated client that publishes: it keeps what was not confirmed, and sends it again."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.checker import Name, Violation
from tests.sim.mail import DEDUP_HASHES, KEY_OF, body_of, split
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
    delay_ms: int = 0
    due_us: int = 0
    dedup: bytes = b""
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
        batch = self.new(target, to_topic=to_topic)
        batch.sequence = self.number(len(batch.names))
        self.unconfirmed.append(batch)
        client.history.attempted.update(batch.names)
        if target in self.blocked:
            client.told = f"publish to {target}, which is blocked"
        else:
            self.send(batch)

    def number(self, count: int) -> int:
        """The first of the next `count` numbers of the producer's sequence."""
        self.sequence += count
        return self.sequence - count

    def new(self, target: str, *, to_topic: bool) -> Unconfirmed:
        """A batch that is still to be numbered."""
        random, writer, first = self.client.random, str(self.client.producer), self.published + 1
        self.published += random.choice((1, 1, 2, 7))
        names = [Name(writer, number) for number in range(first, self.published + 1)]
        bodies = [body_of(name, random) for name in names]
        priority = random.choice((0, PRIORITY_NORMAL, PRIORITY_NORMAL, 9))
        ttl_ms = random.choice((0, 0, 0, 0, 0, 30, 100))
        keys = [random.choice(_HASHES) for _ in names] if random.random() < 0.5 else None
        packed = b"".join(pack(bodies, priority=priority, ttl_ms=ttl_ms, keys=keys))
        batch = Unconfirmed(target, to_topic, 0, names, Batch(packed))
        if random.random() < self.client.scene.delayed:
            batch.delay_ms, batch.due_us = self.client.delaying.some_time()
        if not to_topic and random.random() < self.client.scene.dedup:
            batch.dedup = b"".join(random.choice(DEDUP_HASHES) for _ in names)
        return batch

    def send(self, batch: Unconfirmed) -> None:
        """Send a batch, for the first time or again."""
        client = self.client
        batch.fate = Fate.SENT
        batch.sent += 1
        request = client.ask(lambda _: None, self._failed)
        self._sent[request] = batch
        client.say(self.publish_of(batch, request, batch.sequence, self.oldest))
        client.told = f"publish {len(batch.names)} from {batch.names[0].number} on to {batch.target}"

    @property
    def oldest(self) -> int:
        """The lowest number of what has no answer yet."""
        commits = [one.sequence for one in self.client.transacting.pending]
        return min([*commits, *(one.sequence for one in self.unconfirmed)])

    def publish_of(self, batch: Unconfirmed, request: int = 0, sequence: int = 0, oldest: int = 0) -> m.Publish:
        """The request that publishes a batch, or the part of a commit that does."""
        times = batch.delay_ms, batch.due_us
        return m.Publish(request, batch.target, sequence, batch.batch, oldest, batch.to_topic, *times, batch.dedup)

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
        batch = self._sent.pop(reply.request)
        if batch in self.unconfirmed:  # else it was sent twice on this connection, and this is the second answer
            self.unconfirmed.remove(batch)
        stored = m.Stored(0, reply.sequence, reply.dropped, reply.due_us, reply.duplicates)
        self.stored(batch, reply.offset, stored, 0)

    def stored(self, batch: Unconfirmed, offset: int, stored: m.Stored, number: int) -> None:
        """What became of a batch, which is so many behind the first of its kind in its record."""
        client, history, book = self.client, self.client.history, self.client.watch.book
        wanted = book.answers[offset, batch.to_topic, number]
        if (stored.index, stored.sequence) != wanted:
            raise Violation(f"{stored} of record {offset}, but it is {wanted}")
        twice = {position: f"{at}-{index}" for position, at, index in stored.duplicates}
        names = [name for position, name in enumerate(batch.names) if position not in twice]
        count = len(names) - stored.dropped
        history.denied.update(names[count:], (batch.names[position] for position in twice))
        for position, one in twice.items():
            self._check_duplicate(batch, position, one)
        for index, name in enumerate(names[:count], stored.index):
            identity = f"{offset}-{index}"
            if history.ids.setdefault(name, identity) != identity:
                raise Violation(f"{name} was stored twice, as {history.ids[name]} and {identity}")
            history.confirmed.add(name)
            if stored.due_us:
                client.delaying.waits(batch.target, identity)

    def _check_duplicate(self, batch: Unconfirmed, position: int, one: str) -> None:
        """What a message is said to be a duplicate of was there, and had its dedup id."""
        self.client.features.seen("dedup ids")
        message = self.client.watch.book.messages.get(one)
        if message is None or message.dedup != split(batch.dedup)[position]:
            raise Violation(f"{batch.names[position]} is said to be a duplicate of {one}, which is {message}")

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

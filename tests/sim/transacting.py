"""The part of a simulated client that commits transactions: once, twice, too late, on two connections at a time.

What is in a transaction stays as it was until the client knows that it was committed; and when it knows that it was
not, then it never will be, whatever copies of the commit are still on their way.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.checker import Copy, Name, Together, Violation
from tests.sim.consuming import Consumer, runs_of
from tests.sim.producing import Fate, Unconfirmed
from tests.sim.scene import DEAD, TOPICS
from vibemq.errors import (
    BY_CODE,
    QueueBlocked,
    SequenceTooOld,
    TransactionConflict,
    TransactionEnded,
    UnknownQueue,
)
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

OPEN_MAX = 3


@dataclass(eq=False)
class Commit:
    """A commit that may have to be sent again."""

    epoch: int
    sequence: int
    batches: list[Unconfirmed]
    acks: tuple[m.TransactionAck, ...]
    copies: set[Copy]
    opened: list[tuple[int, int]] = field(default_factory=list)
    """(subscription, delivery) of these copies."""
    fate: Fate = Fate.SENT
    sent: int = 0
    """How many times."""
    outcome: bool | None = None
    """Whether it was carried out, as far as is known."""

    @property
    def names(self) -> list[Name]:
        """All messages of it."""
        return [name for batch in self.batches for name in batch.names]


class Transacting:
    """Attempts that are open, and commits on their way."""

    def __init__(self, client: "Client") -> None:
        """None."""
        self.client = client
        self.open: list[int] = []
        self.pending: list[Commit] = []
        self._sent: dict[int, Commit] = {}

    def forget(self) -> None:
        """The connection is gone, and its attempts with it."""
        self.open.clear()
        self._sent.clear()

    def connected(self) -> None:
        """Ask what became of the commits that had no answer, by sending them again."""
        for commit in self.pending:
            self.send(commit)

    # --- what it does

    def begin(self) -> None:
        """Begin an attempt."""
        if len(self.open) >= OPEN_MAX:
            return
        client = self.client

        def begun(reply: m.Done) -> None:
            self.open.append(reply.result["epoch"])

        timeout_ms = client.random.choice((0, 0, 0, 5, 200))
        client.say(m.Begin(request=client.ask(begun), timeout_ms=timeout_ms))
        client.told = f"begin a transaction for {timeout_ms} ms"

    def commit(self) -> None:
        """Commit an attempt, with whatever there is to publish and to ack."""
        if not self.open:
            self.begin()
            return
        client, random = self.client, self.client.random
        epoch = random.choice(self.open)
        if random.random() < 0.95:
            self.open.remove(epoch)
        batches = []
        for _ in range(random.choice((0, 1, 1, 2, 3))):
            to_topic = random.random() < 0.2
            target = random.choice(TOPICS) if to_topic else random.choice((*client.scene.names * 4, DEAD))
            batches.append(client.producing.new(target, to_topic=to_topic))
        commit = Commit(epoch, client.producing.number(1), batches, (), set())
        self._take_acks(commit)
        client.history.attempted.update(commit.names)
        client.history.asked |= commit.copies
        client.history.together.append(Together(tuple(commit.names)))
        self.pending.append(commit)
        self.send(commit)

    def _take_acks(self, commit: Commit) -> None:
        """Some of what its subscriptions hold; now and then what they do not."""
        client, consuming = self.client, self.client.consuming
        acks = []
        for number, consumer in consuming.consumers.items():
            if client.random.random() < 0.7 and (chosen := self._chosen(consumer)):
                acks.append(m.TransactionAck(number, runs_of(chosen)))
                held = [delivery for delivery in chosen if delivery in consumer.open]
                commit.opened += [(number, delivery) for delivery in held]
                commit.copies |= {consumer.open[delivery] for delivery in held}
        commit.acks = tuple(acks)

    def _chosen(self, consumer: Consumer) -> list[int]:
        """Some deliveries: mostly the last, of which the lease goes on."""
        if self.client.random.random() < 0.45:
            return self.client.consuming.some_of(consumer)
        return sorted(consumer.open)[-self.client.random.randint(1, 4) :]

    def send(self, commit: Commit) -> None:
        """Send a commit, for the first time or again."""
        client, producing = self.client, self.client.producing
        commit.fate = Fate.SENT
        commit.sent += 1
        request = client.ask(lambda _: None, self._failed)
        self._sent[request] = commit
        publishes = tuple(producing.publish_of(batch) for batch in commit.batches)
        client.say(m.Commit(request, commit.epoch, commit.sequence, publishes, commit.acks, producing.oldest))
        client.told = f"commit {commit.epoch} as {commit.sequence} with {len(commit.names)} from {commit.names[:1]} on"

    def repeat(self) -> None:
        """Send a commit again without need."""
        if self.pending:
            self.send(self.client.random.choice(self.pending))

    def hop(self) -> None:
        """Leave a connection with what is on its way there, and ask by another what became of that."""
        if self.pending:
            self.client.forget()
            self.client.hops = True
            self.client.told = "leave a connection with a commit on its way"

    def rollback(self) -> None:
        """End an attempt."""
        if self.open:
            epoch = self.open.pop()
            self.client.say(m.Rollback(request=self.client.ask(), epoch=epoch))
            self.client.told = f"roll back {epoch}"

    def waiting_for(self, name: str) -> list[Commit]:
        """What waits until it is told to go on with that queue or topic."""
        blocked = [commit for commit in self.pending if commit.fate is Fate.BLOCKED]
        return [commit for commit in blocked if any(batch.target == name for batch in commit.batches)]

    # --- what it is told

    def committed(self, reply: m.Committed) -> None:
        """A transaction is durable, all of it."""
        client = self.client
        client.answered(reply.request)
        commit = self._sent.pop(reply.request)
        if reply.duplicate:
            client.features.seen("repeated commits")
        if commit.outcome is False:
            raise Violation(f"a transaction is committed that was said not to be: {reply}, {commit}")
        if len(reply.stored) != len(commit.batches):
            raise Violation(f"{reply} of {len(commit.batches)} batches")
        commit.outcome = True
        seen = {True: 0, False: 0}
        for batch, stored in zip(commit.batches, reply.stored, strict=True):
            client.producing.stored(batch, reply.offset, stored, seen[batch.to_topic])
            seen[batch.to_topic] += 1
        for copy in commit.copies:
            client.history.acked_at(copy.name, client.moment, copy.of)
        for number, delivery in commit.opened:
            if (consumer := client.consuming.consumers.get(number)) is not None:
                consumer.open.pop(delivery, None)
        self._is_over(commit)

    def _is_over(self, commit: Commit) -> None:
        if commit in self.pending:
            self.pending.remove(commit)

    def _failed(self, reply: m.Failed) -> None:
        commit, client = self._sent.pop(reply.request), self.client
        if commit.outcome is True and reply.code != SequenceTooOld.code:
            raise Violation(f"a transaction is refused that was committed: {reply}, {commit}")
        if reply.code == QueueBlocked.code:
            if commit.outcome is None:
                commit.fate = Fate.BLOCKED
                client.producing.had_to_wait.update(batch.target for batch in commit.batches)
            return
        if reply.code == SequenceTooOld.code:
            self._is_over(commit)
            return
        if reply.code == TransactionConflict.code:
            client.features.seen("transaction conflicts")
        elif issubclass(BY_CODE[reply.code], TransactionEnded):
            client.features.seen("commits too late")
        elif reply.code == UnknownQueue.code:
            client.operating.declare_all()
        commit.outcome = False
        client.history.denied.update(commit.names)
        self._is_over(commit)

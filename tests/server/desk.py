"""A client at a broker without a runtime, that asks for transactions, and what is left of them."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.server.rig import Rig, batch_of
from vibemq.declaration import QueueSettings
from vibemq.errors import RequestError
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.transactions import Commit


class Desk(Rig):
    """A rig with a client whose producer is 7, and what it asks for in transactions."""

    def __init__(
        self, limits: Limits | None = None, defaults: QueueSettings | None = None, unroutable: str = ""
    ) -> None:
        super().__init__(limits, defaults, unroutable)
        self.client = self.connect()

    def connect(self, producer: int = 7) -> int:
        number = self.broker.connect("c", "here", "binary", producer)
        self.take()
        return number

    def open(self, timeout_ms: int = 0, client: int = 0) -> int:
        """The epoch of a new attempt."""
        self.broker.transactions.begin(client or self.client, 1, timeout_ms)
        answer = self.effects()[-1]
        assert isinstance(answer, f.Answer)
        return int(answer.result["epoch"])

    def publish(self, name: str, *bodies: bytes, sequence: int = 0, client: int = 0) -> None:
        """Publish without a transaction."""
        batch = batch_of(bodies)
        self.broker.publishing.publish(Publish(client or self.client, 1, name, sequence, batch))

    def commit(
        self,
        *publishes: tuple[str, Sequence[bytes]],
        acks: Sequence[tuple[int, f.Runs]] = (),
        epoch: int = 0,
        sequence: int = 0,
        oldest: int = 0,
        client: int = 0,
    ) -> None:
        """Commit: publishes to queues, or to topics where the name begins with a slash."""
        client = client or self.client
        batches = [
            Publish(client, 0, name.removeprefix("/"), 0, batch_of(bodies), 0, name.startswith("/"))
            for name, bodies in publishes
        ]
        epoch = epoch or self.open(client=client)
        self.broker.transactions.commit(Commit(client, 2, epoch, sequence, batches, acks, oldest))

    def refused(self, *publishes: tuple[str, Sequence[bytes]], error: type[RequestError], **more: Any) -> None:  # noqa: ANN401
        """A commit that is refused, and of which nothing is done."""
        if "epoch" not in more:
            more["epoch"] = self.open()
        self.take()
        with pytest.raises(error):
            self.commit(*publishes, **more)
        assert self.take() == ([], [])

    def consume(self, name: str, *, client: int = 0, messages: int = 10) -> int:
        """A new consumer, and what is ready is on its way to it."""
        client = client or self.client
        self.broker.subscribe(Subscribing(client, 1, name, None, messages, 1_000_000))
        answers = [one.result for one in self.effects() if isinstance(one, f.Answer)]
        number = answers[-1]["subscription"]
        self.broker.end_turn()
        return int(number)

    def bodies(self, name: str) -> list[tuple[bytes, str]]:
        """What a queue hands out, with the ids of the messages."""
        self.take()
        client = self.connect(8)
        self.consume(name, client=client, messages=100)
        effects = self.effects()
        while self.loads:
            self.load_one()
            self.broker.end_turn()
            effects += self.effects()
        return [
            (body, f"{one.stored.origin.offset}-{one.stored.origin.index + one.first + at}")
            for one in effects
            if isinstance(one, f.Delivery)
            for at, body in enumerate(one.stored.batch.bodies()[one.first : one.first + one.messages])
        ]

    def length(self, name: str) -> int:
        queue = self.state.queue_named(name)
        return queue.length if queue is not None else 0

    def forget_messages(self) -> None:
        """Another broker, which has nothing in memory, goes on."""
        self.begin(self.replayed())
        self.take()
        self.client = self.connect()

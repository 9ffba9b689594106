"""Where queues are administered: the state, its consumers and messages, without the rest of a broker."""

from collections.abc import Callable
from typing import Any

from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server.batch_cache import BatchCache
from vibemq.server.deduplication import Deduplication
from vibemq.server.deliveries import Deliveries
from vibemq.server.dispatch import Dispatcher
from vibemq.server.effects import Answer, StoredBatch
from vibemq.server.groups import Groups
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.queues import Queues
from vibemq.server.subscription import Subscription

START_US = 1_700_000_000_000_000


class Office:
    """Asks for one thing after the other, and keeps the log."""

    def __init__(
        self, limits: Limits | None = None, defaults: QueueDefaults | None = None, *, auto_create: bool = True
    ) -> None:
        self.limits, self.defaults, self.auto_create = limits or Limits(), defaults or QueueDefaults(), auto_create
        self.log: list[tuple[int, e.Event]] = []
        self.begin(Projector(), START_US)

    def begin(self, state: Projector, now_us: int) -> None:
        """Go on with this state."""
        self.state = state
        self.journal = Journal(state)
        self.journal.now_us = now_us
        self.cache = BatchCache(1 << 20)
        dispatcher = Dispatcher(self.journal, self.cache)
        self.deliveries = Deliveries(self.journal, self.cache, dispatcher, self.limits, self.defaults)
        groups = Groups(self.journal, self.deliveries, self.limits)
        self.queues = Queues(
            self.journal,
            self.deliveries,
            groups,
            Deduplication(self.journal, self.limits),
            self.limits,
            self.defaults,
            auto_create=self.auto_create,
        )

    def pass_time(self, passed_us: int) -> None:
        """Let the clock go on, and do what is due."""
        self.journal.now_us += passed_us
        self.queues.tick()

    def events(self) -> list[e.Event]:
        """The events since the last call."""
        records = self.journal.records[:]
        self.journal.records.clear()
        self.log += [(record.time_us, record.event) for record in records]
        return [record.event for record in records]

    def ask(self, method: Callable[..., object], *args: object) -> Any:  # noqa: ANN401 - whatever is answered
        """Call it for a client, and give the answer."""
        self.journal.effects.clear()
        self.returned = method(7, 9, *args)
        (answer,) = (effect for effect in self.journal.effects if isinstance(effect, Answer))
        assert (answer.connection, answer.request) == (7, 9)
        assert answer.after in {0, self.journal.next_offset}
        return answer.result

    def declare(self, name: str, on_difference: str = "fail", **settings: object) -> Any:  # noqa: ANN401
        """Declare a queue for a client."""
        return self.ask(self.queues.declare, name, settings, on_difference)

    def queue(self, name: str) -> Queue:
        """What is known of that queue."""
        return self.queues.require(name)

    def fill(self, name: str, count: int, lane: int = 0) -> None:
        """So many messages of 3 bytes become ready."""
        queue = self.queue(name)
        batch = Batch(b"".join(pack([b"xyz"] * count)))
        first = queue.next.get(lane, 1)
        offset = self.journal.record(
            e.Published(queue.id, lane, first, count, batch.record_bytes, 0, 0, 7), (batch.data,)
        )
        now_us = self.journal.now_us
        self.cache.add(StoredBatch(queue.id, lane, first, offset, 0, offset, now_us, now_us, batch))

    def group(self, name: str, group: str, sequence: int = 1) -> int:
        """A new group that begins at a sequence."""
        queue = self.queue(name)
        self.journal.record(e.GroupCreated(queue.id, queue.next_group, group, sequence, False, 7))
        return queue.next_group - 1

    def take(self, name: str, group: int, count: int) -> Subscription:
        """A consumer comes and holds so many messages."""
        queue = self.queue(name)
        subscription = self.deliveries.subscribe(queue, queue.groups[group], 7)
        self.deliveries.credit(7, subscription.id, count, 1 << 20, 0, -1)
        self.deliveries.dispatch()
        assert queue.groups[group].unacked == count
        return subscription

    def replayed(self) -> Projector:
        """The state that the log adds up to, each event through its bytes."""
        self.events()
        state = Projector()
        for offset, (time_us, event) in enumerate(self.log):
            state.apply(offset, time_us, e.decode(event.TAG, event.VERSION, e.encode(event)))
        return state

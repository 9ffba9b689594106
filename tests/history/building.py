"""Small histories to look at: a broker and its storage without sockets, driven step by step at a fixed pace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from vibemq import batch
from vibemq.batch import Batch
from vibemq.declaration import ScheduleSpec
from vibemq.events import SegmentSealed
from vibemq.log.segment import seal_segment
from vibemq.projections import part as parts
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.dead_letters import Filter, Redriving
from vibemq.server.effects import Effect, Load, Recall
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.storage import Storage
from vibemq.server.transactions import Commit

LOG_ID: Final = 0x5EED_0F_7E575
START_US: Final = 1_795_442_400_000_000  # 2026-11-23T14:00:00Z
STEP_US: Final = 1_000_000


class Driver:
    """A broker on a data folder. Every call is one second later than the one before."""

    def __init__(self, folder: Path, *, now_us: int = START_US, segment_bytes: int = 1 << 20) -> None:
        self.storage = Storage.open(folder, segment_bytes, 4096, lambda: LOG_ID, now_us)
        self.broker = Broker(self.storage.state, Limits(), QueueDefaults())
        self.now_us = max(now_us, self.storage.state.audit.last_us)
        self.requests = 0
        self.effects: list[Effect] = []
        """All that was to leave the broker."""
        self._next()
        self.broker.start("0.1.0", self.now_us)
        self.end_turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.close()

    @property
    def offset(self) -> int:
        """Where the log goes on."""
        return self.storage.state.next_offset

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the live state."""
        return self.storage.state.digests()

    def _next(self) -> int:
        self.now_us += STEP_US
        self.broker.journal.now_us = self.now_us
        self.requests += 1
        return self.requests

    def end_turn(self) -> None:
        """Hand out, read back what is needed for it, and make everything durable."""
        journal = self.broker.journal
        while True:
            self.broker.end_turn()
            for record in journal.records:
                self.storage.append(record)
            journal.records.clear()
            self.effects += journal.effects
            journal.effects.clear()
            log = self.storage.log
            if (group := log.take_group()) is not None:
                log.write_group(group, sync=True)
                log.group_done(group, synced=True)
            loads, journal.loads = journal.loads, []
            if not loads and not self.broker.has_more:
                return
            for load in loads:
                if isinstance(load, Load):
                    self.broker.loaded(load, self.storage.load(load))
                else:
                    assert not isinstance(load, Recall)
                    self.broker.found(load, self.storage.look(load))

    def connect(self, name: str, port: int = 50_000) -> int:
        self._next()
        connection = self.broker.connect(name, f"127.0.0.1:{port}", "binary", 7)
        self.end_turn()
        return connection

    def declare(self, connection: int, queue: str, settings: Mapping[str, Any]) -> None:
        self.broker.queues.declare(connection, self._next(), queue, dict(settings))
        self.end_turn()

    def publish(self, connection: int, queue: str, *bodies: bytes) -> int:
        """Publish a batch; the offset of its record."""
        number, offset = self._next(), self.offset
        self.broker.publishing.publish(Publish(connection, number, queue, 0, Batch(b"".join(batch.pack(bodies)))))
        published = self.offset - 1
        self.end_turn()
        assert published >= offset
        return published

    def delay(self, connection: int, queue: str, delay_ms: int, *bodies: bytes) -> None:
        batch_of = Batch(b"".join(batch.pack(bodies)))
        self.broker.publishing.publish(Publish(connection, self._next(), queue, 0, batch_of, delay_ms=delay_ms))
        self.end_turn()

    def reschedule(self, connection: int, queue: str, message: str, delay_ms: int) -> None:
        found = self.broker.queues.require(queue)
        self.broker.delayed.reschedule(connection, self._next(), found, (message,), delay_ms, 0)
        self.end_turn()

    def transact(self, connection: int, queue: str, body: bytes, subscription: int, run: tuple[int, int]) -> None:
        """Ack and publish at once."""
        number, epoch = self._next(), (connection << 32) + 1
        self.broker.transactions.begin(connection, number, 0)
        publish = Publish(connection, 0, queue, 0, Batch(b"".join(batch.pack([body]))))
        self.broker.transactions.commit(Commit(connection, number, epoch, 0, [publish], [(subscription, (run,))]))
        self.end_turn()

    def schedule(self, connection: int, name: str, queue: str, body: bytes, every_ms: int) -> None:
        spec = ScheduleSpec(queue=queue, body=body, every_ms=every_ms)
        self.broker.schedules.set(connection, self._next(), name, spec)
        self.end_turn()

    def bind(self, connection: int, queue: str, pattern: str) -> None:
        self.broker.queues.bind(connection, self._next(), queue, pattern)
        self.end_turn()

    def publish_to_topic(self, connection: int, topic: str, *bodies: bytes) -> None:
        packed = Batch(b"".join(batch.pack(bodies)))
        self.broker.publishing.publish(Publish(connection, self._next(), topic, 0, packed, to_topic=True))
        self.end_turn()

    def subscribe(self, connection: int, queue: str, messages: int, group: str | None = None) -> int:
        """Subscribe with credit; the subscription's number."""
        self.broker.subscribe(Subscribing(connection, self._next(), queue, group, messages, 1 << 20))
        self.end_turn()
        return self.storage.state.topology.next_subscription - 1

    def credit(self, connection: int, subscription: int, messages: int) -> None:
        self._next()
        self.broker.deliveries.credit(connection, subscription, messages, 1 << 20, 0, -1)
        self.end_turn()

    def ack(self, connection: int, subscription: int, start: int, end: int) -> None:
        self.broker.deliveries.ack(connection, subscription, ((start, end),), self._next())
        self.end_turn()

    def nack(
        self, connection: int, subscription: int, start: int, end: int, *, reason: str = "", reject: bool = False
    ) -> None:
        number = self._next()
        self.broker.deliveries.nack(
            connection, subscription, ((start, end),), number, delay_ms=None, reason=reason, reject=reject
        )
        self.end_turn()

    def redrive(self, connection: int, queue: str) -> None:
        ask = Redriving(connection, self._next(), queue, "", 0, 0, 1_000, Filter())
        self.broker.dead_letters.redrive(ask, dry_run=False)
        self.end_turn()

    def rename(self, connection: int, queue: str, name: str) -> None:
        self.broker.queues.rename(connection, self._next(), queue, name)
        self.end_turn()

    def purge(self, connection: int, queue: str) -> None:
        self.broker.queues.purge(connection, self._next(), queue)
        self.end_turn()

    def delete(self, connection: int, queue: str) -> None:
        self.broker.delete(connection, self._next(), queue)
        self.end_turn()

    def disconnect(self, connection: int, reason: str = "") -> None:
        self._next()
        self.broker.disconnect(connection, reason, lost=bool(reason))
        self.end_turn()

    def tick(self, seconds: int) -> None:
        """Let time pass."""
        self.now_us += seconds * STEP_US
        self._next()
        self.broker.tick()
        self.end_turn()

    def stop(self, reason: str = "the broker stops (SIGTERM)") -> None:
        self._next()
        self.broker.stop(reason)
        self.end_turn()

    def seal(self) -> None:
        """Seal the full segments."""
        log = self.storage.log
        for facts in log.unsealed():
            previous = log.last_seal
            end, seal = seal_segment(self.storage.disk, log.id, facts.base, previous, lambda: None)
            self._next()
            self.broker.journal.record(SegmentSealed(facts.base, end, seal, previous))
            self.end_turn()

    def checkpoint(self, changes: Mapping[str, bytes] | None = None) -> None:
        """Save the state in the index; `changes` puts other bytes in place of parts."""
        state = self.storage.state
        taken = {part.key: (part.as_of, parts.encode(part)) for part in state.parts()}
        taken |= {key: (taken[key][0], blob) for key, blob in (changes or {}).items()}
        assert self.storage.index.commit(self.storage.log.synced_mark, taken, (), state.next_offset)


def orders(folder: Path) -> None:
    """The history that the documentation shows: two workers, an order that cannot be delivered, a clean stop."""
    with Driver(folder) as driver:
        shop = driver.connect("shop", 50_001)
        driver.declare(shop, "orders", {"max_attempts": 2})
        driver.publish(shop, "orders", b"order 1", b"order 2", b"order 3")
        worker = driver.connect("worker-1", 50_002)
        first = driver.subscribe(worker, "orders", 3)
        driver.ack(worker, first, 1, 3)
        driver.nack(worker, first, 3, 4, reason="no such address")
        driver.checkpoint()
        driver.credit(worker, first, 1)
        driver.nack(worker, first, 4, 5, reason="no such address")
        driver.disconnect(worker)
        clerk = driver.connect("clerk", 50_003)
        second = driver.subscribe(clerk, "orders.dlq", 1)
        driver.ack(clerk, second, 1, 2)
        driver.disconnect(clerk)
        driver.publish(shop, "orders", b"order 4")
        driver.disconnect(shop, "the connection broke")
        driver.stop()


def reminders(folder: Path) -> None:
    """Reminders that wait for their time, one of which is put off, and what comes of one, in a transaction."""
    with Driver(folder) as driver:
        shop = driver.connect("shop", 50_001)
        driver.delay(shop, "reminders", 10_000, b"customer 1", b"customer 2")
        driver.reschedule(shop, "reminders", "3-1", 20_000)
        worker = driver.connect("worker", 50_002)
        subscription = driver.subscribe(worker, "reminders", 10)
        driver.schedule(shop, "totals", "reports", b"sum up", 15_000)
        driver.tick(8)
        driver.transact(worker, "letters", b"dear customer 1", subscription, (1, 2))
        driver.tick(10)
        driver.ack(worker, subscription, 2, 3)
        driver.stop()


def second_life(folder: Path) -> None:
    """Orders that two queues get; one of them cannot be shipped at first, and is sent back to work."""
    with Driver(folder) as driver:
        shop = driver.connect("shop", 50_001)
        driver.declare(shop, "shipping", {"max_attempts": 2})
        driver.declare(shop, "events", {"mode": "fan-out"})
        driver.bind(shop, "shipping", "orders.*")
        driver.bind(shop, "events", "#")
        books = driver.connect("books", 50_002)
        billing = driver.subscribe(books, "events", 10, "billing")
        driver.publish_to_topic(shop, "orders.new", b"order 1", b"order 2")
        worker = driver.connect("worker", 50_003)
        shipping = driver.subscribe(worker, "shipping", 2)
        driver.ack(worker, shipping, 1, 2)
        driver.nack(worker, shipping, 2, 3, reason="no such address")
        driver.credit(worker, shipping, 1)
        driver.nack(worker, shipping, 3, 4, reason="no such address")
        driver.ack(books, billing, 1, 3)
        clerk = driver.connect("clerk", 50_004)
        driver.redrive(clerk, "shipping.dlq")
        driver.credit(worker, shipping, 1)
        driver.ack(worker, shipping, 4, 5)
        driver.rename(clerk, "events", "ledger")
        driver.publish_to_topic(shop, "orders.paid", b"order 1")
        driver.stop()

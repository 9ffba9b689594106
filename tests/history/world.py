"""Histories by chance: a broker in memory, driven by commands that are given by small numbers, and all its records."""

from contextlib import suppress
from random import Random
from typing import Any, Final, NamedTuple

from vibemq import batch
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import Misfire, QueueSettings, ScheduleSpec
from vibemq.errors import RequestError
from vibemq.log.delayed import FIRST, LAST, DelayedOverlay, MemoryBase
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.dead_letters import Filter, Redriving
from vibemq.server.effects import Answer, DelayedOf, DueAfter, Find, Load, StoredBatch
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.transactions import Commit

DECLARED: Final[dict[str, dict[str, Any]]] = {
    "a": {"retry_delay_ms": 3, "dedup_window_ms": 50},
    "b": {"overflow": "dead-letter", "max_length": 5},
    "f": {"mode": "fan-out", "group_max_lag": 6},
    "n": {"mode": "fan-out-no-ack"},
    "p": {"mode": "priority", "ttl_ms": 20},
}
BOUND: Final = (("a", "t.#"), ("f", "t.*"), ("p", "t.x"), ("n", "*.y"))
QUEUES: Final = (*DECLARED, "a.dlq", "b.dlq", "f.dlq", "p.dlq")
NAMES: Final = (*QUEUES[:5], "y", "z")
TOPICS: Final = ("t.x", "t.y", "nobody")
NONE: Final = MemoryBase()
"""Of what waits for its time nothing is committed: all is in the overlay."""
CLIENTS: Final = ("shop", "worker", "")


class Kept(NamedTuple):
    """A record as `select` needs it."""

    offset: int
    time_us: int
    tag: int
    event: e.Event


class World:
    """A broker in memory whose records are kept. Every command is given by small numbers."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.waiting = DelayedOverlay()
        self.connections: list[int] = []
        self.subscriptions: list[tuple[int, int]] = []
        self._begin(Projector(), 1_000)
        for queue, settings in DECLARED.items():
            self.broker.queues.declare(0, 1, queue, settings)
        for queue, pattern in BOUND:
            self.broker.queues.bind(0, 1, queue, pattern)
        self.end_turn()

    def _begin(self, state: Projector, now_us: int) -> None:
        self.broker = Broker(state, Limits(), QueueDefaults(QueueSettings(max_attempts=2)), unroutable="lost")
        self.broker.journal.now_us = now_us
        self.broker.start("0", 0)

    def end_turn(self) -> None:
        """Do what is to be done, and keep what was recorded."""
        journal = self.broker.journal
        self.broker.end_turn()
        self.keep()  # what is looked up is what was recorded
        while journal.loads:  # all messages are alike, so what is to be read back is known
            load = journal.loads.pop()
            if isinstance(load, DueAfter):
                self.broker.found(load, self.waiting.after(NONE, load.after, load.until_us, load.most, load.without))
                continue
            if isinstance(load, DelayedOf):
                found = self.waiting.of_records(NONE, load.queue, load.offsets)
                self.broker.found(load, [(entry, (1,) * entry[3]) for _, entry in found])
                continue
            if isinstance(load, Find):
                self.broker.found(load, load.first)
                continue
            assert isinstance(load, Load)
            one = Batch(b"".join(batch.pack([b"x"])))
            self.broker.loaded(load, [StoredBatch(load.queue, load.lane, load.sequence, 0, 0, 0, 0, 0, one)])
            self.broker.end_turn()
        self.keep()
        journal.effects.clear()

    def keep(self) -> None:
        """Keep what was recorded."""
        for record in self.broker.journal.records:
            self.waiting.note(len(self.kept), record.event)
            self.kept.append(Kept(len(self.kept), record.time_us, record.event.TAG, record.event))
        self.broker.journal.records.clear()

    def do(self, name: str, first: int, second: int) -> None:
        """One command, a millisecond after the one before."""
        self.broker.journal.now_us += 1_000
        with suppress(RequestError):  # refused: nothing happened
            getattr(self, name)(first, second)
        self.end_turn()

    # --- clients and messages

    def connect(self, first: int, second: int) -> None:
        address = f"10.0.0.{first % 2}:{second}"
        self.connections.append(self.broker.connect(CLIENTS[first % 3], address, "binary", 0))

    def client(self, second: int) -> int:
        if not self.connections:
            self.connect(second, second)
        return self.connections[second % len(self.connections)]

    def publish(self, first: int, second: int) -> None:
        self._publish(QUEUES[first % 5], second, to_topic=False)

    def route(self, first: int, second: int) -> None:
        self._publish(TOPICS[first % 3], second, to_topic=True)

    def _publish(self, name: str, second: int, *, to_topic: bool) -> None:
        self.broker.publishing.publish(self._asked(name, second, to_topic=to_topic))

    def _asked(self, name: str, second: int, *, to_topic: bool) -> Publish:
        packed = batch.pack([b"x"] * (second % 3 + 1), priority=second)
        return Publish(self.client(second), 1, name, 0, Batch(b"".join(packed)), to_topic=to_topic)

    def delay(self, first: int, second: int) -> None:
        """Publish something for later, to a queue or a topic."""
        name = TOPICS[first % 2] if first > 5 else QUEUES[first % 5]
        publish = self._asked(name, second, to_topic=first > 5)
        self.broker.publishing.publish(publish._replace(delay_ms=1 + 5 * second))

    def unique(self, first: int, second: int) -> None:
        """Publish with dedup ids, of which there are few."""
        publish = self._asked(QUEUES[first % 5], second, to_topic=False)
        ids = b"".join(bytes([1 + (first + second + at) % 7]) * 16 for at in range(publish.batch.count))
        self.broker.publishing.publish(publish._replace(dedup=ids))

    def transact(self, first: int, second: int) -> None:
        """Ack what was delivered, and publish to three places, once for later."""
        connection = self.client(second)
        self.broker.transactions.begin(connection, 1, 0)
        answer = self.broker.journal.effects[-1]
        assert isinstance(answer, Answer)
        epoch = answer.result["epoch"]
        asked = [self._asked(QUEUES[first % 5], second, to_topic=False), self._asked(TOPICS[0], first, to_topic=True)]
        asked += [asked[second % 2]._replace(delay_ms=10), asked[0]._replace(dedup=b"d" * 16 * asked[0].batch.count)]
        acks = []
        for owner, number in self.subscriptions:
            found = self.broker.deliveries.find(connection, number) if owner == connection else None
            if found is not None and found.next_delivery > 2:
                acks.append((number, ((found.next_delivery - 1, found.next_delivery),)))
        publishes = [one._replace(connection=connection, request=0) for one in asked[: 1 + first % 4]]
        self.broker.transactions.commit(Commit(connection, 1, epoch, 0, publishes, acks[:1]))

    def _some_delayed(self, first: int, second: int) -> tuple[Queue, tuple[str, ...]] | None:
        waiting, _ = self.waiting.after(NONE, FIRST, LAST[0], 20)
        if not waiting:
            return None
        queue, (_, offset, index, count, _, _) = waiting[(first * second) % len(waiting)]
        return self.broker.journal.state.queues[queue], (f"{offset}-{index + second % count}",)

    def cancel(self, first: int, second: int) -> None:
        if (found := self._some_delayed(first, second)) is not None:
            self.broker.delayed.cancel(self.client(second), 1, *found)

    def reschedule(self, first: int, second: int) -> None:
        if (found := self._some_delayed(first, second)) is not None:
            self.broker.delayed.reschedule(self.client(second), 1, *found, first * 3, 0)

    def schedule(self, first: int, second: int) -> None:
        name, connection = ("tick", "tock")[first % 2], self.client(second)
        if second < 4:
            name_of = TOPICS[second % 3] if second % 2 else QUEUES[first % 5]
            spec = ScheduleSpec(
                queue=name_of, to_topic=bool(second % 2), body=b"x", every_ms=100, misfire=Misfire.SKIP, times=first
            )
            self.broker.schedules.set(connection, 1, name, spec)
        elif second < 8:
            self.broker.schedules.pause(connection, 1, name, paused=second < 6)
        else:
            self.broker.schedules.delete(connection, 1, name)

    def wait(self, first: int, second: int) -> None:
        """Let time pass: nothing of note, some seconds, or minutes."""
        self.broker.journal.now_us += (10_000 * second, 700_000 * second, 130_000_000)[min(first % 4, 2)]
        self.broker.tick()

    def subscribe(self, first: int, second: int) -> None:
        connection, queue = self.client(second), QUEUES[first]
        group = (None, "g", "h")[second % 3] if queue in {"f", "n"} else None
        start = "head" if group and second % 2 else "tail"
        self.broker.subscribe(Subscribing(connection, 1, queue, group, second % 6, 1 << 20, start))
        self.subscriptions.append((connection, self.broker.journal.state.topology.next_subscription - 1))

    def settle(self, first: int, second: int) -> None:
        if not self.subscriptions:
            return
        connection, number = self.subscriptions[first % len(self.subscriptions)]
        deliveries = self.broker.deliveries
        found = deliveries.find(connection, number)
        if found is None:
            return
        start = max(1, found.next_delivery - 1 - second % 5)
        runs = ((start, start + 1), (start + 2, start + 4)) if first % 2 else ((start, start + 2),)
        if second < 4:
            deliveries.ack(connection, number, runs, 1)
        elif second < 9:
            deliveries.nack(connection, number, runs, 1, delay_ms=None, reason="r", reject=second > 6)
        else:
            deliveries.extend(connection, number, runs, 10, 1)

    def credit(self, first: int, second: int) -> None:
        if self.subscriptions:
            connection, number = self.subscriptions[first % len(self.subscriptions)]
            self.broker.deliveries.credit(connection, number, second, 1 << 20, 0, -1)
        self.broker.tick()

    def redrive(self, first: int, second: int) -> None:
        target = QUEUES[second % 5] if first % 3 == 0 else ""
        ask = Redriving(self.client(second), 1, QUEUES[5 + second % 4], target, 0, 0, first % 4 + 1, Filter())
        self.broker.dead_letters.redrive(ask, dry_run=False)

    def disconnect(self, first: int, second: int) -> None:
        connection = self.client(second)
        self.connections.remove(connection)
        self.subscriptions = [one for one in self.subscriptions if one[0] != connection]
        self.broker.disconnect(connection, "lost" if first % 2 else "", lost=bool(first % 2))

    def restart(self, first: int, _: int) -> None:
        self.connections.clear()
        self.subscriptions.clear()
        if first % 2:
            self.broker.stop("stopped")
        self.keep()  # there is no other turn
        journal = self.broker.journal
        journal.effects.clear()
        journal.loads.clear()
        self._begin(journal.state, journal.now_us)

    # --- queues and groups

    def seek(self, first: int, second: int) -> None:
        queue = self.broker.queues.require("fn"[first % 2])
        start = ("head", "tail", "sequence", "sequence")[second % 4]
        self.broker.groups.seek(self.client(second), 1, queue, "gh"[second % 2], start, first)

    def delete_group(self, first: int, second: int) -> None:
        self.broker.delete_group(self.client(second), 1, "fn"[first % 2], "gh"[second % 2])

    def purge(self, first: int, second: int) -> None:
        self.broker.queues.purge(self.client(second), 1, QUEUES[first % 9])

    def rename(self, first: int, second: int) -> None:
        self.broker.queues.rename(self.client(second), 1, NAMES[first % 7], NAMES[second % 7])

    def change(self, first: int, second: int) -> None:
        self.broker.queues.change(self.client(second), 1, QUEUES[first % 5], {"max_attempts": second})

    def delete(self, first: int, second: int) -> None:
        self.broker.delete(self.client(second), 1, QUEUES[first % 9], 40 * (second % 3))

    def undelete(self, first: int, second: int) -> None:
        name = NAMES[second % 7] if first % 2 else ""
        self.broker.queues.undelete(self.client(second), 1, NAMES[first % 7], name)

    def bind(self, first: int, second: int) -> None:
        act = self.broker.queues.bind if first % 2 else self.broker.queues.unbind
        act(self.client(second), 1, *BOUND[second % 4])


COMMANDS: Final = {
    "connect": 2,
    "publish": 6,
    "route": 3,
    "delay": 3,
    "unique": 2,
    "transact": 3,
    "cancel": 1,
    "reschedule": 1.5,
    "schedule": 2,
    "wait": 1,
    "subscribe": 4,
    "settle": 12,
    "credit": 5,
    "redrive": 2,
    "disconnect": 0.7,
    "restart": 0.2,
    "seek": 2,
    "delete_group": 1,
    "purge": 0.7,
    "rename": 0.8,
    "change": 0.4,
    "delete": 0.7,
    "undelete": 3,
    "bind": 0.5,
}
"""How often each command comes."""


def world_of(seed: int, length: int = 120) -> World:
    """A history of so many commands."""
    random, world = Random(seed), World()
    for name in random.choices(list(COMMANDS), list(COMMANDS.values()), k=length):
        world.do(name, random.randrange(9), random.randrange(10))
    return world

"""A whole broker in one thread, without sockets: seeded clients, a clock that jumps, a disk that forgets, and crashes.

    python -m tests.sim.world SEED [STEPS]      run one seed again

One seed is one history: which clients do what, when a group is written and when it counts as synced, when a checkpoint
takes its next part, when the power fails. All that the runtime does with events and effects is done here with the same
modules, but step by step, so that anything can happen between two steps. The checker judges what clients see; the world
compares the states that were live, and those that every start recovers, with one replay from zero.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from tests.sim.checker import Checker, Violation
from tests.sim.clients import SETTINGS, Client
from tests.sim.disk import SimulatedDisk
from vibemq.errors import BeyondLog
from vibemq.events import QueueSettings, SegmentSealed
from vibemq.log.disk import AnyDisk
from vibemq.log.index import MemoryIndex
from vibemq.log.log import Group, Log
from vibemq.log.segment import seal_segment
from vibemq.projections.projector import Projector
from vibemq.server import effects as f
from vibemq.server.broker import Broker
from vibemq.server.checkpointer import Capture
from vibemq.server.limits import Limits
from vibemq.server.outbox import Outbox
from vibemq.server.storage import Storage

START_US = 1_700_000_000_000_000
SEGMENT_BYTES = 8192
STEPS = 400
DRAIN_ROUNDS = 2000


class World:
    """One history."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = SimulatedDisk(self.random.getrandbits(32))
        self.log_id = self.random.getrandbits(64)
        self.index = MemoryIndex()
        self.now_us = START_US
        self.checker = Checker()
        self.clients = [Client(producer, self.random, self.checker) for producer in (1, 2, 3)]
        self.counts: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self.digests: dict[int, str] = {}
        """The digest of the live state at some offsets."""
        self.start()

    # --- life

    def start(self) -> None:
        """Open the data folder, replay, and begin to serve."""
        log = Log.open(
            self.disk,
            new_log_id=lambda: self.log_id,
            segment_bytes=SEGMENT_BYTES,
            reserve_bytes=4096,
            time_us=self.now_us,
        )
        self.storage = Storage.recover(self.disk, log, self.open_index)
        self.index = self.storage.index  # type: ignore[assignment]  # open_index made it
        self.log = log
        self.forget_cut()
        self.remember()
        self.now_us = max(self.now_us, self.storage.state.audit.last_us)
        limits = Limits(cache_bytes=self.random.choice((300, 3000, 1 << 20)), producers=100)
        self.broker = Broker(self.storage.state, limits, QueueSettings(max_attempts=3, lease_ms=40))
        self.waiting = Outbox()
        self.loads: list[f.Load] = []
        self.deferred: list[f.Load] = []
        self.group: Group | None = None
        self.group_written = False
        self.capture: Capture | None = None
        self.steps: Iterator[None] = iter(())
        checkpoint = self.index.load_checkpoint()
        self.saved = {key: as_of for key, (as_of, _) in checkpoint.parts.items()} if checkpoint else {}
        self.begin()
        self.broker.start("1", self.now_us)
        self.end_turn()

    def open_index(self, _: AnyDisk, log: Log) -> MemoryIndex:
        """What a start finds of the index."""
        return self.index.after_crash(log)

    def forget_cut(self) -> None:
        """What was live behind the end of the log never was."""
        end = self.log.next_offset
        self.digests = {offset: digest for offset, digest in self.digests.items() if offset <= end}

    def check_replay(self) -> None:
        """A replay from zero passes through every state that was live, or recovered, and noted. Once a history."""
        state = Projector()
        for record in self.log.scan(0):
            state.apply(record.offset, record.time_us, record.event)
            noted = self.digests.get(record.offset + 1)
            if noted is not None and noted != state.digests()["all"]:
                raise Violation(f"a replay up to record {record.offset} differs from what was live then")
            self.counts["replays"] += noted is not None
        for queue in state.queues.values():
            held = queue.groups[0].unacked_bytes
            if not 0 <= held <= queue.bytes or queue.ready < 0 or (queue.length == 0 and queue.bytes):
                raise Violation(f"queue {queue.name} does not add up: {queue.length} messages, {queue.bytes} bytes")

    def crash(self, *, power: bool) -> None:
        """Lose the process, and start again."""
        synced = self.log.synced
        if self.group is None and self.random.random() < 0.5:
            self.group = self.log.take_group()
        if self.group is not None and not self.group_written and self.random.random() < 0.7:
            self.log.write_group(self.group, sync=self.random.random() < 0.3)
        self.disk.crash(power=power)
        for client in self.clients:
            client.lost()
        self.counts["power losses" if power else "kills"] += 1
        self.start()
        if self.log.next_offset < synced:
            raise Violation(f"the log ends at {self.log.next_offset}, but {synced} was synced")

    def stop(self) -> None:
        """End in order, and start again."""
        for client in self.clients:
            if client.connection:
                self.broker.disconnect(client.connection, "stopping", lost=False)
            client.lost()
        self.begin()
        self.broker.stop("enough")
        self.append()
        self.finish_group()
        self.write()
        self.log.sync_done(self.log.sync())
        if self.random.random() < 0.7:
            while self.checkpoint() is not None:
                pass
        self.remember()
        self.storage.close()
        self.counts["stops"] += 1
        if self.random.random() < 0.5:
            self.disk.crash(power=True)
        else:
            self.disk.crash(power=False)
        self.start()

    # --- what the runtime does

    def begin(self) -> None:
        """Set the time of what is decided next."""
        self.broker.journal.now_us = self.now_us

    @property
    def durable(self) -> int:
        """Effects that wait for records below may leave."""
        return self.log.synced

    def append(self) -> None:
        """Take what was decided to the log."""
        for record in self.broker.journal.records:
            self.storage.append(record)
        self.broker.journal.records.clear()

    def end_turn(self) -> None:
        """Hand out what is ready, and let go what waits for nothing."""
        self.begin()
        self.broker.deliveries.dispatch()
        self.append()
        journal = self.broker.journal
        effects, journal.effects = journal.effects, []
        for effect in self.waiting.sift(effects, self.durable):
            self.release(effect)
        self.loads += journal.loads
        journal.loads.clear()

    def release(self, effect: f.Effect) -> None:
        """An effect leaves the process."""
        self.trace.update(repr(effect[:3]).encode())
        for client in self.clients:
            if client.connection == effect.connection:
                client.receive(effect)

    def take_group(self) -> None:
        """The writer gets what was appended."""
        if self.group is None:
            self.group, self.group_written = self.log.take_group(), False

    def write(self) -> None:
        """The writer writes and syncs; the loop does not know yet."""
        self.take_group()
        if self.group is not None and not self.group_written:
            self.log.write_group(self.group, sync=True)
            self.group_written = True

    def finish_group(self) -> None:
        """The loop hears that the group is durable."""
        if self.group is None:
            return
        self.write()
        assert self.group is not None
        self.log.group_done(self.group, synced=True)
        self.group = None
        self.counts["groups"] += 1
        for effect in self.waiting.release(self.durable):
            self.release(effect)
        self.loads += self.deferred
        self.deferred.clear()

    def load(self) -> None:
        """Read what the broker asked for."""
        if self.loads:
            load = self.loads.pop(self.random.randrange(len(self.loads)))
            try:
                batches = self.storage.load(load)
            except BeyondLog:
                self.deferred.append(load)
                return
            self.counts["loads"] += 1
            self.begin()
            self.broker.loaded(load.queue, batches)

    def tick(self) -> None:
        """Let time pass."""
        self.now_us += self.random.choice((0, 100, 5_000, 20_000, 100_000))
        self.begin()
        self.broker.tick()
        self.append()

    def checkpoint(self) -> Capture | None:
        """Take the next part of a checkpoint; commit it when it is whole and durable. None when that was done."""
        if self.capture is None:
            self.capture = Capture(self.storage.state, self.saved)
            self.steps = self.capture.steps()
        capture = self.capture
        if next(self.steps, self) is not self:
            return capture
        if self.log.synced < capture.wanted:
            self.finish_group()
            self.write()
            return capture
        assert self.index.commit(self.log.synced_mark, capture.changed, capture.gone, capture.start)
        self.saved, self.capture = capture.saved, None
        self.counts["checkpoints"] += 1
        return None

    def seal(self) -> None:
        """Seal the segments that are full."""
        for facts in self.log.unsealed():
            previous = self.log.last_seal
            end, seal = seal_segment(self.disk, self.log.id, facts.base, previous, lambda: None)
            self.begin()
            self.broker.journal.record(SegmentSealed(facts.base, end, seal, previous))
            self.append()
            self.counts["seals"] += 1

    def remember(self) -> None:
        """Note the digest of the state; where one was noted before, for the same events, it must be the same."""
        offset, digest = self.storage.state.next_offset, self.storage.state.digests()["all"]
        if self.digests.setdefault(offset, digest) != digest:
            raise Violation(f"the state before record {offset} has become another one")

    # --- a history

    def act(self) -> None:
        """A client does something."""
        self.begin()
        self.random.choice(self.clients).act(self.broker)
        self.append()

    def run(self, steps: int = STEPS) -> None:
        """Live for so many steps, then drain everything and judge."""
        doings: list[tuple[float, Callable[[], object]]] = [
            (60, self.act),
            (20, self.end_turn),
            (8, self.take_group),
            (8, self.write),
            (12, self.finish_group),
            (6, self.tick),
            (12, self.load),
            (10, self.checkpoint),
            (1, self.seal),
            (2, self.log_prepare),
            (1, self.remember),
            (0.7, lambda: self.crash(power=True)),
            (0.4, lambda: self.crash(power=False)),
            (0.3, self.stop),
        ]
        weights = [weight for weight, _ in doings]
        for _, doing in self.random.choices(doings, weights, k=steps):
            doing()
        self.crash(power=True)
        self.drain()
        self.checker.finish()

    def log_prepare(self) -> None:
        """The writer takes room ahead."""
        self.log.prepare()

    def drain(self) -> None:
        """Everybody sends again what was not confirmed; then one client consumes all there is."""
        for client in self.clients:
            self.begin()
            client.connect(self.broker)
            self.append()
        reader = self.clients[0]
        self.settle()
        for name in sorted(SETTINGS):
            self.broker.subscribe(reader.connection, reader.ask(), name, None, 1_000_000, 1 << 40)
        for _ in range(DRAIN_ROUNDS):
            self.settle()
            for number, consumer in reader.consumers.items():
                if consumer.open:
                    bodies = set(consumer.open.values())
                    self.checker.ack_asked |= bodies
                    runs = tuple((delivery, delivery + 1) for delivery in sorted(consumer.open))
                    consumer.open.clear()
                    self.broker.deliveries.ack(reader.connection, number, runs, 0)
            if all(queue.length == 0 for queue in self.storage.state.queues.values()):
                break
            self.now_us += 10_000
            self.begin()
            self.broker.tick()
        else:
            raise Violation("the queues do not drain")
        if unconfirmed := [client for client in self.clients if client.unconfirmed]:
            raise Violation(f"{len(unconfirmed)} clients were never told that their messages are stored")
        self.settle()
        self.storage.close()
        self.disk.crash(power=True)
        self.start()
        self.check_replay()

    def settle(self) -> None:
        """A turn, and everything durable that came of it."""
        self.end_turn()
        self.take_group()
        self.finish_group()
        self.take_group()
        self.finish_group()
        while self.loads:
            self.load()
        self.end_turn()

    @property
    def digest(self) -> str:
        """SHA-256 over every byte of the data folder and over what clients were told."""
        for name, data in sorted(self.disk.contents().items()):
            self.trace.update(name.encode() + data)
        return self.trace.hexdigest()


def run_seed(seed: int, steps: int = STEPS) -> World:
    """One history; a failure says how to see it again."""
    try:
        world = World(seed)
        world.run(steps)
    except Exception as problem:
        problem.add_note(f"to see it again:  python -m tests.sim.world {seed} {steps}")
        raise
    return world


def main(arguments: list[str]) -> None:
    """Run the seed that is named, and print what it comes to."""
    world = run_seed(int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else STEPS)
    print(world.digest, world.log.next_offset, dict(sorted(world.counts.items())))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])

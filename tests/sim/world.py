"""A whole broker in one thread, without sockets: clients, network, disk and clocks, all driven by one seed.

    python -m tests.sim.world SEED [STEPS [TEMPER]]     run one seed again
    python -m tests.sim.shrink SEED [STEPS [TEMPER]]    find the few steps of it that fail

One seed is one history, a row of steps: a client does something, bytes arrive, a group is written, counts as synced, a
checkpoint takes its next part, time passes, a clock is set, a connection is cut, a disk breaks or fills up, the power
fails. Each step draws its chances from the seed and its own number, so that it can be left out. The checker judges what
clients saw, `invariants` each event; and one replay from zero, at the end, must pass through every state that was live
or that a start has recovered.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

from tests.checker import Copy, History, Verdict, Violation, check
from tests.sim import rest
from tests.sim.chance import Chance
from tests.sim.clients import Client
from tests.sim.disk import SimulatedDisk
from tests.sim.invariants import Watch, compare
from tests.sim.ledger import Ledger
from tests.sim.network import CHUNK_BYTES, Wire
from tests.sim.producing import Fate
from tests.sim.scene import TASTES, drawn
from tests.sim.shell import Shell, Surroundings
from vibemq.errors import CorruptLog, OutOfSpace, StorageError, WriteFailed
from vibemq.log.index import MemoryIndex
from vibemq.projections.projector import Projector

START_US = 1_700_000_000_000_000
YEAR_US = 366 * 86_400 * 1_000_000
STEPS = 800
DRAIN_ROUNDS = 2000
SETTLE_ROUNDS = 1000
SENT_MAX = 30
CLIENTS = 3
LAST = 1 << 32
"""The number of the step that ends a history."""

Doing: TypeAlias = Callable[[], object]


class World:
    """One history."""

    def __init__(self, seed: int, temper: str = "any") -> None:
        """Begin. Chance decides which faults there are, if it is not one of the TEMPERS that do."""
        self.seed = seed
        self.random = Chance(seed << 40)
        self.moment = 0
        """Counts what happens, so that everybody can say what came before what."""
        self.monotonic_us = 1
        self.wall_off_us = START_US
        self.history = History()
        self.counts: Counter[str] = Counter()
        self.watch = Watch(self.counts)
        self.scene = drawn(self.random, TASTES.get(temper))
        self.watch.rules.connection_rate = self.scene.publish_rate
        self.disk = SimulatedDisk()
        self.disk.random = self.random
        self.around = Surroundings(
            self.disk,
            self.random,
            self.watch,
            self.counts,
            lambda: self.monotonic_us,
            lambda: self.monotonic_us + self.wall_off_us,
            self.next_moment,
            self.random.getrandbits(64),
            self.scene,
        )
        codecs = [self.random.random() < 0.2 for _ in range(CLIENTS)]
        self.clients = [
            Client(number, self.random, self.history, self.watch, self.scene, json=json)
            for number, json in enumerate(codecs, start=1)
        ]
        self.wires: list[Wire] = []
        self.story: list[str] | None = None
        """What happened, for people; None as long as nobody asks."""
        self.trace = hashlib.sha256()
        self.digests: dict[int, str] = {}
        """The digest of the live state at some offsets."""
        some = {fault: weight for fault, weight in FAULTS.items() if self.random.random() < 0.5}
        weights = {**WORK, **(TEMPERS.get(temper) or some)}
        self.doings = [doing for doing, weight in weights.items() for _ in range(round(weight * 10))]
        self.shell: Shell
        self.start(MemoryIndex())
        self.clients[0].moment = self.next_moment()
        self.connect(self.clients[0])
        self.clients[0].operating.declare_all()
        self.settle()

    def next_moment(self) -> int:
        """Something happens."""
        self.moment += 1
        return self.moment

    def hit(self, fault: str) -> None:
        """A fault of that name comes."""
        self.counts[fault] += 1
        self.watch.features.hit(fault)

    def tell(self, text: str) -> None:
        """Say what happened."""
        if self.story is not None:
            self.story.append(text)

    # --- starts and ends of the process

    def start(self, index: MemoryIndex) -> None:
        """Start a process, again if need be with a disk that was put in order meanwhile."""
        shell = self.shell = self._open(index)
        end = shell.log.next_offset
        self.digests = {offset: digest for offset, digest in self.digests.items() if offset <= end}
        self.remember()
        try:
            shell.serve()
        except (WriteFailed, OutOfSpace) as problem:
            self.die(problem)

    def _open(self, index: MemoryIndex) -> Shell:
        while True:
            try:
                return Shell(self.around, index)
            except (OSError, StorageError) as problem:
                if isinstance(problem, CorruptLog) or not self.disk.is_troubled:
                    raise
                self.counts["starts that failed"] += 1
                self.disk.repair()
                self.disk.crash(power=False)

    def restart(self, *, power: bool) -> None:
        """The process is gone: sockets close, with `power` the disk forgets, and another process starts."""
        synced, index = self.shell.log.synced, self.shell.index
        self.disk.crash(power=power)
        for wire in self.wires:
            wire.conversation = None
            wire.up.end(0)
            wire.down.end(self.random.randrange(len(wire.down) + 1))
        self.start(index)
        if self.shell.log.next_offset < synced:
            raise Violation(f"the log ends at {self.shell.log.next_offset}, but {synced} was synced")

    def crash(self, *, power: bool) -> None:
        """Lose the process in the middle of whatever it does."""
        shell = self.shell
        if shell.group is None and self.random.random() < 0.5:
            shell.group = shell.log.take_group()
        if shell.group is not None and not shell.group_written and self.random.random() < 0.7:
            shell.log.write_group(shell.group, sync=self.random.random() < 0.3)
        self.hit("power losses" if power else "kills")
        self.tell("the power fails" if power else "the broker is killed")
        self.restart(power=power)

    def die(self, problem: Exception) -> None:
        """The broker cannot write: it ends. Somebody puts the disk in order and starts it again."""
        if not self.disk.is_troubled:
            raise problem
        if isinstance(problem, WriteFailed) and not self.shell.refuses_everything():
            raise Violation("the log went on after a failure") from problem
        if isinstance(problem, OutOfSpace) and not self.shell.has_spent_reserve:
            raise Violation("the reserve went for something else than consuming and acking") from problem
        self.hit("died of the disk")
        self.tell(f"the broker dies: {problem}")
        self.disk.repair()
        self.restart(power=self.random.random() < 0.5)

    def stop(self) -> None:
        """End in order, and start again."""
        self.tell("the broker is stopped")
        self.shell.stop()
        self.remember()
        self.shell.close()
        self.hit("stops")
        self.restart(power=self.random.random() < 0.5)

    def remember(self) -> None:
        """Note the digest of the state; where one was noted before, for the same events, it must be the same."""
        state = self.shell.state
        digest = state.digests()["all"]
        if self.digests.setdefault(state.next_offset, digest) != digest:
            raise Violation(f"the state before record {state.next_offset} has become another one")

    # --- network

    def connect(self, client: Client) -> None:
        """A client comes, or comes back."""
        wire = client.connect()
        self.wires = [one for one in self.wires if not one.is_over]
        self.wires.append(wire)
        self.shell.accept(wire)
        client.told = "connect"

    def carry(self) -> None:
        """Some bytes arrive, or the end of a connection does."""
        ways: list[tuple[Wire, bool]] = []
        for wire in self.wires:
            if (
                wire.conversation is not None
                and (wire.up or wire.up.ended)
                and (wire.client is None or not wire.is_blocked)
            ):
                ways.append((wire, True))
            if wire.client is not None and (wire.down or wire.down.ended):
                ways.append((wire, False))
        if ways:
            wire, is_up = self.random.choice(ways)
            (self.carry_up if is_up else self.carry_down)(wire, self.random.choice(CHUNK_BYTES))

    def carry_up(self, wire: Wire, most: int) -> None:
        """The broker gets bytes, or learns that there will be no more."""
        if not wire.up:
            self.tell("the broker learns that a connection is gone")
            self.shell.hang_up(wire, lost=True)
            return
        data, _ = wire.up.read(most)
        self.tell(f"{len(data)} bytes reach the broker")
        self.shell.hear(wire, data)
        if self.random.random() < 0.5:
            self.shell.end_turn()

    def carry_down(self, wire: Wire, most: int) -> None:
        """A client gets bytes, or learns that there will be no more."""
        client = wire.client
        assert client is not None
        if not wire.down:
            self.tell(f"client {client.producer} learns that its connection is gone")
            client.forget()
            return
        data, since = wire.down.read(most)
        self.trace.update(data)
        client.moment = self.next_moment()
        client.hear(data, since)
        self.tell(f"{len(data)} bytes reach client {client.producer}: {' '.join(client.heard)}")
        self.shell.unblock(wire)

    def cut(self) -> None:
        """A connection breaks."""
        if self.wires:
            self.hit("cuts")
            self.tell("a connection is cut")
            self.random.choice(self.wires).cut(self.random)

    def time_out(self) -> None:
        """The broker gives up on a client."""
        if self.wires:
            self.hit("time-outs")
            self.tell("the broker gives up on a client")
            self.shell.time_out(self.random.choice(self.wires))

    # --- disk and clocks

    def break_disk(self) -> None:
        """One of the next calls, and perhaps all after it, will fail."""
        operation = self.random.choice(("pwrite", "fdatasync", "fdatasync", "allocate", "rename", "sync_directory"))
        once = self.random.random() < 0.5
        self.disk.fail(operation, after=self.random.randrange(6), once=once)
        self.tell(f"{operation} will fail{' once' * once}")

    def fill_disk(self) -> None:
        """Somebody else takes the room on the disk, or gives it back."""
        if self.disk.capacity_bytes is None:
            self.disk.capacity_bytes = 0
            self.disk.capacity_bytes = self.random.choice((0, 1000, 10_000)) - self.disk.free_bytes()
            self.shell.notice_room(is_there=False)
            self.hit("disks filled")
            self.tell("the disk fills up")
        else:
            self.disk.capacity_bytes = None
            self.shell.notice_room(is_there=True)
            self.tell("there is room on the disk again")

    def set_clock(self) -> None:
        """Somebody sets the wall clock."""
        reach_us = self.random.choice((1_000_000, 3600_000_000, YEAR_US))
        by_us = self.random.randrange(-reach_us, reach_us)
        self.wall_off_us = max(START_US - YEAR_US, min(START_US + YEAR_US, self.wall_off_us + by_us))
        self.hit("clocks set")
        self.tell(f"the wall clock is set by {by_us / 1_000_000:.3f} s")

    def tick(self) -> None:
        """Let time pass."""
        self.monotonic_us += self.random.choice((0, 100, 5_000, 20_000, 100_000))
        self.tell(f"it is {self.monotonic_us} us")
        self.shell.tick()

    def wait(self) -> None:
        """Let much time pass."""
        self.monotonic_us += 61_000_000
        self.tell(f"much later it is {self.monotonic_us} us")
        self.shell.tick()

    # --- a history

    def act(self) -> None:
        """A client does something, or comes back."""
        client = self.random.choice(self.clients)
        client.moment = self.next_moment()
        if client.wire is None:
            self.connect(client)
        else:
            client.act()
            if client.hops:
                self.connect(client)
        self.tell(f"client {client.producer}: {client.told}")

    def kill(self) -> None:
        """The process dies."""
        self.crash(power=False)

    def lose_power(self) -> None:
        """The machine does."""
        self.crash(power=True)

    def step(self, number: int) -> None:
        """Do what belongs to this number."""
        self.random.seed((self.seed << 40) + number + 1)
        doing = self.random.choice(self.doings)
        told = len(self.story) if self.story is not None else 0
        try:
            (getattr(self, doing, None) or getattr(self.shell, doing))()
        except (WriteFailed, OutOfSpace) as problem:
            self.die(problem)
        if self.story is not None:
            self.story[told:] = [f"{number:5}  {line}" for line in self.story[told:] or [doing.replace("_", " ")]]

    def run(self, steps: Iterable[int] = range(STEPS)) -> Verdict:
        """Live through these steps, then drain everything and judge."""
        for number in steps:
            self.step(number)
        self.random.seed((self.seed << 40) + LAST)
        self.disk.repair()
        self.rest()
        self.check_answers()
        if self.shell.log.disk_full:
            raise Violation("there is room on the disk again, and publishes are still refused")
        self.crash(power=True)
        self.drain()
        self.check_replay()
        self.check_copies()
        verdict = check(self.history)
        if verdict.faults():
            raise Violation(str(verdict))
        return verdict

    def drain(self) -> None:
        """Everybody sends again what was not confirmed, and one client consumes all there is."""
        reader = self.clients[0]
        for client in self.clients:
            client.moment = self.next_moment()
            self.connect(client)
        reader.operating.declare_all()
        reader.scheduling.end_all()
        self.settle()
        read: set[tuple[int, int]] = set()
        for _ in range(DRAIN_ROUNDS):
            self._read_all(reader, read)
            self.settle()
            if self._is_drained():
                break
            self._go_on(reader)
            self.monotonic_us += 10_000
            self.shell.tick()
        else:
            raise Violation("the queues do not drain")
        self.check_answers()
        self.shell.close()
        self.disk.crash(power=True)
        self.start(self.shell.index)

    def check_answers(self) -> None:
        """All has arrived, and whoever is still connected has an answer to each request."""
        for client in self.clients:
            if client.requests and client.wire is not None and not client.wire.up.ended:
                raise Violation(f"client {client.producer} has no answers to requests {sorted(client.requests)}")

    def _read_all(self, reader: Client, read: set[tuple[int, int]]) -> None:
        """Consume from every group of every queue that it does not consume from yet."""
        for queue in self.watch.book.there():
            for group in queue.groups.values():
                if (queue.id, group.id) not in read:
                    read.add((queue.id, group.id))
                    reader.consuming.subscribe_to(queue.name, 1_000_000, group.name or None)

    def _is_drained(self) -> bool:
        held = any(consumer.open for consumer in self.clients[0].consuming.consumers.values())
        waiting = any(client.producing.unconfirmed or client.transacting.pending for client in self.clients)
        if held or any(queue.length for queue in self.watch.book.there()):
            return False
        due = [one.due_us for queue in self.watch.book.there() for one in queue.delayed.values()]
        if due:  # nothing else is left that anybody could wait for
            self.shell.begin()
            self.monotonic_us += max(0, min(due) - self.shell.journal.now_us)
        return not waiting and not due

    def _go_on(self, reader: Client) -> None:
        """Publish what was refused, ack what came, ask for more."""
        for client in self.clients:
            client.moment = self.next_moment()
            for batch in list(client.producing.unconfirmed):
                if batch.fate is Fate.REFUSED and batch.sent > SENT_MAX:  # too large for its queue, perhaps
                    client.producing.give_up(batch)
                elif batch.fate is Fate.REFUSED:
                    client.producing.send(batch)
        for number, consumer in reader.consuming.consumers.items():
            if consumer.open:
                copies = set(consumer.open.values())
                chosen = sorted(consumer.open)
                consumer.open.clear()
                reader.consuming.settle(number, chosen, copies, confirm=False)

    def rest(self) -> None:
        """Let everybody have done what there is to do just now, and look whether they have."""
        self.settle()
        self.shell.tick()
        self.settle()
        shell = self.shell
        shell.begin()
        rest.check(self.watch, shell.broker, self.clients, shell.journal.now_us)
        self.counts["rests"] += 1
        self.tell("all is at rest")

    def settle(self) -> None:
        """Let everything arrive that is on its way, and all be durable that came of it."""
        for _ in range(SETTLE_ROUNDS):
            before = self.shell.log.next_offset, self.moment
            for wire in list(self.wires):
                if wire.conversation is not None and wire.up:
                    self.carry_up(wire, 1 << 30)
            shell = self.shell
            shell.end_turn()
            shell.take_group()
            shell.finish_group()
            while shell.loads or shell.read:
                shell.load()
            shell.keep_house()
            for wire in list(self.wires):
                if wire.client is not None and (wire.down or wire.down.ended):
                    self.carry_down(wire, 1 << 30)
            if before == (self.shell.log.next_offset, self.moment) and not self.shell.broker.has_more:
                return
        raise Violation("the broker does not come to rest")

    def check_copies(self) -> None:
        """Tell the judge what the log says: which copies there were, and what became of them. All were settled."""
        book, history = self.watch.book, self.history
        history.owed = book.acked | {Copy(name, "nobody") for name in history.confirmed if name not in book.ids}
        history.excused = book.ended
        history.attempted |= book.schedules.fired
        history.confirmed |= book.schedules.fired
        history.stored, history.left_out = set(book.ids), self.watch.rules.dedup.left_out
        history.queues = book.came_to
        left = {(queue.name, group.name) for queue in book.there() for group in queue.groups.values() if group.length}
        left |= {(queue.name, "waiting for its time") for queue in book.there() if queue.delayed}
        if left:
            raise Violation(f"these are empty, and the log does not say where their messages are: {left}")

    def check_replay(self) -> None:
        """A replay from zero passes through every state that was noted when it was live or recovered, and adds up."""
        state, ledger = Projector(), Ledger()
        for record in self.shell.log.scan(0):
            event, told = record.event, self.watch.book.told[record.offset]
            if (event, record.time_us) != (told.event, told.time_us):
                raise Violation(f"record {record.offset} holds {event}, where {told.event} was decided")
            state.apply(record.offset, record.time_us, event)
            ledger.note(event)
            noted = self.digests.get(record.offset + 1)
            if noted is not None and noted != state.digests()["all"]:
                raise Violation(f"a replay up to record {record.offset} differs from what was live then")
            self.counts["replays"] += noted is not None
        ledger.check(state)
        compare(self.watch.book, state)

    @property
    def digest(self) -> str:
        """SHA-256 over every byte of the data folder and over what clients were told."""
        trace = self.trace.copy()
        for name, data in sorted(self.disk.contents().items()):
            trace.update(name.encode() + data)
        return trace.hexdigest()


WORK = {
    "act": 26,
    "carry": 46,
    "end_turn": 8,
    "take_group": 1,
    "write": 2,
    "finish_group": 7,
    "tick": 2,
    "load": 3,
    "checkpoint": 3,
    "seal": 0.2,
    "prepare": 0.5,
    "keep_house": 0.5,
    "remember": 0.2,
    "lose_power": 0.2,
    "rest": 0.1,
    "wait": 0.1,
}
"""What goes on in every history, and how often: a step takes one of them."""
FAULTS = {"kill": 0.3, "stop": 0.2, "cut": 0.4, "time_out": 0.3, "break_disk": 0.3, "fill_disk": 0.3, "set_clock": 0.5}
"""What goes on in some: a history with all of it would never get far."""
TEMPERS: dict[str, dict[str, float]] = {
    "any": {},
    **{taste: {} for taste in TASTES},
    "clocks": {"set_clock": 3.0, "kill": 0.3, "stop": 0.3, "lose_power": 0.0, "tick": 8.0},
}
"""What goes on beside or instead, by name; nothing: as chance has it."""


def run_seed(seed: int, steps: int = STEPS, temper: str = "any") -> World:
    """One history; a failure says how to see it again."""
    try:
        world = World(seed, temper)
        world.run(range(steps))
    except Exception as problem:
        problem.add_note(f"to see it again:  python -m tests.sim.world {seed} {steps} {temper}")
        problem.add_note(f"to see the cause: python -m tests.sim.shrink {seed} {steps} {temper}")
        raise
    return world


def parse(arguments: list[str]) -> tuple[int, int, str]:
    """Seed, steps and temper of a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("steps", type=int, nargs="?", default=STEPS)
    parser.add_argument("temper", choices=TEMPERS, nargs="?", default="any")
    given = parser.parse_args(arguments)
    return given.seed, given.steps, given.temper


def main() -> None:
    """Run the seed that is named, and print what it comes to."""
    world = run_seed(*parse(sys.argv[1:]))
    print(world.digest, world.shell.log.next_offset, dict(sorted(world.counts.items())))  # noqa: T201


if __name__ == "__main__":
    main()

"""One life of a broker's process, in steps: what the runtime does with events, effects and conversations.

It is made of the same modules as the runtime, without a loop, a thread or a socket: whoever drives it says when a group
is taken, written, and known to be synced, when a load is done, and when a checkpoint takes its next part.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import NamedTuple

from tests.checker import Violation
from tests.sim.delayed import resolved
from tests.sim.disk import SimulatedDisk
from tests.sim.invariants import Watch
from tests.sim.network import Wire
from tests.sim.rules import overdue
from tests.sim.scene import Scene
from vibemq.errors import BeyondLog, DiskFull, HeartbeatMissed, WriteFailed
from vibemq.events import ProducersForgotten, Published, Routed, SegmentSealed, encode
from vibemq.log.disk import AnyDisk
from vibemq.log.frame import HEADER_BYTES
from vibemq.log.index import MemoryIndex
from vibemq.log.log import Group, Log
from vibemq.log.segment import seal_segment
from vibemq.log.space import RESERVE
from vibemq.protocol import messages as m
from vibemq.server import effects as f
from vibemq.server.broker import Broker
from vibemq.server.checkpointer import Capture
from vibemq.server.clock import BrokerClock
from vibemq.server.conversation import Conversation
from vibemq.server.limits import Limits
from vibemq.server.outbox import Outbox
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.storage import Storage

SEGMENT_BYTES = 8192
RESERVE_BYTES = 4096
RECORD_BYTES = 1000
"""Few records but those of publishes are longer: so much of the reserve may be left when one does not fit."""
CATCH_UP = 5
"""Missed times of a schedule that are made up for one by one."""
BLOCKED_BYTES = 2500
"""A client with so much unread is one that does not read."""


class Surroundings(NamedTuple):
    """What outlives a process, and what it finds around it."""

    disk: SimulatedDisk
    random: Random
    watch: Watch
    counts: Counter[str]
    monotonic_us: Callable[[], int]
    wall_us: Callable[[], int]
    moment: Callable[[], int]
    log_id: int
    scene: Scene


class _Peer:
    """The broker's end of a wire, as its conversation needs it."""

    def __init__(self, shell: "Shell", wire: Wire) -> None:
        self.shell, self.wire = shell, wire

    def connect(self, hello: m.Hello, codec: str) -> int:
        number = self.shell.broker.connect(hello.client, "simulated", codec, hello.producer)
        self.shell.wires[number] = self.wire
        self.shell.around.watch.attempts.connected(number, hello.producer)
        return number

    def admit(self, size: int) -> None:
        if not self.shell.log.admit(size):
            self.shell.disk_refused = True
            self.shell.around.counts["refused for want of room"] += 1
            raise DiskFull("the disk is full")


class Shell:
    """A process, from opening its data folder on. It ends by being dropped."""

    def __init__(self, around: Surroundings, index: MemoryIndex) -> None:
        """Open the data folder, replay, and begin to serve.

        Raises:
            StorageError, OSError: the disk does not let it.
        """
        self.around = around
        self.log = Log.open(
            around.disk,
            new_log_id=lambda: around.log_id,
            segment_bytes=SEGMENT_BYTES,
            reserve_bytes=RESERVE_BYTES,
            time_us=around.wall_us(),
        )

        def after_crash(_: AnyDisk, log: Log) -> MemoryIndex:
            self.index = index.after_crash(log)
            return self.index

        self.storage = Storage.recover(around.disk, self.log, after_crash)
        self.storage.read_bytes = around.random.choice((200, 2000, 2000))
        self.state = self.storage.state
        self.clock = BrokerClock(
            lambda: around.wall_us() / 1_000_000,
            lambda: around.monotonic_us() / 1_000_000,
            self.state.audit.last_us,
        )
        self.limits = Limits(
            cache_bytes=around.random.choice((300, 3000, 3000, 1 << 20, 1 << 20)),
            producers=100,
            schedule_catch_up=CATCH_UP,
            publish_rate_per_connection=around.scene.publish_rate,
        )
        self.broker = Broker(
            self.state, self.limits, QueueDefaults(), auto_create=False, unroutable=around.scene.unroutable
        )
        self.broker.schedules.has_room = self.log.admit
        self.journal = self.broker.journal
        self.wires: dict[int, Wire] = {}
        self.waiting = Outbox()
        self.loads: list[f.Reading] = []
        self.deferred: list[f.Reading] = []
        self.read: list[tuple[f.Reading, Callable[[], None]]] = []
        """What was read, and how to tell the broker, who does not know yet."""
        self.causes: dict[f.Reading, m.Command] = {}
        """What is carried out when something was read, and the request for it."""
        self.group: Group | None = None
        self.group_written = False
        self.spent_bytes: int | None = None
        """Bytes of events other than publishes since the disk filled up; None while it has room, or had no reserve."""
        self.disk_refused = False
        """The last publish was refused for want of room on the disk."""
        self.capture: Capture | None = None
        self.parts: Iterator[None] = iter(())
        checkpoint = self.index.load_checkpoint()
        self.saved = {key: as_of for key, (as_of, _) in checkpoint.parts.items()} if checkpoint else {}

    def serve(self) -> None:
        """Begin."""
        self.around.watch.restarted(self.log.next_offset, self.state)
        self.begin()
        self.broker.start("1", self.clock.wall_us())
        self.end_turn()

    # --- a turn

    def begin(self) -> None:
        """Set the time of what is decided next."""
        self.journal.now_us = self.clock.now_us()

    @property
    def durable(self) -> int:
        """Effects that wait for records below may leave."""
        return self.log.synced

    def append(self, cause: m.Command | None = None) -> None:
        """Take what was decided to the log."""
        records = self.journal.records
        if records:
            now_us, watch = self.around.monotonic_us(), self.around.watch
            for record in records:
                if self.log.disk_full and isinstance(record.event, Published | Routed):
                    raise Violation(f"the disk is full, and {record.event} takes of the reserve")
                self.storage.append(record)
                watch.happened(record.event, record.time_us, now_us, b"".join(record.payload), cause)
                if self.spent_bytes is not None and not isinstance(record.event, Published | Routed):
                    self.spent_bytes += HEADER_BYTES + len(encode(record.event))
            records.clear()
            watch.settled(self.state)

    def end_turn(self) -> None:
        """Hand out what is ready, and let go what waits for nothing."""
        self.begin()
        self.broker.end_turn()
        self.append()
        journal = self.journal
        effects, journal.effects = journal.effects, []
        self._send(self.waiting.sift(effects, self.durable))
        self.loads += journal.loads
        journal.loads.clear()

    def _send(self, effects: Iterator[f.Effect]) -> None:
        """Effects leave the process."""
        spoken: dict[int, Wire] = {}
        for effect in effects:
            if effect.after > self.log.synced:
                raise Violation(f"{effect} leaves, and only what is below {self.log.synced} is durable")
            wire = self.wires.get(effect.connection)
            if wire is not None and wire.conversation is not None:
                if isinstance(effect, f.Peeked | f.DelayedListed | f.DelayedShown):
                    wire.conversation.answer_peek(effect.request, [])  # `Watch` has seen what is in it
                else:
                    wire.conversation.send(effect)
                spoken[effect.connection] = wire
        for wire in spoken.values():
            self.flush(wire)

    def flush(self, wire: Wire) -> None:
        """Hand what was collected to the network, and notice a client that does not read."""
        conversation = wire.conversation
        assert conversation is not None
        if conversation.out:
            wire.down.write(conversation.out, self.around.moment())
            conversation.out = []
            if len(wire.down) > BLOCKED_BYTES and not wire.is_blocked and conversation.number:
                wire.is_blocked = True
                self.broker.block(conversation.number, blocked=True)
                self.around.counts["blocked"] += 1
                self.around.watch.features.hit("blocked")

    # --- connections

    def accept(self, wire: Wire) -> None:
        """Somebody connects."""
        wire.conversation = Conversation(_Peer(self, wire), self.broker, self.limits, "1")

    def hear(self, wire: Wire, data: bytes) -> None:
        """Carry out what a client asks."""
        conversation = wire.conversation
        assert conversation is not None
        self.begin()
        commands = conversation.receive(memoryview(data))
        while commands or conversation.has_more:
            for command in commands:
                self._execute(conversation, command)
                if self.around.random.random() < 0.05:  # long commands are carried out in several turns
                    self.end_turn()
                    self.begin()
            commands = conversation.receive(memoryview(b""))
        if conversation.error is not None:
            raise Violation(f"a client that keeps to the protocol was refused: {conversation.error.text}")
        self.flush(wire)
        if conversation.goodbye is not None:
            self.end_turn()
            self.hang_up(wire, lost=conversation.goodbye.code != 0)

    def _execute(self, conversation: Conversation, command: m.Command | m.Refused) -> None:
        """Carry out one command, and look at what comes of it."""
        journal, rules = self.journal, self.around.watch.rules
        known, publish = len(journal.effects), command if isinstance(command, m.Publish) else None
        had_reason = publish is None or self._is_late(conversation.number, publish) or rules.may_be_refused(publish)
        self.disk_refused = False
        asked = len(journal.loads)
        conversation.execute(command)
        if isinstance(command, m.CancelDelayed | m.Reschedule):
            self.causes |= dict.fromkeys(journal.loads[asked:], resolved(command, journal.now_us))
        is_recorded, number = bool(journal.records), conversation.number
        self.append(None if isinstance(command, m.Refused) else command)
        effects = journal.effects[known:]
        if not isinstance(command, m.Refused):
            for effect in effects:
                self._check(effect, command, number, is_recorded=is_recorded)
        if isinstance(command, m.Commit) and not is_recorded:
            self._not_committed(number, command, is_repeated=len(journal.loads) > asked)
        if publish is not None:
            is_stored = any(isinstance(effect, f.Confirmed) for effect in effects)
            self._published(number, publish, is_stored=is_stored, had_reason=had_reason)

    def _check(self, effect: f.Effect, command: m.Command, number: int, *, is_recorded: bool) -> None:
        """What a command is answered with, or will be when it was read."""
        watch = self.around.watch
        if isinstance(effect, f.Peeked):
            watch.peeked(effect, command)
        elif isinstance(effect, f.DelayedListed | f.DelayedShown):
            self._look(effect)
        elif isinstance(effect, f.Answer):
            if is_recorded and effect.after < self.state.next_offset:
                raise Violation(f"answered before it is durable: {command}")
            if isinstance(command, m.ShowQueue):
                watch.answers.counted(command.queue, effect.result)
            watch.attempts.answered(command, effect.result, number, self.journal.now_us)

    def _look(self, ask: f.DelayedListed | f.DelayedShown) -> None:
        """What is answered about what is delayed, if it can be read already, is right."""
        answers, reading = self.around.watch.answers, self.storage.delayed
        with suppress(BeyondLog):
            if isinstance(ask, f.DelayedListed):
                answers.listed(ask, reading.listed(ask))
            else:
                answers.shown(ask, reading.shown(ask))
            self.around.counts["delayed shown"] += 1

    def _not_committed(self, number: int, commit: m.Commit, *, is_repeated: bool) -> None:
        """A commit did nothing: it was carried out before, or waits, or is refused for good."""
        watch, broker = self.around.watch, self.broker
        if not is_repeated and watch.must_commit(commit, number, self.journal.now_us) and not self.disk_refused:
            raise Violation(f"{commit} is refused, and there is no reason to: {number}")
        for publish in commit.publishes:  # what the writer sends meanwhile may come before
            watch.rules.refused(publish)
        if commit.epoch not in broker.transactions._connections[number].attempts:
            watch.attempts.open.pop(commit.epoch, None)

    def _is_late(self, number: int, publish: m.Publish) -> bool:
        """Whether a producer has given a batch up, or had its answer: one that was long on its way is refused then."""
        known = self.state.producers.known.get(self.broker.publishers[number].producer)
        return known is not None and publish.sequence < known.oldest

    def _published(self, number: int, publish: m.Publish, *, is_stored: bool, had_reason: bool) -> None:
        """A publish was stored or refused: who is refused waits until it is told to go on, or comes too late."""
        if is_stored:
            return
        place = self.broker.publishers[number].places.get((publish.queue, publish.to_topic))
        if place is not None and place.expects(publish.sequence):
            return
        watch = self.around.watch
        if watch.rules.lacks_room(publish):
            watch.features.seen("overflow: reject")
        watch.rules.refused(publish)
        if not had_reason and not self.disk_refused and not self.around.scene.publish_rate:
            raise Violation(f"{publish} is refused, and there is no reason to")

    def unblock(self, wire: Wire) -> None:
        """A client has read what there was."""
        if wire.is_blocked and wire.conversation is not None and not wire.down:
            wire.is_blocked = False
            self.broker.block(wire.conversation.number, blocked=False)

    def time_out(self, wire: Wire) -> None:
        """Nothing was heard of a client for too long."""
        if wire.conversation is not None and wire.conversation.number:
            wire.conversation.say_goodbye(HeartbeatMissed.code, "nothing was heard")
            self.flush(wire)
            self.hang_up(wire, lost=True)

    def hang_up(self, wire: Wire, *, lost: bool) -> None:
        """A client is gone, or is sent away."""
        conversation = wire.conversation
        assert conversation is not None
        wire.conversation = None
        wire.down.end()
        if conversation.number:
            del self.wires[conversation.number]
            self.begin()
            self.broker.disconnect(conversation.number, "gone", lost=lost)
            self.append()

    # --- the disk

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
        self.log.group_done(self.group, synced=True)
        self.group = None
        self.around.counts["groups"] += 1
        self._send(self.waiting.release(self.durable))
        self.loads += self.deferred
        self.deferred.clear()

    def prepare(self) -> None:
        """The writer takes room ahead."""
        self.log.prepare()

    def keep_house(self) -> None:
        """Look whether there is room again."""
        if self.log.disk_full and self.log.space_returned():
            self.around.counts["room returned"] += 1

    def notice_room(self, *, is_there: bool) -> None:
        """Somebody took all the room on the disk, or gave it back: from here on the reserve must last."""
        self.spent_bytes = 0 if not is_there and self.around.disk.exists(RESERVE) else None

    @property
    def has_spent_reserve(self) -> bool:
        """Whether what was consumed and acked since the disk filled up, if there was a reserve, is worth all of it."""
        return self.spent_bytes is None or self.spent_bytes >= RESERVE_BYTES - RECORD_BYTES

    def load(self) -> None:
        """Read what the broker asked for, or tell it what was read; there may be some time between."""
        random = self.around.random
        if self.read and not (self.loads and random.random() < 0.5):
            self._tell(*self.read.pop(0))
        elif self.loads:
            reading = self.loads.pop(random.randrange(len(self.loads)))
            try:
                answer = self._read(reading)
            except BeyondLog:
                self.deferred.append(reading)
                return
            except OSError as problem:  # reads are not among the faults here: so it was never there
                raise Violation(f"what the log says is there cannot be read: {reading}, {problem}") from problem
            if isinstance(reading, f.DueAfter | f.DelayedOf) and random.random() < 0.6:
                self.read.append((reading, answer))
            else:
                self._tell(reading, answer)

    def _tell(self, reading: f.Reading, answer: Callable[[], None]) -> None:
        """The broker hears what was read."""
        self.begin()
        cause = self.causes.pop(reading, None)
        asked = len(self.journal.loads)
        answer()
        if cause is not None:  # it may have to look again
            self.causes |= dict.fromkeys(self.journal.loads[asked:], cause)
        self.append(cause)
        self.around.watch.rules.found = None

    def _read(self, reading: f.Reading) -> Callable[[], None]:
        """Read what was asked for; how to tell the broker."""
        if isinstance(reading, f.Find):
            sequence = self.storage.find(reading)
            self.around.counts["times looked up"] += 1
            rules = self.around.watch.rules
            if reading.queue in self.state.queues and sequence != rules.place_of(
                reading.queue, reading.time_us, reading.first, reading.end
            ):
                raise Violation(f"{reading} comes to {sequence}")
            rules.found = sequence
            return lambda: self.broker.found(reading, sequence)
        if isinstance(reading, f.Recall):
            event = self.storage.recall(reading)
            return lambda: self.broker.transactions.recalled(reading, event)
        if not isinstance(reading, f.Load):
            answer = self.storage.look(reading)
            self.around.counts["delayed looked up"] += 1
            return lambda: self.broker.found(reading, answer)
        batches = self.storage.load(reading)
        self.around.counts["loads"] += 1
        return lambda: self.broker.loaded(reading, batches)

    def seal(self) -> None:
        """Seal the segments that are full."""
        for facts in self.log.unsealed():
            previous = self.log.last_seal
            end, seal = seal_segment(self.around.disk, self.log.id, facts.base, previous, lambda: None)
            self.begin()
            self.journal.record(SegmentSealed(facts.base, end, seal, previous))
            self.append()
            self.around.counts["seals"] += 1

    def checkpoint(self) -> bool:
        """Take the next part of a checkpoint; commit it when it is whole and durable. Whether that is done."""
        if self.capture is None:
            self.capture = Capture(self.state, self.saved)
            self.parts = self.capture.steps()
        capture = self.capture
        if next(self.parts, self) is not self:
            return False
        if self.log.synced < capture.wanted:
            self.finish_group()
            self.write()
            return False
        self.capture = None
        if self.around.disk.is_full:  # as an index on a full disk does: nothing is lost by it but time
            self.around.counts["checkpoints without room"] += 1
            return True
        assert self.index.commit(self.log.synced_mark, capture.changed, capture.gone, capture.start)
        self.saved = capture.saved
        self.around.counts["checkpoints"] += 1
        self.around.watch.features.hit("checkpoints")
        return True

    # --- time

    def tick(self) -> None:
        """Do what is due; and if nothing is, as the broker said, then nothing."""
        self.begin()
        broker, now_us = self.broker, self.journal.now_us
        due_us = broker.next_due_us()
        is_idle = (due_us is None or due_us > now_us) and not broker.has_more and not broker.dead_letters._waiting
        broker.tick()
        if is_idle and any(not isinstance(record.event, ProducersForgotten) for record in self.journal.records):
            raise Violation(f"nothing is due before {due_us}, and at {now_us} {self.journal.records[0].event} happens")
        self.append()
        self.around.watch.ticked(self.around.monotonic_us())
        overdue(self.around.watch.book, now_us)

    # --- ends

    def stop(self) -> None:
        """End in order."""
        for wire in list(self.wires.values()):
            assert wire.conversation is not None
            wire.conversation.say_goodbye(0, "stopping")
            self.flush(wire)
            self.hang_up(wire, lost=False)
        self.begin()
        self.broker.stop("enough")
        self.append()
        self.finish_group()
        self.write()
        self.log.sync_done(self.log.sync())
        if self.around.random.random() < 0.7:
            while not self.checkpoint():
                pass

    def close(self) -> None:
        """Give back files and lock."""
        self.storage.close()

    def refuses_everything(self) -> bool:
        """Whether the log accepts nothing after a failure, nor says that anything has become durable."""
        for attempt in (self.log.take_group, self.log.sync, lambda: self.log.admit(1)):
            try:
                attempt()
            except WriteFailed:
                continue
            return False
        return True

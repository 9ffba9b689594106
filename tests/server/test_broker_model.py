"""The broker against the naive model, step by step; and what it remembers against a replay of its events."""

from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.model import Consumer, Model, ModelQueue, State
from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import LeaseLost
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.checkpointer import Capture
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish

NAMES = st.sampled_from(["a", "a", "a", "b", "a.dlq"])
PICK = st.integers(0, 999)
RUNS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=3)
MS = 1000
THING = TypeVar("THING")


def pick(things: list[THING], number: int) -> THING:
    """One of them."""
    return things[number % len(things)]


class BrokerMachine(RuleBasedStateMachine):
    """Each rule is one command, done by the broker and by the model."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(Limits(cache_bytes=120))
        self.model = Model()
        self.rig.take()
        self.connections: dict[int, int] = {}
        """Number -> the next sequence of its producer."""
        self.accepted: list[tuple[int, int, str, list[bytes], f.Confirmed]] = []
        self.producers = 0
        self.bodies = 0
        self.requests = 0
        self.capture: Capture | None = None
        self.steps: Iterator[None] = iter(())
        self.saved: dict[str, tuple[int, bytes]] = {}
        self.saved_start = -1

    # --- what came of a command

    def settle(self) -> list[f.Effect]:
        """Tell the model of deliveries and dead letters; the effects that are left."""
        self.model.now_us = self.rig.now_us
        events, effects = self.rig.take()
        for event in events:
            if isinstance(event, e.QueueDeclared):
                dead_name = event.settings.dead_letter_queue or f"{event.name}.dlq"
                self.model.queues[event.name] = ModelQueue(
                    event.name,
                    event.settings.max_attempts,
                    event.settings.lease_ms * MS,
                    event.settings.retry_delay_ms * MS,
                    dead_name,
                    has_own_target=bool(event.settings.dead_letter_queue),
                )
            elif isinstance(event, e.DeadLettered):
                self.dead_lettered(event)
        assert not self.model.dead, "every message that failed for good went somewhere"
        left: list[f.Effect] = []
        for effect in effects:
            if isinstance(effect, f.Delivery):
                self.delivered(effect)
            elif isinstance(effect, f.Drained):
                consumer = self.model.consumers[effect.subscription]
                assert consumer.pull_until_us is not None
                assert consumer.pulled or consumer.pull_until_us <= self.rig.now_us
                consumer.pull_until_us, consumer.credit_messages, consumer.credit_bytes = None, 0, 0
            else:
                left.append(effect)
        return left

    def dead_lettered(self, event: e.DeadLettered) -> None:
        ids = [(offset, index + at) for offset, index, count in event.refs for at in range(count)]
        source = self.model.queues[self.rig.state.queues[event.queue].name]
        for identity in ids:
            queue, message = next((queue, one) for queue, one in self.model.dead if one.id == identity)
            self.model.dead.remove((queue, message))
            assert queue is source
            assert message.failed == event.attempts
            assert queue.max_attempts == message.failed or event.reason is e.DeadReason.REJECTED
            assert (event.dead_queue == 0) == (queue.is_dead_letter_queue and not queue.has_own_target)
            if event.dead_queue:
                target = self.model.queues[queue.dead_name]
                assert self.rig.state.queues[event.dead_queue].name == target.name
                target.add(message.body, message.id)
        if event.dead_queue:
            self.model.queues[source.dead_name].is_dead_letter_queue = True

    def delivered(self, effect: f.Delivery) -> None:
        stored, first, count = effect.stored, effect.first, effect.messages
        assert effect.after > stored.made_ready, "nothing is sent before it is durable"
        bodies = stored.batch.bodies()[first : first + count]
        consumer = self.model.consumers[effect.subscription]
        ready = consumer.queue.of(State.READY)[:count]
        assert [(stored.origin.offset, stored.origin.index + at) for at in range(first, first + count)] == [
            one.id for one in ready
        ]
        self.model.deliver(effect.subscription, effect.delivery, bodies, effect.attempt, redelivered=effect.redelivered)

    def request(self) -> int:
        self.requests += 1
        return self.requests

    def check_answer(self, effects: list[f.Effect], request: int, *, late: bool) -> None:
        """A request of acks was answered: LeaseLost if some were no longer the consumer's."""
        if not request:
            assert effects == []
            return
        (answer,) = effects
        if late:
            assert isinstance(answer, f.Refusal)
            assert isinstance(answer.error, LeaseLost)
        else:
            assert isinstance(answer, f.Answer)
            assert answer.after == len(self.rig.log)

    # --- clients

    @precondition(lambda self: len(self.connections) < 4)
    @rule()
    def connect(self) -> None:
        self.producers += 1
        number = self.rig.broker.connect("c", "here", "binary", self.producers)
        assert number not in self.connections
        self.connections[number] = 1
        assert self.settle() == []

    def connection(self, which: int) -> int:
        """Some connection; one is made when there is none."""
        if not self.connections:
            self.connect()
        return pick(list(self.connections), which)

    @precondition(lambda self: len(self.connections) > 1)
    @rule(which=PICK, lost=st.booleans())
    def disconnect(self, which: int, lost: bool) -> None:
        number = pick(list(self.connections), which)
        del self.connections[number]
        self.rig.broker.disconnect(number, "gone", lost=lost)
        for consumer in list(self.model.consumers.values()):
            if consumer.connection == number:
                self.model.leave(consumer.number, lost=lost)
        assert self.settle() == []

    @rule(which=PICK, name=NAMES, attempts=st.integers(0, 3), retry_ms=st.sampled_from([0, 15]), dead=st.booleans())
    def declare(self, which: int, name: str, attempts: int, retry_ms: int, dead: bool) -> None:
        if name in self.model.queues:
            return
        wanted: dict[str, int | str] = {"max_attempts": attempts, "lease_ms": 30, "retry_delay_ms": retry_ms}
        if dead:
            wanted["dead_letter_queue"] = "b" if name == "a" else "a"
        connection = self.connection(which)
        self.rig.broker.queues.declare(connection, self.request(), name, wanted)
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result["messages"] == 0

    @rule(
        which=PICK,
        name=st.sampled_from("aab"),
        sizes=st.lists(st.integers(5, 20), min_size=1, max_size=8),
        numbered=st.booleans(),
    )
    def publish(self, which: int, name: str, sizes: list[int], numbered: bool) -> None:
        connection = self.connection(which)
        bodies = []
        for size in sizes:
            self.bodies += 1
            bodies.append(b"%d" % self.bodies + bytes(size - 4))
        sequence = self.connections[connection] if numbered else 0
        self.rig.broker.publishing.publish(Publish(connection, 1, name, sequence, batch_of(bodies)))
        offset = len(self.rig.log) + len(self.rig.broker.journal.records) - 1
        (confirmed,) = self.settle()
        queue = self.model.queues[name]
        assert confirmed == f.Confirmed(offset + 1, connection, 1, offset, queue.next, duplicate=False)
        for index, body in enumerate(bodies):
            queue.add(body, (offset, index))
        if which % 4:
            self.turn()
        if numbered:
            self.connections[connection] += len(bodies)
            self.accepted.append((connection, sequence, name, bodies, confirmed))

    @precondition(lambda self: self.accepted)
    @rule(which=PICK)
    def publish_again(self, which: int) -> None:
        connection, sequence, name, bodies, confirmed = pick(self.accepted, which)
        if connection in self.connections:
            self.rig.broker.publishing.publish(Publish(connection, 1, name, sequence, batch_of(bodies)))
            assert self.settle() == [confirmed._replace(duplicate=True)]

    @precondition(lambda self: len(self.model.consumers) < 5)
    @rule(which=PICK, name=NAMES, messages=st.sampled_from([20, 20, 3, 0]), size=st.sampled_from([10_000, 10_000, 30]))
    def subscribe(self, which: int, name: str, messages: int, size: int) -> None:
        connection = self.connection(which)
        self.rig.broker.subscribe(Subscribing(connection, self.request(), name, None, messages, size))
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        number = answer.result["subscription"]
        assert number not in self.model.consumers
        self.model.consumers[number] = Consumer(number, self.model.queues[name], connection, messages, size)
        if which % 4:
            self.turn()

    def consumer(self, which: int) -> Consumer:
        """Some consumer, rather one that holds messages; one is made when there is none."""
        if not self.model.consumers:
            self.subscribe(which, "a", 20, 10_000)
            self.turn()
        everyone = list(self.model.consumers.values())
        return pick([one for one in everyone if one.open] or everyone, which)

    @rule(
        which=PICK,
        messages=st.sampled_from([20, 5, 1]),
        size=st.sampled_from([500, 20]),
        handed=PICK,
        wait_ms=st.sampled_from([-1, -1, 0, 5]),
    )
    def credit(self, which: int, messages: int, size: int, handed: int, wait_ms: int) -> None:
        consumer = self.consumer(which)
        handed %= consumer.next_delivery + 1
        self.rig.broker.deliveries.credit(consumer.connection, consumer.number, messages, size, handed, wait_ms)
        consumer.credit_messages += messages
        consumer.credit_bytes += size
        consumer.handed = max(consumer.handed, handed)
        if wait_ms >= 0:
            consumer.pull_until_us, consumer.pulled = self.rig.now_us + wait_ms * MS, False
        assert self.settle() == []
        if which % 4:
            self.turn()

    @precondition(lambda self: len(self.model.consumers) > 2)
    @rule(which=PICK)
    def unsubscribe(self, which: int) -> None:
        consumer = self.consumer(which)
        self.rig.broker.unsubscribe(consumer.connection, self.request(), consumer.number)
        self.model.leave(consumer.number, lost=False)
        assert len(self.settle()) == 1

    # --- ends of deliveries

    def runs(self, consumer: Consumer, runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Runs near the end of what was delivered."""
        first = min(consumer.open, default=max(1, consumer.next_delivery - 5))
        return tuple((first + start, first + start + length) for start, length in runs)

    def is_late(self, consumer: Consumer, runs: tuple[tuple[int, int], ...]) -> bool:
        """Whether some of these deliveries are not open any more, or asked for twice."""
        asked = [number for start, end in runs for number in range(start, end)]
        return len({number for number in asked if number in consumer.open}) < len(asked)

    @rule(which=PICK, runs=RUNS, confirm=st.booleans())
    def ack(self, which: int, runs: list[tuple[int, int]], confirm: bool) -> None:
        consumer, request = self.consumer(which), self.request() if confirm else 0
        deliveries = self.runs(consumer, runs)
        late = self.is_late(consumer, deliveries)
        self.rig.broker.deliveries.ack(consumer.connection, consumer.number, deliveries, request)
        self.model.settle(self.model.take_back(consumer.number, deliveries))
        self.check_answer(self.settle(), request, late=late)

    @rule(
        which=PICK,
        runs=RUNS,
        confirm=st.booleans(),
        delay_ms=st.sampled_from([None, 0, 7, 20]),
        reject=st.booleans(),
    )
    def nack(self, which: int, runs: list[tuple[int, int]], confirm: bool, delay_ms: int | None, reject: bool) -> None:
        consumer, request = self.consumer(which), self.request() if confirm else 0
        deliveries = self.runs(consumer, runs)
        late = self.is_late(consumer, deliveries)
        self.rig.broker.deliveries.nack(
            consumer.connection, consumer.number, deliveries, request, delay_ms=delay_ms, reason="no", reject=reject
        )
        messages = self.model.take_back(consumer.number, deliveries)
        delay_us = None if delay_ms is None else delay_ms * MS
        self.model.fail(consumer.queue, messages, delay_us, reject=reject)
        self.check_answer(self.settle(), request, late=late)

    @rule(which=PICK, runs=RUNS, confirm=st.booleans(), lease_ms=st.sampled_from([0, 5, 80]))
    def extend(self, which: int, runs: list[tuple[int, int]], confirm: bool, lease_ms: int) -> None:
        consumer, request = self.consumer(which), self.request() if confirm else 0
        deliveries = self.runs(consumer, runs)
        asked = [number for start, end in deliveries for number in range(start, end)]
        until_us = self.rig.now_us + (lease_ms * MS or consumer.queue.lease_us)
        self.rig.broker.deliveries.extend(consumer.connection, consumer.number, deliveries, lease_ms, request)
        for number in set(asked) & consumer.open.keys():
            consumer.open[number] = consumer.open[number][0], until_us
        self.check_answer(self.settle(), request, late=self.is_late(consumer, deliveries))

    # --- time, turns, loads

    @rule(passed_us=st.sampled_from([0, 1, 4_999, 10_000, 30_000, 200_000]))
    def tick(self, passed_us: int) -> None:
        self.rig.pass_time(passed_us)
        self.model.now_us = self.rig.now_us
        lost = self.model.tick()
        self.rig.broker.tick()
        effects = self.settle()
        told = []
        for effect in effects:
            assert isinstance(effect, f.LeasesLost)
            told += [(effect.subscription, n) for start, end in effect.deliveries for n in range(start, end)]
        assert sorted(told) == sorted(lost)
        self.turn()

    @rule()
    def turn(self) -> None:
        self.rig.broker.deliveries.dispatch()
        assert self.settle() == []
        loading = {
            self.rig.state.queues[load.queue].name for load in self.rig.loads if load.queue in self.rig.state.queues
        }
        for consumer in self.model.consumers.values():
            if consumer.queue.name in loading:
                continue
            assert not (consumer.has_credit and consumer.queue.of(State.READY)), "a ready message was not handed out"
            if consumer.pull_until_us is not None:
                assert not consumer.pulled
                assert consumer.pull_until_us > self.rig.now_us

    @precondition(lambda self: self.rig.loads)
    @rule(which=PICK)
    def load(self, which: int) -> None:
        self.rig.load_one(which)
        self.turn()

    # --- queues

    @precondition(lambda self: self.model.queues)
    @rule(which=PICK, sure=st.integers(0, 3))
    def purge(self, which: int, sure: int) -> None:
        queue = pick(list(self.model.queues.values()), which)
        if sure:
            return
        self.rig.broker.queues.purge(self.connection(which), 1, queue.name)
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": self.model.purge(queue)}

    @precondition(lambda self: self.model.queues)
    @rule(which=PICK, sure=st.integers(0, 5))
    def delete(self, which: int, sure: int) -> None:
        queue = pick(list(self.model.queues.values()), which)
        if sure:
            return
        ended = {consumer.number for consumer in self.model.of_queue(queue)}
        self.rig.broker.delete(self.connection(which), 1, queue.name, 0)
        *endings, answer = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": sum(one.state is not State.SETTLED for one in queue.messages), "until_us": 0}
        assert {effect.subscription for effect in endings if isinstance(effect, f.Ended)} == ended
        assert all(effect.after == len(self.rig.log) for effect in endings)
        self.model.delete(queue)
        self.accepted = [entry for entry in self.accepted if entry[2] != queue.name]

    # --- restarts and checkpoints

    @rule(steps=st.integers(1, 4))
    def capture_step(self, steps: int) -> None:
        if self.capture is None:
            self.capture = Capture(self.rig.state, {key: as_of for key, (as_of, _) in self.saved.items()})
            self.steps = self.capture.steps()
        for _ in range(steps):
            if next(self.steps, self) is self:
                self.keep(self.capture)
                self.capture = None
                return

    def keep(self, capture: Capture) -> None:
        kept = {key: saved for key, saved in self.saved.items() if key not in capture.gone}
        self.saved = kept | capture.changed
        assert {key: as_of for key, (as_of, _) in self.saved.items()} == capture.saved
        assert all(as_of <= capture.wanted for as_of, _ in self.saved.values())
        self.saved_start = capture.start
        assert self.restored().digests() == self.rig.state.digests()

    def restored(self) -> Projector:
        """The state from the last checkpoint and the events since."""
        saved = [(key, as_of, blob) for key, (as_of, blob) in self.saved.items()]
        return self.rig.replayed(Projector.restore(saved, self.saved_start))

    @rule(clean=st.booleans(), from_checkpoint=st.booleans(), sure=st.integers(0, 4))
    def restart(self, clean: bool, from_checkpoint: bool, sure: int) -> None:
        if sure:
            return
        if clean:
            self.rig.broker.stop("enough")
            self.rig.take()
        use_checkpoint = from_checkpoint and self.saved_start >= 0
        state = self.restored() if use_checkpoint else self.rig.replayed()
        assert state.digests() == self.rig.state.digests()
        self.rig.begin(state)
        self.connections.clear()
        self.accepted.clear()
        self.capture = None
        self.model.restart(clean=clean)
        assert self.settle() == []

    # --- what always holds

    @invariant()
    def states_agree(self) -> None:
        state = self.rig.state
        assert set(state.topology.queues) == set(self.model.queues)
        for name, number in state.topology.queues.items():
            self.compare(state.queues[number], self.model.queues[name])
        assert set(state.topology.subscriptions) == set(self.model.consumers)

    def compare(self, queue: Queue, model: ModelQueue) -> None:
        ready, unacked, waiting = (model.of(state) for state in (State.READY, State.UNACKED, State.WAITING))
        assert queue.next[0] == model.next
        assert (queue.ready, queue.unacked, queue.waiting) == (len(ready), len(unacked), len(waiting))
        assert queue.length == len(ready) + len(unacked) + len(waiting)
        assert queue.bytes == sum(len(one.body) for one in ready + unacked + waiting)
        group = queue.groups[0]
        assert group.unacked_bytes == sum(len(one.body) for one in unacked)
        lane = group.lanes[0]
        returned = [n for start, end in lane.returned for n in range(start, end)]
        fresh = list(range(lane.cursor, model.next))
        assert returned + fresh == [one.sequence for one in ready]
        held = {n: [s for low, high in lanes.get(0, ()) for s in range(low, high)] for n, lanes in group.held.items()}
        assert held == {
            one.number: sorted(message.sequence for message, _ in one.open.values())
            for one in self.model.of_queue(model)
        }
        failed = {s: n for n, marked in lane.failed.items() for low, high in marked for s in range(low, high)}
        assert failed == {one.sequence: one.failed for one in ready + unacked + waiting if one.failed}

    @invariant()
    def wakes_in_time(self) -> None:
        wanted, due_us = self.model.next_due_us(), self.rig.broker.deliveries.next_due_us()
        assert wanted is None or (due_us is not None and due_us <= wanted)

    @invariant()
    def cache_is_bounded(self) -> None:
        cache = self.rig.broker._cache
        assert cache.bytes <= cache.bytes_max or len(cache._order) == 1

    def teardown(self) -> None:
        live = self.rig.state
        digests = live.digests()
        assert self.rig.replayed().digests() == digests
        if self.saved_start >= 0:
            assert self.restored().digests() == digests
        saved = [(part.key, part.as_of, parts.encode(part)) for part in live.parts()]
        again = Projector.restore(saved, live.next_offset)
        assert [(part.key, part.as_of, parts.encode(part)) for part in again.parts()] == saved


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(max_examples=120, stateful_step_count=60)


def long_history(seed: int, steps: int) -> BrokerMachine:
    """Many steps of one machine, the frequent ones often: deeper than the machine goes by itself."""
    random, machine = Random(seed), BrokerMachine()

    def some(most: int) -> list[tuple[int, int]]:
        return [(random.randrange(8), random.randint(1, 6)) for _ in range(random.randint(1, most))]

    def number() -> int:
        return random.randrange(1000)

    def queue() -> str:
        return random.choice(["a", "a", "a", "b", "a.dlq"])

    def publish() -> None:
        sizes = [random.randint(5, 20) for _ in range(random.choice([1, 1, 3, 8]))]
        machine.publish(number(), random.choice("aab"), sizes, random.random() < 0.5)

    def nack() -> None:
        machine.nack(number(), some(2), yes(), random.choice([None, None, 0, 7, 20]), random.random() < 0.2)

    def yes() -> bool:
        return random.random() < 0.5

    steps_by_weight: list[tuple[int, Callable[[], None]]] = [
        (30, publish),
        (12, lambda: machine.credit(number(), random.choice([1, 5, 20]), random.choice([20, 500]), number(), -1)),
        (3, lambda: machine.credit(number(), 3, 100, number(), random.choice([0, 5]))),
        (24, lambda: machine.ack(number(), some(3), yes())),
        (12, nack),
        (6, lambda: machine.extend(number(), some(2), yes(), random.choice([0, 5, 80]))),
        (12, lambda: machine.tick(random.choice([0, 1, 4_999, 10_000, 30_000]))),
        (6, machine.turn),
        (20, lambda: machine.load(number()) if machine.rig.loads else None),
        (4, lambda: machine.subscribe(number(), queue(), random.choice([3, 20]), random.choice([30, 10_000]))),
        (3, lambda: machine.unsubscribe(number()) if machine.model.consumers else None),
        (2, lambda: machine.connect() if len(machine.connections) < 4 else None),
        (1, lambda: machine.disconnect(number(), yes()) if machine.connections else None),
        (2, lambda: machine.declare(number(), queue(), random.randrange(4), random.choice([0, 15]), yes())),
        (4, lambda: machine.publish_again(number()) if machine.accepted else None),
        (1, lambda: machine.purge(number(), 0) if machine.model.queues else None),
        (1, lambda: machine.delete(number(), random.randrange(3)) if machine.model.queues else None),
        (16, lambda: machine.capture_step(1)),
        (1, lambda: machine.restart(yes(), yes(), 0)),
    ]
    weights = [weight for weight, _ in steps_by_weight]
    for _, step in random.choices(steps_by_weight, weights, k=steps):
        step()
        machine.states_agree()
        machine.wakes_in_time()
        machine.cache_is_bounded()
    machine.teardown()
    return machine


@pytest.mark.parametrize("seed", range(12))
def test_long_random_histories(seed: int) -> None:
    long_history(seed, 600)

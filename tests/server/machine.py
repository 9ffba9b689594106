"""The broker and the naive model side by side: each step is one command, done by both, and then they are compared.

What the broker remembers is compared with a replay of its events, and with checkpoints restored, too. What kinds of
queue there are is for those who use this: see test_broker_model.py, test_groups_model.py and test_keys_model.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.server import compared
from tests.server.model import MS, Consumer, Group, Model, Queue, State
from tests.server.rig import Rig
from tests.server.witness import Witness
from vibemq.declaration import Mode
from vibemq.errors import ConsumerExclusive, InvalidRequest, LeaseLost, RequestError, UnknownGroup, UnknownQueue
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.checkpointer import Capture
from vibemq.server.limits import Limits

RANDOM = st.randoms(use_true_random=False)
"""What a step needs to choose from; hypothesis knows how to make that simple."""
TURNS_MAX = 200
"""Turns after which something must have come to an end, with nothing new to do."""


class Machine(RuleBasedStateMachine):
    """Each rule is one command."""

    NAMES: ClassVar[Sequence[str]]
    """Queues to consume, declare and so on, the frequent ones often."""
    LIMITS: ClassVar[Limits] = Limits(cache_bytes=8_000, unacked_per_subscription=30)
    UNROUTABLE: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(self.LIMITS, unroutable=self.UNROUTABLE)
        self.model = Model()
        self.witness = Witness(self.model, self.LIMITS.unacked_per_subscription)
        self.rig.take()
        self.connections: dict[int, int] = {}
        """Number -> the next sequence of its producer."""
        self.producers = self.bodies = 0
        self.requests = 1_000  # 1 is for those that are answered at once
        self.answers: dict[int, tuple[int, Callable[[f.Effect], None]]] = {}
        """Requests that are answered later: whose they are, and what to do then."""
        self.capture: Capture | None = None
        self.steps: Iterator[None] = iter(())
        self.saved: dict[str, tuple[int, bytes]] = {}
        self.saved_start = -1

    def settings_for(self, random: Random, name: str) -> dict[str, Any]:
        """What a queue may be declared with."""
        raise NotImplementedError

    # --- what came of a command

    def settle(self) -> list[f.Effect]:
        """Tell the model what happened; the effects that are left."""
        self.model.now_us = self.rig.now_us
        first = len(self.rig.log)
        events, effects = self.rig.take()
        self.witness.hear(first, events, [effect for effect in effects if isinstance(effect, f.Delivery)])
        left = [effect for effect in effects if not isinstance(effect, f.Delivery) and not self.is_handled(effect)]
        told = Counter[tuple[int, int]]()
        for effect in left:
            if isinstance(effect, f.LeasesLost):
                told.update((effect.subscription, n) for start, end in effect.deliveries for n in range(start, end))
        assert told == self.witness.lost
        self.witness.lost.clear()
        return [effect for effect in left if not isinstance(effect, f.LeasesLost)]

    def is_handled(self, effect: f.Effect) -> bool:
        """Take an effect that needs no answer by the step that runs."""
        if isinstance(effect, f.Drained):
            consumer = self.model.consumers[effect.subscription]
            assert consumer.pull_until_us is not None
            assert consumer.pulled or consumer.pull_until_us <= self.rig.now_us
            consumer.pull_until_us, consumer.credit_messages, consumer.credit_bytes = None, 0, 0
            return True
        if isinstance(effect, f.Answer | f.Refusal | f.Peeked) and effect.request in self.answers:
            _, answered = self.answers.pop(effect.request)
            answered(effect)
            return True
        return effect.connection not in self.connections

    # --- clients

    def request(self) -> int:
        self.requests += 1
        return self.requests

    @rule()
    def connect(self) -> None:
        if len(self.connections) < 4:
            self.producers += 1
            number = self.rig.broker.connect("c", "here", "binary", self.producers)
            assert number not in self.connections
            self.connections[number] = 1
            assert self.settle() == []

    def connection(self, random: Random) -> int:
        """Some connection; one is made when there is none."""
        if not self.connections:
            self.connect()
        return random.choice(list(self.connections))

    @rule(random=RANDOM)
    def disconnect(self, random: Random) -> None:
        if len(self.connections) < 2:
            return
        number, lost = self.connection(random), random.random() < 0.5
        del self.connections[number]
        self.rig.broker.disconnect(number, "gone", lost=lost)
        for consumer in [one for one in self.model.consumers.values() if one.connection == number]:
            self.model.leave(consumer, lost=lost)
        assert self.settle() == []
        self.disconnected(number)

    def disconnected(self, connection: int) -> None:
        """Somebody left."""
        self.answers = {request: answer for request, answer in self.answers.items() if answer[0] != connection}

    @rule(random=RANDOM)
    def declare(self, random: Random, name: str = "") -> None:
        name = name or random.choice(self.NAMES)
        if self.model.named(name) is None:
            wanted = self.settings_for(random, name)
            self.rig.broker.queues.declare(self.connection(random), self.request(), name, wanted)
            (answer,) = self.settle()
            assert isinstance(answer, f.Answer)
            assert answer.result["messages"] == 0

    def declared(self, random: Random, name: str) -> str:
        """A queue that is to be used: it is declared before, mostly."""
        if self.model.named(name) is None and random.random() < 0.9:
            self.declare(random, name)
        return name

    # --- consumers

    def asking(self, _random: Random, _name: str) -> tuple[str | None, str, int]:
        """Group, start and place of a consumer that comes to the queue of that name."""
        return None, "tail", 0

    @rule(random=RANDOM)
    def subscribe(self, random: Random, name: str = "") -> None:
        if len(self.model.consumers) >= 5 and random.random() < 0.8:
            return
        connection, request = self.connection(random), self.request()
        name = self.declared(random, name or random.choice(self.NAMES))
        group, start, at = self.asking(random, name)
        exclusive = random.random() < 0.1
        messages, size = random.choice([20, 20, 3, 0]), random.choice([10_000, 10_000, 30])
        expected, begin = self.subscribing(name, group, start, exclusive=exclusive), self.place(name, start, at)
        ask = Subscribing(connection, request, name, group, messages, size, start, at, exclusive)

        def joined(effect: f.Effect) -> None:
            if isinstance(effect, f.Refusal):  # it was still there when the time was looked up
                assert start == "time"
                assert type(effect.error) in {UnknownQueue, ConsumerExclusive}
                return
            assert isinstance(effect, f.Answer)
            consumer = self.model.consumers[effect.result["subscription"]]
            assert consumer.connection == connection
            assert group in {None, consumer.group.name}
            queue = consumer.group.queue
            began = self.witness.created.pop((queue.number, consumer.group.number), None)
            assert began in {None, max(begin, queue.floor)}
            consumer.credit_messages, consumer.credit_bytes, consumer.exclusive = messages, size, exclusive

        self.answers[request] = connection, joined
        refusal = refused(lambda: self.rig.broker.subscribe(ask))
        assert (refusal and type(refusal)) == expected
        if refusal is not None:
            del self.answers[request]
        assert self.settle() == []
        self.asked(ask)
        if random.random() < 0.75:
            self.turn()

    def asked(self, ask: Subscribing) -> None:
        """Somebody asked for a part in a queue."""
        assert ask.start == "time" or ask.request not in self.answers, "that is answered at once"

    def place(self, name: str, start: str, at: int) -> int:
        """The sequence of a queue that a start means now."""
        queue = self.model.named(name)
        if queue is None:
            return 1
        if start == "time":
            later = [one.sequence for one in queue.messages if one.sequence >= queue.floor and one.ready_us >= at]
            return min(later, default=queue.next[0])
        return {"head": queue.floor, "tail": queue.next[0], "sequence": min(max(at, queue.floor), queue.next[0])}[start]

    def subscribing(self, name: str, group: str | None, start: str, *, exclusive: bool) -> type[RequestError] | None:
        """What a consumer hears that asks for this; None: that it takes part."""
        queue = self.model.named(name)
        if queue is None or not queue.settings.mode.has_groups:
            if group is not None:
                return UnknownGroup
            if start != "tail":
                return InvalidRequest
            found = queue.groups[0] if queue is not None else None
        else:
            found = queue.group_named(group)
            if found is None and group is not None and group.startswith("$"):
                return UnknownGroup
        others = found.consumers if found is not None else []
        return ConsumerExclusive if any(one.exclusive for one in others) or (exclusive and others) else None

    def consumer(self, random: Random) -> Consumer | None:
        """Some consumer, rather one that holds messages; one is made when there is none."""
        if not self.model.consumers:
            self.subscribe(random, self.NAMES[0])
        everyone = list(self.model.consumers.values())
        rather = [one for one in everyone if one.open] or everyone
        return random.choice(rather) if rather else None

    @rule(random=RANDOM)
    def credit(self, random: Random) -> None:
        if (consumer := self.consumer(random)) is None:
            return
        messages, size = random.choice([20, 5, 1]), random.choice([500, 20])
        handed, wait_ms = random.randrange(consumer.next_delivery + 1), random.choice([-1, -1, -1, 0, 5])
        self.rig.broker.deliveries.credit(consumer.connection, consumer.number, messages, size, handed, wait_ms)
        consumer.credit_messages += messages
        consumer.credit_bytes += size
        consumer.handed = max(consumer.handed, handed)
        if wait_ms >= 0:
            consumer.pull_until_us, consumer.pulled = self.rig.now_us + wait_ms * MS, False
        assert self.settle() == []
        if random.random() < 0.75:
            self.turn()

    @rule(random=RANDOM)
    def stop_reading(self, random: Random) -> None:
        """A client does not read what it is sent; or reads again, rather."""
        blocked = sorted({one.connection for one in self.model.consumers.values() if one.blocked})
        connection = random.choice(blocked) if blocked and random.random() < 0.7 else self.connection(random)
        self.rig.broker.block(connection, blocked=connection not in blocked)
        for consumer in self.model.consumers.values():
            if consumer.connection == connection:
                consumer.blocked = connection not in blocked
        assert self.settle() == []
        self.turn()

    @rule(random=RANDOM)
    def unsubscribe(self, random: Random) -> None:
        consumer = self.consumer(random)
        if consumer is None or len(self.model.consumers) < 3:
            return
        self.rig.broker.unsubscribe(consumer.connection, self.request(), consumer.number)
        self.model.leave(consumer, lost=False)
        assert len(self.settle()) == 1

    # --- ends of deliveries

    def runs(self, random: Random, consumer: Consumer) -> tuple[tuple[int, int], ...]:
        """Runs near the end of what was delivered."""
        first = min(consumer.open, default=max(1, consumer.next_delivery - 5))
        starts = [first + random.choice([0, 0, 1, 3, 8]) for _ in range(random.choice([1, 1, 1, 3]))]
        return tuple((start, start + random.choice([1, 1, 2, 5])) for start in starts)

    def is_late(self, consumer: Consumer, runs: tuple[tuple[int, int], ...]) -> bool:
        """Whether some of these deliveries are not open any more, or asked for twice."""
        if consumer.group.queue.settings.mode is Mode.FAN_OUT_NO_ACK:
            return False
        asked = [number for start, end in runs for number in range(start, end)]
        return len({number for number in asked if number in consumer.open}) < len(asked)

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

    @rule(random=RANDOM)
    def ack(self, random: Random) -> None:
        if (consumer := self.consumer(random)) is None:
            return
        request, deliveries = self.request() if random.random() < 0.5 else 0, self.runs(random, consumer)
        late = self.is_late(consumer, deliveries)
        self.rig.broker.deliveries.ack(consumer.connection, consumer.number, deliveries, request)
        for copy in consumer.take_back(deliveries):
            consumer.group.settle(copy)
        self.check_answer(self.settle(), request, late=late)

    @rule(random=RANDOM)
    def nack(self, random: Random) -> None:
        if (consumer := self.consumer(random)) is None:
            return
        request, deliveries = self.request() if random.random() < 0.5 else 0, self.runs(random, consumer)
        delay_ms, reject = random.choice([None, None, None, 0, 7, 20]), random.random() < 0.2
        late = self.is_late(consumer, deliveries)
        self.rig.broker.deliveries.nack(
            consumer.connection, consumer.number, deliveries, request, delay_ms=delay_ms, reason="no", reject=reject
        )
        delay_us = None if delay_ms is None else delay_ms * MS
        self.model.fail(consumer.group, consumer.take_back(deliveries), delay_us, "no", reject=reject)
        self.check_answer(self.settle(), request, late=late)

    @rule(random=RANDOM)
    def extend(self, random: Random) -> None:
        if (consumer := self.consumer(random)) is None:
            return
        request, deliveries = self.request() if random.random() < 0.5 else 0, self.runs(random, consumer)
        lease_ms = random.choice([0, 5, 80])
        until_us = self.rig.now_us + (lease_ms * MS or consumer.lease_us)
        self.rig.broker.deliveries.extend(consumer.connection, consumer.number, deliveries, lease_ms, request)
        asked = {number for start, end in deliveries for number in range(start, end)}
        for number in asked & consumer.open.keys():
            consumer.open[number] = consumer.open[number][0], until_us
        self.check_answer(self.settle(), request, late=self.is_late(consumer, deliveries))

    # --- time, turns, loads

    @rule(random=RANDOM)
    def tick(self, random: Random) -> None:
        self.rig.pass_time(random.choice([0, 1, 4_999, 10_000, 30_000, 200_000]))
        self.model.now_us = self.rig.now_us
        self.witness.lost.update(self.model.tick())
        offset = -1
        while offset < len(self.rig.log):  # it may be more than is done at once
            offset = len(self.rig.log)
            self.rig.broker.tick()
            assert self.settle() == []
        assert all(until_us > self.rig.now_us for _, until_us in self.model.deleted.values())
        for group in self.model.groups:
            assert all(copy.due_us > self.rig.now_us for copy in group.of(State.WAITING))
            due_us = self.model.idle_until_us(group)
            assert due_us is None or due_us > self.rig.now_us
        self.turn()

    @rule()
    def turn(self) -> None:
        """Turns of the loop until there is nothing to do."""
        for _ in range(TURNS_MAX):
            self.rig.broker.end_turn()
            assert self.settle() == []
            if not self.rig.broker.has_more:
                break
        else:
            raise AssertionError("turns do not come to an end")
        loading = self.loading
        for group in self.model.groups:
            if group.queue.number not in loading:
                self.check_done(group)

    @property
    def loading(self) -> set[int]:
        """The queues of which messages are being read."""
        return {load.queue for load in self.rig.loads if isinstance(load, f.Load)}

    def check_done(self, group: Group) -> None:
        """A group has nothing left to do by itself."""
        following = group.next(self.rig.now_us)
        for consumer in group.consumers:
            if following is not None and consumer.has_credit and consumer.is_served:
                assert self.waits_for_its_rate(group), "a ready message was not handed out"
            if consumer.pull_until_us is not None:
                assert not consumer.pulled
                assert consumer.pull_until_us > self.rig.now_us
        heads = group.heads()
        assert not any(group.is_expired(copy, self.rig.now_us) for copy in heads), "what is too old is still there"
        assert group.first_to_go is None or not any(group.queue.excess(group)), "what is too much is still there"

    def waits_for_its_rate(self, group: Group) -> bool:
        """Whether a group will be handed out something soon, as soon as its queue's rate allows."""
        rate, due_us = group.queue.settings.deliver_rate, self.rig.broker.next_due_us()
        return rate > 0 and due_us is not None and due_us <= self.rig.now_us + 1_000_000 // rate

    @rule(random=RANDOM)
    def load(self, random: Random) -> None:
        for _ in range(random.choice([1, 1, 2, 5])):
            if self.rig.loads:
                self.rig.load_one(random.randrange(len(self.rig.loads)))
                assert self.settle() == []
                self.turn()

    # --- queues

    @rule(random=RANDOM)
    def purge(self, random: Random) -> None:
        if not self.model.queues or random.random() < 0.7:
            return
        everything = list(self.model.queues.values())
        queue = random.choice([queue for queue in everything if queue.unacked] or everything)
        self.rig.broker.queues.purge(self.connection(random), 1, queue.name)
        (answer,) = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": self.model.purge(queue)}

    @rule(random=RANDOM)
    def delete(self, random: Random) -> None:
        if not self.model.queues or random.random() < 0.8:
            return
        queue = random.choice(list(self.model.queues.values()))
        ended = [consumer for group in queue.groups.values() for consumer in list(group.consumers)]
        length = queue.length
        self.rig.broker.delete(self.connection(random), 1, queue.name, 0)
        for consumer in ended:
            self.model.leave(consumer, lost=False)
        *endings, answer = self.settle()
        assert isinstance(answer, f.Answer)
        assert answer.result == {"count": length, "until_us": 0}
        self.check_endings(endings, ended)
        self.deleted(queue)

    def check_endings(self, endings: list[f.Effect], ended: list[Consumer]) -> None:
        """Those whose queue or group went were told so, once that is durable."""
        assert [effect.subscription for effect in endings if isinstance(effect, f.Ended)] == [
            consumer.number for consumer in ended
        ]
        assert all(effect.after == len(self.rig.log) for effect in endings)

    def deleted(self, queue: Queue) -> None:
        """A queue went."""

    # --- restarts and checkpoints

    @rule(random=RANDOM)
    def capture_step(self, random: Random) -> None:
        if self.capture is None:
            self.capture = Capture(self.rig.state, {key: as_of for key, (as_of, _) in self.saved.items()})
            self.steps = self.capture.steps()
        for _ in range(random.randint(1, 4)):
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
        restored = self.restored()
        assert restored.digests() == self.rig.state.digests()
        self.agrees(restored)

    def restored(self) -> Projector:
        """The state from the last checkpoint and the events since."""
        saved = [(key, as_of, blob) for key, (as_of, blob) in self.saved.items()]
        return self.rig.replayed(Projector.restore(saved, self.saved_start))

    @rule(random=RANDOM)
    def restart(self, random: Random) -> None:
        if random.random() < 0.8:
            return
        clean = random.random() < 0.5
        if clean:
            self.rig.broker.stop("enough")
            self.rig.take()
        use_checkpoint = random.random() < 0.5 and self.saved_start >= 0
        state = self.restored() if use_checkpoint else self.rig.replayed()
        assert state.digests() == self.rig.state.digests()
        self.rig.begin(state)
        self.connections.clear()
        self.answers.clear()
        self.capture = None
        self.model.now_us = self.rig.now_us
        self.model.restart(clean=clean)
        self.restarted()
        assert self.settle() == []

    def restarted(self) -> None:
        """Nobody is connected any more."""

    # --- what always holds

    @invariant()
    def states_agree(self) -> None:
        self.agrees(self.rig.state)

    def agrees(self, state: Projector) -> None:
        """A state is as the model has it."""
        assert state.topology.queues == {queue.name: number for number, queue in self.model.queues.items()}
        deleted = {number: (queue.name, until_us) for number, (queue, until_us) in self.model.deleted.items()}
        assert list(state.topology.deleted.items()) == list(deleted.items())
        everything = [*self.model.queues.values(), *(queue for queue, _ in self.model.deleted.values())]
        assert set(state.queues) == {queue.number for queue in everything}
        for number, queue in ((queue.number, queue) for queue in everything):
            compared.queue(state.queues[number], queue)
            compared.dead_letters(state.dead.get(number), queue)
        assert set(state.topology.subscriptions) == set(self.model.consumers)

    @invariant()
    def wakes_in_time(self) -> None:
        if self.rig.broker.has_more:
            return
        due_us, loading = self.rig.broker.next_due_us(), self.loading
        wanted = [self.model.next_due_us()]
        for group in self.model.groups:
            if group.queue.number not in loading:
                wanted += [group.expires_us(head) or None for head in group.heads()]
        times = [time_us for time_us in wanted if time_us is not None]
        assert not times or (due_us is not None and due_us <= max(self.rig.now_us, min(times)))

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
        for _ in range(1_000):
            if not self.rig.loads:
                break
            self.rig.load_one()
            self.settle()
            self.turn()
        else:
            raise AssertionError("what was read once is read again for ever")


def refused(command: Callable[[], None]) -> RequestError | None:
    """What a command is refused with."""
    try:
        command()
    except RequestError as error:
        return error
    return None


def long_history(machine: Machine, seed: int, steps: int, weights: dict[str, int]) -> None:
    """Many steps of one machine, the frequent ones often: deeper than hypothesis goes by itself."""
    random = Random(seed)
    for name in random.choices(list(weights), list(weights.values()), k=steps):
        step = getattr(machine, name)
        step() if name in {"connect", "turn"} else step(random)
        machine.states_agree()
        machine.wakes_in_time()
        machine.cache_is_bounded()
    machine.teardown()

"""Delayed messages become ready when they are due, each once, whatever happens to them and to the broker meanwhile."""

from random import Random

import pytest

from tests.server.rig import START_US, Rig, batch_of
from vibemq import events as e
from vibemq.declaration import Overflow, QueueSettings
from vibemq.errors import InvalidRequest, QueueFull, UnknownMessage
from vibemq.server import delayed as module
from vibemq.server.effects import Answer, Confirmed, DelayedOf, DueAfter, DueKey, Refusal, Waiting
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish

SECOND_US = 1_000_000
YEAR_US = 365 * 24 * 3600 * SECOND_US


class Post(Rig):
    """One client that publishes messages to be delayed, and looks after them."""

    def open(self) -> None:
        self.early: dict[int, tuple[list[Waiting], DueKey]] = {}
        self.connection = self.broker.connect("a", "", "binary", 0)

    def look_early(self, random: Random) -> None:
        """What was asked for is read, some of it, and is on its way for a while."""
        for load in self.loads:
            if isinstance(load, DueAfter) and load.question not in self.early and random.random() < 0.7:
                self.early[load.question] = super().due_after(load)

    def due_after(self, reading: DueAfter) -> tuple[list[Waiting], DueKey]:
        return self.early.pop(reading.question, None) or super().due_after(reading)

    def publish(self, count: int = 1, *, queue: str = "q", delay_ms: int = 0, due_us: int = 0) -> int:
        """The record of a batch."""
        batch = batch_of([b"x" * (number + 1) for number in range(count)])
        self.broker.publishing.publish(Publish(self.connection, 1, queue, 0, batch, delay_ms=delay_ms, due_us=due_us))
        self.take()
        return len(self.log) - 1

    def work(self, random: Random | None = None) -> list[tuple[int, int]]:
        """Go on until there is nothing left to do now; the (record, index) of messages that became ready."""
        ready = list[tuple[int, int]]()
        while True:
            self.broker.tick()
            for event in self.take_events(e.Matured):
                ready += [(at, index + one) for at, index, count in event.refs for one in range(count)]
            if random is not None:
                self.look_early(random)
                if self.loads and random.random() < 0.3:
                    return ready
            if self.loads:
                self.load_one()
            elif not self.broker.has_more:
                return ready

    def cancel(self, *ids: str, queue: str = "q") -> Answer | Refusal:
        self.broker.delayed.cancel(self.connection, 2, self.broker.queues.require(queue), ids)
        return self.answer()

    def reschedule(self, *ids: str, queue: str = "q", delay_ms: int = 0, due_us: int = 0) -> Answer | Refusal:
        found = self.broker.queues.require(queue)
        self.broker.delayed.reschedule(self.connection, 2, found, ids, delay_ms, due_us)
        return self.answer()

    def answer(self) -> Answer | Refusal:
        while True:
            for effect in self.take()[1]:
                if isinstance(effect, Answer | Refusal):
                    return effect
            self.load_one(next(at for at, load in enumerate(self.loads) if isinstance(load, DelayedOf)))

    def restart(self, later_us: int = 0) -> None:
        self.take()
        self.now_us = max(self.now_us, self.now_us + later_us)
        self.begin(self.replayed())
        self.open()


@pytest.fixture
def post() -> Post:
    rig = Post()
    rig.open()
    return rig


def delayed(post: Post, queue: str = "q") -> int:
    return post.broker.queues.require(queue).delayed.count


def test_a_message_is_ready_when_it_is_due_and_not_before(post: Post) -> None:
    record = post.publish(2, delay_ms=1_000)
    post.pass_time(SECOND_US - 1)
    assert post.work() == []
    assert delayed(post) == 2
    assert post.broker.next_due_us() == START_US + SECOND_US
    post.pass_time(1)
    assert post.work() == [(record, 0), (record, 1)]
    assert delayed(post) == 0
    assert post.replayed().digests() == post.state.digests()


def test_the_receipt_says_until_when_a_message_waits(post: Post) -> None:
    batch = batch_of([b"x"])
    for delay_ms, due_us, waits_us in (
        (5, 0, START_US + 5_000),
        (0, START_US + 7, START_US + 7),
        (0, START_US, 0),
        (0, 1, 0),
        ((1 << 63) - 1, 0, (1 << 63) - 1),
    ):
        post.broker.publishing.publish(Publish(post.connection, 1, "q", 0, batch, delay_ms=delay_ms, due_us=due_us))
        (confirmed,) = (one for one in post.effects() if isinstance(one, Confirmed))
        assert (confirmed.due_us, confirmed.sequence > 0) == (waits_us, not waits_us)


def test_messages_are_ready_in_the_order_of_their_due_times(post: Post) -> None:
    late, soon, middle = (post.publish(delay_ms=ms) for ms in (3_000, 1_000, 2_000))
    post.pass_time(5 * SECOND_US)
    assert post.work() == [(soon, 0), (middle, 0), (late, 0)]


def test_messages_of_a_batch_are_taken_back_and_put_off_one_by_one(post: Post) -> None:
    record = post.publish(5, delay_ms=1_000)
    assert post.cancel(f"{record}-1", f"{record}-2").result == {"count": 2}  # type: ignore[union-attr]
    put_off = post.reschedule(f"{record}-3", delay_ms=9_000)
    assert isinstance(put_off, Answer)
    assert put_off.result == {"count": 1, "due_us": START_US + 9 * SECOND_US}
    assert [entry for _, entry in post.delayed()] == [
        (START_US + SECOND_US, record, 0, 1, 1, 0),
        (START_US + SECOND_US, record, 4, 1, 5, 0),
        (START_US + 9 * SECOND_US, record, 3, 1, 4, 0),
    ]
    post.pass_time(SECOND_US)
    assert post.work() == [(record, 0), (record, 4)]
    assert isinstance(post.reschedule(f"{record}-3"), Answer)
    post.pass_time(module.GRAIN_US)
    assert post.work() == [(record, 3)]
    assert post.replayed().digests() == post.state.digests()


def test_all_of_the_named_messages_are_taken_back_or_none(post: Post) -> None:
    record = post.publish(2, delay_ms=1_000)
    refusal = post.cancel(f"{record}-0", f"{record}-2")
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, UnknownMessage)
    assert f"{record}-2" in refusal.error.text
    assert delayed(post) == 2
    with pytest.raises(InvalidRequest, match="not '7'"):
        post.cancel("7")
    with pytest.raises(InvalidRequest, match="not both"):
        post.reschedule(f"{record}-0", delay_ms=1, due_us=1)


def test_what_changes_while_it_is_looked_up_is_looked_up_again(post: Post) -> None:
    record = post.publish(1, delay_ms=1_000)
    queue = post.broker.queues.require("q")
    for _ in range(2):
        post.broker.delayed.cancel(post.connection, 2, queue, [f"{record}-0"])
    post.take()
    first, second = post.loads[0], post.loads[1]
    assert isinstance(first, DelayedOf)
    assert isinstance(second, DelayedOf)
    answers = [post.delayed_of(first), post.delayed_of(second)]
    post.loads.clear()
    post.broker.found(first, answers[0])
    post.broker.found(second, answers[1])
    assert isinstance(post.answer(), Answer)
    assert isinstance(post.answer(), Refusal)
    assert delayed(post) == 0


def test_a_purge_takes_what_is_delayed_and_a_deleted_queue_keeps_it(post: Post) -> None:
    post.publish(3, delay_ms=1_000)
    post.broker.queues.purge(post.connection, 3, "q")
    assert isinstance(answer := post.answer(), Answer)
    assert answer.result == {"count": 3}
    kept = post.publish(1, delay_ms=1_000)
    post.broker.delete(post.connection, 3, "q")
    post.pass_time(2 * SECOND_US)
    assert post.work() == []
    post.broker.undelete(post.connection, 3, "q")
    post.pass_time(module.SLICE_US)
    assert post.work() == [(kept, 0)]
    assert post.replayed().digests() == post.state.digests()


def test_what_is_delayed_has_its_room_from_the_start() -> None:
    for overflow in (Overflow.REJECT, Overflow.DROP_OLDEST):
        post = Post(defaults=QueueSettings(max_length=2, overflow=overflow))
        post.open()
        post.publish(2, delay_ms=1_000)
        with pytest.raises(QueueFull):
            post.publish(1, delay_ms=1_000)
        if overflow is Overflow.REJECT:
            with pytest.raises(QueueFull):
                post.publish(1)


def test_nothing_becomes_ready_while_the_disk_is_full(post: Post) -> None:
    """The reserve is for what ends: a million messages that become ready would use it up."""
    first = post.publish(delay_ms=1_000)
    room = False
    post.broker.delayed.has_room = lambda _: room
    post.pass_time(2 * SECOND_US)
    assert post.work() == []
    due_us = post.broker.next_due_us()
    assert due_us is not None
    assert due_us > post.now_us  # it is not asked in every turn
    room = True
    post.pass_time(due_us - post.now_us)
    assert post.work() == [(first, 0)]


def test_what_was_due_while_the_broker_was_away_comes_at_a_limited_rate_the_oldest_first() -> None:
    post = Post(Limits(overdue_rate=1_000))
    post.open()
    records = [post.publish(1, delay_ms=1_000 + number) for number in range(3_000)]
    post.restart(YEAR_US)
    fresh = post.publish(1, delay_ms=10)
    ready = list[tuple[int, int]]()
    for _ in range(100):
        before = len(ready)
        ready += post.work()
        assert len(ready) - before <= 1_000, "more than a burst"
        post.pass_time(20_000)
    assert (fresh, 0) in ready, "what is due now does not wait behind what was"
    ready.remove((fresh, 0))
    assert ready == [(record, 0) for record in records[: len(ready)]]
    assert 1_500 < len(ready) <= 3_000
    for _ in range(200):
        ready += post.work()
        post.pass_time(20_000)
    assert ready == [(record, 0) for record in records]


class Table:
    """What is due when, by queue: how it should be. Queues that are deleted for now are `hidden`."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.due: dict[str, dict[tuple[int, int], int]] = {"q": {}, "r": {}}
        self.hidden: dict[str, dict[tuple[int, int], int]] = {}

    def settle(self, random: Random) -> None:
        """All that is due by now comes, and nothing before its time."""
        post, due_us = self.post, self.post.now_us
        for _ in range(100):
            post.pass_time(module.SLICE_US)
            for place in post.work(random):
                (queue,) = (queue for queue in self.due.values() if place in queue)
                assert queue.pop(place) <= post.now_us
            if not any(one <= due_us for queue in self.due.values() for one in queue.values()):
                break
        else:
            raise AssertionError("what is due does not come")
        for name, waiting in self.due.items():
            if name not in self.hidden:
                assert delayed(post, name) == len(waiting)

    def step(self, random: Random) -> None:
        """Something happens."""
        post, name, kind = self.post, random.choice(["q", "r"]), random.random()
        if name in self.hidden:
            if kind < 0.3:
                post.broker.undelete(post.connection, 3, name)
                self.due[name] = self.hidden.pop(name)
            return
        waiting = self.due[name]
        some = random.sample(sorted(waiting), min(len(waiting), random.randrange(1, 4)))
        ids = [f"{record}-{index}" for record, index in some]
        until_us = post.now_us + random.randrange(1, 40) * SECOND_US
        if kind < 0.4:
            count = random.randrange(1, 4)
            record = post.publish(count, queue=name, due_us=until_us)
            waiting.update({(record, index): until_us for index in range(count)})
        elif kind < 0.5 and some:
            assert isinstance(post.cancel(*ids, queue=name), Answer)
            self.due[name] = {place: due_us for place, due_us in waiting.items() if place not in some}
        elif kind < 0.65 and some:
            assert isinstance(post.reschedule(*ids, queue=name, due_us=until_us), Answer)
            waiting.update(dict.fromkeys(some, until_us))
        elif kind < 0.68:
            post.broker.queues.purge(post.connection, 3, name)
            waiting.clear()
        elif kind < 0.72:
            post.broker.delete(post.connection, 3, name)
            self.hidden[name], self.due[name] = waiting, {}
        elif kind < 0.75:
            # However the clock of the machine was set, broker time does not go back.
            post.restart(max(0, random.choice([0, SECOND_US, YEAR_US, -YEAR_US])))
            self.hidden = {name: one for name, one in self.hidden.items() if self._is_kept(name)}
            self.due.update({name: {} for name in self.due if name not in post.state.topology.queues})
        else:
            post.pass_time(random.randrange(1, 8) * SECOND_US)

    def _is_kept(self, name: str) -> bool:
        """Whether a deleted queue can still be brought back; if not, there is a new one of its name."""
        self.post.broker.queues.tick()
        if any(name == deleted for deleted, _ in self.post.state.topology.deleted.values()):
            return True
        self.post.publish(queue=name)
        return False


@pytest.mark.parametrize("seed", range(40))
def test_every_message_comes_once_when_it_is_due_whatever_happens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a table of what is due when. The windows are tiny, and what is read comes late and in any order."""
    for name, value in (("WINDOW", 3), ("LOW", 2), ("HIGH", 5), ("TURN", 4)):
        monkeypatch.setattr(module, name, value)
    random, post = Random(seed), Post(Limits(overdue_rate=1 << 30))
    post.open()
    table = Table(post)
    for name in table.due:
        post.publish(queue=name)
    for _ in range(200):
        table.step(random)
        post.take()
        post.look_early(random)
        if post.loads and random.random() < 0.5:
            post.load_one(random.randrange(len(post.loads)))
        if random.random() < 0.4:
            table.settle(random)
    post.pass_time(60 * SECOND_US)
    table.settle(random)
    assert all(not waiting for waiting in table.due.values())
    assert post.replayed().digests() == post.state.digests()


def test_a_window_that_had_to_let_go_of_the_later_ones_does_not_take_what_comes_after_them() -> None:
    window = module.Window(0, module.EVER, is_empty=False)
    window.reading(1, frozenset())
    window.read([(1, (10, 1, 0, 1, 1, 0))], (1_000_000, 1, 0, 1))
    reading = window.reading(2, frozenset())
    for number in range(module.HIGH):
        window.add(1, (100 + number, 2 + number, 0, 1, 1, 0))
    assert len(window) == module.WINDOW
    assert window.question == 0, "what is on its way is of behind a place that it does not reach any more"
    assert reading.after > window.horizon

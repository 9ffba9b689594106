"""Queues that end by themselves, and those that belong to whoever waits for a reply."""

from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import ConfigError, InvalidRequest, UnknownQueue
from vibemq.server.broker import Subscribing
from vibemq.server.expiring import COMING_BACK_MS
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import Declaration, QueueDefaults
from vibemq.server.queues import check_declarations

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US
REPLIES: Final = "reply.0123456789abcdef"


@pytest.fixture
def rig() -> Rig:
    return Rig()


def connect(rig: Rig) -> int:
    number = rig.broker.connect("shop", "10.0.0.1:1", "binary", 7)
    rig.take()
    return number


def declare(rig: Rig, name: str, **settings: object) -> None:
    rig.broker.queues.declare(connect(rig), 1, name, settings)
    rig.take()


def subscribe(rig: Rig, connection: int, name: str, group: str | None = None) -> int:
    rig.broker.subscribe(Subscribing(connection, 1, name, group, 10, 1 << 20))
    (subscribed,) = rig.take_events(e.Subscribed)
    return subscribed.subscription


def publish(rig: Rig, connection: int, name: str) -> None:
    rig.broker.publishing.publish(Publish(connection, 1, name, 0, batch_of([b"x"])))
    rig.take()


def deleted(rig: Rig, passed_us: int) -> list[e.QueueDeleted]:
    """What was deleted at a tick after so much time."""
    rig.pass_time(passed_us)
    rig.broker.tick()
    return rig.take_events(e.QueueDeleted)


def test_a_queue_that_nobody_consumes_ends(rig: Rig) -> None:
    declare(rig, "short", expires_ms=3_600_000, delete_grace_ms=0)
    declare(rig, "long")
    publish(rig, connect(rig), "short")
    due_us = rig.now_us + HOUR_US
    assert rig.broker.next_due_us() == due_us
    assert deleted(rig, HOUR_US - 1) == []
    assert deleted(rig, 1) == [e.QueueDeleted(1, 1, 1, 0)]
    assert rig.broker.next_due_us() is None
    assert list(rig.state.topology.queues) == ["long"]


def test_for_its_grace_it_can_be_brought_back_and_then_has_its_time_anew(rig: Rig) -> None:
    declare(rig, "short", expires_ms=3_600_000, delete_grace_ms=60_000)
    assert deleted(rig, HOUR_US) == [e.QueueDeleted(1, 0, 0, 0, rig.now_us + 60 * SECOND_US)]
    rig.pass_time(59 * SECOND_US)
    rig.broker.queues.undelete(connect(rig), 1, "short")
    assert deleted(rig, HOUR_US - 1) == []
    assert [event.queue for event in deleted(rig, 1)] == [1]


def test_its_time_begins_when_the_last_consumer_has_left(rig: Rig) -> None:
    declare(rig, "short", expires_ms=3_600_000)
    worker = connect(rig)
    first, second = subscribe(rig, worker, "short"), subscribe(rig, worker, "short")
    assert deleted(rig, 3 * HOUR_US) == []
    rig.broker.unsubscribe(worker, 1, first)
    assert deleted(rig, HOUR_US // 2) == []
    rig.broker.unsubscribe(worker, 1, second)
    assert deleted(rig, HOUR_US - 1) == []
    assert [event.queue for event in deleted(rig, 1)] == [1]


def test_a_group_that_went_is_remembered_by_its_queue(rig: Rig) -> None:
    """An ephemeral group goes a minute after its last consumer, and its queue only when it has been idle for longer."""
    declare(rig, "news", mode="fan-out", expires_ms=3_600_000)
    reader = connect(rig)
    number = subscribe(rig, reader, "news")
    rig.pass_time(2 * HOUR_US)
    rig.broker.unsubscribe(reader, 1, number)
    rig.take()
    assert deleted(rig, 61 * SECOND_US) == []
    assert rig.state.queues[1].groups == {}
    assert deleted(rig, HOUR_US - 61 * SECOND_US - 1) == []
    assert [event.queue for event in deleted(rig, 1)] == [1]


def test_after_a_start_consumers_have_time_to_come_back(rig: Rig) -> None:
    declare(rig, "short", expires_ms=3_600_000)
    declare(rig, "shorter", expires_ms=10)
    subscribe(rig, connect(rig), "short")
    rig.broker.stop("asked to")
    rig.take()
    rig.pass_time(48 * HOUR_US)
    rig.begin(rig.replayed())
    assert deleted(rig, 0) == []
    assert [event.queue for event in deleted(rig, 10_000)] == [2]
    assert deleted(rig, COMING_BACK_MS * 1000 - 10_001) == []
    assert [event.queue for event in deleted(rig, 1)] == [1]


def test_a_queue_that_is_told_to_end_has_all_of_its_time(rig: Rig) -> None:
    """Nobody who gives an idle queue an hour expects it to be gone at once."""
    declare(rig, "old")
    rig.pass_time(48 * HOUR_US)
    connection = connect(rig)
    rig.broker.queues.change(connection, 1, "old", {"expires_ms": 3_600_000})
    assert deleted(rig, HOUR_US // 2) == []
    rig.broker.queues.change(connection, 1, "old", {"description": "another"})
    assert deleted(rig, HOUR_US // 2 - 1) == []
    assert [event.queue for event in deleted(rig, 1)] == [1]


class Idle:
    """A queue whose consumers come and go, and one variable that says since when it has been idle."""

    def __init__(self, random: Random) -> None:
        self.random, self.rig = random, Rig()
        self.expires_ms = random.choice([1_000, 5_000, 90_000, 3_600_000])
        mode = random.choice(["round-robin", "fan-out"])
        declare(self.rig, "q", expires_ms=self.expires_ms, delete_grace_ms=0, mode=mode)
        self.idle_us, self.started_us = self.rig.now_us, 0
        self.consumers: list[int] = []
        self.worker = connect(self.rig)

    @property
    def due_us(self) -> int:
        """When it ends, if nobody comes."""
        coming_back_us = self.started_us + min(self.expires_ms, COMING_BACK_MS) * 1000
        return max(self.idle_us + self.expires_ms * 1000, coming_back_us)

    def come(self) -> None:
        self.consumers.append(subscribe(self.rig, self.worker, "q"))

    def leave(self) -> None:
        if self.consumers:
            self.rig.broker.unsubscribe(self.worker, 1, self.consumers.pop())
            self.idle_us = self.rig.now_us

    def all_left(self) -> None:
        if self.consumers:
            self.idle_us = self.rig.now_us
            self.consumers.clear()

    def lost(self) -> None:
        self.rig.broker.disconnect(self.worker, "broke", lost=True)
        self.all_left()
        self.worker = connect(self.rig)

    def restart(self) -> None:
        self.all_left()
        if self.random.random() < 0.5:  # else it crashed
            self.rig.broker.stop("asked to")
            self.rig.take()
            self.rig.pass_time(self.random.choice([0, HOUR_US]))
        self.rig.take()
        self.started_us = self.rig.now_us
        self.rig.begin(self.rig.replayed())
        self.worker = connect(self.rig)

    def wait(self) -> None:
        """Let time pass, and have the broker look whenever it wanted to."""
        rig, until_us = self.rig, self.due_us + self.random.choice([-3_000_000, -500_000, -1, 0, 1])
        for _ in range(50):
            next_us = rig.broker.next_due_us()
            if next_us is None or next_us > until_us:
                break
            rig.pass_time(max(0, next_us - rig.now_us))
            rig.broker.tick()
        rig.pass_time(max(0, until_us - rig.now_us))


@given(st.integers(0, 1 << 32))
def test_a_queue_ends_when_it_was_idle_for_so_long_and_never_before(seed: int) -> None:
    """Over restarts, too."""
    random = Random(seed)
    idle = Idle(random)
    for _ in range(30):
        random.choice([idle.come, idle.leave, idle.lost, idle.restart, idle.wait, idle.wait])()
        idle.rig.broker.tick()
        idle.rig.take()
        ended = idle.rig.state.queue_named("q") is None
        assert ended == (not idle.consumers and idle.due_us <= idle.rig.now_us)
        if ended:
            break


# -- queues for replies


def test_a_reply_comes_to_nobody_who_is_gone(rig: Rig) -> None:
    connection = connect(rig)
    for ask in (
        lambda: publish(rig, connection, REPLIES),
        lambda: subscribe(rig, connection, REPLIES),
    ):
        with pytest.raises(UnknownQueue, match="the requester is gone"):
            ask()
    declare(rig, REPLIES, expires_ms=60_000, delete_grace_ms=0)
    publish(rig, connection, REPLIES)
    assert [event.queue for event in deleted(rig, 60 * SECOND_US)] == [1]
    with pytest.raises(UnknownQueue, match="the requester is gone"):
        publish(rig, connection, REPLIES)


def test_a_reply_that_nobody_takes_in_time_is_no_dead_letter(rig: Rig) -> None:
    declare(rig, REPLIES, ttl_ms=1_000)
    publish(rig, connect(rig), REPLIES)
    rig.pass_time(2 * SECOND_US)
    rig.broker.tick()
    assert [queue.name for queue in rig.state.queues.values() if queue.length] == []
    assert list(rig.state.topology.queues) == [REPLIES]


def test_replies_are_not_bound_to_topics(rig: Rig) -> None:
    declare(rig, REPLIES)
    with pytest.raises(InvalidRequest, match="is for replies"):
        rig.broker.queues.bind(connect(rig), 1, REPLIES, "a.*")
    wanted: dict[str, Any] = {REPLIES: Declaration({}, ("a.*",))}
    with pytest.raises(ConfigError, match="is for replies"):
        check_declarations(rig.state, wanted, QueueDefaults(), Limits())

"""So many a second: no more than that goes, nothing waits for longer, and nobody is looked at for nothing."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.rig import START_US, Rig, batch_of
from vibemq import events as e
from vibemq.declaration import Mode, QueueSettings
from vibemq.errors import QueueBlocked
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.rates import BURST_US, Bucket

SECOND_US = 1_000_000
PLENTY = (1_000_000, 1 << 30)


@given(st.integers(1, 5_000), st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 400)), max_size=40))
def test_a_bucket_counts_exactly(rate: int, steps: list[tuple[int, int]]) -> None:
    """Against fractions: it fills with the rate, holds what a burst may be, and is taken from whole."""
    bucket, now_us = Bucket(rate, START_US), START_US
    most = max(Fraction(1), Fraction(rate * BURST_US, SECOND_US))
    level = most
    for passed_us, count in steps:
        now_us += passed_us
        level = min(most, level + Fraction(passed_us * rate, SECOND_US))
        assert bucket.available(now_us) == max(0, int(level // 1))
        bucket.take(count, now_us)
        level -= count
        due_us = bucket.due_us(now_us)
        if level >= 1:
            assert due_us == now_us
        else:
            assert level + Fraction((due_us - now_us) * rate, SECOND_US) >= 1
            assert level + Fraction((due_us - now_us - 1) * rate, SECOND_US) < 1, "not a microsecond too late"


@given(st.integers(1, 1_000), st.integers(1, 1_000))
def test_another_rate_holds_from_now_on(rate: int, later: int) -> None:
    bucket = Bucket(rate, START_US)
    bucket.take(bucket.available(START_US), START_US)
    bucket.rate = later
    now_us = bucket.due_us(START_US)
    assert bucket.available(now_us) >= 1
    assert bucket.available(now_us + 10 * SECOND_US) == max(1, later // 10), "and so does what may come at once"


def test_a_clock_that_stands_gives_nothing() -> None:
    bucket = Bucket(10, START_US)
    bucket.take(1, START_US)
    assert [bucket.available(START_US) for _ in range(3)] == [0, 0, 0]


def serve(rig: Rig, until_us: int) -> list[tuple[int, e.Event | f.Effect]]:
    """Let the clock run to a time, waking only when the broker says so; what happened when, in us from now on."""
    found, begun_us = list[tuple[int, e.Event | f.Effect]](), rig.now_us
    wakes = 0
    while True:
        turns = 0
        rig.broker.end_turn()
        while rig.broker.has_more:
            rig.broker.end_turn()
            turns += 1
            assert turns < 50, "it looks again and again"
        events, effects = rig.take()
        found += [(rig.now_us - begun_us, one) for one in [*events, *effects]]
        due_us = rig.broker.next_due_us()
        if due_us is None or due_us - begun_us > until_us:
            return found
        wakes += 1
        assert wakes < 1_000, "it wakes up for nothing"
        rig.pass_time(max(0, due_us - rig.now_us))
        rig.broker.tick()


def test_a_queue_hands_out_no_more_than_its_rate() -> None:
    rig = Rig(defaults=QueueSettings(deliver_rate=100, lease_ms=3_600_000))
    connection = rig.broker.connect("c", "here", "binary", 0)
    for _ in range(2):
        rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * 60)))
    rig.take()
    delivered = [(at, one) for at, one in serve(rig, SECOND_US) if isinstance(one, e.Delivered)]
    counts = [(at, sum(end - start for _, start, end in one.spans)) for at, one in delivered]
    assert sum(count for at, count in counts if at == 0) == 10, "a tenth of a second at once"
    assert [at for at, count in counts if at] == [10_000 * n for n in range(1, 51)], "then one at a time"
    assert len({one.subscription for _, one in delivered}) == 2, "in turn"


def test_a_rate_is_not_what_a_consumer_without_credit_waits_for() -> None:
    rig = Rig(defaults=QueueSettings(deliver_rate=100))
    connection = rig.broker.connect("c", "here", "binary", 0)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, 0, 0))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * 60)))
    serve(rig, SECOND_US)
    assert rig.broker.next_due_us() is None


@pytest.mark.parametrize("settings", [{"order_by_key": True}, {}])
def test_a_rate_holds_for_each_key_and_group(settings: dict[str, bool]) -> None:
    rig = Rig(defaults=QueueSettings(mode=Mode.FAN_OUT, deliver_rate=20, **settings))  # type: ignore[arg-type]
    connection = rig.broker.connect("c", "here", "binary", 0)
    for group in "ab":
        rig.broker.subscribe(Subscribing(connection, 1, "q", group, *PLENTY))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * 4)))
    rig.take()
    delivered = [(at, one) for at, one in serve(rig, SECOND_US) if isinstance(one, e.Delivered)]
    for number in (1, 2):
        times = [(at, one.spans) for at, one in delivered if one.group == number]
        assert times == [(0, ((0, 1, 3),)), (50_000, ((0, 3, 4),)), (100_000, ((0, 4, 5),))]


def test_a_changed_rate_is_obeyed_at_once() -> None:
    rig = Rig(defaults=QueueSettings(deliver_rate=1, lease_ms=3_600_000))
    connection = rig.broker.connect("c", "here", "binary", 0)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * 30)))
    rig.broker.end_turn()
    assert [event.spans for event in rig.take_events(e.Delivered)] == [((0, 1, 2),)]
    rig.broker.queues.change(connection, 2, "q", {"deliver_rate": 0})
    rig.broker.end_turn()
    assert [event.spans for event in rig.take_events(e.Delivered)] == [((0, 2, 31),)]


def publish(rig: Rig, connection: int, name: str, count: int = 1, sequence: int = 0) -> bool:
    """Publish a batch; whether it was stored."""
    try:
        rig.broker.publishing.publish(Publish(connection, 1, name, sequence, batch_of([b"x"] * count)))
    except QueueBlocked:
        return False
    return True


def test_a_queue_takes_no_more_than_its_rate_and_says_when_it_takes_more() -> None:
    rig = Rig(defaults=QueueSettings(publish_rate=10))
    one, other = (rig.broker.connect("c", "here", "binary", 0) for _ in range(2))
    assert publish(rig, one, "q", 5), "what is there is enough for the first, however many they are"
    assert not publish(rig, one, "q")
    assert not publish(rig, other, "q"), "the rate is that of the queue"
    assert publish(rig, other, "p"), "and of no other"
    told = [(at, effect.connection) for at, effect in serve(rig, SECOND_US) if isinstance(effect, f.Unblocked)]
    assert told == [(500_000, one), (500_000, other)], "five were taken, which is half a second"
    assert publish(rig, other, "q")
    assert not publish(rig, one, "q")


def test_a_connection_publishes_no_more_than_its_rate() -> None:
    rig = Rig(Limits(publish_rate_per_connection=10))
    one, other = (rig.broker.connect("c", "here", "binary", 0) for _ in range(2))
    assert publish(rig, one, "q")
    assert not publish(rig, one, "p")
    assert publish(rig, other, "q")
    told = [(at, one) for at, one in serve(rig, SECOND_US) if isinstance(one, f.Unblocked)]
    assert told == [(100_000, f.Unblocked(0, one, "p"))]


def test_a_duplicate_costs_nothing_of_a_rate() -> None:
    rig = Rig(Limits(publish_rate_per_connection=10))
    connection = rig.broker.connect("c", "here", "binary", 7)
    assert publish(rig, connection, "q", sequence=1)
    assert publish(rig, connection, "q", sequence=1), "it is confirmed, whatever the rate is"
    assert not publish(rig, connection, "q", sequence=2)


def test_nobody_is_woken_for_a_queue_that_went() -> None:
    rig = Rig(defaults=QueueSettings(publish_rate=10))
    connection = rig.broker.connect("c", "here", "binary", 0)
    publish(rig, connection, "q")
    assert not publish(rig, connection, "q")
    rig.broker.delete(connection, 1, "q", 0)
    rig.broker.end_turn()
    assert f.Unblocked(0, connection, "q") in rig.effects(), "it is not there: the next publish creates it"
    assert rig.broker.next_due_us() is None

"""What is too old, and what is too much: it goes at once, in its order, in pieces that fit a turn, and is read once."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.rig import Rig
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.removal import PIECES_MAX

MS = 1000
PLENTY = (1_000_000, 1 << 30)
LITTLE = Limits(cache_bytes=1)
"""The cache holds one batch."""


def rig_with(limits: Limits | None = None, **settings: Any) -> tuple[Rig, int]:  # noqa: ANN401 - of each setting's type
    """A rig with queue `q`, and a connection."""
    rig = Rig(limits)
    connection = rig.broker.connect("c", "here", "binary", 0)
    rig.broker.queues.declare(connection, 1, "q", settings)
    rig.take()
    return rig, connection


def publish(rig: Rig, connection: int, *bodies: bytes, ttl_ms: int = 0, priority: int = 4) -> None:
    batch = Batch(b"".join(pack(bodies or [b"x"], None, priority, ttl_ms)))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch))


def run(rig: Rig) -> tuple[list[e.Event], list[f.Effect]]:
    """Turns, and what they wait for, until nothing is left to do."""
    events, effects = list[e.Event](), list[f.Effect]()
    for _ in range(5_000):
        rig.broker.end_turn()
        more_events, more_effects = rig.take()
        events += more_events
        effects += more_effects
        if not rig.broker.has_more:
            if not rig.loads:
                return events, effects
            rig.load_one()
    raise AssertionError("it does not come to an end")


def gone(events: list[e.Event]) -> list[tuple[int, int]]:
    """(lane, sequence) of what was removed, in that order."""
    return [
        (lane, at)
        for event in events
        if isinstance(event, e.DeadLettered | e.Dropped)
        for lane, start, end in event.spans
        for at in range(start, end)
    ]


def wake(rig: Rig) -> tuple[list[e.Event], list[f.Effect]]:
    """What happens when the broker wants to be woken next."""
    due_us = rig.broker.next_due_us()
    assert due_us is not None
    rig.pass_time(due_us - rig.now_us)
    rig.broker.tick()
    return run(rig)


# --- too old


def test_what_is_too_old_goes_when_it_is_and_not_before() -> None:
    rig, connection = rig_with(ttl_ms=50)
    publish(rig, connection, b"1", b"2")
    rig.pass_time(20 * MS)
    publish(rig, connection, b"3", ttl_ms=10)
    publish(rig, connection, b"4", ttl_ms=90)
    assert gone(run(rig)[0]) == []
    assert rig.broker.next_due_us() == rig.now_us + 30 * MS, "3 is behind 1 and 2, which are not too old yet"
    rig.pass_time(30 * MS - 1)
    rig.broker.tick()
    assert gone(run(rig)[0]) == []
    events, _ = wake(rig)
    assert gone(events) == [(0, 1), (0, 2), (0, 3)]
    dead = [event for event in events if isinstance(event, e.DeadLettered)]
    assert {event.reason for event in dead} == {e.DeadReason.EXPIRED}
    assert gone(wake(rig)[0]) == [(0, 4)], "20 ms later: the shorter time holds"
    assert rig.broker.next_due_us() is None


def test_what_is_behind_a_message_that_waits_for_ever_goes_with_it() -> None:
    """And whoever takes the one in front gets what is behind those that are too old."""
    rig, connection = rig_with()
    publish(rig, connection, b"for ever")
    publish(rig, connection, b"old", ttl_ms=10)
    publish(rig, connection, b"new")
    rig.pass_time(10 * MS)
    assert gone(run(rig)[0]) == []
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    events, effects = run(rig)
    assert gone(events) == [(0, 2)]
    sent = [one for one in effects if isinstance(one, f.Delivery)]
    assert [one.stored.sequence for one in sent] == [1, 3]


def test_two_consumers_that_meet_an_old_message_have_it_removed_once() -> None:
    rig, connection = rig_with()
    for _ in range(2):
        rig.broker.subscribe(Subscribing(connection, 1, "q", None, 0, 0))
    publish(rig, connection, b"1")
    publish(rig, connection, b"2", b"3", ttl_ms=10)
    publish(rig, connection, b"4")
    rig.pass_time(10 * MS)
    for number in (1, 2):
        rig.broker.deliveries.credit(connection, number, *PLENTY, 0, -1)
    events, _ = run(rig)
    assert gone(events) == [(0, 2), (0, 3)]
    spans = [event.spans for event in events if isinstance(event, e.Delivered)]
    assert spans == [((0, 1, 2),), ((0, 4, 5),)]


def test_what_a_consumer_holds_is_never_too_old() -> None:
    rig, connection = rig_with(ttl_ms=10, lease_ms=100)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    publish(rig, connection, b"1")
    run(rig)
    rig.pass_time(50 * MS)
    rig.broker.tick()
    assert gone(run(rig)[0]) == []
    rig.broker.deliveries.nack(connection, 1, ((1, 2),), 0, delay_ms=None, reason="", reject=False)
    (dead,) = [event for event in run(rig)[0] if isinstance(event, e.DeadLettered)]
    assert (dead.reason, dead.attempts) == (e.DeadReason.EXPIRED, 1)


def test_a_shorter_time_holds_for_what_is_there_already() -> None:
    rig, connection = rig_with(ttl_ms=1_000)
    publish(rig, connection, b"1")
    run(rig)
    rig.pass_time(20 * MS)
    rig.broker.queues.change(connection, 1, "q", {"ttl_ms": 30})
    run(rig)
    assert rig.broker.next_due_us() == rig.now_us + 10 * MS
    rig.broker.queues.change(connection, 1, "q", {"ttl_ms": 20})
    assert gone(run(rig)[0]) == [(0, 1)]


@pytest.mark.parametrize("limits", [Limits(), LITTLE])
@pytest.mark.parametrize("group", [None, "g"])
def test_more_than_one_turn_may_remove_goes_in_several(limits: Limits, group: str | None) -> None:
    count = 2 * PIECES_MAX + 5
    rig, connection = rig_with(limits, ttl_ms=10, mode="fan-out" if group else "round-robin")
    rig.broker.subscribe(Subscribing(connection, 1, "q", group, 0, 0))
    for _ in range(count):
        publish(rig, connection)
    rig.pass_time(10 * MS)
    rig.broker.end_turn()
    at_once = len(gone(rig.take()[0]))
    assert at_once <= PIECES_MAX
    assert at_once + len(gone(run(rig)[0])) == count


def test_the_heads_of_many_lanes_are_read_once_each() -> None:
    """Else ten lanes and a small cache would read each other out of the memory for ever."""
    rig, connection = rig_with(LITTLE, mode="priority")
    for priority in range(10):
        publish(rig, connection, b"%d" % priority, ttl_ms=100 + priority, priority=priority)
    loads = Counter[tuple[int, int]]()
    for _ in range(100):
        rig.broker.end_turn()
        rig.take()
        for load in rig.loads:
            assert isinstance(load, f.Load)
            loads[load.lane, load.sequence] += 1
        if not rig.loads and not rig.broker.has_more:
            break
        while rig.loads:
            rig.load_one()
    assert set(loads.values()) == {1}
    assert rig.broker.next_due_us() == rig.now_us + 100 * MS
    assert gone(wake(rig)[0]) == [(0, 1)]


def test_dead_letters_have_the_time_of_their_queue_and_none_of_their_own() -> None:
    rig, connection = rig_with(ttl_ms=10)
    publish(rig, connection, b"1", ttl_ms=5)
    run(rig)
    wake(rig)
    assert rig.broker.next_due_us() is None, "what died of age does not die again"
    rig.broker.queues.change(connection, 1, "q.dlq", {"ttl_ms": 20})
    run(rig)
    assert rig.broker.next_due_us() == rig.now_us + 20 * MS, "from when it came there"
    (dropped,) = [event for event in wake(rig)[0] if isinstance(event, e.Dropped)]
    assert (dropped.reason, rig.state.queues[2].length) == (e.DeadReason.EXPIRED, 0)


# --- too much


@given(st.lists(st.tuples(st.sampled_from([0, 4, 9]), st.integers(1, 30)), min_size=1, max_size=12))
def test_the_oldest_of_the_lowest_priority_goes_first(batches: list[tuple[int, int]]) -> None:
    rig, connection = rig_with(LITTLE, mode="priority", overflow="drop-oldest", max_length=6, max_bytes=60)
    kept: list[tuple[int, int, int]] = []
    nexts = Counter({priority: 1 for priority, _ in batches})
    for priority, size in batches:
        publish(rig, connection, bytes(size), priority=priority)
        kept.append((priority, nexts[priority], size))
        nexts[priority] += 1
        expected = []
        while len(kept) > 6 or sum(size for _, _, size in kept) > 60:
            lowest = min(kept)
            kept.remove(lowest)
            expected.append(lowest[:2])
        assert gone(run(rig)[0]) == expected
    assert (rig.state.queues[1].length, rig.state.queues[1].bytes) == (len(kept), sum(size for *_, size in kept))


def test_what_consumers_hold_and_what_waits_is_not_dropped() -> None:
    rig, connection = rig_with(overflow="drop-oldest", max_length=2, retry_delay_ms=100)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, 3, 1_000))
    publish(rig, connection, b"1", b"2", b"3")
    assert gone(run(rig)[0]) == [], "what goes out at once is not dropped before"
    rig.broker.deliveries.nack(connection, 1, ((1, 2),), 0, delay_ms=None, reason="", reject=False)
    publish(rig, connection, b"4")
    assert gone(run(rig)[0]) == [(0, 4)]
    rig.broker.deliveries.ack(connection, 1, ((2, 4),), 0)
    publish(rig, connection, b"5", b"6")
    assert gone(run(rig)[0]) == [(0, 5)]


def test_what_is_delayed_has_its_room_at_once() -> None:
    rig, connection = rig_with(overflow="drop-oldest", max_length=3)
    publish(rig, connection, b"1", b"2", b"3")
    assert gone(run(rig)[0]) == []
    delayed = Publish(connection, 1, "q", 0, Batch(b"".join(pack([b"4", b"5"]))), delay_ms=1000)
    rig.broker.publishing.publish(delayed)
    assert gone(run(rig)[0]) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("circle", [1, 2, 3])
def test_what_overflows_in_a_circle_is_dropped_at_the_second_time(circle: int) -> None:
    """Else it would go round for ever, and fill the log."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 0)
    names = ["q", "r", "s"][:circle]
    for at, name in enumerate(names):
        other = names[(at + 1) % circle] if circle > 1 else "q.dlq"
        wanted = {"overflow": "dead-letter", "max_length": 2, "dead_letter_queue": other}
        rig.broker.queues.declare(connection, 1, name, wanted)
    rig.broker.queues.declare(
        connection, 1, "outside", {"overflow": "dead-letter", "max_length": 1, "dead_letter_queue": "q"}
    )
    for name in ("outside", "q"):
        batch = Batch(b"".join(pack([b"x"] * 9)))
        rig.broker.publishing.publish(Publish(connection, 1, name, 0, batch))
    events, _ = run(rig)
    assert {queue.name: queue.length for queue in rig.state.queues.values()}.items() >= {"outside": 1, "q": 2}.items()
    moved = [event for event in events if isinstance(event, e.DeadLettered)]
    assert {rig.state.queues[event.queue].name for event in moved} == {"outside", "q"}


def test_a_group_that_is_too_far_behind_loses_its_oldest_and_no_other_group_does() -> None:
    rig, connection = rig_with(mode="fan-out", group_max_lag=3)
    rig.broker.subscribe(Subscribing(connection, 1, "q", "slow", 1, 1_000))
    rig.broker.subscribe(Subscribing(connection, 1, "q", "quick", *PLENTY))
    publish(rig, connection, *(b"%d" % number for number in range(8)))
    dropped = [event for event in run(rig)[0] if isinstance(event, e.Dropped)]
    slow, quick = rig.state.queues[1].groups.values()
    assert [(event.group, event.spans) for event in dropped] == [(slow.id, ((0, 2, 7),))]
    assert (slow.length(rig.state.queues[1].next), quick.length(rig.state.queues[1].next)) == (3, 8)


def test_of_the_bytes_of_groups_no_more_than_the_average_says_is_left() -> None:
    """They are known by an average: what goes may be larger than that, and then more has to go."""
    rig, connection = rig_with(mode="fan-out", overflow="drop-oldest", max_bytes=100)
    rig.broker.subscribe(Subscribing(connection, 1, "q", "g", 0, 0))
    publish(rig, connection, *(bytes(50) for _ in range(2)), *(bytes(2) for _ in range(48)))
    run(rig)
    queue = rig.state.queues[1]
    assert queue.bytes <= 100
    assert queue.length == 25, "of 4 bytes each, on average"

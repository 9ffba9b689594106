"""Dead letters are looked at and sent back to work."""

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.server.broker import Subscribing
from vibemq.server.dead_letters import Filter, Redriving
from vibemq.server.effects import Answer
from vibemq.server.publishing import Publish


def with_letters(count: int) -> tuple[Rig, int]:
    """A broker with so many dead letters of `orders`, and a connection to it."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.subscribe(Subscribing(connection, 1, "orders", None, count, 1 << 20))
    (number,) = [event.subscription for event in rig.take_events(e.Subscribed)]
    rig.broker.publishing.publish(Publish(connection, 1, "orders", 0, batch_of([b"x"] * count)))
    rig.broker.end_turn()
    rig.broker.deliveries.nack(connection, number, ((1, count + 1),), 0, delay_ms=None, reason="", reject=True)
    rig.take()
    return rig, connection


def redrive(
    rig: Rig, connection: int, start: int, end: int, most: int = 1000, *, dry_run: bool = False
) -> dict[str, object]:
    """What a redrive of these sequences is answered with."""
    asked = Redriving(connection, 1, "orders.dlq", "", start, end, most, Filter())
    rig.broker.dead_letters.redrive(asked, dry_run=dry_run)
    effects = rig.effects()
    while rig.loads:
        rig.load_one()
        rig.broker.end_turn()
        effects += rig.effects()
    (answer,) = [one for one in effects if isinstance(one, Answer)]
    assert isinstance(answer.result, dict)
    return answer.result


def left(rig: Rig) -> list[tuple[int, int]]:
    """The dead letters that are there."""
    queue = rig.broker.queues.require("orders.dlq")
    lane = queue.groups[e.DEFAULT_GROUP].lanes[e.DEFAULT_LANE]
    return [*lane.returned, (lane.cursor, queue.next[e.DEFAULT_LANE])]


def test_a_redrive_moves_what_lies_between_start_and_end_and_nothing_else() -> None:
    rig, connection = with_letters(10)
    assert redrive(rig, connection, 3, 6, dry_run=True)["count"] == 3
    assert redrive(rig, connection, 3, 6) == {"count": 3, "next": 0, "end": 6, "targets": {"orders": 3}, "homeless": 0}
    assert left(rig) == [(1, 3), (6, 11)]
    assert redrive(rig, connection, 4, 5)["count"] == 0, "it is gone, and the next one is not meant"
    assert redrive(rig, connection, 4, 8) == {"count": 2, "next": 0, "end": 8, "targets": {"orders": 2}, "homeless": 0}
    assert redrive(rig, connection, 0, 0) == {"count": 5, "next": 0, "end": 11, "targets": {"orders": 5}, "homeless": 0}


def test_a_redrive_of_part_of_a_range_tells_where_to_go_on() -> None:
    rig, connection = with_letters(10)
    assert redrive(rig, connection, 3, 9, most=2)["next"] == 5
    assert redrive(rig, connection, 5, 9, most=4)["next"] == 0


def test_a_dry_run_tells_what_the_same_request_would_move() -> None:
    rig, connection = with_letters(10)
    for start, end, most in ((0, 0, 4), (5, 0, 4), (3, 6, 9), (9, 0, 2)):
        would = redrive(rig, connection, start, end, most, dry_run=True)
        assert left(rig)[-1] == (1, 11)
        assert would == redrive(with_letters(10)[0], connection, start, end, most)


def pass_all_times(rig: Rig) -> list[e.Event]:
    """Let so much time pass as anything waits for; the events of that."""
    events: list[e.Event] = []
    for _ in range(20):
        rig.broker.end_turn()
        events += rig.take()[0]
        if rig.loads:
            rig.load_one()
            continue
        due_us = rig.broker.next_due_us()
        if due_us is None:
            return events
        rig.pass_time(max(1, due_us - rig.now_us))
        rig.broker.tick()
    raise AssertionError("it never ends")


def test_what_expires_round_a_circle_is_dropped_at_the_second_time_in_a_row() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    for name, following in ("ab", "bc", "ca"):
        rig.broker.queues.declare(connection, 1, name, {"ttl_ms": 10, "dead_letter_queue": following})
    rig.broker.publishing.publish(Publish(connection, 1, "a", 0, batch_of([b"x"] * 3)))
    events = pass_all_times(rig)
    assert [one.dead_queue for one in events if isinstance(one, e.DeadLettered)] == [2]
    assert [one.queue for one in events if isinstance(one, e.Dropped)] == [2]
    assert rig.replayed().digests() == rig.state.digests()


def test_what_failed_and_waits_in_another_queue_comes_back() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    work = {"ttl_ms": 1000, "dead_letter_queue": "wait", "max_attempts": 1, "lease_ms": 10}
    rig.broker.queues.declare(connection, 1, "work", work)
    rig.broker.queues.declare(connection, 1, "wait", {"ttl_ms": 10, "dead_letter_queue": "work"})
    rig.broker.subscribe(Subscribing(connection, 1, "work", None, 1, 1 << 20))
    rig.broker.publishing.publish(Publish(connection, 1, "work", 0, batch_of([b"x"])))
    events = pass_all_times(rig)
    assert [(one.queue, one.dead_queue) for one in events if isinstance(one, e.DeadLettered)] == [(1, 2), (2, 1)]
    assert [one.queue for one in events if isinstance(one, e.Dropped)] == [1]  # nobody took it any more

"""Dead letters are looked at and sent back to work."""

import pytest

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import UnknownQueue
from vibemq.server.broker import Subscribing
from vibemq.server.dead_letters import Filter, Redriving
from vibemq.server.effects import Answer, Peeked, Refusal
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


def with_single_letters(count: int) -> tuple[Rig, int]:
    """A broker with so many dead letters of `orders` that died one by one, each with an error of its own."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.subscribe(Subscribing(connection, 1, "orders", None, count, 1 << 20))
    (number,) = [event.subscription for event in rig.take_events(e.Subscribed)]
    rig.broker.publishing.publish(Publish(connection, 1, "orders", 0, batch_of([b"x"] * count)))
    rig.broker.end_turn()
    for at in range(1, count + 1):
        rig.broker.deliveries.nack(connection, number, ((at, at + 1),), 0, delay_ms=None, reason=f"<{at}>", reject=True)
    rig.take()
    return rig, connection


def redrive(
    rig: Rig,
    connection: int,
    start: int,
    end: int,
    most: int = 1000,
    *,
    wanted: Filter = Filter(),  # noqa: B008 - it is never changed
    dry_run: bool = False,
) -> dict[str, object]:
    """What a redrive of these sequences is answered with."""
    asked = Redriving(connection, 1, "orders.dlq", "", start, end, most, wanted)
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


def test_a_redrive_leaves_what_is_delayed_its_room() -> None:
    rig, connection = with_letters(5)
    delayed = Publish(connection, 1, "orders", 0, batch_of([b"later"] * 2), delay_ms=1000)
    rig.broker.publishing.publish(delayed)
    rig.broker.queues.change(connection, 1, "orders", {"max_length": 4})
    rig.take()
    assert redrive(rig, connection, 0, 0)["count"] == 2


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


def test_a_list_looks_at_some_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibemq.server.dead_letters.RUNS_AT_ONCE", 2)
    monkeypatch.setattr("vibemq.server.dead_letters.SLICES_MAX", 2)
    rig, connection = with_single_letters(10)
    rig.broker.dead_letters.peek(connection, 7, "orders", 0, 100, Filter(error="<9>"))
    turns, found = 0, rig.effects()
    while rig.broker.has_more:
        assert found == []
        rig.broker.end_turn()
        turns, found = turns + 1, rig.effects()
    assert turns == 2, "four letters in each"
    (peeked,) = [one for one in found if isinstance(one, Peeked)]
    assert [span[1:3] for span in peeked.spans] == [(9, 10)]
    assert [one["dead"]["error"] for one in peeked.why] == ["<9>"]

    rig.broker.dead_letters.peek(connection, 8, "orders", 0, 100, Filter(error="<9>"))
    rig.broker.queues.delete(connection, 9, "orders", 0)
    rig.broker.queues.delete(connection, 10, "orders.dlq", 0)
    rig.take()
    rig.broker.end_turn()
    (refusal,) = [one for one in rig.effects() if isinstance(one, Refusal)]
    assert (refusal.request, type(refusal.error)) == (8, UnknownQueue)

    rig, connection = with_single_letters(10)
    rig.broker.dead_letters.peek(connection, 7, "orders", 0, 100, Filter(error="<9>"))
    rig.broker.disconnect(connection, "it went", lost=False)
    assert not rig.broker.dead_letters.has_more


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_redrive_looks_at_some_and_tells_where_to_look_on(monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    monkeypatch.setattr("vibemq.server.dead_letters.RUNS_AT_ONCE", 2)
    monkeypatch.setattr("vibemq.server.dead_letters.SLICES_MAX", 2)
    rig, connection = with_single_letters(10)
    wanted, answers, start = Filter(error="<9>"), list[dict[str, object]](), 0
    while not answers or start:
        answers.append(redrive(rig, connection, start, 0, wanted=wanted, dry_run=dry_run))
        start = int(str(answers[-1]["next"]))
    assert [(one["count"], one["next"], one["targets"]) for one in answers] == [
        (0, 5, {}),
        (0, 9, {}),
        (1, 0, {"orders": 1}),
    ]


def test_dead_letters_of_a_name_are_those_of_the_last_queue_that_had_it() -> None:
    rig, connection = with_letters(1)
    for count in (1, 2):
        rig.broker.delete(connection, 1, "orders", 60_000)
        rig.take()
        asked = Redriving(connection, 1, "orders.dlq", "", 0, 0, 1000, Filter(source="orders"))
        rig.broker.dead_letters.redrive(asked, dry_run=True)
        (answer,) = rig.effects()
        assert isinstance(answer, Answer)
        assert answer.result["homeless"] == count
        rig.broker.subscribe(Subscribing(connection, 1, "orders", None, 2, 1 << 20))
        (number,) = [event.subscription for event in rig.take_events(e.Subscribed)]
        rig.broker.publishing.publish(Publish(connection, 1, "orders", 0, batch_of([b"x"] * 2)))
        rig.broker.end_turn()
        rig.broker.deliveries.nack(connection, number, ((1, 3),), 0, delay_ms=None, reason="", reject=True)
        rig.take()


def test_a_circle_of_queues_that_fan_out_ends_too() -> None:
    """Each group of one sends its letters to every group of the other: that they go round would be the least."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    for name, other in (("q", "r"), ("r", "q")):
        settings = {"mode": "fan-out", "ttl_ms": 10, "dead_letter_queue": other}
        rig.broker.queues.declare(connection, 1, name, settings, "fail")
        for group in ("a", "b"):
            rig.broker.subscribe(Subscribing(connection, 1, name, group, 0, 0))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"])))
    events: list[e.Event] = []
    for _ in range(10):
        rig.pass_time(10_000)
        events += pass_all_times(rig)
    assert sum(event.count for event in events if isinstance(event, e.DeadLettered)) == 2
    assert [queue.length for queue in rig.state.queues.values()] == [0, 0]

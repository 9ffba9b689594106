"""Groups: where they begin, who may take part, and when they end; what the random histories meet rarely."""

from typing import Any

import pytest

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import ConsumerExclusive, InvalidRequest, LimitExceeded, RequestError, UnknownGroup, UnknownQueue
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.groups import EPHEMERAL_IDLE_MS
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish

MS = 1000
PLENTY = (1_000_000, 1 << 30)


def rig_with(limits: Limits | None = None, **settings: Any) -> tuple[Rig, int]:  # noqa: ANN401 - of each setting's type
    """A rig with queue `q`, which fans out unless something else is said, and a connection."""
    rig = Rig(limits)
    connection = rig.broker.connect("c", "here", "binary", 0)
    rig.broker.queues.declare(connection, 1, "q", {"mode": "fan-out", **settings})
    rig.take()
    return rig, connection


def publish(rig: Rig, connection: int, *bodies: bytes) -> None:
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of(bodies)))


def join(rig: Rig, connection: int, group: str | None = None, start: str = "tail", at: int = 0, **more: bool) -> None:
    rig.broker.subscribe(Subscribing(connection, 5, "q", group, *PLENTY, start, at, **more))


def groups(rig: Rig) -> list[str]:
    return [group.name for group in rig.state.queues[1].groups.values()]


def delivered(rig: Rig) -> list[bytes]:
    """The bodies that the next turn hands out."""
    rig.broker.end_turn()
    found = [one for one in rig.effects() if isinstance(one, f.Delivery)]
    return [body for one in found for body in one.stored.batch.bodies()[one.first : one.first + one.messages]]


def tick(rig: Rig, passed_us: int) -> None:
    rig.pass_time(passed_us)
    rig.broker.tick()


# --- where they begin


@pytest.mark.parametrize(
    ("start", "at", "bodies"),
    [
        ("tail", 0, []),
        ("head", 0, [b"1", b"2", b"3"]),
        ("sequence", 2, [b"2", b"3"]),
        ("sequence", 0, [b"1", b"2", b"3"]),
        ("sequence", 99, []),
    ],
)
def test_a_group_begins_where_it_is_told_to(start: str, at: int, bodies: list[bytes]) -> None:
    rig, connection = rig_with()
    publish(rig, connection, b"1", b"2", b"3")
    join(rig, connection, "g", start, at)
    assert delivered(rig) == bodies
    join(rig, connection, "g", "head")
    assert delivered(rig) == [], "it is there already: where it would begin does not matter"


def test_no_group_goes_back_to_what_was_purged() -> None:
    rig, connection = rig_with()
    publish(rig, connection, b"1", b"2")
    rig.broker.queues.purge(connection, 1, "q")
    publish(rig, connection, b"3")
    for group, start, at in (("head", "head", 0), ("sequence", "sequence", 1), ("time", "time", 0)):
        join(rig, connection, group, start, at)
        rig.take()
        while rig.loads:
            rig.load_one()
        assert delivered(rig) == [b"3"], group
    queue = rig.state.queues[1]
    rig.broker.groups.seek(connection, 1, queue, "head", "sequence", 1)
    assert queue.groups[1].lanes[0].cursor == 3


def test_a_purge_while_a_time_is_looked_up_is_not_gone_behind() -> None:
    rig, connection = rig_with()
    publish(rig, connection, b"1", b"2")
    join(rig, connection, "g", "time", rig.now_us)
    rig.take()
    rig.broker.queues.purge(connection, 1, "q")
    rig.load_one()
    (created,) = rig.take_events(e.GroupCreated)
    assert created.sequence == 3


def test_nobody_joins_after_it_has_left() -> None:
    rig, connection = rig_with()
    join(rig, connection, "g", "time", rig.now_us)
    rig.take()
    rig.broker.disconnect(connection, "gone", lost=True)
    rig.load_one()
    assert groups(rig) == []
    assert rig.take()[0][1:] == []


def test_two_that_wait_for_the_same_time_share_the_group() -> None:
    rig, connection = rig_with()
    for _ in range(2):
        join(rig, connection, "g", "time", rig.now_us)
    rig.take()
    rig.load_one()
    rig.load_one()
    assert groups(rig) == ["g"]
    assert len(rig.take_events(e.Subscribed)) == 2


@pytest.mark.parametrize("what", ["queue", "group"])
def test_a_seek_that_comes_too_late_is_refused(what: str) -> None:
    rig, connection = rig_with(delete_grace_ms=60_000)
    join(rig, connection, "g")
    rig.broker.groups.seek(connection, 7, rig.state.queues[1], "g", "time", rig.now_us)
    if what == "queue":
        rig.broker.delete(connection, 1, "q")
    else:
        rig.broker.delete_group(connection, 1, "q", "g")
    rig.take()
    rig.load_one()
    (refusal,) = rig.effects()
    assert isinstance(refusal, f.Refusal)
    assert refusal.request == 7
    assert isinstance(refusal.error, UnknownQueue if what == "queue" else UnknownGroup)


# --- who may take part


def refused(
    rig: Rig,
    connection: int,
    kind: type[RequestError],
    group: str | None = None,
    start: str = "tail",
    *,
    exclusive: bool = False,
) -> None:
    with pytest.raises(kind):
        join(rig, connection, group, start, exclusive=exclusive)


def test_where_there_are_no_groups_nobody_can_name_one() -> None:
    rig, connection = rig_with(mode="round-robin")
    refused(rig, connection, UnknownGroup, "g")
    refused(rig, connection, InvalidRequest, None, "head")
    with pytest.raises(UnknownGroup):
        rig.broker.peek(connection, 1, "q", "g", 0, 1)
    with pytest.raises(UnknownGroup):
        rig.broker.delete_group(connection, 1, "q", "")


def test_the_names_of_the_broker_are_its_own() -> None:
    rig, connection = rig_with()
    refused(rig, connection, UnknownGroup, "$mine")
    join(rig, connection)
    (name,) = groups(rig)
    assert name.startswith("$")
    join(rig, connection, name)
    assert groups(rig) == [name]


def test_there_are_at_most_so_many_groups() -> None:
    rig, connection = rig_with(Limits(groups_per_queue=2))
    join(rig, connection, "a")
    join(rig, connection)
    refused(rig, connection, LimitExceeded, "c")
    refused(rig, connection, LimitExceeded)
    join(rig, connection, "a")
    rig.broker.delete_group(connection, 1, "q", "a")
    join(rig, connection, "c")


def test_exclusive_is_about_one_group() -> None:
    rig, connection = rig_with()
    join(rig, connection, "a", exclusive=True)
    refused(rig, connection, ConsumerExclusive, "a")
    join(rig, connection, "b")
    refused(rig, connection, ConsumerExclusive, "b", exclusive=True)
    rig.broker.unsubscribe(connection, 1, 1)
    join(rig, connection, "a")


def test_only_the_oldest_consumer_is_active_in_each_group() -> None:
    rig, connection = rig_with(single_active=True)
    for group in ("a", "a", "b"):
        join(rig, connection, group)
    publish(rig, connection, b"1")
    rig.broker.end_turn()
    assert [event.subscription for event in rig.take_events(e.Delivered)] == [1, 3]
    rig.broker.unsubscribe(connection, 1, 1)
    rig.broker.end_turn()
    assert [event.subscription for event in rig.take_events(e.Delivered)] == [2]


# --- how they end


def test_a_group_without_a_name_ends_a_minute_after_its_last_consumer() -> None:
    rig, connection = rig_with()
    join(rig, connection)
    join(rig, connection, "named")
    name = groups(rig)[0]
    tick(rig, 10 * EPHEMERAL_IDLE_MS * MS)
    rig.broker.disconnect(connection, "the network", lost=True)
    tick(rig, EPHEMERAL_IDLE_MS * MS - 1)
    again = rig.broker.connect("c", "here", "binary", 0)
    join(rig, again, name)
    tick(rig, EPHEMERAL_IDLE_MS * MS)
    rig.broker.disconnect(again, "done", lost=False)
    tick(rig, EPHEMERAL_IDLE_MS * MS - 1)
    assert groups(rig) == [name, "named"], "the time began anew"
    assert rig.broker.next_due_us() == rig.now_us + 1
    rig.take()
    tick(rig, 1)
    (deleted,) = rig.take_events(e.GroupDeleted)
    assert deleted.connection == 0
    assert groups(rig) == ["named"]
    assert rig.broker.next_due_us() is None


@pytest.mark.parametrize("clean", [True, False])
def test_idle_time_counts_from_the_restart_on_for_those_that_were_there(clean: bool) -> None:
    rig, connection = rig_with(group_idle_ms=50)
    join(rig, connection, "g")
    if clean:
        rig.broker.stop("enough")
    rig.take()
    rig.pass_time(70 * MS if not clean else 0)
    rig.begin(rig.replayed())
    tick(rig, 49 * MS)
    assert groups(rig) == ["g"]
    tick(rig, 1 * MS)
    assert groups(rig) == []


def test_another_idle_time_holds_for_groups_that_are_idle_already() -> None:
    rig, connection = rig_with()
    for group in ("gone", "here"):
        join(rig, connection, group)
    rig.broker.unsubscribe(connection, 1, 1)
    tick(rig, 100 * MS)
    assert groups(rig) == ["gone", "here"]
    rig.broker.queues.change(connection, 1, "q", {"group_idle_ms": 150})
    tick(rig, 49 * MS)
    assert groups(rig) == ["gone", "here"]
    tick(rig, 1 * MS)
    assert groups(rig) == ["here"]
    rig.broker.queues.change(connection, 1, "q", {"group_idle_ms": 0})
    rig.broker.unsubscribe(connection, 1, 2)
    tick(rig, 1000 * MS)
    assert groups(rig) == ["here"]


def test_what_a_deleted_group_had_is_gone_and_no_dead_letter() -> None:
    rig, connection = rig_with(max_length=3)
    join(rig, connection, "g")
    publish(rig, connection, b"1", b"2", b"3")
    rig.broker.end_turn()
    rig.take()
    rig.broker.delete_group(connection, 1, "q", "g")
    events, effects = rig.take()
    assert [type(event) for event in events] == [e.Released, e.Unsubscribed, e.GroupDeleted]
    ended, answer = effects
    assert isinstance(ended, f.Ended)
    assert isinstance(ended.error, UnknownGroup)
    assert ended.after == len(rig.log), "it is told once it is true"
    assert isinstance(answer, f.Answer)
    publish(rig, connection, b"4", b"5", b"6")  # nobody is behind any more
    assert list(rig.state.queues) == [1]


# --- without acks


def test_without_acks_nothing_is_held_and_every_ack_succeeds() -> None:
    rig, connection = rig_with(mode="fan-out-no-ack", max_attempts=1)
    join(rig, connection, "g")
    publish(rig, connection, b"1", b"2")
    assert delivered(rig) == [b"1", b"2"]
    deliveries = rig.broker.deliveries
    deliveries.nack(connection, 1, ((1, 3),), 1, delay_ms=None, reason="no", reject=True)
    deliveries.ack(connection, 1, ((1, 3), (7, 9)), 2)
    deliveries.extend(connection, 1, ((1, 3),), 0, 3)
    events, effects = rig.take()
    assert events == []
    assert [type(effect) for effect in effects] == [f.Answer] * 3
    rig.broker.disconnect(connection, "gone", lost=True)
    queue = rig.state.queues[1]
    assert (queue.length, queue.unacked) == (0, 0)
    assert rig.broker.next_due_us() is None, "there is no lease to end"


def test_an_idle_group_is_watched_once_however_often_it_was_left() -> None:
    hour_ms, leave_ms = 3_600_000, 1000
    rig, connection = rig_with(group_idle_ms=hour_ms)
    for number in range(1, 101):
        join(rig, connection, "a")
        rig.broker.unsubscribe(connection, 6, number)
        rig.broker.queues.change(connection, 7, "q", {"description": str(number)})
        tick(rig, leave_ms * MS)
    assert len(rig.broker.groups._idle) == 1
    tick(rig, (hour_ms - 100 * leave_ms) * MS)  # since it was left for the first time
    assert groups(rig) == ["a"]
    rig.pass_time((99 * leave_ms - 1) * MS)
    assert rig.broker.next_due_us() == rig.now_us + MS
    tick(rig, MS)
    assert groups(rig) == []

"""Every request of the protocol comes to a call of the broker."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest

from tests.server.rig import Rig, batch_of
from vibemq.errors import InvalidName, InvalidRequest
from vibemq.projections.projector import Projector
from vibemq.protocol import messages as m
from vibemq.server.broker import Broker
from vibemq.server.commands import COMMANDS
from vibemq.server.effects import Answer
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults


def test_every_command_is_carried_out() -> None:
    assert {*COMMANDS, m.Hello, m.Publish, m.Commit, m.Ping, m.Goodbye} == set(get_args(m.Command))


def answers(rig: Rig, asks: Sequence[Any]) -> list[Any]:
    """What one client is answered to these."""
    connection = rig.broker.connect("test", "here", "binary", 0)
    for ask in asks:
        COMMANDS[type(ask)](rig.broker, connection, ask)
    return [effect.result for effect in rig.effects() if isinstance(effect, Answer)]


def test_the_life_of_a_queue_in_requests() -> None:
    found = answers(
        Rig(),
        [
            m.Declare(request=1, queue="q", settings={"mode": "priority", "ttl_ms": 5}),
            m.Declare(request=2, queue="q", settings={"ttl_ms": 6}, on_difference="override"),
            m.Change(request=3, queue="q", settings={"single_active": True}),
            m.Bind(request=4, queue="q", pattern="a.*"),
            m.Rename(request=5, queue="q", name="r"),
            m.ListBindings(request=6),
            m.Unbind(request=7, queue="r", pattern="a.*"),
            m.ListBindings(request=8, queue="r"),
            m.Delete(request=9, queue="r", grace_ms=1),
            m.Undelete(request=10, queue="r", name="s"),
            m.ListQueues(request=11),
        ],
    )
    assert found[0]["settings"]["ttl_ms"] == 5
    assert found[1]["differences"] == [{"setting": "ttl_ms", "live": 5, "declared": 6, "class": "soft"}]
    assert found[2]["settings"] == {**found[0]["settings"], "ttl_ms": 6, "single_active": True}
    assert found[3] == found[6] == {"count": 1}
    assert found[4] == {**found[2], "name": "r"}
    assert found[5] == [{"queue": "r", "pattern": "a.*"}]
    assert found[7] == []
    assert found[8]["until_us"] > 0
    assert found[10] == [found[9]] == [{**found[2], "name": "s"}]


@pytest.mark.parametrize("kind", [m.DeadLetters, m.Redrive])
def test_a_reason_that_there_is_not_is_refused(
    kind: type[m.DeadLetters | m.Redrive],
) -> None:
    declare = m.Declare(request=1, queue="q")
    with pytest.raises(InvalidRequest, match=r"max-attempts, rejected.*, not 'max_attempts'"):
        answers(Rig(), [declare, kind(request=2, queue="q", reason="max_attempts")])
    answers(Rig(), [declare, kind(request=2, queue="q", reason="max-attempts")])


@pytest.mark.parametrize("kind", [m.Declare, m.Change])
def test_a_dead_letter_queue_needs_a_name_that_can_be(kind: Any) -> None:  # noqa: ANN401 - either class
    rig = Rig()
    answers(rig, [m.Declare(request=1, queue="q")])
    with pytest.raises(InvalidName, match="dead-letter queue"):
        answers(rig, [kind(request=2, queue="q", settings={"dead_letter_queue": " x"})])


def test_what_no_queue_is_bound_to_goes_where_the_configuration_says() -> None:
    """That queue is made for dead letters, also where clients may not create any."""
    broker = Broker(Projector(), Limits(), QueueDefaults(), auto_create=False, unroutable="lost")
    connection = broker.connect("test", "here", "binary", 0)
    broker.publishing.publish(Publish(connection, 1, "orders.new", 0, batch_of([b"a", b"b"]), to_topic=True))
    COMMANDS[m.ShowQueue](broker, connection, m.ShowQueue(request=2, queue="lost"))
    *_, shown = (effect.result for effect in broker.journal.effects if isinstance(effect, Answer))
    assert (shown["dead_letters"], shown["ready"], shown["settings"]["max_attempts"]) == (True, 2, 0)


def test_the_life_of_a_schedule_in_requests() -> None:
    rig = Rig()
    found = answers(
        rig,
        [
            m.SetSchedule(request=1, name="s", queue="q", body=b"go", every_ms=1000, times=5, ttl_ms=7, priority=9),
            m.ListSchedules(request=2, name="s"),
            m.PauseSchedule(request=3, name="s"),
            m.PauseSchedule(request=4, name="s", paused=False),
            m.SetSchedule(request=5, name="t", queue="a.b", to_topic=True, cron="0 9 * * *", misfire="skip"),
            m.ListSchedules(request=6),
            m.DeleteSchedule(request=7, name="s"),
            m.ListSchedules(request=8),
        ],
    )
    made = found[0]
    assert {key: made[key] for key in ("name", "queue", "body", "every_ms", "times", "ttl_ms", "priority")} == {
        "name": "s",
        "queue": "q",
        "body": b"go",
        "every_ms": 1000,
        "times": 5,
        "ttl_ms": 7,
        "priority": 9,
    }
    assert made["next_us"] == rig.now_us + 1_000_000
    assert found[1] == [made]
    assert found[2] == {**made, "paused": True, "next_us": 0}
    assert found[3] == made
    assert (found[4]["to_topic"], found[4]["cron"], found[4]["misfire"]) == (True, "0 9 * * *", "skip")
    assert [one["name"] for one in found[5]] == ["s", "t"]
    assert found[6] is None
    assert [one["name"] for one in found[7]] == ["t"]

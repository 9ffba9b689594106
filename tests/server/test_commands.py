"""Every request of the protocol comes to a call of the broker."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest

from tests.server.rig import Rig
from vibemq.errors import InvalidName
from vibemq.protocol import messages as m
from vibemq.server.commands import COMMANDS
from vibemq.server.effects import Answer


def test_every_command_is_carried_out() -> None:
    assert {*COMMANDS, m.Hello, m.Publish, m.Ping, m.Goodbye} == set(get_args(m.Command))


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


@pytest.mark.parametrize("kind", [m.Declare, m.Change])
def test_a_dead_letter_queue_needs_a_name_that_can_be(kind: Any) -> None:  # noqa: ANN401 - either class
    rig = Rig()
    answers(rig, [m.Declare(request=1, queue="q")])
    with pytest.raises(InvalidName, match="dead-letter queue"):
        answers(rig, [kind(request=2, queue="q", settings={"dead_letter_queue": " x"})])

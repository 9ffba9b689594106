"""What is refused has changed nothing; and what is gone for a while is listed."""

import pytest

from tests.server.rig import Rig, batch_of
from vibemq.declaration import QueueSettings
from vibemq.errors import InvalidRequest, QueueFull, UnknownGroup
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.publishing import Publish


def test_what_is_deleted_and_can_come_back_is_listed_oldest_first() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    for name in ("b", "a"):
        rig.broker.queues.declare(connection, 1, name, {"delete_grace_ms": 60_000})
        rig.broker.queues.delete(connection, 2, name)
    rig.take()
    rig.broker.queues.list_deleted(connection, 3)
    (answer,) = rig.effects()
    assert isinstance(answer, f.Answer)
    until_us = rig.now_us + 60_000_000
    assert [(one["name"], one["until_us"]) for one in answer.result] == [("b", until_us), ("a", until_us)]


def test_a_publish_that_is_refused_has_created_no_queue() -> None:
    rig = Rig(defaults=QueueSettings(max_length=1))
    connection = rig.broker.connect("c", "here", "binary", 9)
    with pytest.raises(QueueFull):
        rig.broker.publishing.publish(Publish(connection, 1, "q", 1, batch_of([b"a", b"b"])))
    assert rig.state.queue_named("q") is None


def test_a_subscription_that_is_refused_has_created_no_queue() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    with pytest.raises(UnknownGroup):
        rig.broker.subscribe(Subscribing(connection, 1, "q", "group", 1, 1))
    with pytest.raises(InvalidRequest):
        rig.broker.subscribe(Subscribing(connection, 1, "q", None, 1, 1, "head"))
    assert rig.state.queue_named("q") is None

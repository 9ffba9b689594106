"""Order by key where most of what is there has to wait."""

import pytest

from tests.server.rig import Rig
from vibemq.batch import Batch, pack
from vibemq.declaration import Overflow, QueueSettings
from vibemq.server import key_order
from vibemq.server.broker import Subscribing
from vibemq.server.effects import Delivery, Drained
from vibemq.server.publishing import Publish


def _publish(rig: Rig, connection: int, keys: list[int]) -> None:
    batch = Batch(b"".join(pack([b"x"] * len(keys), keys=keys)))
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch))


def _sent(rig: Rig) -> list[int]:
    return [one.stored.sequence + one.first for one in rig.effects() if isinstance(one, Delivery)]


def _subscribed(rig: Rig, messages: int) -> int:
    connection = rig.broker.connect("test", "address", "binary", 0)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, messages, 1 << 20))
    return connection


def test_a_pull_finds_the_free_message_behind_many_that_are_parked_and_then_nothing_goes_on() -> None:
    rig = Rig(defaults=QueueSettings(order_by_key=True))
    connection = _subscribed(rig, 1)
    _publish(rig, connection, [5])
    rig.broker.end_turn()
    assert _sent(rig) == [1]
    behind = 3 * key_order.SCAN_MAX
    for _ in range(3):
        _publish(rig, connection, [5] * key_order.SCAN_MAX)
    _publish(rig, connection, [6])
    rig.broker.deliveries.credit(connection, 1, 1, 1 << 20, 0, 0)
    sent, drained, turns = [], 0, 0
    while not drained:
        rig.broker.end_turn()
        effects = rig.effects()
        sent += [one.stored.sequence for one in effects if isinstance(one, Delivery)]
        drained += sum(isinstance(one, Drained) for one in effects)
        turns += 1
        assert turns < 10
    assert sent == [behind + 2]
    rig.broker.end_turn()
    assert not rig.broker.has_more  # a turn after another with nothing to do would keep the processor busy for ever


def test_a_look_that_was_cut_short_ends_with_its_consumer() -> None:
    rig = Rig(defaults=QueueSettings(order_by_key=True))
    connection = _subscribed(rig, 2)
    _publish(rig, connection, [5])
    for _ in range(3):
        _publish(rig, connection, [5] * key_order.SCAN_MAX)
    rig.broker.end_turn()
    assert rig.broker.has_more
    rig.broker.block(connection, blocked=True)
    rig.broker.end_turn()
    rig.broker.end_turn()
    assert not rig.broker.has_more
    rig.broker.block(connection, blocked=False)
    _publish(rig, connection, [6])
    rig.effects()
    for _ in range(5):
        rig.broker.end_turn()
    assert _sent(rig) == [3 * key_order.SCAN_MAX + 2]


def test_dropped_messages_of_a_key_that_is_stuck_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_order, "PARKED_MAX", 100)
    rig = Rig(defaults=QueueSettings(order_by_key=True, max_length=20, overflow=Overflow.DROP_OLDEST))
    connection = _subscribed(rig, 1000)
    for _ in range(30):
        _publish(rig, connection, [5] * 10)
        rig.broker.end_turn()
    assert _sent(rig) == [1]
    _publish(rig, connection, [6])
    rig.broker.end_turn()
    assert _sent(rig) == [301]
    rig.broker.deliveries.ack(connection, 1, ((1, 2),), 0)
    rig.broker.end_turn()
    assert _sent(rig) == [283]  # the oldest that is left of what was parked

"""Publishers that must wait: who is told when, and in which order their batches are taken."""

from typing import Final

import pytest

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import LimitExceeded, QueueBlocked, SequenceTooOld
from vibemq.server.effects import Unblocked
from vibemq.server.publishers import EXPECTED_MAX, LOOKS_MAX, PLACES_MAX
from vibemq.server.publishing import Publish

PRODUCER: Final = 7


def rig_with(*, unroutable: str = "", **settings: object) -> tuple[Rig, int]:
    """A broker with a queue `q`, and the number of a connection."""
    rig = Rig(unroutable=unroutable)
    connection = rig.broker.connect("", "", "binary", PRODUCER)
    rig.broker.queues.declare(connection, 1, "q", settings, "fail")
    rig.take()
    return rig, connection


def publish(rig: Rig, connection: int, sequence: int, *, oldest: int = 1, name: str = "q", topic: bool = False) -> bool:
    """Publish a batch of one; False where it has to wait."""
    ask = Publish(connection, sequence, name, sequence, batch_of([b"%d" % sequence]), oldest, to_topic=topic)
    try:
        rig.broker.publishing.publish(ask)
    except QueueBlocked:
        return False
    return True


def unblocked(rig: Rig) -> list[str]:
    """Who is told that he may go on, now that a turn of the loop ends."""
    rig.broker.publishers.unblock()
    return [effect.name for effect in rig.effects() if isinstance(effect, Unblocked)]


def make_room(rig: Rig, connection: int) -> None:
    rig.broker.queues.purge(connection, 1, "q")


def stored(rig: Rig) -> list[int]:
    """The sequences of the producer that were stored, in the order of the log."""
    rig.take()
    return [record.event.producer_sequence for record in rig.log if isinstance(record.event, e.Published)]


def test_what_was_on_its_way_does_not_overtake_what_was_refused() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    assert publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    assert unblocked(rig) == []
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert not publish(rig, connection, 3)  # sent before the client heard of 2
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 2)
    make_room(rig, connection)
    assert unblocked(rig) == []
    assert publish(rig, connection, 3)
    make_room(rig, connection)
    assert publish(rig, connection, 4)
    assert stored(rig) == [1, 2, 3, 4]


def test_the_first_that_was_refused_is_the_one_that_room_is_made_for() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    publish(rig, connection, 1)
    for sequence in (3, 2):  # whichever came first
        assert not publish(rig, connection, sequence)
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert not publish(rig, connection, 3)
    assert publish(rig, connection, 2)  # without being told again
    assert not publish(rig, connection, 3)
    assert stored(rig) == [1, 2]
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 3)


def test_what_the_client_gave_up_is_not_waited_for() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    assert not publish(rig, connection, 3)
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert not publish(rig, connection, 4, oldest=3)
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 5, oldest=5)
    assert stored(rig) == [1, 5]


def test_a_refused_sequence_is_never_too_old() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    for sequence in range(3, 1_103):
        assert publish(rig, connection, sequence, oldest=2, name="other")
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 2, oldest=2)
    assert stored(rig)[-1] == 2


def test_a_client_without_sequences_has_the_order_in_which_it_sends() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    assert publish(rig, connection, 0)
    assert not publish(rig, connection, 0)
    assert not publish(rig, connection, 0)
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 0)
    assert not publish(rig, connection, 0)


def test_other_queues_topics_and_connections_go_on() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    other = rig.broker.connect("", "", "binary", PRODUCER + 1)
    rig.broker.queues.declare(connection, 1, "free", {}, "fail")
    rig.broker.queues.bind(connection, 1, "free", "q")
    publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    assert publish(rig, connection, 3, name="free")
    assert publish(rig, connection, 4, topic=True)  # to a topic of the same name
    rig.broker.queues.bind(connection, 1, "q", "t")
    assert not publish(rig, connection, 5, name="t", topic=True)
    assert not publish(rig, other, 1)
    make_room(rig, connection)
    assert unblocked(rig) == ["q", "t", "q"]


def test_a_rate_lets_through_what_it_allows_in_order() -> None:
    rig, connection = rig_with(publish_rate=10)
    assert publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    assert not publish(rig, connection, 3)
    assert unblocked(rig) == []
    rig.pass_time(100_000)
    assert unblocked(rig) == ["q"]
    assert not publish(rig, connection, 4)
    assert unblocked(rig) == ["q"]
    assert publish(rig, connection, 2)
    assert not publish(rig, connection, 3)
    assert unblocked(rig) == []
    due_us = rig.broker.publishers.next_due_us()
    assert due_us is not None
    assert rig.now_us < due_us <= rig.now_us + 100_000
    rig.pass_time(due_us - rig.now_us)
    assert unblocked(rig) == ["q"]


def test_a_connection_that_is_gone_is_told_nothing() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    publish(rig, connection, 1)
    assert not publish(rig, connection, 2)
    rig.broker.disconnect(connection, "gone", lost=True)
    again = rig.broker.connect("", "", "binary", PRODUCER)
    make_room(rig, again)
    assert unblocked(rig) == []
    assert publish(rig, again, 2)  # on a new connection nothing was refused


@pytest.mark.parametrize("count", [EXPECTED_MAX + 10])
def test_what_is_remembered_of_a_place_is_bounded(count: int) -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    publish(rig, connection, 1)
    for sequence in range(2, count):
        assert not publish(rig, connection, sequence)
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    for sequence in range(2, count):
        assert publish(rig, connection, sequence)
        make_room(rig, connection)
    assert stored(rig) == list(range(1, count))


def test_a_connection_waits_at_no_more_places_than_the_limit() -> None:
    rig, connection = rig_with(overflow="block", max_length=1)
    rig.broker.queues.bind(connection, 1, "q", "#")
    assert publish(rig, connection, 1)
    for number in range(PLACES_MAX):
        assert not publish(rig, connection, 2 + number, name=f"t.{number}", topic=True)
    with pytest.raises(LimitExceeded):
        publish(rig, connection, 2 + PLACES_MAX, name="another", topic=True)
    assert not publish(rig, connection, 2 + PLACES_MAX, name="t.1", topic=True)
    make_room(rig, connection)
    told = unblocked(rig)
    while rig.broker.publishers.has_more:
        told += unblocked(rig)
    assert len(told) == PLACES_MAX
    assert publish(rig, connection, 10_000, oldest=10_000)  # what was refused before is given up
    assert not publish(rig, connection, 10_001, oldest=10_001, name="another", topic=True)


def test_of_many_who_wait_each_is_told_in_some_turn_and_then_nobody_looks_any_more() -> None:
    rig, connection = rig_with(overflow="block", max_length=10)
    for sequence in range(1, 11):
        assert publish(rig, connection, sequence)
    several = [rig.broker.connect("", "", "binary", 100 + number) for number in range(2 * LOOKS_MAX + 10)]
    for one in several:
        assert not publish(rig, one, 1)
    assert unblocked(rig) == []
    assert rig.broker.has_more
    rig.broker.disconnect(several.pop(), "test", lost=False)
    while rig.broker.publishers.has_more:
        assert unblocked(rig) == []
    make_room(rig, connection)
    told = unblocked(rig)
    while rig.broker.publishers.has_more:
        told += unblocked(rig)
    assert len(told) == len(several)
    assert unblocked(rig) == []
    assert not rig.broker.publishers.has_more


def test_who_publishes_what_nobody_is_bound_to_waits_for_the_queue_that_takes_it() -> None:
    """Else he is told to go on at once, is refused again, and so for ever."""
    rig, connection = rig_with(unroutable="q", overflow="block", max_length=1)
    assert publish(rig, connection, 1, name="a.b", topic=True)
    assert not publish(rig, connection, 2, name="a.b", topic=True)
    assert unblocked(rig) == []
    make_room(rig, connection)
    assert unblocked(rig) == ["a.b"]
    assert publish(rig, connection, 2, name="a.b", topic=True)


def test_what_is_refused_for_good_meanwhile_is_not_waited_for() -> None:
    """As on a full disk, which is noticed before anybody looks at the queue; older batches may wait elsewhere."""
    rig, connection = rig_with(overflow="block", max_length=1)
    assert publish(rig, connection, 2)
    assert not publish(rig, connection, 3)
    assert not publish(rig, connection, 4)
    make_room(rig, connection)
    assert unblocked(rig) == ["q"]
    rig.broker.publishers.refused(connection, "q", 3, to_topic=False)
    assert publish(rig, connection, 4)
    make_room(rig, connection)
    rig.broker.publishers.refused(connection, "q", 3, to_topic=False)
    assert publish(rig, connection, 5)
    assert stored(rig) == [2, 4, 5]


def test_what_was_refused_and_came_by_another_connection_is_not_stored_twice() -> None:
    """As by a client that comes again, while what it sent before is still on its way."""
    rig, before = rig_with(overflow="block", max_length=1)
    assert publish(rig, before, 1)
    assert not publish(rig, before, 2)
    make_room(rig, before)
    assert unblocked(rig) == ["q"]
    after = rig.broker.connect("", "", "binary", PRODUCER)
    assert publish(rig, after, 2)
    assert publish(rig, before, 2)
    make_room(rig, after)
    assert publish(rig, after, 3, oldest=3)
    assert stored(rig) == [1, 2, 3]
    with pytest.raises(SequenceTooOld):
        publish(rig, before, 2)


def test_what_was_refused_and_is_too_old_by_another_connection_is_not_stored_again() -> None:
    rig, before = rig_with(overflow="block", max_length=1)
    assert publish(rig, before, 1)
    assert not publish(rig, before, 2)
    make_room(rig, before)
    assert unblocked(rig) == ["q"]
    after = rig.broker.connect("", "", "binary", PRODUCER)
    assert publish(rig, after, 2)
    make_room(rig, after)
    assert publish(rig, after, 3, oldest=3)
    make_room(rig, after)
    with pytest.raises(SequenceTooOld):
        publish(rig, before, 2)
    assert stored(rig) == [1, 2, 3]

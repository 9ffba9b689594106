"""Turns are fair, nobody is held up, and what was found by the model or by a simulation stays fixed."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import QueueSettings
from vibemq.errors import InvalidRequest
from vibemq.events import DEFAULT_GROUP
from vibemq.projections.projector import Projector
from vibemq.server import effects as f
from vibemq.server.broker import Subscribing
from vibemq.server.checkpointer import Capture
from vibemq.server.deliveries import MADE_READY_MAX
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish

MS = 1000
PLENTY = (1_000_000, 1 << 30)


def with_consumers(count: int, credit: int = PLENTY[0], **settings: int) -> tuple[Rig, int, list[int]]:
    """A rig with one connection and consumers of queue `q`."""
    rig = Rig(defaults=QueueSettings(**settings))  # type: ignore[arg-type]
    connection = rig.broker.connect("c", "here", "binary", 9)
    for _ in range(count):
        rig.broker.subscribe(Subscribing(connection, 1, "q", None, credit, PLENTY[1]))
    numbers = [event.subscription for event in rig.take_events(e.Subscribed)]
    return rig, connection, numbers


def publish(rig: Rig, connection: int, count: int) -> list[e.Delivered]:
    """Publish a batch, and end the turn."""
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * count)))
    rig.broker.deliveries.dispatch()
    return rig.take_events(e.Delivered)


@given(st.integers(1, 6), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_turns_go_round(consumers: int, sizes: list[int]) -> None:
    rig, connection, numbers = with_consumers(consumers)
    served = []
    for size in sizes:
        deliveries = publish(rig, connection, size)
        counts = [sum(end - start for _, start, end in event.spans) for event in deliveries]
        assert max(counts) <= -(-size // consumers), "nobody gets more than an equal share while others wait"
        served += [event.subscription for event in deliveries]
    assert served == [numbers[at % consumers] for at in range(len(served))]


def test_a_consumer_that_leaves_costs_nobody_a_turn() -> None:
    rig, connection, (first, second, third) = with_consumers(3)
    assert [event.subscription for event in publish(rig, connection, 1)] == [first]
    rig.broker.deliveries.ack(connection, first, ((1, 2),), 0)
    rig.broker.unsubscribe(connection, 1, first)
    rig.take()
    assert [event.subscription for event in publish(rig, connection, 1)] == [second]
    assert [event.subscription for event in publish(rig, connection, 1)] == [third]


def test_a_consumer_without_credit_holds_up_nobody() -> None:
    rig, connection, (first, second) = with_consumers(2, credit=1)
    publish(rig, connection, 5)
    rig.broker.deliveries.credit(connection, second, 10, 1000, 0, -1)
    rig.broker.deliveries.dispatch()
    (event,) = rig.take_events(e.Delivered)
    assert (event.subscription, event.spans) == (second, ((0, 3, 6),))
    assert first != second


def test_an_ended_lease_behind_acked_deliveries_is_looked_at_once() -> None:
    rig, connection, (number,) = with_consumers(1, lease_ms=10)
    publish(rig, connection, 1)
    publish(rig, connection, 1)
    rig.broker.deliveries.extend(connection, number, ((1, 2),), 100, 0)
    rig.broker.deliveries.ack(connection, number, ((2, 3),), 0)
    rig.pass_time(50 * MS)
    rig.broker.tick()  # it never came back from here
    assert rig.broker.deliveries.next_due_us() == rig.now_us + 50 * MS


def test_a_long_lease_does_not_hide_a_short_one() -> None:
    rig, connection, (number,) = with_consumers(1, lease_ms=10)
    publish(rig, connection, 1)
    rig.broker.deliveries.extend(connection, number, ((1, 2),), 60_000, 0)
    rig.pass_time(11 * MS)
    rig.broker.tick()
    publish(rig, connection, 1)
    rig.pass_time(11 * MS)
    rig.broker.tick()
    (event,) = rig.take_events(e.Released)
    assert event.spans == ((0, 2, 3),)


def test_subscriptions_that_ended_with_their_queue_do_not_count() -> None:
    rig = Rig(Limits(subscriptions_per_connection=1))
    connection = rig.broker.connect("c", "here", "binary", 9)
    for _ in range(3):
        rig.broker.subscribe(Subscribing(connection, 1, "q", None, 1, 1))
        rig.broker.delete(connection, 1, "q")
    rig.broker.disconnect(connection, "done", lost=True)


def test_a_load_of_more_than_the_cache_holds_is_not_asked_for_again() -> None:
    rig = Rig(Limits(cache_bytes=40))
    connection = rig.broker.connect("c", "here", "binary", 9)
    for _ in range(4):
        rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([bytes(30)])))
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    for _ in range(20):
        rig.broker.deliveries.dispatch()
        rig.take()
        if not rig.loads:
            break
        rig.load_one()
    assert rig.state.queues[1].ready == 0


@pytest.mark.parametrize("steps_before", range(7))
def test_a_queue_may_go_while_a_checkpoint_is_taken(steps_before: int) -> None:
    rig, connection, _ = with_consumers(1)
    rig.broker.publishing.publish(Publish(connection, 1, "other", 0, batch_of([b"x"])))
    rig.take()
    capture = Capture(rig.state, {})
    steps = capture.steps()
    for _ in range(steps_before):
        next(steps, None)
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"])))
    rig.broker.delete(connection, 1, "q")
    rig.take()
    for _ in steps:
        pass
    saved = [(key, as_of, blob) for key, (as_of, blob) in capture.changed.items()]
    restored = rig.replayed(Projector.restore(saved, capture.start))
    assert restored.digests() == rig.state.digests()
    if "queue/1" not in capture.changed:
        assert capture.wanted == len(rig.log), "the checkpoint is good only once the deletion is durable"


def test_peek_marks_what_may_have_been_sent_before_a_crash() -> None:
    rig, connection, _ = with_consumers(1, credit=0)
    publish(rig, connection, 3)
    rig.begin(rig.replayed())
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"x"] * 2)))
    rig.take()
    rig.broker.peek(connection, 1, "q", None, 1, 10)
    (peeked,) = rig.effects()
    assert isinstance(peeked, f.Peeked)
    assert list(peeked.spans) == [(0, 1, 4, 0, True), (0, 4, 6, 0, False)]


def test_peek_shows_the_highest_priority_first_or_one_alone() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.queues.declare(connection, 1, "q", {"mode": "priority"})
    for sequence, priority in enumerate((1, 9, 9, 1)):
        batch = Batch(b"".join(pack([b"x"], None, priority)))
        rig.broker.publishing.publish(Publish(connection, 1, "q", sequence, batch))
    rig.take()

    def peeked(start: int, priority: int | None) -> list[tuple[int, int, int]]:
        rig.broker.peek(connection, 1, "q", None, start, 10, priority)
        return [span[:3] for one in rig.effects() if isinstance(one, f.Peeked) for span in one.spans]

    assert peeked(0, None) == [(9, 1, 3), (1, 1, 3)]
    assert peeked(2, None) == [(9, 2, 3), (1, 2, 3)]
    assert peeked(2, 1) == [(1, 2, 3)]
    assert peeked(0, 4) == []
    rig.broker.publishing.publish(Publish(connection, 1, "plain", 4, batch_of([b"x"])))
    rig.take()
    rig.broker.peek(connection, 1, "plain", None, 0, 10, 9)  # there are no priorities
    assert [one.spans for one in rig.effects() if isinstance(one, f.Peeked)] == [[(0, 1, 2, 0, False)]]


def turns(rig: Rig) -> list[list[f.Delivery | f.Drained]]:
    """What each turn hands out until nothing is left."""
    found = []
    while True:
        rig.broker.deliveries.dispatch()
        found.append([one for one in rig.effects() if isinstance(one, f.Delivery | f.Drained)])
        if not rig.broker.deliveries.has_more:
            return found


@pytest.mark.parametrize(("codec", "sizes", "most"), [("json", [2000], 256), ("binary", [1] * 2000, 512)])
def test_no_turn_hands_out_more_than_can_be_written_in_milliseconds(codec: str, sizes: list[int], most: int) -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", codec, 9)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, 0, 0))
    (number,) = [event.subscription for event in rig.take_events(e.Subscribed)]
    for size in sizes:
        rig.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b""] * size)))
    rig.broker.deliveries.credit(connection, number, 1800, 1 << 20, 0, wait_ms=10)
    rig.take()
    handed_out = turns(rig)
    counts = [sum(one.messages for one in turn if isinstance(one, f.Delivery)) for turn in handed_out]
    assert [one for turn in handed_out for one in turn if isinstance(one, f.Drained)] == handed_out[-1][-1:]
    assert sum(counts) == 1800, "a pull that takes several turns is one pull"
    assert max(counts) == most


def test_a_consumer_whose_last_messages_died_with_their_leases_gets_the_next_ones() -> None:
    rig = Rig(Limits(unacked_per_subscription=2), QueueSettings(max_attempts=1, lease_ms=10))
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    (first,) = publish(rig, connection, 4)
    assert first.spans == ((0, 1, 3),)
    rig.pass_time(11 * MS)
    rig.broker.tick()
    (second,) = rig.take_events(e.Delivered)
    assert second.spans == ((0, 3, 5),)


def dispatch_all(rig: Rig) -> list[e.Event]:
    """Hand out and remove all that can be, also what has to be read first; what came of it."""
    rig.broker.deliveries.dispatch()
    events = rig.take()[0]
    while rig.loads:
        rig.load_one()
        rig.broker.deliveries.dispatch()
        events += rig.take()[0]
    return events


def reject_first(rig: Rig, connection: int, queue: str) -> e.DeadLettered:
    """Take the first message of a queue, reject it, and tell what became of it."""
    rig.broker.subscribe(Subscribing(connection, 1, queue, None, 1, PLENTY[1]))
    dispatch_all(rig)
    number = rig.state.topology.next_subscription - 1
    rig.broker.deliveries.nack(connection, number, ((1, 2),), 0, delay_ms=None, reason="", reject=True)
    (dead,) = rig.take_events(e.DeadLettered)
    return dead


def test_a_dead_letter_queue_with_one_of_its_own_passes_its_dead_letters_on() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.queues.declare(connection, 1, "orders", {"dead_letter_queue": "again"})
    rig.broker.queues.declare(connection, 2, "again", {"dead_letter_queue": "final"})
    rig.broker.publishing.publish(Publish(connection, 3, "orders", 0, batch_of([b"x"])))
    assert reject_first(rig, connection, "orders").dead_queue == rig.broker.queues.require("again").id
    assert reject_first(rig, connection, "again").dead_queue == rig.broker.queues.require("final").id
    assert reject_first(rig, connection, "final").dead_queue == 0


def test_what_was_published_to_a_dead_letter_queue_has_dead_letters_of_its_own() -> None:
    """Two messages that fail together go two ways: a dead letter ends there, and work goes where that of any goes."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.queues.declare(connection, 1, "orders", {"dead_letter_queue": "mixed"})
    rig.broker.queues.declare(connection, 2, "mixed", {"ttl_ms": 5})
    rig.broker.publishing.publish(Publish(connection, 3, "orders", 0, batch_of([b"dead"])))
    reject_first(rig, connection, "orders")
    for body in (b"work", b"more"):
        rig.broker.publishing.publish(Publish(connection, 4, "mixed", 0, batch_of([body])))
    rig.broker.subscribe(Subscribing(connection, 5, "mixed", None, 2, PLENTY[1]))
    dispatch_all(rig)
    number = rig.state.topology.next_subscription - 1
    rig.broker.deliveries.nack(connection, number, ((1, 3),), 0, delay_ms=None, reason="", reject=True)
    dead, work = rig.take_events(e.DeadLettered)
    assert (dead.spans, dead.dead_queue) == (((0, 1, 2),), 0)
    assert (work.spans, work.dead_queue) == (((0, 2, 3),), rig.broker.queues.require("mixed.dlq").id)
    assert reject_first(rig, connection, "mixed.dlq").dead_queue == 0
    rig.broker.publishing.publish(Publish(connection, 6, "mixed.dlq", 0, batch_of([b"lost"])))
    assert reject_first(rig, connection, "mixed.dlq").dead_queue == 0


def test_a_circle_that_dead_letters_do_not_go_round_is_none() -> None:
    """What overflows goes to the next queue, as it would end there."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    for name, following in (("one", "two"), ("two", ""), ("two.dlq", "one")):
        wanted = {"overflow": "dead-letter", "max_length": 1, "dead_letter_queue": following}
        rig.broker.queues.declare(connection, 1, name, wanted)
    for body in (b"1", b"2", b"3"):
        rig.broker.publishing.publish(Publish(connection, 2, "one", 0, batch_of([body])))
    events = [*dispatch_all(rig), *dispatch_all(rig)]
    gone = [event for event in events if isinstance(event, e.DeadLettered | e.Dropped)]
    one, two = (rig.broker.queues.require(name).id for name in ("one", "two"))
    assert [(type(event), event.queue) for event in gone] == [(e.DeadLettered, one), (e.Dropped, two)]


def test_a_full_queue_that_refuses_loses_only_the_dead_letters_of_others() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.queues.declare(connection, 1, "orders", {"dead_letter_queue": "mixed"})
    rig.broker.queues.declare(connection, 2, "mixed", {"max_length": 2})
    rig.broker.publishing.publish(Publish(connection, 3, "mixed", 0, batch_of([b"work"])))
    for body in (b"1", b"2"):
        rig.broker.publishing.publish(Publish(connection, 4, "orders", 0, batch_of([body])))
        reject_first(rig, connection, "orders")
    (dropped,) = [event for event in dispatch_all(rig) if isinstance(event, e.Dropped)]
    assert dropped.spans == ((0, 2, 3),)


def test_a_retry_delay_beyond_all_times_is_refused() -> None:
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    with pytest.raises(InvalidRequest, match="retry_delay_ms must be from 0 to 1099511627776 ms"):
        rig.broker.queues.declare(connection, 1, "q", {"retry_delay_ms": (1 << 40) + 1})
    rig.broker.queues.declare(connection, 1, "q", {"retry_delay_ms": 1 << 40})
    rig.broker.publishing.publish(Publish(connection, 3, "q", 0, batch_of([b"x"])))
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, *PLENTY))
    rig.broker.deliveries.dispatch()
    rig.broker.deliveries.nack(connection, 1, ((1, 2),), 0, delay_ms=None, reason="", reject=False)
    rig.take()
    assert rig.replayed().digests() == rig.state.digests()


class Looked(list[tuple[int, int, int, int]]):
    """What waits, and how many of them were looked at one by one."""

    looked = 0

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        for one in super().__iter__():
            self.looked += 1
            yield one


def test_what_is_not_due_is_not_looked_at() -> None:
    rig, connection, (number,) = with_consumers(1)
    publish(rig, connection, 100)
    for at in range(1, 100, 2):
        rig.pass_time(MS)
        rig.broker.deliveries.nack(connection, number, ((at, at + 1),), 0, delay_ms=1000, reason="", reject=False)
    group = rig.broker.queues.require("q").groups[DEFAULT_GROUP]
    group.waiting = waiting = Looked(group.waiting)
    rig.pass_time((1000 - 49) * MS)
    rig.broker.tick()
    (event,) = rig.take_events(e.MadeReady)
    assert event.spans == ((0, 1, 2),)
    assert len(group.waiting) == 49
    assert waiting.looked <= 2
    assert rig.replayed().digests() == rig.state.digests()


def test_retry_delays_that_all_end_at_once_end_in_slices() -> None:
    """As they do when the broker was away for longer than they last."""
    rig, connection, (number,) = with_consumers(1)
    count = 2 * MADE_READY_MAX + 10
    publish(rig, connection, count)
    for at in range(1, count + 1):
        rig.broker.deliveries.nack(connection, number, ((at, at + 1),), 0, delay_ms=at, reason="", reject=False)
    rig.take()
    rig.pass_time(2 * count * MS)
    rig.begin(rig.replayed())
    rig.take()
    slices = []
    while (due_us := rig.broker.next_due_us()) is not None and due_us <= rig.now_us:
        rig.broker.tick()
        slices += [len(event.spans) for event in rig.take_events(e.MadeReady)]
    assert slices == [MADE_READY_MAX, MADE_READY_MAX, 10]
    assert rig.broker.queues.require("q").ready == count
    assert rig.replayed().digests() == rig.state.digests()


def test_a_message_does_not_come_again_before_it_came_first() -> None:
    """Its first delivery waits for a subscription that is not yet durable; one that was there before waits with it."""
    rig = Rig()
    connection = rig.broker.connect("c", "here", "binary", 9)
    rig.broker.subscribe(Subscribing(connection, 1, "q", None, 0, 0))
    rig.broker.publishing.publish(Publish(connection, 2, "q", 0, batch_of([b"x"])))
    rig.broker.subscribe(Subscribing(connection, 3, "q", None, 1, 100))
    early, late = [event.subscription for event in rig.take_events(e.Subscribed)]
    rig.broker.deliveries.dispatch()
    (first,) = [effect for effect in rig.effects() if isinstance(effect, f.Delivery)]
    assert first.subscription == late
    rig.broker.unsubscribe(connection, 4, late)
    rig.broker.deliveries.credit(connection, early, 1, 100, 0, wait_ms=-1)
    rig.broker.deliveries.dispatch()
    (again,) = [effect for effect in rig.effects() if isinstance(effect, f.Delivery)]
    assert again.subscription == early
    assert again.redelivered
    assert again.after >= first.after

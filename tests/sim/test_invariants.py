"""The watch, its rules and the ledger find what they are there for, and nothing where all is well."""

from collections import Counter
from typing import Any

import msgspec
import pytest

from tests.checker import Copy, Name, Violation
from tests.sim.invariants import Watch, compare
from tests.sim.ledger import Ledger
from tests.sim.rules import LEASE_ENDED, overdue
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import Backoff, Mode, Overflow, QueueSettings
from vibemq.projections.projector import Projector
from vibemq.protocol import messages as m
from vibemq.server import effects as f

SPANS = ((0, 1, 3),)
MS = 1000


class Story:
    """Events that happen to a state, a watch and a ledger."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - of queue `q`, number 1
        self.state, self.ledger, self.watch = Projector(), Ledger(), Watch(Counter())
        self.writers = 0
        self.now_us = 0
        self.happens(e.ClientConnected(1, "", "", ""))
        self.declare(1, "q", **{"lease_ms": 40, "dead_letter_queue": "dead", **settings})
        self.declare(2, "dead", max_attempts=0)

    def declare(self, number: int, name: str, **settings: Any) -> None:  # noqa: ANN401 - of any kind
        self.happens(e.QueueDeclared(number, name, QueueSettings(**settings), 0))

    def happens(
        self, event: e.Event, cause: m.Command | None = None, payload: bytes = b"", *, time_us: int | None = None
    ) -> None:
        time_us = self.now_us if time_us is None else time_us
        self.state.apply(self.state.next_offset, time_us, event)
        self.watch.happened(event, time_us, self.now_us, payload, cause)
        self.watch.settled(self.state)
        self.ledger.note(event)

    def publish(
        self, count: int, *, sequence: int | None = None, lane: int = 0, stored: int | None = None, **given: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        """A batch of `count` messages, each of ten bytes, of which `stored` are stored."""
        self.writers += 1
        bodies = [b"%d/%d/" % (self.writers, number) for number in range(10, 10 + count)]
        batch = Batch(b"".join(pack([body * (10 // len(body)) for body in bodies], **given)))
        stored = count if stored is None else stored
        payload = b"".join(batch.cut(0, stored)) if stored else b""
        size = Batch(payload).record_bytes if stored else 0
        first = self.state.queues[1].next.get(lane, 1) if sequence is None else sequence
        event = e.Published(1, lane, first, stored, size, 0, 0, 1, 0, count - stored)
        self.happens(event, m.Publish(1, "q", 0, batch), payload)

    def consumer(self, number: int = 1, group: int = 0, *, exclusive: bool = False) -> None:
        ask = m.Subscribe(request=1, queue="q", exclusive=exclusive)
        self.happens(e.Subscribed(number, 1, group, 1), ask)

    def group(self, number: int, sequence: int, start: Any = "tail", at: int = 0) -> None:  # noqa: ANN401 - a word
        event = e.GroupCreated(1, number, f"g{number}", sequence, ephemeral=False, connection=1)
        self.happens(event, m.Subscribe(request=1, queue="q", start=start, at=at))

    def size(self, spans: e.Spans, group: int = 0) -> int:
        queue = self.watch.book.queues[1]
        del group
        return sum(
            queue.entry((lane, number)).message.size for lane, start, end in spans for number in range(start, end)
        )

    def deliver(self, *spans: e.Span, to: int = 1, group: int = 0) -> None:
        lease_us = self.watch.book.queues[1].settings.lease_ms * MS
        self.happens(e.Delivered(1, group, to, spans, self.size(spans), self.now_us + lease_us))

    def ack(self, *spans: e.Span, by: int = 1, group: int = 0) -> None:
        self.happens(e.Acked(1, group, by, spans, self.size(spans)), m.Ack(subscription=by, deliveries=((1, 2),)))

    def release(
        self, *spans: e.Span, reason: e.ReleaseReason = e.ReleaseReason.NACKED, delay_us: int = 0, error: str = "no"
    ) -> None:
        cause = m.Nack(subscription=1, deliveries=((1, 2),)) if reason is e.ReleaseReason.NACKED else None
        until_us = self.now_us + delay_us if delay_us else 0
        event = e.Released(1, 0, 1, spans, self.size(spans), reason, True, until_us, error)
        self.happens(event, cause)

    def drop(self, *spans: e.Span, reason: e.DeadReason = e.DeadReason.OVERFLOW) -> None:
        self.happens(e.Dropped(1, 0, spans, self.size(spans), reason))

    def die(self, *spans: e.Span, reason: e.DeadReason, attempts: int, held: bool = True, **other: Any) -> None:  # noqa: ANN401
        queue = self.watch.book.queues[1]
        ids = [queue.entry((lane, number)).message.id for lane, start, end in spans for number in range(start, end)]
        refs = tuple((int(one.split("-")[0]), int(one.split("-")[1]), 1) for one in ids)
        event = e.DeadLettered(
            1, 0, 1 if held else 0, spans, self.size(spans), reason, attempts, "", 2, self.state.queues[2].next[0], refs
        )
        reject = reason is e.DeadReason.REJECTED
        cause = m.Nack(subscription=1, deliveries=((1, 2),), reject=reject) if held else None
        self.happens(msgspec.structs.replace(event, **other), cause)


def held(**settings: Any) -> Story:  # noqa: ANN401 - of the queue
    """Three messages, of which a consumer holds two."""
    story = Story(**settings)
    story.publish(3)
    story.consumer()
    story.deliver(*SPANS)
    return story


# --- time


def test_a_lease_may_end_in_time_and_neither_before_nor_after() -> None:
    expired = e.ReleaseReason.LEASE_EXPIRED
    story = held()
    story.now_us = 40 * MS
    story.release(*SPANS, reason=expired, error=LEASE_ENDED)
    story = held()
    story.now_us = 30 * MS
    with pytest.raises(Violation, match="10000 us too early"):
        story.release(*SPANS, reason=expired, error=LEASE_ENDED)
    story = held()
    story.now_us = 40 * MS
    story.watch.ticked(40 * MS)
    with pytest.raises(Violation, match="leases go on past their ends: message 1"):
        story.watch.ticked(50 * MS)
    story.ack(*SPANS)
    story.watch.ticked(70 * MS)


def test_the_brokers_own_clock_is_not_asked_when_a_lease_ends() -> None:
    story = held()
    event = e.Released(1, 0, 1, SPANS, story.size(SPANS), e.ReleaseReason.LEASE_EXPIRED, True, 0, LEASE_ENDED)
    with pytest.raises(Violation, match="40000 us too early"):
        story.happens(event, time_us=1 << 50)


def test_a_lease_that_was_extended_has_a_new_end() -> None:
    story = held()
    story.now_us = 30 * MS
    story.happens(e.LeaseExtended(1, 0, 1, SPANS, 90 * MS))
    story.watch.ticked(80 * MS)
    story.now_us = 80 * MS
    with pytest.raises(Violation, match="too early"):
        story.release(*SPANS, reason=e.ReleaseReason.LEASE_EXPIRED, error=LEASE_ENDED)


def test_a_lease_is_as_long_as_the_queue_has_it() -> None:
    story = held()
    with pytest.raises(Violation, match="a lease of 30000 us, where the queue's is 40000"):
        story.happens(e.Delivered(1, 0, 1, ((0, 3, 4),), story.size(((0, 3, 4),)), 30 * MS))


def test_a_retry_delay_ends_in_time() -> None:
    for early, late in ((10, 0), (0, 20)):
        story = held(retry_delay_ms=15)
        story.release(*SPANS, delay_us=15 * MS)
        story.now_us = 10 * MS
        if early:
            with pytest.raises(Violation, match=r"before 15000|too early"):
                story.happens(e.MadeReady(1, 0, SPANS))
        else:
            with pytest.raises(Violation, match="delays go on past their ends"):
                story.watch.ticked(late * MS)
        story = held(retry_delay_ms=15)
        story.release(*SPANS, delay_us=15 * MS)
        story.now_us = 15 * MS
        story.happens(e.MadeReady(1, 0, SPANS))
        story.watch.ticked(20 * MS)


def test_time_does_not_go_back() -> None:
    story = held()
    story.now_us = 11
    story.happens(e.BrokerStopped(""), time_us=10)
    with pytest.raises(Violation, match="time went back by 1 us"):
        story.happens(e.BrokerStopped(""), time_us=9)


# --- what is where


def test_every_message_is_somewhere() -> None:
    story = held()
    story.ack((0, 1, 2))
    story.ledger.check(story.state)
    compare(story.watch.book, story.state)
    group = story.state.queues[1].groups[0]
    group.unacked -= 1
    with pytest.raises(Violation, match=r"\(1, 0, 0\) messages are ready, held and waiting, not \(1, 1, 0\)"):
        compare(story.watch.book, story.state)
    with pytest.raises(Violation, match="got 3 messages, 1 have left it, and it holds 1"):
        story.ledger.check(story.state)


def test_the_same_counts_of_other_messages_are_not_the_same() -> None:
    story = held()
    lane = story.state.queues[1].groups[0].lanes[0]
    lane.cursor = 4
    lane.returned.add(1, 2)
    with pytest.raises(Violation, match="does not have what it should"):
        compare(story.watch.book, story.state)


def test_a_message_is_settled_once() -> None:
    story = held()
    story.ack(*SPANS)
    assert story.watch.book.acked == {Copy(Name("1", 10), "1"), Copy(Name("1", 11), "1")}
    event = e.Acked(1, 0, 1, SPANS, story.size(SPANS))
    with pytest.raises(Violation, match="is not held by subscription 1"):
        story.watch.happened(event, 0, 0, cause=m.Ack(subscription=1, deliveries=((1, 2),)))


def test_a_queue_is_deleted_with_all_that_is_in_it() -> None:
    story = held()
    story.happens(e.QueuePurged(1, 1, 10, 1, SPANS), m.Purge(request=1, queue="q"))
    story.ledger.check(story.state)
    story.release(*SPANS)
    story.happens(e.Unsubscribed(1, 1, 0))
    for wrong, cause in ((3, m.Delete(request=1, queue="q")), (2, m.Delete(request=1, queue="other")), (2, None)):
        with pytest.raises(Violation, match=r"of 2 messages|for "):
            story.watch.happened(e.QueueDeleted(1, wrong, 20, 1), 0, 0, cause=cause)
    story.happens(e.QueueDeleted(1, 2, 20, 1), m.Delete(request=1, queue="q"))
    assert list(story.watch.book.ended.values()) == ["purged", *["deleted with the queue"] * 2]


def test_what_a_crash_takes_back_is_forgotten() -> None:
    story = held()
    known = len(story.watch.book.told)
    state = Projector()
    for offset, told in enumerate(story.watch.book.told[: known - 1]):
        state.apply(offset, told.time_us, told.event)
    story.watch.restarted(known - 1, state)
    assert story.watch.book.queues[1].groups[0].held == {}
    with pytest.raises(Violation, match="messages are ready, held and waiting"):
        story.watch.restarted(known - 1, story.state)


# --- who gets what


def test_the_oldest_go_first() -> None:
    story = held()
    story.publish(2)
    with pytest.raises(Violation, match="message 4 of lane 0 is handed out before"):
        story.deliver((0, 4, 5))


def test_the_highest_priority_goes_first() -> None:
    story = Story(mode=Mode.PRIORITY)
    story.publish(1, lane=4)
    story.publish(1, lane=9, priority=9)
    story.consumer()
    with pytest.raises(Violation, match="priority 4 is handed out before"):
        story.deliver((4, 1, 2))
    story = Story(mode=Mode.PRIORITY, priority_guard=1)
    story.publish(1, lane=4)
    story.publish(3, lane=9, priority=9)
    story.consumer()
    story.deliver((9, 1, 2))
    with pytest.raises(Violation, match="2 messages in a row went before those of priority 4"):
        story.deliver((9, 2, 3))
    with pytest.raises(Violation, match="messages of priority 4 in lane 9"):
        story.publish(1, lane=9)


def test_of_a_key_one_is_out_at_a_time_and_in_order() -> None:
    story = Story(order_by_key=True)
    story.publish(4, keys=[7, 7, 8, 0])
    story.consumer()
    with pytest.raises(Violation, match=r"message \(0, 2\) is handed out before 1"):
        story.deliver((0, 2, 3))
    story = Story(order_by_key=True)
    story.publish(4, keys=[7, 7, 8, 0])
    story.consumer()
    story.deliver((0, 1, 2), (0, 3, 5))
    with pytest.raises(Violation, match="its key is out"):
        story.deliver((0, 2, 3))


def test_what_has_expired_goes_to_nobody_and_holds_up_nobody() -> None:
    story = Story(ttl_ms=10)
    story.publish(1)
    story.now_us = 5 * MS
    story.publish(1)
    story.consumer()
    story.now_us = 10 * MS
    with pytest.raises(Violation, match="message 1 of lane 0 is handed out"):
        story.deliver((0, 1, 2))
    with pytest.raises(Violation, match=r"message \(0, 2\) of queue q leaves as expired"):
        story.die((0, 2, 3), reason=e.DeadReason.EXPIRED, attempts=0, held=False)


def test_a_dead_letter_stays_whatever_its_own_time_was() -> None:
    story = held()
    story.publish(1, ttl_ms=5)
    story.now_us = 6 * MS
    story.die((0, 4, 5), reason=e.DeadReason.EXPIRED, attempts=0, held=False)
    story.now_us = 60 * MS
    with pytest.raises(Violation, match=r"message \(0, 1\) of queue dead leaves as expired"):
        story.happens(e.Dropped(2, 0, ((0, 1, 2),), story.size(((0, 4, 5),)), e.DeadReason.EXPIRED))


def test_one_consumer_is_served_where_only_one_may() -> None:
    story = Story(single_active=True)
    story.publish(1)
    story.consumer()
    story.consumer(2)
    with pytest.raises(Violation, match="a single active consumer, which is 1"):
        story.deliver((0, 1, 2), to=2)
    story = Story()
    story.consumer(exclusive=True)
    with pytest.raises(Violation, match="are exclusive"):
        story.consumer(2)


def test_no_more_are_handed_out_than_the_rate_allows() -> None:
    story = Story(deliver_rate=20)
    story.publish(6)
    story.consumer()
    story.deliver((0, 1, 3))
    with pytest.raises(Violation, match=r"1 messages are handed out of queue q, where 0.0 may be"):
        story.deliver((0, 3, 4))
    story = Story(deliver_rate=20)
    story.publish(6)
    story.consumer()
    story.deliver((0, 1, 3))
    story.now_us = 50 * MS
    story.deliver((0, 3, 4))


def test_no_more_are_published_than_the_rate_allows_but_for_one_batch() -> None:
    story = Story(publish_rate=20)
    story.publish(5)
    with pytest.raises(Violation, match="queue 1 publishes more than 20 messages a second"):
        story.publish(1)
    story = Story(publish_rate=20)
    story.publish(5)
    story.now_us = 200 * MS
    story.publish(1)
    story = Story()
    story.watch.rules.connection_rate = 20
    story.publish(5)
    with pytest.raises(Violation, match="connection 1 publishes more than 20"):
        story.publish(1)


# --- what failed


def test_a_delay_grows_as_the_settings_say() -> None:
    story = held(retry_delay_ms=5, retry_backoff=Backoff.EXPONENTIAL, retry_delay_max_ms=8, max_attempts=0)
    story.release((0, 1, 2), delay_us=5 * MS)
    story.now_us = 5 * MS
    story.happens(e.MadeReady(1, 0, ((0, 1, 2),)))
    story.deliver((0, 1, 2))
    with pytest.raises(Violation, match="waits for 10000 us, not 8000 to 8000"):
        story.release((0, 1, 2), delay_us=10 * MS)


def test_attempts_are_counted_and_end() -> None:
    story = held(max_attempts=1)
    with pytest.raises(Violation, match="though 1 attempts at message"):
        story.release((0, 1, 2))
    story = held(max_attempts=2)
    with pytest.raises(Violation, match="after 1 failed attempts"):
        story.die((0, 1, 2), reason=e.DeadReason.MAX_ATTEMPTS, attempts=1)
    story = held(max_attempts=2)
    with pytest.raises(Violation, match="but 1 attempts failed"):
        story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=2)


def test_a_dead_letter_goes_where_the_settings_say() -> None:
    story = held(dead_letter_queue="")
    with pytest.raises(Violation, match=r"goes to 'dead', not to 'q.dlq'"):
        story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=1)
    story = held()
    with pytest.raises(Violation, match="refers to other messages than it moves"):
        story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=1, refs=((3, 1, 1),))


def test_a_redriven_message_keeps_its_attempts() -> None:
    story = held()
    story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=1)
    event = e.Redriven(2, ((0, 1, 2),), story.size(((0, 1, 2),)), 0, 1, 0, 4, ((3, 0, 1),), 1)
    with pytest.raises(Violation, match="but 1 attempts failed"):
        story.happens(event)
    story = held()
    story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=1)
    story.happens(msgspec.structs.replace(event, attempts=1))
    group = story.watch.book.queues[1].groups[0]
    assert (group.attempts((0, 4)), group.failed[0, 4]) == (1, 0)


# --- room


def test_only_what_is_too_much_is_dropped_and_the_oldest_of_it() -> None:
    story = Story(overflow=Overflow.DROP_OLDEST, max_length=3)
    story.publish(4)
    with pytest.raises(Violation, match=r"drops \[\(0, 2\)\], where \[\(0, 1\)\] are too much"):
        story.drop((0, 2, 3))
    story = Story(overflow=Overflow.DROP_OLDEST, max_length=3)
    story.publish(4)
    with pytest.raises(Violation, match="are too much"):
        story.drop((0, 1, 3))
    story = Story(overflow=Overflow.DROP_OLDEST, max_length=3)
    story.publish(4)
    story.drop((0, 1, 2))


def test_what_has_no_room_is_not_stored_and_what_has_is() -> None:
    story = Story(overflow=Overflow.DROP_NEWEST, max_length=3)
    story.publish(5, stored=3)
    with pytest.raises(Violation, match="and no room"):
        story.publish(1)
    story = Story(overflow=Overflow.DROP_NEWEST, max_length=3)
    with pytest.raises(Violation, match="drops messages for which there is room"):
        story.publish(5, stored=2)
    story = Story(max_length=3)
    assert not story.watch.rules.may_be_refused(m.Publish(1, "q", 0, Batch(b"".join(pack([b"x"] * 3)))))
    assert story.watch.rules.may_be_refused(m.Publish(1, "q", 0, Batch(b"".join(pack([b"x"] * 4)))))


def test_a_topic_goes_to_all_that_are_bound_and_to_no_other() -> None:
    batch = Batch(b"".join(pack([b"1/1/"])))
    ask = m.Publish(1, "a.b", 0, batch, to_topic=True)
    event = e.Routed("a.b", ((1, 0, 1),), 1, 4, 0, 0, 1)
    story = Story()
    with pytest.raises(Violation, match="goes to more than"):
        story.happens(event, ask, bytes(batch.data))
    story = Story()
    story.happens(e.Bound(1, "a.*", 1), m.Bind(request=1, queue="q", pattern="a.*"))
    story.happens(e.Bound(2, "#", 1), m.Bind(request=1, queue="dead", pattern="#"))
    with pytest.raises(Violation, match="leaves out queue dead"):
        story.happens(event, ask, bytes(batch.data))


def test_a_writers_messages_stay_in_order() -> None:
    story = Story()
    story.publish(2)
    story.writers -= 1
    story.watch.rules.latest.clear()
    with pytest.raises(Violation, match="is stored twice"):
        story.publish(1)
    story = Story()
    story.publish(2)
    late = b"1/9/"
    batch = Batch(b"".join(pack([late])))
    event, ask = e.Published(1, 0, 3, 1, 4, 0, 0, 1), m.Publish(1, "q", 0, batch)
    with pytest.raises(Violation, match="behind message 11 of its writer"):
        story.happens(event, ask, bytes(batch.data))
    story = Story()
    story.publish(2)
    story.watch.rules.refused(ask)
    story.happens(event, ask, bytes(batch.data))


# --- groups


def test_a_group_begins_where_it_was_asked_to() -> None:
    for start, at, right in (("tail", 0, 4), ("head", 0, 1), ("sequence", 2, 2), ("sequence", 9, 4)):
        story = Story(mode=Mode.FAN_OUT)
        story.publish(3)
        story.group(1, right, start, at)
        with pytest.raises(Violation, match=f"put to message {right + 1}, and not to {right}"):
            story.group(2, right + 1, start, at)


def test_a_group_that_is_sent_back_has_everything_again() -> None:
    story = Story(mode=Mode.FAN_OUT)
    story.publish(3)
    story.group(1, 1, "head")
    story.consumer(group=1)
    story.deliver((0, 1, 3), group=1)
    story.ack((0, 1, 2), group=1)
    story.happens(e.GroupSought(1, 1, 1, 1), m.Seek(request=1, queue="q", group="g1", start="head"))
    compare(story.watch.book, story.state)
    story.ledger.check(story.state)
    assert story.watch.book.queues[1].groups[1].ready == {0: [1, 2, 3]}
    assert list(story.watch.book.ended.values()).count("sought past") == 2
    lane = story.state.queues[1].groups[1].lanes[0]
    lane.cursor = 2
    with pytest.raises(Violation, match="ready, held and waiting"):
        compare(story.watch.book, story.state)


def test_a_group_is_deleted_when_it_was_idle_for_long_enough() -> None:
    story = Story(mode=Mode.FAN_OUT, group_idle_ms=10)
    story.group(1, 1)
    overdue(story.watch.book, 9 * MS)
    with pytest.raises(Violation, match="is idle since 0"):
        overdue(story.watch.book, 10 * MS)
    story.now_us = 9 * MS
    with pytest.raises(Violation, match="is deleted 9000 us after"):
        story.happens(e.GroupDeleted(1, 1, 0))


def test_what_is_shown_is_what_is_there() -> None:
    story = held()
    ask = m.Peek(request=1, queue="q")
    story.watch.peeked(f.Peeked(0, 1, 1, 1, [(0, 3, 4, 0, False)]), ask)
    with pytest.raises(Violation, match="is shown"):
        story.watch.peeked(f.Peeked(0, 1, 1, 1, [(0, 2, 4, 0, False)]), ask)
    story.die((0, 1, 2), reason=e.DeadReason.REJECTED, attempts=1)
    why = {"queue": "dead", "dead": {"reason": "rejected", "attempts": 1, "error": ""}}
    look = m.DeadLetters(request=1, queue="dead")
    story.watch.peeked(f.Peeked(0, 1, 1, 2, [(0, 1, 2, 0, False)], [why]), look)
    with pytest.raises(Violation, match="is told"):
        story.watch.peeked(f.Peeked(0, 1, 1, 2, [(0, 1, 2, 0, False)], [why | {"queue": "q"}]), look)

"""The watch and the ledger find what they are there for, and nothing where all is well."""

from collections import Counter

import pytest

from tests.checker import Violation
from tests.sim.invariants import LEASE_ENDED, Ledger, Watch
from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections.projector import Projector

SETTINGS = QueueSettings(lease_ms=40)
SPANS = ((0, 1, 3),)
BEGINNING = [
    e.QueueDeclared(1, "q", SETTINGS, 0),
    e.Published(1, 0, 1, 3, 30, 0, 0, 1),
    e.Subscribed(1, 1, 0, 1),
    e.Delivered(1, 0, 1, SPANS, 20, 40_000),
]


class Story:
    """Events that happen to a state, a watch and a ledger."""

    def __init__(self) -> None:
        self.state, self.ledger = Projector(), Ledger()
        self.wrecked: list[str] = []
        self.watch = Watch(self.wrecked.append, Counter())
        for event in BEGINNING:
            self.happens(event, 0)

    def happens(self, event: e.Event, now_us: int, time_us: int | None = None) -> None:
        time_us = now_us if time_us is None else time_us
        self.state.apply(self.state.next_offset, time_us, event)
        self.ledger.note(event)
        self.watch.happened(event, time_us, now_us, self.state)


def released(reason: e.ReleaseReason, error: str, not_before_us: int = 0) -> e.Released:
    return e.Released(1, 0, 1, SPANS, 20, reason, True, not_before_us, error)


def test_a_lease_may_end_in_time_and_neither_before_nor_after() -> None:
    ended = released(e.ReleaseReason.LEASE_EXPIRED, LEASE_ENDED)
    Story().happens(ended, 40_000)
    with pytest.raises(Violation, match="10000 us too early"):
        Story().happens(ended, 30_000, time_us=1 << 50)  # whatever the broker's clock says
    story = Story()
    story.watch.ticked(40_000, story.state)
    with pytest.raises(Violation, match="leases go on past their ends: message 1"):
        story.watch.ticked(50_000, story.state)
    story.happens(e.Acked(1, 0, 1, SPANS, 20), 60_000)
    story.watch.ticked(70_000, story.state)


def test_a_lease_that_was_extended_has_a_new_end() -> None:
    story = Story()
    story.happens(e.LeaseExtended(1, 0, 1, SPANS, 90_000), 30_000)
    story.watch.ticked(80_000, story.state)
    with pytest.raises(Violation, match="too early"):
        story.happens(released(e.ReleaseReason.LEASE_EXPIRED, LEASE_ENDED), 80_000)


def test_a_lease_is_as_long_as_the_queue_has_it() -> None:
    story = Story()
    with pytest.raises(Violation, match="a lease of 30000 us, where the queue's is 40000"):
        story.happens(e.Delivered(1, 0, 1, ((0, 3, 4),), 10, 40_000), 10_000)


def test_a_retry_delay_ends_in_time() -> None:
    story = Story()
    story.happens(released(e.ReleaseReason.NACKED, "no", 15_000), 5_000)
    ready = e.MadeReady(1, 0, SPANS)
    with pytest.raises(Violation, match="5000 us too early"):
        story.happens(ready, 10_000)
    story = Story()
    story.happens(released(e.ReleaseReason.NACKED, "no", 15_000), 5_000)
    with pytest.raises(Violation, match="delays go on past their ends"):
        story.watch.ticked(20_000, story.state)
    story.happens(ready, 15_000)
    story.watch.ticked(20_000, story.state)


def test_time_does_not_go_back() -> None:
    story = Story()
    story.happens(e.BrokerStopped(""), 10)
    with pytest.raises(Violation, match="time went back by 1 us"):
        story.happens(e.BrokerStopped(""), 11, time_us=9)


def test_a_queue_that_is_thrown_away_is_told_by_name() -> None:
    story = Story()
    story.happens(e.QueuePurged(1, 1, 10, 1, SPANS), 10)
    story.ledger.check(story.state)
    story.happens(e.QueueDeleted(1, 2, 20, 1), 20)
    assert story.wrecked == ["q", "q"]
    story = Story()
    with pytest.raises(Violation, match="does not add up"):
        story.happens(e.QueueDeleted(1, 2, 20, 1), 20)


def test_every_message_is_somewhere() -> None:
    story = Story()
    story.happens(e.Acked(1, 0, 1, ((0, 1, 2),), 10), 10)
    story.ledger.check(story.state)
    queue = story.state.queues[1]
    queue.groups[0].unacked -= 1
    with pytest.raises(Violation, match="1 messages, but 1 ready, 1 held"):
        story.ledger.check(story.state)
    queue.groups[0].unacked += 1
    queue.next[0] -= 1  # now the queue agrees with itself: it has forgotten a message altogether
    with pytest.raises(Violation, match="got 3 messages, 1 have left it, and it holds 1"):
        story.ledger.check(story.state)

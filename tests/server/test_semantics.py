"""Edge cases of docs/semantics.md, where the whole broker would only be in the way."""

import pytest

from tests.server.rig import Rig, batch_of
from vibemq import events as e
from vibemq.errors import QueueFull
from vibemq.server.broker import Subscribing
from vibemq.server.publishing import Publish


class Desk:
    """One client of a broker without a runtime, that numbers what it asks."""

    def __init__(self, rig: Rig | None = None) -> None:
        """Connect."""
        self.rig = rig or Rig()
        self.broker = self.rig.broker
        self.connection = self.broker.connect("c", "here", "binary", 9)
        self._requests = self._sequences = 0

    @property
    def request(self) -> int:
        """The number of the next request."""
        self._requests += 1
        return self._requests

    def declare(self, name: str, **settings: object) -> None:
        """Create a queue."""
        self.broker.queues.declare(self.connection, self.request, name, settings)

    def publish(self, name: str, *bodies: bytes, to_topic: bool = False) -> None:
        """One batch, and the end of the turn."""
        first = self._sequences + 1
        self._sequences += len(bodies)
        batch = batch_of(bodies)
        self.broker.publishing.publish(Publish(self.connection, self.request, name, first, batch, 0, to_topic))
        self.broker.end_turn()

    def consume(self, name: str, messages: int, group: str | None = None, start: str = "tail") -> int:
        """Take part, with credit for so many; the subscription."""
        self.broker.subscribe(Subscribing(self.connection, self.request, name, group, messages, 1 << 20, start))
        self.broker.end_turn()
        return self.rig.state.topology.next_subscription - 1

    def wait_ms(self, passed_ms: int) -> None:
        """Let time pass, and the broker do what is due by then."""
        self.rig.pass_time(passed_ms * 1000)
        self.broker.tick()

    def lengths(self, name: str) -> dict[str, int]:
        """How many messages each group has before it."""
        queue = self.broker.queues.require(name)
        return {group.name: group.length(queue.next) for group in queue.groups.values()}


def test_a_group_loses_nothing_for_the_bytes_that_another_is_behind() -> None:
    desk = Desk()
    desk.declare("q", mode="fan-out", overflow="drop-oldest", max_bytes=30)
    quick = desk.consume("q", 2, "quick")
    desk.consume("q", 3, "slow")
    desk.publish("q", b"0123456789", b"0123456789", b"0123456789")
    desk.broker.deliveries.ack(desk.connection, quick, ((1, 3),), desk.request)
    assert desk.lengths("q") == {"quick": 1, "slow": 3}  # all three are held, and cannot be dropped
    desk.publish("q", b"0123456789")
    assert desk.lengths("q") == {"quick": 2, "slow": 3}
    desk.publish("q", b"0123456789")
    assert desk.lengths("q") == {"quick": 3, "slow": 3}


def test_what_one_queue_of_a_topic_refuses_does_not_count_for_the_rate_of_another() -> None:
    desk = Desk()
    for name, settings in (("slow", {"publish_rate": 1}), ("small", {"max_length": 1})):
        desk.declare(name, **settings)
        desk.broker.queues.bind(desk.connection, desk.request, name, "news")
    desk.publish("small", b"full")
    with pytest.raises(QueueFull, match="small"):
        desk.publish("news", b"refused", to_topic=True)
    desk.publish("slow", b"the first of this second")
    assert desk.lengths("slow") == {"": 1}


def test_a_lease_that_is_made_shorter_is_not_shorter_for_a_consumer_that_counts_on_the_longer_one() -> None:
    """It extends what it has not handed on as seldom as it was told, and would lose messages that nobody has seen."""
    desk = Desk()
    desk.declare("q", lease_ms=90_000)
    old = desk.consume("q", 9)
    desk.broker.queues.change(desk.connection, desk.request, "q", {"lease_ms": 10})
    desk.publish("q", b"1")
    desk.wait_ms(30_000)
    desk.broker.deliveries.extend(desk.connection, old, ((1, 2),), 0, desk.request)
    desk.wait_ms(89_999)
    assert desk.rig.take_events(e.Released) == []
    desk.wait_ms(1)
    assert [event.reason for event in desk.rig.take_events(e.Released)] == [e.ReleaseReason.LEASE_EXPIRED]
    desk.broker.unsubscribe(desk.connection, desk.request, old)
    desk.consume("q", 9)
    desk.rig.take()
    desk.wait_ms(10)
    assert [event.reason for event in desk.rig.take_events(e.Released)] == [e.ReleaseReason.LEASE_EXPIRED]

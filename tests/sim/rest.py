"""What must hold once all has arrived and the broker has nothing left to do: that nothing was forgotten.

The rules judge what the broker does; here stands what it must have done by then. What is too old or too much is gone,
nobody waits who could go on, and no consumer that wants messages is without those that it could have.
"""

from collections.abc import Iterable

from tests.checker import Violation
from tests.sim import leaving
from tests.sim.book import Book
from tests.sim.clients import Client
from tests.sim.consuming import Consumer
from tests.sim.contents import Group, Queue
from tests.sim.invariants import Watch
from tests.sim.leaving import expired
from tests.sim.rules import Rules
from vibemq.declaration import Mode, Overflow
from vibemq.events import DEFAULT_LANE
from vibemq.server.broker import Broker

NEVER_US = 1 << 62
LOOK_US = 1_000_000
GRAIN_US = 5_000
"""What is due within this time becomes ready together."""
KEY_BYTES = 7
"""What comes from a client that speaks JSON is packed by the broker, which adds a header for its key."""
SLICE_US = 20_000
"""What is overdue comes so often, as much as may come in that time."""


def check(watch: Watch, broker: Broker, clients: Iterable[Client], now_us: int) -> None:
    """The broker is at rest, at that time of its own."""
    book, rules = watch.book, watch.rules
    for queue in book.there():
        _check_delayed(rules, broker, queue, now_us)
        _check_idle(rules, queue, now_us)
        for group in queue.groups.values():
            _check_age(queue, group, now_us)
            _check_length(queue, group)
            _check_consumers(rules, broker, queue, group, now_us)
    if late := [one.id for one in broker.deliveries._pulling.values() if (one.drain_until_us or NEVER_US) <= now_us]:
        raise Violation(f"the pulls of {late} are over, and nobody has told their clients")
    for client in clients:
        if client.wire is not None and not client.wire.up.ended:
            for name in client.producing.blocked:
                _check_publisher(book, client, name)
            for number, consumer in client.consuming.consumers.items():
                _check_holdings(watch, number, consumer)


def _check_delayed(rules: Rules, broker: Broker, queue: Queue, now_us: int) -> None:
    """What is due is ready, or will be in a moment; what was overdue comes bit by bit, and the broker knows of it."""
    next_us = broker.delayed.next_due_us()
    for one, waits in queue.delayed.items():
        moment_us = SLICE_US if waits.due_us < rules.delayed.since_us else GRAIN_US
        if waits.due_us <= now_us - moment_us and (next_us is None or not now_us < next_us <= now_us + moment_us):
            raise Violation(f"message {one} of queue {queue.name} was due at {waits.due_us}, and still waits")


def _check_idle(rules: Rules, queue: Queue, now_us: int) -> None:
    """A queue that ends by itself has ended, but for those that have consumers, which are looked at seldom."""
    expires_us = queue.settings.expires_ms * 1000
    ends_us = max(queue.idle_since_us, rules.delayed.started_us) + max(expires_us, LOOK_US)
    if expires_us and not queue.has_consumers and ends_us <= now_us:
        raise Violation(f"queue {queue.name} has had no consumers since {queue.idle_since_us}, and is there")


def _check_age(queue: Queue, group: Group, now_us: int) -> None:
    for lane, sequences in group.ready.items():
        if sequences and expired(queue, queue.entry((lane, sequences[0])), now_us):
            raise Violation(f"message {sequences[0]} of lane {lane} of queue {queue.name} has expired, and is there")


def _check_length(queue: Queue, group: Group) -> None:
    most, most_bytes = leaving.limits(queue, group)
    if leaving.may_go(queue, group) and (group.length > most or queue.bytes_of(group) > most_bytes):
        raise Violation(
            f"queue {queue.name} has {group.length} messages, {queue.bytes_of(group)} bytes, in {group.name!r}"
        )


def _check_consumers(rules: Rules, broker: Broker, queue: Queue, group: Group, now_us: int) -> None:
    """There is nothing for those who have credit for it."""
    subscriptions = [broker.deliveries._subscriptions[number] for number in group.consumers]
    if queue.settings.single_active:
        subscriptions = subscriptions[:1]
    if queue.settings.deliver_rate or not any(one.has_credit for one in subscriptions):
        return
    left = rules.fresh(queue, group, now_us)
    if queue.settings.order_by_key:
        busy = {queue.entry(where).message.key for where in (*group.held, *group.waiting)} - {0}
        entries = [queue.entry((DEFAULT_LANE, sequence)) for sequence in left.get(DEFAULT_LANE, ())]
        if all(entry.message.key in busy for entry in entries):
            return
    if left:
        raise Violation(
            f"queue {queue.name}, group {group.name!r}: {left} are ready, and {group.consumers} get nothing"
        )


def _check_holdings(watch: Watch, number: int, consumer: Consumer) -> None:
    """A consumer has what is its own, and knows of what is not, or no longer."""
    has = {watch.sent[number][delivery - 1] for delivery in consumer.open}
    groups = [(queue, group) for queue in watch.book.there() for group in queue.groups.values()]
    queue, group = next(found for found in groups if number in found[1].consumers)
    held = {where for where, subscription in group.held.items() if subscription == number}
    if queue.settings.mode is not Mode.FAN_OUT_NO_ACK and held != {(sent.lane, sent.sequence) for sent in has}:
        raise Violation(f"subscription {number} holds {held}, and its client has {has}")


def _check_publisher(book: Book, client: Client, name: str) -> None:
    """Who waits for a queue waits for room."""
    queue = book.queue_named(name)
    waiting = client.producing.waiting_for(name)
    if queue is None or not waiting or waiting[0].to_topic or client.scene.publish_rate:
        return
    settings, batch = queue.settings, waiting[0].batch
    room = max(batch.count, settings.max_length // 10)
    length, size = queue.length + len(queue.delayed), queue.bytes + queue.delayed_bytes
    wanted = batch.record_bytes + (batch.count * KEY_BYTES if client.speaks_json else 0)
    has_room = length + room <= settings.max_length and size + wanted <= settings.max_bytes
    if not settings.publish_rate and (has_room or settings.overflow is not Overflow.BLOCK):
        raise Violation(f"client {client.producer} waits for queue {name}, which has {length} messages only")

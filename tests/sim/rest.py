"""What must hold once all has arrived and the broker has nothing left to do: that nothing was forgotten.

The rules judge what the broker does; here stands what it must have done by then. What is too old or too much is gone,
nobody waits who could go on, and no consumer that wants messages is without those that it could have.
"""

from collections.abc import Iterable

from tests.checker import Violation
from tests.sim import leaving
from tests.sim.book import Book, Group, Queue
from tests.sim.clients import Client
from tests.sim.consuming import Consumer
from tests.sim.invariants import Watch
from tests.sim.leaving import expired
from tests.sim.rules import Rules
from vibemq.declaration import Mode, Overflow
from vibemq.events import DEFAULT_LANE
from vibemq.server.broker import Broker

NEVER_US = 1 << 62


def check(watch: Watch, broker: Broker, clients: Iterable[Client], now_us: int) -> None:
    """The broker is at rest, at that time of its own."""
    book, rules = watch.book, watch.rules
    for queue in book.there():
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
    has_room = queue.length + room <= settings.max_length and queue.bytes + batch.record_bytes <= settings.max_bytes
    if not settings.publish_rate and (has_room or settings.overflow is not Overflow.BLOCK):
        raise Violation(f"client {client.producer} waits for queue {name}, which has {queue.length} messages only")

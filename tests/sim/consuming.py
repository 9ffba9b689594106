"""The part of a simulated client that consumes: it acks, fails, forgets, and is slow."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.checker import Copy, Delivery, Violation
from tests.sim.invariants import Sent
from tests.sim.mail import names_in
from tests.sim.scene import DEAD, GROUPS
from vibemq.batch import Batch
from vibemq.errors import UnknownQueue
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

CREDIT_BYTES = 100_000
CONSUMERS_MAX = 3


@dataclass
class Consumer:
    """A subscription as its client sees it: what it holds, what came last, how many more may come."""

    queue: str
    group: str = ""
    open: dict[int, Copy] = field(default_factory=dict)
    received: int = 0
    room: int = 0


class Consuming:
    """Subscriptions, and what came of them."""

    def __init__(self, client: "Client") -> None:
        """Consume from nothing."""
        self.client = client
        self.consumers: dict[int, Consumer] = {}
        self.left: set[int] = set()
        self.groups: dict[str, str] = {}
        """Queue -> the last group of its own that it had there."""

    def forget(self) -> None:
        """The connection is gone."""
        self.consumers.clear()
        self.left.clear()

    # --- what it does

    def subscribe(self) -> None:
        """Consume from a queue, in some group of it."""
        client, random = self.client, self.client.random
        if len(self.consumers) >= CONSUMERS_MAX:
            return
        queue = random.choice((*client.scene.names * 2, DEAD))
        group, start, at = self._group(queue), "tail", 0
        if client.scene.mode(queue).has_groups and group != self.groups.get(queue):
            start, at = client.place(queue)
        self.subscribe_to(
            queue, random.choice((0, 3, 50, 50)), group, start=start, at=at, exclusive=random.random() < 0.08
        )

    def _group(self, queue: str) -> str | None:
        random = self.client.random
        if not self.client.scene.mode(queue).has_groups:
            return GROUPS[0] if random.random() < 0.02 else None
        own = self.groups.get(queue)
        return random.choice((*GROUPS, None, own)) if own is not None else random.choice((*GROUPS, *GROUPS, None))

    def subscribe_to(
        self,
        queue: str,
        credit: int,
        group: str | None = None,
        *,
        start: Any = "tail",  # noqa: ANN401 - one of four words
        at: int = 0,
        exclusive: bool = False,
    ) -> None:
        """Consume from this queue."""
        client = self.client

        def subscribed(reply: m.Done) -> None:
            result = reply.result
            self.consumers[result["subscription"]] = Consumer(queue, result["group"] or "", room=credit)
            if group is None and result["group"]:
                self.groups[queue] = result["group"]
            if exclusive:
                client.features.seen("exclusive consumer")

        def failed(reply: m.Failed) -> None:
            if reply.code == UnknownQueue.code:
                client.operating.declare_all()

        request = client.ask(subscribed, failed)
        client.say(
            m.Subscribe(
                request=request,
                queue=queue,
                group=group,
                messages=credit,
                bytes=CREDIT_BYTES,
                start=start,
                at=at,
                exclusive=exclusive,
            )
        )
        client.told = f"subscribe to {queue}, group {group} from {start} {at}, with credit for {credit}"

    def some(self) -> tuple[int, Consumer] | None:
        """One of the subscriptions."""
        return self.client.random.choice(list(self.consumers.items())) if self.consumers else None

    def credit(self) -> None:
        """Ask for more, and tell what the application has seen."""
        if found := self.some():
            number, consumer = found
            random = self.client.random
            handed = random.randint(0, consumer.received + 1)
            wait_ms = random.choice((-1, -1, -1, 5))
            count, size = random.choice(((1, 50), (5, 1000), (30, CREDIT_BYTES)))
            consumer.room += count
            self.client.say(m.Credit(subscription=number, messages=count, bytes=size, handed=handed, wait_ms=wait_ms))
            self.client.told = f"grant {count} to subscription {number}"

    def some_of(self, consumer: Consumer) -> list[int]:
        """Some deliveries, rather old ones; sometimes of those that are settled already."""
        random = self.client.random
        known = sorted(consumer.open)
        if not known or random.random() < 0.05:
            known = list(range(1, consumer.received + 1))
        return known[: random.randint(1, 10)]

    def _chosen(self) -> tuple[int, list[int], set[Copy]] | None:
        """Some deliveries of a subscription, and which copies of them it still has: now it has them no more."""
        if (found := self.some()) is None or not (chosen := self.some_of(found[1])):
            return None
        opened = found[1].open
        return found[0], chosen, {opened.pop(delivery) for delivery in chosen if delivery in opened}

    def ack(self) -> None:
        """Ack some, and perhaps wait for it to be durable."""
        if found := self._chosen():
            self.settle(*found, confirm=self.client.random.random() < 0.5)

    def settle(self, number: int, chosen: list[int], copies: set[Copy], *, confirm: bool) -> None:
        """Ack these deliveries, which are these copies."""
        client = self.client

        def confirmed(_: m.Done) -> None:
            for copy in copies:
                client.history.acked_at(copy.name, client.moment, copy.of)

        client.history.asked |= copies
        request = client.ask(confirmed) if confirm else 0
        client.say(m.Ack(request=request, subscription=number, deliveries=runs_of(chosen)))
        client.told = f"ack {runs_of(chosen)} of subscription {number}{', and wait' * confirm}"

    def nack(self) -> None:
        """Fail or reject some."""
        if found := self._chosen():
            number, chosen, _ = found
            random, runs = self.client.random, runs_of(chosen)
            reject, delay_ms = random.random() < 0.3, random.choice((None, None, 0, 30))
            self.client.say(m.Nack(subscription=number, deliveries=runs, delay_ms=delay_ms, reason="no", reject=reject))
            self.client.told = f"{'reject' if reject else 'nack'} {runs} of subscription {number}"

    def extend(self) -> None:
        """Keep some for longer, or for less long."""
        if (found := self.some()) and (chosen := self.some_of(found[1])):
            lease_ms = self.client.random.choice((0, 5, 100))
            self.client.say(m.Extend(subscription=found[0], deliveries=runs_of(chosen), lease_ms=lease_ms))
            self.client.told = f"extend {runs_of(chosen)} of subscription {found[0]} to {lease_ms} ms"

    def unsubscribe(self) -> None:
        """Consume no longer from one of them."""
        if found := self.some():
            del self.consumers[found[0]]
            self.left.add(found[0])
            self.client.say(m.Unsubscribe(request=self.client.ask(), subscription=found[0]))
            self.client.told = f"unsubscribe {found[0]}"

    # --- what it is told

    def ended(self, reply: m.Ended) -> None:
        """A subscription is over."""
        self.consumers.pop(reply.subscription, None)
        self.left.add(reply.subscription)

    def leases_lost(self, reply: m.LeasesLost) -> None:
        """Some are no longer its."""
        if (consumer := self.consumers.get(reply.subscription)) is not None:
            for start, end in reply.deliveries:
                for delivery in range(start, end):
                    consumer.open.pop(delivery, None)

    def delivered(self, reply: m.Deliver, since: int) -> None:
        """Messages came, sent at `since` or later: the very ones that the log says were sent, in its order."""
        client = self.client
        consumer = self.consumers.get(reply.subscription)
        if consumer is None:
            if reply.subscription not in self.left:
                raise Violation(f"a delivery for subscription {reply.subscription}, which is not there")
            return
        if reply.delivery != consumer.received + 1:
            raise Violation(f"delivery {reply.delivery} came after delivery {consumer.received}")
        row = client.watch.sent[reply.subscription]
        for at, name in enumerate(names_in(Batch(b"".join(reply.parts)))):
            sent = row[reply.delivery + at - 1]
            identity = f"{reply.offset}-{reply.index + at}"
            came = name, identity, reply.sequence + at, reply.attempt
            if came != (sent.message.name, sent.message.id, sent.sequence, sent.attempt):
                raise Violation(f"{came} came to subscription {reply.subscription} where {sent} was sent")
            client.history.delivered.append(
                _delivery(sent, reply.subscription, since, client.moment, redelivered=reply.redelivered)
            )
            consumer.open[reply.delivery + at] = Copy(name, sent.of)
        consumer.received += at + 1
        consumer.room -= at + 1
        if consumer.room < 0:
            raise Violation(f"subscription {reply.subscription} was sent {-consumer.room} more than it has room for")
        client.saw(reply.time_us)


def _delivery(sent: Sent, subscription: int, since: int, at: int, *, redelivered: bool) -> Delivery:
    queue = str(sent.queue)
    return Delivery(
        sent.message.name,
        since,
        at,
        redelivered,
        sent.message.id,
        of=sent.of,
        queue=queue,
        place=f"{queue}/{sent.group}/{sent.lane}/{sent.sequence}",
        row=f"{subscription}/{sent.lane}/{sent.key}",
        number=sent.sequence,
    )


def runs_of(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Sorted numbers as half-open runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return tuple(runs)

"""What the deciding core costs for a batch of 1000 messages, without disk, network or event loop.

    python bench/micro_core.py [BATCHES]

Prints microseconds per batch: the median, and the best of the rounds. The events are applied, nothing is written.
`deep` repeats publish, dispatch and ack with 10,000 deliveries of other messages unacked, and `single` does it for
batches of one message; `reject` sends batches to the dead-letter queue.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

from vibemq.batch import Batch, pack
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults

MESSAGES = 1000
BODY = bytes(256)
CREDIT = 1 << 40


class Bench:
    """A broker with one producer and one consumer, and the clocks of its steps."""

    def __init__(self) -> None:
        """Connect, and subscribe with more credit than is ever used."""
        limits = Limits(unacked_per_subscription=CREDIT, credit_bytes_per_subscription=CREDIT)
        self.broker = Broker(Projector(), limits, QueueDefaults())
        self.journal = self.broker.journal
        self.journal.now_us = 1
        self.broker.start("bench", 0)
        self.connection = self.broker.connect("bench", "", "binary", 1)
        self.broker.subscribe(Subscribing(self.connection, 1, "q", None, CREDIT, CREDIT))
        self.subscription = next(iter(self.journal.state.topology.subscriptions))
        self.delivered = 1
        self.sequence = 1
        self.spent: dict[str, list[float]] = {}
        self.forget()

    def forget(self) -> None:
        """What the runtime would have taken away."""
        self.journal.records.clear()
        self.journal.effects.clear()

    def timed(self, name: str, step: Callable[[], object]) -> None:
        """Do a step and note what it took."""
        begun = time.perf_counter()
        step()
        self.spent.setdefault(name, []).append(time.perf_counter() - begun)

    def round(self, kind: str, count: int, data: bytes, *, reject: bool = False) -> None:
        """Publish a batch, hand it out, and ack or reject it."""
        deliveries = self.broker.deliveries
        self.timed(f"{kind} publish", lambda: self.publish(data))
        self.timed(f"{kind} dispatch", deliveries.dispatch)
        runs = ((self.delivered, self.delivered + count),)
        if reject:
            self.timed(f"{kind} reject", lambda: self.reject(runs))
        else:
            self.timed(f"{kind} ack", lambda: deliveries.ack(self.connection, self.subscription, runs, 1))
        self.delivered += count
        self.sequence += count
        self.forget()

    def publish(self, data: bytes) -> None:
        """Publish a batch."""
        self.broker.publishing.publish(Publish(self.connection, 1, "q", self.sequence, Batch(data)))

    def reject(self, runs: tuple[tuple[int, int], ...]) -> None:
        """Send deliveries to the dead-letter queue."""
        self.broker.deliveries.nack(
            self.connection, self.subscription, runs, 1, delay_ms=None, reason="bench", reject=True
        )

    def hold(self, messages: int) -> None:
        """Deliver messages one by one, and leave them unacked."""
        for _ in range(messages):
            self.publish(b"".join(pack([BODY])))
            self.broker.deliveries.dispatch()
            self.sequence += 1
            self.delivered += 1
            self.forget()


def main(batches: int) -> None:
    """Run everything, and print a line for each step."""
    large, single = b"".join(pack([BODY] * MESSAGES)), b"".join(pack([BODY]))
    bench = Bench()
    for kind, count, data in (("batch", MESSAGES, large), ("single", 1, single)):
        for _ in range(batches):
            bench.round(kind, count, data)
    for _ in range(batches):
        bench.round("batch", MESSAGES, large, reject=True)
    bench.hold(10_000)
    for _ in range(batches):
        bench.round("deep", MESSAGES, large)
    for name, spent in bench.spent.items():
        print(f"{name:16} {median(spent) * 1e6:8.1f} us   best {min(spent) * 1e6:8.1f} us")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)

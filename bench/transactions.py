"""What transactions cost the deciding core, without disk, network or event loop.

    python bench/transactions.py [SECONDS]

Prints processor microseconds for one transaction, begun and committed, by the number of its acks and batches, each of
one message of 256 bytes and for one of three queues; the best of three rounds. The events are applied, nothing is
written. The last line is one publish of such a batch without a transaction.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

from vibemq.batch import Batch, pack
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.effects import Answer
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.transactions import Commit

SHAPES = ((0, 0), (1, 0), (0, 1), (1, 1), (10, 1), (1, 10), (10, 10), (100, 0), (1000, 0))
ROUNDS = 3
SOME = 100
CREDIT = 1 << 40
BATCH = Batch(b"".join(pack([bytes(256)])))


class Bench:
    """A broker with one client, which consumes what it acks."""

    def __init__(self) -> None:
        """Connect, and subscribe with more credit than is ever used."""
        limits = Limits(unacked_per_subscription=CREDIT, credit_bytes_per_subscription=CREDIT)
        self.broker = Broker(Projector(), limits, QueueDefaults())
        self.broker.journal.now_us = 1
        self.broker.start("bench", 0)
        self.client = self.broker.connect("bench", "", "binary", 1)
        self.broker.subscribe(Subscribing(self.client, 1, "in", None, CREDIT, CREDIT))
        self.subscription = next(iter(self.broker.journal.state.topology.subscriptions))
        self.delivered, self.sequence = 1, 0
        self.forget()

    def forget(self) -> None:
        """What the runtime would have taken away."""
        self.broker.journal.records.clear()
        self.broker.journal.effects.clear()

    def publish(self, name: str, count: int = 1) -> None:
        """Publish batches without a transaction."""
        for _ in range(count):
            self.sequence += 1
            ask = Publish(self.client, 1, name, self.sequence, BATCH, self.sequence)
            self.broker.publishing.publish(ask)

    def publish_some(self) -> Callable[[], None]:
        """What is to be timed."""
        self.forget()
        return partial(self.publish, "out", SOME)

    def transact(self, batches: int, acks: int) -> Callable[[], None]:
        """What is to be timed: the messages that it acks are there."""
        self.publish("in", acks)
        self.broker.end_turn()
        self.forget()
        first, self.delivered = self.delivered, self.delivered + acks
        settled = [(self.subscription, ((first, first + acks),))] if acks else []
        publishes = [Publish(self.client, 0, f"out.{number % 3}", 0, BATCH) for number in range(batches)]
        self.sequence += 1
        sequence = self.sequence

        def run() -> None:
            self.broker.transactions.begin(self.client, 1, 0)
            answer = self.broker.journal.effects[-1]
            assert isinstance(answer, Answer)
            epoch = answer.result["epoch"]
            commit = Commit(self.client, 2, epoch, sequence, publishes, settled, sequence)
            self.broker.transactions.commit(commit)

        return run


def spent_us(prepare: Callable[[], Callable[[], None]], seconds: float) -> float:
    """The processor time of one run, on average over so many seconds."""
    spent, runs = 0.0, 0
    while spent < seconds:
        run = prepare()
        begun = time.process_time()
        run()
        spent += time.process_time() - begun
        runs += 1
    return spent / runs * 1e6


def main(seconds: float) -> None:
    """Run everything, and print a line for each shape."""
    for batches, acks in SHAPES:
        rounds = [spent_us(partial(Bench().transact, batches, acks), seconds) for _ in range(ROUNDS)]
        print(f"{batches:5} batches {acks:3} acks {min(rounds):9.1f} us")
    rounds = [spent_us(Bench().publish_some, seconds) / SOME for _ in range(ROUNDS)]
    print(f"one publish alone      {min(rounds):9.1f} us")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5)

"""Bugs in transactions, to be planted in a broker: each breaks one promise."""

import pytest

from vibemq import events as e
from vibemq.errors import QueueBlocked
from vibemq.projections.part import Part
from vibemq.projections.projector import Projector
from vibemq.server import transactions
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Runs, Stored
from vibemq.server.publishers import Publisher
from vibemq.server.publishing import Decided, Publish, Publishing, Together
from vibemq.server.subscription import Subscription
from vibemq.server.transactions import Commit, Transactions

Patch = pytest.MonkeyPatch


def acks_are_done_although_a_publish_is_refused(patch: Patch) -> None:
    carry_out = Transactions._carry_out

    def eager(self: Transactions, publisher: Publisher, commit: Commit) -> None:
        for subscription, runs in self._held(commit):
            if subscription.keeps:
                self._journal.record(self._deliveries.settle(subscription, runs))
        carry_out(self, publisher, commit._replace(acks=()))

    patch.setattr(Transactions, "_carry_out", eager)


def queues_are_created_for_what_is_refused(patch: Patch) -> None:
    decide = Publishing.decide

    def eager(self: Publishing, publish: Publish, together: Together | None = None) -> Decided:
        decided = decide(self, publish, together)
        return self.create(decided) if together is not None else decided

    patch.setattr(Publishing, "decide", eager)


def each_batch_has_all_the_room(patch: Patch) -> None:
    def add_room(self: Together, name: str, count: int, size: int) -> None:
        if count < 0:
            self.room[name] = count, size

    patch.setattr(Together, "add_room", add_room)


def acks_make_no_room(patch: Patch) -> None:
    patch.setattr(Transactions, "_freed", lambda *_: {})


def what_was_lost_is_left_out(patch: Patch) -> None:
    def held(self: Transactions, commit: Commit) -> list[tuple[Subscription, Runs]]:
        found = [(self._deliveries.find(commit.connection, number), runs) for number, runs in commit.acks]
        return [(subscription, runs) for subscription, runs in found if subscription is not None]

    patch.setattr(Transactions, "_held", held)
    patch.setattr(Transactions, "_freed", lambda *_: {})


def acks_of_a_transaction_are_forgotten_by_the_consumer(patch: Patch) -> None:
    """They are recorded, and could be settled once more."""
    settle = Deliveries.settle

    def forgetful(self: Deliveries, subscription: Subscription, deliveries: Runs) -> e.Acked:
        before = list(subscription.open)
        acked = settle(self, subscription, deliveries)
        for start, end in before:
            subscription.open.add(start, end)
        return acked

    carry_out = Transactions._carry_out

    def around(self: Transactions, publisher: Publisher, commit: Commit) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Deliveries, "settle", forgetful)
            carry_out(self, publisher, commit)

    patch.setattr(Transactions, "_carry_out", around)


def commit_again_is_done_again(patch: Patch) -> None:
    patch.setattr(Transactions, "_is_done", lambda *_: False)


def attempts_outlive_their_client(patch: Patch) -> None:
    connect = Transactions.connect
    patch.setattr(Transactions, "connect", lambda self, number, _producer: connect(self, number, 0))


def attempts_have_no_end(patch: Patch) -> None:
    begin = Transactions.begin
    patch.setattr(Transactions, "begin", lambda self, connection, request, _: begin(self, connection, request, 0))


def attempts_can_be_used_twice(patch: Patch) -> None:
    commit = Transactions.commit

    def again(self: Transactions, ask: Commit) -> None:
        attempts = self._connections[ask.connection].attempts
        attempt = attempts.get(ask.epoch)
        commit(self, ask)
        if attempt is not None:
            attempts[ask.epoch] = attempt

    patch.setattr(Transactions, "commit", again)


def waiting_ends_an_attempt(patch: Patch) -> None:
    commit = Transactions.commit

    def final(self: Transactions, ask: Commit) -> None:
        try:
            commit(self, ask)
        except QueueBlocked:
            self.end(ask.connection, ask.epoch)
            raise

    patch.setattr(Transactions, "commit", final)


def transactions_overtake_what_waits(patch: Patch) -> None:
    patch.setattr(Transactions, "_check_turn", lambda *_: None)


def only_the_last_batch_is_waited_for(patch: Patch) -> None:
    wanted = Transactions._wanted
    patch.setattr(
        Transactions,
        "_wanted",
        lambda self, commit, blocked, freed: wanted(self, commit._replace(publishes=[blocked]), blocked, freed),
    )


def every_batch_begins_the_record(patch: Patch) -> None:
    stored = Publishing.stored
    patch.setattr(Publishing, "stored", lambda self, decided, event, offset, _: stored(self, decided, event, offset, 0))


def lanes_count_batches_apart(patch: Patch) -> None:
    event = Publishing.event
    patch.setattr(Publishing, "event", lambda self, decided, producer, _=None: event(self, decided, producer, None))


def a_part_takes_one_thing_of_a_record(patch: Patch) -> None:
    def fresh(_: Projector, part: Part, offset: int) -> bool:
        is_fresh = part.as_of <= offset
        part.as_of = max(part.as_of, offset + 1)
        return is_fresh

    patch.setattr(Projector, "_fresh", fresh)


def a_part_takes_everything_again(patch: Patch) -> None:
    """Also what it was saved with."""
    fresh = Projector._fresh
    patch.setattr(
        Projector, "_fresh", lambda self, part, offset: fresh(self, part, offset) or self._several is not None
    )


def the_answer_is_in_the_order_of_the_record(patch: Patch) -> None:
    stored = transactions._stored

    def in_order(event: e.TransactionCommitted, to_topic: list[bool]) -> tuple[Stored, ...]:
        return stored(event, sorted(to_topic))

    patch.setattr(transactions, "_stored", in_order)

"""Transactions: publishes and acks that happen together, or not at all."""

from typing import Any

import pytest

from tests.server.desk import Desk
from tests.server.rig import batch_of
from vibemq import events as e
from vibemq.declaration import Overflow, QueueSettings
from vibemq.errors import (
    InvalidRequest,
    LimitExceeded,
    QueueBlocked,
    QueueFull,
    SequenceTooOld,
    TransactionConflict,
    TransactionEnded,
    TransactionTimeout,
    UnknownQueue,
    Unroutable,
)
from vibemq.projections import part as parts
from vibemq.projections.producers import BATCHES_REMEMBERED
from vibemq.projections.projector import Projector
from vibemq.server import effects as f
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.transactions import Commit

MS = 1000


def test_all_of_a_transaction_is_one_record() -> None:
    desk = Desk()
    desk.publish("in", b"order")
    consumer = desk.consume("in")
    desk.take()
    desk.commit(("a", [b"1", b"2"]), ("b", [b"3"]), ("a", [b"4"]), acks=[(consumer, ((1, 2),))], sequence=5)
    events, (committed,) = desk.take()
    assert [type(event) for event in events] == [e.QueueDeclared, e.QueueDeclared, e.TransactionCommitted]
    offset = len(desk.log) - 1
    stored = (f.Stored(0, 1), f.Stored(2, 1), f.Stored(3, 3))
    assert committed == f.Committed(offset + 1, desk.client, 2, offset, duplicate=False, stored=stored)
    assert [desk.length(name) for name in ("in", "a", "b")] == [0, 3, 1]
    assert desk.bodies("a") == [(b"1", f"{offset}-0"), (b"2", f"{offset}-1"), (b"4", f"{offset}-3")]
    assert desk.bodies("b") == [(b"3", f"{offset}-2")]


def test_its_messages_are_read_back_from_the_log() -> None:
    desk = Desk()
    desk.commit(("a", [b"1", b"2"]), ("b", [b"3"]), ("a", [b"4"]))
    desk.take()
    offset = len(desk.log) - 1
    desk.forget_messages()
    assert desk.bodies("a") == [(b"1", f"{offset}-0"), (b"2", f"{offset}-1"), (b"4", f"{offset}-3")]
    assert desk.bodies("b") == [(b"3", f"{offset}-2")]


def test_topics_come_behind_queues_in_the_record_and_in_order_in_the_answer() -> None:
    desk = Desk()
    for name in ("x", "y"):
        desk.broker.queues.declare(desk.client, 1, name, {})
        desk.broker.queues.bind(desk.client, 1, name, "t.#")
    desk.take()
    desk.commit(("/t.a", [b"1", b"2"]), ("q", [b"3"]), ("/t.b", [b"4"]), sequence=1)
    committed = desk.effects()[-1]
    assert isinstance(committed, f.Committed)
    assert committed.stored == (f.Stored(1, 0), f.Stored(0, 1), f.Stored(3, 0))
    offset = committed.offset
    assert [body for body, _ in desk.bodies("x")] == [b"1", b"2", b"4"]
    assert desk.bodies("y") == [(b"1", f"{offset}-1"), (b"2", f"{offset}-2"), (b"4", f"{offset}-3")]


def test_what_nobody_wants_is_a_dead_letter_as_always() -> None:
    desk = Desk(unroutable="lost.dlq")
    desk.commit(("/t", [b"1"]), ("q", [b"2"]), ("/t", [b"3"]))
    desk.take()
    queue = desk.state.queue_named("lost.dlq")
    assert queue is not None
    assert queue.length == 2
    assert desk.state.dead[queue.id].open.total == 2
    desk.forget_messages()
    assert [body for body, _ in desk.bodies("lost.dlq")] == [b"1", b"3"]


def test_dead_letters_of_a_transaction_are_read_back_by_their_index() -> None:
    desk = Desk(defaults=QueueSettings(max_attempts=1))
    desk.commit(("other", [b"x"] * 3), ("q", [b"1", b"2"]))
    consumer = desk.consume("q")
    desk.take()
    desk.broker.deliveries.nack(desk.client, consumer, ((1, 3),), 0, delay_ms=None, reason="", reject=False)
    desk.take()
    desk.forget_messages()
    assert [body for body, _ in desk.bodies("q.dlq")] == [b"1", b"2"]


def test_dead_letters_that_follow_each_other_may_be_of_two_batches() -> None:
    desk = Desk(defaults=QueueSettings(max_attempts=1))
    desk.commit(("q", [b"1", b"2"]), ("q", [b"3", b"4", b"5"]))
    consumer = desk.consume("q")
    desk.take()
    desk.broker.deliveries.nack(desk.client, consumer, ((2, 5),), 0, delay_ms=None, reason="", reject=False)
    desk.take()
    desk.forget_messages()
    assert [body for body, _ in desk.bodies("q.dlq")] == [b"2", b"3", b"4"]


# --- nothing of it


def test_an_ack_that_is_no_longer_held_undoes_all_of_it() -> None:
    desk = Desk()
    desk.publish("in", b"1", b"2")
    consumer = desk.consume("in")
    desk.broker.deliveries.ack(desk.client, consumer, ((1, 2),), 0)
    desk.refused(("a", [b"x"]), acks=[(consumer, ((1, 3),))], error=TransactionConflict)
    desk.refused(("a", [b"x"]), acks=[(consumer + 1, ((1, 2),))], error=TransactionConflict)
    desk.refused(("a", [b"x"]), acks=[(consumer, ((2, 4),))], error=TransactionConflict)
    assert desk.length("in") == 1
    assert desk.state.queue_named("a") is None
    desk.commit(("a", [b"x"]), acks=[(consumer, ((2, 3),))])
    assert desk.length("in") == 0


def test_a_lost_lease_is_a_conflict() -> None:
    desk = Desk()
    desk.publish("in", b"1")
    consumer = desk.consume("in")
    epoch = desk.open()
    desk.pass_time(31_000 * MS)
    desk.broker.tick()
    desk.refused(acks=[(consumer, ((1, 2),))], epoch=epoch, error=TransactionConflict)
    assert desk.length("in") == 1


def test_one_publish_that_is_refused_undoes_all_of_it() -> None:
    desk = Desk(Limits(message_bytes=100, queues=4))
    desk.broker.queues.declare(desk.client, 1, "in", {})
    desk.broker.queues.declare(desk.client, 1, "small", {"max_length": 3})
    desk.publish("in", b"1")
    consumer = desk.consume("in")
    acks = [(consumer, ((1, 2),))]
    desk.refused(("a", [b"x"]), ("small", [b"x"] * 4), acks=acks, error=QueueFull)
    desk.refused(("small", [b"x"] * 2), ("a", [b"x"]), ("small", [b"x"] * 2), acks=acks, error=QueueFull)
    desk.refused(("a", [b"x"]), ("/t", [b"x"]), acks=acks, error=Unroutable)
    desk.refused(("a", [b"x"]), ("in", [bytes(101)]), acks=acks, error=LimitExceeded)
    desk.refused(("a", [b"x"]), ("b", [b"x"]), ("c", [b"x"]), acks=acks, error=LimitExceeded)
    assert sorted(desk.state.topology.queues) == ["in", "small"]
    assert [desk.length(name) for name in ("in", "small")] == [1, 0]
    desk.commit(("small", [b"x"] * 3), ("a", [b"x"]), ("b", [b"x"]), ("a", [b"x"]), acks=acks)
    assert [desk.length(name) for name in ("in", "small", "a", "b")] == [0, 3, 2, 1]


def test_what_it_acks_makes_room_for_what_it_publishes() -> None:
    desk = Desk()
    desk.broker.queues.declare(desk.client, 1, "q", {"max_length": 2})
    desk.publish("q", b"1", b"2")
    consumer = desk.consume("q")
    desk.refused(("q", [b"3"] * 2), acks=[(consumer, ((1, 2),))], error=QueueFull)
    desk.commit(("q", [b"3"]), acks=[(consumer, ((1, 2),))])
    assert desk.length("q") == 2


def test_a_queue_that_drops_the_newest_may_store_nothing_of_its_last_batches() -> None:
    desk = Desk()
    desk.broker.queues.declare(desk.client, 1, "q", {"max_length": 3, "overflow": "drop-newest"})
    desk.publish("q", b"1")
    desk.commit(("q", [b"2", b"3", b"4"]), ("q", [b"5"]), ("q", [b"6"]))
    assert [body for body, _ in desk.bodies("q")] == [b"1", b"2", b"3"]


# --- attempts


def test_an_attempt_ends_with_its_commit_whatever_came_of_it() -> None:
    desk = Desk()
    epoch = desk.open()
    desk.commit(("q", [b"x"]), epoch=epoch)
    desk.take()
    desk.refused(("q", [b"x"]), epoch=epoch, error=TransactionEnded)
    epoch = desk.open()
    desk.refused(("/t", [b"x"]), epoch=epoch, error=Unroutable)
    desk.refused(("q", [b"x"]), epoch=epoch, error=TransactionEnded)
    assert desk.length("q") == 1


def test_a_rolled_back_attempt_is_over() -> None:
    desk = Desk()
    epoch = desk.open()
    for _ in range(2):  # a second time does no harm
        desk.broker.transactions.rollback(desk.client, 3, epoch)
        assert desk.effects() == [f.Answer(0, desk.client, 3, None)]
    desk.refused(("q", [b"x"]), epoch=epoch, error=TransactionEnded)
    with pytest.raises(TransactionEnded):
        desk.broker.transactions.rollback(desk.client, 3, epoch + 1)


def test_an_attempt_is_open_for_so_long() -> None:
    desk = Desk(Limits(transaction_ms=10))
    soon, late = desk.open(4), desk.open(100)
    desk.pass_time(5 * MS)
    desk.refused(("q", [b"x"]), epoch=soon, error=TransactionTimeout)
    desk.refused(("q", [b"x"]), epoch=soon, error=TransactionEnded)
    desk.pass_time(4 * MS)
    desk.commit(("q", [b"x"]), epoch=late)
    late = desk.open()
    desk.pass_time(10 * MS)
    desk.refused(("q", [b"x"]), epoch=late, error=TransactionTimeout)
    assert desk.length("q") == 1


def test_so_many_may_be_open_at_a_time() -> None:
    desk = Desk(Limits(transactions_per_connection=2))
    first, _ = desk.open(), desk.open(5)
    with pytest.raises(LimitExceeded, match="2 transactions open"):
        desk.open()
    desk.pass_time(5 * MS)
    third = desk.open()  # the time of one is over
    with pytest.raises(LimitExceeded):
        desk.open()
    desk.commit(epoch=first)
    assert desk.open() > third


def test_another_connection_of_the_producer_ends_its_attempts() -> None:
    desk = Desk()
    epoch, stranger = desk.open(), desk.connect(9)
    stays = desk.open(client=stranger)
    new = desk.connect(7)
    desk.refused(("q", [b"late"]), epoch=epoch, sequence=1, error=TransactionEnded)
    desk.refused(("q", [b"late"]), epoch=epoch, sequence=1, client=new, error=TransactionEnded)
    desk.commit(("q", [b"x"]), epoch=stays, client=stranger)
    desk.commit(("q", [b"x"]), client=new, sequence=1)
    assert desk.length("q") == 2


def test_begin_waits_until_the_connection_is_known_for_good() -> None:
    desk = Desk()
    number = desk.broker.connect("c", "here", "binary", 3)
    connected = desk.state.next_offset
    desk.publish("q", b"x")
    desk.take()
    desk.broker.transactions.begin(number, 1, 0)
    (answer,) = desk.effects()
    assert answer.after == connected


# --- a commit that comes again


def test_a_commit_sent_again_is_answered_with_what_came_of_it() -> None:
    desk = Desk()
    desk.broker.queues.declare(desk.client, 1, "small", {"max_length": 1, "overflow": "drop-newest"})
    desk.broker.queues.bind(desk.client, 1, "small", "t")
    desk.take()
    publishes = ("/t", [b"1", b"2"]), ("small", [b"3"] * 2), ("q", [b"4"])
    epoch = desk.open()
    desk.commit(*publishes, epoch=epoch, sequence=3)
    first = desk.effects()[-1]
    assert isinstance(first, f.Committed)
    assert first.stored == (f.Stored(2, 0, 2), f.Stored(0, 1, 1), f.Stored(1, 1))
    for client in (desk.client, desk.connect(7)):
        desk.commit(*publishes, epoch=epoch, sequence=3, client=client)
        assert desk.take() == ([], [])
        desk.load_one()
        assert desk.take() == ([], [first._replace(connection=client, duplicate=True)])
    desk.forget_messages()
    desk.commit(*publishes, epoch=epoch, sequence=3)
    assert desk.take() == ([], [])
    desk.load_one()
    assert desk.take() == ([], [first._replace(connection=desk.client, duplicate=True)])
    desk.commit(*publishes[1:], epoch=epoch, sequence=3)
    assert desk.take() == ([], [])
    desk.load_one()
    (refusal,) = desk.effects()
    assert isinstance(refusal, f.Refusal)
    assert refusal.of_batch
    assert type(refusal.error) is InvalidRequest


def test_batches_and_transactions_share_the_sequence() -> None:
    desk = Desk()
    desk.commit(("q", [b"x"]), sequence=1)
    desk.publish("q", b"x", b"x", sequence=2)
    desk.take()
    with pytest.raises(InvalidRequest):
        desk.publish("q", b"x", sequence=1)
    desk.refused(("q", [b"x"]), sequence=2, error=InvalidRequest)
    desk.commit(("q", [b"x"]), sequence=10, oldest=10)
    desk.take()
    desk.refused(("q", [b"x"]), sequence=4, error=SequenceTooOld)
    assert desk.length("q") == 4


def test_a_commit_that_is_refused_for_its_sequence_is_over() -> None:
    desk = Desk()
    desk.publish("q", b"x", sequence=1)
    epoch = desk.open()
    desk.refused(("q", [b"x"]), sequence=1, epoch=epoch, error=InvalidRequest)
    desk.refused(("q", [b"x"]), sequence=2, epoch=epoch, error=TransactionEnded)
    assert desk.length("q") == 1


# --- queues that block


def blocking(desk: Desk, name: str, max_length: int) -> None:
    desk.broker.queues.declare(desk.client, 1, name, {"max_length": max_length, "overflow": Overflow.BLOCK})
    desk.take()


def test_a_transaction_that_has_to_wait_stays_open() -> None:
    desk = Desk()
    blocking(desk, "q", 2)
    desk.publish("q", b"1", b"2")
    consumer = desk.consume("q")
    desk.publish("in", b"order")
    inner = desk.consume("in")
    epoch = desk.open()
    ask: dict[str, Any] = {"epoch": epoch, "sequence": 1, "acks": [(inner, ((1, 2),))]}
    desk.refused(("q", [b"3"]), ("q", [b"4"]), error=QueueBlocked, **ask)
    desk.broker.deliveries.ack(desk.client, consumer, ((1, 2),), 0)
    desk.broker.end_turn()
    assert desk.effects() == []  # room for one of two
    desk.broker.deliveries.ack(desk.client, consumer, ((2, 3),), 0)
    desk.broker.end_turn()
    assert desk.effects() == [f.Unblocked(0, desk.client, "q")]
    desk.commit(("q", [b"3"]), ("q", [b"4"]), **ask)
    assert [desk.length(name) for name in ("q", "in")] == [2, 0]


def test_of_two_transactions_that_wait_the_first_is_told_when_it_can_go_on() -> None:
    desk = Desk()
    blocking(desk, "q", 3)
    desk.publish("q", b"1", b"2")
    first, second = desk.open(), desk.open()
    desk.refused(("q", [b"3"]), ("q", [b"4"]), epoch=first, sequence=1, error=QueueBlocked)
    desk.refused(("q", [b"5"]), epoch=second, sequence=2, error=QueueBlocked)
    desk.broker.end_turn()
    assert desk.effects() == []  # there is room for the second, which would be refused again at once


def test_what_can_never_fit_is_refused_for_good() -> None:
    desk = Desk()
    blocking(desk, "q", 2)
    desk.publish("q", b"1")
    desk.refused(("q", [b"3"] * 2), ("q", [b"4"]), error=QueueFull)
    desk.refused(("q", [b"3"] * 3), error=QueueFull)
    desk.broker.end_turn()
    assert desk.effects() == []


def test_batches_behind_a_transaction_that_waits_stay_behind_it() -> None:
    desk = Desk()
    blocking(desk, "q", 1)
    desk.publish("q", b"1")
    consumer = desk.consume("q")
    epoch = desk.open()
    desk.refused(("q", [b"2"]), epoch=epoch, sequence=1, error=QueueBlocked)
    desk.broker.deliveries.ack(desk.client, consumer, ((1, 2),), 0)
    with pytest.raises(QueueBlocked):
        desk.publish("q", b"3", sequence=2)
    desk.broker.end_turn()
    assert f.Unblocked(0, desk.client, "q") in desk.effects()
    desk.refused(("q", [b"2"]), epoch=epoch, sequence=3, error=QueueBlocked)  # what was refused comes first
    desk.broker.end_turn()
    desk.take()
    desk.publish("q", b"3", sequence=2)


def test_a_transaction_counts_for_the_rates() -> None:
    desk = Desk(Limits(publish_rate_per_connection=10))
    desk.broker.queues.declare(desk.client, 1, "q", {"publish_rate": 20})
    desk.take()
    desk.commit(("q", [b"x"] * 20), ("other", [b"x"]))
    desk.take()
    desk.refused(("q", [b"x"]), error=QueueBlocked)
    desk.pass_time(1_000_000)
    desk.broker.end_turn()
    assert desk.effects() == []
    desk.pass_time(2_000_000)
    desk.broker.end_turn()
    assert desk.effects() == [f.Unblocked(0, desk.client, "q")]
    desk.commit(acks=[])  # who publishes nothing waits for no rate
    desk.commit(("q", [b"x"]))


def test_without_auto_creation_nothing_is_created() -> None:
    desk = Desk()
    desk.broker.queues._auto_create = False
    desk.refused(("q", [b"x"]), error=UnknownQueue)


def test_a_batch_of_duplicates_comes_after_what_the_transaction_brought_before() -> None:
    desk = Desk()
    desk.publish("q", b"1")
    once = Publish(desk.client, 0, "q", 0, batch_of([b"2", b"3"]), dedup=b"d" * 16 + b"e" * 16)
    desk.broker.transactions.commit(Commit(desk.client, 2, desk.open(), 0, [once, once, once._replace(dedup=b"")], ()))
    (committed,) = desk.take_events(e.TransactionCommitted)
    assert [(part.sequence, part.count, len(part.duplicates)) for part in committed.published] == [
        *((2, 2, 0), (4, 0, 2), (4, 2, 0)),
    ]


# --- the state


def test_every_part_holds_a_transaction_whole_or_not_at_all() -> None:
    """Saved at any two offsets around it, the parts come to one state."""
    desk = Desk(unroutable="lost.dlq")
    desk.publish("q", b"1", b"2", b"3")
    consumer = desk.consume("q")
    desk.take()
    before = Projector.restore(saved(desk.replayed()), len(desk.log))
    plain = Publish(desk.client, 0, "q", 0, batch_of([b"4", b"5"]))
    publishes = [
        plain,
        plain._replace(name="t", to_topic=True),
        plain._replace(dedup=bytes(range(32))),
        plain._replace(delay_ms=5, batch=batch_of([b"6"])),
        plain,
    ]
    acks = [(consumer, ((1, 2), (3, 4)))]
    desk.broker.transactions.commit(Commit(desk.client, 2, desk.open(), 4, publishes, acks))
    desk.take()
    assert [len(desk.state.producers.known), desk.state.dedup.total, len(desk.state.dead)] == [1, 2, 1]
    start, later = before.next_offset, saved(desk.replayed())
    keys = [key for key, *_ in later]
    for chosen in [*({key} for key in keys), *(set(keys) - {key} for key in keys)]:
        mixed = [one for one in saved(before) if one[0] not in chosen] + [one for one in later if one[0] in chosen]
        state = desk.replayed(Projector.restore(mixed, start))
        assert state.digests() == desk.state.digests(), chosen


def saved(state: Projector) -> list[tuple[str, int, bytes]]:
    return [(one.key, one.as_of, parts.encode(one)) for one in state.parts()]


# --- delays and dedup ids


def test_what_waits_for_its_time_becomes_ready_then_and_comes_from_its_batch() -> None:
    desk = Desk()
    now = Publish(desk.client, 0, "q", 0, batch_of([b"now"]))
    late = now._replace(batch=batch_of([b"1", b"2"]), delay_ms=50)
    to_topic = now._replace(name="t", to_topic=True, batch=batch_of([b"topic"]), due_us=desk.now_us + 60 * MS)
    desk.broker.queues.declare(desk.client, 1, "q", {"max_length": 4})
    desk.broker.queues.bind(desk.client, 1, "q", "t")
    epoch = desk.open()
    commit = Commit(desk.client, 2, epoch, 1, [to_topic, late, now], [])
    with pytest.raises(QueueFull):
        desk.broker.transactions.commit(commit._replace(publishes=[to_topic, late, now, late]))
    desk.broker.transactions.commit(commit._replace(epoch=desk.open()))
    committed = desk.effects()[-1]
    assert isinstance(committed, f.Committed)
    due_us = desk.now_us + 50 * MS
    assert committed.stored == (f.Stored(3, 0, 0, due_us + 10 * MS), f.Stored(0, 0, 0, due_us), f.Stored(2, 1))
    assert desk.bodies("q") == [(b"now", f"{committed.offset}-2")]
    desk.pass_time(50 * MS)
    assert ready_in_time(desk) == [(b"1", f"{committed.offset}-0"), (b"2", f"{committed.offset}-1")]
    desk.pass_time(10 * MS)
    assert ready_in_time(desk) == [(b"topic", f"{committed.offset}-3")]


def ready_in_time(desk: Desk) -> list[tuple[bytes, str]]:
    """What is handed out now."""
    desk.broker.tick()
    found = []
    for _ in range(5):
        desk.broker.end_turn()
        for one in desk.effects():
            if isinstance(one, f.Delivery):
                bodies = one.stored.batch.bodies()[one.first : one.first + one.messages]
                origin = one.stored.origin
                found += [(body, f"{origin.offset}-{origin.index + one.first + at}") for at, body in enumerate(bodies)]
        while desk.loads:
            desk.load_one()
    return found


def test_what_is_there_already_wants_no_room() -> None:
    desk = Desk()
    blocking(desk, "q", 2)
    ids = [bytes([number]) * 16 for number in range(1, 4)]
    first = Publish(desk.client, 1, "q", 0, batch_of([b"1"]), dedup=ids[0])
    desk.broker.publishing.publish(first)
    consumer = desk.consume("q")
    desk.publish("q", b"x")
    again = [first._replace(dedup=ids[0]), first._replace(dedup=ids[1]), first._replace(dedup=ids[1])]
    new = first._replace(dedup=ids[2])
    commit = Commit(desk.client, 2, desk.open(), 1, [*again, new], [])
    with pytest.raises(QueueBlocked):  # two are new, which may fit
        desk.broker.transactions.commit(commit)
    too_many = commit._replace(publishes=[*again, new, first._replace(dedup=b"")], epoch=desk.open())
    with pytest.raises(QueueFull):  # three never do
        desk.broker.transactions.commit(too_many)
    desk.broker.deliveries.ack(desk.client, consumer, ((1, 2),), 0)
    desk.broker.end_turn()
    desk.broker.deliveries.ack(desk.client, consumer, ((2, 3),), 0)
    desk.broker.end_turn()
    assert f.Unblocked(0, desk.client, "q") in desk.effects()
    desk.broker.transactions.commit(commit)
    committed = desk.effects()[-1]
    assert isinstance(committed, f.Committed)
    assert [len(one.duplicates) for one in committed.stored] == [1, 0, 1, 0]
    assert committed.stored[2].duplicates == ((0, committed.offset, 0),)
    assert desk.length("q") == 2


def test_a_transaction_puts_batches_into_so_many_queues() -> None:
    desk = Desk(Limits(transaction_arrivals=3))
    for name in ("x", "y"):
        desk.broker.queues.declare(desk.client, 1, name, {})
        desk.broker.queues.bind(desk.client, 1, name, "t")
    desk.refused(("/t", [b"1"]), ("x", [b"2"]), ("x", [b"3"]), error=LimitExceeded)
    desk.commit(("/t", [b"1", b"2"]), ("x", [b"3"] * 5))
    assert [desk.length(name) for name in ("x", "y")] == [7, 2]


def test_queues_that_take_nothing_count_for_the_limit_too() -> None:
    desk = Desk(Limits(transaction_arrivals=3))
    for name in ("x", "y"):
        desk.broker.queues.declare(desk.client, 1, name, {"max_length": 1, "overflow": "drop-newest"})
        desk.broker.queues.bind(desk.client, 1, name, "t.*")
    blocking(desk, "full", 1)
    desk.publish("full", b"1")
    desk.publish("x", b"1")
    desk.publish("y", b"1")
    desk.refused(("/t.a", [b"1"]), ("/t.b", [b"2"]), error=LimitExceeded)  # both are full, and drop it
    desk.refused(("full", [b"1"]), ("/t.a", [b"2"]), ("/t.b", [b"3"]), error=LimitExceeded)  # it would wait
    desk.commit(("/t.a", [b"1"]), ("z", [b"2"]))


def test_what_waits_for_its_time_gets_no_room_from_acks_where_a_queue_makes_room_by_itself() -> None:
    desk = Desk()
    desk.broker.queues.declare(desk.client, 1, "q", {"max_length": 2, "overflow": "drop-oldest"})
    late = Publish(desk.client, 0, "q", 0, batch_of([b"late"]), delay_ms=50)
    desk.publish("q", b"1")
    consumer = desk.consume("q")
    acks = [(consumer, ((1, 2),))]
    for count in (3, 2):
        commit = Commit(desk.client, 2, desk.open(), 0, [late] * count, acks)
        if count == 3:
            with pytest.raises(QueueFull):
                desk.broker.transactions.commit(commit)
        else:
            desk.broker.transactions.commit(commit)
    queue = desk.state.queue_named("q")
    assert queue is not None
    assert (queue.length, queue.delayed.count) == (0, 2)


def test_a_transaction_that_waited_for_long_is_still_known_not_to_be_done() -> None:
    """Whatever its client had stored meanwhile: more than is remembered."""
    desk = Desk()
    blocking(desk, "q", 1)
    desk.publish("q", b"1")
    consumer, epoch = desk.consume("q"), desk.open()
    desk.refused(("q", [b"2"]), epoch=epoch, sequence=1, error=QueueBlocked)
    for sequence in range(2, BATCHES_REMEMBERED + 3):
        desk.publish("other", b"x", sequence=sequence)
    desk.refused(("other", [b"2"]), sequence=1, error=SequenceTooOld)  # another attempt may have been done
    desk.broker.deliveries.ack(desk.client, consumer, ((1, 2),), 0)
    desk.broker.end_turn()
    desk.take()
    desk.commit(("q", [b"2"]), epoch=epoch, sequence=1)
    assert desk.length("q") == 1

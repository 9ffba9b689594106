"""Bugs in what waits for its time, in transactions, dedup ids and schedules; each is as small as can be."""

from typing import Any

import pytest

from vibemq import events as e
from vibemq.log.delayed import DelayedOverlay, MemoryBase
from vibemq.projections import delayed as projection
from vibemq.projections.dedup import Dedup, Known, QueueIds
from vibemq.projections.part import Part
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.projections.schedules import Schedule
from vibemq.server import deduplication
from vibemq.server.delayed import Delayed, Window
from vibemq.server.effects import Committed
from vibemq.server.expiring import Expiring
from vibemq.server.publishing import Together
from vibemq.server.schedules import Schedules
from vibemq.server.transactions import Commit, Transactions

Patch = pytest.MonkeyPatch


# --- delayed messages


def delayed_messages_come_a_moment_early(patch: Patch) -> None:
    take = Window.take
    patch.setattr(Window, "take", lambda window, now_us: take(window, now_us + 2_000))


def delays_are_of_the_wall_clock_at_the_start(patch: Patch) -> None:
    """What is due before the broker began is forgotten by it."""
    start = Delayed.start

    def forgetful(delayed: Delayed) -> None:
        start(delayed)
        delayed._overdue = Window(0, 0, is_empty=True)

    patch.setattr(Delayed, "start", forgetful)


def what_comes_while_more_is_read_is_forgotten(patch: Patch) -> None:
    """Of a reading that is on its way only what it brings counts."""
    read = Window.read

    def alone(window: Window, entries: Any, horizon: Any) -> None:  # noqa: ANN401 - passed on
        window._changes = []
        read(window, entries, horizon)

    patch.setattr(Window, "read", alone)


def entries_not_committed_to_the_index(patch: Patch) -> None:
    patch.setattr(MemoryBase, "commit", lambda *_: None)


def lists_know_only_what_was_committed(patch: Patch) -> None:
    """Of what is delayed."""
    patch.setattr(DelayedOverlay, "of_queue", lambda _, base, queue, offset: list(base.of_queue(queue, offset)))


def entries_not_replayed(patch: Patch) -> None:
    """The index knows of delayed messages what was committed, and nothing of the end of the log."""
    note = DelayedOverlay.note

    def seldom(overlay: DelayedOverlay, offset: int, event: e.Event) -> None:
        if not isinstance(event, e.Rescheduled):
            note(overlay, offset, event)

    patch.setattr(DelayedOverlay, "note", seldom)


def messages_that_were_taken_back_come(patch: Patch) -> None:
    patch.setattr(Window, "remove", lambda *_: None)


def rescheduled_messages_come_when_they_were_due_before(patch: Patch) -> None:
    changed = Delayed._changed

    def unmoved(delayed: Delayed, queue: int, gone: Any, come: Any = ()) -> None:  # noqa: ANN401 - passed on
        changed(delayed, queue, *((gone, come) if not come else ((), ())))

    patch.setattr(Delayed, "_changed", unmoved)


def purged_messages_come_when_they_are_due(patch: Patch) -> None:
    purge = projection.Delayed.purge
    patch.setattr(projection.Delayed, "purge", lambda delayed, _: purge(delayed, 0))


def being_due_meets_a_full_queue(patch: Patch) -> None:
    """What is delayed has no room until it comes."""
    patch.setattr(Queue, "filled", property(lambda queue: queue.length))


def undeleted_queues_have_lost_what_was_delayed(patch: Patch) -> None:
    patch.setattr(Delayed, "came_back", lambda *_: None)


# --- transactions


def the_last_batch_of_a_transaction_left_out(patch: Patch) -> None:
    carry_out = Transactions._carry_out

    def shorter(it: Transactions, publisher: Any, commit: Commit) -> None:  # noqa: ANN401 - passed on
        carry_out(it, publisher, commit._replace(publishes=commit.publishes[:-1] or commit.publishes))

    patch.setattr(Transactions, "_carry_out", shorter)


def what_is_held_no_more_is_not_acked(patch: Patch) -> None:
    """A transaction goes on without it."""
    held = Transactions._held

    def lenient(it: Transactions, commit: Commit) -> Any:  # noqa: ANN401 - what _held gives
        found = []
        for ack in commit.acks:
            try:
                found += held(it, commit._replace(acks=[ack]))
            except Exception:  # noqa: BLE001, S112 - whatever it is
                continue
        return found

    patch.setattr(Transactions, "_held", lenient)


def commits_carried_out_again(patch: Patch) -> None:
    """Neither the number of a commit nor that its attempt is over counts, if it had been begun."""
    commit = Transactions.commit

    def again(it: Transactions, one: Commit) -> None:
        attempts = it._connections[one.connection].attempts
        attempt = attempts.get(one.epoch)
        commit(it, one)
        if attempt is not None:
            attempts[one.epoch] = attempt

    patch.setattr(Transactions, "_is_done", lambda *_: False)
    patch.setattr(Transactions, "commit", again)


def late_commits_of_a_lost_connection_taken(patch: Patch) -> None:
    """A client that has come back is told that nothing was done, and then it is done after all."""
    connect = Transactions.connect

    def apart(it: Transactions, connection: int, producer: int) -> None:
        connect(it, connection, 0)
        it._connections[connection].producer = 0
        del producer

    patch.setattr(Transactions, "connect", apart)


def transactions_last_for_ever(patch: Patch) -> None:
    begin = Transactions.begin

    def long(it: Transactions, connection: int, request: int, timeout_ms: int) -> None:
        begin(it, connection, request, timeout_ms)
        for attempt in it._connections[connection].attempts.values():
            attempt.until_us += 10_000_000

    patch.setattr(Transactions, "begin", long)


def commits_confirmed_before_they_are_durable(patch: Patch) -> None:
    carry_out = Transactions._carry_out

    def at_once(it: Transactions, publisher: Any, commit: Commit) -> None:  # noqa: ANN401 - passed on
        carry_out(it, publisher, commit)
        effects = it._journal.effects
        if isinstance(effects[-1], Committed):
            effects[-1] = effects[-1]._replace(after=0)

    patch.setattr(Transactions, "_carry_out", at_once)


def batches_of_a_transaction_counted_one_by_one(patch: Patch) -> None:
    """Each of them finds the room that there was before all of them."""
    patch.setattr(Together, "add_room", lambda *_: None)


def one_part_of_a_transaction_for_each_queue(patch: Patch) -> None:
    """A queue believes that it holds a record when it has had the first part of it."""

    def once(projector: Projector, part: Part, offset: int) -> bool:
        if part.as_of > offset:
            return False
        part.as_of = offset + 1
        del projector
        return True

    patch.setattr(Projector, "_fresh", once)


# --- dedup ids


def dedup_ids_ignored(patch: Patch) -> None:
    patch.setattr(deduplication.Deduplication, "sift", lambda *_: None)


def dedup_ids_lost_at_a_start(patch: Patch) -> None:
    patch.setattr(Dedup, "restored", lambda *_: None)


def dedup_ids_forgotten_too_early(patch: Patch) -> None:
    """After half of the window."""
    due_us, until = deduplication._due_us, QueueIds.oldest_until
    patch.setattr(deduplication, "_due_us", lambda ids, window_ms: due_us(ids, window_ms // 2))
    patch.setattr(QueueIds, "oldest_until", lambda ids, _: until(ids, 1 << 60))


def dedup_ids_remembered_for_too_long(patch: Patch) -> None:
    """What is not forgotten yet counts, however old it is."""
    find = QueueIds.find

    def fresh(ids: QueueIds, one: bytes) -> Known | None:
        found = find(ids, one)
        return found and found._replace(time_us=1 << 62)

    patch.setattr(QueueIds, "find", fresh)


# --- schedules


def schedules_publish_twice_for_a_time(patch: Patch) -> None:
    fired = Schedule.fired

    def stays(schedule: Schedule, event: e.Fired) -> None:
        next_us = schedule.next_us
        fired(schedule, event)
        if schedule.count % 3 == 1:
            schedule.next_us = next_us

    patch.setattr(Schedule, "fired", stays)


def what_was_missed_is_made_up_for_by_all(patch: Patch) -> None:
    """Whatever the policy is."""

    def catch_up(it: Schedules, schedule: Schedule, times: Any) -> int:  # noqa: ANN401 - passed on
        it._fire(schedule, schedule.next_us, times.after(schedule.next_us), 0)
        return 1

    patch.setattr(Schedules, "_catch_up", catch_up)


def paused_schedules_go_on(patch: Patch) -> None:
    set_paused = Schedule.set_paused

    def goes_on(schedule: Schedule, event: e.SchedulePaused) -> None:
        next_us = schedule.next_us
        set_paused(schedule, event)
        schedule.next_us = schedule.next_us or next_us

    patch.setattr(Schedule, "set_paused", goes_on)


def schedules_publish_too_early(patch: Patch) -> None:
    tick = Schedules.tick

    def early(it: Schedules) -> None:
        now_us = it._journal.now_us
        it._journal.now_us = now_us + 3_000
        tick(it)
        it._journal.now_us = now_us

    patch.setattr(Schedules, "tick", early)


# --- queues that end by themselves


def queues_with_consumers_end(patch: Patch) -> None:
    patch.setattr(Queue, "has_consumers", property(lambda _: False))


def queues_never_end(patch: Patch) -> None:
    patch.setattr(Expiring, "next", lambda *_: None)


PLANTED = [
    delayed_messages_come_a_moment_early,
    delays_are_of_the_wall_clock_at_the_start,
    what_comes_while_more_is_read_is_forgotten,
    entries_not_committed_to_the_index,
    lists_know_only_what_was_committed,
    entries_not_replayed,
    messages_that_were_taken_back_come,
    rescheduled_messages_come_when_they_were_due_before,
    purged_messages_come_when_they_are_due,
    being_due_meets_a_full_queue,
    undeleted_queues_have_lost_what_was_delayed,
    the_last_batch_of_a_transaction_left_out,
    what_is_held_no_more_is_not_acked,
    commits_carried_out_again,
    late_commits_of_a_lost_connection_taken,
    transactions_last_for_ever,
    commits_confirmed_before_they_are_durable,
    batches_of_a_transaction_counted_one_by_one,
    one_part_of_a_transaction_for_each_queue,
    dedup_ids_ignored,
    dedup_ids_lost_at_a_start,
    dedup_ids_forgotten_too_early,
    dedup_ids_remembered_for_too_long,
    schedules_publish_twice_for_a_time,
    what_was_missed_is_made_up_for_by_all,
    paused_schedules_go_on,
    schedules_publish_too_early,
    queues_with_consumers_end,
    queues_never_end,
]
"""All of them."""

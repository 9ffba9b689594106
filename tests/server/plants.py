"""Bugs in the rules of delivery, to be planted in a broker: each breaks one rule."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import msgspec
import pytest

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections.bindings import Bindings
from vibemq.projections.dead_letter import DeadLetters as DeadLettersState
from vibemq.projections.group import Group, Lane
from vibemq.projections.intervals import IntervalSet
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server import dispatch, publishing, removal
from vibemq.server.admission import Admission
from vibemq.server.dead_lettering import DeadLettering
from vibemq.server.dead_letters import DeadLetters
from vibemq.server.deliveries import Deliveries
from vibemq.server.dispatch import Consumers, Dispatcher
from vibemq.server.effects import Confirmed, StoredBatch
from vibemq.server.groups import Groups, Then
from vibemq.server.journal import Journal
from vibemq.server.key_order import KeyOrder
from vibemq.server.peeking import Peeking
from vibemq.server.publishers import Place, Publishers
from vibemq.server.queues import Queues
from vibemq.server.removal import Removal
from vibemq.server.subscription import Piece, Subscription

Patch: TypeAlias = pytest.MonkeyPatch


def always(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


# --- priorities, and who gets what


def low_priorities_first(patch: Patch) -> None:
    add_lane = Group.add_lane

    def ascending(group: Group, number: int) -> None:
        add_lane(group, number)
        group.lanes = dict(sorted(group.lanes.items()))

    patch.setattr(Group, "add_lane", ascending)


def no_guard_of_priorities(patch: Patch) -> None:
    patch.setattr(
        Dispatcher, "_lanes", lambda _self, _queue, group, _consumers, count: (group.lanes.items(), count, None)
    )


def guard_counts_what_it_meant_to_give(patch: Patch) -> None:
    lanes = Dispatcher._lanes

    def eager(self: Dispatcher, queue: Queue, group: Group, consumers: Consumers, count: int) -> Any:  # noqa: ANN401
        chosen, most, overtaken = lanes(self, queue, group, consumers, count)
        return chosen, most, None if overtaken is None else overtaken + 1

    patch.setattr(Dispatcher, "_lanes", eager)


def all_consumers_are_active(patch: Patch) -> None:
    with_credit = Consumers.with_credit
    patch.setattr(Consumers, "with_credit", lambda self, **_: with_credit(self, single_active=False))


def exclusive_is_not_checked(patch: Patch) -> None:
    patch.setattr(Groups, "check_exclusive", always(None))


def passed_over_counts_as_sent(patch: Patch) -> None:
    take = Lane.take

    def forgetful(lane: Lane, start: int, end: int) -> None:
        take(lane, start, end)
        lane.untouched.clear()

    patch.setattr(Lane, "take", forgetful)


def what_may_have_been_sent_is_not_said(patch: Patch) -> None:
    patch.setattr(dispatch, "_seen", lambda _lane, start, end: iter([(start, end, False)]))


# --- retries


def delay_does_not_grow(patch: Patch) -> None:
    retry_us = Deliveries._retry_us
    patch.setattr(Deliveries, "_retry_us", lambda self, settings, _, delay_ms: retry_us(self, settings, 1, delay_ms))


def delay_grows_without_end(patch: Patch) -> None:
    retry_us = Deliveries._retry_us

    def endless(self: Deliveries, settings: QueueSettings, attempt: int, delay_ms: int | None) -> int:
        return retry_us(self, msgspec.structs.replace(settings, retry_delay_max_ms=1 << 40), attempt, delay_ms)

    patch.setattr(Deliveries, "_retry_us", endless)


def jitter_makes_longer(patch: Patch) -> None:
    patch.setattr(Deliveries, "_chance", always(-500))


def jitter_is_without_bound(patch: Patch) -> None:
    patch.setattr(Deliveries, "_chance", always(2_000))


def delay_that_was_asked_for_is_not_taken_as_it_is(patch: Patch) -> None:
    retry_us = Deliveries._retry_us
    patch.setattr(Deliveries, "_retry_us", lambda self, settings, attempt, _: retry_us(self, settings, attempt, None))


def attempts_of_a_former_life_count(patch: Patch) -> None:
    patch.setattr(Lane, "attempts_of_this_life", lambda lane, *span: [(*run, run[2]) for run in lane.attempts(*span)])


# --- time to live


def own_time_to_live_ignored(patch: Patch) -> None:
    patch.setattr(StoredBatch, "expires_us", lambda stored, ttl_ms: stored.ready_us + ttl_ms * 1000 if ttl_ms else 0)


def time_to_live_of_the_queue_ignored(patch: Patch) -> None:
    expires_us = StoredBatch.expires_us
    patch.setattr(StoredBatch, "expires_us", lambda stored, _: expires_us(stored, 0))


def time_to_live_from_the_first_publish(patch: Patch) -> None:
    expires_us = StoredBatch.expires_us

    def early(stored: StoredBatch, ttl_ms: int) -> int:
        late = expires_us(stored, ttl_ms)
        return late and late - stored.ready_us + stored.time_us

    patch.setattr(StoredBatch, "expires_us", early)


def dead_letters_keep_their_own_time(patch: Patch) -> None:
    init = StoredBatch.__init__

    def alive(self: StoredBatch, *args: Any, dead: bool = False) -> None:  # noqa: ANN401, ARG001
        init(self, *args)

    patch.setattr(StoredBatch, "__init__", alive)


def too_old_is_handed_out(patch: Patch) -> None:
    """And the queue notices only what is too old while nobody takes it."""
    expire = Removal.expire
    patch.setattr(Removal, "expire", lambda self, queue, group: 0 if group.held else expire(self, queue, group))
    pick = Dispatcher._pick

    def blind(self: Dispatcher, queue: Queue, *more: Any) -> Any:  # noqa: ANN401
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(StoredBatch, "expires_us", always(0))
            return pick(self, queue, *more)

    patch.setattr(Dispatcher, "_pick", blind)


def nobody_wakes_for_what_becomes_too_old(patch: Patch) -> None:
    expire = Removal.expire

    def silent(self: Removal, queue: Queue, group: Group) -> int:
        expire(self, queue, group)
        return 0

    patch.setattr(Removal, "expire", silent)


# --- full queues


def full_queue_takes_all(patch: Patch) -> None:
    patch.setattr(Admission, "fitting", lambda _self, _queue, batch, _before: batch.count)


def room_for_one_less(patch: Patch) -> None:
    fitting = Admission.fitting
    patch.setattr(Admission, "fitting", lambda self, *args: max(0, fitting(self, *args) - 1))


def bytes_are_not_limited(patch: Patch) -> None:
    patch.setattr(Queue, "bytes", property(always(0)))


def too_many_are_dropped(patch: Patch) -> None:
    patch.setattr(removal, "_as_far_as_needed", lambda piece, *_: piece)


def high_priorities_are_dropped_first(patch: Patch) -> None:
    trim = Removal.trim

    def reversed_lanes(self: Removal, queue: Queue, group: Group) -> bool:
        lanes = group.lanes
        group.lanes = dict(sorted(lanes.items()))
        try:
            return trim(self, queue, group)
        finally:
            group.lanes = lanes

    patch.setattr(Removal, "trim", reversed_lanes)


def overflow_is_not_dead_lettered(patch: Patch) -> None:
    remove = Removal._remove
    patch.setattr(
        Removal,
        "_remove",
        lambda self, *args, dead_letter: remove(self, *args, dead_letter=dead_letter and args[4] == 3),
    )


def drop_newest_is_silent(patch: Patch) -> None:
    patch.setattr(publishing, "Confirmed", lambda *args: Confirmed(*args)._replace(dropped=0))


def lag_is_not_limited(patch: Patch) -> None:
    over = Removal._over

    def patient(self: Removal, queue: Queue, group: Group) -> tuple[int, int]:
        settings = queue.settings
        queue.settings = msgspec.structs.replace(settings, group_max_lag=0)
        try:
            return over(self, queue, group)
        finally:
            queue.settings = settings

    patch.setattr(Removal, "_over", patient)


def one_group_pays_for_another(patch: Patch) -> None:
    over = Removal._over
    patch.setattr(Removal, "_over", lambda self, queue, group: over(self, queue, queue.behind or group))


# --- publishers that wait


def nobody_is_unblocked(patch: Patch) -> None:
    patch.setattr(Publishers, "unblock", always(None))


def unblocked_too_early(patch: Patch) -> None:
    patch.setattr(Publishers, "_takes", always(True))


def later_batches_overtake(patch: Patch) -> None:
    patch.setattr(Place, "has_turn", always(True))


# --- dead letters


def redriven_without_attempts(patch: Patch) -> None:
    patch.setattr(Lane, "forgive", always(None))


def redriven_to_the_lowest_lane(patch: Patch) -> None:
    received = DeadLettersState.received

    def flat(self: DeadLettersState, offset: int, time_us: int, event: e.DeadLettered) -> None:
        received(self, offset, time_us, event)
        self.runs[-1] = self.runs[-1]._replace(lane=0)

    patch.setattr(DeadLettersState, "received", flat)


def filter_lets_everything_through(patch: Patch) -> None:
    patch.setattr(DeadLetters, "_fits", always(True))


def redrive_into_a_full_queue(patch: Patch) -> None:
    patch.setattr(DeadLetters, "_room", lambda _self, _target, count, _lengths: count)


def redriven_stays_a_dead_letter(patch: Patch) -> None:
    patch.setattr(DeadLettersState, "settled", always(None))


def dead_letters_of_dead_letters(patch: Patch) -> None:
    send = DeadLettering.send
    patch.setattr(DeadLettering, "send", lambda self, *args, again: send(self, *args, again=False))  # noqa: ARG005


# --- groups


def group_begins_one_too_late(patch: Patch) -> None:
    at = Groups.at

    def late(self: Groups, queue: Queue, start: str, place: int, connection: int, request: int, then: Then) -> None:
        def later(queue: Queue, sequence: int) -> None:
            then(queue, min(sequence + 1, queue.next[0]))

        at(self, queue, start, place, connection, request, later)

    patch.setattr(Groups, "at", late)


def seek_leaves_what_is_held(patch: Patch) -> None:
    patch.setattr(Subscription, "close_all", lambda subscription: list(subscription.held()))


def seek_forgets_what_was_sent(patch: Patch) -> None:
    seek = Group.seek

    def forgetful(group: Group, sequence: int) -> None:
        below = group.lanes[0].redelivered_below
        seek(group, sequence)
        group.lanes[0].redelivered_below = below

    patch.setattr(Group, "seek", forgetful)


def seek_keeps_attempts(patch: Patch) -> None:
    seek = Group.seek

    def counting(group: Group, sequence: int) -> None:
        failed = {n: IntervalSet.restore(marked.snapshot()) for n, marked in group.lanes[0].failed.items()}
        seek(group, sequence)
        group.lanes[0].failed = failed

    patch.setattr(Group, "seek", counting)


def idle_groups_stay(patch: Patch) -> None:
    patch.setattr(Groups, "_idle_until_us", always(None))


def idle_groups_go_too_early(patch: Patch) -> None:
    until_us = Groups._idle_until_us

    def hasty(self: Groups, queue: Queue, group: Group) -> int | None:
        due_us = until_us(self, queue, group)
        return due_us if due_us is None else due_us - 30_000

    patch.setattr(Groups, "_idle_until_us", hasty)


def consumers_of_a_deleted_group_hear_nothing(patch: Patch) -> None:
    patch.setattr(Deliveries, "tell_ended", always(None))


def without_acks_messages_are_held(patch: Patch) -> None:
    def held(queue: Queue, event: e.Delivered) -> None:
        queue.groups[event.group].hand_out(event.subscription, event.spans)

    patch.setattr(Queue, "delivered", held)


def purged_messages_come_back(patch: Patch) -> None:
    purged = Queue.purged

    def shallow(queue: Queue, event: e.QueuePurged) -> None:
        floor = queue.floor
        purged(queue, event)
        queue.floor = floor

    patch.setattr(Queue, "purged", shallow)


# --- keys, topics, queues


def keys_go_side_by_side(patch: Patch) -> None:
    meet = KeyOrder._meet

    def careless(self: KeyOrder, stored: StoredBatch, start: int, end: int, *, waiting: bool) -> None:
        self._owner.clear()
        meet(self, stored, start, end, waiting=waiting)

    patch.setattr(KeyOrder, "_meet", careless)


def key_is_free_while_its_message_waits(patch: Patch) -> None:
    release = Deliveries._release

    def hasty(
        self: Deliveries,
        queue: Queue,
        subscription: Subscription,
        pieces: Iterable[Piece],
        reason: e.ReleaseReason,
        **more: Any,  # noqa: ANN401
    ) -> None:
        pieces = list(pieces)
        keys = self._key_order(subscription)
        if keys is not None and more.get("not_before_us"):
            for piece in pieces:
                keys.settled(piece.span[1], piece.span[2])
        release(self, queue, subscription, pieces, reason, **more)

    patch.setattr(Deliveries, "_release", hasty)


def stuck_key_stops_the_others(patch: Patch) -> None:
    next_free = KeyOrder.next_free
    patch.setattr(KeyOrder, "next_free", lambda self, *args: None if self._parked_count else next_free(self, *args))


def parked_message_is_forgotten(patch: Patch) -> None:
    def alone(self: KeyOrder, start: int, end: int) -> bool:
        for sequence in range(start, end):
            self._owner.pop(self._key.pop(sequence, 0), None)
        return False

    patch.setattr(KeyOrder, "settled", alone)


def topic_misses_a_queue(patch: Patch) -> None:
    match = Bindings.match
    patch.setattr(Bindings, "match", lambda self, topic: match(self, topic)[:1])


def unroutable_is_lost(patch: Patch) -> None:
    bound_to = Admission.bound_to

    def any_queue(self: Admission, topic: str) -> Iterator[Queue]:
        yield from list(bound_to(self, topic)) or list(self._state.queues.values())[:1]

    patch.setattr(Admission, "bound_to", any_queue)


def deleted_queue_comes_back_empty(patch: Patch) -> None:
    undeleted = Queue.undeleted

    def empty(queue: Queue, event: e.QueueUndeleted, time_us: int) -> None:
        undeleted(queue, event, time_us)
        for group in queue.groups.values():
            group.purge(queue.next)

    patch.setattr(Queue, "undeleted", empty)


def deleted_queue_cannot_go_for_good(patch: Patch) -> None:
    patch.setattr(Queues, "tick", always(()))


def peek_shows_what_is_held(patch: Patch) -> None:
    peek = Peeking.peek

    def greedy(self: Peeking, connection: int, request: int, queue: Queue, group: Group | None, *more: Any) -> None:  # noqa: ANN401
        if group is None:
            peek(self, connection, request, queue, group, *more)
            return
        with pytest.MonkeyPatch.context() as inner:
            for lane in group.lanes.values():
                inner.setattr(lane, "returned", IntervalSet.restore(lane.returned.snapshot()))
            for held in group.held.values():
                for number, spans in held.items():
                    for start, end in spans:
                        group.lanes[number].returned.add(start, end)
            peek(self, connection, request, queue, group, *more)

    patch.setattr(Peeking, "peek", greedy)


def settings_are_not_changed(patch: Patch) -> None:
    patch.setattr(Queue, "changed", always(None))


def events_are_applied_in_another_way_when_replayed(patch: Patch) -> None:
    """The live state forgets the floor of a purge; the replay does not."""
    record = Journal.record

    def live_only(journal: Journal, event: e.Event, payload: Any = ()) -> int:  # noqa: ANN401
        offset = record(journal, event, payload)
        if isinstance(event, e.QueuePurged):
            journal.state.queues[event.queue].floor = 1
        return offset

    patch.setattr(Journal, "record", live_only)


def checkpoint_leaves_out_groups(patch: Patch) -> None:
    restore = Projector._restore_part

    def partly(self: Projector, key: str, as_of: int, snapshot: list[Any]) -> None:
        restore(self, key, as_of, snapshot)
        for queue in self.queues.values():
            for group in queue.groups.values():
                for lane in group.lanes.values():
                    lane.untouched.clear()

    patch.setattr(Projector, "_restore_part", partly)

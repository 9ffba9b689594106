"""Bugs in how messages are delivered, kept, dropped and sent back; each breaks one rule, and is as small as can be."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections.bindings import Bindings
from vibemq.projections.group import Group, Lane
from vibemq.projections.queue import Queue
from vibemq.server import publishing, removal
from vibemq.server.admission import Admission
from vibemq.server.deliveries import Deliveries
from vibemq.server.dispatch import Consumers, Dispatcher, ready_spans
from vibemq.server.effects import Confirmed, Find, StoredBatch
from vibemq.server.groups import Groups
from vibemq.server.key_order import KeyOrder
from vibemq.server.publishers import Place, Publishers
from vibemq.server.queues import Queues
from vibemq.server.rates import Bucket
from vibemq.server.removal import Removal
from vibemq.server.storage import Storage
from vibemq.server.subscription import Subscription

Patch = pytest.MonkeyPatch


# --- time to live


def expired_messages_stay(patch: Patch) -> None:
    """They are removed only when it would be their turn."""
    patch.setattr(Removal, "expire", lambda *_: 0)


def expired_messages_delivered(patch: Patch) -> None:
    """Nothing is ever too old."""
    patch.setattr(StoredBatch, "expires_us", lambda *_: 0)


def own_time_to_live_ignored(patch: Patch) -> None:
    """Only the queue's counts."""
    patch.setattr(
        StoredBatch, "expires_us", lambda stored, ttl_ms: stored.ready_us + ttl_ms * 1000 if ttl_ms else 0
    )  # fmt: skip


def age_counted_from_the_publish(patch: Patch) -> None:
    """What comes back to work has its former life counted, too."""
    expires_us = StoredBatch.expires_us
    patch.setattr(
        StoredBatch,
        "expires_us",
        lambda stored, ttl_ms: (
            expires_us(stored, ttl_ms) and expires_us(stored, ttl_ms) - stored.ready_us + stored.time_us
        ),
    )


# --- groups


def seek_forgets_what_came_back(patch: Patch) -> None:
    """A group that goes back keeps what was returned to it, and has that and nothing else below its old cursor."""
    seek = Group.seek

    def forgetful(group: Group, sequence: int) -> None:
        returned = list(group.lanes[e.DEFAULT_LANE].returned)
        seek(group, sequence)
        lane = group.lanes[e.DEFAULT_LANE]
        for start, end in returned:
            if end <= lane.cursor:
                lane.returned.add(start, end)

    patch.setattr(Group, "seek", forgetful)


def seek_goes_forth_only(patch: Patch) -> None:
    """Going back leaves the cursor where it is."""
    seek = Group.seek
    patch.setattr(
        Group, "seek", lambda group, sequence: seek(group, max(sequence, group.lanes[e.DEFAULT_LANE].cursor))
    )  # fmt: skip


def group_created_at_the_wrong_place(patch: Patch) -> None:
    """The head is where the queue once began, also after a purge."""
    at = Groups.at

    def from_one(groups: Groups, queue: Queue, start: str, where: int, *more: Any) -> None:  # noqa: ANN401 - passed on
        at(groups, queue, *(("sequence", 1) if start == "head" and queue.floor == 1 else (start, where)), *more)

    patch.setattr(Groups, "at", from_one)
    patch.setattr(Queue, "purged", _purge_without_floor(Queue.purged))


def _purge_without_floor(purged: Any) -> Any:  # noqa: ANN401 - a method
    def wrong(queue: Queue, event: e.QueuePurged) -> None:
        floor = queue.floor
        purged(queue, event)
        queue.floor = floor

    return wrong


def tail_is_the_last_message(patch: Patch) -> None:
    """A new group gets one that was there before it."""
    at = Groups.at

    def one_less(groups: Groups, queue: Queue, start: str, where: int, *more: Any) -> None:  # noqa: ANN401 - passed on
        if start == "tail" and queue.next[e.DEFAULT_LANE] > queue.floor:
            start, where = "sequence", queue.next[e.DEFAULT_LANE] - 1
        at(groups, queue, start, where, *more)

    patch.setattr(Groups, "at", one_less)


def time_looked_up_wrongly(patch: Patch) -> None:
    """The message behind the one that is wanted."""
    find = Storage.find
    patch.setattr(Storage, "find", lambda storage, wanted: _one_more(find(storage, wanted), wanted))


def _one_more(found: int, wanted: Find) -> int:
    return min(found + 1, wanted.end)


def idle_groups_stay(patch: Patch) -> None:
    """Nobody looks after them."""
    patch.setattr(Groups, "tick", lambda *_: None)


def idle_groups_deleted_too_early(patch: Patch) -> None:
    """Their time runs from when they were made."""
    idle_until_us = Groups._idle_until_us

    def early(groups: Groups, queue: Queue, group: Group) -> int | None:
        due_us = idle_until_us(groups, queue, group)
        return due_us and due_us - 10_000

    patch.setattr(Groups, "_idle_until_us", early)


def group_lag_ignored(patch: Patch) -> None:
    """A group may be behind by any number."""
    over = Removal._over

    def without(it: Removal, queue: Queue, group: Group) -> tuple[int, int]:
        found, size = over(it, queue, group)
        return (found, size) if not queue.settings.group_max_lag else (0, 0)

    patch.setattr(Removal, "_over", without)


# --- order


def priority_ignored(patch: Patch) -> None:
    """Lanes stand in the order in which they were first used."""

    def unsorted(group: Group, number: int) -> None:
        group.lanes.setdefault(number, Lane())

    patch.setattr(Group, "add_lane", unsorted)


def priority_guard_ignored(patch: Patch) -> None:
    """The lowest priority waits for ever."""
    patch.setattr(
        Dispatcher, "_lanes", lambda _, __, group, ___, count: (group.lanes.items(), count, None)
    )  # fmt: skip


def key_released_too_early(patch: Patch) -> None:
    """A message that waits to be tried again lets the next of its key go first."""
    release = Deliveries._release

    def generous(
        deliveries: Deliveries, queue: Queue, subscription: Subscription, pieces: Iterable[Any], *args: Any, **more: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        given_back = list(pieces)
        release(deliveries, queue, subscription, given_back, *args, **more)
        keys = deliveries._key_order(subscription)
        if keys is not None and more.get("not_before_us"):
            for piece in given_back:
                keys.settled(*piece.span[1:])

    patch.setattr(Deliveries, "_release", generous)


def keys_of_waiting_messages_forgotten(patch: Patch) -> None:
    """When the consumers of a group come anew, only what is ready has its key looked up."""
    init = KeyOrder.__init__

    def forgetful(order: KeyOrder, group: Group) -> None:
        init(order, group)
        order._unknown_waiting.clear()

    patch.setattr(KeyOrder, "__init__", forgetful)


def any_consumer_served_where_one_is_active(patch: Patch) -> None:
    """Whose turn it is gets the next one."""
    with_credit = Consumers.with_credit

    def everyone(consumers: Consumers, *, single_active: bool) -> list[Subscription]:  # noqa: ARG001 - that is the bug
        return with_credit(consumers, single_active=False)

    patch.setattr(Consumers, "with_credit", everyone)


def exclusive_consumers_not_alone(patch: Patch) -> None:
    patch.setattr(Groups, "check_exclusive", lambda *_, **__: None)


# --- room and rates


def newest_dropped_instead_of_oldest(patch: Patch) -> None:
    """What is too much goes from the wrong end."""

    def last_first(lane: Lane, next_sequence: int, count: int) -> Iterator[tuple[int, int]]:
        spans = list(ready_spans(lane, next_sequence, count))
        return iter([(number, number + 1) for start, end in spans for number in range(start, end)][::-1])

    trim = Removal.trim

    def wrong(it: Removal, queue: Queue, group: Group) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(removal, "ready_spans", last_first)
            return trim(it, queue, group)

    patch.setattr(Removal, "trim", wrong)


def more_dropped_than_needed(patch: Patch) -> None:
    """One too many."""
    over = Removal._over

    def one_more(it: Removal, queue: Queue, group: Group) -> tuple[int, int]:
        found, size = over(it, queue, group)
        return found + (found > 0), size

    patch.setattr(Removal, "_over", one_more)


def overflow_not_dropped(patch: Patch) -> None:
    patch.setattr(Removal, "trim", lambda *_: False)


def dropped_messages_confirmed(patch: Patch) -> None:
    """Who publishes to a queue that drops the newest does not hear of it."""

    def silent(*args: Any) -> Confirmed:  # noqa: ANN401 - passed on as they are
        return Confirmed(*args)._replace(dropped=0)

    patch.setattr(publishing, "Confirmed", silent)


def full_queues_take_more(patch: Patch) -> None:
    patch.setattr(Admission, "fitting", lambda _, __, batch, ___: batch.count)


def publishers_never_told_to_go_on(patch: Patch) -> None:
    patch.setattr(Publishers, "unblock", lambda _: None)


def unblocked_out_of_order(patch: Patch) -> None:
    """What was on its way when a publisher was told to go on overtakes what it sends again."""

    def any_turn(place: Place, sequence: int, oldest: int) -> bool:
        place.expected = [one for one in place.expected if one.sequence != sequence and one.sequence >= oldest]
        return not place.waits

    patch.setattr(Place, "has_turn", any_turn)


def deliver_rate_ignored(patch: Patch) -> None:
    patch.setattr(Bucket, "available", lambda *_: 1 << 30)


def publish_rate_ignored(patch: Patch) -> None:
    patch.setattr(Admission, "check_rate", lambda *_: None)
    patch.setattr(Publishers, "check_rate", lambda *_: None)


def consumers_not_told_of_a_seek(patch: Patch) -> None:
    """They go on with what is no longer theirs."""
    sought = Deliveries.sought

    def silent(deliveries: Deliveries, queue: Queue, group: Group) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Deliveries, "_tell_lost", lambda *_: None)
            sought(deliveries, queue, group)

    patch.setattr(Deliveries, "sought", silent)


def pulls_never_end(patch: Patch) -> None:
    patch.setattr(Deliveries, "_end_pulls", lambda _: None)


# --- failures and dead letters


def delays_do_not_end_at_their_cap(patch: Patch) -> None:
    """They double for ever."""
    retry_us = Deliveries._retry_us

    def endless(deliveries: Deliveries, settings: QueueSettings, attempt: int, delay_ms: int | None) -> int:
        uncapped = msgspec.structs.replace(settings, retry_delay_max_ms=1 << 40)
        return retry_us(deliveries, uncapped, attempt, delay_ms)

    patch.setattr(Deliveries, "_retry_us", endless)


def redrive_loses_the_attempts(patch: Patch) -> None:
    patch.setattr(Lane, "forgive", lambda *_: None)


def redriven_messages_have_no_new_life(patch: Patch) -> None:
    """Their former attempts count as if they had failed in this one."""

    def unforgiven(lane: Lane, start: int, end: int, attempts: int) -> None:
        for _ in range(attempts):
            lane.count_failure(start, end)

    patch.setattr(Lane, "forgive", unforgiven)


def dead_letter_counted_twice(patch: Patch) -> None:
    """It goes to the dead letters, and stays where it was."""
    dead_lettered = Queue.dead_lettered

    def kept(queue: Queue, event: e.DeadLettered) -> None:
        dead_lettered(queue, event)
        for number, start, end in event.spans:
            queue.groups[event.group].lanes[number].returned.add(start, end)

    patch.setattr(Queue, "dead_lettered", kept)


# --- queues and topics


def unbound_queues_get_more(patch: Patch) -> None:
    patch.setattr(Bindings, "discard", lambda *_: None)


def deleted_queues_get_more(patch: Patch) -> None:
    """A queue that can be brought back is still bound, and gets what it would have got."""

    def all_of_them(it: Admission, topic: str) -> Iterator[Queue]:
        return (it._state.queues[number] for number in it._state.bindings.match(topic))

    patch.setattr(Admission, "bound_to", all_of_them)


def bound_before_it_is_durable(patch: Patch) -> None:
    answer = Queues._answer

    def at_once(queues: Queues, connection: int, request: int, result: Any) -> None:  # noqa: ANN401 - of any kind
        answer(queues, connection, request, result)
        effects = queues._journal.effects
        if list(result) == ["count"]:
            effects[-1] = effects[-1]._replace(after=0)

    patch.setattr(Queues, "_answer", at_once)


def undelete_loses_messages(patch: Patch) -> None:
    """What had been delivered before is there, the rest is not."""
    undeleted = Queue.undeleted

    def poorer(queue: Queue, event: e.QueueUndeleted, time_us: int) -> None:
        undeleted(queue, event, time_us)
        for group in queue.groups.values():
            for number, lane in group.lanes.items():
                lane.cursor = queue.next[number]

    patch.setattr(Queue, "undeleted", poorer)


def deleted_queues_stay(patch: Patch) -> None:
    patch.setattr(Queues, "tick", lambda _: [])


def rename_forgotten_by_a_checkpoint(patch: Patch) -> None:
    """A queue comes back from a checkpoint under the name that it was declared with."""
    renamed = Queue.renamed
    names: dict[int, str] = {}

    def noted(queue: Queue, event: e.QueueRenamed) -> None:
        names.setdefault(id(queue), queue.name)
        renamed(queue, event)

    snapshot = Queue.snapshot

    def old(queue: Queue) -> list[Any]:
        number, name, *rest = snapshot(queue)
        return [number, names.get(id(queue), name), *rest]

    patch.setattr(Queue, "renamed", noted)
    patch.setattr(Queue, "snapshot", old)


PLANTED = [
    expired_messages_stay,
    expired_messages_delivered,
    own_time_to_live_ignored,
    age_counted_from_the_publish,
    seek_forgets_what_came_back,
    seek_goes_forth_only,
    group_created_at_the_wrong_place,
    tail_is_the_last_message,
    time_looked_up_wrongly,
    idle_groups_stay,
    idle_groups_deleted_too_early,
    group_lag_ignored,
    priority_ignored,
    priority_guard_ignored,
    key_released_too_early,
    keys_of_waiting_messages_forgotten,
    any_consumer_served_where_one_is_active,
    exclusive_consumers_not_alone,
    newest_dropped_instead_of_oldest,
    more_dropped_than_needed,
    overflow_not_dropped,
    dropped_messages_confirmed,
    full_queues_take_more,
    publishers_never_told_to_go_on,
    unblocked_out_of_order,
    deliver_rate_ignored,
    publish_rate_ignored,
    consumers_not_told_of_a_seek,
    pulls_never_end,
    delays_do_not_end_at_their_cap,
    redrive_loses_the_attempts,
    redriven_messages_have_no_new_life,
    dead_letter_counted_twice,
    unbound_queues_get_more,
    deleted_queues_get_more,
    bound_before_it_is_durable,
    undelete_loses_messages,
    deleted_queues_stay,
    rename_forgotten_by_a_checkpoint,
]
"""All of them."""

"""Each rule of delivery can fail: with a bug planted in the broker, one of the random histories finds it."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.server import plants, transaction_plants
from tests.server.machine import Machine, long_history
from tests.server.test_broker_model import WEIGHTS as LANES_WEIGHTS
from tests.server.test_broker_model import LanesMachine
from tests.server.test_broker_model import WithoutMemory as LanesWithoutMemory
from tests.server.test_groups_model import WEIGHTS as GROUPS_WEIGHTS
from tests.server.test_groups_model import GroupsMachine
from tests.server.test_keys_model import WEIGHTS as KEYS_WEIGHTS
from tests.server.test_keys_model import KeysMachine
from vibemq.errors import RequestError

SEEDS: Final = 40
"""Histories that are tried, until one finds the bug."""

LANES: Final = [
    plants.events_are_applied_in_another_way_when_replayed,
    plants.deleted_queue_cannot_go_for_good,
    plants.peek_shows_what_is_held,
    plants.settings_are_not_changed,
    plants.dead_letters_of_dead_letters,
    plants.topic_misses_a_queue,
    plants.unroutable_is_lost,
    plants.deleted_queue_comes_back_empty,
    plants.filter_lets_everything_through,
    plants.redrive_into_a_full_queue,
    plants.redriven_stays_a_dead_letter,
    plants.unblocked_too_early,
    plants.later_batches_overtake,
    plants.redriven_without_attempts,
    plants.redriven_to_the_lowest_lane,
    plants.high_priorities_are_dropped_first,
    plants.overflow_is_not_dead_lettered,
    plants.drop_newest_is_silent,
    plants.nobody_is_unblocked,
    plants.full_queue_takes_all,
    plants.room_for_one_less,
    plants.bytes_are_not_limited,
    plants.too_many_are_dropped,
    plants.time_to_live_from_the_first_publish,
    plants.too_old_is_handed_out,
    plants.nobody_wakes_for_what_becomes_too_old,
    plants.attempts_of_a_former_life_count,
    plants.own_time_to_live_ignored,
    plants.time_to_live_of_the_queue_ignored,
    plants.jitter_makes_longer,
    plants.jitter_is_without_bound,
    plants.delay_that_was_asked_for_is_not_taken_as_it_is,
    plants.low_priorities_first,
    plants.no_guard_of_priorities,
    plants.guard_counts_what_it_meant_to_give,
    plants.all_consumers_are_active,
    plants.exclusive_is_not_checked,
    plants.what_may_have_been_sent_is_not_said,
    plants.delay_does_not_grow,
    plants.delay_grows_without_end,
]
GROUPS: Final = [
    plants.consumers_of_a_deleted_group_hear_nothing,
    plants.without_acks_messages_are_held,
    plants.purged_messages_come_back,
    plants.lag_is_not_limited,
    plants.one_group_pays_for_another,
    plants.group_begins_one_too_late,
    plants.seek_leaves_what_is_held,
    plants.seek_forgets_what_was_sent,
    plants.seek_keeps_attempts,
    plants.idle_groups_stay,
    plants.idle_groups_go_too_early,
]
KEYS: Final = [
    plants.keys_go_side_by_side,
    plants.key_is_free_while_its_message_waits,
    plants.stuck_key_stops_the_others,
    plants.parked_message_is_forgotten,
    plants.passed_over_counts_as_sent,
    plants.checkpoint_leaves_out_groups,
]
TRANSACTIONS: Final = [
    transaction_plants.acks_are_done_although_a_publish_is_refused,
    transaction_plants.queues_are_created_for_what_is_refused,
    transaction_plants.each_batch_has_all_the_room,
    transaction_plants.acks_make_no_room,
    transaction_plants.what_was_lost_is_left_out,
    transaction_plants.acks_of_a_transaction_are_forgotten_by_the_consumer,
    transaction_plants.commit_again_is_done_again,
    transaction_plants.attempts_outlive_their_client,
    transaction_plants.attempts_have_no_end,
    transaction_plants.attempts_can_be_used_twice,
    transaction_plants.waiting_ends_an_attempt,
    transaction_plants.transactions_overtake_what_waits,
    transaction_plants.only_the_last_batch_is_waited_for,
    transaction_plants.every_batch_begins_the_record,
    transaction_plants.lanes_count_batches_apart,
    transaction_plants.a_part_takes_one_thing_of_a_record,
    transaction_plants.a_part_takes_everything_again,
    transaction_plants.the_answer_is_in_the_order_of_the_record,
]


def is_found(plant: Callable[[pytest.MonkeyPatch], None], machine: type[Machine], weights: dict[str, int]) -> bool:
    """Whether a history fails with the bug in the broker."""
    for seed in range(SEEDS):
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            try:
                long_history(machine(), seed, 600, weights)
            except (AssertionError, LookupError, RequestError):  # not where the plant itself is wrong
                return True
    return False


@pytest.mark.parametrize("plant", LANES, ids=lambda plant: plant.__name__)
def test_a_bug_in_what_all_queues_do_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert is_found(plant, LanesMachine, LANES_WEIGHTS)


@pytest.mark.parametrize("plant", GROUPS, ids=lambda plant: plant.__name__)
def test_a_bug_in_groups_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert is_found(plant, GroupsMachine, GROUPS_WEIGHTS)


@pytest.mark.parametrize("plant", KEYS, ids=lambda plant: plant.__name__)
def test_a_bug_in_the_order_of_keys_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert is_found(plant, KeysMachine, KEYS_WEIGHTS)


@pytest.mark.parametrize("plant", TRANSACTIONS, ids=lambda plant: plant.__name__)
def test_a_bug_in_transactions_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert is_found(plant, LanesMachine, LANES_WEIGHTS)


def test_a_bug_in_what_is_read_back_is_found() -> None:
    assert is_found(plants.dead_letters_keep_their_own_time, LanesWithoutMemory, LANES_WEIGHTS | {"load": 90})

"""A checker that never fails proves nothing: each bug planted here must be caught, and each was chosen to be small."""

import pytest

from tests.sim import bugs, delivery_bugs, time_bugs
from tests.sim.bugs import Plant
from tests.sim.scene import TASTES
from tests.sim.world import run_seed
from vibemq.errors import VibeMQError

SEEDS = 200
PLANTED = [*bugs.PLANTED, *delivery_bugs.PLANTED, *time_bugs.PLANTED]
TASTE: dict[Plant, str] = {
    bugs.requests_left_without_answer: "groups",
    delivery_bugs.idle_groups_deleted_too_early: "groups",
    delivery_bugs.delays_do_not_end_at_their_cap: "failing",
    delivery_bugs.keys_of_waiting_messages_forgotten: "failing",
    delivery_bugs.redrive_loses_the_attempts: "redriven",
    delivery_bugs.redriven_messages_have_no_new_life: "redriven",
    delivery_bugs.unblocked_out_of_order: "blocked",
    time_bugs.what_comes_while_more_is_read_is_forgotten: "delayed",
    time_bugs.undeleted_queues_have_lost_what_was_delayed: "delayed",
    time_bugs.batches_of_a_transaction_counted_one_by_one: "tight",
    time_bugs.late_commits_of_a_lost_connection_taken: "processing",
    time_bugs.dedup_ids_forgotten_too_early: "dedup",
    delivery_bugs.publishers_never_told_to_go_on: "blocked",
}
"""Histories in which a bug that seldom shows does so more often; of most, any will do."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS):
        try:
            run_seed(seed, temper=TASTE.get(plant, "any"))
        except (AssertionError, LookupError, VibeMQError) as problem:  # a Violation is an AssertionError
            assert f"python -m tests.sim.world {seed}" in "".join(problem.__notes__)  # noqa: PT017 - any of them will do
            return
    pytest.fail(f"{plant.__name__} was not noticed in {SEEDS} seeds")


@pytest.mark.parametrize("taste", TASTES)
def test_nothing_is_caught_where_nothing_is_planted(taste: str) -> None:
    for seed in range(20):
        run_seed(seed, temper=taste)

"""Which planted bug is caught by which test.

A bug is caught where the test passes without it and fails with it. The fastest test that catches it stands here.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

from tests.planted import bugs
from tests.sim import test_planted_bugs as simulation

Plant = Callable[[pytest.MonkeyPatch], None]

RECOVERY: Final = "tests.log.test_recovery"
FLIPS: Final = f"{RECOVERY}:test_every_flipped_bit_is_refused_or_cut_and_never_accepted"
FAILS: Final = "tests.log.test_faults:test_after_a_failed_write_or_sync_nothing_is_accepted"
FULL: Final = "tests.log.test_faults:test_a_full_disk_refuses_publishes_and_nothing_else_and_service_resumes"
ORDER: Final = "tests.planted.test_planted:segments_are_synced_in_order"
KNOWN: Final = f"{RECOVERY}:test_what_the_index_knows_to_be_synced_is_never_cut"
ZEROS: Final = f"{RECOVERY}:test_a_flipped_bit_in_the_zeros_behind_the_end_is_cut_and_reported"
COMMIT: Final = "tests.log.test_index:test_a_commit_takes_only_what_is_synced"
MODEL: Final = "tests.server.test_broker_model:histories"
KILLS: Final = "tests.crash.test_kills:kill_and_judge"


class Planted(NamedTuple):
    """A bug, the test that catches it as module:function, and the arguments to call that with.

    `process` bugs are planted in a real broker: the function takes a seed, and the command to run instead of `vibemq`.
    """

    plant: Plant
    caught_by: str
    arguments: dict[str, Any]
    process: bool = False
    fault: str = ""
    """What the failure must speak of."""

    @property
    def name(self) -> str:
        """The name of the bug."""
        return self.plant.__name__


TABLE: Final = [
    Planted(bugs.segment_not_synced_before_its_successor, ORDER, {}),
    Planted(bugs.header_checksum_not_verified, FLIPS, {"segment_bytes": 1 << 20}),
    Planted(bugs.body_checksums_not_verified, FLIPS, {"segment_bytes": 1 << 20}),
    Planted(bugs.synced_position_of_later_records_ignored, FLIPS, {"segment_bytes": 1 << 20}),
    Planted(bugs.synced_position_of_the_index_ignored, KNOWN, {}),
    Planted(bugs.torn_tail_not_cut, ZEROS, {}),
    Planted(bugs.joints_of_segments_not_checked, f"{RECOVERY}:test_bytes_between_two_segments_are_refused", {}),
    Planted(bugs.failed_sync_tried_again, FAILS, {"operation": "fdatasync", "after": 0}),
    Planted(bugs.failed_sync_forgotten, FAILS, {"operation": "fdatasync", "after": 0}),
    Planted(bugs.full_disk_not_noticed, FULL, {}),
    Planted(bugs.folder_not_locked, "tests.log.test_faults:test_a_second_opener_is_told_who_has_the_folder", {}),
    Planted(bugs.index_entry_for_an_unsynced_record, COMMIT, {}),
    Planted(bugs.lease_ignored, MODEL, {"seeds": range(5)}),
    Planted(bugs.attempts_not_counted, MODEL, {"seeds": range(5)}),
    Planted(bugs.attempts_lost_by_settling_a_neighbour, MODEL, {"seeds": range(5)}),
    Planted(bugs.release_loses_messages, MODEL, {"seeds": range(5)}),
    Planted(bugs.purge_takes_what_consumers_hold, MODEL, {"seeds": range(5)}),
    Planted(bugs.digest_ignores_a_field, MODEL, {"seeds": range(5)}),
    Planted(bugs.dedup_forgotten_after_restart, MODEL, {"seeds": range(5)}),
    Planted(bugs.stale_acks_settle, MODEL, {"seeds": range(5)}),
    Planted(bugs.confirm_before_write, KILLS, {"kills": range(3)}, process=True, fault="lost"),
    Planted(bugs.acks_not_logged, KILLS, {"kills": range(3)}, process=True, fault="delivered after a confirmed ack"),
    Planted(bugs.redelivered_not_set_after_a_kill, KILLS, {"kills": range(3)}, process=True, fault="redelivered flag"),
]  # fmt: skip

ELSEWHERE: Final = [
    *((plant.__name__, "tests/sim/test_planted_bugs.py") for plant in simulation.PLANTED),
    ("directory_not_synced", "tests/log/test_crash.py::test_a_sync_left_out_is_noticed"),
    ("file_not_synced", "tests/log/test_crash.py::test_a_sync_left_out_is_noticed"),
    ("records_that_were_cut_are_back", "tests/log/test_recovery.py::test_a_cut_that_is_not_done_is_noticed"),
]
"""Bugs that other tests plant and catch by themselves."""

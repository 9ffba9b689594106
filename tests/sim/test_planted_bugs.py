"""A checker that never fails proves nothing: each bug planted here must be caught, and each was chosen to be small."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.sim.shell import Shell
from tests.sim.world import run_seed
from vibemq import events as e
from vibemq.errors import VibeMQError
from vibemq.log import frame
from vibemq.log.log import Group, Log
from vibemq.projections.dead_letter import DeadLetters
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Group as QueueGroup
from vibemq.projections.queue import Queue
from vibemq.server.broker import Broker
from vibemq.server.checkpointer import Capture
from vibemq.server.deliveries import Deliveries

SEEDS = 200

Plant = Callable[[pytest.MonkeyPatch], None]


def effects_released_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shell, "durable", property(lambda shell: shell.log.next_offset))


def groups_not_synced(patch: pytest.MonkeyPatch) -> None:
    write_group = Log.write_group

    def write_only(log: Log, group: Group, sync: bool) -> None:  # noqa: ARG001 - that is the bug
        write_group(log, group, sync=False)

    patch.setattr(Log, "write_group", write_only)


def ack_applied_twice(patch: pytest.MonkeyPatch) -> None:
    acked = Queue.acked

    def twice(queue: Queue, event: e.Acked) -> None:
        acked(queue, event)
        acked(queue, event)

    patch.setattr(Queue, "acked", twice)


def acks_confirmed_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    answer = Deliveries._answer

    def at_once(deliveries: Deliveries, connection: int, request: int, asked: int, done: int) -> None:
        answer(deliveries, connection, request, asked, done)
        if request:
            effects = deliveries._journal.effects
            effects[-1] = effects[-1]._replace(after=0)

    patch.setattr(Deliveries, "_answer", at_once)


def redelivered_not_marked_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    leave_all = QueueGroup.leave_all

    def always_clean(group: QueueGroup, *, clean: bool, next_sequences: dict[int, int]) -> None:  # noqa: ARG001
        leave_all(group, clean=True, next_sequences=next_sequences)

    patch.setattr(QueueGroup, "leave_all", always_clean)


def torn_tail_kept(patch: pytest.MonkeyPatch) -> None:
    """A record whose header is whole counts, whatever became of its payload."""
    attach_body = frame.attach_body

    def believe(record: frame.Record, block: memoryview, index: int, log_id: int) -> None:
        try:
            attach_body(record, block, index, log_id)
        except frame.Damage:
            facts_at = index + frame.HEADER_BYTES
            record.facts = block[facts_at : facts_at + record.facts_bytes]
            record.payload = block[facts_at + record.facts_bytes : index + record.stored_bytes]

    patch.setattr(frame, "attach_body", believe)


def producers_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Broker, "_confirm_duplicate", lambda *_: False)


def state_that_no_log_holds(patch: pytest.MonkeyPatch) -> None:
    snapshot = DeadLetters.snapshot
    patch.setattr(DeadLetters, "snapshot", lambda dead: [*snapshot(dead), id(dead)])


def checkpoint_ahead_of_the_log(patch: pytest.MonkeyPatch) -> None:
    """The start of a checkpoint is taken after its parts: events between them are not replayed for all."""
    steps = Capture.steps

    def late_start(capture: Capture) -> Any:  # noqa: ANN401 - an iterator of nothing
        yield from steps(capture)
        capture.start = capture.wanted

    patch.setattr(Capture, "steps", late_start)


def every_event_applied_again(patch: pytest.MonkeyPatch) -> None:
    """A restored part forgets which events it holds."""

    def from_zero(_: Projector, part: Any, offset: int) -> bool:  # noqa: ANN401 - any part
        part.as_of = offset + 1
        return True

    patch.setattr(Projector, "_fresh", from_zero)


PLANTED: Sequence[Plant] = [
    effects_released_before_the_sync,
    groups_not_synced,
    ack_applied_twice,
    acks_confirmed_before_the_sync,
    redelivered_not_marked_after_a_crash,
    torn_tail_kept,
    producers_forgotten,
    state_that_no_log_holds,
    checkpoint_ahead_of_the_log,
    every_event_applied_again,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS):
        try:
            run_seed(seed)
        except (AssertionError, VibeMQError) as problem:  # a Violation is an AssertionError
            assert f"python -m tests.sim.world {seed}" in "".join(problem.__notes__)  # noqa: PT017 - any of them will do
            return
    pytest.fail(f"{plant.__name__} was not noticed in {SEEDS} seeds")

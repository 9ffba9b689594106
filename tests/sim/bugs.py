"""Bugs in what the broker writes, keeps and confirms, each as small as somebody might make it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.sim.disk import SimulatedDisk
from tests.sim.shell import Shell
from vibemq import events as e
from vibemq.errors import WriteFailed
from vibemq.log import frame
from vibemq.log.log import Group, Log
from vibemq.log.recovery import Recoverer
from vibemq.projections.dead_letter import DeadLetters
from vibemq.projections.group import Group as QueueGroup
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.protocol.frames import HEAD_BYTES, FrameReader
from vibemq.protocol.json_lines import LineReader
from vibemq.server.broker import Broker
from vibemq.server.checkpointer import Capture
from vibemq.server.clock import BrokerClock
from vibemq.server.deliveries import Deliveries
from vibemq.server.publishing import Publishing

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

    def always_clean(group: QueueGroup, time_us: int, *, clean: bool, next_sequences: dict[int, int]) -> None:  # noqa: ARG001
        leave_all(group, time_us, clean=True, next_sequences=next_sequences)

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
    patch.setattr(Publishing, "_confirm_duplicate", lambda *_: False)


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


def failed_write_confirmed(patch: pytest.MonkeyPatch) -> None:
    """What the disk said is not heard."""
    write_group = Log.write_group

    def deaf(log: Log, group: Group, sync: bool) -> None:
        try:
            write_group(log, group, sync)
        except WriteFailed:
            log.failure = ""

    patch.setattr(Log, "write_group", deaf)


def failed_sync_repeated(patch: pytest.MonkeyPatch) -> None:
    """The second one says that all is well, as there is nothing left that it would write."""
    write_group = Log.write_group

    def stubborn(log: Log, group: Group, sync: bool) -> None:
        try:
            write_group(log, group, sync)
        except WriteFailed:
            failure, log.failure = log.failure, ""
            try:
                group.chunks[-1].segment.file.fdatasync()
            except OSError as problem:
                log.failure = failure
                raise WriteFailed(failure) from problem
            log._written_mark = group.mark

    patch.setattr(Log, "write_group", stubborn)


def tail_not_written_again(patch: pytest.MonkeyPatch) -> None:
    """A start believes what the cache shows of a sync that failed."""
    settle = Recoverer._settle
    patch.setattr(Recoverer, "_settle", lambda it, base, _, end, cut: settle(it, base, end, end, cut=cut))


def publishes_take_the_reserve(patch: pytest.MonkeyPatch) -> None:
    admit = Log.admit
    patch.setattr(Log, "admit", lambda log, size: admit(log, size) or True)


def room_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Log, "space_returned", lambda *_: False)


def requests_left_without_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deliveries, "_answer_late", lambda *_: None)


def leases_follow_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set forward is believed while the broker runs."""
    now_us = BrokerClock.now_us

    def believing(clock: BrokerClock) -> int:
        clock._anchor_us += max(0, clock.wall_us() - now_us(clock))
        return now_us(clock)

    patch.setattr(BrokerClock, "now_us", believing)


def time_begins_anew_at_each_start(patch: pytest.MonkeyPatch) -> None:
    """A clock that was set back while the broker was down is believed."""
    init = BrokerClock.__init__
    patch.setattr(BrokerClock, "__init__", lambda clock, wall, monotonic, _: init(clock, wall, monotonic, 0))


def new_names_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedDisk, "sync_directory", lambda *_: None)


def bytes_lost_at_a_split_of_a_frame(patch: pytest.MonkeyPatch) -> None:
    """A head that came in two parts is taken for the whole of them, and the second part goes with it."""
    collect = FrameReader._collect

    def greedy(reader: FrameReader, data: memoryview) -> int:
        in_the_head = len(reader._partial) < HEAD_BYTES
        taken = collect(reader, data)
        return min(len(data), taken + 1) if in_the_head else taken

    patch.setattr(FrameReader, "_collect", greedy)


def lines_lost_at_a_split(patch: pytest.MonkeyPatch) -> None:
    feed = LineReader.feed

    def forgetful(reader: LineReader, data: memoryview, most: int = -1) -> Iterator[bytes]:
        if not bytes(data).endswith(b"\n"):
            reader._partial = bytearray()
        return feed(reader, data, most)

    patch.setattr(LineReader, "feed", forgetful)


def credit_not_used_up(patch: pytest.MonkeyPatch) -> None:
    credit = Deliveries.credit

    def generous(
        deliveries: Deliveries, connection: int, number: int, messages: int, size: int, handed: int, wait_ms: int
    ) -> None:
        credit(deliveries, connection, number, 2 * messages, size, handed, wait_ms)

    patch.setattr(Deliveries, "credit", generous)


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deliveries, "_expire", lambda *_: None)


def settled_messages_miscounted(patch: pytest.MonkeyPatch) -> None:
    """Of an ack of several messages one stays in the queue's length."""
    take_back = QueueGroup.take_back

    def short(group: QueueGroup, subscription: int, spans: e.Spans) -> None:
        take_back(group, subscription, spans)
        group.unacked += sum(end - start for _, start, end in spans) > 1

    patch.setattr(QueueGroup, "take_back", short)


def deleted_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    delete = Broker.delete

    def at_once(broker: Broker, connection: int, request: int, name: str, grace_ms: int | None) -> None:
        delete(broker, connection, request, name, grace_ms)
        effects = broker.journal.effects
        effects[-1] = effects[-1]._replace(after=0)

    patch.setattr(Broker, "delete", at_once)


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
    failed_write_confirmed,
    failed_sync_repeated,
    tail_not_written_again,
    publishes_take_the_reserve,
    room_not_noticed,
    requests_left_without_answer,
    leases_follow_the_wall_clock,
    time_begins_anew_at_each_start,
    new_names_not_synced,
    bytes_lost_at_a_split_of_a_frame,
    lines_lost_at_a_split,
    credit_not_used_up,
    leases_never_end,
    settled_messages_miscounted,
    deleted_before_it_is_durable,
]
"""All of them."""

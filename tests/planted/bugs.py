"""Bugs to plant: each is a patch of the product that makes one promise untrue, as small as somebody might make it.

They exist in tests only, and are put in by monkeypatching; `run.py` does it in a broker of its own process.
"""

from typing import Any

import msgspec
import pytest

from vibemq import events as e
from vibemq.errors import WriteFailed
from vibemq.log import frame, recovery
from vibemq.log.disk import AnyFile, Disk
from vibemq.log.index import Overlay, _Noted
from vibemq.log.log import Group, Log
from vibemq.log.recovery import Recoverer, Tail
from vibemq.log.space import Space
from vibemq.log.writer import Writer
from vibemq.projections.group import Group as QueueGroup
from vibemq.projections.group import Lane
from vibemq.projections.intervals import IntervalSet
from vibemq.projections.producers import Producers
from vibemq.projections.queue import Queue
from vibemq.server.deliveries import Deliveries
from vibemq.server.subscription import Piece, Subscription

Patch = pytest.MonkeyPatch


# -- the log


def segment_not_synced_before_its_successor(patch: Patch) -> None:
    """The old segment is cut to its length, and its last group is never synced under a policy other than always."""
    name_segment = Log._name_segment

    def without_sync(log: Log, segment: Any) -> None:  # noqa: ANN401 - an ActiveSegment
        old = log._writing
        assert old is not None
        log._writing = None
        name_segment(log, segment)
        old.file.truncate(old.end)

    patch.setattr(Log, "_name_segment", without_sync)


def header_checksum_not_verified(patch: Patch) -> None:
    """Whatever carries the magic is a header."""
    right = frame._checksum

    def believe(block: memoryview, index: int, log_id: int, base: int, at: int) -> frame.Record | None:
        header = block[index : index + frame.HEADER_BYTES]
        fixed = bytearray(header)
        fixed[:8] = right(header[8:], log_id).to_bytes(8, "little")
        return parse_header(memoryview(fixed), 0, log_id, base, at)

    parse_header = frame.parse_header
    patch.setattr(frame, "parse_header", believe)


def body_checksums_not_verified(patch: Patch) -> None:
    """What lies behind a whole header is its body."""

    def believe(record: frame.Record, block: memoryview, index: int, log_id: int) -> None:  # noqa: ARG001 - the bug
        facts_at = index + frame.HEADER_BYTES
        record.facts = block[facts_at : facts_at + record.facts_bytes]
        record.payload = block[facts_at + record.facts_bytes : index + record.stored_bytes]

    patch.setattr(frame, "attach_body", believe)


def synced_position_of_later_records_ignored(patch: Patch) -> None:
    """Damage is taken for a torn tail although records behind it say that it was durable."""

    def blind(file: AnyFile, log_id: int, base: int, at: int) -> Tail:
        return survey_tail(file, log_id, base, at)._replace(synced=0)

    survey_tail = recovery.survey_tail
    patch.setattr(recovery, "survey_tail", blind)


def synced_position_of_the_index_ignored(patch: Patch) -> None:
    """A log that ends too early is a log that ends there."""
    init = Recoverer.__init__

    def forget(self: Recoverer, disk: Any, log_id: int, start: int, known_synced: int) -> None:  # noqa: ANN401, ARG001
        init(self, disk, log_id, start, 0)

    patch.setattr(Recoverer, "__init__", forget)


def torn_tail_not_cut(patch: Patch) -> None:
    """What lies behind the end stays there."""
    patch.setattr(Recoverer, "_settle", lambda *_args, **_more: None)


def joints_of_segments_not_checked(patch: Patch) -> None:
    """A segment may end before its successor begins."""
    patch.setattr(Recoverer, "_check_joint", lambda *_: None)


def failed_sync_tried_again(patch: Patch) -> None:
    """An error of fsync is passed over: the next one, which succeeds, says nothing of what the first one dropped."""
    write_group = Log.write_group

    def again(log: Log, group: Group, sync: bool) -> None:
        try:
            write_group(log, group, sync)
        except WriteFailed:
            log.failure = ""

    patch.setattr(Log, "write_group", again)


def failed_sync_forgotten(patch: Patch) -> None:
    """The failure is raised once, and the log goes on as if nothing had been."""

    def forget(_: Log, failure: str) -> WriteFailed:
        return WriteFailed(failure)

    patch.setattr(Log, "_failed", forget)


def full_disk_not_noticed(patch: Patch) -> None:
    """Every publish is admitted."""
    patch.setattr(Space, "admit", lambda *_: True)


def folder_not_locked(patch: Patch) -> None:
    """Two brokers may write to one folder."""
    patch.setattr(Disk, "lock", lambda _: None)


def index_entry_for_an_unsynced_record(patch: Patch) -> None:
    """A commit of the index takes everything that was noted."""

    def everything(overlay: Overlay, _offset: int) -> _Noted:
        places, sequences, seals = overlay._noted
        return _Noted(list(places), list(sequences), list(seals))

    patch.setattr(Overlay, "before", everything)


# -- the state


def lease_ignored(patch: Patch) -> None:
    """A consumer may keep what it has for ever."""
    patch.setattr(Deliveries, "_expire", lambda *_: None)


def attempts_not_counted(patch: Patch) -> None:
    """A failed attempt leaves no trace."""
    patch.setattr(Lane, "count_failure", lambda *_: None)


def attempts_lost_by_settling_a_neighbour(patch: Patch) -> None:
    """An ack of one message forgets the failed attempts of the next."""
    forget = Lane.forget
    patch.setattr(Lane, "forget", lambda lane, start, end: forget(lane, start, end + 1))


def release_loses_messages(patch: Patch) -> None:
    """Of several messages that a consumer gives back the last one is nobody's."""
    add, released = IntervalSet.add, Queue.released

    def one_less(returned: IntervalSet, start: int, end: int) -> None:
        add(returned, start, max(start + 1, end - 1))

    def careless(queue: Queue, event: e.Released) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(IntervalSet, "add", one_less)
            released(queue, event)

    patch.setattr(Queue, "released", careless)


def purge_takes_what_consumers_hold(patch: Patch) -> None:
    """A purge counts unacked messages as gone."""
    purged = Queue.purged

    def everything(queue: Queue, event: e.QueuePurged) -> None:
        purged(queue, event)
        group = queue.groups[e.DEFAULT_GROUP]
        group.unacked = 0

    patch.setattr(Queue, "purged", everything)


def digest_ignores_a_field(patch: Patch) -> None:
    """Snapshots, and so digests and checkpoints, leave out how often messages failed."""
    snapshot = QueueGroup.snapshot

    def shorter(group: QueueGroup) -> list[Any]:
        *first, lanes, held, waiting, size = snapshot(group)
        return [*first, [[*lane[:5], [], []] for lane in lanes], held, waiting, size]

    patch.setattr(QueueGroup, "snapshot", shorter)


def dedup_forgotten_after_restart(patch: Patch) -> None:
    """A checkpoint brings back no producers."""

    def nobody(_cls: type[Producers], _snapshot: list[Any], as_of: int) -> Producers:
        producers = Producers()
        producers.as_of = as_of
        return producers

    patch.setattr(Producers, "restore", classmethod(nobody))


def stale_acks_settle(patch: Patch) -> None:
    """An ack settles what the subscription had once, also after its lease was lost."""
    close = Subscription.close

    def reopen(subscription: Subscription, start: int, end: int) -> list[Piece]:
        subscription.open.add(start, end)
        return close(subscription, start, end)

    patch.setattr(Subscription, "close", reopen)


# -- the broker as a process


def confirm_before_write(patch: Patch) -> None:
    """What was appended to the buffer counts as durable."""
    patch.setattr(Writer, "durable", property(lambda writer: writer._log.next_offset))


def acks_not_logged(patch: Patch) -> None:
    """Acks are applied and confirmed, and the log hears nothing of what they settle."""
    append = Log.append

    def forget(log: Log, event: e.Event, *args: Any, **more: Any) -> int:  # noqa: ANN401 - passed on as they are
        if isinstance(event, e.Acked):
            event = msgspec.structs.replace(event, spans=(), bytes=0)
        return append(log, event, *args, **more)

    patch.setattr(Log, "append", forget)


def redelivered_not_set_after_a_kill(patch: Patch) -> None:
    """A restart forgets that anything was sent before."""
    leave_all = QueueGroup.leave_all

    def always_clean(group: QueueGroup, time_us: int, *, clean: bool, next_sequences: dict[int, int]) -> None:  # noqa: ARG001
        leave_all(group, time_us, clean=True, next_sequences=next_sequences)

    patch.setattr(QueueGroup, "leave_all", always_clean)

"""The index knows what waits for its time: at each moment, after each commit, and after each crash and replay."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.log.building import TIME_US, open_log, write
from vibemq.events import (
    Cancelled,
    Entry,
    Event,
    Matured,
    Published,
    QueueDeleted,
    QueuePurged,
    Rescheduled,
    Routed,
    TransactionCommitted,
)
from vibemq.log import tables
from vibemq.log.delayed import FIRST, LAST, Waiting, due_key
from vibemq.log.disk import Disk
from vibemq.log.index import LmdbIndex, MemoryIndex
from vibemq.log.log import Log

MAP_BYTES = 64 << 20
AnyIndex = LmdbIndex | MemoryIndex


class Writer:
    """Writes what concerns delayed messages at random, and keeps a plain list of what waits after each record."""

    def __init__(self, log: Log, random: Random) -> None:
        self.log, self.random = log, random
        self.waits: list[list[Waiting]] = [[]]

    @property
    def now(self) -> list[Waiting]:
        return self.waits[-1]

    def write(self, index: AnyIndex) -> None:
        offset = self.log.next_offset
        event, gone, come = self._event(offset)
        self.log.append(event, TIME_US + offset, [b"payload"])
        index.note(offset, TIME_US + offset, self.log.last_base, self.log.last_at, event)
        self.waits.append([*(one for one in self.now if one not in gone), *come])

    def _event(self, offset: int) -> tuple[Event, list[Waiting], list[Waiting]]:  # noqa: PLR0911 - one a kind
        random, queue = self.random, self.random.randrange(1, 4)
        kind, due_us, count = random.random(), random.randrange(1, 50), random.randrange(1, 4)
        mine = [entry for number, entry in self.now if number == queue]
        some = random.sample(mine, min(len(mine), random.randrange(1, 4)))
        if kind < 0.3 or not some:
            event: Event = Published(queue, 0, 0, count, 9, 0, 0, 1, due_us=due_us)
            return event, [], [(queue, (due_us, offset, 0, count, 9, 0))]
        if kind < 0.4:
            event = Routed("t", ((1, 0, 0), (2, 3, 0)), count, 9, 0, 0, 1, due_us=due_us)
            return event, [], [(1, (due_us, offset, 0, count, 9, 0)), (2, (due_us, offset, 0, count, 9, 3))]
        if kind < 0.5:
            parts = (Published(1, 0, 1, 2, 5, 0, 0, 1), Published(queue, 0, 0, count, 9, 0, 0, 1, due_us=due_us))
            event = TransactionCommitted(parts, (), (), (3, 4), 1, 0, 0, 1)
            return event, [], [(queue, (due_us, offset, 2, count, 9, 0))]
        gone = [(queue, entry) for entry in some]
        if kind < 0.65:
            return Matured(queue, 0, 1, tuple(some), 9), gone, []
        if kind < 0.95:
            after = [piece for entry in some for piece in self._divided(entry, due_us)]
            if kind < 0.8:
                return Rescheduled(queue, tuple(some), tuple(after), 1), gone, [(queue, entry) for entry in after]
            left = after[1:]
            return Cancelled(queue, tuple(some), tuple(left), 1), gone, [(queue, entry) for entry in left]
        gone = [(queue, entry) for entry in mine]
        if kind < 0.975:
            return QueuePurged(queue, 1, 1, 1, ()), gone, []
        return QueueDeleted(queue, 1, 1, 1), gone, []

    def _divided(self, entry: Entry, due_us: int) -> Iterator[Entry]:
        was_us, offset, index, count, size, lane = entry
        if count == 1:
            yield due_us, offset, index, count, size, lane
        else:
            yield was_us, offset, index, 1, 3, lane
            yield due_us, offset, index + 1, count - 1, size - 3, lane

    def check(self, index: AnyIndex) -> None:
        overlay, base = index.overlay.delayed, index.delayed
        expected = sorted(self.now, key=lambda one: due_key(*one))
        found, key = list[Waiting](), FIRST
        while key != LAST:
            entries, key = overlay.after(base, key, 1 << 64, self.random.randrange(1, 7))
            found += entries
        assert found == expected
        until_us, without = self.random.randrange(50), {self.random.randrange(4)}
        entries, _ = overlay.after(base, FIRST, until_us, 1_000, without)
        assert entries == [one for one in expected if one[1][0] < until_us and one[0] not in without]
        for queue in range(1, 4):
            mine = sorted(one for one in self.now if one[0] == queue)
            assert sorted(overlay.of_queue(base, queue, 0)) == mine
            offsets = {entry[1] for _, entry in mine}
            assert sorted(overlay.of_records(base, queue, sorted({*offsets, 3, 10_000}))) == mine


def replay(index: AnyIndex, log: Log) -> None:
    for record in log.scan(index.mark.offset):
        index.note(record.offset, record.time_us, record.base, record.at, record.event)


@pytest.mark.parametrize("kind", [LmdbIndex, MemoryIndex])
@pytest.mark.parametrize("seed", range(6))
def test_the_index_is_what_the_log_says(
    kind: type[AnyIndex], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SLICE", 7)
    monkeypatch.setattr(tables, "_READ_SLICE", 5)
    disk, random = Disk(tmp_path), Random(seed)
    log = open_log(disk)
    log.recover()
    index: AnyIndex = MemoryIndex() if kind is MemoryIndex else LmdbIndex.open(disk, log, map_bytes=MAP_BYTES)
    writer = Writer(log, random)
    for _ in range(300):
        writer.write(index)
        chance = random.random()
        if chance < 0.2:
            writer.check(index)
        elif chance < 0.3:
            write(log)
        elif chance < 0.35:
            assert index.commit(log.synced_mark)
        elif chance < 0.4:
            write(log)
            if isinstance(index, MemoryIndex):
                index = index.after_crash(log)
            else:
                if chance < 0.37:  # it dies when the entries are written, and before the mark is
                    operations, floors = index.overlay.delayed.before(log.synced_mark.offset)
                    index.delayed.commit(operations, floors)
                index.close()
                index = LmdbIndex.open(disk, log, map_bytes=MAP_BYTES)
            replay(index, log)
            writer.check(index)
    write(log)
    rebuilt = MemoryIndex()
    replay(rebuilt, log)
    writer.check(rebuilt)
    index.close()
    log.close()


def test_places_are_dense_where_messages_are_delayed(tmp_path: Path) -> None:
    log = open_log(Disk(tmp_path))
    log.recover()
    index = MemoryIndex()
    for number in range(400):
        event = Published(1, 0, 0, 1, 9, 0, 0, 1, due_us=number + 1)
        offset = log.append(event, TIME_US, [bytes(100)])
        index.note(offset, TIME_US, log.last_base, log.last_at, event)
    write(log)
    for record in log.scan(0):
        place = index.lookup_offset(record.offset)
        assert place is not None
        assert record.at - place.at <= 5 << 10
    wanted = [3, 4, 200, 201, 399]
    assert [record.offset for record in log.read_many(wanted)] == wanted
    log.close()

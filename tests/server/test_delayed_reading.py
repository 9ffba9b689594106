"""Reading what waits for its time looks at no more than was asked for, and beside commits of the index."""

from collections.abc import Callable, Iterator

import pytest

from tests.server.rig import batch_of
from vibemq.batch import Batch
from vibemq.events import Cancelled, Published
from vibemq.log import delayed as module
from vibemq.log.delayed import LAST, DelayedOverlay, DueKey, MemoryBase, Waiting, due_key
from vibemq.log.index import MemoryIndex
from vibemq.server import delayed_reading as reading_module
from vibemq.server.delayed_reading import DelayedReading
from vibemq.server.effects import DelayedListed, DelayedOf

LENGTH = batch_of([b"x"]).record_bytes
COUNT = 3_000


class Log:
    """Has one record, of COUNT messages, of which every third was taken back. It counts how often it is opened."""

    def __init__(self) -> None:
        self.opened = 0
        self.index = MemoryIndex()
        whole = (9, 1, 0, COUNT, COUNT * LENGTH, 0)
        left = tuple((9, 1, at, 2, 2 * LENGTH, 0) for at in range(0, COUNT, 3))
        self.index.note(1, 1, 0, 0, Published(7, 0, 0, COUNT, COUNT * LENGTH, 0, 0, 1, due_us=9))
        self.index.note(2, 1, 0, 0, Cancelled(7, (whole,), left, 1))

    def parts(self) -> Callable[[int, int, int], tuple[Batch, int]]:
        self.opened += 1
        return lambda _, __, count: (batch_of([b"x"] * count), 5)


def test_only_what_holds_one_of_the_wanted_messages_is_looked_at() -> None:
    """Else a thousand cancels of a batch that is in a thousand pieces would be a million looks on the broker's loop."""
    log = Log()
    found = DelayedReading(log.index, log.parts).of(DelayedOf(7, (1, 5), ((0, 7, 8, 2_998), (1,)), 1))
    lengths = (LENGTH, LENGTH)
    assert found == [((9, 1, at, 2, 2 * LENGTH, 0), lengths) for at in (0, 6, 2_997)]
    assert log.opened == 1, "a record that was read is read once more for each piece of it"


def test_a_list_reads_a_record_in_pieces_once() -> None:
    log = Log()
    answer = DelayedReading(log.index, log.parts).listed(DelayedListed(0, 1, 1, 7, 0, (0, 0, 0), 1_000, 2 * COUNT // 3))
    assert len(answer["messages"]) == 1_000
    assert log.opened == 1


def test_a_list_of_a_large_queue_looks_once_at_what_others_have_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "FEW", 10)
    index, offset = MemoryIndex(), 0
    for queue, due_us in ((7, 100), (8, 200), (7, 300)):
        for later_us in range(50):
            offset += 1
            index.note(offset, 1, 0, 0, Published(queue, 0, 0, 1, LENGTH, 0, 0, 1, due_us=due_us + later_us))
    looks = list[DueKey]()
    whole = index.delayed.after

    def counted(key: DueKey) -> Iterator[Waiting]:
        looks.append(key)
        return whole(key)

    monkeypatch.setattr(index.delayed, "after", counted)
    reading = DelayedReading(index, lambda: lambda _, __, count: (batch_of([b"x"] * count), 5))
    answer = reading.listed(DelayedListed(0, 1, 1, 8, 0, (0, 0, 0), 5, 50))
    assert [one["id"] for one in answer["messages"]] == [f"{number}-0" for number in range(51, 56)]
    assert answer["next"] == [204, 55, 0]
    assert len(looks) == 1
    following = reading.listed(DelayedListed(0, 1, 1, 8, 0, (204, 55, 0), 50, 50))
    assert [one["id"] for one in following["messages"]] == [f"{number}-0" for number in range(56, 101)]
    assert following["next"] is None


def test_an_index_in_memory_is_read_while_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    base, overlay = MemoryBase(), DelayedOverlay()
    overlay.note(1, Published(7, 0, 0, 1, 9, 0, 0, 1, due_us=9))
    base.commit(*overlay.before(2))
    overlay.forget(*overlay.before(2))
    overlay.note(2, Published(7, 0, 0, 1, 9, 0, 0, 1, due_us=10))

    def meanwhile(queue: int, entry: tuple[int, int, int, int, int, int]) -> DueKey:
        monkeypatch.undo()
        base.commit(*overlay.before(3))
        return due_key(queue, entry)

    monkeypatch.setattr(module, "due_key", meanwhile)
    page = overlay.after(base, (0, 0, 0, 0), LAST[0], 10)
    assert [entry[:2] for _, entry in page.entries] == [(9, 1), (10, 2)]

"""Dedup ids that queues remember: against a naive list, and saved in parts at any time."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections import dedup
from vibemq.projections import part as parts
from vibemq.projections.dedup import NO_ID, Dedup, Known, QueueIds, Slice
from vibemq.projections.projector import Projector

SECOND_US: Final = 1_000_000
QUEUES: Final = (1, 2)
IDS: Final = [bytes([number * 37 % 256]) + bytes(14) + bytes([1 + number]) for number in range(24)]
LATER_US: Final = 1 << 40
SEEDS: Final = st.integers(0, 1 << 32)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Slices and indexes of a few ids, so that a short story has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "SLICE_IDS", 5)
        patch.setattr(dedup, "SPLIT_IDS", 9)
        yield


def published(queue: int, first: int, *ids: bytes) -> e.Published:
    """A batch in which each message has one of these ids."""
    return e.Published(queue, 0, first, len(ids), 10 * len(ids), 0, 0, 1, dedup=b"".join(ids))


class Story:
    """Events of two queues as a broker could write them down, and what a list of all that came would remember."""

    def __init__(self, random: Random, length: int) -> None:
        self.events: list[e.Event] = [e.BrokerStarted("1", clean=True, wall_us=0)]
        self.events += [e.QueueDeclared(queue, f"q{queue}", QueueSettings(), 0) for queue in QUEUES]
        self.came: dict[int, list[tuple[bytes, Known]]] = {queue: [] for queue in QUEUES}
        self._next = dict.fromkeys(QUEUES, 1)
        self._deleted: set[int] = set()
        self._random = random
        for _ in range(length):
            self._step()

    def _step(self) -> None:
        random = self._random
        queue = random.choice([queue for queue in QUEUES if queue in self.came] or [0])
        kind = random.choices(["publish", "forget", "delete", "purge", "remove"], [12, 4, 1, 1, 0.2])[0]
        if not queue or queue in self._deleted:
            if queue and random.random() < 0.5:
                self._deleted.remove(queue)
                self.events.append(e.QueueUndeleted(queue, f"q{queue}", 1))
            elif queue and kind == "forget":
                self._forget(queue)
            else:
                self.events.append(e.ClientRefused("10.0.0.1", "MalformedFrame", 1))
        elif kind == "publish":
            self._publish(queue)
        elif kind == "forget":
            self._forget(queue)
        elif kind == "delete":
            self._deleted.add(queue)
            self.events.append(e.QueueDeleted(queue, 0, 0, 1, LATER_US))
        elif kind == "remove":
            self.events.append(e.QueueDeleted(queue, 0, 0, 1))
            del self.came[queue]
        else:
            self.events.append(e.QueuePurged(queue, 0, 0, 1, ()))

    def _publish(self, queue: int) -> None:
        offset = len(self.events)
        ids = self._random.sample(IDS, self._random.choice([1, 1, 1, 2, 3, 7]))
        ids = [NO_ID if self._random.random() < 0.1 else one for one in ids]
        self.events.append(published(queue, self._next[queue], *ids))
        self._next[queue] += len(ids)
        found = [(one, Known(offset, index, offset * SECOND_US)) for index, one in enumerate(ids) if one != NO_ID]
        self.came[queue] += found

    def _forget(self, queue: int) -> None:
        came = self.came[queue]
        if came:
            below = self._random.choice(came)[1].offset + self._random.choice([0, 1])
            self.came[queue] = [entry for entry in came if entry[1].offset >= below]
            self.events.append(e.DedupForgotten(queue, below))

    def told(self, state: Projector | None = None, end: int | None = None) -> Projector:
        """The state, the first one if none is given, after the events up to `end`."""
        state = state or Projector()
        for offset in range(state.next_offset, len(self.events) if end is None else min(end, len(self.events))):
            state.apply(offset, offset * SECOND_US, self.events[offset])
        return state

    def check(self, state: Projector) -> None:
        """The state remembers what the list does, and nothing else."""
        assert {*state.dedup.queues} == {queue for queue, came in self.came.items() if came}
        assert state.dedup.total == sum(map(len, self.came.values()))
        for queue, remembered in state.dedup.queues.items():
            latest = dict(self.came[queue])
            assert {one: known for one in IDS if (known := remembered.find(one))} == latest
            assert remembered.count == len(self.came[queue])
            assert sum(len(shard) for shard in remembered._shards) == len(latest)


def saved(part: parts.Part) -> tuple[str, int, bytes]:
    return part.key, part.as_of, parts.encode(part)


def check_story(seed: int) -> None:
    """A story, told whole and from the last of some checkpoints, whose parts were taken while it went on."""
    random = Random(seed)
    story = Story(random, random.choice([10, 30, 60]))
    whole = story.told()
    story.check(whole)
    final = [saved(part) for part in whole.parts()]
    kept: dict[str, tuple[str, int, bytes]] = {}
    state = Projector()
    for _ in range(random.choice([1, 2, 4])):
        story.told(state, min(len(story.events), state.next_offset + random.randrange(30)))
        begin, present = state.next_offset, set()
        for part in state.parts():
            present.add(part.key)
            if part.key not in kept or kept[part.key][1] < part.as_of:  # what did not change is not saved again
                kept[part.key] = saved(part)
            story.told(state, state.next_offset + random.choice([0, 0, 1, 2, 5]))
        kept = {key: part for key, part in kept.items() if key in present}
        found = random.sample(list(kept.values()), len(kept))
        again = story.told(Projector.restore(found, begin))
        assert [saved(part) for part in again.parts()] == final
        story.check(again)


@given(SEEDS)
def test_what_is_remembered_is_what_came_and_was_not_forgotten(seed: int) -> None:
    check_story(seed)


# -- what the story catches


def _first_wins(self: QueueIds, places: Iterator[tuple[bytes, int]], count: int) -> None:
    self.count += count
    for one, place in places:
        self._shards[one[0] & self._mask].setdefault(one, place)


def _forget_whole_slices_only(self: QueueIds, offset: int, below: int) -> None:
    if self.slices and self.slices[0].offsets[-1] < below:
        original_forget(self, offset, below)


def _forget_newer_ones_too(self: QueueIds, offset: int, below: int) -> None:
    for one in self.slices[0].ids if self.slices else ():
        self._shards[one[0] & self._mask].pop(one, None)
    original_forget(self, offset, below)


def _forget_in_silence(self: QueueIds, offset: int, below: int) -> None:
    known = {part.began: part.as_of for part in self.slices}
    original_forget(self, offset, below)
    for part in self.slices:
        part.as_of = known[part.began]


def _always_the_newest(self: QueueIds, offset: int) -> int:
    del offset
    return len(self.slices) - 1


def _takes_it_again(self: QueueIds, offset: int, count: int) -> Slice | None:
    for part in self.slices:
        part.as_of = min(part.as_of, offset)
    return original_slice_for(self, offset, count)


def _without_index(self: Slice, end: int) -> Iterator[tuple[bytes, int]]:
    for at in range(end):
        yield self.ids[at], self.offsets[at] << 32


def _stays(self: Dedup, queue: int) -> None:
    del self, queue


original_forget: Final = QueueIds.forget
original_slice_for: Final = QueueIds._slice_for
PLANTS: Final[list[tuple[type, str, Callable[..., object]]]] = [
    (QueueIds, "_note", _first_wins),
    (QueueIds, "forget", _forget_whole_slices_only),
    (QueueIds, "forget", _forget_newer_ones_too),
    (QueueIds, "forget", _forget_in_silence),
    (QueueIds, "_at", _always_the_newest),
    (QueueIds, "_slice_for", _takes_it_again),
    (Slice, "places", _without_index),
    (Dedup, "gone", _stays),
]


@pytest.mark.parametrize(("owner", "name", "wrong"), PLANTS, ids=[plant[2].__name__ for plant in PLANTS])
def test_a_planted_bug_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrong: Callable[..., object]
) -> None:
    monkeypatch.setattr(owner, name, wrong)

    def stories() -> None:
        for seed in range(300):
            check_story(seed)

    with pytest.raises((AssertionError, KeyError, IndexError)):
        stories()


# -- slices


def test_what_is_full_is_not_touched_again() -> None:
    """That is what lets a checkpoint save it once."""
    state = Dedup()
    for offset in range(12):
        state.published(offset, 0, published(1, 1, IDS[offset]))
    slices = [(part.key, part.as_of, len(part.ids)) for part in state.parts()]
    assert slices == [("dedup/1/0", 5, 5), ("dedup/1/5", 10, 5), ("dedup/1/10", 12, 2)]


def test_what_one_record_brings_is_never_divided() -> None:
    state = Dedup()
    for offset, ids in enumerate((IDS[:3], IDS[3:6], IDS[6:13], IDS[13:14])):
        state.published(offset, 0, published(1, 1, *ids))
    assert [(part.key, len(part.ids)) for part in state.parts()] == [
        *[("dedup/1/0", 3), ("dedup/1/1", 3), ("dedup/1/2", 7), ("dedup/1/3", 1)],
    ]


def test_a_slice_as_it_is_saved() -> None:
    """Checkpoints hold these bytes."""
    state = Dedup()
    state.published(3, 7, published(9, 1, NO_ID, IDS[0], IDS[1]))
    (part,) = state.parts()
    assert part.snapshot() == [
        *[9, 3, IDS[0] + IDS[1]],
        (3).to_bytes(8, "little") * 2,
        (1).to_bytes(4, "little") + (2).to_bytes(4, "little"),
        (7).to_bytes(8, "little") * 2,
    ]


def test_the_ids_of_a_transaction_count_through_all_of_its_batches() -> None:
    state = Dedup()
    batches = (published(1, 1, IDS[0]), published(2, 1, IDS[0], IDS[1]), published(1, 2, IDS[2]))
    state.committed(5, 7, e.TransactionCommitted(batches, (), (), (1, 1, 1), 1, 0, 0, 1))
    assert state.queues[1].find(IDS[0]) == Known(5, 0, 7)
    assert state.queues[2].find(IDS[1]) == Known(5, 2, 7)
    assert state.queues[1].find(IDS[2]) == Known(5, 3, 7)
    assert state.total == 4


def test_a_batch_without_ids_leaves_nothing() -> None:
    state = Dedup()
    state.published(0, 0, published(1, 1))
    state.published(1, 0, published(1, 1, NO_ID, NO_ID))
    assert (state.queues, state.total, list(state.parts())) == ({}, 0, [])

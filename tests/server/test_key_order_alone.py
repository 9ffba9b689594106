"""The order of keys by itself, against plain lists: what comes, goes, waits, is dropped, and read in any pieces."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.projections.group import Group
from vibemq.server import key_order
from vibemq.server.effects import StoredBatch
from vibemq.server.key_order import KeyOrder

KEYS = st.lists(st.sampled_from([1, 1, 2, 3, 0]), min_size=1, max_size=6)
PICK = st.integers(0, 99)


class KeyOrderMachine(RuleBasedStateMachine):
    """A group with one consumer that holds what is out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(key_order, "SCAN_MAX", 3)
        self.group = Group(0, "")
        self.group.join(1)
        self.keys: dict[int, int] = {}
        """Of all that are not settled."""
        self.out: set[int] = set()
        self.waiting: dict[int, int] = {}
        self.batches: list[StoredBatch] = []
        self.in_memory: set[int] = set()
        self.is_reading = False
        self.next = 1
        self.times = count(1)
        self.order = KeyOrder(self.group)

    @property
    def ready(self) -> list[int]:
        return sorted(self.keys.keys() - self.out - self.waiting.keys())

    def may_go(self, sequence: int) -> bool:
        """Whether no other message of its key is out, waits, or goes before it."""
        key = self.keys[sequence]
        others = [at for at, other in self.keys.items() if other == key and at != sequence]
        return not key or not any(at < sequence or at in self.out or at in self.waiting for at in others)

    def find(self, sequence: int) -> StoredBatch | None:
        """The batch of a message; one that is not in memory is there the next time."""
        at = next(at for at, one in enumerate(self.batches) if one.sequence <= sequence < one.end)
        if at not in self.in_memory:
            self.in_memory.add(at)
            self.is_reading = True
            return None
        return self.batches[at]

    @rule(keys=KEYS)
    def arrive(self, keys: list[int]) -> None:
        batch = Batch(b"".join(pack([b"x"] * len(keys), None, 4, 0, keys)))
        self.batches.append(StoredBatch(1, 0, self.next, 0, 0, 0, 0, 0, batch))
        for key in keys:
            self.keys[self.next] = key
            self.next += 1

    @rule()
    def forget(self) -> None:
        """Nothing is in memory."""
        self.in_memory.clear()

    @rule(most=st.integers(1, 4))
    def hand_out(self, most: int) -> None:
        lane = self.group.lanes[0]
        allowed = [sequence for sequence in self.ready if self.may_go(sequence)]
        found, self.is_reading = None, True
        while found is None and (self.is_reading or self.order.was_cut_short):
            self.is_reading = False
            found = self.order.next_free(lane, self.next, self.find)
        if found is None:
            assert not allowed, "a message that may go is kept back"
            return
        start, stored = found
        assert start == allowed[0], "the oldest that may go is the next"
        assert stored.sequence <= start < stored.end
        end = self.order.go_out(lane, start, min(start + most, stored.end))
        for sequence in range(start, end):
            assert sequence in self.ready
            assert self.may_go(sequence)
            self.out.add(sequence)
        self.group.hand_out(1, ((0, start, end),))

    @rule(which=PICK)
    def settle(self, which: int) -> None:
        if self.out:
            sequence = sorted(self.out)[which % len(self.out)]
            self.out.remove(sequence)
            del self.keys[sequence]
            self.group.take_back(1, ((0, sequence, sequence + 1),))
            self.order.settled(sequence, sequence + 1)

    @rule(which=PICK, waits=st.booleans())
    def fail(self, which: int, waits: bool) -> None:
        if not self.out:
            return
        sequence = sorted(self.out)[which % len(self.out)]
        self.out.remove(sequence)
        until_us = next(self.times) if waits else 0
        spans = ((0, sequence, sequence + 1),)
        self.group.give_back(e.Released(1, 0, 1, spans, 0, e.ReleaseReason.NACKED, True, until_us, ""))
        if waits:
            self.waiting[sequence] = until_us
        else:
            self.order.ready_again(sequence, sequence + 1)

    @rule()
    def end_of_the_longest_wait(self) -> None:
        if self.waiting:
            sequence = min(self.waiting, key=self.waiting.__getitem__)
            del self.waiting[sequence]
            self.group.end_waiting(((0, sequence, sequence + 1),))
            self.order.ready_again(sequence, sequence + 1)

    @rule(most=st.integers(1, 3))
    def drop_the_oldest(self, most: int) -> None:
        for sequence in self.ready[:most]:
            self.group.take_ready(((0, sequence, sequence + 1),))
            self.order.removed(sequence, [self.keys.pop(sequence)])

    @rule()
    def come_anew(self) -> None:
        """The last consumer goes, with what it holds, and another comes."""
        self.group.leave_all(1, clean=True, next_sequences={0: self.next})
        self.group.join(1)
        self.out.clear()
        self.order = KeyOrder(self.group)

    @invariant()
    def keeps_no_more_than_there_is(self) -> None:
        parked = sum(map(len, self.order._parked.values()))
        assert parked == self.order._parked_count <= len(self.keys)
        assert len(self.order._key) <= len(self.keys)

    def teardown(self) -> None:
        self.patch.undo()


TestKeyOrder = KeyOrderMachine.TestCase
TestKeyOrder.settings = settings(max_examples=150, stateful_step_count=60)

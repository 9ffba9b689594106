"""The numbers of a subscription's deliveries against a table that has a row for each of them."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vibemq.batch import Batch, pack
from vibemq.server.effects import StoredBatch
from vibemq.server.subscription import Piece, Subscription

POSITIONS = st.integers(0, 60)


@dataclass
class Row:
    """One open delivery."""

    message: tuple[int, int]
    """(record offset, index)."""
    size: int
    lease_until_us: int


class SubscriptionMachine(RuleBasedStateMachine):
    """Does the same to both, and compares after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.subscription = Subscription(7, 1, 0, 3, 0)
        self.open: dict[int, Row] = {}
        self.next = 1
        self.now_us = 0
        self.batches = 0

    @rule(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), cut=st.tuples(POSITIONS, POSITIONS))
    def send(self, sizes: list[int], cut: tuple[int, int]) -> None:
        first = cut[0] % len(sizes)
        count = 1 + cut[1] % (len(sizes) - first)
        self.batches += 1
        batch = Batch(b"".join(pack([bytes(size) for size in sizes])))
        stored = StoredBatch(1, 0, 100 * self.batches, self.batches, 5, self.batches, 0, 0, batch)
        until_us = self.now_us + 10
        assert self.subscription.sent(stored.origin, first, count, until_us) == self.next
        for at in range(first, first + count):
            self.open[self.next] = Row((self.batches, 5 + at), sizes[at], until_us)
            self.next += 1

    def window(self, start: int, length: int) -> tuple[int, int]:
        """Some range of numbers, which may reach outside of what there is."""
        low = start % (self.next + 2)
        return low, low + 1 + length % 20

    def check(self, pieces: list[Piece], numbers: list[int]) -> None:
        """These pieces are the messages with these numbers, in order."""
        found = []
        for piece in pieces:
            offset, index, count = piece.ref
            lane, first, end = piece.span
            assert (lane, end - first, count) == (0, piece.end - piece.start, piece.end - piece.start)
            assert first == 100 * offset + index - 5
            found += [(number, (offset, index + number - piece.start)) for number in range(piece.start, piece.end)]
            assert piece.bytes == sum(self.open[number].size for number in range(piece.start, piece.end))
        assert found == [(number, self.open[number].message) for number in numbers]

    @rule(start=POSITIONS, length=POSITIONS)
    def close(self, start: int, length: int) -> None:
        low, high = self.window(start, length)
        numbers = [number for number in sorted(self.open) if low <= number < high]
        self.check(self.subscription.close(low, high), numbers)
        for number in numbers:
            del self.open[number]

    @rule()
    def close_all(self) -> None:
        self.check(self.subscription.close_all(), sorted(self.open))
        self.open.clear()

    @rule(windows=st.lists(st.tuples(POSITIONS, POSITIONS), min_size=1, max_size=3), lease_us=st.integers(0, 25))
    def extend(self, windows: list[tuple[int, int]], lease_us: int) -> None:
        asked = [self.window(start, length) for start, length in windows]
        numbers = sorted({number for low, high in asked for number in range(low, high)} & self.open.keys())
        until_us = self.now_us + lease_us
        self.check(self.subscription.extend(asked, until_us), numbers)
        for number in numbers:
            self.open[number].lease_until_us = until_us

    @rule(passed_us=st.integers(0, 15))
    def expire(self, passed_us: int) -> None:
        self.now_us += passed_us
        numbers = [number for number, row in sorted(self.open.items()) if row.lease_until_us <= self.now_us]
        self.check(self.subscription.expire(self.now_us), numbers)
        for number in numbers:
            del self.open[number]
        due_us = self.subscription.next_lease_us()
        assert due_us is None or due_us > self.now_us, "a lease that has ended is not waited for again"

    @invariant()
    def agrees(self) -> None:
        assert [n for start, end in self.subscription.open for n in range(start, end)] == sorted(self.open)
        due_us = self.subscription.next_lease_us()
        first_us = min((row.lease_until_us for row in self.open.values()), default=None)
        assert first_us is None or (due_us is not None and due_us <= first_us)


TestSubscription = SubscriptionMachine.TestCase
TestSubscription.settings = settings(max_examples=150, stateful_step_count=40)


def test_runs_do_not_pile_up_behind_a_delivery_that_stays_open() -> None:
    subscription = Subscription(1, 1, 0, 1, 0)
    batch = Batch(b"".join(pack([b"x"])))
    for number in range(1, 2001):
        subscription.sent(StoredBatch(1, 0, number, number, 0, number, 0, 0, batch).origin, 0, 1, 1000)
        if number > 1:
            subscription.close(number, number + 1)
    assert subscription.runs[0].start == 1
    assert len(subscription.runs) < 300

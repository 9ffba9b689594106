"""Which events a state takes, and which parts it knows."""

from collections.abc import Iterator

import pytest

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.errors import FormatUnsupported
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector

STARTED = e.BrokerStarted("0.1.0", clean=True, wall_us=0)
DECLARED = e.QueueDeclared(1, "orders", QueueSettings(), 0)
PUBLISHED = e.Published(1, 0, 1, 1, 10, 0, 0, 1)


def test_events_come_without_a_gap_and_none_comes_twice() -> None:
    state = Projector()
    for wrong in (1, 2):
        with pytest.raises(AssertionError, match=f"event {wrong} after -1"):
            state.apply(wrong, 0, STARTED)
    state.apply(0, 0, STARTED)
    with pytest.raises(AssertionError, match="event 0 after 0"):
        state.apply(0, 0, STARTED)


def test_an_event_about_a_queue_that_is_not_there_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="queue 1, which is not there"):
        Projector().apply(0, 0, PUBLISHED)


def test_a_queue_may_be_missing_only_below_the_end_of_the_checkpoint() -> None:
    """It was deleted before its turn to be saved came, by an event that the state has still to meet."""
    gone = Projector()
    for offset, event in enumerate((STARTED, DECLARED, PUBLISHED, e.QueueDeleted(1, 1, 10, 0))):
        gone.apply(offset, 0, event)
    saved = [(part.key, part.as_of, parts.encode(part)) for part in gone.parts()]
    state = Projector.restore(saved, 2)
    state.apply(2, 0, PUBLISHED)
    state.apply(3, 0, STARTED)
    with pytest.raises(AssertionError, match="which is not there"):
        state.apply(4, 0, PUBLISHED)


def test_a_part_says_which_events_it_holds() -> None:
    state = Projector()
    for offset, event in enumerate((STARTED, DECLARED, STARTED)):
        state.apply(offset, 0, event)
        assert state.audit.as_of == state.topology.as_of == offset + 1
        assert all(queue.as_of == offset + 1 for queue in state.queues.values())


def test_a_part_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(FormatUnsupported, match="a part 'grants/1' that this version does not know"):
        Projector.restore([("grants/1", 5, parts.encode(Projector().audit))], 5)


class Counted(tuple[tuple[int, int, int], ...]):  # noqa: SLOT001 - it counts
    """Targets that know how often somebody went through them."""

    walks = 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        self.walks += 1
        return super().__iter__()


def test_what_goes_to_many_queues_is_gone_through_once() -> None:
    """Once for each queue, it would cost their number squared: seconds for ten thousand."""
    state, numbers = Projector(), range(1, 6)
    for number in numbers:
        state.apply(number - 1, 0, e.QueueDeclared(number, f"q{number}", QueueSettings(), 0))
    targets = Counted((number, 0, 1) for number in numbers)
    state.apply(len(numbers), 0, e.Routed("t", targets, 3, 30, 0, 0, 1))
    assert targets.walks == 1
    assert [queue.length for queue in state.queues.values()] == [3] * len(numbers)

"""The state of the broker and the naive model, queue by queue: the same messages in the same places."""

from collections.abc import Iterable

from tests.server.model import Copy, Group, Queue, State, Why
from vibemq import events as e
from vibemq.projections.dead_letter import DeadLetters
from vibemq.projections.group import Group as LiveGroup
from vibemq.projections.intervals import IntervalSet
from vibemq.projections.queue import Queue as LiveQueue


def queue(live: LiveQueue, model: Queue) -> None:
    """A queue is as the model has it, with all of its groups."""
    assert (live.name, live.settings) == (model.name, model.settings)
    assert {lane: end for lane, end in live.next.items() if end > 1} == {
        n: end for n, end in model.next.items() if end > 1
    }
    assert live.floor == model.floor
    assert set(live.groups) == set(model.groups)
    for number, found in model.groups.items():
        group(live, live.groups[number], found)
    assert (live.length, live.bytes) == (model.length, model.bytes)
    if len(model.groups) == 1:
        (only,) = model.groups.values()
        counts = [len(only.of(state)) for state in (State.READY, State.UNACKED, State.WAITING)]
        assert [live.ready, live.unacked, live.waiting] == counts


def group(live_queue: LiveQueue, live: LiveGroup, model: Group) -> None:
    """A group is as the model has it, lane by lane."""
    assert (live.name, live.ephemeral) == (model.name, model.ephemeral)
    assert list(live.lanes) == sorted(live.lanes, reverse=True), "the highest priority comes first"
    ready = model.of(State.READY)
    for number, lane in live.lanes.items():
        assert lane.cursor == model.cursors[number]
        fresh = range(lane.cursor, live_queue.next[number])
        assert [*_all(lane.returned), *fresh] == _of_lane(ready, number)
        untouched = [copy for copy in ready if not copy.handed_out and copy.message.sequence < lane.cursor]
        assert _all(lane.untouched) == _of_lane(untouched, number)
        for marks, name in ((lane.failed, "failed"), (lane.forgiven, "forgiven")):
            assert {at: n for n, marked in marks.items() for at in _all(marked)} == {
                copy.message.sequence: getattr(copy, name)
                for copy in model.copies
                if copy.message.lane == number and getattr(copy, name)
            }
    held = {
        number: sorted((lane, at) for lane, spans in lanes.items() for at in _all(spans))
        for number, lanes in live.held.items()
    }
    assert held == {
        consumer.number: sorted(copy.place for copy, _ in consumer.open.values()) for consumer in model.consumers
    }
    waiting = [(due_us, lane, at) for due_us, lane, start, end in live.waiting for at in range(start, end)]
    assert sorted(waiting) == sorted((copy.due_us, *copy.place) for copy in model.of(State.WAITING))
    unacked = model.of(State.UNACKED)
    assert (live.unacked, live.unacked_bytes) == (len(unacked), sum(len(one.message.content.body) for one in unacked))


def dead_letters(live: DeadLetters | None, model: Queue) -> None:
    """What is known of each dead letter of a queue."""
    assert (live is not None) == model.is_dead_letter_queue
    if live is None:
        return
    known = {
        at: Why(e.DeadReason(run.reason), run.queue, run.attempts, run.error, run.time_us, run.lane)
        for run in live.runs
        for low, high in live.open.within(run.start, run.end)
        for at in range(low, high)
    }
    messages = [copy.message for found in model.groups.values() for copy in found.copies]
    assert known == {one.sequence: one.why for one in messages if one.why is not None}


def _all(numbers: IntervalSet) -> list[int]:
    return [number for start, end in numbers for number in range(start, end)]


def _of_lane(copies: Iterable[Copy], lane: int) -> list[int]:
    return [copy.message.sequence for copy in copies if copy.message.lane == lane]

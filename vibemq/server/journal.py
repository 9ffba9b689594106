"""Where decisions become events: the state, the events it was just changed by, and the effects that wait for them.

Deciding applies an event at once, so that the next decision sees it; the runtime then takes the records to the log,
in this order and at these offsets, before anything else is decided.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vibemq.events import Event
from vibemq.projections.projector import Projector
from vibemq.server.effects import Effect, Reading


class NewRecord(NamedTuple):
    """An event to append, with its time and its payload in parts."""

    event: Event
    time_us: int
    payload: Sequence[bytes | memoryview]


class Journal:
    """The state and what has come of it since the runtime last looked. `now_us` is set before each decision."""

    __slots__ = ("effects", "loads", "now_us", "records", "state")

    def __init__(self, state: Projector) -> None:
        """Decide on `state`."""
        self.state = state
        self.now_us = 0
        self.records: list[NewRecord] = []
        self.effects: list[Effect] = []
        self.loads: list[Reading] = []

    @property
    def next_offset(self) -> int:
        """The offset of the next record."""
        return self.state.next_offset

    def record(self, event: Event, payload: Sequence[bytes | memoryview] = ()) -> int:
        """Make `event` a fact, and return its offset."""
        offset = self.state.next_offset
        self.state.apply(offset, self.now_us, event)
        self.records.append(NewRecord(event, self.now_us, payload))
        return offset

"""How a relay goes on when rows are refused: whose fault it was, who waits, and what is tried next. Pure.

A batch is refused as a whole, and the error does not say for which of its rows. So a smaller one is tried, half as
large each time, until it is one row; then the batches grow again. A row that was refused alone is parked if nothing
can help it; else what it goes to, a queue or a topic, is *held*: all rows for it are passed over for a while, in which
the others go on. Then one of them is tried alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vibemq.client.outgoing import Place
from vibemq.errors import (
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    NotSupported,
    QueueBlocked,
    QueueFull,
    UnknownQueue,
    Unroutable,
    UsageError,
    VibeMQError,
)
from vibemq.outbox.rows import Row

PAUSE_SECONDS_MIN: Final = 1.0
PAUSE_SECONDS_MAX: Final = 30.0
HOPELESS: Final = (UsageError, InvalidName, InvalidRequest, NotSupported)
"""What never gets better."""
PATIENT: Final = (QueueFull, QueueBlocked, UnknownQueue, Unroutable, LimitExceeded)
"""What may, when a queue is emptied, declared or bound, or a limit is raised."""


def is_refusal(error: VibeMQError) -> bool:
    """Whether the messages were refused. Any other error says something about the broker, or the way to it."""
    return isinstance(error, HOPELESS + PATIENT)


@dataclass(slots=True)
class Hold:
    """A queue or topic that refuses: since when, for how long it is left alone, and until when."""

    since: float
    pause: float
    until: float


class Pace:
    """What is tried next. Times are seconds of any clock that goes on."""

    def __init__(self, messages: int, park_seconds: float) -> None:
        """Up to so many messages at a time; park what was refused for so long."""
        self._messages = messages
        self._park_seconds = park_seconds
        self.limit = messages
        """How many rows the next batch has at most."""
        self.holds: dict[Place, Hold] = {}

    @property
    def held(self) -> tuple[Place, ...]:
        """What is passed over."""
        return tuple(self.holds)

    def due(self, now: float) -> Place | None:
        """A queue or topic that may be tried again, alone."""
        return next((place for place, hold in self.holds.items() if hold.until <= now), None)

    def next_due(self) -> float | None:
        """When that will be."""
        return min((hold.until for hold in self.holds.values()), default=None)

    def published(self, rows: Sequence[Row]) -> None:
        """These were taken."""
        self.limit = min(self._messages, self.limit * 2)
        for place in {row.place for row in rows}:
            self.holds.pop(place, None)

    def gone(self, place: Place) -> None:
        """There is no row any more for this."""
        self.holds.pop(place, None)

    def refused(self, rows: Sequence[Row], error: VibeMQError, now: float) -> bool | None:
        """These were refused: whether the row, which is one, is parked, or waits. None: it is not known whose fault."""
        if len(rows) > 1:
            self.limit = len(rows) // 2
            return None
        self.limit = max(1, self.limit)
        (row,) = rows
        if isinstance(error, HOPELESS):
            return True
        hold = self.holds.get(row.place)
        if hold is None:
            hold = self.holds[row.place] = Hold(now - (row.refused_seconds or 0.0), PAUSE_SECONDS_MIN / 2, now)
        if now - hold.since >= self._park_seconds:
            return True
        hold.pause = min(hold.pause * 2, PAUSE_SECONDS_MAX)
        hold.until = now + hold.pause
        return False

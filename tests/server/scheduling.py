"""Where schedules are asked for and come due: a rig with a clock that tells what they did."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.server.rig import START_US, Rig
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import ScheduleSpec
from vibemq.server.effects import Answer

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
DAY_US = 24 * 60 * MINUTE_US
SPEC: dict[str, Any] = {"queue": "q", "body": b"hi"}


class Office(Rig):
    """A rig whose schedules are asked for by keyword."""

    def set(self, name: str = "s", **said: Any) -> Any:  # noqa: ANN401 - whatever is answered
        self.broker.schedules.set(7, 1, name, ScheduleSpec(**SPEC | said))
        return self.answer()

    def answer(self) -> Any:  # noqa: ANN401
        (answer,) = (one for one in self.effects() if isinstance(one, Answer))
        assert answer.after == self.state.next_offset
        return answer.result

    def pause(self, *, paused: bool = True) -> Any:  # noqa: ANN401
        self.broker.schedules.pause(7, 1, "s", paused=paused)
        return self.answer()

    def shown(self) -> Any:  # noqa: ANN401
        self.broker.schedules.list_all(7, 1, "s")
        (found,) = self.answer()
        return found

    def wait(self, passed_us: int, ticks: int = 1) -> list[e.Event]:
        """Let time pass, tick until nothing is due, and give what schedules did."""
        self.take()
        self.pass_time(passed_us)
        for _ in range(ticks):
            self.broker.tick()
        while (due_us := self.broker.schedules.next_due_us()) is not None and due_us <= self.now_us:
            self.broker.tick()
        events = self.take()[0]
        return [one for one in events if isinstance(one, e.Fired | e.Misfired | e.SchedulePaused | e.ScheduleDeleted)]

    def wait_due(self, passed_us: int) -> list[int]:
        """The times that were published for meanwhile, from the start on."""
        events = self.wait(passed_us)
        assert all(isinstance(one, e.Fired) for one in events), events
        return [one.due_us - START_US for one in events if isinstance(one, e.Fired)]

    def restart(self, away_us: int = 0) -> None:
        """The broker ends, is away, and comes back."""
        self.take()
        self.pass_time(away_us)
        self.begin(self.replayed())

    def stored_batch(self, offset: int) -> Batch:
        """What a record holds."""
        return Batch(b"".join(self.log[offset].payload))

    def queue_length(self, name: str = "q") -> int:
        queue = self.state.queue_named(name)
        return queue.length if queue is not None else 0


def us(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

"""What schedules cost the event loop of a broker.

    python -m bench.schedules [SCHEDULES] [SECONDS]

Sets so many schedules (1,000) that publish every 100 ms, and runs a broker with its log on the disk for so long (10).
Prints how many messages came, how late, and how long the turns that published them held the loop, which is deciding and
appending; then, without a log, the longest turn while as many cron schedules catch up with a year that was missed.
"""

import asyncio
import gc
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from vibemq import events as e
from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.clock import BrokerClock
from vibemq.server.cron import CronCalendar
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.runtime import Runtime
from vibemq.server.settings import Settings

QUEUES = 10
BODY = bytes(256)
START_US = 1_700_000_000_000_000
YEAR_US = 365 * 86_400_000_000


class Watched(Runtime):
    """Keeps how long each turn took that published something, and how late that was."""

    def watch(self) -> None:
        """Begin."""
        self.turns: list[float] = []
        self.late_us: list[int] = []

    def append(self) -> None:
        """As of Runtime; and look at what there is."""
        now_us = self._journal.now_us
        fired = [one.event.due_us for one in self._journal.records if isinstance(one.event, e.Fired)]
        super().append()
        self.late_us += [now_us - due_us for due_us in fired]

    def _tick(self) -> None:
        begun, known = time.perf_counter(), len(self.late_us)
        super()._tick()
        if len(self.late_us) > known:
            self.turns.append(time.perf_counter() - begun)


async def publish(count: int, seconds: float, folder: Path) -> None:
    """Schedules at their shortest interval, in a whole broker."""
    runtime = Watched(Settings(data=folder), "bench", BrokerClock(), logging.getLogger("bench"))
    runtime.watch()
    runtime.open()
    runtime.start(lambda: None)
    for number in range(count):
        runtime.begin()
        spec = ScheduleSpec(queue=f"queue-{number % QUEUES}", body=BODY, every_ms=100, misfire=Misfire.ALL)
        runtime.broker.schedules.set(0, 0, f"schedule-{number}", spec)
        runtime.append()
        if number % 50 == 0:
            await asyncio.sleep(0)  # not all at one time
    runtime.schedule()
    await asyncio.sleep(seconds)
    await runtime.stop("done")
    print(f"{len(runtime.late_us) / seconds:,.0f} messages a second, of {count * 10:,} that were due")
    show("late", [us / 1_000_000 for us in runtime.late_us])
    show("turn", runtime.turns)


def catch_up(count: int) -> None:
    """Every minute of a year was missed."""
    broker = Broker(Projector(), Limits(), QueueDefaults(), calendar=CronCalendar())
    broker.journal.now_us = START_US
    broker.start("bench", START_US)
    for number in range(count):
        spec = ScheduleSpec(queue="queue", cron="* * * * *", zone="Europe/Berlin")
        broker.schedules.set(0, 0, f"schedule-{number}", spec)
    broker.journal.now_us += YEAR_US
    turns = []
    while (due_us := broker.schedules.next_due_us()) is not None and due_us <= broker.journal.now_us:
        begun = time.perf_counter()
        broker.schedules.tick()
        turns.append(time.perf_counter() - begun)
        broker.journal.records.clear()
    show("turn of catching up", turns)


def show(what: str, found: list[float]) -> None:
    """Median, 99th percentile and highest, in ms."""
    parts = quantiles(found, n=100)
    print(
        f"{what}: median {parts[49] * 1000:.2f} ms, p99 {parts[98] * 1000:.2f} ms, highest {max(found) * 1000:.2f} ms"
    )


def main() -> None:
    """Measure, and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    gc.collect()
    gc.freeze()  # as `vibemq serve` does
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(publish(count, seconds, Path(folder) / "data"))
    catch_up(count)


if __name__ == "__main__":
    main()

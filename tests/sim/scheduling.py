"""The part of a simulated client that sets schedules, pauses them, and takes them back."""

from typing import TYPE_CHECKING

from tests.sim.scene import TOPICS
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

NAMES = ("s1", "s2")


class Scheduling:
    """What a client does with schedules."""

    def __init__(self, client: "Client") -> None:
        """Nothing yet."""
        self.client = client

    def _ask(self, command: m.Command) -> None:
        self.client.say(command)
        self.client.told = f"ask: {command}"

    def schedule(self) -> None:
        """Set one, or set it otherwise."""
        client, random = self.client, self.client.random
        to_topic = random.random() < 0.15
        soon_us = random.choice(client.times_us) + random.choice((-1_000_000, 0, 50_000, 300_000))
        self._ask(
            m.SetSchedule(
                request=client.ask(),
                name=random.choice(NAMES),
                queue=random.choice(TOPICS if to_topic else client.scene.names),
                to_topic=to_topic,
                body=b"again",
                priority=random.choice((0, 4)),
                ttl_ms=random.choice((0, 0, 100)),
                every_ms=random.choice((100, 100, 150, 300, 20_000, 45_000)),
                start_us=max(0, random.choice((0, 0, soon_us))),
                end_us=random.choice((0, 0, 0, 1 << 61)),
                times=random.choice((0, 0, 0, 1, 5)),
                misfire=random.choice(("skip", "once", "all")),
            )
        )

    def pause(self) -> None:
        """Pause one, or let it go on."""
        random = self.client.random
        self._ask(m.PauseSchedule(request=self.client.ask(), name=random.choice(NAMES), paused=random.random() < 0.4))

    def unschedule(self) -> None:
        """Take one back."""
        self._ask(m.DeleteSchedule(request=self.client.ask(), name=self.client.random.choice(NAMES)))

    def list_schedules(self) -> None:
        """Look at them."""
        name = self.client.random.choice((None, *NAMES))
        self._ask(m.ListSchedules(request=self.client.ask(), name=name))

    def end_all(self) -> None:
        """Take all back: a history ends when nothing comes any more."""
        for name in NAMES:
            self._ask(m.DeleteSchedule(request=self.client.ask(), name=name))

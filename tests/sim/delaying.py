"""The part of a simulated client that sees to messages which wait for their time: it looks, takes back, and delays."""

from collections import deque
from typing import TYPE_CHECKING

from tests.checker import Violation
from vibemq.protocol import messages as m

if TYPE_CHECKING:
    from tests.sim.clients import Client

DAY_MS = 86_400_000
KNOWN_MAX = 20


class Delaying:
    """What a client knows of its messages that wait."""

    def __init__(self, client: "Client") -> None:
        """Nothing waits."""
        self.client = client
        self.known: deque[tuple[str, str]] = deque(maxlen=KNOWN_MAX)
        """Queue or topic, and the message's id."""

    def some_time(self) -> tuple[int, int]:
        """How long to wait, in ms, or until when, in us."""
        random = self.client.random
        if random.random() < 0.7:
            return random.choice((1, 5, 20, 60, 200, 2000, 2000, 400 * DAY_MS)), 0
        since_us = random.choice(self.client.times_us)
        return 0, max(1, since_us + random.choice((-1000, 0, 1, 30_000, 100_000, 3_000_000)))

    def waits(self, target: str, identity: str) -> None:
        """A message was stored that is not ready yet."""
        self.known.append((target, identity))

    def _some(self) -> tuple[str, list[str]]:
        """Some of them that are in one queue, or seem to be."""
        random = self.client.random
        if not self.known or random.random() < 0.1:
            return random.choice(self.client.scene.names), ["1-0"]
        target, first = self.known[-1 - int(random.random() ** 2 * len(self.known))]
        more = [one for other, one in self.known if other == target and random.random() < 0.3]
        queue = target if target in self.client.scene.queues else random.choice(self.client.scene.names)
        return queue, sorted({first, *more})

    def cancel(self) -> None:
        """Take some back."""
        client = self.client
        queue, ids = self._some()

        def cancelled(reply: m.Done) -> None:
            if reply.result != {"count": len(ids)}:
                raise Violation(f"{ids} were taken back, and the broker says {reply.result}")
            for name, number in client.watch.taken_back[client.connection, reply.request]:
                client.history.taken_back.setdefault((name, number), client.moment)

        client.say(m.CancelDelayed(request=client.ask(cancelled), queue=queue, ids=tuple(ids)))
        client.told = f"take back {ids} of {queue}"

    def reschedule(self) -> None:
        """Let some wait for another time."""
        client, random = self.client, self.client.random
        queue, ids = self._some()
        delay_ms, due_us = (0, 0) if random.random() < 0.3 else self.some_time()
        command = m.Reschedule(request=client.ask(), queue=queue, ids=tuple(ids), delay_ms=delay_ms, due_us=due_us)
        client.say(command)
        client.told = f"ask: {command}"

    def list_delayed(self) -> None:
        """Look at what waits, or at one message of it."""
        client, random = self.client, self.client.random
        if random.random() < 0.3:
            queue, ids = self._some()
            client.say(m.ShowDelayed(request=client.ask(), queue=queue, id=ids[0]))
        else:
            queue, count = random.choice(client.scene.names), random.choice((2, 100))
            behind = random.choice((0, random.choice(client.times_us) + 30_000)), random.choice((0, 40)), 0
            client.say(m.ListDelayed(request=client.ask(), queue=queue, count=count, after=behind))
        client.told = f"look at what waits in {queue}"

"""Clients of the simulated broker: they publish, consume, make mistakes, leave, come back and send again.

They know what any client knows: what they said, and what the bytes they get say. All of it goes into the history that
the checker judges. Where a client cannot know which of several copies of a message it got, it looks at what was written
into the log when that was sent; and then what came must be what was written.
"""

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from tests.checker import History, Violation
from tests.sim import json_session
from tests.sim.consuming import Consuming
from tests.sim.delaying import Delaying
from tests.sim.features import Features
from tests.sim.invariants import Watch
from tests.sim.json_session import JsonSession
from tests.sim.network import Wire
from tests.sim.operating import Operating
from tests.sim.producing import Producing
from tests.sim.scene import DELAYED, OFTEN, SCHEDULES, SOMETIMES, TRANSACTIONS, Scene
from tests.sim.scheduling import Scheduling
from tests.sim.transacting import Transacting
from vibemq.errors import HeartbeatMissed
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.session import ClientSession

ALL = (*OFTEN, *SOMETIMES, *TRANSACTIONS, *DELAYED, *SCHEDULES)


class Asked(NamedTuple):
    """What to do with the answer to a request."""

    done: Callable[[m.Done], None]
    failed: Callable[[m.Failed], None]


def _nothing(_: object) -> None:
    """An answer is enough."""


class Client:
    """One client, with a producer's number that survives its connections."""

    def __init__(
        self, producer: int, random: Random, history: History, watch: Watch, scene: Scene, *, json: bool
    ) -> None:
        """Be nowhere yet. `random` is begun anew for each step by whoever owns it."""
        self.producer, self.random, self.history, self.watch, self.scene = producer, random, history, watch, scene
        self.features: Features = watch.features
        self.speaks_json = json
        self.wire: Wire | None = None
        self.hops = False
        """It has left its connection only to go on by another at once."""
        self.session: ClientSession | JsonSession = ClientSession()
        self.connection = 0
        self.moment = 0
        """The present, as the world counts it."""
        self.told = ""
        """What it did last, for people."""
        self.heard: list[str] = []
        """What came last, for people."""
        self.requests: dict[int, Asked] = {}
        self.next_request = 1
        self.times_us = [0]
        """Some times at which messages were published."""
        self.producing = Producing(self)
        self.transacting = Transacting(self)
        self.delaying = Delaying(self)
        self.scheduling = Scheduling(self)
        self.consuming = Consuming(self)
        self.operating = Operating(self)
        self._actions: dict[str, Callable[[], None]] = {"leave": self.leave}
        parts = (self.producing, self.transacting, self.delaying, self.scheduling, self.consuming, self.operating)
        for part in parts:
            self._actions |= {action: getattr(part, action) for action in ALL if hasattr(part, action)}
        self._told_by: dict[type, Callable[[Any], None]] = {
            m.Welcome: self._welcome,
            m.Confirmed: self.producing.confirmed,
            m.Committed: self.transacting.committed,
            m.Unblocked: self._unblocked,
            m.Done: self._done,
            m.Failed: self._failed,
            m.LeasesLost: self.consuming.leases_lost,
            m.Ended: self.consuming.ended,
            m.Goodbye: self._goodbye,
        }

    # --- coming and going

    def connect(self) -> Wire:
        """Say hello on a new connection, and send again what was not confirmed."""
        self.forget()
        self.hops = False
        wire = self.wire = Wire(self)
        self.session = JsonSession() if self.speaks_json else ClientSession()
        hello = m.Hello(request=self.ask(), client=f"client {self.producer}", producer=self.producer)
        wire.up.write([self.session.begin(hello)], self.moment)
        self.producing.connected()
        self.transacting.connected()
        return wire

    def forget(self) -> None:
        """The connection is gone, with all that was asked on it."""
        if self.wire is not None:
            self.wire.client = None
            self.wire.up.end()
        self.wire = None
        self.connection = 0
        self.requests.clear()
        self.producing.forget()
        self.transacting.forget()
        self.consuming.forget()

    def leave(self) -> None:
        """Say goodbye, or just close."""
        if self.random.random() < 0.7:
            self.say(m.Goodbye(code=0))
        self.forget()
        self.told = "leave"

    def say(self, command: m.Command) -> None:
        """Send a command."""
        assert self.wire is not None
        parts = [json_session.encode(command)] if self.speaks_json else binary.encode_command(command)
        self.wire.up.write(parts, self.moment)

    def ask(
        self, done: Callable[[m.Done], None] = _nothing, failed: Callable[[m.Failed], None] = _nothing
    ) -> int:  # fmt: skip
        """The number of a new request, and what to do with its answer."""
        number = self.next_request
        self.next_request += 1
        self.requests[number] = Asked(done, failed)
        return number

    # --- what it does

    def act(self) -> None:
        """Do something; `told` says what."""
        action = self.random.choice(self.scene.actions)
        if not self.consuming.consumers and self.random.random() < 0.5:
            action = "subscribe"
        self.told = f"{action}: nothing to do it with"
        self._actions[action]()

    def place(self, queue: str) -> tuple[Any, int]:
        """Where a group may begin: one of four words, with a sequence or a time."""
        del queue
        start = self.random.choice(("tail", "head", "head", "sequence", "time"))
        if start == "sequence":
            return start, self.random.randint(0, 30)
        return start, max(
            0, self.random.choice(self.times_us) + self.random.choice((-1, 0, 1))
        ) if start == "time" else 0

    def saw(self, time_us: int) -> None:
        """A message was published then."""
        if time_us:
            self.times_us = [*self.times_us[-9:], time_us]

    # --- what it is told

    def hear(self, data: bytes, since: int) -> None:
        """Bytes came, written at `since` or later."""
        self.heard.clear()
        try:
            for reply in self.session.receive(memoryview(data)):
                self.heard.append(type(reply).__name__)
                if isinstance(reply, m.Deliver):
                    self.consuming.delivered(reply, since)
                elif (told := self._told_by.get(type(reply))) is not None:
                    told(reply)
        except HeartbeatMissed:  # the last that is said on a connection
            self.forget()

    def answered(self, request: int) -> Asked:
        """A request has its answer, and there will be no other."""
        asked = self.requests.pop(request, None)
        if asked is None:
            raise Violation(f"client {self.producer} has an answer to request {request}, which has none to come")
        return asked

    def _welcome(self, reply: m.Welcome) -> None:
        self.answered(reply.request)
        self.connection = reply.connection

    def _goodbye(self, reply: m.Goodbye) -> None:
        if reply.code == HeartbeatMissed.code:
            raise HeartbeatMissed(reply.text)
        if reply.code:
            raise Violation(f"client {self.producer} was sent away: {reply.text}")

    def _unblocked(self, reply: m.Unblocked) -> None:
        self.producing.unblocked(reply)
        for commit in self.transacting.waiting_for(reply.queue):
            self.transacting.send(commit)

    def _done(self, reply: m.Done) -> None:
        self.answered(reply.request).done(reply)

    def _failed(self, reply: m.Failed) -> None:
        if reply.request:
            self.answered(reply.request).failed(reply)

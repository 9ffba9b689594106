"""What one client and the broker say to each other, without I/O: bytes to commands to decisions, effects to bytes.

The protocol itself is the session, the decisions are the broker's; here stands which calls each message means, and what
the broker owes to one connection: a welcome, an answer to each request, limits of what may be unanswered. Whoever holds
the conversation, be it over a socket or in a simulation, takes `out` to the client, and the events to the log.
"""

from typing import Any, Protocol

import msgspec

from vibemq.errors import DiskFull, FlowExceeded, LimitExceeded, ProtocolError, RequestError
from vibemq.protocol import messages as m
from vibemq.protocol.session import ServerSession, State
from vibemq.server import effects as f
from vibemq.server.broker import Broker
from vibemq.server.commands import COMMANDS
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.transactions import Commit

PEEKS_MAX = 4
"""Peeks of a connection that may be unanswered: each holds megabytes while it is read."""
PEEKS = m.Peek | m.DeadLetters | m.ListDelayed | m.ShowDelayed


class Host(Protocol):
    """Who holds a conversation, and stands between it and the world."""

    def connect(self, hello: m.Hello, codec: str) -> int:
        """The client has said who it is: tell the broker, and give the number that the broker gives it."""

    def admit(self, size: int) -> None:
        """Take room for a publish of `size` bytes.

        Raises:
            DiskFull: there is none.
            ShuttingDown: nothing can be written any more.
        """


class Conversation:
    """The broker's end of a connection. The time of decisions is set in the broker's journal by the host."""

    __slots__ = (
        "_broker",
        "_host",
        "_limits",
        "_session",
        "_unanswered_batches",
        "_version",
        "goodbye",
        "heartbeat_us",
        "number",
        "out",
        "peeks",
    )

    def __init__(self, host: Host, broker: Broker, limits: Limits, version: str) -> None:
        """Nothing has been heard yet."""
        self._host, self._broker, self._limits, self._version = host, broker, limits, version
        self._session = ServerSession(limits.frame_bytes)
        self._unanswered_batches = 0
        self.number = 0
        """The broker's number of this connection; 0 until hello."""
        self.heartbeat_us = 0
        """How often the client has promised to say something; 0 until hello."""
        self.peeks = 0
        self.goodbye: m.Goodbye | None = None
        """What the client left with."""
        self.out: list[bytes | memoryview] = []
        """What is to be sent."""

    # --- from bytes to decisions

    def receive(self, data: memoryview) -> list[m.Command | m.Refused]:
        """What the client asks for with these bytes: commands for `execute`, in order."""
        return self._session.receive(data)

    @property
    def has_more(self) -> bool:
        """Whether commands may be left of what was received: call `receive` again, with nothing if need be."""
        return self._session.has_more

    @property
    def error(self) -> ProtocolError | None:
        """How the client broke the protocol: nothing more is heard of it, and it is to be told."""
        return self._session.error

    def execute(self, command: m.Command | m.Refused) -> bool:
        """Have the broker carry out a command, or refuse it. False: the client broke the protocol with it."""
        try:
            carry_out = COMMANDS.get(type(command))
            if isinstance(command, PEEKS) and self.peeks >= PEEKS_MAX:
                raise LimitExceeded(f"a connection may have {PEEKS_MAX} peeks unanswered: wait for the answers")
            if carry_out is not None:
                carry_out(self._broker, self.number, command)
                self.peeks += isinstance(command, PEEKS)
            elif isinstance(command, m.Publish):
                self._publish(command)
            elif isinstance(command, m.Commit):
                self._commit(command)
            elif isinstance(command, m.Hello):
                self._hello(command)
            elif isinstance(command, m.Ping):
                self._say(m.Pong())
            elif isinstance(command, m.Goodbye):
                self.goodbye = command
            else:
                assert isinstance(command, m.Refused)
                raise command.error
        except RequestError as error:
            self._say(m.Failed(request=getattr(command, "request", 0), code=error.code, text=error.text))
        except ProtocolError as error:
            self._session.error, self._session.state = error, State.CLOSED
            return False
        return True

    def _hello(self, hello: m.Hello) -> None:
        limits, codec = self._limits, self._session.codec
        self.number = self._host.connect(hello, codec)
        # A person who types JSON has other things to do than to be heard every few seconds.
        usual_ms = limits.heartbeat_ms_max if codec == "json" else limits.heartbeat_ms
        heartbeat_ms = min(hello.heartbeat_ms or usual_ms, limits.heartbeat_ms_max)
        self.heartbeat_us = heartbeat_ms * 1000
        welcome = m.Welcome(
            request=hello.request,
            version=m.VERSION,
            broker=f"vibemq {self._version}",
            connection=self.number,
            heartbeat_ms=heartbeat_ms,
            frame_bytes_max=self._session.frame_bytes_max,
            batch_messages_max=limits.batch_messages,
            publish_window_bytes=limits.publish_window_bytes,
            publish_window_batches=limits.publish_window_batches,
            message_bytes_max=limits.message_bytes,
        )
        self._say(welcome)

    def _count_batch(self) -> None:
        window = self._limits.publish_window_batches
        self._unanswered_batches += 1
        if self._unanswered_batches > 2 * window:
            raise FlowExceeded(f"more than {window} batches were sent and not yet answered")

    def _publish(self, publish: m.Publish) -> None:
        self._count_batch()
        publishing, publishers = self._broker.publishing, self._broker.publishers
        try:
            try:
                self._host.admit(len(publish.batch.data))
            except DiskFull:
                if not publishing.has_stored(self.number, publish.sequence):
                    publishers.refused(self.number, publish.queue, publish.sequence, to_topic=publish.to_topic)
                    raise
            publishing.publish(Publish(self.number, *msgspec.structs.astuple(publish)))
        except RequestError:
            self._unanswered_batches -= 1
            raise

    def _commit(self, commit: m.Commit) -> None:
        self._count_batch()
        transactions = self._broker.transactions
        try:
            # Acks alone go to the reserve, as all acks do: they are what makes room.
            if commit.publishes and not transactions.has_stored(self.number, commit.sequence):
                try:
                    self._host.admit(sum(len(publish.batch.data) for publish in commit.publishes))
                except DiskFull:
                    transactions.end(self.number, commit.epoch)
                    raise
            number = self.number
            publishes = [
                Publish(number, 0, one.queue, 0, one.batch, 0, one.to_topic, one.delay_ms, one.due_us, one.dedup)
                for one in commit.publishes
            ]
            acks = [(ack.subscription, ack.deliveries) for ack in commit.acks]
            transactions.commit(
                Commit(number, commit.request, commit.epoch, commit.sequence, publishes, acks, commit.oldest)
            )
        except RequestError:
            self._unanswered_batches -= 1
            raise

    # --- from effects to bytes

    def send(self, effect: f.Effect) -> None:
        """Collect the bytes of an effect; not of Peeked, which must be read before it is an `answer`."""
        if type(effect) is f.Delivery:
            _, _, subscription, delivery, stored, first, count, attempt, redelivered = effect
            reply: m.Reply = m.Deliver(
                subscription,
                delivery,
                stored.sequence + first,
                stored.origin.offset,
                stored.origin.index + first,
                stored.time_us,
                attempt,
                redelivered,
                stored.batch.cut(first, count),
            )
        elif type(effect) is f.Confirmed:
            self._unanswered_batches -= 1
            reply = m.Confirmed(
                request=effect.request,
                offset=effect.offset,
                sequence=effect.sequence,
                duplicate=effect.duplicate,
                dropped=effect.dropped,
                due_us=effect.due_us,
                duplicates=effect.duplicates,
            )
        elif type(effect) is f.Committed:
            self._unanswered_batches -= 1
            reply = m.Committed(
                request=effect.request,
                offset=effect.offset,
                duplicate=effect.duplicate,
                stored=tuple(m.Stored(*stored) for stored in effect.stored),
            )
        else:
            if type(effect) is f.Refusal and effect.of_batch:
                self._unanswered_batches -= 1
            reply = _reply(effect)
        self.out += self._session.encode(reply)

    def answer_peek(self, request: int, found: list[dict[str, Any]] | dict[str, Any]) -> None:
        """Collect the answer to a Peek, or what is like one: what was read for it."""
        self._say(m.Done(request=request, result=found))
        self.peeks -= 1

    def refuse_peek(self, refusal: f.Refusal) -> None:
        """Collect the answer to what is like a Peek: there is nothing to read."""
        self.send(refusal)
        self.peeks -= 1

    def say_goodbye(self, code: int, text: str) -> None:
        """Collect the last words; `code` 0 when all is in order."""
        self._say(m.Goodbye(code=code, text=text))

    def _say(self, reply: m.Reply) -> None:
        self.out += self._session.encode(reply)


def _reply(effect: f.Effect) -> m.Reply:
    """The message of an effect that is not frequent."""
    if isinstance(effect, f.Answer):
        return m.Done(request=effect.request, result=effect.result)
    if isinstance(effect, f.Refusal):
        return m.Failed(request=effect.request, code=effect.error.code, text=effect.error.text)
    if isinstance(effect, f.Drained):
        return m.Drained(subscription=effect.subscription)
    if isinstance(effect, f.LeasesLost):
        return m.LeasesLost(subscription=effect.subscription, deliveries=effect.deliveries)
    if isinstance(effect, f.Unblocked):
        return m.Unblocked(queue=effect.name)
    assert isinstance(effect, f.Ended)
    return m.Ended(subscription=effect.subscription, code=effect.error.code, text=effect.error.text)

"""One client's connection: bytes become commands for the broker, effects become bytes.

The protocol itself is the sans-I/O session; here are only the calls that each message stands for, and what the
transport needs: one read buffer shared by all connections, output collected over a turn of the loop, a stop of
reading while the client does not read what it is sent.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from vibemq.errors import DiskFull, FlowExceeded, LimitExceeded, ProtocolError, RequestError, VibeMQError
from vibemq.protocol import messages as m
from vibemq.protocol.session import ServerSession, State
from vibemq.server import effects as f
from vibemq.server.commands import COMMANDS

if TYPE_CHECKING:
    from vibemq.server.runtime import Runtime

WRITE_BUFFER_BYTES = 1 << 20
"""Above this a client counts as one that does not read, until it has read three quarters of it."""


TURN_US = 2_000
"""After so long the rest of what a client asked for waits for another turn of the loop: others are heard between."""
LINGER_S = 5.0
"""How long a connection that is being closed may take to read the rest."""
PEEKS_MAX = 4
"""Peeks of a connection that may be unanswered: each holds megabytes while it is read."""


class Pause(enum.Flag):
    """Why a client is not heard for a while."""

    REST = enum.auto()
    """What it sent before is not all carried out."""
    WRITING = enum.auto()
    """It does not read."""
    LOG = enum.auto()
    """The log is behind."""


class ClientConnection(asyncio.BufferedProtocol):
    """The shell around a ServerSession."""

    __slots__ = (
        "_buffer",
        "_on_closed",
        "_on_opened",
        "_paused",
        "_rest",
        "_runtime",
        "_session",
        "_transport",
        "address",
        "connected_us",
        "goodbye_reason",
        "heartbeat_us",
        "host",
        "last_heard_us",
        "lost",
        "number",
        "out",
        "peeks",
        "unanswered_batches",
    )

    def __init__(
        self,
        runtime: "Runtime",
        buffer: memoryview,
        on_opened: Callable[["ClientConnection"], None],
        on_closed: Callable[["ClientConnection"], None],
    ) -> None:
        """Serve one client; `on_opened` is called when it is there, `on_closed` when it is gone."""
        self._runtime = runtime
        self._buffer = buffer
        self._on_opened, self._on_closed = on_opened, on_closed
        self._session = ServerSession(runtime.settings.limits.frame_bytes)
        self._transport: asyncio.Transport | None = None
        self.address = self.host = ""
        self.number = 0
        """The broker's number of this connection; 0 until hello."""
        self.heartbeat_us = 0
        self.connected_us = self.last_heard_us = runtime.clock.now_us()
        self._paused = Pause(0)
        self._rest: list[m.Command | m.Refused] = []
        self.out: list[bytes | memoryview] = []
        self.peeks = 0
        self.unanswered_batches = 0
        self.goodbye_reason = "the connection broke"
        self.lost = True
        """Whether the client went without having said so, and not because the broker stops."""

    # --- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and who it is."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if peer else "unknown"
        self.address = f"{self.host}:{peer[1]}" if peer else "unknown"
        self._on_opened(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Give the shared buffer: it is read to its end before the loop reads for anybody else."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Carry out what the client asks."""
        self._hear(self._session.receive(self._buffer[:nbytes]))

    def _hear(self, commands: list[m.Command | m.Refused]) -> None:
        runtime, session = self._runtime, self._session
        self.last_heard_us = begun_us = runtime.begin()
        for done, command in enumerate(commands):
            if done and runtime.clock.now_us() - begun_us > TURN_US:
                self._rest = commands[done:]
                break
            try:
                self._execute(command)
            except RequestError as error:
                self.fail(getattr(command, "request", 0), error)
            except ProtocolError as error:
                session.error, session.state = error, State.CLOSED
                break
            runtime.append()
        if self._rest or session.has_more:
            self._pause(Pause.REST)
            asyncio.get_running_loop().call_soon(self._hear_rest)
        else:
            self._resume(Pause.REST)
            if session.error is not None:
                self._refuse(session.error)
        runtime.schedule()

    def _hear_rest(self) -> None:
        """Carry out more of what came before, unless there is another cause to wait: then its end calls this again."""
        if self._paused != Pause.REST or self._transport is None or self._transport.is_closing():
            return
        rest, self._rest = self._rest, []
        self._hear(rest or self._session.receive(memoryview(b"")))

    def eof_received(self) -> bool:
        """Close when the client does."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """Give back what the client held."""
        self._transport = None
        if self.number:
            self._runtime.disconnected(self, self.goodbye_reason, lost=self.lost)
        self._on_closed(self)

    def pause_writing(self) -> None:
        """Send a client that does not read nothing more, and hear nothing more: it would only make more to send."""
        self._pause(Pause.WRITING)
        if self.number in self._runtime.connections:
            self._runtime.blocked(self, blocked=True)

    def resume_writing(self) -> None:
        """Go on."""
        self._resume(Pause.WRITING)
        if self.number in self._runtime.connections and not self._is_closing:
            self._runtime.blocked(self, blocked=False)

    def pause_reading(self) -> None:
        """Stop reading for a while; the log is behind."""
        self._pause(Pause.LOG)

    def resume_reading(self) -> None:
        """Go on."""
        self._resume(Pause.LOG)

    def _pause(self, why: Pause) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused |= why

    def _resume(self, why: Pause) -> None:
        """This cause to wait is over; there may be others."""
        if not self._paused & why:
            return
        self._paused &= ~why
        if self._paused == Pause.REST:
            asyncio.get_running_loop().call_soon(self._hear_rest)
        elif not self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def flush(self) -> None:
        """Hand what was collected to the transport."""
        out, self.out = self.out, []
        if self._transport is not None and out:
            self._transport.writelines(out)

    def close(self, code: int, text: str) -> None:
        """Say goodbye and close."""
        if self._transport is None or self._transport.is_closing():
            return
        self.out += self._session.encode(m.Goodbye(code=code, text=text))
        self.flush()
        self.goodbye_reason = text
        self._close_transport()

    def turn_away(self, error: VibeMQError) -> None:
        """Close a connection that is not wanted, and count it."""
        if self._transport is not None and not self._transport.is_closing():
            self._runtime.refused(self.host, type(error).__name__)
            self.close(error.code, error.text)

    def abort(self, reason: str) -> None:
        """Close at once: the client does not read."""
        self.goodbye_reason = reason
        if self._transport is not None:
            self._transport.abort()

    # --- from effects to bytes

    def send(self, effect: f.Effect) -> None:
        """Collect the bytes of an effect."""
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
            self.unanswered_batches -= 1
            reply = m.Confirmed(
                request=effect.request, offset=effect.offset, sequence=effect.sequence, duplicate=effect.duplicate
            )
        else:
            reply = _reply(effect)
        self.out += self._session.encode(reply)

    def answer(self, request: int, result: Any) -> None:  # noqa: ANN401 - whatever the request asks for
        """Collect the answer to a request that the runtime itself carried out."""
        self.out += self._session.encode(m.Done(request=request, result=result))

    def fail(self, request: int, error: RequestError) -> None:
        """Collect the refusal of a request."""
        self.out += self._session.encode(m.Failed(request=request, code=error.code, text=error.text))
        self._runtime.collected(self)

    def _refuse(self, error: ProtocolError) -> None:
        """End the connection of a client that broke the protocol."""
        if not self.number:
            self._runtime.refused(self.host, type(error).__name__)
        self._runtime.logger.warning("protocol error", extra={"address": self.address, "error": error.text})
        self.close(error.code, error.text)

    # --- from messages to commands

    def _execute(self, command: m.Command | m.Refused) -> None:
        carry_out = COMMANDS.get(type(command))
        if isinstance(command, m.Peek) and self.peeks >= PEEKS_MAX:
            raise LimitExceeded(f"a connection may have {PEEKS_MAX} peeks unanswered: wait for the answers")
        if carry_out is not None:
            carry_out(self._runtime.broker, self.number, command)
            self.peeks += isinstance(command, m.Peek)
        elif isinstance(command, m.Publish):
            self._publish(command)
        elif isinstance(command, m.Hello):
            self._hello(command)
        elif isinstance(command, m.Ping):
            self.out += self._session.encode(m.Pong())
            self._runtime.collected(self)
        elif isinstance(command, m.Goodbye):
            self._goodbye(command)
        else:
            assert isinstance(command, m.Refused)
            raise command.error

    def _hello(self, hello: m.Hello) -> None:
        runtime, limits = self._runtime, self._runtime.settings.limits
        self.number = runtime.connected(self, hello.client, self._session.codec, hello.producer)
        # A person who types JSON has other things to do than to be heard every few seconds.
        usual_ms = limits.heartbeat_ms_max if self._session.codec == "json" else limits.heartbeat_ms
        heartbeat_ms = min(hello.heartbeat_ms or usual_ms, limits.heartbeat_ms_max)
        self.heartbeat_us = heartbeat_ms * 1000
        welcome = m.Welcome(
            request=hello.request,
            version=m.VERSION,
            broker=f"vibemq {runtime.version}",
            connection=self.number,
            heartbeat_ms=heartbeat_ms,
            frame_bytes_max=self._session.frame_bytes_max,
            batch_messages_max=limits.batch_messages,
            publish_window_bytes=limits.publish_window_bytes,
            publish_window_batches=limits.publish_window_batches,
            message_bytes_max=limits.message_bytes,
        )
        self.out += self._session.encode(welcome)
        runtime.collected(self)

    def _publish(self, publish: m.Publish) -> None:
        runtime, limits = self._runtime, self._runtime.settings.limits
        self.unanswered_batches += 1
        if self.unanswered_batches > 2 * limits.publish_window_batches:
            raise FlowExceeded(f"more than {limits.publish_window_batches} batches were sent and not yet answered")
        try:
            try:
                runtime.admit(self, len(publish.batch.data))
            except DiskFull:
                if not runtime.broker.has_stored(self.number, publish.sequence):
                    raise
            runtime.broker.publish(
                self.number, publish.request, publish.queue, publish.sequence, publish.batch, publish.oldest
            )
        except RequestError:
            self.unanswered_batches -= 1
            raise

    def _goodbye(self, goodbye: m.Goodbye) -> None:
        self.goodbye_reason = goodbye.text or "goodbye"
        self.lost = goodbye.code != 0
        if self._transport is not None:
            self._runtime.collected(self)
            self._runtime.close_after_turn(self)

    def end(self) -> None:
        """Close the transport after what was collected has been handed to it."""
        self.flush()
        self._close_transport()

    @property
    def _is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _close_transport(self) -> None:
        """Close when the client has read what was written. One that does not read is cut off; it is sent no more."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_S, self.abort, self.goodbye_reason)
            if self.number in self._runtime.connections:
                self._runtime.blocked(self, blocked=True)
        self._transport.close()


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
    assert isinstance(effect, f.Ended)
    return m.Ended(subscription=effect.subscription, code=effect.error.code, text=effect.error.text)

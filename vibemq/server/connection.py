"""One client's connection: the socket around a conversation.

What is said is the sans-I/O conversation's affair; here is only what the transport needs: one read buffer shared by all
connections, output collected over a turn of the loop, a stop of reading while the client does not read what it is sent.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from vibemq.errors import ProtocolError, VibeMQError
from vibemq.protocol import messages as m
from vibemq.server.conversation import Conversation

if TYPE_CHECKING:
    from vibemq.server.runtime import Runtime

WRITE_BUFFER_BYTES = 1 << 20
"""Above this a client counts as one that does not read, until it has read three quarters of it."""


TURN_US = 2_000
"""After so long the rest of what a client asked for waits for another turn of the loop: others are heard between."""
LINGER_S = 5.0
"""How long a connection that is being closed may take to read the rest."""


class Pause(enum.Flag):
    """Why a client is not heard for a while."""

    REST = enum.auto()
    """What it sent before is not all carried out."""
    WRITING = enum.auto()
    """It does not read."""
    LOG = enum.auto()
    """The log is behind."""


class ClientConnection(asyncio.BufferedProtocol):
    """The shell around a Conversation, and its host."""

    __slots__ = (
        "_buffer",
        "_on_closed",
        "_on_opened",
        "_paused",
        "_rest",
        "_runtime",
        "_transport",
        "address",
        "connected_us",
        "conversation",
        "goodbye_reason",
        "host",
        "last_heard_us",
        "lost",
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
        self.conversation = Conversation(self, runtime.broker, runtime.settings.limits, runtime.version)
        self._transport: asyncio.Transport | None = None
        self.address = self.host = ""
        self.connected_us = self.last_heard_us = runtime.clock.now_us()
        self._paused = Pause(0)
        self._rest: list[m.Command | m.Refused] = []
        self.goodbye_reason = "the connection broke"
        self.lost = True
        """Whether the client went without having said so, and not because the broker stops."""

    @property
    def number(self) -> int:
        """The broker's number of this connection; 0 until hello."""
        return self.conversation.number

    @property
    def heartbeat_us(self) -> int:
        """How often the client has promised to say something; 0 until hello."""
        return self.conversation.heartbeat_us

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
        self._hear(self.conversation.receive(self._buffer[:nbytes]))

    def _hear(self, commands: list[m.Command | m.Refused]) -> None:
        runtime, conversation = self._runtime, self.conversation
        self.last_heard_us = begun_us = runtime.begin()
        for done, command in enumerate(commands):
            if done and runtime.clock.now_us() - begun_us > TURN_US:
                self._rest = commands[done:]
                break
            if not conversation.execute(command):
                break
            runtime.append()
            if runtime.failure is not None:
                return
        if conversation.out:
            runtime.collected(self)
        if conversation.goodbye is not None:
            self._left(conversation.goodbye)
        if self._rest or conversation.has_more:
            self._pause(Pause.REST)
            asyncio.get_running_loop().call_soon(self._hear_rest)
        else:
            self._resume(Pause.REST)
            if conversation.error is not None:
                self._refuse(conversation.error)
        runtime.schedule()

    def _hear_rest(self) -> None:
        """Carry out more of what came before, unless there is another cause to wait: then its end calls this again."""
        if self._paused != Pause.REST or self._transport is None or self._transport.is_closing():
            return
        rest, self._rest = self._rest, []
        self._hear(rest or self.conversation.receive(memoryview(b"")))

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
        conversation = self.conversation
        out, conversation.out = conversation.out, []
        if self._transport is not None and out:
            self._transport.writelines(out)
            if self._paused & Pause.WRITING and self.number in self._runtime.connections:
                self._runtime.unread(self, sum(map(len, out)))  # a part that was sent in part is kept as a whole

    def close(self, code: int, text: str) -> None:
        """Say goodbye and close."""
        if self._transport is None or self._transport.is_closing():
            return
        self.conversation.say_goodbye(code, text)
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

    # --- what the conversation needs

    def connect(self, hello: m.Hello, codec: str) -> int:
        """See `Host`."""
        return self._runtime.connected(self, hello.client, codec, hello.producer)

    def admit(self, size: int) -> None:
        """See `Host`. While the log is behind, the client is not heard."""
        self._runtime.admit(self, size)

    # --- ends

    def _refuse(self, error: ProtocolError) -> None:
        """End the connection of a client that broke the protocol."""
        if not self.number:
            self._runtime.refused(self.host, type(error).__name__)
        self._runtime.logger.warning("protocol error", extra={"address": self.address, "error": error.text})
        self.close(error.code, error.text)

    def _left(self, goodbye: m.Goodbye) -> None:
        """Close once the client, which has said goodbye, was sent what it has coming."""
        self.goodbye_reason = goodbye.text or "goodbye"
        self.lost = goodbye.code != 0
        if self._transport is not None:
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

"""The link to a broker: one connection after another, for as long as the client is open.

    CLOSED <--close, fatal error-- AWAY --Welcome--> OPEN --connection ends--> AWAY ...

What is to be done when a connection opens or breaks is registered in `on_open` and `on_cut`, in order, and done in the
callback of the transport: nothing can be sent in between, so what was unanswered goes out before anything new.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from vibemq.client.connection import Connection
from vibemq.client.options import Options
from vibemq.client.stats import Stats
from vibemq.client.url import Address
from vibemq.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    HeartbeatMissed,
    MalformedFrame,
    ProtocolError,
    UnsupportedVersion,
    VibeMQError,
)
from vibemq.protocol import binary
from vibemq.protocol import messages as m

STEADY_SECONDS: Final = 1.0
"""Pauses grow over connections that end sooner than this by a fault in the protocol: it would come again at once."""
CLOSE_SECONDS: Final = 2.0
"""How long closing waits for the transport to send the rest."""


class Link:
    """Connects, greets, keeps alive, reconnects."""

    def __init__(self, address: Address, options: Options, stats: Stats) -> None:
        """Prepare; `open` connects. Must be made in a running loop."""
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._options = options
        self._stats = stats
        self.producer = options.producer or options.chance.getrandbits(63) + 1  # never 0, which means: no producer
        """By this number the broker recognises what is sent again."""
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._welcomed: asyncio.Future[None] | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._silent = self._quiet = 0
        self.handlers: dict[type, Callable[..., None]] = {m.Goodbye: self._goodbye}
        """What to do with each kind of reply; others are ignored."""
        self.on_open: list[Callable[[], None]] = []
        self.on_cut: list[Callable[[], None]] = []
        self.on_writable: Callable[[], None] = _nothing
        self.on_closed: list[Callable[[VibeMQError], None]] = []
        self.limits: m.Welcome = NO_LIMITS
        """What the broker said in its last Welcome."""
        self.is_open = False
        self.closed: VibeMQError | None = None
        """Why nothing can be sent any more."""

    @property
    def writable(self) -> bool:
        """Whether there is a connection, and room in its transport."""
        return self.is_open and self._connection is not None and not self._connection.paused

    def number(self) -> int:
        """A number for a request, never 0."""
        self._number = self._number % 0xFFFF_FFFF + 1
        return self._number

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send frames on the open connection."""
        assert self._connection is not None
        self._connection.send(buffers)

    async def open(self) -> None:
        """Connect; tries until the connect timeout.

        Raises:
            ConnectionFailed: no broker there, with where, why, and what to do.
            ProtocolError: what is there speaks no protocol that this client knows.
        """
        self._task = self._loop.create_task(self._run(), name=f"vibemq link to {self._address}")
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            cause = self._last_problem or "no answer"
            await self.close()
            raise ConnectionFailed(
                f"no broker could be reached at {self._address} within {self._options.connect_timeout:g} s: {cause}. "
                f"Start one with `vibemq serve`, or give the right URL as argument or in VIBEMQ_URL."
            ) from None
        except BaseException:
            await self.close()
            raise

    async def close(self, error: VibeMQError | None = None) -> None:
        """Send what is written, say Goodbye, and end. Calls that wait raise ClientClosed."""
        connection = self._connection
        if connection is not None and self.is_open:
            connection.send(binary.encode_command(m.Goodbye()))
            connection.close()
            await asyncio.wait([connection.closed], timeout=CLOSE_SECONDS)
        self._shut(error or ClientClosed("the client was closed"))
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])
        if connection is not None:
            connection.end(ConnectionLost("the client was closed"))

    def _shut(self, error: VibeMQError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        for hook in self.on_closed:
            hook(error)
        if not self._opened.done():
            self._opened.cancel()

    # --- the life of a link ----------------------------------------------------------------------------------------

    _last_problem: Exception | None = None

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = self._loop.time()
            connection = None
            try:
                connection = await self._establish()
                await connection.closed
            except UnsupportedVersion as problem:
                self._give_up(problem)
                return
            except MalformedFrame as problem:
                if not self._stats.connects:  # something else listens there
                    self._give_up(problem)
                    return
                self._last_problem = problem
            except (OSError, ConnectionFailed, ProtocolError, TimeoutError, VibeMQError) as problem:
                self._last_problem = problem
            lived = self._loop.time() - began
            if connection is not None and (lived > STEADY_SECONDS or not isinstance(self._last_problem, ProtocolError)):
                attempt = 0
            longest = min(self._options.backoff_max, self._options.backoff_min * 2.0 ** min(attempt, 30))
            attempt += 1
            await asyncio.sleep(self._options.chance.uniform(0, longest))

    def _give_up(self, problem: VibeMQError) -> None:
        if not self._opened.done():
            self._opened.set_exception(problem)
        self._shut(problem)

    async def _establish(self) -> Connection:
        """A connection that was welcomed."""
        self._welcomed = self._loop.create_future()
        hello = m.Hello(
            client=self._options.name,
            heartbeat_ms=round(self._options.heartbeat * 1_000),
            producer=self.producer,
        )
        connection = None
        try:
            async with asyncio.timeout(self._options.backoff_max + self._options.connect_timeout):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(hello, self._received, self._now_writable, self._ended),
                    self._address.host,
                    self._address.port,
                )
                await self._welcomed
        except BaseException as problem:
            if not self._welcomed.cancel() and not self._welcomed.cancelled():
                self._welcomed.exception()  # seen: or asyncio complains that nobody looked
            if connection is not None:
                connection.end(ConnectionLost(f"the broker did not greet: {problem}"))
            raise
        return connection

    def _received(self, connection: Connection, reply: m.Reply) -> None:
        handler = self.handlers.get(type(reply))
        if handler is not None:
            handler(reply)
        elif isinstance(reply, m.Welcome):
            self._welcome(connection, reply)

    def _welcome(self, connection: Connection, welcome: m.Welcome) -> None:
        self._connection, self.limits, self.is_open = connection, welcome, True
        self._stats.connects += 1
        self._silent = self._quiet = 0
        self._watch()
        for hook in self.on_open:
            hook()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_result(None)
        if not self._opened.done():
            self._opened.set_result(None)

    def _now_writable(self) -> None:
        if self.is_open:
            self.on_writable()

    def _goodbye(self, goodbye: m.Goodbye) -> None:
        raise ConnectionLost(f"the broker said goodbye{': ' if goodbye.text else ''}{goodbye.text}")

    def _ended(self, connection: Connection, cause: Exception) -> None:
        self._last_problem = cause
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(cause)
        if connection is not self._connection:
            return
        self._connection, self.is_open = None, False
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        for hook in self.on_cut:
            hook()

    # --- heartbeats ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        seconds = (self.limits.heartbeat_ms or self._options.heartbeat * 1_000) / 1_000
        self._heartbeat = self._loop.call_later(seconds / 2, self._beat)

    def _beat(self) -> None:
        """Every half of a heartbeat: ping after a whole one without a word, give up after two without an answer."""
        connection = self._connection
        if connection is None:
            return
        self._quiet = 0 if connection.spoke else self._quiet + 1
        self._silent = 0 if connection.heard else self._silent + 1
        connection.spoke = connection.heard = False
        if self._silent >= 4:
            connection.end(HeartbeatMissed(f"nothing came from {self._address} for two heartbeats"))
            return
        if self._quiet >= 1 or self._silent >= 1:
            connection.send(binary.encode_command(m.Ping()))
            self._quiet = 0
        self._watch()


def _nothing() -> None:
    pass


NO_LIMITS: Final = m.Welcome(
    request=1,
    version=m.VERSION,
    broker="",
    connection=0,
    heartbeat_ms=0,
    frame_bytes_max=1 << 30,
    batch_messages_max=1 << 16,
    publish_window_bytes=1 << 30,
    publish_window_batches=1 << 16,
)
"""Before the first Welcome nothing is known."""

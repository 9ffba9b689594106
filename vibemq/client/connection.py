"""One TCP connection: the protocol's client session behind an asyncio transport."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

from vibemq.errors import ConnectionLost
from vibemq.protocol import messages as m
from vibemq.protocol.session import ClientSession

READ_BYTES: Final = 256 * 1024
"""What is read at a time, into one buffer that stays: about what fits the cache of a core."""


class Connection(asyncio.BufferedProtocol):
    """Says Hello, hands on what the broker says, and tells once how it ended."""

    def __init__(
        self,
        hello: m.Hello,
        received: Callable[["Connection", m.Reply], None],
        writable: Callable[[], None],
        ended: Callable[["Connection", Exception], None],
    ) -> None:
        """Report replies to `received`, room in the transport to `writable`, and the end, once, to `ended`."""
        self._hello = hello
        self._received = received
        self._writable = writable
        self._ended = ended
        self._session = ClientSession()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._cause: Exception | None = None
        self.paused = False
        """Whether the transport has more to send than it likes."""
        self.heard = True
        """Whether anything came since the last look; the heartbeat clears it."""
        self.spoke = True
        """Whether anything was sent since the last look."""
        self.closed = asyncio.get_running_loop().create_future()
        """Done when the transport is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there: say Hello."""
        self._transport = cast("asyncio.Transport", transport)  # what uvloop makes does not descend from it
        self._transport.write(self._session.begin(self._hello))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the transport's signature
        """Where to read to: always the whole buffer, as the session keeps what is incomplete."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self.heard = True
        try:
            for reply in self._session.receive(self._buffer[:nbytes]):
                self._received(self, reply)
                if self._cause is not None:
                    return
        except Exception as problem:  # noqa: BLE001 - whatever it is, this connection cannot go on, and says why
            self.end(problem)

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send one or more frames."""
        self.spoke = True
        # One that broke is told of in the next turn of the loop; until then asyncio would log each further write.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(buffers)

    def end(self, cause: Exception) -> None:
        """Break the connection now, because of `cause`."""
        self._cause = self._cause or cause
        if self._transport is not None:
            self._transport.abort()
        self._report(self._cause)

    def close(self) -> None:
        """Send what was written, then close."""
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self.paused = True

    def resume_writing(self) -> None:
        """The transport has room again."""
        self.paused = False
        self._writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
        self._report(self._cause or exc or ConnectionLost("the broker closed the connection"))

    def _report(self, cause: Exception) -> None:
        ended, self._ended = self._ended, _already_told
        ended(self, cause)


def _already_told(connection: Connection, cause: Exception) -> None:
    pass

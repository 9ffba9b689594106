"""The listener for the native protocol: accepts connections, and turns away those above a limit or without a hello."""

import asyncio
import errno
from collections import Counter

from vibemq.errors import ConfigError, LimitExceeded
from vibemq.server.connection import ClientConnection
from vibemq.server.runtime import Runtime

READ_BUFFER_BYTES = 1 << 20
BACKLOG = 1024


class Listener:
    """One listening socket. All of its connections share a read buffer."""

    def __init__(self, runtime: Runtime, connections_max: int) -> None:
        """Serve clients of `runtime`, so many at a time."""
        self._runtime, self._connections_max = runtime, connections_max
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._open: dict[ClientConnection, None] = {}
        self._by_host: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and tell where: port 0 takes any that is free.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        except OSError as problem:
            why = f"{problem.strerror or problem}."
            if problem.errno == errno.EADDRINUSE:
                why = "the address is in use. Is another broker running there?"
            raise ConfigError(
                f"cannot listen on {host}:{port}: {why} Choose another address with --listen HOST:PORT"
            ) from None
        self._watch = loop.create_task(self._watch_hellos())
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    def stop_accepting(self) -> None:
        """Take no new connections; those that are open go on."""
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            self._server.close()

    def _accept(self) -> ClientConnection:
        connection = ClientConnection(self._runtime, self._buffer, self._opened, self._closed)
        self._open[connection] = None
        return connection

    def _opened(self, connection: ClientConnection) -> None:
        host, host_max = connection.host, self._runtime.settings.limits.connections_per_address
        self._by_host[host] += 1
        if len(self._open) > self._connections_max:
            which = f"{self._connections_max} connections"
        elif self._by_host[host] > host_max:
            which = f"{host_max} connections per address"
        else:
            return
        connection.turn_away(LimitExceeded(f"the broker has reached its limit of {which}"))

    def _closed(self, connection: ClientConnection) -> None:
        self._open.pop(connection, None)
        self._by_host[connection.host] -= 1
        if not self._by_host[connection.host]:
            del self._by_host[connection.host]

    async def _watch_hellos(self) -> None:
        """Close what connects and says nothing."""
        timeout_us = self._runtime.settings.limits.hello_timeout_ms * 1000
        while True:
            await asyncio.sleep(min(1.0, timeout_us / 4_000_000))
            now_us = self._runtime.clock.now_us()
            for connection in [one for one in self._open if not one.number]:
                if now_us - connection.connected_us > timeout_us:
                    connection.turn_away(LimitExceeded(f"no hello within {timeout_us // 1_000_000} s of connecting"))

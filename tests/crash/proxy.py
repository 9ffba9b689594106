"""A bad network: a TCP proxy that delays, splits, cuts and half-closes what goes through it, as a seed has it.

    python -m tests.crash.proxy SEED PORT

prints the port that it listens on, and connects to PORT until it is killed.
"""

import asyncio
import sys
from random import Random
from typing import Final

CHUNK_MAX: Final = 65_536
CUT_EVERY_S: Final = 0.4
"""A connection lives so long on average."""


class Proxy:
    """Carries connections to a port of this machine, badly."""

    def __init__(self, seed: int, port: int) -> None:
        """Chance comes from `seed`."""
        self._random, self._port = Random(seed), port

    async def run(self) -> None:
        """Serve for ever."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - this is how the port is told
        await server.serve_forever()

    async def _carry(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far, far_out = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            near_out.transport.abort()
            return
        pipes = [asyncio.create_task(self._pipe(near, far_out)), asyncio.create_task(self._pipe(far, near_out))]
        lives = self._random.expovariate(1 / CUT_EVERY_S)
        kind = self._random.choice(("cut", "cut", "half", "swallow"))
        await asyncio.wait(pipes, timeout=lives, return_when=asyncio.FIRST_COMPLETED)
        if kind != "cut" and not any(pipe.done() for pipe in pipes):
            await self._end_slowly(kind, pipes, self._random.choice((near_out, far_out)))
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
        near_out.transport.abort()
        far_out.transport.abort()

    async def _end_slowly(self, kind: str, pipes: list[asyncio.Task[None]], out: asyncio.StreamWriter) -> None:
        """Close one direction, or carry nothing more in it, and let the other go on for a while."""
        pipe = pipes[self._random.randrange(2)]
        pipe.cancel()
        await asyncio.gather(pipe, return_exceptions=True)
        if kind == "half" and out.can_write_eof():
            try:
                out.write_eof()
            except OSError:
                return
        await asyncio.sleep(self._random.uniform(0, 0.3))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        random = self._random
        try:
            while data := await reader.read(random.choice((1, 7, 100, 5000, CHUNK_MAX))):
                if random.random() < 0.05:
                    await asyncio.sleep(random.choice((0.001, 0.01, 0.05)))
                cut = random.randrange(len(data) + 1)
                for part in (data[:cut], data[cut:]):
                    writer.write(part)
                    if random.random() < 0.2:
                        await asyncio.sleep(0)
                await writer.drain()
        except OSError:
            return


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[1]), int(sys.argv[2])).run())

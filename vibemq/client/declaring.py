"""What connect() was told to declare: asked on every connection, before anything else is sent on it."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from vibemq.client.link import Link
from vibemq.client.requests import Pending, Requests
from vibemq.client.stats import Stats
from vibemq.errors import RequestTimeout, ShuttingDown, VibeMQError
from vibemq.protocol import messages as m

_logger: Final = logging.getLogger("vibemq.client")


class Declarations:
    """Declares queues. At first a refusal is an error of open(); later the queues are there, and the client goes on."""

    def __init__(
        self, link: Link, requests: Requests, wanted: Sequence[m.Declare], timeout: float, stats: Stats
    ) -> None:
        """Declare `wanted` over `link`."""
        self._requests = requests
        self._wanted = wanted
        self._timeout = timeout
        self._stats = stats
        self._left = {declare.queue for declare in wanted}
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        requests.on_resume = self._declare
        link.on_closed.append(self._fail)

    async def done(self) -> None:
        """Wait until the broker has said yes to all, once.

        Raises:
            VibeMQError: what it said instead, or RequestTimeout.
        """
        if not self._left:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._first
        except TimeoutError:
            names = ", ".join(map(repr, sorted(self._left)))
            raise RequestTimeout(f"declare {names}: no answer within {self._timeout:g} s") from None

    def _declare(self) -> None:
        for declare in self._wanted:
            self._requests.start(
                Pending(
                    partial(_numbered, declare),
                    partial(self._declared, declare.queue),
                    partial(self._refused, declare.queue),
                    _nothing,  # the next connection declares anew
                )
            )

    def _declared(self, queue: str, _: object) -> None:
        self._left.discard(queue)
        if not self._left and not self._first.done():
            self._first.set_result(None)

    def _refused(self, queue: str, error: VibeMQError) -> None:
        if isinstance(error, ShuttingDown):  # the next broker is asked
            return
        if self._first.done():
            self._stats.declares_failed += 1
            _logger.warning("after a reconnect, queue %r could not be declared: %s", queue, error)
        else:
            self._fail(error)

    def _fail(self, error: VibeMQError) -> None:
        if self._left and not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # seen, also where nobody waits


def _numbered(declare: m.Declare, number: int) -> m.Command:
    return msgspec.structs.replace(declare, request=number)


def _nothing() -> None:
    pass

"""Requests that are answered one by one: everything but publishes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vibemq.client.link import Link
from vibemq.errors import RequestTimeout, ShuttingDown, VibeMQError, from_wire
from vibemq.protocol import binary
from vibemq.protocol import messages as m


@dataclass(slots=True, eq=False)
class Pending:
    """A request without an answer. `cut` says what happens when the connection breaks; None: it is sent again."""

    make: Callable[[int], m.Command]
    done: Callable[[object], None]
    failed: Callable[[VibeMQError], None]
    cut: Callable[[], None] | None
    number: int = 0


class Requests:
    """Matches answers with requests, and sends again what can be sent twice."""

    def __init__(self, link: Link, timeout: float) -> None:
        """Send over `link`; a call waits up to `timeout` seconds."""
        self._link = link
        self._timeout = timeout
        self._pending: dict[int, Pending] = {}
        self.on_resume: Callable[[], None] = _nothing
        """What is to be asked on a new connection before anything is asked again."""
        link.handlers[m.Done] = self._done
        link.on_cut.append(self._cut)
        link.on_closed.append(self._closed)

    def start(self, pending: Pending) -> Pending:
        """Send a request now, or when the broker is back.

        Raises:
            VibeMQError: the client is closed.
        """
        if self._link.closed is not None:
            raise self._link.closed
        pending.number = self._link.number()
        self._pending[pending.number] = pending
        if self._link.is_open:
            self._link.send(binary.encode_command(pending.make(pending.number)))
        return pending

    async def call(
        self,
        make: Callable[[int], m.Command],
        *,
        what: str,
        lost: VibeMQError | None = None,
        begin: Callable[[object], None] | None = None,
    ) -> object:
        """The result of a request; `what` names it in errors. Without `lost` it may be sent twice.

        `begin` gets the result before any frame behind the answer is looked at, also when the caller was cancelled.

        Raises:
            VibeMQError: what the broker answered; RequestTimeout; `lost` when the connection broke before the answer.
        """
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def failed(error: VibeMQError) -> None:
            if not future.done():
                future.set_exception(error)

        def done(result: object) -> None:
            if begin is not None:
                begin(result)
            if not future.done():
                future.set_result(result)

        pending = self.start(Pending(make, done, failed, None if lost is None else lambda: failed(lost)))
        timeout = self._timeout
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            known = "the broker is away" if not self._link.is_open else "the broker has not answered"
            raise RequestTimeout(
                f"{what}: no answer within {timeout:g} s; {known}. It may still take effect."
            ) from None
        finally:
            if begin is None:
                self.forget(pending)

    def resume(self) -> None:
        """A connection opened: send again what has no answer."""
        waiting, self._pending = self._pending, {}
        self.on_resume()
        for pending in waiting.values():
            self.start(pending)

    def failed(self, reply: m.Failed) -> None:
        """A request was refused."""
        error = from_wire(reply.code, reply.text)
        pending = self._pending.get(reply.request)
        if pending is None or (isinstance(error, ShuttingDown) and pending.cut is None):
            return  # what the broker refuses because it stops is sent to the next one
        del self._pending[reply.request]
        pending.failed(error)

    def answered(self, number: int, result: object) -> bool:
        """Take what answers a request; False: it is not one of these."""
        pending = self._pending.pop(number, None)
        if pending is not None:
            pending.done(result)
        return pending is not None

    def forget(self, pending: Pending) -> None:
        """Nobody waits for it any more: it is not sent again."""
        self._pending.pop(pending.number, None)

    def _done(self, reply: m.Done) -> None:
        self.answered(reply.request, reply.result)

    def _cut(self) -> None:
        for number, pending in list(self._pending.items()):
            if pending.cut is not None:
                del self._pending[number]
                pending.cut()

    def _closed(self, error: VibeMQError) -> None:
        waiting, self._pending = self._pending, {}
        for pending in waiting.values():
            pending.failed(error)


def _nothing() -> None:
    pass

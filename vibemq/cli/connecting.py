"""What the commands that talk to a broker share: its URL, the time they wait, and an event loop that ends cleanly."""

import asyncio
import functools
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import click

import vibemq

T = TypeVar("T")

DEFAULT_URL = "vibemq://127.0.0.1:2925"
CONNECT_SECONDS = 10.0


class Broker:
    """Where the broker is, and how long a call may take."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout` in seconds."""
        self.url, self.timeout = url, timeout

    def run(self, command: str, work: Callable[[vibemq.Client], Awaitable[T]]) -> T:
        """Connect as `vibemq COMMAND`, do the work, and disconnect.

        SIGINT and SIGTERM cancel the work; it may use that to end in order. When it does not return then, the process
        exits with 128 + the signal's number.

        Raises:
            VibeMQError: what the work raised, or no broker there.
        """
        received: list[int] = []

        async def connected() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None

            def end(number: int) -> None:
                received.append(number)
                task.cancel()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end, number)
            connect_timeout = min(self.timeout, CONNECT_SECONDS)
            async with vibemq.connect(
                self.url, timeout=self.timeout, connect_timeout=connect_timeout, name=f"vibemq {command}"
            ) as client:
                return await work(client)

        try:
            with asyncio.Runner() as runner:
                return runner.run(connected())
        except asyncio.CancelledError:
            _end_by_signal(received[0])


def _end_by_signal(number: int) -> NoReturn:
    raise click.exceptions.Exit(128 + number)


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --url and --timeout to a command, which gets them as its argument `broker`."""

    @click.option(
        "--url",
        envvar="VIBEMQ_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="The broker, as vibemq://HOST:PORT.",
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer, over any number of reconnects.",
    )
    @functools.wraps(command)
    def with_broker(*args: object, url: str, timeout: float, **options: object) -> object:
        return command(*args, broker=Broker(url, timeout), **options)

    return with_broker


def in_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Run what may block for ever, a read or a write of a pipe, on a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only where T is None

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as problem:  # noqa: BLE001 - raised again where it is awaited
            error = problem
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return future

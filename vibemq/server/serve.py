"""The broker as a process: open the folder, listen, serve until a signal or a failure."""

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version as installed_version

from vibemq.errors import VibeMQError
from vibemq.server.clock import BrokerClock
from vibemq.server.listeners import Listener
from vibemq.server.open_files import connections_possible
from vibemq.server.runtime import Runtime
from vibemq.server.settings import Settings
from vibemq.server.storage import Progress

SWITCH_INTERVAL_S = 0.001
"""How long a background thread may keep the interpreter from the event loop."""


def serve(
    settings: Settings,
    logger: logging.Logger,
    progress: Progress | None = None,
    on_ready: Callable[[str, int], None] | None = None,
) -> None:
    """Run a broker until SIGTERM or SIGINT.

    Raises:
        StorageError: the data folder cannot be used, or a write failed while running.
        ConfigError: the address cannot be listened on.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    runtime = Runtime(settings, installed_version("vibemq"), BrokerClock(), logger)
    begun = time.monotonic()
    runtime.open(progress)  # before the loop, so that Ctrl-C ends a long replay at once
    _report_opening(logger, runtime, time.monotonic() - begun)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(runtime, logger, on_ready))
    if runtime.failure is not None:
        raise runtime.failure


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - only where it exists
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(runtime: Runtime, logger: logging.Logger, on_ready: Callable[[str, int], None] | None) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    def end(reason: str) -> None:
        if not ended.done():
            ended.set_result(reason)

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, end, f"the broker stops ({signal_number.name})")

    settings = runtime.settings
    listener = Listener(runtime, connections_possible(settings.limits.connections, logger))
    try:
        host, port = await listener.start(settings.host, settings.port)
    except VibeMQError:
        runtime.storage.close()
        raise
    runtime.start(lambda: end("the broker failed"))
    gc.collect()
    gc.freeze()  # what lives from here to the end need not be looked at again
    logger.info("listening", extra={"address": f"{host}:{port}", "data": settings.data, "fsync": settings.fsync.sync})
    if on_ready is not None:
        on_ready(host, port)
    reason = await ended
    logger.info("stopping", extra={"reason": reason})
    listener.stop_accepting()
    await runtime.stop(reason)
    logger.info("stopped")


def _report_opening(logger: logging.Logger, runtime: Runtime, seconds: float) -> None:
    opened = runtime.storage.opened
    recovery = opened.recovery
    if opened.index_rebuilt:
        logger.info("the index was built anew", extra={"reason": opened.index_rebuilt})
    if recovery.problem:
        logger.warning(
            "a torn tail was cut: only what was never confirmed",
            extra={"bytes": recovery.cut_bytes, "records": recovery.cut_records, "problem": recovery.problem},
        )
    logger.info(
        "opened the log",
        extra={
            "next_offset": runtime.storage.log.next_offset,
            "replayed": recovery.records,
            "queues": len(runtime.storage.state.queues),
            "seconds": round(seconds, 3),
        },
    )

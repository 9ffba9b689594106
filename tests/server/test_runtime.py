"""The runtime by itself, in the loop of a test."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from vibemq.log.segment import seal_segment
from vibemq.server import runtime as module
from vibemq.server.clock import BrokerClock
from vibemq.server.runtime import Runtime
from vibemq.server.settings import Settings


def test_housekeeping_goes_on_while_segments_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, finish, rounds = threading.Event(), threading.Event(), 0

    def slowly(*arguments: object) -> tuple[int, bytes]:
        begun.set()
        assert finish.wait(20)
        return seal_segment(*arguments)  # type: ignore[arg-type]

    def counted(_: Runtime) -> None:
        nonlocal rounds
        rounds += 1

    monkeypatch.setattr(module, "seal_segment", slowly)
    monkeypatch.setattr(module, "HOUSEKEEPING_S", 0.01)
    monkeypatch.setattr(Runtime, "_check_heartbeats", counted)

    async def main() -> None:
        settings = Settings(data=tmp_path / "data", segment_bytes=4096, reserve_bytes=4096)
        runtime = Runtime(settings, "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        runtime.start(lambda: None)
        try:
            while not begun.is_set():
                runtime.refused("somewhere", "TooMuch")
                await asyncio.sleep(0.001)
            before = rounds
            async with asyncio.timeout(10):
                while rounds < before + 3:  # noqa: ASYNC110 - what is waited for is no event of asyncio
                    await asyncio.sleep(0.01)
        finally:
            finish.set()
            await runtime.stop("the test is over")
        assert runtime.failure is None

    asyncio.run(main())

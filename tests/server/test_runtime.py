"""The runtime by itself, in the loop of a test."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

import vibemq
from vibemq.log.segment import seal_segment
from vibemq.server import runtime as module
from vibemq.server.clock import BrokerClock
from vibemq.server.dispatch import TURN_BYTES_MAX
from vibemq.server.listeners import Listener
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


def test_a_disk_that_takes_long_holds_back_deliveries_and_not_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries to a new subscription wait until that is on the disk; a backlog is read meanwhile, up to a limit."""
    healthy = threading.Event()
    healthy.set()
    sync = os.fdatasync

    def slowly(fd: int) -> None:
        assert healthy.wait(20)
        sync(fd)

    monkeypatch.setattr("vibemq.log.disk.os.fdatasync", slowly)
    monkeypatch.setattr(module, "LONE_EFFECTS_MAX", -1)  # the writer's thread shall wait, and not the loop
    batches, size = 60, 1 << 19

    async def consume(client: vibemq.Client) -> None:
        async with client.consume("q", prefetch=4 * batches) as messages:
            for _ in range(4 * batches):
                await (await anext(messages)).ack()

    async def main() -> None:
        runtime = Runtime(Settings(data=tmp_path / "data"), "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        listener = Listener(runtime, 10)
        _, port = await listener.start("127.0.0.1", 0)
        runtime.start(lambda: None)
        async with vibemq.connect(f"vibemq://127.0.0.1:{port}", prefetch_bytes=1 << 27) as client:
            for _ in range(batches):
                await client.publish_many("q", [bytes(size // 4)] * 4)
            healthy.clear()
            consuming = asyncio.ensure_future(consume(client))
            async with asyncio.timeout(10):
                while runtime._waiting.waiting_bytes < module.WAITING_BYTES_MAX:  # noqa: ASYNC110 - tells nobody
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert runtime._waiting.waiting_bytes < module.WAITING_BYTES_MAX + 2 * TURN_BYTES_MAX
            healthy.set()
            await consuming
        listener.stop_accepting()
        await runtime.stop("the test is over")
        assert runtime.failure is None

    asyncio.run(main())

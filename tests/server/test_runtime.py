"""The runtime by itself, in the loop of a test."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

import vibemq
from vibemq.declaration import ScheduleSpec
from vibemq.errors import OutOfSpace
from vibemq.events import ClientConnected, QueueDeclared
from vibemq.log.segment import seal_segment
from vibemq.server import runtime as module
from vibemq.server.broker import Subscribing
from vibemq.server.checkpointer import Checkpointer
from vibemq.server.clock import BrokerClock
from vibemq.server.connection import ClientConnection
from vibemq.server.dispatch import TURN_BYTES_MAX
from vibemq.server.effects import Load, StoredBatch
from vibemq.server.journal import NewRecord
from vibemq.server.limits import Limits
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


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is cleared, no sync comes to an end."""
    healthy = threading.Event()
    healthy.set()
    sync = os.fdatasync

    def slowly(fd: int) -> None:
        assert healthy.wait(20)
        sync(fd)

    monkeypatch.setattr("vibemq.log.disk.os.fdatasync", slowly)
    monkeypatch.setattr(module, "LONE_EFFECTS_MAX", -1)  # the writer's thread shall wait, and not the loop
    return healthy


def test_a_disk_that_takes_long_holds_back_deliveries_and_not_in_memory(
    tmp_path: Path, healthy: threading.Event
) -> None:
    """Deliveries to a new subscription wait until that is on the disk; a backlog is read meanwhile, up to a limit."""
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


def test_nothing_is_appended_after_a_record_that_found_no_room(tmp_path: Path) -> None:
    """The state holds it already: what comes next would stand at its offset, and no replay could make sense of it."""
    taken: list[NewRecord] = []

    def none_left(record: NewRecord) -> None:
        if isinstance(record.event, QueueDeclared):
            raise OutOfSpace("the reserve is used up")
        taken.append(record)

    async def main() -> None:
        runtime = Runtime(Settings(data=tmp_path / "data"), "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        runtime.start(lambda: None)
        runtime.storage.append = none_left  # type: ignore[method-assign]
        runtime.begin()
        connection = runtime.broker.connect("c", "here", "binary", 1)
        runtime.append()
        runtime.broker.queues.declare(connection, 1, "q", {})
        runtime.append()
        assert isinstance(runtime.failure, OutOfSpace)
        runtime.broker.subscribe(Subscribing(connection, 2, "q", None, 1, 100))
        runtime.append()
        await runtime.stop("the test is over")

    asyncio.run(main())
    assert [type(record.event) for record in taken] == [ClientConnected]


def test_a_client_that_reads_again_is_forgiven_what_it_left_unread(tmp_path: Path) -> None:
    aborted: list[str] = []

    class Slow:
        number = 0

        def abort(self, reason: str) -> None:
            aborted.append(reason)

    async def main() -> None:
        settings = Settings(data=tmp_path / "data", limits=Limits(unread_bytes=1000))
        runtime = Runtime(settings, "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        runtime.start(lambda: None)
        slow = Slow()
        slow.number = runtime.broker.connect("c", "here", "binary", 1)
        client = cast("ClientConnection", slow)
        for _ in range(5):
            runtime.unread(client, 900)
            runtime.blocked(client, blocked=False)
        assert not aborted
        runtime.unread(client, 900)
        runtime.unread(client, 900)
        assert len(aborted) == 1
        await runtime.stop("the test is over")

    asyncio.run(main())


def test_a_peek_shows_nothing_that_is_not_durable(tmp_path: Path, healthy: threading.Event) -> None:
    async def main() -> None:
        runtime = Runtime(Settings(data=tmp_path / "data"), "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        listener = Listener(runtime, 10)
        _, port = await listener.start("127.0.0.1", 0)
        runtime.start(lambda: None)
        async with vibemq.connect(f"vibemq://127.0.0.1:{port}") as client:
            await client.declare("q")
            healthy.clear()
            publishing = asyncio.ensure_future(client.publish("q", b"not yet"))
            async with asyncio.timeout(10):
                while runtime.broker.queues.require("q").length == 0:  # noqa: ASYNC110 - tells nobody
                    await asyncio.sleep(0.01)
            peeking = asyncio.ensure_future(client.peek("q"))
            await client.ping()  # answered at once, so the peek was heard before
            await asyncio.sleep(0.1)
            assert not peeking.done()
            assert not publishing.done()
            healthy.set()
            assert [message.body for message in await peeking] == [b"not yet"]
            await publishing
        listener.stop_accepting()
        await runtime.stop("the test is over")
        assert runtime.failure is None

    asyncio.run(main())


def test_dead_letters_that_died_one_by_one_are_not_each_looked_up_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    read = Runtime._read

    async def counted(runtime: Runtime, load: Load) -> list[StoredBatch]:
        nonlocal looks
        looks += 1
        return await read(runtime, load)

    monkeypatch.setattr(Runtime, "_read", counted)

    async def main() -> None:
        runtime = Runtime(Settings(data=tmp_path / "data"), "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        listener = Listener(runtime, 10)
        _, port = await listener.start("127.0.0.1", 0)
        runtime.start(lambda: None)
        async with vibemq.connect(f"vibemq://127.0.0.1:{port}") as client:
            await client.publish_many("q", [b"%d" % number for number in range(20)])
            for message in await client.pull("q"):
                await message.reject(reason=f"because of {message.body.decode()}", confirm=True)
            found = await client.dead_letters("q")
        listener.stop_accepting()
        await runtime.stop("the test is over")
        assert [one.body for one in found] == [b"%d" % number for number in range(20)]
        assert looks == 1

    asyncio.run(main())


def test_time_that_passes_at_the_end_decides_nothing_and_leaves_one_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Checkpointer.take

    async def slowly(self: Checkpointer) -> bool:
        await asyncio.sleep(0.3)
        return await take(self)

    async def main() -> None:
        runtime = Runtime(Settings(data=tmp_path / "data"), "1", BrokerClock(), logging.getLogger("test"))
        runtime.open()
        runtime.start(lambda: None)
        handles: list[asyncio.TimerHandle] = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def kept(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
            handle = call_later(delay, callback, *arguments)
            if callback == runtime._tick:
                handles.append(handle)
            return handle

        monkeypatch.setattr(loop, "call_later", kept)
        runtime.begin()
        runtime.broker.schedules.set(0, 0, "beat", ScheduleSpec(queue="beats", every_ms=100))
        runtime.append()
        for _ in range(20):
            runtime._tick()
            await asyncio.sleep(0)
        now = loop.time()
        assert len([one for one in handles if one.when() > now and not one.cancelled()]) == 1
        monkeypatch.setattr(Checkpointer, "take", slowly)
        async with asyncio.timeout(20):
            await runtime.stop("the test is over")
        state = runtime.storage.state
        assert not state.audit.running
        assert state.next_offset == runtime.storage.log.synced

    asyncio.run(main())

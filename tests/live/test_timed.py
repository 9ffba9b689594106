"""Delays, dedup ids and schedules, asked of a real broker by the client."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq.client import Client
from vibemq.errors import UnknownMessage, UnknownSchedule

SECONDS_MAX = 60


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def connect(broker: RunningBroker) -> Client:
    """A client that comes back fast."""
    return vibemq.connect(broker.url, backoff_min=0.01, backoff_max=0.05)


def test_messages_wait_and_are_looked_after_also_over_a_restart(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            far = datetime(2999, 1, 1, tzinfo=UTC)
            receipts = await asyncio.gather(
                *(client.publish("q", b"%d" % n, deliver_at=far + timedelta(seconds=n % 7)) for n in range(1_200))
            )
            assert {receipt.due_at for receipt in receipts} == {far + timedelta(seconds=n) for n in range(7)}
            assert (await client.show_queue("q"))["delayed"] == 1_200
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            found = [one async for one in client.delayed("q")]  # three pages
            assert len({one.id for one in found}) == 1_200
            assert [one.due_at for one in found] == sorted(receipt.due_at for receipt in receipts if receipt.due_at)

            ids = [receipt.id for receipt in receipts]
            shown = await client.show_delayed("q", ids[5])
            assert (shown.body, shown.due_at, shown.size) == (b"5", receipts[5].due_at, 1)
            assert await client.cancel_delayed("q", ids[:3]) == 3
            with pytest.raises(UnknownMessage):
                await client.cancel_delayed("q", [ids[7], ids[0]])
            assert (await client.show_delayed("q", ids[7])).body == b"7"
            due_at = await client.reschedule("q", ids[3], deliver_at=far - timedelta(days=1))
            assert due_at == far - timedelta(days=1)
            assert (await anext(client.delayed("q"))).id == ids[3]
            assert await client.release_delayed("q", [ids[4], ids[1_000]]) == 2
            assert {one.body for one in await client.pull("q", wait=10)} == {b"4", b"1000"}
            assert (await client.show_queue("q"))["delayed"] == 1_195

    asyncio.run(main())


def test_a_delay_ends(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            await client.declare("bound")
            await client.bind("bound", "a.*")
            later = await client.publish("q", b"later", delay=0.3, ttl="1h", headers={"n": 1})
            topic = await client.publish_topic("a.b", b"topic", delay="300ms")
            await client.publish("q", b"now", delay=0)
            async with client.consume("q") as messages:
                assert [(await anext(messages)).body for _ in range(2)] == [b"now", b"later"]
            (message,) = await client.pull("bound", wait=10)
            assert (message.id, message.headers) == (topic.id, {"topic": "a.b"})
            assert later.due_at is not None
            assert datetime.now(UTC) >= later.due_at

    asyncio.run(main())


def test_what_is_published_again_is_stored_once_and_the_receipt_says_of_which(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            first = await client.publish("q", b"1", dedup_id="a")
            async with connect(broker) as other:
                again = await other.publish("q", b"1", dedup_id="a")
            assert (again.duplicate, again.duplicate_of, again.id) == (True, first.id, first.id)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            many = await client.publish_many("q", [b"1", b"2", b"2", b"3"], dedup_ids=["a", "b", "b", None])
            assert [one.duplicate for one in many] == [True, False, True, False]
            assert [one.duplicate_of for one in many] == [first.id, None, many[1].id, None]
            async with client.transaction() as tx:
                known = tx.publish("q", b"2", dedup_id="b")
                new = tx.publish("q", b"4", dedup_id="d")
            assert (known.receipt.duplicate_of, new.receipt.duplicate) == (many[1].id, False)
            stored = await client.peek("q")
            assert [one.body for one in stored] == [b"1", b"2", b"3", b"4"]
            assert [one.id for one in stored] == [first.id, many[1].id, many[3].id, new.receipt.id]
            assert [one.sequence for one in stored] == [
                *(first.sequence, many[1].sequence, many[3].sequence, new.receipt.sequence)
            ]

    asyncio.run(main())


def test_a_schedule_publishes_pauses_and_ends(broker: RunningBroker) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), connect(broker) as client:
            made = await client.set_schedule("tick", "ticks", b"tick", every="100ms", headers={"n": 1}, priority="high")
            assert (made.every, made.body, made.headers, made.priority, made.paused) == (
                0.1,
                b"tick",
                {"n": 1},
                7,
                False,
            )
            first, *_ = await client.pull("ticks", wait=10)
            assert (first.body, first.headers["schedule"], first.headers["n"]) == (b"tick", "tick", 1)
            paused = await client.pause_schedule("tick")
            assert paused.paused
            assert paused.fired >= 1
            resumed = await client.resume_schedule("tick")
            assert not resumed.paused
            assert resumed.next_at is not None
            await client.set_schedule("yearly", "ticks", b"", every="365d", end=datetime(2999, 1, 1, tzinfo=UTC))
            assert [one.name for one in await client.schedules()] == ["tick", "yearly"]
            await client.delete_schedule("tick")
            with pytest.raises(UnknownSchedule):
                await client.schedules("tick")

    asyncio.run(main())

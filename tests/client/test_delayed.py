"""Messages that wait for their time, and schedules: what is asked, and what is made of the answers."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, settle_loop, with_client
from vibemq.client import Client
from vibemq.errors import ConnectionLost, InvalidName, LimitExceeded, UnknownMessage, UnknownSchedule, UsageError
from vibemq.protocol import messages as m

AT = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
AT_US = (AT - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def entry(number: int) -> dict[str, object]:
    due_at = AT + timedelta(seconds=number)
    return {"id": f"7-{number}", "due_at": due_at.isoformat(), "published_at": AT.isoformat(), "bytes": 10 + number}


def test_delayed_messages_come_page_by_page_as_the_loop_goes_on() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        asked: list[tuple[int, int, int]] = []

        def page(command: m.ListDelayed) -> m.Reply:
            asked.append(command.after)
            first = 0 if command.after == (0, 0, 0) else command.after[2] + 1
            messages = [entry(number) for number in range(first, first + 2)]
            then = (5, 7, first + 1) if first < 4 else None
            return m.Done(request=command.request, result={"messages": messages, "count": 6, "next": then})

        broker.answers[m.ListDelayed] = page
        found = []
        async for one in client.delayed("q"):
            found.append(one)
            assert len(asked) == (len(found) + 1) // 2
        assert [one.id for one in found] == [f"7-{number}" for number in range(6)]
        assert found[1] == vibemq.DelayedMessage("7-1", "q", AT + timedelta(seconds=1), AT, 11)
        assert asked == [(0, 0, 0), (5, 7, 1), (5, 7, 3)]
        broker.answers[m.ListDelayed] = lambda command: m.Done(
            request=command.request, result={"messages": [], "count": 0, "next": None}
        )
        assert [one async for one in client.delayed("q")] == []

    with_client(test)


def test_a_delayed_message_is_shown_with_its_content() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.show_delayed("q", "7-1"))
        connection, command = await broker.next(m.ShowDelayed)
        assert (command.queue, command.id) == ("q", "7-1")
        connection.send(m.Done(request=command.request, result=entry(1) | {"body": b"x", "headers": {"k": 1}}))
        shown = await call
        assert (shown.id, shown.body, shown.headers, shown.size) == ("7-1", b"x", {"k": 1}, 1 + 4)
        assert shown.due_at == AT + timedelta(seconds=1)

    with_client(test)


def test_messages_are_cancelled_rescheduled_and_released() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls: list[Any] = [
            client.cancel_delayed("q", "7-1"),
            client.reschedule("q", ["7-1", "7-2"], delay="5m"),
            client.reschedule("q", "7-1", deliver_at=AT),
            client.release_delayed("q", iter(["7-1"])),
        ]
        got: list[tuple[object, ...]] = []
        results: list[object] = []
        for coroutine in calls:
            call = asyncio.create_task(coroutine)
            connection, command = await broker.waiting.get()
            assert isinstance(command, m.CancelDelayed | m.Reschedule)
            got.append((command.ids, getattr(command, "delay_ms", None), getattr(command, "due_us", None)))
            connection.send(m.Done(request=command.request, result={"count": len(command.ids), "due_us": AT_US}))
            results.append(await call)
        assert got == [
            (("7-1",), None, None),
            (("7-1", "7-2"), 300_000, 0),
            (("7-1",), 0, AT_US),
            (("7-1",), 0, 0),
        ]
        assert results == [1, AT, AT, 1]
        for refused in (
            client.cancel_delayed("q", []),
            client.cancel_delayed("q", ["7-1"] * 1025),
            client.reschedule("q", "7-1"),
            client.reschedule("q", "7-1", delay=1, deliver_at=1),
        ):
            with pytest.raises(UsageError):
                await refused
        assert broker.idle

    with_client(test)


def test_what_cannot_be_done_twice_is_not_sent_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.cancel_delayed("q", "7-1")),
            asyncio.create_task(client.release_delayed("q", "7-1")),
            asyncio.create_task(client.delete_schedule("s")),
        ]
        await settle_loop()
        broker.connections[0].cut()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, ConnectionLost)
        for _ in calls:
            await broker.waiting.get()
        call = asyncio.create_task(client.cancel_delayed("q", "7-1"))
        connection, command = await broker.next(m.CancelDelayed)
        connection.send(m.Failed(request=command.request, code=220, text="no message 7-1 waits in 'q'"))
        with pytest.raises(UnknownMessage, match="7-1"):
            await call

    with_client(test)


SHOWN = {
    "name": "report",
    "queue": "reports",
    "to_topic": False,
    "cron": "30 8 * * mon-fri",
    "zone": "Europe/Berlin",
    "every_ms": 0,
    "start_us": AT_US,
    "end_us": 0,
    "times": 3,
    "misfire": "skip",
    "paused": False,
    "fired": 2,
    "missed": 1,
    "last_us": AT_US,
    "next_us": 0,
    "body": b"go",
    "headers": {"k": "v"},
    "priority": 7,
    "ttl_ms": 1_500,
}


def test_a_schedule_says_when_and_what_and_is_told_how_it_went() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(
            client.set_schedule(
                "report",
                "reports",
                bytearray(b"go"),
                cron="30 8 * * mon-fri",
                zone="Europe/Berlin",
                start=AT,
                end=AT.timestamp() + 10,
                times=3,
                misfire="skip",
                headers={"k": "v"},
                priority="high",
                ttl=1.5,
            )
        )
        connection, command = await broker.next(m.SetSchedule)
        assert command == m.SetSchedule(
            request=command.request,
            name="report",
            queue="reports",
            body=b"go",
            headers={"k": "v"},
            priority=7,
            ttl_ms=1_500,
            cron="30 8 * * mon-fri",
            zone="Europe/Berlin",
            start_us=AT_US,
            end_us=command.end_us,
            times=3,
            misfire="skip",
        )
        assert abs(command.end_us - AT_US - 10_000_000) < 2
        connection.send(m.Done(request=command.request, result=SHOWN))
        schedule = await call
        assert (schedule.name, schedule.cron, schedule.every, schedule.zone) == (
            *("report", "30 8 * * mon-fri", None, "Europe/Berlin"),
        )
        assert (schedule.start, schedule.end, schedule.last_at, schedule.next_at) == (AT, None, AT, None)
        assert (schedule.times, schedule.fired, schedule.missed, schedule.ttl) == (3, 2, 1, 1.5)
        assert (schedule.body, schedule.headers, schedule.priority, schedule.misfire) == (b"go", {"k": "v"}, 7, "skip")
        call = asyncio.create_task(client.set_schedule("tick", "a.b", b"", every="250ms", to_topic=True))
        connection, command = await broker.next(m.SetSchedule)
        assert (command.every_ms, command.cron, command.to_topic, command.priority) == (250, "", True, 4)
        connection.cut()
        connection, command = await broker.next(m.SetSchedule)  # may be set twice
        connection.send(m.Done(request=command.request, result=SHOWN | {"cron": "", "every_ms": 250}))
        assert ((await call).every, (await call).cron) == (0.25, None)

    with_client(test)


def test_schedules_are_listed_paused_resumed_and_deleted() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.answers[m.ListSchedules] = lambda command: (
            m.Done(request=command.request, result=[SHOWN])
            if command.name in {None, "report"}
            else m.Failed(request=command.request, code=221, text="no schedule")
        )
        broker.answers[m.PauseSchedule] = lambda command: m.Done(
            request=command.request, result=SHOWN | {"paused": command.paused}
        )
        broker.answers[m.DeleteSchedule] = lambda command: m.Done(request=command.request)
        assert [one.name for one in await client.schedules()] == ["report"]
        assert [one.name for one in await client.schedules("report")] == ["report"]
        with pytest.raises(UnknownSchedule):
            await client.schedules("other")
        assert (await client.pause_schedule("report")).paused
        assert not (await client.resume_schedule("report")).paused
        await client.delete_schedule("report")

    with_client(test)


def test_a_schedule_that_cannot_be_is_refused_before_anything_is_sent() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        wrongs: list[dict[str, Any]] = [
            {},
            {"cron": "* * * * *", "every": 1},
            {"every": 0},
            {"every": "soon"},
            {"every": 1, "times": 0},
            {"every": 1, "start": -1},
            {"every": 1, "ttl": 0},
        ]
        for wrong in wrongs:
            with pytest.raises(UsageError):
                await client.set_schedule("s", "q", b"", **wrong)
        with pytest.raises(LimitExceeded):
            await client.set_schedule("s", "q", b"x" * (1 << 20), every=1)
        for name, queue, to_topic in ((" s", "q", False), ("s", " q", False), ("s", "a.*", True)):
            with pytest.raises(InvalidName):
                await client.set_schedule(name, queue, b"", every=1, to_topic=to_topic)
        assert broker.idle

    with_client(test)

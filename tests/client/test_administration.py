"""Queues and topics: what is asked, what may be asked twice, and what is declared on every connection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, until, with_broker, with_client
from vibemq.client import Client, QueueSettings
from vibemq.client.queues import settings_of
from vibemq.declaration import Backoff
from vibemq.declaration import QueueSettings as BrokerSettings
from vibemq.errors import (
    ConnectionLost,
    DeclareConflict,
    InvalidName,
    RequestTimeout,
    UnsupportedVersion,
    UsageError,
    VibeMQError,
)
from vibemq.protocol import messages as m


def test_every_setting_of_a_queue_can_be_said_without_its_unit() -> None:
    given: dict[str, Any] = {}
    for name in BrokerSettings.__struct_fields__:
        kind = type(getattr(BrokerSettings(), name))
        plain = name.removesuffix("_ms").removesuffix("_percent")
        given[plain] = "3s" if plain != name and name.endswith("_ms") else kind("fixed") if kind is Backoff else 1
    assert set(given) == set(QueueSettings.__annotations__)
    assert set(settings_of(given)) == set(BrokerSettings.__struct_fields__)
    assert {value for name, value in settings_of(given).items() if name.endswith("_ms")} == {3_000}


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no setting 'lease_ms'"):
        settings_of({"lease_ms": 1})
    for name, value in {"lease": True, "ttl": "soon", "max_length": [1], "group_idle": b"1s"}.items():
        with pytest.raises(UsageError, match=name):
            settings_of({name: value})
    assert settings_of({"order_by_key": True, "single_active": False, "mode": None}) == {
        "order_by_key": True,
        "single_active": False,
    }


def test_declaring_tells_the_differences() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        result = {"name": "q", "differences": [{"setting": "ttl_ms", "live": 0, "declared": 1, "class": "soft"}]}
        broker.answers[m.Declare] = lambda c: m.Done(request=c.request, result=result)
        assert await client.declare("q", ttl=0.001, on_difference="ignore") == result
        (declare,) = broker.connections[0].received
        assert isinstance(declare, m.Declare)
        assert (declare.settings, declare.on_difference) == ({"ttl_ms": 1}, "ignore")
        with pytest.raises(UsageError, match="on_difference"):
            await client.declare("q", on_difference="replace")  # type: ignore[arg-type]

    with_client(test)


Verb = Callable[[Client], Awaitable[object]]
TWICE: list[tuple[Verb, m.Control, object, object]] = [
    (lambda c: c.change("q", ttl="1s"), m.Change(request=1, queue="q", settings={"ttl_ms": 1000}), {"a": 1}, {"a": 1}),
    (lambda c: c.bind("q", "a.*.#"), m.Bind(request=1, queue="q", pattern="a.*.#"), None, None),
    (lambda c: c.unbind("q", "a"), m.Unbind(request=1, queue="q", pattern="a"), {"count": 1}, True),
    (lambda c: c.unbind("q", "a"), m.Unbind(request=1, queue="q", pattern="a"), {"count": 0}, False),
    (
        lambda c: c.bindings("q"),
        m.ListBindings(request=1, queue="q"),
        [{"queue": "q", "pattern": "#"}],
        [("q", "#")],
    ),
    (lambda c: c.bindings(), m.ListBindings(request=1), [], []),
    (lambda c: c.peek("q", priority="high"), m.Peek(request=1, queue="q", priority=7), [], []),
    (lambda c: c.peek("q", 3, 4, "g"), m.Peek(request=1, queue="q", start=3, count=4, group="g"), [], []),
]
ONCE: list[tuple[Verb, m.Control, object, object]] = [
    (lambda c: c.rename("q", "r"), m.Rename(request=1, queue="q", name="r"), {"name": "r"}, {"name": "r"}),
    (lambda c: c.delete("q", grace=0), m.Delete(request=1, queue="q", grace_ms=0), {"count": 3}, 3),
    (lambda c: c.delete("q"), m.Delete(request=1, queue="q"), {"count": 3}, 3),
    (lambda c: c.undelete("q"), m.Undelete(request=1, queue="q"), {"name": "q"}, {"name": "q"}),
    (lambda c: c.undelete("q", "r"), m.Undelete(request=1, queue="q", name="r"), {"name": "r"}, {"name": "r"}),
]


def number_of(asked: m.Control) -> int:
    number: int = getattr(asked, "request")  # noqa: B009 - each kind has it, and their base does not
    return number


@pytest.mark.parametrize(("call", "request_", "result", "expected"), TWICE + ONCE)
def test_what_is_asked_and_answered(call: Verb, request_: m.Control, result: object, expected: object) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calling = asyncio.ensure_future(call(client))
        connection, asked = await broker.next(type(request_))  # type: ignore[type-var]
        assert msgspec.structs.replace(asked, request=1) == request_
        connection.send(m.Done(request=number_of(asked), result=result))
        assert await calling == expected

    with_client(test)


@pytest.mark.parametrize(("call", "request_"), [one[:2] for one in TWICE])
def test_what_may_be_done_twice_is_asked_again(call: Verb, request_: m.Control) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calling = asyncio.ensure_future(call(client))
        connection, _ = await broker.next(type(request_))  # type: ignore[type-var]
        connection.cut()
        connection, asked = await broker.next(type(request_))  # type: ignore[type-var]
        connection.send(m.Done(request=number_of(asked)))
        await calling

    with_client(test)


@pytest.mark.parametrize(("call", "request_"), [one[:2] for one in ONCE])
def test_what_must_not_be_done_twice_is_not(call: Verb, request_: m.Control) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calling = asyncio.ensure_future(call(client))
        connection, _ = await broker.next(type(request_))  # type: ignore[type-var]
        connection.cut()
        with pytest.raises(ConnectionLost, match="not known"):
            await calling

    with_client(test)


def test_names_are_checked_before_anything_is_asked() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls: list[Verb] = [
            lambda c: c.rename("q", ""),
            lambda c: c.undelete("q", " r"),
            lambda c: c.bind("q", "a*"),
            lambda c: c.unbind("q", ".."),
            lambda c: c.bindings(""),
            lambda c: c.peek("q", group=""),
            lambda c: c.change(""),
            lambda c: c.delete_group("q", "\x00"),
        ]
        for call in calls:
            with pytest.raises(InvalidName):
                await call(client)
        assert not broker.connections[0].received

    with_client(test)


# --- declarations in the connect call ---------------------------------------------------------------------------------


def declared(connection: Any) -> list[str]:  # noqa: ANN401 - a FakeConnection or none yet
    return [type(one).__name__ for one in connection.received]


def accept(command: m.Declare) -> m.Reply:
    return m.Done(request=command.request, result={})


def test_queues_are_declared_on_every_connection_before_anything_is_sent() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.answers[m.Declare] = accept
        wanted = {"a": {"ttl": "1m", "on_difference": "override"}, "b": {}}
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.002, declare=wanted) as client:  # type: ignore[arg-type]
            first, second = broker.connections[0].received
            assert isinstance(first, m.Declare)
            assert isinstance(second, m.Declare)
            assert (first.queue, first.settings, first.on_difference) == ("a", {"ttl_ms": 60_000}, "override")
            assert (second.queue, second.settings, second.on_difference) == ("b", {}, "fail")
            async with client.consume("b"):
                publishing = asyncio.create_task(client.publish("a", b""))
                asking = asyncio.create_task(client.list_queues())
                connection, _ = await broker.next(m.ListQueues)
                connection.cut()
                await until(lambda: len(broker.connections) > 1 and len(broker.connections[1].received) >= 5)
                assert declared(broker.connections[1])[:2] == ["Declare", "Declare"]
                assert sorted(declared(broker.connections[1])[2:]) == ["ListQueues", "Publish", "Subscribe"]
                for call in (publishing, asking):
                    call.cancel()
                await asyncio.gather(publishing, asking, return_exceptions=True)

    with_broker(test)


def test_a_conflict_at_first_is_an_error_of_open() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.answers[m.Declare] = lambda c: (
            accept(c) if c.queue == "a" else m.Failed(request=c.request, code=202, text="queue 'b' has mode priority")
        )
        client = vibemq.connect(broker.url, declare={"a": {}, "b": {"mode": "fan-out"}})
        with pytest.raises(DeclareConflict, match="mode priority"):
            await client.open()
        await until(lambda: declared(broker.connections[0])[-1] == "Goodbye")

    with_broker(test)


def test_a_conflict_after_a_reconnect_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test(broker: FakeBroker) -> None:
        broker.answers[m.Declare] = accept
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.002, declare={"a": {}}) as client:
            broker.answers[m.Declare] = lambda c: m.Failed(request=c.request, code=212, text="stopping")
            broker.connections[0].cut()
            await until(lambda: client.stats.connects == 2 and bool(broker.connections[1].received))
            broker.answers[m.Declare] = lambda c: m.Failed(request=c.request, code=202, text="it differs now")
            broker.connections[1].cut()
            await until(lambda: client.stats.declares_failed == 1)
            assert await client.ping() >= 0
        assert ["it differs now" in record.getMessage() for record in caplog.records] == [True]
        assert caplog.records[0].levelno == logging.WARNING

    with_broker(test)


def test_a_declaration_without_an_answer_times_out_and_one_that_is_cut_is_repeated() -> None:
    async def test(broker: FakeBroker) -> None:
        with pytest.raises(RequestTimeout, match="declare 'a'"):
            await vibemq.connect(broker.url, timeout=0.05, declare={"a": {}}).open()
        await broker.next(m.Declare)
        client = vibemq.connect(broker.url, backoff_min=0.001, declare={"a": {}})
        opening = asyncio.create_task(client.open())
        connection, _ = await broker.next(m.Declare)
        connection.cut()
        connection, declare = await broker.next(m.Declare)
        broker.greeting = m.Goodbye(code=103, text="another version")
        connection.cut()
        with pytest.raises(UnsupportedVersion):
            await opening
        assert declare.queue == "a"

    with_broker(test)


@pytest.mark.parametrize(
    "declare", [{"": {}}, {"a": {"colour": "red"}}, {"a": {"ttl": "soon"}}, {"a": {"on_difference": "replace"}}]
)
def test_declarations_that_cannot_be_are_refused_at_once(declare: Any) -> None:  # noqa: ANN401 - wrong on purpose
    with pytest.raises(VibeMQError):
        vibemq.connect("vibemq://h", declare=declare)

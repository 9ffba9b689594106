"""Groups: where they start, by which name they go on, and what exclusive consumers meet."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, deliver, sent, settle_loop, until, with_broker, with_client
from vibemq.client import Client, consumer
from vibemq.client.membership import start_of
from vibemq.errors import ConnectionLost, ConsumerExclusive, InvalidName, UnknownGroup, UsageError
from vibemq.protocol import messages as m


def subscribes(broker: FakeBroker) -> list[m.Subscribe]:
    return [one for connection in broker.connections for one in sent(connection, m.Subscribe)]


def refuse_once(broker: FakeBroker, code: int, text: str) -> None:
    """Refuse the next Subscribe, then accept again."""

    def answer(command: m.Subscribe) -> m.Reply:
        broker.answers[m.Subscribe] = broker.subscribed
        return m.Failed(request=command.request, code=code, text=text)

    broker.answers[m.Subscribe] = answer


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("tail", ("tail", 0)),
        ("head", ("head", 0)),
        (7, ("sequence", 7)),
        (datetime(1970, 1, 2, 1, tzinfo=timezone(timedelta(hours=1))), ("time", 86_400_000_000)),
    ],
)
def test_where_a_group_may_start(start: Any, expected: tuple[str, int]) -> None:  # noqa: ANN401 - each kind
    assert start_of(start) == expected


@pytest.mark.parametrize("start", ["", "begin", -1, 1 << 63, True, 1.5, None, datetime(2020, 1, 1)])  # noqa: DTZ001
def test_where_a_group_cannot_start(start: Any) -> None:  # noqa: ANN401 - anything
    with pytest.raises(UsageError, match="start"):
        start_of(start)


def test_a_consumer_says_what_it_takes_part_in_and_says_so_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        when = datetime(2026, 1, 1, tzinfo=UTC)
        async with client.consume("q", 10, "billing", start=when, exclusive=True) as messages:
            broker.connections[0].cut()
            await until(lambda: broker.subscriptions == 2)
            assert (messages.queue, messages.group) == ("q", "billing")
        for one in subscribes(broker):
            assert (one.queue, one.group, one.exclusive) == ("q", "billing", True)
            assert (one.start, one.at) == ("time", int(when.timestamp() * 1_000_000))

    with_client(test)


def test_a_group_without_a_name_goes_on_under_the_name_that_it_got() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.group = "$3"
        async with client.consume("news") as messages:
            assert messages.group == "$3"
            broker.connections[0].cut()
            await until(lambda: broker.subscriptions == 2)
        assert [one.group for one in subscribes(broker)] == [None, "$3"]
        assert client.stats.groups_lost == 0

    with_client(test)


def test_a_group_without_a_name_that_is_gone_is_followed_by_another() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.group = "$3"
        async with client.consume("news", start="head") as messages:
            refuse_once(broker, 216, "there is no group '$3'")
            broker.group = "$4"
            broker.connections[0].cut()
            await until(lambda: broker.subscriptions == 2)
            broker.connections[1].send(deliver([b"x"], subscription=2))
            assert (await anext(messages)).body == b"x"
            assert messages.group == "$4"
        assert [(one.group, one.start) for one in subscribes(broker)] == [
            (None, "head"),
            ("$3", "head"),
            (None, "head"),
        ]
        assert client.stats.groups_lost == 1

    with_client(test)


def test_a_named_group_that_is_refused_ends_the_consumer() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        refuse_once(broker, 216, "queue 'q' has no groups")
        with pytest.raises(UnknownGroup, match="no groups"):
            async with client.consume("q", group="g"):
                pass
        async with client.consume("q", group="g") as messages:
            refuse_once(broker, 216, "queue 'q' has no groups")
            broker.connections[0].cut()
            with pytest.raises(UnknownGroup):
                await anext(messages)

    with_client(test)


def test_a_consumer_asks_again_while_the_broker_still_sees_it_on_the_old_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "EXCLUSIVE_RETRY_SECONDS", 0.001)

    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, timeout=0.2, backoff_min=0.001, backoff_max=0.002) as client:
            refuse_once(broker, 215, "somebody has it for himself")
            with pytest.raises(ConsumerExclusive):  # at first there is nothing to wait for
                async with client.consume("q", exclusive=True):
                    pass
            async with client.consume("q", exclusive=True) as messages:
                refuse_once(broker, 215, "somebody has it for himself")
                broker.connections[0].cut()
                await until(lambda: broker.subscriptions == 2)
                broker.answers[m.Subscribe] = lambda c: m.Failed(request=c.request, code=215, text="it is another's")
                broker.connections[1].cut()
                with pytest.raises(ConsumerExclusive, match="another"):  # for as long as a call may take
                    await anext(messages)

    with_broker(test)


def test_leaving_while_asking_again_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "EXCLUSIVE_RETRY_SECONDS", 0.01)

    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", exclusive=True):
            broker.answers[m.Subscribe] = lambda c: m.Failed(request=c.request, code=215, text="taken")
            broker.connections[0].cut()
            await until(lambda: len(subscribes(broker)) >= 2)
            await settle_loop()
        await settle_loop()  # the last one may still be on its way
        asked = len(subscribes(broker))
        await asyncio.sleep(0.03)
        assert len(subscribes(broker)) == asked

    with_client(test)


def test_pulls_from_groups_have_subscriptions_of_their_own() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.group = "$1"
        broker.answers[m.Credit] = lambda credit: m.Drained(subscription=credit.subscription)
        await client.pull("q")
        await client.pull("q", group="a", start="head")
        await client.pull("q", group="b", start=5, exclusive=True)
        await client.pull("q", group="a")
        assert [(one.group, one.start, one.at, one.exclusive) for one in subscribes(broker)] == [
            (None, "tail", 0, False),
            ("a", "head", 0, False),
            ("b", "sequence", 5, True),
        ]
        broker.connections[0].cut()
        await client.pull("q")
        assert subscribes(broker)[-1].group == "$1"
        refuse_once(broker, 216, "there is no group '$1'")
        broker.connections[1].cut()
        assert await client.pull("q", start="head") == []
        assert [(one.group, one.start) for one in subscribes(broker)[-2:]] == [("$1", "head"), (None, "head")]
        assert client.stats.groups_lost == 1
        refuse_once(broker, 216, "no groups here")
        broker.connections[2].cut()
        with pytest.raises(UnknownGroup, match="no groups"):
            await client.pull("q", group="a")

    with_client(test)


def test_a_cancelled_pull_keeps_the_group_that_has_no_name() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.group = "$1"
        pulling = asyncio.create_task(client.pull("news", wait=60))
        connection, _ = await broker.next(m.Credit)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await until(lambda: broker.subscriptions == 2)  # else the group goes, and what comes meanwhile is missed
        assert [one.group for one in subscribes(broker)] == [None, "$1"]
        again = asyncio.create_task(client.pull("news"))
        connection, credit = await broker.next(m.Credit)
        assert credit.subscription == 2
        connection.send(m.Drained(subscription=2))
        await again
        assert broker.subscriptions == 2

    with_client(test)


def test_seeking_and_deleting_groups() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        seeking = asyncio.create_task(client.seek("q", "g", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)))
        connection, seek = await broker.next(m.Seek)
        assert (seek.queue, seek.group, seek.start, seek.at) == ("q", "g", "time", 1_000_000)
        connection.send(m.Done(request=seek.request, result={"sequence": 12}))
        assert await seeking == 12
        deleting = asyncio.create_task(client.delete_group("q", "g"))
        connection, delete = await broker.next(m.DeleteGroup)
        assert (delete.queue, delete.group) == ("q", "g")
        connection.cut()
        with pytest.raises(ConnectionLost, match="not known"):
            await deleting
        with pytest.raises(UsageError, match="to is"):
            await client.seek("q", "g", -1)
        with pytest.raises(InvalidName):
            await client.seek("q", "", "head")

    with_client(test)

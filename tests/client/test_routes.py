"""Priority, time to live, keys and topics: what travels in one batch, and what a receipt says."""

import asyncio
from collections.abc import Coroutine

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vibemq
from tests.client.fake_broker import FakeBroker, welcome, with_broker, with_client
from vibemq.batch import HEADER_BYTES_MAX, TTL
from vibemq.client import Client
from vibemq.client.outgoing import Route
from vibemq.errors import InvalidName, InvalidRequest, Unroutable, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.keys import key_hash


def together(*calls: Coroutine[object, object, vibemq.Receipt]) -> list[asyncio.Task[vibemq.Receipt]]:
    return [asyncio.create_task(call) for call in calls]


def keys_of(publish: m.Publish) -> list[int]:
    return list(publish.batch.keys or ())


def test_what_agrees_in_queue_priority_and_time_to_live_is_one_batch() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(
            client.publish("q", b"0"),
            client.publish("q", b"1", priority="high", ttl="30s"),
            client.publish("q", b"2", priority=4),
            client.publish("q", b"3", priority=7, ttl=30),
            client.publish("q", b"4", key="k"),
            client.publish_topic("q", b"5"),
            client.publish("q", b"6", ttl=30),
        )
        got = []
        for _ in range(4):
            connection, publish = await broker.next(m.Publish)
            batch = publish.batch
            got.append((publish.to_topic, batch.priority, batch.ttl_ms, batch.bodies()))
            connection.confirm(publish, publish.sequence, publish.sequence)
        assert got == [
            (False, 4, 0, [b"0", b"2", b"4"]),
            (False, 7, 30_000, [b"1", b"3"]),
            (True, 4, 0, [b"5"]),
            (False, 4, 30_000, [b"6"]),
        ]
        receipts = await asyncio.gather(*calls)
        assert [(one.id, one.sequence) for one in receipts] == [
            *(("1-0", 1), ("4-0", 4), ("1-1", 2), ("4-1", 5), ("1-2", 3), ("6-0", 0), ("7-0", 7))
        ]
        assert broker.idle

    with_client(test)


def test_keys_and_topics_stand_in_the_headers_and_keys_in_their_column() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        headers: dict[str, str] = {"a": "b"}
        calls = together(
            client.publish("q", b"0"),
            client.publish("q", b"1", key="customer", headers=headers),
            client.publish("q", b"2", headers={"key": "mine"}),
            client.publish("q", b"3", key="other"),
        )
        connection, publish = await broker.next(m.Publish)
        assert list(publish.batch.headers()) == [{}, {"a": "b", "key": "customer"}, {"key": "mine"}, {"key": "other"}]
        assert keys_of(publish) == [0, key_hash("customer"), 0, key_hash("other")]
        assert not publish.batch.flags & TTL
        assert headers == {"a": "b"}
        connection.confirm(publish, 1, 1)
        await asyncio.gather(*calls)
        (call,) = together(client.publish_topic("orders.eu", b"", key="k", headers={"topic": "another"}))
        connection, publish = await broker.next(m.Publish)
        assert (publish.queue, publish.to_topic) == ("orders.eu", True)
        assert list(publish.batch.headers()) == [{"topic": "orders.eu", "key": "k"}]
        assert keys_of(publish) == [key_hash("k")]
        connection.confirm(publish, 2, 0)
        receipt = await call
        assert (receipt.queue, receipt.sequence, receipt.id) == ("orders.eu", 0, "2-0")

    with_client(test)


def test_many_messages_have_keys_and_headers_of_their_own() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        keys, headers = [None, "a"], [{"n": 1}, None]
        many = asyncio.create_task(
            client.publish_many("q", [b"0", b"1"], keys=keys, headers=headers, priority="critical", ttl=1)
        )
        connection, publish = await broker.next(m.Publish)
        assert list(publish.batch.headers()) == [{"n": 1}, {"key": "a"}]
        assert (keys_of(publish), publish.batch.priority, publish.batch.ttl_ms) == ([0, key_hash("a")], 9, 1_000)
        connection.confirm(publish, 1, 1)
        await many
        many = asyncio.create_task(client.publish_topic_many("t.u", [b"0", b"1"], keys=keys, headers=headers))
        connection, publish = await broker.next(m.Publish)
        assert list(publish.batch.headers()) == [{"n": 1, "topic": "t.u"}, {"key": "a", "topic": "t.u"}]
        assert publish.to_topic
        connection.send(m.Failed(request=publish.request, code=214, text="no queue is bound to 't.u'"))
        with pytest.raises(Unroutable, match=r"t\.u"):
            await many
        with pytest.raises(UsageError, match="keys for 1"):
            await client.publish_many("q", [b"0", b"1"], keys=["a"])
        assert await client.publish_topic_many("t", []) == []

    with_client(test)


def test_the_last_messages_of_a_batch_may_be_dropped() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(*(client.publish("q", b"%d" % n) for n in range(3)))
        connection, publish = await broker.next(m.Publish)
        connection.confirm(publish, 7, 5, dropped=1)
        receipts = await asyncio.gather(*calls)
        assert [(one.id, one.sequence, one.dropped) for one in receipts] == [
            ("7-0", 5, False),
            ("7-1", 6, False),
            ("7-2", 0, True),
        ]

    with_client(test)


def test_what_cannot_be_published_is_refused_before_anything_is_sent() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        for priority in (-1, 10, True, "urgent", 1.5):
            with pytest.raises(UsageError, match="priority"):
                await client.publish("q", b"", priority=priority)  # type: ignore[arg-type]
        for ttl in (0, "0s", 1 << 40, "later"):
            with pytest.raises(UsageError, match="ttl"):
                await client.publish_many("q", [b""], ttl=ttl)
        for key in ("", 1):
            with pytest.raises(UsageError, match="key"):
                await client.publish("q", b"", key=key)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="surrogates"):
            await client.publish_many("q", [b""], keys=["\ud800"])
        for topic in ("", "a..b", "a.*", "#", ".a"):
            with pytest.raises(InvalidName):
                await client.publish_topic(topic, b"")
        assert broker.idle

    with_client(test)


@pytest.mark.parametrize("key", ["\ud800", "x" * HEADER_BYTES_MAX])
def test_a_message_with_a_key_that_is_refused_leaves_nothing_behind_in_its_batch(key: str) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(client.publish("q", b"0", key="a"), client.publish("q", b"1", key=key))
        calls += together(client.publish("q", b"x" * (1 << 25), key="large"), client.publish("q", b"2", key="c"))
        connection, publish = await broker.next(m.Publish)
        assert publish.batch.bodies() == [b"0", b"2"]
        assert keys_of(publish) == [key_hash("a"), key_hash("c")]
        connection.confirm(publish, 1, 1)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, vibemq.Receipt) for one in results] == [True, False, False, True]

    with_client(test)


def test_batches_with_all_columns_keep_to_the_limits() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.answers[m.Publish] = lambda publish: m.Confirmed(request=publish.request, offset=0, sequence=1)
        broker.greeting = welcome(frame_bytes_max=1_000)
        async with vibemq.connect(broker.url) as client:
            await client.publish_many("q", [b"x" * 50] * 40, keys=["k"] * 40, ttl=1)
            await asyncio.gather(*(client.publish("q", b"x" * 50, key="k", ttl=1) for _ in range(40)))
        publishes = [one for one in broker.connections[0].received if isinstance(one, m.Publish)]
        assert sum(one.batch.count for one in publishes) == 80
        assert all(len(one.batch.data) <= 1_000 for one in publishes)
        assert max(one.batch.count for one in publishes) > 5

    with_broker(test)


@given(st.integers(0, 9), st.integers(1, 1 << 40))
def test_every_priority_and_time_to_live_has_its_route(priority: int, ttl_ms: int) -> None:
    assert Route.of("q", priority, f"{ttl_ms}ms") == Route("q", False, priority, ttl_ms)


def test_priorities_have_names() -> None:
    names = ("low", "normal", "high", "critical", None)
    assert [Route.of("q", name, None).priority for name in names] == [1, 4, 7, 9, 4]  # type: ignore[arg-type]

"""Publishing: what becomes one batch, what waits, what is sent again."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vibemq
from tests.client.fake_broker import FakeBroker, FakeConnection, settle_loop, until, welcome, with_broker, with_client
from vibemq.client import Client
from vibemq.errors import (
    ClientClosed,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    QueueFull,
    RequestTimeout,
    UsageError,
)
from vibemq.protocol import messages as m


def spawn(client: Client, queue: str, bodies: Sequence[bytes]) -> list[asyncio.Task[vibemq.Receipt]]:
    return [asyncio.create_task(client.publish(queue, body)) for body in bodies]


def test_calls_of_one_turn_become_one_batch() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = spawn(client, "q", [b"%d" % i for i in range(100)])
        connection, publish = await broker.next(m.Publish)
        assert (publish.queue, publish.sequence, publish.batch.count) == ("q", 1, 100)
        assert publish.batch.bodies() == [b"%d" % i for i in range(100)]
        connection.confirm(publish, offset=7, sequence=41)
        receipts = await asyncio.gather(*calls)
        assert [receipt.sequence for receipt in receipts] == list(range(41, 141))
        assert receipts[3].id == "7-3"
        assert receipts[3].queue == "q"
        assert not receipts[3].duplicate
        assert broker.idle

    with_client(test)


def test_each_queue_has_its_batch_and_sequences_never_overlap() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = spawn(client, "a", [b"1", b"2"]) + spawn(client, "b", [b"3"]) + spawn(client, "a", [b"4"])
        connection, first = await broker.next(m.Publish)
        _, second = await broker.next(m.Publish)
        assert (first.queue, first.sequence, first.batch.bodies()) == ("a", 1, [b"1", b"2", b"4"])
        assert (second.queue, second.sequence, second.batch.bodies()) == ("b", 4, [b"3"])
        connection.confirm(second, 1, 1)
        connection.confirm(first, 2, 1, duplicate=True)
        receipts = await asyncio.gather(*calls)
        assert [receipt.id for receipt in receipts] == ["2-0", "2-1", "1-0", "2-2"]
        assert receipts[0].duplicate

    with_client(test)


def test_headers_travel_as_they_were_at_the_call() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        headers: dict[str, str | int] = {"k": "v", "n": 1}
        plain = asyncio.create_task(client.publish("q", b"plain"))
        rich = asyncio.create_task(client.publish("q", b"rich", headers=headers))
        wrong = asyncio.create_task(client.publish("q", b"wrong", headers={"k": []}))  # type: ignore[dict-item]
        await asyncio.sleep(0)
        headers["k"] = "changed"
        connection, publish = await broker.next(m.Publish)
        assert publish.batch.bodies() == [b"plain", b"rich"]
        assert list(publish.batch.headers()) == [{}, {"k": "v", "n": 1}]
        connection.confirm(publish, 1, 1)
        await asyncio.gather(plain, rich)
        with pytest.raises(InvalidRequest, match="header 'k'"):
            await wrong

    with_client(test)


def test_batches_are_split_at_the_limits_of_the_broker() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(batch_messages_max=4, frame_bytes_max=1_000)
        broker.answers[m.Publish] = lambda publish: m.Confirmed(request=publish.request, offset=0, sequence=1)
        async with vibemq.connect(broker.url) as client:
            await asyncio.gather(*spawn(client, "q", [b"x"] * 9))
            await asyncio.gather(*spawn(client, "q", [b"x" * 300] * 3))
            await client.publish_many("q", [b"x"] * 5)
        publishes = [one for one in broker.connections[0].received if isinstance(one, m.Publish)]
        assert [one.batch.count for one in publishes] == [4, 4, 1, 2, 1, 4, 1]
        assert [one.sequence for one in publishes] == [1, 5, 9, 10, 12, 13, 17]

    with_broker(test)


def test_a_message_above_the_limit_fails_alone_and_is_not_sent() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(frame_bytes_max=2 << 20)
        broker.answers[m.Publish] = lambda publish: m.Confirmed(request=publish.request, offset=0, sequence=1)
        async with vibemq.connect(broker.url) as client:
            small, large = client.publish("q", b"small"), client.publish("q", b"x" * (2 << 20))
            results = await asyncio.gather(small, large, return_exceptions=True)
            assert isinstance(results[0], vibemq.Receipt)
            assert isinstance(results[1], LimitExceeded)
            with pytest.raises(LimitExceeded, match="nothing was sent"):
                await client.publish_many("q", [b"", b"x" * (2 << 20)])
        assert sum(isinstance(one, m.Publish) for one in broker.connections[0].received) == 1

    with_broker(test)


@pytest.mark.parametrize("greeting", [welcome(publish_window_batches=2), welcome(publish_window_bytes=2 * 1_012)])
def test_what_is_above_the_window_waits(greeting: m.Welcome) -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = greeting
        async with vibemq.connect(broker.url) as client:
            calls = [asyncio.create_task(client.publish_many("q", [b"x" * 1_000])) for _ in range(3)]
            connection, first = await broker.next(m.Publish)
            await broker.next(m.Publish)
            await settle_loop()
            assert broker.idle
            connection.confirm(first, 1, 1)
            _, third = await broker.next(m.Publish)
            assert third.sequence == 3
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    with_broker(test)


def test_after_a_cut_what_is_unanswered_is_sent_again_first_and_in_order() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        old = []
        for i in range(4):
            old += spawn(client, "q", [b"%d" % i])
            await asyncio.sleep(0)
        connection, first = await broker.next(m.Publish)
        connection.confirm(first, 1, 1)
        await old[0]
        connection.cut()
        await until(lambda: connection.lost)
        new = spawn(client, "q", [b"new"])
        await until(lambda: len(broker.connections) > 1 and len(broker.connections[1].received) == 4)
        again = broker.connections[1].received
        assert [(one.sequence, one.batch.bodies()) for one in again if isinstance(one, m.Publish)] == [
            (2, [b"1"]),
            (3, [b"2"]),
            (4, [b"3"]),
            (5, [b"new"]),
        ]
        assert broker.hellos[0].producer == broker.hellos[1].producer != 0
        for one in again:
            assert isinstance(one, m.Publish)
            broker.connections[1].confirm(one, one.sequence, one.sequence, duplicate=one.sequence < 4)
        receipts = await asyncio.gather(*old[1:], *new)
        assert [receipt.duplicate for receipt in receipts] == [True, True, False, False]
        assert client.stats.batches_resent == 3

    with_client(test)


class Store:
    """What a broker would have stored, from what it was sent on any connection."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.batches: dict[int, list[bytes]] = {}
        self.last: dict[FakeConnection, int] = {}

    async def take(self, *, answer: bool = True) -> None:
        """Store the next publish; without an answer the connection breaks instead."""
        connection, publish = await self.broker.next(m.Publish)
        assert publish.sequence > self.last.get(connection, 0), "out of order"
        self.last[connection] = publish.sequence
        bodies = publish.batch.bodies()
        known = self.batches.setdefault(publish.sequence, bodies)
        assert known == bodies, "another batch under the same sequence"
        if connection.lost:
            return
        if answer:
            connection.confirm(publish, 0, publish.sequence, duplicate=known is not bodies)
        else:
            connection.cut()


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["publish", "many", "confirm", "lose", "cut"]), max_size=25), st.integers(1, 3))
def test_whatever_breaks_when_everything_is_stored_once_and_in_order(script: list[str], window: int) -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(publish_window_batches=window)
        store = Store(broker)
        published: list[bytes] = []
        calls: list[asyncio.Task[object]] = []
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.001) as client:
            for step in script:
                bodies = [b"%d" % len(published)] * (2 if step == "many" else 1)
                if step in {"publish", "many"}:
                    published += bodies
                    call = client.publish("q", bodies[0]) if step == "publish" else client.publish_many("q", bodies)
                    calls.append(asyncio.create_task(call))
                elif step == "cut":
                    broker.connections[-1].cut()
                elif not broker.idle:
                    await store.take(answer=step == "confirm")
                await asyncio.sleep(0.002)
            while not all(call.done() for call in calls):
                if not broker.idle:
                    await store.take()
                await asyncio.sleep(0.001)
            await asyncio.gather(*calls)
        assert [body for _, bodies in sorted(store.batches.items()) for body in bodies] == published

    with_broker(test)


def test_a_broker_that_stops_is_not_an_error_the_next_one_gets_it() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (call,) = spawn(client, "q", [b"x"])
        connection, publish = await broker.next(m.Publish)
        connection.send(m.Failed(request=publish.request, code=212, text="stopping"))
        await settle_loop()
        assert not call.done()
        connection.cut()
        connection, again = await broker.next(m.Publish)
        assert again.sequence == publish.sequence
        connection.confirm(again, 1, 1)
        await call

    with_client(test)


def test_a_refusal_reaches_the_calls_of_its_batch_and_no_others() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = spawn(client, "full", [b"x", b"y"]) + spawn(client, "free", [b"z"])
        connection, full = await broker.next(m.Publish)
        _, free = await broker.next(m.Publish)
        connection.send(m.Failed(request=full.request, code=206, text="queue 'full' is full"))
        connection.confirm(free, 1, 1)
        _, alone = await broker.next(m.Publish)
        assert alone.batch.bodies() == [b"x"]
        connection.send(m.Failed(request=alone.request, code=206, text="queue 'full' is full"))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [QueueFull, QueueFull, vibemq.Receipt]

    with_client(test)


@given(st.integers(1, 40), st.integers(0, 45))
@settings(max_examples=25, deadline=None)
def test_a_queue_that_is_nearly_full_takes_the_first_of_the_calls_that_met(count: int, room: int) -> None:
    """As it would if they had come one by one; and what has its answer is not sent again."""

    async def test(broker: FakeBroker, client: Client) -> None:
        bodies = [b"%d" % number for number in range(count)]
        calls = spawn(client, "small", bodies)
        stored: list[bytes] = []
        sequences: list[int] = []
        while any(not call.done() for call in calls):
            try:
                async with asyncio.timeout(0.01):
                    connection, command = await broker.next(m.Publish)
            except TimeoutError:
                continue
            assert command.sequence not in sequences, "other messages are another batch"
            sequences.append(command.sequence)
            if len(stored) + command.batch.count > room:
                connection.send(m.Failed(request=command.request, code=206, text="queue 'small' is full"))
            else:
                connection.confirm(command, len(sequences), len(stored) + 1)
                stored += command.batch.bodies()
            await settle_loop()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert stored == bodies[:room]
        assert [getattr(result, "sequence", 0) for result in results[:room]] == list(range(1, len(stored) + 1))
        assert all(isinstance(result, QueueFull) for result in results[room:])
        assert client._publisher.room_messages == 100_000

    with_client(test)


def test_messages_that_belong_together_are_refused_together() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.publish_many("full", [b"x", b"y"]))
        connection, command = await broker.next(m.Publish)
        connection.send(m.Failed(request=command.request, code=206, text="queue 'full' is full"))
        with pytest.raises(QueueFull):
            await call
        assert broker.idle

    with_client(test)


def test_cancelling_one_call_does_not_touch_the_others() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = spawn(client, "q", [b"0", b"1", b"2"])
        connection, publish = await broker.next(m.Publish)
        calls[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        connection.confirm(publish, 1, 1)
        assert [(await calls[at]).sequence for at in (0, 2)] == [1, 3]

    with_client(test)


def test_a_timeout_says_what_is_known() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(publish_window_batches=1)
        async with vibemq.connect(broker.url, timeout=0.3, backoff_min=0.001) as client:
            sent = asyncio.create_task(client.publish_many("q", [b"sent"]))
            waiting = asyncio.create_task(client.publish_many("q", [b"waiting"]))
            with pytest.raises(RequestTimeout, match="may still be stored"):
                await sent
            with pytest.raises(RequestTimeout, match="was not sent"):
                await waiting
            # What was given up keeps its place in the window, and is not sent to the next broker.
            late = asyncio.create_task(client.publish("q", b"late"))
            await broker.next(m.Publish)
            broker.connections[0].cut()
            connection, publish = await broker.next(m.Publish)
            assert publish.batch.bodies() == [b"late"]
            connection.confirm(publish, 1, 1)
            await late

    with_broker(test)


def test_publish_waits_while_too_much_is_pending() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, pending_messages_max=2) as client:
            calls = spawn(client, "q", [b"0", b"1", b"2"])
            connection, publish = await broker.next(m.Publish)
            assert publish.batch.count == 2
            await settle_loop()
            assert broker.idle
            connection.confirm(publish, 1, 1)
            connection, publish = await broker.next(m.Publish)
            assert publish.batch.bodies() == [b"2"]
            connection.confirm(publish, 2, 3)
            await asyncio.gather(*calls)
        async with vibemq.connect(broker.url, pending_bytes_max=10, timeout=0.05) as client:
            calls = spawn(client, "q", [b"x" * 10, b"y"])
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, RequestTimeout) for result in results)
            assert "no room" in str(results[1])

    with_broker(test)


@pytest.mark.parametrize("body", [b"", b"x" * (2 << 20)])
def test_a_message_that_is_refused_leaves_nothing_behind_in_its_batch(body: bytes) -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(frame_bytes_max=2 << 20)
        broker.answers[m.Publish] = lambda publish: m.Confirmed(request=publish.request, offset=0, sequence=1)
        async with vibemq.connect(broker.url) as client:
            results = await asyncio.gather(
                client.publish("q", b"a", headers={"n": 1}),
                client.publish("q", body, headers={"n": 2 if body else b"x" * (1 << 16)}),
                client.publish("q", b"c", headers={"n": 3}),
                client.publish("q", b"d"),
                return_exceptions=True,
            )
            assert [isinstance(one, vibemq.Receipt) for one in results] == [True, False, True, True]
        (publish,) = [one for one in broker.connections[0].received if isinstance(one, m.Publish)]
        assert publish.batch.bodies() == [b"a", b"c", b"d"]
        assert list(publish.batch.headers()) == [{"n": 1}, {"n": 3}, {}]

    with_broker(test)


def test_publish_many_is_one_batch_behind_what_was_published_before() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.publish("q", b"before"))
        await asyncio.sleep(0)
        many = asyncio.create_task(client.publish_many("q", [b"a", b"b"], headers=[None, {"k": 1}]))
        connection, first = await broker.next(m.Publish)
        _, second = await broker.next(m.Publish)
        assert first.batch.bodies() == [b"before"]
        assert (second.sequence, second.batch.bodies()) == (2, [b"a", b"b"])
        assert list(second.batch.headers()) == [{}, {"k": 1}]
        connection.confirm(first, 1, 1)
        connection.confirm(second, 2, 2)
        assert [receipt.id for receipt in await many] == ["2-0", "2-1"]
        await call
        assert await client.publish_many("q", []) == []
        with pytest.raises(UsageError, match="headers for 1"):
            await client.publish_many("q", [b"a", b"b"], headers=[None])

    with_client(test)


def test_what_cannot_be_published_is_refused_before_sending() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        with pytest.raises(InvalidName):
            await client.publish(" q", b"")
        with pytest.raises(UsageError, match="encode"):
            await client.publish("q", "text")  # type: ignore[arg-type]
        await settle_loop()
        assert broker.idle

    with_client(test)


def test_other_buffers_than_bytes_are_copied() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        buffer = bytearray(b"abc")
        call = asyncio.create_task(client.publish("q", buffer))
        await asyncio.sleep(0)
        buffer[:] = b"xyz"
        connection, publish = await broker.next(m.Publish)
        assert publish.batch.bodies() == [b"abc"]
        connection.confirm(publish, 1, 1)
        await call

    with_client(test)


def test_closing_fails_what_waits() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, pending_messages_max=1) as client:
            calls = spawn(client, "q", [b"sent", b"no room"])
            await broker.next(m.Publish)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ClientClosed, ClientClosed]
        assert "may still be stored" in str(results[0])
        with pytest.raises(ClientClosed):
            await client.publish("q", b"")

    with_broker(test)


def test_flush_waits_for_what_was_published_before_and_no_longer() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        before = spawn(client, "q", [b"before"])
        await asyncio.sleep(0)
        flush = asyncio.create_task(client.flush())
        connection, publish = await broker.next(m.Publish)
        after = spawn(client, "q", [b"after"])
        _, later = await broker.next(m.Publish)
        assert not any(isinstance(one, m.Flush) for one in connection.received)
        connection.confirm(publish, 1, 1)
        await flush
        assert not after[0].done()
        connection.confirm(later, 2, 2)
        await asyncio.gather(*before, *after)

    with_client(test)

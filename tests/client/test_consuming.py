"""Consuming: credit, acks, leases, leaving, and what a broken connection does to all of that."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import pytest

import vibemq
from tests.client.fake_broker import (
    FakeBroker,
    FakeConnection,
    deliver,
    sent,
    settle_loop,
    until,
    with_broker,
    with_client,
)
from vibemq.client import Client, subscription
from vibemq.errors import (
    ClientClosed,
    InvalidName,
    InvalidRequest,
    LeaseLost,
    RequestTimeout,
    UnknownQueue,
    UsageError,
)
from vibemq.protocol import messages as m


def bodies(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(start, start + count)]


def credits_of(connection: FakeConnection) -> list[int]:
    return [one.messages for one in connection.received if isinstance(one, m.Credit)]


async def first(broker: FakeBroker) -> FakeConnection:
    await until(lambda: bool(broker.connections) and broker.subscriptions > 0)
    return broker.connections[-1]


def test_a_message_has_all_its_facts() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", prefetch=10) as messages:
            connection = await first(broker)
            (subscribe,) = sent(connection, m.Subscribe)
            assert subscribe == m.Subscribe(
                request=subscribe.request,
                queue="q",
                messages=10,
                bytes=8 * 1024 * 1024,
            )
            connection.send(
                deliver(
                    [b"a", b"b" * 50], headers=[None, {"k": "v"}], delivery=1, sequence=9, attempt=2, redelivered=True
                )
            )
            one, two = await anext(messages), await anext(messages)
            assert (one.body, one.headers, one.id, one.queue, one.sequence) == (b"a", {}, "70-5", "q", 9)
            assert (two.body, two.headers, two.id, two.sequence) == (b"b" * 50, {"k": "v"}, "70-6", 10)
            assert (one.attempt, one.redelivered) == (2, True)
            assert one.published_at == datetime.fromtimestamp(1_700_000_000, UTC).replace(microsecond=1)
            assert repr(one) == "<Message 70-5 from 'q': b'a', attempt 2, redelivered>"
            assert "50 bytes" in repr(two)

    with_client(test)


def test_a_message_whose_headers_are_garbage_can_still_be_settled() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            good = deliver([b"body"], headers=[{"k": 1}])
            whole = bytearray(b"".join(good.parts))
            whole[16] = 0xC1  # no MessagePack begins like this
            connection.send(deliver([b""], delivery=1), m.Deliver(1, 2, 2, 70, 1, 0, 1, False, [bytes(whole)]))
            await anext(messages)
            message = await anext(messages)
            assert message.body == b"body"
            with pytest.raises(InvalidRequest):
                _ = message.headers
            await message.reject(reason="garbage", confirm=True)

    with_client(test)


def test_acks_of_a_turn_are_one_frame_of_merged_runs() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(10)))
            taken = [await anext(messages) for _ in range(10)]
            for at in (0, 1, 2, 7, 5, 6, 9):
                await taken[at].ack()
            await taken[9].ack()  # the second word does nothing
            await taken[9].nack()
            await until(lambda: len(sent(connection, m.Ack, m.Nack)) > 0)
            await settle_loop()
            (ack,) = sent(connection, m.Ack, m.Nack)
            assert ack == m.Ack(subscription=1, deliveries=((1, 4), (6, 9), (10, 11)))
            await taken[0].ack()
            await settle_loop()
            assert len(sent(connection, m.Ack, m.Nack)) == 1

    with_client(test)


def test_acks_nacks_and_rejects_keep_their_order() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(8)))
            taken = [await anext(messages) for _ in range(8)]
            await taken[0].ack()
            await taken[1].nack(delay="2s", reason="busy")
            await taken[2].nack(delay=2.0, reason="busy")
            await taken[3].reject(reason="bad")
            await taken[4].ack()
            await taken[5].ack(confirm=True)
            await taken[6].nack(confirm=True)
            await taken[5].ack(confirm=True)  # durable already; asks again
            got = sent(connection, m.Ack, m.Nack, m.Flush)
            numbers = [getattr(one, "request", 0) for one in got]
            assert got == [
                m.Ack(subscription=1, deliveries=((1, 2),)),
                m.Nack(subscription=1, deliveries=((2, 4),), delay_ms=2_000, reason="busy"),
                m.Nack(subscription=1, deliveries=((4, 5),), reason="bad", reject=True),
                m.Ack(subscription=1, deliveries=((5, 6),)),
                m.Ack(subscription=1, deliveries=((6, 7),), request=numbers[4]),
                m.Nack(subscription=1, deliveries=((7, 8),), request=numbers[5]),
                m.Flush(request=numbers[6]),
            ]

    with_client(test)


def test_a_confirmed_ack_raises_what_the_broker_answers() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.answers[m.Ack] = lambda ack: m.Failed(request=ack.request, code=208, text="too late")
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(5)))
            taken = await anext(messages.batches())
            with pytest.raises(LeaseLost, match="too late"):
                await taken[0].ack(confirm=True)
            with pytest.raises(LeaseLost, match="too late"):
                await client.ack_all(taken[1:])

    with_client(test)


def test_an_ack_that_came_too_late_is_not_confirmed_afterwards() -> None:
    """The broker answers no ack that asks for nothing: it has told which leases ended, before or after it was sent."""

    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(3)))
            known, under_way, kept = await anext(messages.batches())
            connection.send(m.LeasesLost(subscription=1, deliveries=((1, 2),)))
            await settle_loop()
            await known.ack()
            with pytest.raises(LeaseLost, match="had ended"):
                await known.ack(confirm=True)
            await under_way.ack()
            confirming = asyncio.create_task(under_way.ack(confirm=True))
            del broker.answers[m.Flush]
            connection, flush = await broker.next(m.Flush)
            connection.send(m.LeasesLost(subscription=1, deliveries=((2, 3),)), m.Done(request=flush.request))
            with pytest.raises(LeaseLost, match="had ended"):
                await confirming
            await kept.ack()

    with_client(test)


def test_of_many_lost_leases_the_oldest_are_remembered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "LOST_RUNS_MAX", 2)

    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(9)))
            taken = await anext(messages.batches())
            connection.send(m.LeasesLost(subscription=1, deliveries=((3, 4), (5, 6), (7, 8))))
            await settle_loop()
            for message in taken:
                await message.ack()
            confirmed = []
            for message in taken:
                with suppress(LeaseLost):
                    await message.ack(confirm=True)
                    confirmed.append(message.delivery)
            assert confirmed == [4, 6, 8, 9]

    with_client(test)


def test_ack_all_sends_one_confirmed_ack_a_subscription() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("a") as some, client.consume("b") as others:
            connection = await first(broker)
            connection.send(deliver(bodies(6)), deliver(bodies(2), subscription=2))
            batch = await anext(some.batches(4)) + await anext(others.batches())
            await batch[1].ack()
            await client.ack_all(reversed(batch))
            acks = sent(connection, m.Ack)
            assert all(ack.request for ack in acks if ack.deliveries != ((2, 3),))
            assert {(ack.subscription, ack.deliveries) for ack in acks} == {
                (1, ((2, 3),)),
                (1, ((1, 2), (3, 5))),
                (2, ((1, 3),)),
            }
            await client.ack_all(batch)  # all settled: nothing to ask
            assert len(sent(connection, m.Ack)) == 3

    with_client(test)


def test_extend_asks_for_the_lease_and_returns_when_it_holds() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(1)))
            message = await anext(messages)
            extending = asyncio.create_task(message.extend("1m"))
            connection, extend = await broker.next(m.Extend)
            assert (extend.deliveries, extend.lease_ms) == (((1, 2),), 60_000)
            assert not extending.done()
            connection.send(m.Done(request=extend.request))
            await extending

    with_client(test)


def test_durations_beyond_those_of_the_protocol_are_refused_before_anything_is_sent() -> None:
    """The broker would refuse the whole request, and the message would be held until its lease ends."""

    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(1)))
            message = await anext(messages)
            with pytest.raises(UsageError, match="delay"):
                await message.nack(delay="20000d")
            with pytest.raises(UsageError, match="seconds"):
                await message.extend("20000d")
            with pytest.raises(UsageError, match="wait"):
                await client.pull("q", wait="25d")
            assert sent(connection, m.Nack, m.Extend) == []
            await message.nack(delay="10000d", confirm=True)
            (nack,) = sent(connection, m.Nack)
            assert (nack.deliveries, nack.delay_ms) == (((1, 2),), 864_000_000_000)

    with_client(test)


def test_credit_comes_back_in_halves_with_what_was_handed_over() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", prefetch=10) as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(10)))
            for _ in range(5):
                await (await anext(messages)).ack()
            await settle_loop()
            assert sent(connection, m.Credit) == []  # the fifth is in hand: nobody has asked for the next
            for _ in range(5):
                await (await anext(messages)).ack()
            await until(lambda: len(sent(connection, m.Credit)) == 1)
            assert sent(connection, m.Credit) == [m.Credit(subscription=1, messages=5, bytes=5, handed=6)]

    with_client(test)


def test_what_is_in_hand_over_a_turn_is_reported() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", prefetch=100) as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(3)))
            message = await anext(messages)
            await until(lambda: len(sent(connection, m.Credit)) == 1)
            await message.ack()
            await anext(messages)
            await until(lambda: len(sent(connection, m.Credit)) == 2)
            handed = [one.handed for one in sent(connection, m.Credit)]
            assert handed == [2, 3]

    with_client(test)


@pytest.mark.parametrize("prefetch", [1, 2, 3, 7])
def test_credit_neither_leaks_nor_grows(prefetch: int) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        total = 40
        async with client.consume("q", prefetch=prefetch) as messages:
            connection = await first(broker)
            (subscribe,) = sent(connection, m.Subscribe)
            sent_so_far = 0

            def granted() -> int:
                return subscribe.messages + sum(credits_of(connection))

            async def feed() -> None:
                nonlocal sent_so_far
                while sent_so_far < total:
                    room = min(granted() - sent_so_far, total - sent_so_far)
                    assert room <= prefetch
                    if room:
                        connection.send(deliver(bodies(room, sent_so_far), delivery=sent_so_far + 1))
                        sent_so_far += room
                    await asyncio.sleep(0.001)

            feeding = asyncio.create_task(feed())
            got = []
            async for message in messages:
                got.append(message.body)
                await message.ack()
                if len(got) == total:
                    break
            await feeding
            assert got == bodies(total)

    with_client(test)


def test_batches_give_what_is_there_up_to_their_maximum() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", prefetch=100) as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(5)), deliver(bodies(4, 5), delivery=6))
            await until(lambda: messages._buffered == 9)
            assert (await anext(messages)).body == b"0"
            got = [[message.body for message in await anext(messages.batches(3))] for _ in range(3)]
            assert got == [bodies(3, 1), bodies(3, 4), bodies(2, 7)]
            connection.send(deliver(bodies(1, 9), delivery=10))
            async for batch in messages.batches():
                assert [message.body for message in batch] == [b"9"]
                break
            with pytest.raises(UsageError):
                messages.batches(0)

    with_client(test)


def test_tasks_share_a_consumer() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        got: list[bytes] = []
        async with client.consume("q", prefetch=4) as messages:

            async def work() -> None:
                async for message in messages:
                    got.append(message.body)
                    await message.ack()
                    await asyncio.sleep(0)

            workers = [asyncio.create_task(work()) for _ in range(3)]
            connection = await first(broker)
            for start in range(0, 12, 4):
                connection.send(deliver(bodies(4, start), delivery=start + 1))
            await until(lambda: len(got) == 12)
        await asyncio.gather(*workers)  # leaving ends their loops
        assert sorted(got) == sorted(bodies(12))

    with_client(test)


def test_leases_of_what_is_buffered_are_extended() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.lease_ms = 60
        async with client.consume("q", prefetch=4) as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(4)), deliver(bodies(2), delivery=5))
            await (await anext(messages)).ack()
            expected = m.Extend(subscription=1, deliveries=((2, 7),))
            await until(lambda: expected in connection.received)

    with_client(test)


def test_what_lost_its_lease_is_dropped_and_its_credit_returned() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q", prefetch=4) as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(2)), deliver(bodies(2, 2), delivery=3))
            await until(lambda: messages._buffered == 4)
            message = await anext(messages)  # 0; 1 is ready; 2 and 3 in their parcel
            connection.send(m.LeasesLost(subscription=1, deliveries=((1, 4),)))
            await until(lambda: client.stats.deliveries_dropped == 2)
            assert (await anext(messages)).body == b"3"
            await message.ack()
            connection.send(deliver([b"again"], delivery=5))
            assert (await anext(messages)).body == b"again"
            assert sum(credits_of(connection)) == 4  # 0 and 1 as they were passed, 2 as it was dropped, 3

    with_client(test)


def test_a_cut_drops_what_is_buffered_and_subscribes_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(5)))
            held = await anext(messages)
            other = await anext(messages)
            third = await anext(messages)
            await other.ack()  # queued, and then the connection breaks
            connection.cut()
            await until(lambda: broker.subscriptions == 2)
            await held.ack()
            with pytest.raises(LeaseLost):
                await third.ack(confirm=True)
            with pytest.raises(LeaseLost):
                await held.extend(1)
            with pytest.raises(LeaseLost):
                await held.ack(confirm=True)
            again = broker.connections[-1]
            assert again is not connection
            again.send(deliver([b"0", b"1"], subscription=2, redelivered=True))
            message = await anext(messages)
            assert (message.body, message.redelivered) == (b"0", True)
            await message.ack(confirm=True)
            assert [one.subscription for one in sent(again, m.Ack)] == [2]
            assert client.stats.deliveries_dropped == 2
            assert client.stats.acks_void >= 1

    with_client(test)


def test_a_confirmed_ack_in_flight_at_a_cut_fails() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        del broker.answers[m.Ack]
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(2)))
            acking = asyncio.create_task(client.ack_all(await anext(messages.batches())))
            await broker.next(m.Ack)
            connection.cut()
            with pytest.raises(LeaseLost, match="not known"):
                await acking

    with_client(test)


def test_leaving_sends_acks_and_then_unsubscribes() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(5)))
            for _ in range(2):
                await (await anext(messages)).ack()
        last = sent(connection, m.Ack, m.Unsubscribe)
        assert last[0] == m.Ack(subscription=1, deliveries=((1, 3),))
        assert isinstance(last[1], m.Unsubscribe)
        connection.send(deliver(bodies(1), delivery=6))  # crossed the unsubscribe
        with pytest.raises(StopAsyncIteration):
            await anext(messages)

    with_client(test)


@pytest.mark.parametrize("how", ["error", "cancel"])
def test_leaving_by_error_or_cancellation_does_the_same(how: str) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async def work() -> None:
            async with client.consume("q") as messages:
                async for message in messages:
                    await message.ack()
                    if how == "error":
                        raise ValueError("mine")

        task = asyncio.create_task(work())
        connection = await first(broker)
        connection.send(deliver(bodies(1)))
        if how == "cancel":
            await until(lambda: bool(sent(connection, m.Ack)))
            task.cancel()
        with pytest.raises(ValueError if how == "error" else asyncio.CancelledError):
            await task
        assert [type(one) for one in sent(connection, m.Ack, m.Unsubscribe)] == [m.Ack, m.Unsubscribe]

    with_client(test)


def test_leaving_while_the_broker_is_away_returns_at_once() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, backoff_min=1) as client, client.consume("q"):
            broker.greeting = None
            broker.connections[0].cut()
            await until(lambda: not client._link.is_open)
        assert broker.subscriptions == 1

    with_broker(test)


def test_cancelling_while_subscribing_leaves_no_subscription_behind() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        del broker.answers[m.Subscribe]
        entering = asyncio.create_task(client.consume("q").__aenter__())
        connection, subscribe = await broker.next(m.Subscribe)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        connection.send(broker.subscribed(subscribe))
        await until(lambda: bool(sent(connection, m.Unsubscribe)))

    with_client(test)


def test_an_ended_subscription_raises_its_reason() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(deliver(bodies(1)))
            message = await anext(messages)
            waiting = asyncio.ensure_future(anext(messages))
            connection.send(m.Ended(subscription=1, code=201, text="queue 'q' was deleted"))
            with pytest.raises(UnknownQueue, match="was deleted"):
                await waiting
            await message.ack()  # void, and no error
        assert sent(connection, m.Unsubscribe, m.Ack) == []
        assert client.stats.acks_void == 1

    with_client(test)


def test_a_consumer_that_ended_does_not_subscribe_again_after_a_reconnect() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.consume("q") as messages:
            connection = await first(broker)
            connection.send(m.Ended(subscription=1, code=201, text="queue 'q' was deleted"))
            await settle_loop()
            connection.cut()
            await until(lambda: client.stats.connects == 2)
            await client.flush()
            assert broker.subscriptions == 1
            with pytest.raises(UnknownQueue, match="was deleted"):
                await anext(messages)

    with_client(test)


def test_a_refused_subscription_raises_on_entering_and_after_a_reconnect() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        def refuse(subscribe: m.Subscribe) -> m.Reply:
            return m.Failed(request=subscribe.request, code=201, text="no such queue")

        async with client.consume("q") as messages:
            broker.answers[m.Subscribe] = refuse
            broker.connections[0].cut()
            with pytest.raises(UnknownQueue):
                await anext(messages)
        with pytest.raises(UnknownQueue):
            await client.consume("q").__aenter__()

    with_client(test)


def test_a_subscription_that_is_never_answered_times_out() -> None:
    async def test(broker: FakeBroker) -> None:
        del broker.answers[m.Subscribe]
        async with vibemq.connect(broker.url, timeout=0.03) as client:
            with pytest.raises(RequestTimeout, match="consume 'q'"):
                await client.consume("q").__aenter__()

    with_broker(test)


def test_closing_the_client_ends_its_consumers() -> None:
    async def test(broker: FakeBroker) -> None:
        client = vibemq.connect(broker.url)
        await client.open()
        consuming = client.consume("q")
        messages = await consuming.__aenter__()
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ClientClosed):
            await waiting
        await consuming.__aexit__(None, None, None)
        with pytest.raises(ClientClosed):
            await client.consume("q").__aenter__()

    with_broker(test)


def test_what_a_consumer_cannot_be() -> None:
    async def test(_: FakeBroker, client: Client) -> None:
        with pytest.raises(InvalidName, match="group"):
            client.consume("q", group="")
        with pytest.raises(UsageError, match="prefetch"):
            client.consume("q", prefetch=0)

    with_client(test)

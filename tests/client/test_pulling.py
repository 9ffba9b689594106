"""Pulling: a subscription that waits between pulls, and what a cancelled or broken pull leaves."""

import asyncio

import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, deliver, sent, settle_loop, with_broker, with_client
from vibemq.client import Client
from vibemq.errors import RequestTimeout, UnknownQueue, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import RUNS_MAX


def bodies(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(start, start + count)]


def pulls(broker: FakeBroker, *batches: list[bytes]) -> None:
    """Answer each Credit with one of these batches, then with nothing."""
    left, delivered = list(batches), 0

    def answer(credit: m.Credit) -> m.Reply:
        nonlocal delivered
        connection = broker.connections[-1]
        if left:
            batch = left.pop(0)
            connection.send(deliver(batch, subscription=credit.subscription, delivery=delivered + 1))
            delivered += len(batch)
        return m.Drained(subscription=credit.subscription)

    broker.answers[m.Credit] = answer


def test_pull_gives_what_is_there_and_then_nothing() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulls(broker, bodies(3), bodies(2, 3))
        batch = await client.pull("q", max_messages=10, wait=0.5)
        assert [message.body for message in batch] == bodies(3)
        await batch[0].ack()
        await client.ack_all(batch)
        assert [message.body for message in await client.pull("q", 10)] == bodies(2, 3)
        assert await client.pull("q", max_messages=10, wait="1s") == []
        connection = broker.connections[0]
        assert [(one.messages, one.wait_ms, one.handed) for one in sent(connection, m.Credit)] == [
            (10, 500, 0),
            (10, 0, 4),
            (10, 1_000, 6),
        ]
        assert len(sent(connection, m.Subscribe)) == 1  # it stays for the next pull
        with pytest.raises(UsageError):
            await client.pull("q", 0)

    with_client(test)


async def cancelled(broker: FakeBroker, pulling: asyncio.Task[list[vibemq.Message]]) -> m.Credit:
    """Cancel a pull that waits; the broker was asked by this credit."""
    _, credit = await broker.next(m.Credit)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    return credit


def test_a_pull_does_not_wait_for_one_that_was_cancelled() -> None:
    """What still comes for that one goes back to the queue at once."""

    async def test(broker: FakeBroker, client: Client) -> None:
        credit = await cancelled(broker, asyncio.create_task(client.pull("q", 2, wait=60)))
        again = asyncio.create_task(client.pull("q", 1, wait=5))
        connection, anew = await broker.next(m.Credit)
        assert (credit.subscription, anew.subscription) == (1, 2)
        assert [one.subscription for one in sent(connection, m.Unsubscribe)] == [1]
        connection.send(deliver(bodies(2)), m.Drained(subscription=1))
        connection.send(deliver([b"mine"], subscription=2), m.Drained(subscription=2))
        assert [message.body for message in await again] == [b"mine"]

    with_client(test)


def test_a_cancelled_pull_leaves_the_leases_of_what_was_pulled_before() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulls(broker, bodies(3))
        held, settled, lost = await client.pull("q", 3)
        await settled.ack()
        del broker.answers[m.Credit]
        credit = await cancelled(broker, asyncio.create_task(client.pull("q", 2, wait=60)))
        again = asyncio.create_task(client.pull("q", 1, wait=5))
        await settle_loop()
        connection = broker.connections[0]
        assert broker.idle
        assert not sent(connection, m.Unsubscribe)
        connection.send(deliver(bodies(2, 3), delivery=4), m.Drained(subscription=credit.subscription))
        assert [message.body for message in await again] == [b"3"]
        (kept,) = await client.pull("q", 5)
        assert kept.body == b"4"
        assert broker.idle
        await client.ack_all([held, lost, kept, *again.result()])
        await cancelled(broker, asyncio.create_task(client.pull("q", 2, wait=60)))
        await settle_loop()
        assert len(sent(connection, m.Unsubscribe)) == 1  # now nothing is held

    with_client(test)


@pytest.mark.parametrize("step", [1, 2])
def test_acks_that_are_about_to_be_sent_come_before_a_cancelled_pull_gives_up(step: int) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        count = RUNS_MAX * step + 1  # every second one is more than a request holds
        pulls(broker, bodies(count))
        batch = await client.pull("q", count)
        del broker.answers[m.Credit]
        pulling = asyncio.create_task(client.pull("q", 1, wait=60))
        await broker.next(m.Credit)
        acking = [asyncio.create_task(client.ack_all(batch[at::step])) for at in range(step)]
        pulling.cancel()
        await asyncio.gather(pulling, *acking, return_exceptions=True)
        assert [task.exception() for task in acking] == [None] * step
        connection = broker.connections[0]
        kinds = [type(one) for one in connection.received if isinstance(one, m.Ack | m.Unsubscribe)]
        assert m.Ack in kinds
        assert m.Ack not in kinds[kinds.index(m.Unsubscribe) :] if m.Unsubscribe in kinds else True

    with_client(test)


def test_a_lease_that_ended_before_its_message_was_pulled_holds_nothing() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulls(broker, bodies(3))
        (first,) = await client.pull("q", 1)  # this broker sends more than it was asked for
        broker.connections[0].send(m.LeasesLost(subscription=1, deliveries=((2, 3),)))
        await settle_loop()
        (third,) = await client.pull("q", 1)
        assert third.body == b"2"
        await client.ack_all([first, third])
        del broker.answers[m.Credit]
        await cancelled(broker, asyncio.create_task(client.pull("q", 1, wait=60)))
        await settle_loop()
        assert len(sent(broker.connections[0], m.Unsubscribe)) == 1

    with_client(test)


def test_a_pull_survives_a_cut() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulling = asyncio.create_task(client.pull("q", 2, wait=5))
        connection, _ = await broker.next(m.Credit)
        connection.send(deliver(bodies(1)))
        await settle_loop()
        connection.cut()
        connection, credit = await broker.next(m.Credit)
        assert credit.subscription == 2
        connection.send(deliver(bodies(2), subscription=2), m.Drained(subscription=2))
        assert [message.body for message in await pulling] == bodies(2)

    with_client(test)


def test_a_pull_from_a_queue_that_goes_away_raises() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulling = asyncio.create_task(client.pull("q", 2, wait=5))
        connection, _ = await broker.next(m.Credit)
        connection.send(m.Ended(subscription=1, code=201, text="queue 'q' was deleted"))
        with pytest.raises(UnknownQueue):
            await pulling
        pulls(broker, [b"new"])
        assert len(await client.pull("q", 2)) == 1

    with_client(test)


def test_that_a_queue_went_away_between_pulls_is_told_before_the_queue_is_asked_for_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        pulls(broker)
        assert await client.pull("q") == []
        connection = broker.connections[0]
        connection.send(m.Ended(subscription=1, code=UnknownQueue.code, text="the queue was deleted"))
        await client.ping()
        with pytest.raises(UnknownQueue, match="deleted"):
            await client.pull("q")
        assert len(sent(connection, m.Subscribe)) == 1
        assert await client.pull("q") == []
        assert len(sent(connection, m.Subscribe)) == 2

    with_client(test)


def test_a_pull_that_is_not_answered_times_out() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, timeout=0.03) as client:
            with pytest.raises(RequestTimeout, match="pull from 'q'"):
                await client.pull("q", 1)

    with_broker(test)

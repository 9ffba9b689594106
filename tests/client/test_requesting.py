"""Request and reply: what is declared when, who gets which reply, and what is forgotten."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

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
from vibemq.batch import Headers
from vibemq.client import Client
from vibemq.errors import ClientClosed, QueueFull, RequestTimeout, UnknownQueue, UsageError
from vibemq.protocol import messages as m


class Replier:
    """The broker's part: confirms requests by itself, and hands out the replies that a test makes."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.requests: list[m.Publish] = []
        self.delivered: dict[FakeConnection, int] = {}
        broker.answers[m.Declare] = lambda command: m.Done(request=command.request, result={})
        broker.answers[m.Delete] = lambda command: m.Done(request=command.request, result={"count": 0})
        broker.answers[m.Publish] = self.publish

    def publish(self, command: m.Publish) -> m.Reply:
        self.requests.append(command)
        return m.Confirmed(request=command.request, offset=1, sequence=1)

    def headers(self) -> list[Headers]:
        return [one for request in self.requests for one in request.batch.headers()]

    async def asked(self, count: int) -> list[Headers]:
        await until(lambda: len(self.headers()) >= count)
        return self.headers()

    def reply(self, bodies: Sequence[bytes], headers: Sequence[Headers | None], *, redelivered: bool = False) -> None:
        connection = self.broker.connections[-1]
        number = self.delivered.get(connection, 0)
        self.delivered[connection] = number + len(bodies)
        connection.send(
            deliver(
                bodies,
                headers=headers,
                delivery=number + 1,
                sequence=1,
                subscription=self.broker.subscriptions,
                redelivered=redelivered,
            )
        )


def to(request: Headers) -> Headers:
    return {"correlation-id": request["correlation-id"]}


def with_replier(test: Callable[[Replier, FakeBroker, Client], Awaitable[None]]) -> None:
    async def main(broker: FakeBroker, client: Client) -> None:
        await test(Replier(broker), broker, client)

    with_client(main)


def test_each_request_gets_its_reply_over_one_queue_that_is_declared_once() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        calls = [
            asyncio.create_task(client.request("work", b"%d" % number, timeout=5, headers={"n": number}, key="k"))
            for number in range(3)
        ]
        asked = await replier.asked(3)
        publish = replier.requests[0]
        assert publish.batch.ttl_ms == 5_000
        name = f"reply.{broker.hellos[0].producer:016x}"
        assert {one["reply-to"] for one in asked} == {name}
        assert [(one["n"], one["key"]) for one in asked] == [(0, "k"), (1, "k"), (2, "k")]
        connection = broker.connections[0]
        (declare,) = sent(connection, m.Declare)
        assert (declare.queue, declare.on_difference) == (name, "ignore")
        assert declare.settings == {"expires_ms": 60_000, "delete_grace_ms": 0}
        assert [one.queue for one in sent(connection, m.Subscribe)] == [name]
        replier.reply([b"to 2", b"to 0"], [to(asked[2]), to(asked[0])])
        assert [(await calls[at]).body for at in (2, 0)] == [b"to 2", b"to 0"]
        assert not calls[1].done()
        replier.reply([b"to 1"], [to(asked[1]) | {"status": "fine"}])
        reply = await calls[1]
        assert (reply.headers["status"], reply.settled) == ("fine", True)
        await settle_loop()
        assert [one.deliveries for one in sent(connection, m.Ack)] == [((1, 3),), ((3, 4),)]
        again = asyncio.create_task(client.request("work", b""))
        asked = await replier.asked(4)
        assert len({one["correlation-id"] for one in asked}) == 4
        assert replier.requests[-1].batch.ttl_ms == 60_000
        replier.reply([b""], [to(asked[3])])
        await again
        assert len(sent(connection, m.Declare)) == 1

    with_replier(test)


def test_what_nobody_waits_for_is_acked_and_counted() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        late = asyncio.create_task(client.request("work", b"", timeout=0.1))
        cancelled = asyncio.create_task(client.request("work", b""))
        asked = await replier.asked(2)
        cancelled.cancel()
        with pytest.raises(RequestTimeout, match=r"no reply within 0\.1 s"):
            await late
        replier.reply([b""] * 4, [to(asked[0]), to(asked[1]), None, {"correlation-id": 7}])
        await until(lambda: client.stats.replies_late == 4)
        await settle_loop()
        assert [one.deliveries for one in sent(broker.connections[0], m.Ack)] == [((1, 5),)]
        assert client._requester._waiting == {}

    with_replier(test)


def test_a_request_that_cannot_be_published_says_why() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        broker.answers[m.Publish] = lambda command: m.Failed(request=command.request, code=206, text="full")
        with pytest.raises(QueueFull):
            await client.request("work", b"")
        broker.answers[m.Publish] = lambda command: m.Confirmed(
            request=command.request, offset=1, sequence=0, dropped=1
        )
        with pytest.raises(QueueFull, match="dropped the request"):
            await client.request("work", b"")
        for timeout in (0, -1, "soon"):
            with pytest.raises(UsageError, match=r"timeout|ttl"):
                await client.request("work", b"", timeout=timeout)
        with pytest.raises(UsageError, match="max_replies"):
            client.request_many("work", b"", max_replies=0)
        assert client._requester._waiting == {}
        assert not replier.requests

    with_replier(test)


def test_the_first_request_may_fail_and_the_next_begins_anew() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        broker.answers[m.Declare] = lambda command: m.Failed(request=command.request, code=205, text="too many queues")
        results = await asyncio.gather(*(client.request("work", b"") for _ in range(2)), return_exceptions=True)
        assert all("too many queues" in str(result) for result in results)
        broker.answers[m.Declare] = lambda command: m.Done(request=command.request, result={})
        call = asyncio.create_task(client.request("work", b""))
        replier.reply([b"yes"], [to((await replier.asked(1))[0])])
        assert (await call).body == b"yes"

    with_replier(test)


def test_after_a_reconnect_the_queue_is_declared_before_it_is_consumed_and_replies_come() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.request("work", b""))
        asked = await replier.asked(1)
        broker.connections[0].cut()
        await until(lambda: broker.subscriptions == 2)
        kinds = [type(one) for one in sent(broker.connections[1], m.Declare, m.Subscribe)]
        assert kinds == [m.Declare, m.Subscribe]
        replier.reply([b"yes"], [to(asked[0])])
        assert (await call).body == b"yes"

    with_replier(test)


def test_a_reply_queue_that_somebody_has_deleted_is_made_anew() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.request("work", b""))
        asked = await replier.asked(1)
        broker.connections[0].send(m.Ended(subscription=1, code=201, text="the queue was deleted"))
        await until(lambda: broker.subscriptions == 2)
        assert len(sent(broker.connections[0], m.Declare)) == 2
        replier.delivered.clear()
        replier.reply([b"yes"], [to(asked[0])])
        assert (await call).body == b"yes"

    with_replier(test)


def test_many_replies_come_until_the_time_is_over_or_there_are_enough() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        async with client.request_many("work", b"", timeout=0.3) as replies:
            asked = await replier.asked(1)
            assert replier.requests[0].batch.ttl_ms == 300
            replier.reply([b"a", b"b"], [to(asked[0])] * 2)
            assert [reply.body async for reply in replies] == [b"a", b"b"]
        assert [reply async for reply in client.request_many("work", b"", timeout=0.05)] == []
        async with client.request_many("work", b"", max_replies=2) as replies:
            asked = await replier.asked(3)
            replier.reply([b"a", b"b", b"c"], [to(asked[2])] * 3)
            assert [reply.body async for reply in replies] == [b"a", b"b"]
        async with client.request_many("work", b"") as replies:
            asked = await replier.asked(4)
            replier.reply([b"a", b"b"], [to(asked[3])] * 2)
            async for reply in replies:
                assert reply.body == b"a"
                break
        replier.reply([b"late"], [to(asked[3])])
        await until(lambda: client.stats.replies_late == 2)
        assert client._requester._waiting == {}
        with pytest.raises(UsageError, match="once"):
            async with replies:
                pass
        assert broker.subscriptions == 1

    with_replier(test)


def test_a_reply_that_comes_again_after_a_reconnect_is_one_reply() -> None:
    async def test(replier: Replier, broker: FakeBroker, client: Client) -> None:
        async with client.request_many("work", b"", max_replies=2) as replies:
            asked = await replier.asked(1)
            replier.reply([b"a"], [to(asked[0])])
            assert (await anext(replies)).body == b"a"
            broker.connections[0].cut()
            await until(lambda: broker.subscriptions == 2)
            replier.reply([b"a", b"b"], [to(asked[0])] * 2, redelivered=True)
            assert [reply.body async for reply in replies] == [b"b"]

    with_replier(test)


def test_closing_the_client_ends_its_requests_and_its_queue() -> None:
    async def test(broker: FakeBroker) -> None:
        replier = Replier(broker)
        async with vibemq.connect(broker.url) as client:
            call = asyncio.create_task(client.request("work", b""))
            many = client.request_many("work", b"")
            await many.__aenter__()
            await replier.asked(2)
        with pytest.raises(ClientClosed):
            await call
        with pytest.raises(ClientClosed):
            await anext(many)
        name = f"reply.{broker.hellos[0].producer:016x}"
        assert [(one.queue, one.grace_ms) for one in sent(broker.connections[0], m.Delete)] == [(name, 0)]
        async with vibemq.connect(broker.url):
            pass  # without a request there is no queue
        assert not sent(broker.connections[1], m.Delete)

    with_broker(test)


def test_a_message_is_answered_where_it_says() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = asyncio.create_task(client.pull("work"))
        connection, credit = await broker.next(m.Credit)
        connection.send(
            deliver(
                [b"", b"", b""],
                headers=[{"reply-to": "reply.1", "correlation-id": "7"}, {"reply-to": 1}, None],
                subscription=credit.subscription,
            ),
            m.Drained(subscription=credit.subscription),
        )
        request, *others = await call
        reply = asyncio.create_task(request.reply(b"done", headers={"status": "fine", "correlation-id": "mine"}))
        connection, publish = await broker.next(m.Publish)
        assert (publish.queue, publish.batch.bodies()) == ("reply.1", [b"done"])
        assert list(publish.batch.headers()) == [{"status": "fine", "correlation-id": "7"}]
        connection.confirm(publish, 3, 4)
        assert (await reply).id == "3-0"
        assert not request.settled
        reply = asyncio.create_task(request.reply(b"once more"))
        connection, publish = await broker.next(m.Publish)
        connection.send(m.Failed(request=publish.request, code=201, text="the requester is gone"))
        with pytest.raises(UnknownQueue, match="gone"):
            await reply
        for other in others:
            with pytest.raises(UsageError, match="no request"):
                await other.reply(b"")
        tx = client.transaction()
        with pytest.raises(UsageError, match="no request"):
            tx.reply(others[0], b"")
        tx.reply(request, b"in one", headers={"a": 1})
        tx.ack(request)
        commit = asyncio.create_task(tx.commit())
        connection, command = await broker.next(m.Commit)
        (publish,) = command.publishes
        assert (publish.queue, list(publish.batch.headers())) == ("reply.1", [{"a": 1, "correlation-id": "7"}])
        connection.send(m.Committed(request=command.request, offset=9, stored=(m.Stored(0, 1),)))
        assert [one.id for one in await commit] == ["9-0"]

    with_client(test)

"""Connecting, staying alive, reconnecting, and what happens to requests meanwhile."""

import asyncio
import random
import socket

import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, settle_loop, until, welcome, with_broker, with_client
from vibemq.client import Client
from vibemq.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    DeclareConflict,
    RequestTimeout,
    UnsupportedVersion,
    UsageError,
    VibeMQError,
)
from vibemq.protocol import messages as m


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_nobody_there_says_where_why_and_what_to_do() -> None:
    async def test(_: FakeBroker) -> None:
        port = free_port()
        with pytest.raises(ConnectionFailed) as raised:
            await vibemq.connect(f"vibemq://127.0.0.1:{port}", connect_timeout=0.1, backoff_min=0.01).open()
        for part in (f"127.0.0.1:{port}", "0.1 s", "vibemq serve", "VIBEMQ_URL"):
            assert part in str(raised.value)

    with_broker(test)


def test_a_broker_that_starts_later_is_found() -> None:
    async def main() -> None:
        port = free_port()
        client = vibemq.connect(f"vibemq://127.0.0.1:{port}", backoff_min=0.001, backoff_max=0.005)
        opening = asyncio.create_task(client.open())
        await asyncio.sleep(0.02)
        broker = FakeBroker()
        await broker.start(port)
        await opening
        assert client.stats.connects == 1
        await client.close()
        await broker.stop()

    asyncio.run(main())


def test_who_does_not_greet_is_no_broker() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = None
        with pytest.raises(ConnectionFailed, match="no broker could be reached"):
            await vibemq.connect(broker.url, connect_timeout=0.05).open()

    with_broker(test)


def test_another_protocol_version_is_not_tried_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.greeting = m.Goodbye(code=103, text="this broker speaks version 9")
        with pytest.raises(UnsupportedVersion, match="version 9"):
            await vibemq.connect(broker.url).open()
        assert len(broker.hellos) == 2
        calling = asyncio.create_task(client.show_queue("q"))
        await broker.next(m.ShowQueue)
        broker.connections[0].cut()
        with pytest.raises(UnsupportedVersion):
            await calling
        with pytest.raises(UnsupportedVersion):
            await client.publish("q", b"")

    with_client(test)


def test_another_service_on_the_port_is_not_tried_again() -> None:
    async def main() -> None:
        def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(VibeMQError):
            await vibemq.connect(f"vibemq://127.0.0.1:{port}", connect_timeout=5).open()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_the_hello_tells_who_this_is() -> None:
    async def test(broker: FakeBroker) -> None:
        chance = random.Random(7)
        async with vibemq.connect(broker.url, name="billing", heartbeat=20, chance=random.Random(7)):
            hello = broker.hellos[0]
            assert (hello.client, hello.heartbeat_ms) == ("billing", 20_000)
            assert hello.producer == chance.getrandbits(63) + 1

    with_broker(test)


def test_closing_says_goodbye_and_can_be_repeated() -> None:
    async def test(broker: FakeBroker) -> None:
        client = vibemq.connect(broker.url)
        await client.close()  # never opened
        with pytest.raises(UsageError, match="async with"):
            await client.publish("q", b"")
        with pytest.raises(UsageError, match="async with"):
            client.consume("q")
        assert not hasattr(client, "colour")
        await client.open()
        with pytest.raises(UsageError, match="opened before"):
            await client.open()
        await client.close()
        await client.close()
        assert broker.connections[0].received == [m.Goodbye()]
        with pytest.raises(ClientClosed):
            await client.ping()

    with_broker(test)


def test_silence_is_broken_by_pings_and_ends_the_connection_after_two_heartbeats() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(heartbeat_ms=100)
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.001) as client:
            await until(lambda: broker.pings >= 6)
            assert client.stats.connects == 1  # the pongs are life enough
            broker.silent = True
            await until(lambda: client.stats.connects > 1)
            assert any(isinstance(one, m.Ping) for one in broker.connections[0].received)

    with_broker(test)


def test_ping_waits_over_a_reconnect() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        assert await client.ping() >= 0
        broker.silent = True
        pinging = asyncio.create_task(client.ping())
        await until(lambda: bool(broker.connections[0].received))
        broker.silent = False
        broker.connections[0].cut()
        await pinging
        assert client.stats.connects == 2

    with_client(test)


def test_requests_that_can_be_repeated_are_sent_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calling = asyncio.create_task(client.declare("q", max_attempts=3, lease="30s", retry_delay=0.5, mode=None))
        connection, declare = await broker.next(m.Declare)
        assert declare.settings == {"max_attempts": 3, "lease_ms": 30_000, "retry_delay_ms": 500}
        connection.cut()
        connection, again = await broker.next(m.Declare)
        assert again.settings == declare.settings
        connection.send(m.Failed(request=again.request, code=212, text="stopping"))
        await settle_loop()
        connection.cut()
        connection, again = await broker.next(m.Declare)
        connection.send(m.Done(request=again.request, result={"name": "q"}))
        assert await calling == {"name": "q"}

    with_client(test)


@pytest.mark.parametrize("verb", ["purge", "delete"])
def test_requests_that_must_not_be_repeated_are_not(verb: str) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        call = {"purge": client.purge, "delete": client.delete}[verb]
        kind: type[m.Purge | m.Delete] = m.Purge if verb == "purge" else m.Delete
        calling = asyncio.create_task(call("q"))
        connection, _ = await broker.next(kind)
        connection.cut()
        with pytest.raises(ConnectionLost, match="not known"):
            await calling
        calling = asyncio.create_task(call("q"))
        connection, command = await broker.next(kind)
        connection.send(m.Done(request=command.request, result={"count": 4}))
        assert await calling == 4

    with_client(test)


def test_refusals_and_timeouts_of_requests() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url) as client:
            calling = asyncio.create_task(client.declare("q", max_attempts=3))
            connection, declare = await broker.next(m.Declare)
            connection.send(m.Failed(request=declare.request, code=202, text="max_attempts is 5, not 3"))
            with pytest.raises(DeclareConflict, match="is 5"):
                await calling
            with pytest.raises(UsageError, match="no setting 'colour'"):
                await client.declare("q", colour="red")  # type: ignore[call-arg]
        async with vibemq.connect(broker.url, timeout=0.05) as client:
            with pytest.raises(RequestTimeout, match="list_queues"):
                await client.list_queues()
            broker.silent = True
            with pytest.raises(RequestTimeout, match="ping"):
                await client.ping()
            calling_flush = asyncio.create_task(client.publish("q", b""))
            await asyncio.sleep(0)
            with pytest.raises(RequestTimeout):
                await client.flush()
            with pytest.raises(RequestTimeout):
                await calling_flush

    with_broker(test)


def test_answers_come_as_plain_values() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        queue = {"name": "q", "ready": 1}
        facts = {"sequence": 3, "attempt": 1, "redelivered": False, "headers": {"k": 1}, "id": "1-0"}
        broker.answers |= {
            m.ListQueues: lambda c: m.Done(request=c.request, result=[queue]),
            m.ShowQueue: lambda c: m.Done(request=c.request, result=queue),
            m.Digest: lambda c: m.Done(request=c.request, result={"offset": 1, "digests": {}}),
            m.Peek: lambda c: m.Done(
                request=c.request,
                result=[
                    {**facts, "body": b"\xff", "published_at_us": 1_000_000},
                    {**facts, "body": "text", "published_at": "1970-01-01T00:00:01.000000Z"},
                    {**facts, "body_base64": "/w==", "published_at_us": 1_000_000},
                ],
            ),
        }
        assert await client.list_queues() == [queue]
        assert await client.show_queue("q") == queue
        assert await client.digest() == {"offset": 1, "digests": {}}
        peeked = await client.peek("q", start=3, count=1)
        assert [one.body for one in peeked] == [b"\xff", b"text", b"\xff"]
        assert len({one.published_at for one in peeked}) == 1
        assert (peeked[0].id, peeked[0].queue, peeked[0].headers, peeked[0].sequence) == ("1-0", "q", {"k": 1}, 3)

    with_client(test)


def test_a_goodbye_is_followed_by_a_reconnect() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.connections[0].send(m.Goodbye(code=212, text="the broker is stopping"))
        await until(lambda: client.stats.connects == 2)
        broker.connections[1].send(m.Goodbye())
        await until(lambda: client.stats.connects == 3)

    with_client(test)


def test_garbage_from_the_broker_ends_only_the_connection() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        broker.connections[0].transport.write(b"\xff" * 64)
        await until(lambda: client.stats.connects == 2)
        broker.connections[1].send(m.Deliver(1, 1, 1, 0, 0, 0, 1, False, [b"short"]))  # for nobody: ignored
        assert await client.ping() >= 0
        async with client.consume("q"):
            broker.connections[1].send(m.Deliver(1, 1, 1, 0, 0, 0, 1, False, [b"short"]))
            await until(lambda: client.stats.connects == 3)

    with_client(test)

"""The blocking client: the same verbs, and a thread that ends."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Final, get_args, get_type_hints

import pytest

import vibemq
from tests.client.fake_broker import FakeBroker, deliver, until
from vibemq.client import Client, SyncClient, SyncMessage
from vibemq.errors import ClientClosed, ConnectionFailed, LeaseLost, QueueFull, UnknownQueue
from vibemq.protocol import messages as m


def with_sync_client(test: Callable[[FakeBroker, SyncClient], None]) -> None:
    """Run a test on a thread of its own, while the broker runs here."""

    async def main() -> None:
        broker = FakeBroker()
        await broker.start()
        broker.answers[m.Publish] = lambda c: m.Confirmed(request=c.request, offset=3, sequence=1)

        def work() -> None:
            with vibemq.connect_sync(broker.url, backoff_min=0.001) as client:
                test(broker, client)

        try:
            async with asyncio.timeout(20):
                await asyncio.to_thread(work)
        finally:
            await broker.stop()

    before = threading.active_count()
    asyncio.run(main())
    assert threading.active_count() == before


def deliver_on_subscribe(broker: FakeBroker, *bodies: bytes) -> None:
    loop = broker.server.get_loop()

    def subscribed(command: m.Subscribe) -> m.Reply:
        number = broker.subscriptions + 1
        loop.call_soon(lambda: broker.connections[-1].send(deliver(bodies, subscription=number)))
        return broker.subscribed(command)

    broker.answers[m.Subscribe] = subscribed


def names_of(verb: Callable[..., object]) -> list[str]:
    """The names of a verb's arguments, those that a TypedDict lists included."""
    found: list[str] = []
    for one in inspect.signature(verb).parameters.values():
        options = get_args(one.annotation) if one.kind is one.VAR_KEYWORD else ()
        found += [name for kind in options for name in get_type_hints(kind)] or [one.name]
    return found


def test_it_has_the_verbs_of_the_asynchronous_client() -> None:
    internal = {"messages_of", "pull_as", "delayed_page", "transaction_of", "numbered_commits"}
    verbs = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")} - internal
    for name in verbs:
        assert names_of(getattr(SyncClient, name)) == names_of(getattr(Client, name)), name
    for name in ("ack", "nack", "reject", "extend", "reply"):
        theirs = inspect.signature(getattr(vibemq.Message, name)).parameters
        assert list(inspect.signature(getattr(SyncMessage, name)).parameters.values()) == list(theirs.values())


OTHERWISE: Final = {"open", "close", "consume", "pull", "delayed", "transaction", "request", "request_many"}
HANDED_ON: Final = [
    name
    for name, _ in inspect.getmembers(SyncClient, inspect.isfunction)
    if not name.startswith("_") and name not in OTHERWISE
]


@pytest.mark.parametrize("name", HANDED_ON)
def test_a_verb_hands_all_of_its_arguments_on_and_the_result_back(name: str) -> None:
    """Each argument is a text of its own, so that none can be mistaken for another."""
    client = vibemq.connect_sync("vibemq://h")
    got: list[dict[str, object]] = []
    signature = inspect.signature(getattr(Client, name))

    def record(*args: object, **named: object) -> object:
        got.append(dict(signature.bind(client, *args, **named).arguments))
        return asyncio.sleep(0, "result")

    setattr(client._client, name, record)
    client._bridge.call = asyncio.run  # type: ignore[method-assign, assignment]
    parameters = [one for one in signature.parameters.values() if one.name != "self"]
    args = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    named = {one.name: one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    more = {"ttl": "1s"} if any(one.kind is one.VAR_KEYWORD for one in parameters) else {}
    expected = None if signature.return_annotation is None else "result"
    assert getattr(client, name)(*args, **named, **more) == expected
    (arguments,) = got
    del arguments["self"]
    assert arguments.pop("settings", {}) == more
    assert arguments == {one: one for one in [*args, *named]}


def test_publishing() -> None:
    def test(_: FakeBroker, client: SyncClient) -> None:
        assert client.publish("q", b"x", headers={"k": 1}).id == "3-0"
        assert [receipt.id for receipt in client.publish_many("q", [b"1", b"2"])] == ["3-0", "3-1"]
        client.flush()
        assert client.ping() >= 0
        assert client.stats.connects == 1

    with_sync_client(test)


def test_consuming_message_by_message_and_in_batches() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        deliver_on_subscribe(broker, b"0", b"1", b"2", b"3", b"4", b"5")
        with client.consume("q", prefetch=4) as messages:
            got = []
            for message in messages:
                got.append(message.body)
                message.ack()
                message.ack()
                if message.body == b"1":
                    break
            third = next(messages)
            third.nack(delay=1, reason="r")
            client.flush()
            batch = next(messages.batches())
            client.ack_all(batch)
            batch[0].ack(confirm=True)
        assert got == [b"0", b"1"]
        received = [one for one in broker.connections[0].received if isinstance(one, m.Ack | m.Nack)]
        acked = {n for ack in received if isinstance(ack, m.Ack) for run in ack.deliveries for n in range(*run)}
        assert acked == {1, 2} | {message.delivery for message in batch}
        (nack,) = [one for one in received if isinstance(one, m.Nack)]
        assert (nack.deliveries, nack.delay_ms, nack.reason) == (((3, 4),), 1_000, "r")
        with pytest.raises(StopIteration):
            next(messages)
        with pytest.raises(StopIteration):
            next(messages.batches())

    with_sync_client(test)


def test_consuming_and_pulling_from_a_group() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        broker.answers[m.Credit] = lambda credit: m.Drained(subscription=credit.subscription)
        with client.consume("q", 7, "g", start="head", exclusive=True) as messages:
            assert (messages.queue, messages.group) == ("q", "g")
        assert client.pull("q", 3, 0, group="h", start=5) == []
        asked = [one for one in broker.connections[0].received if isinstance(one, m.Subscribe)]
        assert [(one.messages, one.group, one.start, one.at, one.exclusive) for one in asked] == [
            (7, "g", "head", 0, True),
            (0, "h", "sequence", 5, False),
        ]

    with_sync_client(test)


def test_pulling_and_settling() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        def pull(credit: m.Credit) -> m.Reply:
            if not credit.handed:
                broker.connections[0].send(deliver([b"1", b"2", b"3"], subscription=credit.subscription))
            return m.Drained(subscription=credit.subscription)

        broker.answers[m.Credit] = pull
        broker.answers[m.Extend] = lambda c: m.Failed(request=c.request, code=208, text="ended")
        one, two, three = client.pull("q", 5, wait=0.1)
        assert client.pull("q") == []
        one.ack()
        two.reject(reason="bad")
        with pytest.raises(LeaseLost):
            three.extend(5)
        client.flush()
        kinds = [type(c) for c in broker.connections[0].received if isinstance(c, m.Ack | m.Nack)]
        assert kinds == [m.Ack, m.Nack]

    with_sync_client(test)


def test_errors_come_through() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        broker.answers[m.ShowQueue] = lambda c: m.Failed(request=c.request, code=201, text="no queue 'q'")
        with pytest.raises(UnknownQueue, match="no queue"):
            client.show_queue("q")
        with pytest.raises(ValueError, match="mine"), client.consume("q"):
            raise ValueError("mine")
        assert isinstance(broker.connections[0].received[-1], m.Unsubscribe)

    with_sync_client(test)


def test_a_closed_client_says_so() -> None:
    kept: list[SyncMessage] = []

    def test(broker: FakeBroker, client: SyncClient) -> None:
        deliver_on_subscribe(broker, b"0")
        with client.consume("q") as messages:
            kept.append(next(messages))
        client.close()
        client.close()
        with pytest.raises(ClientClosed):
            client.ping()
        with pytest.raises(ClientClosed):
            kept[0].ack()

    with_sync_client(test)


def test_nobody_there_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ConnectionFailed):
        vibemq.connect_sync("vibemq://127.0.0.1:1", connect_timeout=0.05).open()
    with pytest.raises(ClientClosed, match="not open"):
        vibemq.connect_sync("vibemq://127.0.0.1:1").list_queues()
    assert threading.active_count() == before


def test_waiting_for_a_message_does_not_hold_up_other_threads() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        got: list[bytes] = []

        def consume() -> None:
            with client.consume("q") as messages:
                got.append(next(messages).body)

        thread = threading.Thread(target=consume)
        thread.start()
        client.publish("q", b"")
        loop = broker.server.get_loop()
        future = asyncio.run_coroutine_threadsafe(until(lambda: broker.subscriptions == 1), loop)
        future.result(10)
        loop.call_soon_threadsafe(lambda: broker.connections[0].send(deliver([b"late"])))
        thread.join(10)
        assert got == [b"late"]

    with_sync_client(test)


def deliver_one_by_pull(broker: FakeBroker, *bodies: bytes) -> None:
    """Answer a pull, whose credit asks for an answer, with messages."""

    def credit(command: m.Credit) -> None:
        if command.wait_ms >= 0:
            broker.connections[-1].send(
                deliver(bodies, subscription=command.subscription), m.Drained(subscription=command.subscription)
            )

    broker.answers[m.Credit] = credit


def test_a_transaction_is_committed_or_rolled_back_as_the_block_ends() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        commits: list[m.Commit] = []

        def commit(command: m.Commit) -> m.Reply:
            commits.append(command)
            if any(one.queue == "full" for one in command.publishes):
                return m.Failed(request=command.request, code=206, text="full")
            stored = tuple(m.Stored(at, at + 1) for at, _ in enumerate(command.publishes))
            return m.Committed(request=command.request, offset=9, stored=stored)

        broker.answers[m.Commit] = commit
        deliver_one_by_pull(broker, b"a", b"b")
        first, second = client.pull("in")
        with client.transaction() as tx:
            out = tx.publish("q", b"x", headers={"n": 1})
            tx.publish_topic("t", b"y")
            tx.ack(first)
        assert (out.receipt.id, [one.id for one in tx.receipts]) == ("9-0", ["9-0", "9-1"])
        assert commits[0].acks == (m.TransactionAck(1, ((1, 2),)),)

        def fail() -> None:
            with client.transaction() as tx:
                tx.publish("q", b"never")
                tx.ack(second)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert len(commits) == 1
        assert not second.settled
        tx = client.transaction()
        tx.publish_many("full", [b"x"])
        tx.ack_all([second])
        with pytest.raises(QueueFull):
            tx.commit()
        assert not second.settled
        with client.transaction() as tx:
            assert "open" in repr(tx)
        assert len(commits) == 2
        second.ack(confirm=True)

    with_sync_client(test)


def test_an_error_in_a_transaction_is_seen_also_when_the_client_is_closed() -> None:
    def test(_: FakeBroker, client: SyncClient) -> None:
        def fail() -> None:
            with client.transaction() as tx:
                tx.publish("q", b"never")
                client.close()
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with pytest.raises(ClientClosed):
            client.transaction().publish("q", b"")

    with_sync_client(test)


def test_requests_and_replies() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        numbers = iter(range(1, 100))
        loop = broker.server.get_loop()

        def publish(command: m.Publish) -> m.Reply:
            for headers in command.batch.headers():
                if "reply-to" in headers:
                    reply = deliver(
                        [command.batch.bodies()[0] + b"!"],
                        headers=[{"correlation-id": headers["correlation-id"]}],
                        delivery=next(numbers),
                        sequence=1,
                    )
                    loop.call_soon(broker.connections[-1].send, reply)
            return m.Confirmed(request=command.request, offset=3, sequence=1)

        broker.answers[m.Publish] = publish
        broker.answers[m.Declare] = lambda command: m.Done(request=command.request, result={})
        broker.answers[m.Delete] = lambda command: m.Done(request=command.request, result={})
        reply = client.request("work", b"one", timeout=5)
        assert (reply.body, reply.settled) == (b"one!", True)
        with client.request_many("work", b"two", max_replies=1) as replies:
            assert [one.body for one in replies] == [b"two!"]
        with client.request_many("work", b"three", timeout=0.1) as replies:
            assert [one.body for one in replies] == [b"three!"]

    with_sync_client(test)


def test_delayed_messages_are_iterated_page_by_page() -> None:
    def test(broker: FakeBroker, client: SyncClient) -> None:
        def page(command: m.ListDelayed) -> m.Reply:
            number = command.after[2]
            messages = [{"id": f"1-{number}", "due_at_us": 5, "published_at_us": 4, "bytes": 3}]
            then = [1, 1, number + 1] if number < 2 else None
            return m.Done(request=command.request, result={"messages": messages, "count": 3, "next": then})

        broker.answers[m.ListDelayed] = page
        assert [one.id for one in client.delayed("q")] == ["1-0", "1-1", "1-2"]

    with_sync_client(test)

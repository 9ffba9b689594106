"""Transactions: what is collected, what is sent when, and what is known when something breaks."""

import asyncio
from typing import Any

import pytest

import vibemq
from tests.client.fake_broker import (
    FakeBroker,
    FakeConnection,
    deliver,
    sent,
    settle_loop,
    until,
    welcome,
    with_broker,
    with_client,
)
from vibemq.client import Client, Message, Transaction
from vibemq.errors import (
    ClientClosed,
    InvalidName,
    LimitExceeded,
    QueueFull,
    RequestTimeout,
    TransactionConflict,
    TransactionEnded,
    TransactionTimeout,
    UsageError,
)
from vibemq.protocol import messages as m
from vibemq.protocol.keys import dedup_hash, key_hash


def committed(
    connection: FakeConnection, commit: m.Commit, offset: int = 9, *, duplicate: bool = False, dropped: int = 0
) -> None:
    """Say that all of it was done: each batch has the sequences from 100 times its place on."""
    stored, index = [], 0
    for place, publish in enumerate(commit.publishes, 1):
        stored.append(m.Stored(index, 100 * place, dropped))
        index += publish.batch.count - dropped
    connection.send(m.Committed(request=commit.request, offset=offset, duplicate=duplicate, stored=tuple(stored)))


def test_what_is_only_collected_says_so_to_whoever_awaits_it() -> None:
    async def test(_: FakeBroker, client: Client) -> None:
        async with client.transaction() as tx:
            with pytest.raises(UsageError, match="without await"):
                await tx.publish("q", b"x")
            await tx.rollback()

    with_client(test)


def refuse(connection: FakeConnection, commit: m.Commit, error: type[vibemq.VibeMQError]) -> None:
    connection.send(m.Failed(request=commit.request, code=error.code, text="refused"))


async def committing(tx: Transaction) -> "asyncio.Task[list[vibemq.Receipt]]":
    call = asyncio.create_task(tx.commit())
    await asyncio.sleep(0)
    return call


async def pulled(broker: FakeBroker, client: Client, *bodies: bytes) -> list[Message]:
    """Messages that are held."""
    call = asyncio.create_task(client.pull("in", 10_000, 1))
    connection, credit = await broker.next(m.Credit)
    connection.send(deliver(bodies, subscription=credit.subscription), m.Drained(subscription=credit.subscription))
    return await call


def test_everything_is_sent_at_the_end_in_one_frame_and_receipts_come_in_order_of_the_calls() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        messages = await pulled(broker, client, b"a", b"b", b"c")
        headers = {"n": 1}

        async def work() -> tuple[Transaction, list[Any]]:
            async with client.transaction() as tx:
                made = [tx.publish("q", b"0", headers=headers), tx.publish("r", b"1", key="k", dedup_id="d")]
                headers["n"] = 2
                made += [tx.publish_many("q", [b"2", b"3"], keys=[None, "x"]), tx.publish("q", b"4", priority=9)]
                made += [tx.publish("q", b"5", delay="1h"), tx.publish_topic("t", bytearray(b"6"))]
                tx.ack(messages[0])
                tx.ack_all(messages[1:])
                tx.ack(messages[2])
                with pytest.raises(UsageError, match="open"):
                    made[0].receipt  # noqa: B018 - it raises
                await settle_loop()
                assert broker.idle
                assert broker.epochs == 1  # asked for while the program works
            return tx, made

        call = asyncio.create_task(work())
        connection, commit = await broker.next(m.Commit)
        assert (commit.epoch, commit.sequence, commit.oldest) == (1, 1, 1)
        assert commit.acks == (m.TransactionAck(1, ((1, 4),)),)
        assert [
            (one.queue, one.to_topic, one.batch.priority, one.delay_ms, one.batch.bodies()) for one in commit.publishes
        ] == [
            ("q", False, 4, 0, [b"0", b"2", b"3"]),
            ("r", False, 4, 0, [b"1"]),
            ("q", False, 9, 0, [b"4"]),
            ("q", False, 4, 3_600_000, [b"5"]),
            ("t", True, 4, 0, [b"6"]),
        ]
        assert list(commit.publishes[0].batch.headers()) == [{"n": 1}, {}, {"key": "x"}]
        assert list(commit.publishes[0].batch.keys or ()) == [0, 0, key_hash("x")]
        assert [one.dedup for one in commit.publishes[:2]] == [b"", dedup_hash("d")]
        assert not call.done()
        committed(connection, commit)
        tx, made = await call
        assert [one.id for one in tx.receipts] == ["9-0", "9-3", "9-1", "9-2", "9-4", "9-5", "9-6"]
        assert [one.sequence for one in tx.receipts] == [100, 200, 101, 102, 300, 400, 0]
        assert [one.receipts for one in made] == [
            tx.receipts[at:end] for at, end in zip([0, 1, 2, 4, 5, 6], [1, 2, 4, 5, 6, 7], strict=True)
        ]
        assert made[1].receipt.queue == "r"
        with pytest.raises(UsageError, match="2 messages"):
            made[2].receipt  # noqa: B018 - it raises
        with pytest.raises(UsageError, match="committed"):
            tx.publish("q", b"")
        await messages[0].ack()  # does nothing any more
        await settle_loop()
        assert not sent(connection, m.Ack)

    with_client(test)


def test_an_empty_transaction_sends_nothing_and_one_of_acks_alone_is_fine() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        async with client.transaction() as tx:
            none = tx.publish_many("q", [])
        assert tx.receipts == none.receipts == []
        assert broker.epochs == 0
        (message,) = await pulled(broker, client, b"a")
        tx = client.transaction()
        tx.ack(message)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        assert (commit.publishes, commit.acks) == ((), (m.TransactionAck(1, ((1, 2),)),))
        committed(connection, commit)
        assert await call == []

    with_client(test)


def test_what_was_acked_in_a_transaction_is_not_held_any_more() -> None:
    """So a pull that is cancelled may give up the subscription, and the next one waits for nobody."""

    async def test(broker: FakeBroker, client: Client) -> None:
        messages = await pulled(broker, client, b"a", b"b")
        tx = client.transaction()
        tx.ack_all(messages)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        committed(connection, commit)
        await call
        pull = asyncio.create_task(client.pull("in", wait=5))
        await broker.next(m.Credit)
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        await until(lambda: bool(sent(connection, m.Unsubscribe)))
        assert [message.body for message in await pulled(broker, client, b"c")] == [b"c"]
        assert broker.subscriptions == 2

    with_client(test)


def test_an_exception_rolls_back_and_what_was_acked_is_held_as_before() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (message,) = await pulled(broker, client, b"a")
        tx = client.transaction()

        async def work() -> None:
            async with tx:
                tx.publish("q", b"")
                tx.ack(message)
                await settle_loop()
                raise KeyError

        with pytest.raises(KeyError):
            await work()
        await settle_loop()
        connection = broker.connections[0]
        assert [one.epoch for one in sent(connection, m.Rollback)] == [1]
        assert not sent(connection, m.Commit)
        await message.nack(confirm=True)
        assert [one.deliveries for one in sent(connection, m.Nack)] == [((1, 2),)]
        with pytest.raises(UsageError, match="ended"):
            await tx.commit()
        with pytest.raises(UsageError, match="settled before"):
            client.transaction().ack(message)
        quick = client.transaction()
        quick.publish("q", b"")
        await quick.rollback()  # before the broker was asked for anything
        await settle_loop()
        assert broker.epochs == 1

    with_client(test)


def test_a_rollback_that_overtakes_the_answer_to_begin_is_sent_after_it() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        del broker.answers[m.Begin]
        tx = client.transaction()
        tx.publish("q", b"")
        connection, begin = await broker.next(m.Begin)
        await tx.rollback()
        await settle_loop()
        assert not sent(connection, m.Rollback)
        connection.send(m.Done(request=begin.request, result={"epoch": 5, "timeout_ms": 1}))
        await until(lambda: bool(sent(connection, m.Rollback)))
        assert sent(connection, m.Rollback)[0].epoch == 5

    with_client(test)


def test_commits_have_sequences_in_the_order_of_the_other_publishes() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        before = asyncio.create_task(client.publish_many("q", [b"0", b"1"]))
        connection, first = await broker.next(m.Publish)
        tx = client.transaction()
        tx.publish_many("q", [b"2"] * 5)
        call = await committing(tx)
        _, commit = await broker.next(m.Commit)
        after = asyncio.create_task(client.publish("q", b"3"))
        _, last = await broker.next(m.Publish)
        assert (first.sequence, commit.sequence, last.sequence) == (1, 3, 4)
        assert (commit.oldest, last.oldest) == (1, 1)
        connection.confirm(first, 1, 1)
        await before
        committed(connection, commit)
        await call
        more = asyncio.create_task(client.publish("q", b"4"))
        _, one = await broker.next(m.Publish)
        assert (one.sequence, one.oldest) == (5, 4)
        connection.confirm(last, 1, 1)
        connection.confirm(one, 1, 1)
        await asyncio.gather(after, more)

    with_client(test)


@pytest.mark.parametrize("error", [TransactionConflict, QueueFull, TransactionTimeout, TransactionEnded, InvalidName])
def test_a_refusal_is_raised_and_what_was_acked_is_held_as_before(error: type[vibemq.VibeMQError]) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (message,) = await pulled(broker, client, b"a")
        tx = client.transaction()
        tx.ack(message)
        tx.publish("q", b"")
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        refuse(connection, commit, error)
        with pytest.raises(error, match="refused"):
            await call
        with pytest.raises(UsageError, match="ended"):
            tx.receipts  # noqa: B018 - it raises
        async with client.transaction() as again:
            again.ack(message)
            await asyncio.sleep(0)
            (task,) = [asyncio.create_task(broker.next(m.Commit))]
            task.add_done_callback(lambda done: committed(*done.result()))
        await task
        assert broker.epochs == 2

    with_client(test)


@pytest.mark.parametrize("acks", [False, True])
@pytest.mark.parametrize("was_done", [False, True])
def test_a_commit_without_an_answer_is_sent_again_and_done_once(was_done: bool, acks: bool) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (message,) = await pulled(broker, client, b"a")
        tx = client.transaction()
        tx.publish("q", b"0")
        if acks:
            tx.ack(message)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        connection.cut()
        connection, again = await broker.next(m.Commit)
        assert (again.sequence, again.epoch) == (commit.sequence, commit.epoch)
        assert again.acks == commit.acks
        assert again.publishes[0].batch.bodies() == [b"0"]
        if was_done:
            committed(connection, again, duplicate=True)
            (receipt,) = await call
            assert (receipt.duplicate, receipt.duplicate_of, receipt.id) == (True, None, "9-0")
            return
        refuse(connection, again, TransactionEnded)
        if acks:
            with pytest.raises(TransactionConflict, match="nothing of the transaction was done"):
                await call
            assert not message.settled
            return
        connection, anew = await broker.next(m.Commit)
        assert anew.epoch == 2
        committed(connection, anew)
        assert [one.duplicate for one in await call] == [False]

    with_client(test)


def test_an_attempt_that_broke_before_its_commit_is_begun_anew() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (message,) = await pulled(broker, client, b"a")
        tx, conflict = client.transaction(), client.transaction()
        tx.publish("q", b"0")
        conflict.ack(message)
        await until(lambda: broker.epochs == 2)
        broker.connections[0].cut()
        await until(lambda: client.stats.connects == 2)
        with pytest.raises(TransactionConflict, match="come again"):
            await conflict.commit()
        with pytest.raises(TransactionConflict, match="come again"):
            client.transaction().ack(message)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        assert commit.epoch == 3
        committed(connection, commit)
        await call

    with_client(test)


def test_messages_of_a_consumer_that_was_left_cannot_be_acked() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        tx = client.transaction()
        async with client.consume("in") as messages:
            await until(lambda: broker.subscriptions == 1)
            broker.connections[0].send(deliver([b"a", b"b"]))
            tx.ack(await anext(messages))
        connection = broker.connections[0]
        assert not sent(connection, m.Ack)  # it went back, and was not acked on leaving
        with pytest.raises(TransactionConflict, match="before you leave"):
            await tx.commit()

    with_client(test)


def test_a_full_queue_that_blocks_makes_the_commit_wait_and_what_comes_behind_it_too() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        tx = client.transaction()
        tx.publish("full", b"0")
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        connection.send(m.Failed(request=commit.request, code=213, text="wait"))
        await settle_loop()
        behind = asyncio.create_task(client.publish("full", b"1"))
        await settle_loop()
        assert broker.idle
        connection.send(m.Unblocked(queue="full"))
        _, again = await broker.next(m.Commit)
        assert (again.sequence, again.epoch) == (commit.sequence, commit.epoch)
        committed(connection, again)
        await call
        _, publish = await broker.next(m.Publish)
        connection.confirm(publish, 1, 1)
        await behind

    with_client(test)


def test_of_several_queues_any_may_be_the_one_that_blocks() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        tx = client.transaction()
        tx.publish("a", b"0")
        tx.publish("b", b"1")
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        for queue in ("a", "b", "b"):
            connection.send(m.Failed(request=commit.request, code=213, text="wait"))
            connection.send(m.Unblocked(queue="other"))
            await settle_loop()
            assert broker.idle
            connection.send(m.Unblocked(queue=queue))
            _, commit = await broker.next(m.Commit)
        connection.send(m.Failed(request=commit.request, code=213, text="wait"))
        await settle_loop()
        connection.cut()  # was refused, so it is not done: another attempt may be begun
        connection, commit = await broker.next(m.Commit)
        refuse(connection, commit, TransactionEnded)
        connection, commit = await broker.next(m.Commit)
        assert commit.epoch == 2
        committed(connection, commit)
        assert len(await call) == 2
        connection.send(m.Unblocked(queue="a"), m.Unblocked(queue="b"))  # nothing waits for them any more
        await settle_loop()
        assert broker.idle
        assert client.stats.connects == 2

    with_client(test)


def test_what_waits_behind_a_queue_that_blocks_is_given_up_at_the_end_of_its_time() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (message,) = await pulled(broker, client, b"a")
        tx = client.transaction(timeout=0.2)
        tx.publish("full", b"0")
        tx.ack(message)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        connection.send(m.Failed(request=commit.request, code=213, text="wait"))
        with pytest.raises(TransactionTimeout, match="nothing of it was done"):
            await call
        await until(lambda: bool(sent(connection, m.Rollback)))
        connection.send(m.Unblocked(queue="full"))
        await settle_loop()
        assert broker.idle
        assert not message.settled
        assert sent(connection, m.Begin)[0].timeout_ms <= 200

    with_client(test)


def test_a_timeout_says_whether_it_may_still_be_carried_out() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, timeout=0.2, backoff_min=0.001) as client:
            (message,) = await pulled(broker, client, b"a")
            tx = client.transaction()
            tx.ack(message)
            call = await committing(tx)
            connection, commit = await broker.next(m.Commit)
            with pytest.raises(RequestTimeout, match="may still be carried out"):
                await call
            assert message.settled  # who knows
            committed(connection, commit)
            del broker.answers[m.Begin]
            tx = client.transaction()
            tx.publish("q", b"")
            call = await committing(tx)
            with pytest.raises(RequestTimeout, match="Nothing of it was done"):
                await call
            await broker.next(m.Begin)
            tx = client.transaction(timeout=0.05)
            tx.publish("q", b"")
            with pytest.raises(TransactionTimeout):
                await tx.commit()

    with_broker(test)


def test_closing_the_client_ends_a_commit() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url) as client:
            tx = client.transaction()
            tx.publish("q", b"")
            call = await committing(tx)
            await broker.next(m.Commit)
        with pytest.raises(ClientClosed, match="may still be carried out"):
            await call
        tx = client.transaction()
        with pytest.raises(ClientClosed):
            tx.publish("q", b"")

    with_broker(test)


def test_a_cancelled_commit_that_was_sent_is_not_sent_again() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        tx = client.transaction()
        tx.publish("q", b"")
        call = await committing(tx)
        await broker.next(m.Commit)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        broker.connections[0].cut()
        await until(lambda: client.stats.connects == 2)
        await settle_loop()
        assert broker.idle

    with_client(test)


def test_what_is_too_large_is_refused_before_anything_of_it_is_sent() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(frame_bytes_max=2_000, batch_messages_max=10)
        async with vibemq.connect(broker.url) as client:
            tx = client.transaction()
            with pytest.raises(LimitExceeded, match="a message of"):
                tx.publish("q", b"x" * 3_000)
            tx.publish("q", b"x" * 900)
            tx.publish("q", b"x" * 900)
            with pytest.raises(LimitExceeded, match="several transactions"):
                tx.publish("q", b"x" * 900)
            await tx.rollback()
            tx = client.transaction()
            for number in range(100):
                tx.publish(f"q{number}", b"")
            with pytest.raises(LimitExceeded, match="several transactions"):
                await tx.commit()
            assert not [one for one in broker.connections[0].received if isinstance(one, m.Commit)]
            tx = client.transaction()
            tx.publish_many("q", [b""] * 25)
            call = await committing(tx)
            connection, commit = await broker.next(m.Commit)
            assert [one.batch.count for one in commit.publishes] == [10, 10, 5]
            committed(connection, commit)
            assert [one.batch_index for one in await call] == list(range(25))

    with_broker(test)


def test_more_rows_of_acks_than_a_commit_may_have_are_refused() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        messages = await pulled(broker, client, *[b""] * 2_050)
        tx = client.transaction()
        tx.ack_all(messages[::2])
        with pytest.raises(LimitExceeded, match="1024 rows"):
            await tx.commit()
        tx = client.transaction()
        tx.ack_all(messages)
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        assert commit.acks == (m.TransactionAck(1, ((1, 2_051),)),)
        committed(connection, commit)
        await call

    with_client(test)


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        tx = client.transaction()
        tx.publish("q", b"0", key="k")
        wrongs: list[tuple[type[vibemq.VibeMQError], Any]] = [
            (InvalidName, lambda: tx.publish(" q", b"")),
            (UsageError, lambda: tx.publish("q", "text")),  # type: ignore[arg-type]
            (UsageError, lambda: tx.publish_many("q", [b"", "text"])),  # type: ignore[list-item]
            (UsageError, lambda: tx.publish_many("q", [b"", b""], keys=["a"])),
            (UsageError, lambda: tx.publish("q", b"", dedup_id="")),
            (UsageError, lambda: tx.publish("q", b"", delay=-1)),
            (vibemq.VibeMQError, lambda: tx.publish_many("q", [b"", b""], headers=[None, {"k": []}])),  # type: ignore[dict-item]
        ]
        for error, wrong in wrongs:
            with pytest.raises(error):
                wrong()
        call = await committing(tx)
        connection, commit = await broker.next(m.Commit)
        assert [one.batch.bodies() for one in commit.publishes] == [[b"0"]]
        committed(connection, commit)
        await call
        for timeout in (0, -1, "soon"):
            with pytest.raises(UsageError, match="timeout"):
                client.transaction(timeout)

    with_client(test)

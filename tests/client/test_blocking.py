"""Queues that block: what is published to them waits, in order, and holds up nothing else."""

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vibemq
from tests.client.fake_broker import FakeBroker, FakeConnection, settle_loop, until, welcome, with_broker, with_client
from vibemq.client import Client
from vibemq.errors import ClientClosed, QueueFull, RequestTimeout
from vibemq.protocol import messages as m

Call = asyncio.Task[vibemq.Receipt]


def publish(client: Client, queue: str, body: bytes) -> Call:
    return asyncio.create_task(client.publish(queue, body))


def refuse(connection: FakeConnection, command: m.Publish) -> None:
    connection.send(m.Failed(request=command.request, code=213, text=f"queue {command.queue!r} is full"))


async def refused(broker: FakeBroker, client: Client, queue: str, *bodies: bytes) -> list[Call]:
    """Publish a batch for each body, and have all of them refused."""
    calls = []
    for body in bodies:
        calls.append(publish(client, queue, body))
        await asyncio.sleep(0)
    taken = [await broker.next(m.Publish) for _ in bodies]
    for connection, command in taken:
        refuse(connection, command)
    await settle_loop()
    return calls


def test_what_is_refused_is_sent_again_in_order_and_before_what_came_later() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = await refused(broker, client, "q", b"0", b"1")
        calls += [publish(client, "q", b"2")]
        await settle_loop()
        assert broker.idle
        assert not any(call.done() for call in calls)
        broker.connections[0].send(m.Unblocked(queue="q"))
        again = [(await broker.next(m.Publish))[1] for _ in range(3)]
        assert [(one.sequence, one.oldest, one.batch.bodies()) for one in again] == [
            *((1, 1, [b"0"]), (2, 1, [b"1"]), (3, 1, [b"2"]))
        ]
        for command in again:
            broker.connections[0].confirm(command, 9, command.sequence)
        assert [receipt.sequence for receipt in await asyncio.gather(*calls)] == [1, 2, 3]
        assert client.stats.publishes_blocked == 3
        assert client.stats.batches_resent == 0

    with_client(test)


def test_other_queues_go_on_and_the_window_is_theirs() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(publish_window_batches=1)
        async with vibemq.connect(broker.url) as client:
            (held,) = await refused(broker, client, "full", b"x")
            free = publish(client, "free", b"y")
            connection, command = await broker.next(m.Publish)
            assert (command.queue, command.oldest) == ("free", 1)  # what is held may still be sent again
            connection.confirm(command, 1, 1)
            await free
            topic = asyncio.create_task(client.publish_topic("full", b"z"))  # a topic of that name is no queue
            connection, command = await broker.next(m.Publish)
            assert command.to_topic
            connection.confirm(command, 2, 0)
            await topic
            connection.send(m.Unblocked(queue="full"))
            connection, command = await broker.next(m.Publish)
            connection.confirm(command, 3, 1)
            await held

    with_broker(test)


def test_what_was_on_its_way_when_the_queue_opened_does_not_overtake() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = [publish(client, "q", b"0")]
        await asyncio.sleep(0)
        calls.append(publish(client, "q", b"1"))
        connection, zero = await broker.next(m.Publish)
        _, one = await broker.next(m.Publish)
        refuse(connection, zero)
        connection.send(m.Unblocked(queue="q"))
        connection, again = await broker.next(m.Publish)
        assert again.sequence == zero.sequence
        refuse(connection, one)
        refuse(connection, again)
        await settle_loop()
        assert broker.idle
        connection.send(m.Unblocked(queue="q"))
        for expected in (zero, one):
            connection, command = await broker.next(m.Publish)
            assert command.sequence == expected.sequence
            connection.confirm(command, 1, 1)
        await asyncio.gather(*calls)
        assert client.stats.publishes_blocked == 2

    with_client(test)


def test_what_is_held_survives_a_reconnect_as_a_new_batch() -> None:
    """The broker stored none of it, and may have forgotten that it knows the sequence."""

    async def test(broker: FakeBroker, client: Client) -> None:
        held = await refused(broker, client, "q", b"held")
        flying = publish(client, "other", b"flying")
        connection, first = await broker.next(m.Publish)
        assert first.sequence == 2
        connection.cut()
        sent = [(await broker.next(m.Publish))[1] for _ in range(2)]
        assert [(one.batch.bodies(), one.sequence, one.oldest) for one in sent] == [
            ([b"held"], 3, 2),
            ([b"flying"], 2, 2),
        ]
        for command in sent:
            broker.connections[1].confirm(command, 1, 1)
        await asyncio.gather(*held, flying)

    with_client(test)


def test_a_timeout_says_that_the_queue_is_full_and_nothing_was_stored() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, timeout=0.1, pending_messages_max=2) as client:
            held = publish(client, "q", b"held")
            connection, command = await broker.next(m.Publish)
            refuse(connection, command)
            await settle_loop()
            behind, no_room = publish(client, "q", b"behind"), publish(client, "q", b"no room")
            for call in (held, behind):
                with pytest.raises(RequestTimeout, match=r"the queue 'q' is full.* not stored"):
                    await call
            with pytest.raises(RequestTimeout):
                await no_room
            await client.flush()
            # What was given up is not waited for by the broker, and the queue is still blocked.
            late = publish(client, "q", b"late")
            await settle_loop()
            assert broker.idle
            connection.send(m.Unblocked(queue="q"))
            connection, command = await broker.next(m.Publish)
            assert command.batch.bodies() == [b"late"]
            assert command.oldest == command.sequence
            connection.confirm(command, 1, 1)
            await late

    with_broker(test)


def test_who_finds_no_room_is_told_which_queue_takes_it() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url, timeout=0.1, pending_messages_max=1) as client:
            calls = [publish(client, "q", b"held")]
            refuse(*await broker.next(m.Publish))
            calls += [publish(client, "q", b"next"), publish(client, "other", b"no room")]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, RequestTimeout) for result in results)
            assert "no room" in str(results[2])
            assert str(results[2]).endswith("Full, or taking no more for now: 'q'.")

    with_broker(test)


def test_flush_waits_for_what_is_held() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        (held,) = await refused(broker, client, "q", b"held")
        free = publish(client, "free", b"")
        flush = asyncio.create_task(client.flush())
        connection, command = await broker.next(m.Publish)
        connection.confirm(command, 1, 1)
        await free
        await settle_loop()
        assert not flush.done()
        connection.send(m.Unblocked(queue="q"))
        connection, command = await broker.next(m.Publish)
        connection.confirm(command, 2, 1)
        await asyncio.gather(flush, held)

    with_client(test)


def test_closing_fails_what_is_held() -> None:
    async def test(broker: FakeBroker) -> None:
        async with vibemq.connect(broker.url) as client:
            (held,) = await refused(broker, client, "q", b"held")
        with pytest.raises(ClientClosed, match="it was not"):
            await held

    with_broker(test)


def test_a_batch_that_can_never_fit_fails_and_frees_those_behind() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        large, small = await refused(broker, client, "q", b"large", b"small")
        broker.connections[0].send(m.Unblocked(queue="nobody's"), m.Unblocked(queue="q"))
        connection, first = await broker.next(m.Publish)
        _, second = await broker.next(m.Publish)
        connection.send(m.Failed(request=first.request, code=206, text="can never fit"))
        connection.confirm(second, 1, 1)
        with pytest.raises(QueueFull):
            await large
        await small

    with_client(test)


class Blocking:
    """What a broker does with queues that block, as docs/protocol.md has it."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.full: set[str] = set()
        self.stored: dict[str, list[bytes]] = defaultdict(list)
        self.known: dict[int, bytes] = {}
        self.refused: dict[FakeConnection, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.waiting: dict[FakeConnection, set[str]] = defaultdict(set)

    async def take(self, *, answer: bool = True) -> None:
        """Decide on the next publish; without an answer the connection breaks instead."""
        connection, command = await self.broker.next(m.Publish)
        assert command.oldest <= command.sequence
        if connection.lost:
            return
        queue, sequence, (body,) = command.queue, command.sequence, command.batch.bodies()
        for other, queues in self.refused.items():
            assert other is connection or all(sequence not in refused for refused in queues.values()), "by now too old"
        refused = [one for one in self.refused[connection][queue] if one >= command.oldest]
        if sequence in self.known:
            assert self.known[sequence] == body, "another batch under the same sequence"
        elif queue in self.full or (refused and refused[0] != sequence):
            refused = sorted({*refused, sequence})
            refuse(connection, command)
            self.waiting[connection].add(queue)
        else:
            refused = refused[1:]
            self.known[sequence] = body
            self.stored[queue].append(body)
        self.refused[connection][queue] = refused
        if not answer:
            connection.cut()
        elif sequence in self.known:
            connection.confirm(command, 0, 1)
        self.open(queue, self.full & {queue})

    def open(self, queue: str, full: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Tell who waits that the queue takes more, if it does."""
        self.full = (self.full - {queue}) | full
        for connection, queues in self.waiting.items():
            if queue in queues and queue not in self.full:
                queues.discard(queue)
                if not connection.lost:
                    connection.send(m.Unblocked(queue=queue))


STEPS = ["publish a", "publish a", "publish b", "fill a", "fill b", "open a", "open b", "take", "take", "lose", "cut"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(STEPS), max_size=40), st.integers(1, 4))
def test_whatever_blocks_and_breaks_everything_is_stored_once_and_in_order(script: list[str], window: int) -> None:
    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(publish_window_batches=window)
        model = Blocking(broker)
        published: dict[str, list[bytes]] = defaultdict(list)
        calls: list[Call] = []
        async with vibemq.connect(broker.url, backoff_min=0.001, backoff_max=0.001) as client:
            for step in script:
                verb, _, queue = step.partition(" ")
                if verb == "publish":
                    body = b"%d" % len(calls)
                    published[queue].append(body)
                    calls.append(publish(client, queue, body))
                elif verb == "fill":
                    model.full.add(queue)
                elif verb == "open":
                    model.open(queue)
                elif verb == "cut":
                    broker.connections[-1].cut()
                elif not broker.idle:
                    await model.take(answer=verb == "take")
                await asyncio.sleep(0.002)
            model.open("a")
            model.open("b")
            while not all(call.done() for call in calls):
                if not broker.idle:
                    await model.take()
                await asyncio.sleep(0.001)
            await asyncio.gather(*calls)
        assert model.stored == published

    with_broker(test)


def test_many_held_batches_cost_little_each_time_some_are_let_through() -> None:
    """A queue that takes one batch at a time must not have all that waits sent each time."""

    async def test(broker: FakeBroker) -> None:
        broker.greeting = welcome(publish_window_batches=4)
        async with vibemq.connect(broker.url) as client:
            calls = await refused(broker, client, "q", b"0")
            calls += [asyncio.create_task(client.publish("q", b"%d" % n)) for n in range(1, 3)]
            many = [asyncio.create_task(client.publish_many("q", [b"%d" % n])) for n in range(3, 40)]
            await settle_loop()
            broker.connections[0].send(m.Unblocked(queue="q"))
            await until(lambda: broker.waiting.qsize() == 4)
            await settle_loop()
            assert broker.waiting.qsize() == 4
            for _ in range(4):
                refuse(*await broker.next(m.Publish))
            await settle_loop()
            assert broker.idle
            broker.connections[0].send(m.Unblocked(queue="q"))
            bodies: list[bytes] = []
            while len(bodies) < 40:
                connection, command = await broker.next(m.Publish)
                bodies += command.batch.bodies()
                connection.confirm(command, 1, 1)
            assert bodies == [b"%d" % n for n in range(40)]
            await asyncio.gather(*calls, *many)

    with_broker(test)

"""Delays, due times and dedup ids: what travels, and what a receipt says."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vibemq
from tests.client.fake_broker import FakeBroker, FakeConnection, until, welcome, with_broker, with_client
from tests.client.test_routes import together
from vibemq.client import Client
from vibemq.client.outgoing import Route, receipts_of
from vibemq.durations import DURATION_MS_MAX
from vibemq.errors import InvalidRequest, QueueFull, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import HASH_BYTES, NUMBER_MAX
from vibemq.protocol.keys import dedup_hash

NONE = bytes(HASH_BYTES)


def test_what_waits_as_long_is_one_batch_and_the_receipt_says_until_when() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(
            client.publish("q", b"0", delay="5m"),
            client.publish("q", b"1"),
            client.publish("q", b"2", delay=300),
            client.publish("q", b"3", deliver_at=datetime(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
            client.publish("q", b"4", deliver_at=1_893_456_000),
            client.publish_topic("t", b"5", delay=1.5),
        )
        got = []
        for _ in range(4):
            connection, publish = await broker.next(m.Publish)
            got.append((publish.queue, publish.delay_ms, publish.due_us, publish.batch.bodies()))
            waits = publish.delay_ms or publish.due_us
            due_us = publish.due_us or (waits and 2_000_000)
            connection.confirm(publish, publish.sequence, 0 if waits else 9, due_us=due_us)
        assert got == [
            ("q", 300_000, 0, [b"0", b"2"]),
            ("q", 0, 0, [b"1"]),
            ("q", 0, 1_893_456_000_000_000, [b"3", b"4"]),
            ("t", 1_500, 0, [b"5"]),
        ]
        receipts = await asyncio.gather(*calls)
        assert [one.sequence for one in receipts] == [0, 9, 0, 0, 0, 0]
        assert receipts[1].due_at is None
        assert receipts[2].due_at == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
        assert receipts[3].due_at == datetime(2030, 1, 1, tzinfo=UTC)
        assert not any(one.duplicate or one.dropped for one in receipts)

    with_client(test)


def test_there_is_no_longest_delay_and_what_is_past_is_due_at_once() -> None:
    assert Route.of("q", delay=10**30) == Route("q", delay_ms=NUMBER_MAX // 1_000)
    assert Route.of("q", delay="100000d").delay_ms == 100_000 * 86_400_000 > DURATION_MS_MAX
    assert Route.of("q", deliver_at=1e300).due_us == NUMBER_MAX
    assert Route.of("q", deliver_at=0).due_us == 1
    assert Route.of("q", delay=0) == Route("q")
    assert vibemq.Receipt("q", 0, 1, 0, duplicate=False, due_us=NUMBER_MAX).due_at == datetime.max.replace(tzinfo=UTC)


def test_what_cannot_be_is_refused_before_anything_is_sent() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        for delay in (-1, "soon", float("nan"), float("inf")):
            with pytest.raises(UsageError, match="delay"):
                await client.publish("q", b"", delay=delay)
        for moment in (-1, float("nan"), True, "tomorrow", datetime(2030, 1, 1)):  # noqa: DTZ001 - that is the mistake
            with pytest.raises(UsageError, match="deliver_at"):
                await client.publish_many("q", [b""], deliver_at=moment)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="one of them"):
            await client.publish_topic("t", b"", delay=1, deliver_at=1)
        for dedup_id in ("", 7):
            with pytest.raises(UsageError, match="dedup_id"):
                await client.publish("q", b"", dedup_id=dedup_id)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="dedup_id"):
                await client.publish_many("q", [b""], dedup_ids=[dedup_id])  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match="surrogates"):
            await client.publish("q", b"", dedup_id="\ud800")
        with pytest.raises(UsageError, match="dedup_ids for 1"):
            await client.publish_many("q", [b"", b""], dedup_ids=["a"])
        assert broker.idle

    with_client(test)


def test_a_batch_that_is_sent_again_asks_for_what_is_left_of_its_delay() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(client.publish("q", b"", delay=100), client.publish("q", b"", delay=0.02))
        sent = {}
        for _ in calls:
            _, publish = await broker.next(m.Publish)
            sent[publish.sequence] = publish.delay_ms
        assert sent[1] == 100_000
        assert 0 < sent[2] <= 20
        await asyncio.sleep(0.03)
        broker.connections[0].cut()
        for _ in calls:
            connection, publish = await broker.next(m.Publish)
            assert publish.delay_ms <= max(0, sent[publish.sequence] - 30)
            assert publish.delay_ms > 50_000 or publish.sequence == 2
            connection.confirm(publish, 1, 0, due_us=5, duplicate=True)
        receipts = await asyncio.gather(*calls)
        assert [(one.duplicate, one.duplicate_of, one.due_us) for one in receipts] == [(True, None, 5)] * 2

    with_client(test)


def test_ids_ride_with_their_messages_and_a_receipt_names_the_one_that_is_there() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        calls = together(
            client.publish("q", b"0"),
            client.publish("q", b"1", dedup_id="a"),
            client.publish("q", b"x" * (1 << 25), dedup_id="too large"),
            client.publish("q", b"2", headers={"n": 1}),
            client.publish("q", b"3", key="k", dedup_id="b"),
        )
        connection, publish = await broker.next(m.Publish)
        assert publish.batch.bodies() == [b"0", b"1", b"2", b"3"]
        assert publish.dedup == NONE + dedup_hash("a") + NONE + dedup_hash("b")
        assert list(publish.batch.headers()) == [{}, {}, {"n": 1}, {"key": "k"}]
        connection.confirm(publish, 7, 5, duplicates=((1, 3, 4),))
        receipts = await asyncio.gather(*calls[:2], *calls[3:])
        assert isinstance((await asyncio.gather(calls[2], return_exceptions=True))[0], vibemq.VibeMQError)
        assert [(one.id, one.sequence, one.duplicate, one.duplicate_of) for one in receipts] == [
            ("7-0", 5, False, None),
            ("3-4", 0, True, "3-4"),
            ("7-1", 6, False, None),
            ("7-2", 7, False, None),
        ]
        many = asyncio.create_task(client.publish_many("q", [b"0", b"1"], dedup_ids=[None, "a"], delay=1))
        connection, publish = await broker.next(m.Publish)
        assert publish.dedup == NONE + dedup_hash("a")
        connection.confirm(publish, 8, 0, due_us=9, duplicates=((1, 3, 4),))
        assert [(one.id, one.due_us) for one in await many] == [("8-0", 9), ("3-4", 0)]
        nobody = asyncio.create_task(client.publish_many("q", [b"0"], dedup_ids=[None]))
        connection, publish = await broker.next(m.Publish)
        assert publish.dedup == b""
        connection.confirm(publish, 9, 9)
        await nobody

    with_client(test)


def test_batches_with_ids_keep_to_the_limits_of_a_frame() -> None:
    async def test(broker: FakeBroker) -> None:
        broker.answers[m.Publish] = lambda publish: m.Confirmed(request=publish.request, offset=0, sequence=1)
        broker.greeting = welcome(frame_bytes_max=1_000)
        async with vibemq.connect(broker.url) as client:
            many = await client.publish_many(
                "q", [b"x" * 50] * 40, keys=["k"] * 40, ttl=1, delay=1, dedup_ids=[str(n) for n in range(40)]
            )
            await asyncio.gather(*(client.publish("q", b"x" * 50, key="k", dedup_id=str(n)) for n in range(40)))
            assert len(many) == 40
        publishes = [one for one in broker.connections[0].received if isinstance(one, m.Publish)]
        hashes = [one.dedup[at : at + 16] for one in publishes for at in range(0, len(one.dedup), 16)]
        assert hashes == [dedup_hash(str(n)) for n in range(40)] * 2
        assert all(len(one.batch.data) + len(one.dedup) + 50 <= 1_000 for one in publishes)
        assert max(one.batch.count for one in publishes) > 5

    with_broker(test)


class Queue:
    """A queue that has room for so many messages, and knows ids."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.stored: list[bytes] = []
        self.known: dict[bytes, tuple[int, int]] = {}

    def take(self, connection: FakeConnection, command: m.Publish) -> None:
        known, new = dict(self.known), list[bytes]()
        duplicates: list[tuple[int, int, int]] = []
        for at, body in enumerate(command.batch.bodies()):
            hashed = command.dedup[at * HASH_BYTES : (at + 1) * HASH_BYTES]
            if hashed in known:
                duplicates.append((at, *known[hashed]))
                continue
            if any(hashed):
                known[hashed] = (command.sequence, len(new))
            new.append(body)
        if len(self.stored) + len(new) > self.room:
            connection.send(m.Failed(request=command.request, code=206, text="full"))
            return
        connection.confirm(command, command.sequence, len(self.stored) + 1, duplicates=tuple(duplicates))
        self.stored += new
        self.known = known


@given(st.lists(st.sampled_from("abcdefg-"), min_size=4, max_size=20), st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_ids_stay_with_their_messages_when_a_batch_is_sent_in_parts(ids: list[str], room: int) -> None:
    """Up to the first that finds no room each call has the answer that it would have had alone."""

    async def test(broker: FakeBroker, client: Client) -> None:
        queue = Queue(room)
        calls = together(
            *(client.publish("q", b"%d" % n, dedup_id=None if one == "-" else one) for n, one in enumerate(ids))
        )
        while True:
            await until(lambda: not broker.idle or all(call.done() for call in calls))
            if broker.idle:
                break
            queue.take(*await broker.next(m.Publish))
        results = await asyncio.gather(*calls, return_exceptions=True)
        wanted: list[bytes] = []
        first: dict[str, str] = {}
        for number, (one, result) in enumerate(zip(ids, results, strict=True)):
            if one in first and not isinstance(results[number - 1], QueueFull):
                assert isinstance(result, vibemq.Receipt)
                assert result.duplicate_of == result.id == first[one]
            elif len(wanted) < room:
                wanted.append(b"%d" % number)
                assert isinstance(result, vibemq.Receipt)
                assert (result.duplicate, result.sequence) == (False, len(wanted))
                first |= {one: result.id} if one != "-" else {}
            else:
                assert isinstance(result, QueueFull)
        assert queue.stored == wanted

    with_client(test)


@given(st.lists(st.sampled_from("sdx"), min_size=1), st.integers(0, 3), st.booleans())
def test_a_receipt_tells_what_became_of_its_message_and_no_other(kinds: list[str], first: int, later: bool) -> None:
    """Stored, dropped and duplicate messages, in the order in which a broker makes them: what is dropped is last."""
    kinds = [one for one in kinds if one != "d"] + ["x" if at % 3 else "d" for at in range(kinds.count("d"))]
    last = max((at for at, one in enumerate(kinds) if one == "s"), default=-1)
    kinds = ["s" if one == "d" and at < last else one for at, one in enumerate(kinds)]
    answer = m.Stored(
        first,
        0 if later else 50,
        kinds.count("d"),
        77 if later else 0,
        tuple((at, 3, at) for at, one in enumerate(kinds) if one == "x"),
    )
    receipts = list(receipts_of(Route("q"), len(kinds), 9, answer, first, duplicate=False))
    stored = [one for one, kind in zip(receipts, kinds, strict=True) if kind == "s"]
    assert [one.id for one in stored] == [f"9-{first + at}" for at in range(len(stored))]
    assert [one.sequence for one in stored] == [0 if later else 50 + at for at in range(len(stored))]
    assert all(one.due_us == answer.due_us for one in stored)
    for at, (one, kind) in enumerate(zip(receipts, kinds, strict=True)):
        assert (one.dropped, one.duplicate_of) == (kind == "d", f"3-{at}" if kind == "x" else None)

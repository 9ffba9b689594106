"""Dead letters: what is told of them, and redriving all of them, some, or slowly."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.client.fake_broker import FakeBroker, with_client
from vibemq.client import Client, Redriven
from vibemq.errors import ConnectionLost, QueueFull, UnknownQueue, UsageError
from vibemq.protocol import messages as m


class Letters:
    """Answers Redrive as a broker with `count` dead letters that pass every filter."""

    def __init__(self, broker: FakeBroker, count: int) -> None:
        self.left = count
        self.asked: list[m.Redrive] = []
        broker.answers[m.Redrive] = self.answer

    def answer(self, command: m.Redrive) -> m.Reply:
        self.asked.append(command)
        moved = min(self.left, command.count)
        self.left -= moved
        result = {
            "count": moved,
            "next": command.start + moved if self.left else 0,
            "targets": {"orders": moved} if moved else {},
        }
        return m.Done(request=command.request, result=result)


def test_a_dead_letter_tells_why_it_is_one() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        facts = {"sequence": 3, "attempt": 6, "redelivered": True, "headers": {}, "id": "1-0", "body": b"x"}
        facts |= {"published_at_us": 0}
        dead = {"reason": "max-attempts", "queue": "orders", "attempts": 5, "error": "no stock"}
        dead |= {"at": "2026-01-01T00:00:00.000001Z"}
        gone = {**dead, "queue": None}
        looking = asyncio.create_task(
            client.dead_letters(
                "orders",
                start=2,
                count=9,
                reason="max-attempts",
                source="orders",
                error="stock",
                since=datetime(1970, 1, 2, tzinfo=UTC),
                until=datetime(1970, 1, 3, tzinfo=UTC),
            )
        )
        connection, asked = await broker.next(m.DeadLetters)
        assert asked == m.DeadLetters(
            request=asked.request,
            queue="orders",
            start=2,
            count=9,
            reason="max-attempts",
            source="orders",
            error="stock",
            since_us=86_400_000_000,
            until_us=2 * 86_400_000_000,
        )
        result = [{**facts, "queue": "orders.dlq", "dead": dead}, {**facts, "queue": "orders.dlq", "dead": gone}]
        connection.send(m.Done(request=asked.request, result=result))
        letter, other = await looking
        assert (letter.body, letter.id, letter.sequence, letter.attempt) == (b"x", "1-0", 3, 6)
        assert letter.queue == "orders.dlq", "where the sequence counts, whatever was asked for"
        assert (letter.reason, letter.source, letter.attempts, letter.error) == (
            *("max-attempts", "orders", 5, "no stock"),
        )
        assert letter.dead_at == datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        assert other.source is None
        with pytest.raises(UsageError, match=r"since.*time zone"):
            await client.dead_letters("orders", since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
        with pytest.raises(UsageError, match=r"until.*before 1970"):
            await client.dead_letters("orders", until=datetime(1, 1, 1, tzinfo=UTC))

    with_client(test)


def test_a_redrive_goes_on_until_nothing_is_left() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        letters, seen = Letters(broker, 2_500), list[Redriven]()
        done = await client.redrive("orders.dlq", to="retry", reason="expired", on_progress=seen.append)
        assert done == Redriven(2_500, {"orders": 2_500})
        assert [one.moved for one in seen] == [1_000, 2_000, 2_500]
        assert [(one.start, one.count, one.target, one.reason) for one in letters.asked] == [
            (0, 1_000, "retry", "expired"),
            (1_000, 1_000, "retry", "expired"),
            (2_000, 1_000, "retry", "expired"),
        ]
        assert await client.redrive("orders.dlq") == Redriven()

    with_client(test)


def test_a_redrive_ends_where_the_dead_letters_ended_when_it_began() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        asked = list[m.Redrive]()

        def answer(command: m.Redrive) -> m.Reply:
            asked.append(command)
            end = command.end or 2_001
            following = command.start + 1_000 if command.start + 1_000 < end else 0
            result = {"count": 1_000, "next": following, "end": end, "targets": {"orders": 1_000}, "homeless": 0}
            return m.Done(request=command.request, result=result)

        broker.answers[m.Redrive] = answer
        assert (await client.redrive("orders.dlq", start=1)).moved == 2_000
        assert [(one.start, one.end) for one in asked] == [(1, 0), (1_001, 2_001)]

    with_client(test)


def test_a_redrive_of_some_sequences_asks_for_no_others() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        letters = Letters(broker, 1_500)
        assert (await client.redrive("orders.dlq", start=7, end=1_507)).moved == 1_500
        assert [(one.start, one.end) for one in letters.asked] == [(7, 1_507), (1_007, 1_507)]
        assert await client.redrive("orders.dlq", start=7, end=7) == Redriven()
        assert len(letters.asked) == 2, "nothing lies between them, while 0 would stand for all"

    with_client(test)


def test_what_has_no_queue_to_go_back_to_is_counted() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        answers = iter([(1_000, 1_100, 100), (5, 0, 2)])

        def answer(command: m.Redrive) -> m.Reply:
            moved, following, homeless = next(answers)
            result = {"count": moved, "next": following, "targets": {"orders": moved}, "homeless": homeless}
            return m.Done(request=command.request, result=result)

        broker.answers[m.Redrive] = answer
        assert await client.redrive("graves") == Redriven(1_005, {"orders": 1_005}, 102)

    with_client(test)


def test_a_redrive_moves_no_more_than_it_was_told() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        letters = Letters(broker, 5_000)
        assert (await client.redrive("orders.dlq", count=1_200)).moved == 1_200
        assert [one.count for one in letters.asked] == [1_000, 200]
        assert (await client.redrive("orders.dlq", count=1, dry_run=True)).moved == 1
        assert letters.asked[-1].dry_run
        wrong: list[dict[str, Any]] = [{"count": 0}, {"rate": 0}, {"rate": -1.0}, {"rate": float("nan")}]
        for one in wrong:
            with pytest.raises(UsageError, match=next(iter(one))):
                await client.redrive("orders.dlq", **one)

    with_client(test)


def test_a_redrive_keeps_to_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        letters, pauses = Letters(broker, 25), list[float]()
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(0)

        monkeypatch.setattr("vibemq.client.dead_letters.asyncio.sleep", pause)
        assert (await client.redrive("orders.dlq", rate=100)).moved == 25
        monkeypatch.undo()
        assert [one.count for one in letters.asked] == [10, 10, 10]
        assert len(pauses) == 2
        letters.left, pauses[:] = 3, []
        monkeypatch.setattr("vibemq.client.dead_letters.asyncio.sleep", pause)
        await client.redrive("orders.dlq", rate=0.001)
        monkeypatch.undo()
        assert [round(seconds, -2) for seconds in pauses] == [1_000, 2_000]  # from the beginning on

    with_client(test)


def test_a_redrive_that_stops_half_way_says_how_far_it_came() -> None:
    async def test(broker: FakeBroker, client: Client) -> None:
        redriving = asyncio.create_task(client.redrive("orders.dlq"))
        connection, asked = await broker.next(m.Redrive)
        result = {"count": 7, "next": 8, "targets": {"orders": 7}}
        connection.send(m.Done(request=asked.request, result=result))
        connection, asked = await broker.next(m.Redrive)
        connection.send(m.Failed(request=asked.request, code=206, text="queue 'orders' is full"))
        with pytest.raises(QueueFull, match=r"is full \(7 messages were redriven before\)"):
            await redriving
        redriving = asyncio.create_task(client.redrive("orders.dlq"))
        connection, asked = await broker.next(m.Redrive)
        connection.cut()  # whether it was done is not known, and must not be done twice
        with pytest.raises(ConnectionLost, match="not known"):
            await redriving
        broker.answers[m.Redrive] = lambda c: m.Failed(request=c.request, code=201, text="no queue")
        with pytest.raises(UnknownQueue, match=r"no queue$"):
            await client.redrive("orders.dlq")

    with_client(test)

"""What a relay promises, whatever the database: each row once, in order, and no row holds up others for ever."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

import pytest

from tests.outbox.book import Book, BookRelay
from tests.outbox.conftest import Database
from vibemq.errors import InvalidName, QueueFull, RequestTimeout, UsageError, VibeMQError
from vibemq.outbox import Outbox, SqliteOutbox
from vibemq.outbox.postgres import PostgresSession
from vibemq.outbox.rows import Row
from vibemq.outbox.sqlite import SqliteSession
from vibemq.outbox.tables import Batch, Refusal, Run, Session


def test_rows_go_in_order_and_are_gone(database: Database) -> None:
    book = Book()
    database.add(*["a", "b"] * 10)
    relay = BookRelay(database.outbox, book, batch_messages=7)
    assert relay.run_once_sync() == 20
    assert book.bodies == [b"%d" % number for number in range(20)]
    assert relay.run_once_sync() == 0
    status = database.outbox.status()
    assert (status.waiting, status.parked, status.oldest_seconds) == (0, 0, 0)


def test_what_was_rolled_back_is_never_published(database: Database) -> None:
    with closing(database.connect()) as connection:
        database.outbox.add(connection, "a", b"no")
        connection.rollback()
        database.outbox.add(connection.cursor(), "a", b"yes")
        connection.commit()
    book = Book()
    assert BookRelay(database.outbox, book).run_once_sync() == 1
    assert book.bodies == [b"yes"]


def test_all_that_is_said_of_a_message_arrives(database: Database) -> None:
    with closing(database.connect()) as connection:
        outbox = database.outbox
        outbox.add(
            connection,
            "a",
            b"\0\xff",
            headers={"table": 7, "name": "é\0"},
            priority="high",
            ttl="5m",
            key="k",
            deliver_at=1_000,
            dedup_id="d",
        )
        outbox.add_topic(connection, "a.b", b"", headers={"x": None})
        outbox.add_many(connection, "b", [b"1", b"2"], keys=["x", None])
        connection.commit()
    book = Book()
    assert BookRelay(outbox, book).run_once_sync() == 4
    one, two, three, four = book.published
    assert one.body == b"\0\xff"
    assert one.stamped_headers() == {"table": 7, "name": "é\0", "key": "k"}
    assert (one.place, one.priority, one.ttl_ms, one.due_us, one.dedup_id) == (("a", False), 7, 300_000, 10**9, "d")
    assert (two.place, two.body, two.stamped_headers()) == (("a.b", True), b"", {"x": None, "topic": "a.b"})
    assert (three.stamped_headers(), four.stamped_headers()) == ({"key": "x"}, {})


def test_what_never_could_be_published_is_refused_where_it_is_added(database: Database) -> None:
    with closing(database.connect()) as connection:
        outbox: Any = database.outbox
        for error, arguments, options in (
            (InvalidName, (" a", b""), {}),
            (UsageError, ("a", "text"), {}),
            (UsageError, ("a", b""), {"headers": {"x": b"bytes"}}),
            (UsageError, ("a", b""), {"headers": {"x": float("nan")}}),
            (UsageError, ("a", b""), {"priority": 10}),
            (UsageError, ("a", b""), {"key": ""}),
            (UsageError, ("a", b""), {"delay": 1, "deliver_at": 1}),
        ):
            with pytest.raises(error):
                outbox.add(connection, *arguments, **options)
        with pytest.raises(UsageError, match="dedup_id"):
            outbox.add_topic(connection, "a.b", b"", dedup_id="x")
        with pytest.raises(UsageError, match="keys"):
            outbox.add_many(connection, "a", [b""], keys=[])
        with pytest.raises(UsageError, match="neither"):
            outbox.add(object(), "a", b"")
        connection.commit()
    assert database.outbox.status().waiting == 0


def test_batches_are_bounded_by_bytes(database: Database) -> None:
    with closing(database.connect()) as connection:
        database.outbox.add_many(connection, "a", [b"x" * 400] * 5 + [b"x" * 5_000])
        connection.commit()
    book = Book()
    assert BookRelay(database.outbox, book, batch_bytes=1_000).run_once_sync() == 6
    assert book.commits == 4  # 2 + 2 + 1, and what is alone above the bound


# --- rows that are refused -------------------------------------------------------------------------------------------


def refusing(queue: str, error: VibeMQError) -> Callable[[Row], VibeMQError | None]:
    """Refuses what goes to a queue."""
    return lambda row: error if row.queue == queue else None


def test_a_row_that_never_can_be_published_is_parked_and_the_others_go_on(database: Database) -> None:
    book = Book()
    book.refuse = refusing("bad", InvalidName("no such name"))
    database.add(*["a"] * 5, "bad", *["a"] * 5)
    relay = BookRelay(database.outbox, book)
    assert relay.run_once_sync() == 10
    assert (relay.published, relay.parked) == (10, 1)
    assert book.bodies == [b"%d" % number for number in range(11) if number != 5]
    (parked,) = database.outbox.status().parked_rows
    assert (parked.queue, parked.error) == ("bad", "InvalidName: no such name")
    assert relay.run_once_sync() == 0
    book.refuse = lambda _: None
    assert (database.outbox.retry([99_999]), database.outbox.retry()) == (0, 1)
    assert relay.run_once_sync() == 1
    assert book.bodies[-1] == b"5"


def test_a_queue_that_refuses_waits_in_order_and_the_others_go_on(database: Database) -> None:
    book = Book()
    book.refuse = refusing("full", QueueFull("full"))
    database.add("a", "full", "b", "full", "full", "a")
    relay = BookRelay(database.outbox, book)
    assert relay.run_once_sync() == 3
    assert book.bodies == [b"0", b"2", b"5"]
    status = database.outbox.status()
    assert (status.waiting, status.refused, status.parked) == (3, 1, 0)
    book.refuse = lambda _: None
    assert BookRelay(database.outbox, book).run_once_sync() == 3
    assert book.bodies[3:] == [b"1", b"3", b"4"]


def test_a_queue_that_refuses_is_tried_again_with_one_row(database: Database) -> None:
    book = Book()
    book.refuse = refusing("full", QueueFull("full"))
    database.add(*["full"] * 8, "a")

    async def run() -> None:
        relay = BookRelay(database.outbox, book)
        now = 1_000.0
        relay._now = lambda: now  # type: ignore[method-assign]
        assert await relay.run_once() == 1
        before = book.commits
        now += 1.0
        assert await relay.run_once() == 0
        assert book.commits == before + 2  # it, and nothing in its place
        book.refuse = lambda _: None
        now += 1.0
        assert await relay.run_once() == 0, "the second pause is longer"
        now += 1.0
        assert await relay.run_once() == 8

    asyncio.run(run())


def test_what_is_refused_for_too_long_is_parked(database: Database) -> None:
    book = Book()
    book.refuse = refusing("full", QueueFull("full"))
    database.add("full", "full", "a")
    relay = BookRelay(database.outbox, book, park_after=0)
    assert relay.run_once_sync() == 1
    assert (relay.parked, database.outbox.status().parked) == (2, 2)


# --- crashes, at every step, and others at the same outbox -----------------------------------------------------------


class Crash(Exception):
    """The process is gone."""


def crashing(step: str) -> Callable[[Database, Book], BookRelay]:
    """A relay that comes as far as one step, and no further."""

    def reached(where: str) -> None:
        if where == step:
            raise Crash

    def relay_of(database: Database, book: Book) -> BookRelay:
        relay = BookRelay(database.outbox, book, batch_messages=4)

        kind: Any = SqliteSession if isinstance(database.outbox, SqliteOutbox) else PostgresSession

        class Dying(kind):  # type: ignore[misc] # whichever it is
            def take(self, *args: Any) -> Batch | None:  # noqa: ANN401 - those of Session
                batch: Batch | None = super().take(*args)
                reached("marked")
                return batch

            def settle(self, batch: Batch) -> None:
                reached("sent")
                super().settle(batch)
                reached("settled")

            def release(self, batch: Batch, refusal: Refusal | None = None) -> None:
                reached("voided")
                super().release(batch, refusal)
                reached("released")

            def _end(self, run: Run, batch: Batch) -> bool:
                ended: bool = super()._end(run, batch)
                reached("deleting")
                return ended

        relay._outbox = _Of(database.outbox, lambda: Dying(database.outbox))  # type: ignore[assignment]
        return relay

    return relay_of


class _Of:
    """An outbox with sessions of another kind."""

    def __init__(self, outbox: Outbox, session: Callable[[], Session]) -> None:
        self.session, self.problems = session, outbox.problems


STEPS: Final = ("marked", "sent", "deleting", "settled", "voided", "released")


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_loses_nothing_and_publishes_nothing_twice(database: Database, step: str) -> None:
    book = Book()
    book.refuse = refusing("bad", InvalidName("no"))
    database.add("a", "b", "bad", "a", "b", "a", "a", "b", "b", "a")
    for _ in range(30):
        try:
            crashing(step)(database, book).run_once_sync()
        except Crash:
            continue
    BookRelay(database.outbox, book).run_once_sync()
    assert book.bodies == [b"%d" % number for number in range(10) if number != 2]
    status = database.outbox.status()
    assert (status.waiting, status.parked) == (0, 1)


def test_without_its_mark_a_batch_would_be_published_twice(database: Database) -> None:
    """The crashes above can be noticed: a relay that forgets its batch in between publishes it again."""
    book = Book()
    database.add("a", "b")
    with pytest.raises(Crash):
        crashing("sent")(database, book).run_once_sync()
    database.query("UPDATE TABLE_relay SET row_ids = NULL")
    BookRelay(database.outbox, book).run_once_sync()
    assert book.bodies == [b"0", b"1", b"0", b"1"]


def test_an_unknown_outcome_is_tried_again_as_the_same_number(database: Database) -> None:
    class Late(Book):
        async def commit(self, number: int, rows: Sequence[Row]) -> bool:
            await super().commit(number, rows)
            if self.commits == 1:
                raise RequestTimeout("no answer")
            return False

    book = Late()
    database.add("a", "b")
    relay = BookRelay(database.outbox, book)
    with pytest.raises(RequestTimeout):
        relay.run_once_sync()
    relay.run_once_sync()
    assert book.bodies == [b"0", b"1"]


def test_a_relay_that_was_given_up_for_dead_publishes_nothing_twice(database: Database) -> None:
    """It holds a batch that others have voided and sent anew, and wakes up at any moment."""
    book = Book()
    database.add("a", "bad", "a")
    with database.outbox.session() as late:
        old = late.take(10, 1_000)
        assert old is not None
        book.refuse = refusing("bad", InvalidName("no"))
        assert BookRelay(database.outbox, book).run_once_sync() == 2
        with pytest.raises(VibeMQError):
            asyncio.run(book.commit(old.number, old.rows))
        late.settle(old)  # it is not its batch any more
        late.release(old)
    assert book.bodies == [b"0", b"2"]
    assert database.outbox.status().parked == 1


def test_without_voiding_it_would_publish_twice(database: Database) -> None:
    """The one before can fail: a broker that does not keep a voided number takes the old batch later."""

    class Forgetful(Book):
        async def commit(self, number: int, rows: Sequence[Row]) -> bool:
            return await super().commit(number, rows) if rows else False

    book = Forgetful()
    database.add("a", "bad", "a")
    with database.outbox.session() as late:
        old = late.take(10, 1_000)
        assert old is not None
        book.refuse = refusing("bad", InvalidName("no"))
        with database.outbox.session() as other:
            other.release(old)
        book.refuse = lambda _: None
        asyncio.run(book.commit(old.number, old.rows))
        assert BookRelay(database.outbox, book).run_once_sync() == 3
    assert book.bodies == [b"0", b"1", b"2"] * 2


def test_a_voided_number_does_not_count_as_published(database: Database) -> None:
    book = Book()
    database.add("a", "a")
    with database.outbox.session() as session:
        batch = session.take(10, 1_000)
        assert batch is not None
    asyncio.run(book.commit(batch.number, ()))
    relay = BookRelay(database.outbox, book)
    assert relay.run_once_sync() == 2
    assert (book.bodies, relay.parked) == ([b"0", b"1"], 0)


def test_of_two_relays_one_works_and_the_other_takes_over(database: Database) -> None:
    book = Book()

    async def run() -> None:
        relays = [BookRelay(database.outbox, book, batch_messages=3) for _ in range(2)]
        tasks = [asyncio.create_task(relay.run()) for relay in relays]
        for wanted in (100, 200):
            for _ in range(10):
                await asyncio.to_thread(database.add, *["a"] * 10)
            async with asyncio.timeout(30):
                while sum(relay.published for relay in relays) < wanted:  # noqa: ASYNC110 - a thread has no event
                    await asyncio.sleep(0.005)
            (busy, *others) = [relay for relay in relays if relay.published and not relay._stopping]
            assert others == []
            busy.stop()
        for relay in relays:
            relay.stop()
        await asyncio.gather(*tasks)
        assert all(relay.published for relay in relays)
        assert sum(relay.published for relay in relays) == 200

    asyncio.run(run())
    assert len({row.id for row in book.published}) == 200


def test_a_database_from_a_backup_is_noticed_and_loses_nothing(database: Database) -> None:
    book = Book()
    database.add("a", "a")
    with database.outbox.session() as session:
        assert session.take(10, 1_000) is not None
    book.number, book.ids = 1 << 60, (7,)
    with pytest.raises(UsageError, match="backup"):
        BookRelay(database.outbox, book).run_once_sync()
    assert database.outbox.status().waiting == 2
    (producer,) = database.query("SELECT producer FROM TABLE_relay")
    database.outbox.reset()
    assert database.query("SELECT producer FROM TABLE_relay") != [producer]
    assert BookRelay(database.outbox, Book()).run_once_sync() == 2


def test_reset_needs_an_outbox_at_rest(database: Database) -> None:
    with database.outbox.session() as session:
        assert session.lead()
        with pytest.raises(UsageError, match="at work"):
            database.outbox.reset()
    database.outbox.reset()


def test_tables_are_made_once_and_keep_what_is_in_them(database: Database) -> None:
    database.add("a")
    before = database.query("SELECT producer FROM TABLE_relay")
    database.outbox.create()
    assert database.query("SELECT producer FROM TABLE_relay") == before
    assert database.outbox.status().waiting == 1


@pytest.mark.parametrize("table", ["", "1a", "a b", 'a"b', "a.b.c", "a" * 51, "a;"])
def test_a_table_has_a_plain_name(table: str) -> None:
    with pytest.raises(UsageError):
        SqliteOutbox("app.db", table)

"""An outbox in a PostgreSQL database, by way of psycopg 3: the extra `vibemq[postgres]`."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from types import ModuleType
from typing import Any, Final, Unpack

from vibemq.client import Body
from vibemq.client.outgoing import PublishManyOptions, PublishOptions, TopicOptions
from vibemq.errors import NotSupported
from vibemq.outbox.rows import many_values_of, topic_values_of, values_of
from vibemq.outbox.tables import TABLE, Cursor, Outbox, Run, Session, cursor_of, quoted

LOCKS: Final = 0x7662_6D71
"""The class of our advisory locks: "vbmq". Within it the number is the table's own."""


class PostgresOutbox(Outbox):
    """An outbox in a PostgreSQL database."""

    _mark = "%s"

    def __init__(self, dsn: str = "", table: str = TABLE, *, notify: bool = True) -> None:
        """In the database of `dsn`, a connection string or URL of libpq; what it leaves out is in the PG* environment.

        A program that only adds needs none. With `notify`, what add() adds wakes the relay at once; PostgreSQL lets
        transactions that notify commit one after the other, so a program with thousands of them a second does without.

        Raises:
            UsageError: a name that cannot be.
        """
        super().__init__(table)
        self.dsn = dsn
        self.notify = notify

    def __repr__(self) -> str:
        return f"<PostgresOutbox {self.table}>"  # a DSN may have a password

    @cached_property
    def problems(self) -> tuple[type[Exception], ...]:  # type: ignore[override] # known once psycopg is there
        """What psycopg raises."""
        return (psycopg().Error,)

    @property
    def ddl(self) -> str:
        """The statements that make the tables."""
        return f"""
CREATE TABLE IF NOT EXISTS {quoted(self.table)} (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue TEXT NOT NULL,
    to_topic BOOLEAN NOT NULL DEFAULT FALSE,
    body BYTEA NOT NULL,
    headers TEXT,
    priority INTEGER,
    ttl_ms BIGINT,
    message_key TEXT,
    due_us BIGINT,
    dedup_id TEXT,
    added_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    parked BOOLEAN NOT NULL DEFAULT FALSE,
    refused_at TIMESTAMPTZ,
    error TEXT
);
CREATE TABLE IF NOT EXISTS {quoted(self.table + "_relay")} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    producer BIGINT NOT NULL,
    batch BIGINT NOT NULL,
    row_ids TEXT
);
"""

    def session(self) -> "PostgresSession":
        """A connection of a relay's own."""
        return PostgresSession(self)

    # The connection is psycopg's, which is no dependency.

    async def add_async(self, connection: Any, queue: str, body: Body, **options: Unpack[PublishOptions]) -> None:  # noqa: ANN401
        """As add(), over an AsyncConnection or AsyncCursor of psycopg."""
        await cursor_of(connection).execute(self._insert_one, values_of(queue, body, options))

    async def add_topic_async(self, connection: Any, topic: str, body: Body, **options: Unpack[TopicOptions]) -> None:  # noqa: ANN401
        """As add_topic(), over an AsyncConnection or AsyncCursor of psycopg."""
        await cursor_of(connection).execute(self._insert_one, topic_values_of(topic, body, options))

    async def add_many_async(
        self,
        connection: Any,  # noqa: ANN401
        queue: str,
        bodies: Sequence[Body],
        **options: Unpack[PublishManyOptions],
    ) -> None:
        """As add_many(), over an AsyncConnection or AsyncCursor of psycopg."""
        values = many_values_of(queue, bodies, options)
        if values:
            cursor = cursor_of(connection)
            await cursor.executemany(self._insert, values)
            if self.notify:
                await cursor.execute(*self._notification)

    @property
    def _insert_one(self) -> str:
        if not self.notify:
            return self._insert
        # In one statement, which is one round trip. The name was checked: it has no quotes in it.
        return f"WITH added AS ({self._insert} RETURNING id) SELECT pg_notify('{self.table}', '') FROM added"

    @property
    def _notification(self) -> tuple[str, tuple[str]]:
        return "SELECT pg_notify(%s, '')", (self.table,)

    def _announce(self, cursor: Any) -> None:  # noqa: ANN401 - as above
        if self.notify:
            cursor.execute(*self._notification)


class PostgresSession(Session):
    """A relay's connection to a PostgreSQL database. At most one thread may use it at a time."""

    _now = "now()"
    _size = "octet_length(body) + coalesce(octet_length(headers), 0)"

    def __init__(self, outbox: PostgresOutbox) -> None:
        """Connect."""
        super().__init__(outbox)
        self._connection = psycopg().connect(outbox.dsn, autocommit=True, application_name="vibemq outbox")
        # A batch is sent when its number is in the database, and must be there still after a power cut.
        self._connection.execute("SET synchronous_commit = on")
        self._leads = False

    def lead(self) -> bool:
        """Take an advisory lock, which this connection has until it ends."""
        if not self._leads:
            self._leads = self._all("SELECT pg_try_advisory_lock(?, ?::regclass::oid::int)", (LOCKS, self._relay))[0][0]
        return self._leads

    def close(self) -> None:
        """End the connection. The server may notice late, so it is told of the lock before."""
        if self._leads:
            with suppress(psycopg().Error):
                self._connection.execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()

    def wakes(self, wake: Callable[[], None]) -> int:
        """Listen to the notifications that add() sends."""
        self._connection.add_notify_handler(lambda _: wake())
        self._connection.execute(f'LISTEN "{self._table}"')
        number: int = self._connection.fileno()
        return number

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        found: list[Any] = self._run(statement, values).fetchall()
        return found

    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - psycopg is no dependency
        # Without values nothing is replaced, and a % would stay one.
        return self._connection.execute(statement.replace("?", "%s"), values or None)

    @contextmanager
    def _transaction(self) -> Iterator[Run]:
        def run(statement: str, values: Sequence[Any] = ()) -> Cursor:
            cursor: Cursor = self._run(statement, values)
            return cursor

        with self._connection.transaction():
            yield run

    def _ago(self, time: str) -> str:
        return f"extract(epoch FROM now() - {time})::float"

    def _lock_schema(self, run: Run) -> None:
        run("SELECT pg_advisory_xact_lock(?, 0)", (LOCKS,))


def psycopg() -> ModuleType:
    """The driver, which is an extra.

    Raises:
        NotSupported: it is not installed.
    """
    try:
        return importlib.import_module("psycopg")
    except ImportError:
        raise NotSupported(
            "an outbox in PostgreSQL needs the package psycopg: pip install 'vibemq[postgres]'"
        ) from None

"""An outbox in each of the databases: what holds of one holds of the other."""

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.outbox.postgres_server import postgres
from vibemq.outbox import Outbox, PostgresOutbox, SqliteOutbox


class Database(NamedTuple):
    """An outbox with its tables, and a connection of the application's."""

    outbox: Outbox
    connect: Callable[[], Any]

    def add(self, *places: str) -> None:
        """A message for each of these queues, whose body says which it is."""
        with closing(self.connect()) as connection:
            for number, place in enumerate(places):
                self.outbox.add(connection, place, b"%d" % number)
            connection.commit()

    def query(self, statement: str) -> list[Any]:
        """What a statement finds, in which TABLE is the outbox; what it changes is committed."""
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(statement.replace("TABLE", self.outbox.table))
            found = cursor.fetchall() if cursor.description else []
            connection.commit()
        return [tuple(row) for row in found]


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A server that all tests share; each has tables of its own."""
    with postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty outbox."""
    outbox: Outbox
    if request.param == "sqlite":
        path = tmp_path / "app.db"
        outbox = SqliteOutbox(path)
        outbox.create()
        return Database(outbox, lambda: sqlite3.connect(path))
    psycopg = pytest.importorskip("psycopg")
    dsn = request.getfixturevalue("dsn")
    outbox = PostgresOutbox(dsn, table=f"outbox_{uuid.uuid4().hex}")
    outbox.create()
    return Database(outbox, lambda: psycopg.connect(dsn))

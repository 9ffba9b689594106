"""An outbox in a SQLite database."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vibemq.errors import UsageError
from vibemq.outbox.tables import TABLE, Cursor, Outbox, Run, Session, quoted

try:
    import fcntl
except ImportError:  # pragma: no cover - where there is none, several relays do each other's work: slower, not wrong
    fcntl = None  # type: ignore[assignment]

BUSY_SECONDS = 30.0
"""How long a relay waits while the application writes."""


class SqliteOutbox(Outbox):
    """An outbox in the SQLite database at `path`."""

    problems = (sqlite3.Error,)

    def __init__(self, path: str | os.PathLike[str], table: str = TABLE) -> None:
        """In the database at `path`, which a relay opens by itself: it cannot be one that is only in memory.

        Raises:
            UsageError: a name or a path that cannot be.
        """
        super().__init__(table)
        if "." in table:
            raise UsageError(f"table is {table!r}: SQLite has no schemas")
        if os.fspath(path) in {"", ":memory:"}:
            raise UsageError("a database that is only in memory can have no outbox: no relay could read it")
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"<SqliteOutbox {self.table} in {self.path}>"

    @property
    def ddl(self) -> str:
        """The statements that make the tables."""
        return f"""
CREATE TABLE IF NOT EXISTS {quoted(self.table)} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    to_topic BOOLEAN NOT NULL DEFAULT FALSE,
    body BLOB NOT NULL,
    headers TEXT,
    priority INTEGER,
    ttl_ms INTEGER,
    message_key TEXT,
    due_us INTEGER,
    dedup_id TEXT,
    added_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    parked BOOLEAN NOT NULL DEFAULT FALSE,
    refused_at TEXT,
    error TEXT
);
CREATE TABLE IF NOT EXISTS {quoted(self.table + "_relay")} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    producer INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    row_ids TEXT
);
"""

    def session(self) -> "SqliteSession":
        """A connection of a relay's own."""
        return SqliteSession(self)

    def _announce(self, cursor: Any) -> None:  # noqa: ANN401 - as in add()
        """Relays poll: SQLite tells nobody."""


class SqliteSession(Session):
    """A relay's connection to a SQLite database. At most one thread may use it at a time."""

    _now = "CURRENT_TIMESTAMP"
    _size = "length(CAST(body AS BLOB)) + coalesce(length(headers), 0)"

    def __init__(self, outbox: SqliteOutbox) -> None:
        """Open it."""
        super().__init__(outbox)
        # What leads has this file locked. It is not the database itself, which has locks of its own.
        self._lock_path = outbox.path.with_name(f"{outbox.path.name}-{outbox.table}")
        self._lock: IO[bytes] | None = None
        # isolation_level=None: transactions begin where it is written that they do
        self._connection = sqlite3.connect(
            outbox.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # A batch is sent when its number is in the database, and must be there still after a power cut.
        self._connection.execute("PRAGMA synchronous = FULL")

    def lead(self) -> bool:
        """Lock the file beside the database."""
        if self._lock is not None or fcntl is None:
            return True
        file = self._lock_path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._lock = file
        return True

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[Run]:
        def run(statement: str, values: Sequence[Any] = ()) -> Cursor:
            return self._connection.execute(statement, values)

        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield run
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    def _ago(self, time: str) -> str:
        return f"(julianday('now') - julianday({time})) * 86400"

    def wakes(self, wake: Callable[[], None]) -> None:
        """There is nothing to wait for."""

    def _lock_schema(self, run: Run) -> None:
        """Nobody else writes during a transaction."""

"""The two tables of an outbox, and all that is done with them, in the SQL that SQLite and PostgreSQL have in common.

The rows are in the table that the application names. A second one, of the same name with `_relay` behind it, has one
row: the `producer` number under which the broker knows this outbox, and the number and the rows of the batch that is
being published:

    row_ids NULL  --mark: another number, and rows-->  row_ids [7, 8, 9]  --settle: rows deleted-->   row_ids NULL
                                                                          --release: rows stay-->

A number stands for the same rows for ever, as it is never marked twice: that is what makes it safe to send a batch
again. Each of these steps is one transaction, and changes nothing when another relay has done it before. Numbers grow
by chance, so that those of a database that was restored from a backup are not taken for what they were before.
"""

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Final, Protocol, Self, Unpack

from vibemq.client import Body
from vibemq.client.outgoing import Place, PublishManyOptions, PublishOptions, TopicOptions
from vibemq.errors import UsageError
from vibemq.outbox.rows import COLUMNS, Row, many_values_of, topic_values_of, values_of

TABLE: Final = "vibemq_outbox"
"""The name of the table, where nobody says otherwise."""
STEP_MAX: Final = 1 << 20
"""Batch numbers grow by up to this. There are 2^63 of them: enough for 2^43 batches."""
PARKED_SHOWN: Final = 100

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}(\.[A-Za-z_][A-Za-z0-9_]{0,49})?")


class Cursor(Protocol):
    """What a DB-API driver gives for statements."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> object:
        """Run a statement."""

    def executemany(self, statement: str, values: Sequence[Sequence[Any]], /) -> object:
        """Run a statement with each of several rows of values."""

    def fetchall(self) -> list[Any]:
        """What the last statement found."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are published together, or not at all, under a number of the producer."""

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was refused, and why; `parked`: it is not tried again by itself."""

    row: Row
    error: str
    parked: bool


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A row that is not tried any more, and why."""

    id: int
    queue: str
    error: str


@dataclass(frozen=True, slots=True)
class Status:
    """What is in an outbox: rows that wait, how long the oldest has, how many were refused and are tried again."""

    waiting: int
    oldest_seconds: float
    refused: int
    parked: int
    parked_rows: tuple[ParkedRow, ...]
    """The first hundred of them."""


class Outbox(ABC):
    """An outbox: a table in a database of the application, from which a relay publishes.

    The object holds no connection: one may serve a whole program, and any number of threads.
    """

    problems: ClassVar[tuple[type[Exception], ...]]
    """What the driver raises when something is wrong with the database."""

    def __init__(self, table: str = TABLE) -> None:
        """An outbox in `table`, which may have a schema before it, with a dot between.

        Raises:
            UsageError: no name that both databases take.
        """
        if not _NAME.fullmatch(table):
            raise UsageError(
                f"table is {table!r}: write letters, digits and _, at most 50 of them, and no digit first; "
                f"a schema may stand before it, with a dot between"
            )
        self.table = table
        self._rows = quoted(table)
        self._relay = quoted(f"{table}_relay")

    # --- for the application ---------------------------------------------------------------------------------------

    # The connection is one of any driver, or what wraps one.

    def add(self, connection: Any, queue: str, body: Body, **options: Unpack[PublishOptions]) -> None:  # noqa: ANN401
        """Add a message to the transaction that `connection` is in: it is published when that is committed.

        `connection` is the application's own, or a cursor of it. The options mean what they do in Client.publish();
        headers are what JSON has, that is no bytes. A delay counts from this call on.

        Raises:
            UsageError, InvalidName: a message that never could be published. Nothing was added.
        """
        cursor_of(connection).execute(self._insert_one, values_of(queue, body, options))

    def add_topic(self, connection: Any, topic: str, body: Body, **options: Unpack[TopicOptions]) -> None:  # noqa: ANN401
        """As add(), for every queue that is bound to `topic` when it is published."""
        cursor_of(connection).execute(self._insert_one, topic_values_of(topic, body, options))

    def add_many(
        self,
        connection: Any,  # noqa: ANN401
        queue: str,
        bodies: Sequence[Body],
        **options: Unpack[PublishManyOptions],
    ) -> None:
        """Add messages in this order; the options mean what they do in Client.publish_many().

        Raises:
            UsageError, InvalidName: as add().
        """
        values = many_values_of(queue, bodies, options)
        if values:
            cursor = cursor_of(connection)
            cursor.executemany(self._insert, values)
            self._announce(cursor)

    @property
    @abstractmethod
    def ddl(self) -> str:
        """The statements that make the tables: for those who keep their schema in migrations."""

    @abstractmethod
    def session(self) -> "Session":
        """A connection of a relay's own, for one thread at a time."""

    def create(self) -> None:
        """Make the tables where they are not there; those that are stay as they are."""
        with self.session() as session:
            session.create()

    def status(self) -> Status:
        """What waits, and what was parked."""
        with self.session() as session:
            return session.status()

    def retry(self, ids: Sequence[int] | None = None) -> int:
        """Let parked rows be tried again, all or those of these `ids`; how many there were."""
        with self.session() as session:
            return session.retry(ids)

    def reset(self) -> None:
        """Be a new producer to the broker: for a database that was restored from a backup.

        Every row that is in it is published then: again, where that had happened since the backup.

        Raises:
            UsageError: a relay is at work.
        """
        with self.session() as session:
            if not session.lead():
                raise UsageError(f"a relay of {self!r} is at work: stop it first")
            session.reset()

    # --- the parts that differ -------------------------------------------------------------------------------------

    _mark = "?"
    """What stands for a value in a statement."""

    @property
    def _insert(self) -> str:
        marks = ", ".join(repeat(self._mark, len(COLUMNS)))
        return f"INSERT INTO {self._rows} ({', '.join(COLUMNS)}) VALUES ({marks})"

    @property
    def _insert_one(self) -> str:
        return self._insert

    @abstractmethod
    def _announce(self, cursor: Any) -> None:  # noqa: ANN401 - as in add()
        """Tell relays that rows come with this transaction, where the database has a way to."""


class Session(ABC):
    """What a relay does with the tables, over a connection of its own. Statements have `?` where values go."""

    def __init__(self, outbox: Outbox) -> None:
        """For this outbox; the connection is the subclass's."""
        self._rows, self._relay = quoted(outbox.table), quoted(f"{outbox.table}_relay")
        self._ddl = outbox.ddl
        self._table = outbox.table

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    # --- what the databases have in common -------------------------------------------------------------------------

    @property
    def producer(self) -> int:
        """The number under which the broker knows this outbox.

        Raises:
            UsageError: there are no tables.
        """
        found = self._all(f"SELECT producer FROM {self._relay}")
        if not found:
            raise UsageError(f"the table {self._table}_relay is empty: create() fills it")
        producer: int = found[0][0]
        return producer

    def take(
        self, messages: int, bytes_max: int, held: Sequence[Place] = (), only: Place | None = None
    ) -> Batch | None:
        """The batch that was marked and not settled; or else mark the next, in the order of the ids.

        It has up to `messages` rows, and more than one only up to `bytes_max` bytes. Rows for what is `held` are passed
        over; with `only`, all others are. None: there is nothing, or another relay was faster.
        """
        number, row_ids = self._open()
        if row_ids is None:
            ids = self._next(messages, bytes_max, held, only)
            if not ids:
                return None
            before, number = number, number + random.SystemRandom().randint(1, STEP_MAX)
            mark = f"UPDATE {self._relay} SET batch = ?, row_ids = ? WHERE batch = ? AND row_ids IS NULL"
            with self._transaction() as run:
                if run(mark, (number, json.dumps(ids), before)).rowcount != 1:
                    return None
        else:
            ids = json.loads(row_ids)
        batch = Batch(number, self._read(ids))
        if not batch.rows:  # somebody deleted them by hand
            self.release(batch)
            return None
        return batch

    def settle(self, batch: Batch) -> None:
        """The batch was published: delete its rows."""
        with self._transaction() as run:
            if self._end(run, batch):
                delete = f"DELETE FROM {self._rows} WHERE id IN ({_marks(batch.rows)})"
                run(delete, [row.id for row in batch.rows])

    def release(self, batch: Batch, refusal: Refusal | None = None) -> None:
        """The batch was not published, and under its number never will be: its rows are free again."""
        with self._transaction() as run:
            if self._end(run, batch) and refusal is not None:
                run(
                    f"UPDATE {self._rows} SET error = ?, parked = ?, refused_at = coalesce(refused_at, {self._now})"
                    f" WHERE id = ?",
                    (refusal.error, refusal.parked, refusal.row.id),
                )

    def is_open(self, batch: Batch) -> bool:
        """Whether the batch is still the one that is being published."""
        number, row_ids = self._open()
        return number == batch.number and row_ids is not None

    def create(self) -> None:
        """Make the tables where they are not there, and give the outbox its number."""
        fill = f"INSERT INTO {self._relay} (id, producer, batch) VALUES (1, ?, 0) ON CONFLICT DO NOTHING"
        with self._transaction() as run:
            self._lock_schema(run)
            for statement in self._ddl.split(";\n"):
                if statement.strip():
                    run(statement)
            run(fill, (_new_producer(),))

    def status(self) -> Status:
        """What waits, and what was parked."""
        ((waiting, oldest, refused),) = self._all(
            f"SELECT count(*), coalesce({self._ago('min(added_at)')}, 0), count(refused_at)"
            f" FROM {self._rows} WHERE NOT parked"
        )
        ((parked,),) = self._all(f"SELECT count(*) FROM {self._rows} WHERE parked")
        rows = self._all(
            f"SELECT id, queue, coalesce(error, '') FROM {self._rows} WHERE parked ORDER BY id LIMIT {PARKED_SHOWN}"
        )
        return Status(waiting, max(0.0, float(oldest)), refused, parked, tuple(ParkedRow(*row) for row in rows))

    def retry(self, ids: Sequence[int] | None) -> int:
        """Let parked rows be tried again."""
        update = f"UPDATE {self._rows} SET parked = FALSE, error = NULL, refused_at = NULL WHERE parked"
        with self._transaction() as run:
            if ids is None:
                return run(update).rowcount
            return sum(run(f"{update} AND id = ?", (one,)).rowcount for one in ids)

    def reset(self) -> None:
        """Be a new producer."""
        with self._transaction() as run:
            run(f"UPDATE {self._relay} SET producer = ?, batch = 0, row_ids = NULL", (_new_producer(),))

    def _open(self) -> tuple[int, str | None]:
        found = self._all(f"SELECT batch, row_ids FROM {self._relay}")
        number, row_ids = found[0]
        return number, row_ids

    def _next(self, messages: int, bytes_max: int, held: Sequence[Place], only: Place | None) -> list[int]:
        """The ids of the rows that come next. Their bodies are left alone: they may be large."""
        where, values = "NOT parked", list[Any]()
        if only is not None:
            where += " AND queue = ? AND to_topic = ?"
            values += only
        elif held:
            where += f" AND (queue, to_topic) NOT IN (VALUES {', '.join(repeat('(?, ?)', len(held)))})"
            values += [part for place in held for part in place]
        found = self._all(
            f"SELECT id, {self._size} FROM {self._rows} WHERE {where} ORDER BY id LIMIT {messages:d}",
            values,
        )
        ids: list[int] = []
        total = 0
        for number, size in found:
            total += size
            if ids and total > bytes_max:
                break
            ids.append(number)
        return ids

    def _read(self, ids: Sequence[int]) -> tuple[Row, ...]:
        found = self._all(
            f"SELECT id, {', '.join(COLUMNS)}, {self._ago('refused_at')} FROM {self._rows}"
            f" WHERE id IN ({_marks(ids)}) ORDER BY id",
            ids,
        )
        return tuple(Row.of(values) for values in found)

    def _end(self, run: "Run", batch: Batch) -> bool:
        """End the batch; False: another relay did."""
        end = f"UPDATE {self._relay} SET row_ids = NULL WHERE batch = ? AND row_ids IS NOT NULL"
        return run(end, (batch.number,)).rowcount == 1

    # --- what they do not ------------------------------------------------------------------------------------------

    _now: ClassVar[str]
    """The present time, in SQL."""
    _size: ClassVar[str]
    """The bytes of a row, in SQL."""

    @abstractmethod
    def lead(self) -> bool:
        """Whether this relay is the one that works; others look on until it ends. It may only be faster to know."""

    @abstractmethod
    def close(self) -> None:
        """End the connection, and the lead with it."""

    @abstractmethod
    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a statement finds."""

    @abstractmethod
    def _transaction(self) -> "AbstractContextManager[Run]":
        """Statements that all happen or none, and that are durable then."""

    @abstractmethod
    def _ago(self, time: str) -> str:
        """SQL for the seconds since `time`."""

    @abstractmethod
    def _lock_schema(self, run: "Run") -> None:
        """Keep others from making the same tables at the same time."""

    @abstractmethod
    def wakes(self, wake: Callable[[], None]) -> int | None:
        """Have `wake` called when rows may have come; what it gives is a file to watch for the same, or None."""


class Run(Protocol):
    """Runs a statement in a transaction."""

    def __call__(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """The cursor that ran it."""


def cursor_of(connection: Any) -> Any:  # noqa: ANN401 - of any driver
    """Something that runs statements in the transaction of `connection`, which may be a cursor itself."""
    make = getattr(connection, "cursor", None)
    if callable(make):
        return make()
    if callable(getattr(connection, "execute", None)):
        return connection
    raise UsageError(
        f"a {type(connection).__name__} is neither a connection nor a cursor of a database. "
        f"Of an SQLAlchemy session it is session.connection().connection"
    )


def quoted(table: str) -> str:
    """A checked name, as it stands in a statement."""
    return ".".join(f'"{part}"' for part in table.split("."))


def _marks(values: Sequence[object]) -> str:
    return ", ".join(repeat("?", len(values)))


def _new_producer() -> int:
    return random.SystemRandom().getrandbits(62) + 1

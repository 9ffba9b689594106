"""A broker of a few lines, for relays: it remembers by number what was published, and refuses what a test says."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from vibemq.errors import InvalidRequest, SequenceTooOld, VibeMQError
from vibemq.outbox import Outbox, Relay
from vibemq.outbox.publishing import Publisher
from vibemq.outbox.rows import Row


class Book:
    """What a broker knows of one producer: the last number, and what it was used for."""

    def __init__(self) -> None:
        """Nothing was published."""
        self.number = 0
        self.ids: tuple[int, ...] = ()
        self.published: list[Row] = []
        self.commits = 0
        self.refuse: Callable[[Row], VibeMQError | None] = lambda _: None

    @property
    def bodies(self) -> list[bytes]:
        """What was published, in order."""
        return [row.body for row in self.published]

    async def commit(self, number: int, rows: Sequence[Row]) -> bool:
        """As the broker does it."""
        self.commits += 1
        ids = tuple(row.id for row in rows)
        if number < self.number:
            raise SequenceTooOld(f"{number} is below {self.number}")
        if number == self.number:
            if bool(ids) != bool(self.ids):
                raise InvalidRequest("used before, for other publishes")
            assert ids == self.ids, "a number stands for the same rows for ever"
            return True
        for row in rows:
            error = self.refuse(row)
            if error is not None:
                raise error
        self.number, self.ids = number, ids
        self.published += rows
        return False


class BookRelay(Relay):
    """A relay that publishes to a Book."""

    def __init__(self, outbox: Outbox, book: Book, **options: Any) -> None:  # noqa: ANN401 - those of Relay
        """As Relay."""
        super().__init__(outbox, poll="5ms", **options)
        self.book = book

    @asynccontextmanager
    async def _publishing(self, producer: int) -> AsyncIterator[Publisher]:
        assert producer > 0
        yield self.book

"""How a relay publishes: rows as one numbered transaction of the outbox's producer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import vibemq
from vibemq.client import ConnectOptions
from vibemq.client.numbered import NumberedCommits, NumberedMessage
from vibemq.client.outgoing import Route
from vibemq.outbox.rows import Row


class Publisher(Protocol):
    """What a relay needs of a broker."""

    async def commit(self, number: int, rows: Sequence[Row]) -> bool:
        """Publish these rows, or nothing where there are none, as this number; whether that had been done before.

        Raises:
            VibeMQError: what the broker says, or why it says nothing. InvalidRequest: the number was used for others.
        """


class BrokerPublisher:
    """Publishes over a client."""

    def __init__(self, commits: NumberedCommits) -> None:
        """By numbered transactions of one producer."""
        self._commits = commits

    async def commit(self, number: int, rows: Sequence[Row]) -> bool:
        """As of Publisher."""
        return await self._commits.commit(number, [message_of(row) for row in rows])


def message_of(row: Row) -> NumberedMessage:
    """What is published for a row.

    Raises:
        VibeMQError: nothing can be: the columns hold what add() would have refused.
    """
    ttl = None if row.ttl_ms is None else row.ttl_ms / 1_000
    route = Route.of(row.queue, row.priority, ttl, to_topic=row.to_topic)._replace(due_us=row.due_us or 0)
    return NumberedMessage(route, row.body, row.stamped_headers(), row.message_key, row.dedup_id)


@asynccontextmanager
async def publishing(producer: int, url: str | None, options: ConnectOptions) -> AsyncIterator[Publisher]:
    """A connection to the broker as this producer, for as long as the context lasts."""
    own: ConnectOptions = {"name": "vibemq outbox", **options, "producer": producer}
    async with vibemq.connect(url, **own) as client:
        yield BrokerPublisher(client.numbered_commits())

"""A relay in a process of its own, that kills itself at one step: `relay_process.py KIND WHERE TABLE URL STEP TURNS`.

After so many TURNS of that step there is nothing left of it, as after `kill -9`. Step "none" runs to the end.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from vibemq.outbox import Outbox, PostgresOutbox, Relay, SqliteOutbox
from vibemq.outbox.postgres import PostgresSession
from vibemq.outbox.publishing import Publisher
from vibemq.outbox.rows import Row
from vibemq.outbox.sqlite import SqliteSession
from vibemq.outbox.tables import Batch, Refusal, Run

STEPS: Final = ("marked", "sending", "sent", "deleting", "settled", "voided", "released")


class Death:
    """Waits at a step."""

    def __init__(self, step: str, turns: int) -> None:
        """Come the `turns`-th time, counted from 1."""
        self.step, self.turns = step, turns

    def reached(self, step: str) -> None:
        """A step of the relay is reached."""
        if step == self.step:
            self.turns -= 1
            if not self.turns:
                os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """What a session does, and when it may end."""

    death: Death

    def take(self, *args: Any) -> Batch | None:  # noqa: ANN401 - those of Session
        """As Session."""
        batch: Batch | None = super().take(*args)  # type: ignore[misc] # mixed into one
        if batch is not None:
            self.death.reached("marked")
        return batch

    def settle(self, batch: Batch) -> None:
        """As Session."""
        self.death.reached("sent")
        super().settle(batch)  # type: ignore[misc]
        self.death.reached("settled")

    def release(self, batch: Batch, refusal: Refusal | None = None) -> None:
        """As Session."""
        self.death.reached("voided")
        super().release(batch, refusal)  # type: ignore[misc]
        self.death.reached("released")

    def _end(self, run: Run, batch: Batch) -> bool:
        ended: bool = super()._end(run, batch)  # type: ignore[misc]
        self.death.reached("deleting")
        return ended


class DyingRelay(Relay):
    """A relay that may end while a commit is on its way."""

    death: Death

    @asynccontextmanager
    async def _publishing(self, producer: int) -> AsyncIterator[Publisher]:
        async with super()._publishing(producer) as publisher:
            yield _Sending(publisher, self.death)


class _Sending:
    """Ends as soon as the frame has left, before anything is heard of it."""

    def __init__(self, publisher: Publisher, death: Death) -> None:
        self._publisher, self._death = publisher, death

    async def commit(self, number: int, rows: Sequence[Row]) -> bool:
        """As Publisher."""
        commits = self._publisher._commits  # type: ignore[attr-defined]
        start = commits._requests.start

        def started(pending: Any) -> Any:  # noqa: ANN401 - of Requests
            found = start(pending)
            if type(pending.make(1)).__name__ == "Commit":
                self._death.reached("sending")
            return found

        commits._requests.start = started
        try:
            return await self._publisher.commit(number, rows)
        finally:
            commits._requests.start = start


def main(kind: str, where: str, table: str, url: str, step: str, turns: str) -> None:
    """Run it until nothing is left to publish."""
    death = Death(step, int(turns))

    class DyingSqlite(Dying, SqliteSession):
        pass

    class DyingPostgres(Dying, PostgresSession):
        pass

    outbox: Outbox
    made: Any
    if kind == "sqlite":
        outbox, made = SqliteOutbox(where, table), DyingSqlite
    else:
        outbox, made = PostgresOutbox(where, table), DyingPostgres

    def session() -> Any:  # noqa: ANN401 - one of the two
        found = made(outbox)
        found.death = death
        return found

    outbox.session = session  # type: ignore[method-assign]
    relay = DyingRelay(outbox, url, batch_messages=10, backoff_max=0.1, poll="10ms")
    relay.death = death
    while outbox.status().waiting:
        relay.run_once_sync()


if __name__ == "__main__":
    main(*sys.argv[1:])

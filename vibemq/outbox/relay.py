"""The relay: publishes what is in an outbox, each row once.

    mark the next rows as batch n --> publish them as one transaction, number n of its producer --> delete them

The broker carries out a number once. So whoever comes after a crash, at whatever step, finds batch n marked and sends
it again, and the broker either stores it now, or says that it has it already.

A batch that the broker refuses must not become another batch under the same number, as long as somebody may still send
the old one: a relay that was given up for dead, or a connection that was. So the number is *voided* before the rows
are free again: it is taken by a transaction without anything in it. If that is refused, as the number was used for
something else, then somebody else has published the batch.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, TypeVar, Unpack

from vibemq.client import ConnectOptions
from vibemq.durations import Duration, milliseconds
from vibemq.errors import InvalidRequest, SequenceTooOld, UsageError, VibeMQError
from vibemq.outbox.pace import Pace, is_refusal
from vibemq.outbox.publishing import Publisher, publishing
from vibemq.outbox.tables import Batch, Outbox, Refusal, Session

T = TypeVar("T")

BATCH_MESSAGES: Final = 500
BATCH_BYTES: Final = 1024 * 1024
BATCH_MESSAGES_MAX: Final = 10_000
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
POLL: Final = "200ms"
PARK_AFTER: Final = "1d"
PAUSE_SECONDS_MAX: Final = 10.0
"""Between attempts, while the database or the broker is away."""

_log = logging.getLogger("vibemq.outbox")


class Relay:
    """Publishes what is in an outbox. Run one of them at a time; more are safe, and wait until the first ends."""

    def __init__(
        self,
        outbox: Outbox,
        url: str | None = None,
        *,
        batch_messages: int = BATCH_MESSAGES,
        batch_bytes: int = BATCH_BYTES,
        poll: Duration = POLL,
        park_after: Duration = PARK_AFTER,
        **options: Unpack[ConnectOptions],
    ) -> None:
        """Publish what is in `outbox` to the broker at `url`; URL and options as for vibemq.connect().

        Up to `batch_messages` and `batch_bytes` go as one transaction. It looks for new rows every `poll` where the
        database does not tell it. What a queue refuses as it is full or not there is tried again until `park_after` has
        gone by, and then parked; what never can be published is parked at once.

        Raises:
            UsageError: values that cannot be.
        """
        if not 1 <= batch_messages <= BATCH_MESSAGES_MAX:
            raise UsageError(f"batch_messages is {batch_messages}: it must be from 1 to {BATCH_MESSAGES_MAX:,}")
        if not 1 <= batch_bytes <= BATCH_BYTES_MAX:
            raise UsageError(f"batch_bytes is {batch_bytes}: it must be from 1 to {BATCH_BYTES_MAX:,}")
        self._outbox = outbox
        self._url, self._options = url, options
        self._bytes = batch_bytes
        self._poll_seconds = max(0.001, milliseconds(poll, "poll") / 1_000)
        self._pace = Pace(batch_messages, milliseconds(park_after, "park_after") / 1_000)
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self.published = 0
        """How many rows were published."""
        self.parked = 0
        """How many were parked."""

    # --- for the application ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish until stop() is called or the task is cancelled; both may be done at any time.

        While the broker or the database is away, it tries again, and logs why, as `vibemq.outbox`.

        Raises:
            UsageError: what no new attempt will mend: no tables, or a database that was restored from a backup.
        """
        pause = 0.0
        problems: tuple[type[Exception], ...] = (VibeMQError, *self._outbox.problems)
        while not self._stopping:
            before = self.published
            try:
                await self._serve(once=False)
            except UsageError:
                raise
            except problems as problem:
                pause = 0.1 if self.published > before else min(PAUSE_SECONDS_MAX, max(0.1, pause * 2))
                _log.warning("the relay of %r tries again in %.1f s: %s", self._outbox, pause, problem)
                await self._rest(pause)

    async def run_once(self) -> int:
        """Publish what is there now; how many rows that were. What a queue refuses is passed over.

        0, when another relay is at work.

        Raises:
            VibeMQError: the broker is away, or what run() raises; what the driver says of the database.
        """
        before = self.published
        await self._serve(once=True)
        return self.published - before

    def run_sync(self) -> None:
        """As run(), for a thread or process without an event loop of its own: blocks until stop()."""
        asyncio.run(self.run())

    def run_once_sync(self) -> int:
        """As run_once(), for a program without an event loop."""
        return asyncio.run(self.run_once())

    def stop(self) -> None:
        """Let run() end, from any thread. What is on its way is finished before, or by the next relay."""
        self._stopping = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it is closed: nobody runs
                loop.call_soon_threadsafe(self._wake.set)

    # --- one connection to each side -------------------------------------------------------------------------------

    async def _serve(self, *, once: bool) -> None:
        """Publish over one connection to the database and one to the broker, until something goes wrong."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        # One thread: a connection to a database is used by one at a time, and what was begun is ended before it closes.
        with ThreadPoolExecutor(1, "vibemq outbox") as thread:
            self._thread = thread
            session = await self._in_thread(self._outbox.session)
            try:
                if await self._lead(session, once=once):
                    await self._publish_from(session, once=once)
            finally:
                # Also when this task is being cancelled: it takes no time worth speaking of.
                thread.submit(session.close).result()

    def _publishing(self, producer: int) -> AbstractAsyncContextManager[Publisher]:
        return publishing(producer, self._url, self._options)

    async def _lead(self, session: Session, *, once: bool) -> bool:
        while not self._stopping:
            if await self._in_thread(session.lead):
                return True
            if once:
                return False
            await self._rest(self._poll_seconds)
        return False

    async def _publish_from(self, session: Session, *, once: bool) -> None:
        descriptor = None if once else await self._in_thread(lambda: session.wakes(self._woken))
        async with self._publishing(await self._in_thread(lambda: session.producer)) as publisher:
            while not self._stopping:
                self._wake.clear()
                if await self._step(session, publisher):
                    continue
                if once:
                    return
                await self._idle(descriptor)

    async def _step(self, session: Session, publisher: Publisher) -> bool:
        """Publish a batch; False: there is nothing to publish now."""
        pace, now = self._pace, self._now()
        due = pace.due(now)
        limit, held = (pace.limit, pace.held) if due is None else (1, ())
        batch = await self._in_thread(lambda: session.take(limit, self._bytes, held, due))
        if batch is None:
            if due is not None:
                pace.gone(due)
            return due is not None
        try:
            await publisher.commit(batch.number, batch.rows)
        except SequenceTooOld:
            await self._overtaken(session, batch)
        except VibeMQError as error:
            if not is_refusal(error):
                raise
            await self._refused(session, publisher, batch, error)
        else:
            await self._settled(session, batch)
        return True

    async def _settled(self, session: Session, batch: Batch) -> None:
        await self._in_thread(lambda: session.settle(batch))
        self.published += len(batch.rows)
        self._pace.published(batch.rows)

    async def _refused(self, session: Session, publisher: Publisher, batch: Batch, error: VibeMQError) -> None:
        try:
            was_void = await publisher.commit(batch.number, ())
        except InvalidRequest:  # another relay has published it
            await self._settled(session, batch)
            return
        except SequenceTooOld:
            await self._overtaken(session, batch)
            return
        refusal = None
        # What is refused as its number was void says nothing about the rows.
        parked = None if was_void else self._pace.refused(batch.rows, error, self._now())
        if parked is not None:
            row = batch.rows[0]
            refusal = Refusal(row, f"{type(error).__name__}: {error.text}", parked)
            self.parked += parked
            what = "parked" if parked else "has to wait"
            _log.warning("row %d of %r, for %r, %s: %s", row.id, self._outbox, row.queue, what, refusal.error)
        await self._in_thread(lambda: session.release(batch, refusal))

    async def _overtaken(self, session: Session, batch: Batch) -> None:
        """The broker has had later numbers: another relay is ahead. It has settled this batch; or else, ..."""
        if await self._in_thread(lambda: session.is_open(batch)):
            raise UsageError(
                f"the broker had later batches of {self._outbox!r} than the database knows of: was it restored from a "
                f"backup? Whether its rows were published is not known. `vibemq outbox reset` publishes all of them, "
                f"some perhaps again; delete those that must not be before"
            )

    # --- waiting ---------------------------------------------------------------------------------------------------

    async def _idle(self, descriptor: int | None) -> None:
        """Wait until there may be something to do."""
        due = self._pace.next_due()
        seconds = self._poll_seconds if due is None else max(0.0, min(self._poll_seconds, due - self._now()))
        loop = asyncio.get_running_loop()
        try:
            if descriptor is not None:
                with suppress(NotImplementedError):  # a loop that cannot: there is the poll
                    loop.add_reader(descriptor, self._wake.set)
            await self._rest(seconds)
        finally:
            if descriptor is not None:
                with suppress(NotImplementedError):
                    loop.remove_reader(descriptor)

    async def _rest(self, seconds: float) -> None:
        if not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    def _woken(self) -> None:
        """Called on the thread: rows may have come."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

"""Sending dead letters back to work: what `vibemq dlq redrive` does.

What was moved stays moved, whatever comes then. So a signal ends it between two requests, and not within one, and what
was done until then is told.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from typing import Any, Final

import vibemq
from vibemq.cli.progress_bar import ProgressBar
from vibemq.client import Redriven

END_SECONDS: Final = 2.0
"""How long, once a signal came, to wait for the answer to what was asked."""


class _Stopped(Exception):
    """A signal came, and the request that was under way has its answer."""


class Redrive:
    """Moves dead letters of one queue, back to where they came from or to the queue `to`, and counts them."""

    def __init__(self, queue: str, to: str | None, rate: float | None, *, dry_run: bool) -> None:
        """Nothing is moved yet."""
        self._queue, self._to, self._rate, self._dry_run = queue, to, rate, dry_run
        self._bar = ProgressBar("redriving", wanted=not dry_run)
        self._earlier, self._last = Redriven(), Redriven()
        self._total = 0
        self._stopping = False
        self._rests_until = 0.0

    @property
    def done(self) -> Redriven:
        """What was moved, or with a dry run would be."""
        return _sum(self._earlier, self._last)

    async def matching(self, client: vibemq.Client, count: int | None, **filters: Any) -> None:  # noqa: ANN401 - those of the client
        """Move all that pass the filters, or `count` of them.

        Raises:
            CancelledError: a signal came.
            VibeMQError: the broker refused.
        """
        if self._bar.shown:
            there = (await client.redrive(self._queue, to=self._to, dry_run=True, **filters)).moved
            self._total = there if count is None else min(count, there)
        with self._bar:
            await self._run(self._some(client, count=count, **filters))

    async def these(self, client: vibemq.Client, sequences: Iterable[int]) -> list[int]:
        """Move the dead letters of these sequences, and tell which of them are not there.

        Raises:
            CancelledError: a signal came.
            VibeMQError: the broker refused.
        """
        wanted, missing = list(sequences), list[int]()
        self._total = len(wanted)
        with self._bar:
            await self._run(self._one_by_one(client, wanted, missing))
        return missing

    async def _one_by_one(self, client: vibemq.Client, wanted: list[int], missing: list[int]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for sequence in wanted:
            found = await self._some(client, start=sequence, end=sequence + 1)
            self._earlier, self._last = self.done, Redriven()
            if not found.moved and not found.homeless:
                missing.append(sequence)
            if self._rate is not None and not self._dry_run:
                await asyncio.sleep(began + self.done.moved / self._rate - loop.time())

    async def _some(self, client: vibemq.Client, **which: Any) -> Redriven:  # noqa: ANN401 - those of the client
        return await client.redrive(
            self._queue, to=self._to, rate=self._rate, dry_run=self._dry_run, on_progress=self._progress, **which
        )

    def _progress(self, done: Redriven) -> None:
        self._last = done
        if self._total:
            self._bar.update(self.done.moved, self._total)
        if self._stopping:
            raise _Stopped
        if self._rate is not None:
            self._rests_until = self._began + self.done.moved / self._rate

    async def _run(self, work: Awaitable[object]) -> None:
        """Do the work. A signal lets the request that is under way have its answer."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stopping = True
            if loop.time() >= self._rests_until:
                await asyncio.wait([task], timeout=END_SECONDS)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise


def _sum(one: Redriven, other: Redriven) -> Redriven:
    targets = dict(Counter(one.targets) + Counter(other.targets))
    return Redriven(one.moved + other.moved, targets, one.homeless + other.homeless)

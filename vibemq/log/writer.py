"""The thread that writes: one group in flight; what is appended meanwhile forms the next.

    event-loop thread                     writer thread
    kick: take_group -----> queue ------> write_group (pwritev, fdatasync by policy)
    _finished <---- call_soon <---------- outcome
      group_done, on_done, kick           prepare: take room ahead, when nothing waits

A group that is alone, because nothing else waits, may be written and synced on the event-loop thread itself: the two
thread hops cost about as much as the sync (measured: 110 us against 230 us for one small record). That is done only
while syncs are quick; after a slow one the thread does them all for a while.

There is no timer and no batching delay: the time of one sync is what gathers the next group. Policies:

    always        a group is synced before it counts as done
    interval:MS   groups count as done when they are written; a sync follows MS milliseconds later at most
    os            groups count as done when they are written; the operating system syncs when it likes
"""

import enum
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from vibemq.errors import UsageError, WriteFailed
from vibemq.log.frame import Mark
from vibemq.log.log import Group, Log

INLINE_BYTES_MAX: Final = 64 << 10
INLINE_S_MAX: Final = 0.001
"""A sync that took longer sends the next groups to the thread."""
THREAD_GROUPS: Final = 256
"""So many of them, before the next try."""

CallSoon = Callable[..., Any]
"""Runs a callable with its arguments on the event-loop thread: `loop.call_soon_threadsafe`."""


class Sync(enum.StrEnum):
    """When a group counts as done."""

    ALWAYS = "always"
    INTERVAL = "interval"
    OS = "os"


class SyncPolicy(NamedTuple):
    """What `--fsync` says; `interval_ms` matters to `interval` only."""

    sync: Sync = Sync.ALWAYS
    interval_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> "SyncPolicy":
        """`always`, `interval:MS` or `os`.

        Raises:
            UsageError: anything else.
        """
        name, colon, number = text.partition(":")
        if name == Sync.INTERVAL and number.isascii() and number.isdigit() and int(number) > 0:
            return cls(Sync.INTERVAL, int(number))
        if name in {Sync.ALWAYS, Sync.OS} and not colon:
            return cls(Sync(name))
        raise UsageError(f"the sync policy {text!r} is none of always, interval:MILLISECONDS and os")


class _Outcome(NamedTuple):
    """What the writer thread tells: a group it wrote, a mark it synced, or why it ended."""

    group: Group | None = None
    mark: Mark | None = None
    failure: WriteFailed | None = None


class Writer:
    """Writes a log on a thread of its own. All methods are for the event-loop thread.

    `on_done()` is called there each time the positions of the log moved; what may leave the process then is all before
    `durable`. `on_failure(error)` is called once, after a write or sync failed: the process must end.
    """

    def __init__(
        self,
        log: Log,
        policy: SyncPolicy,
        call_soon: CallSoon,
        on_done: Callable[[], None],
        on_failure: Callable[[WriteFailed], None],
    ) -> None:
        """Nothing runs before `start`."""
        self._log, self._policy, self._call_soon = log, policy, call_soon
        self._on_done, self._on_failure = on_done, on_failure
        self._groups: SimpleQueue[Group | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vibemq-writer", daemon=True)
        self._busy = False
        self._closing = False
        self._failed = False
        self._by_thread = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a group is in flight."""
        return self._busy

    @property
    def durable(self) -> int:
        """Records before this offset are durable in the sense of the policy."""
        return self._log.synced if self._policy.sync is Sync.ALWAYS else self._log.written

    def kick(self, *, lone: bool = False) -> None:
        """Send what is buffered on its way, unless a group is in flight: then it goes when that one is done.

        `lone`: nothing else waits for the loop, so a small group may be written and synced before this returns.
        """
        if self._busy or self._closing or self._failed:
            return
        try:
            group = self._log.take_group()
        except WriteFailed as failure:  # the thread took room ahead, failed, and could not tell yet
            self._finished(_Outcome(failure=failure))
            return
        if group is None:
            return
        self._busy = True
        if lone and self._may_inline(group):
            self._write_inline(group)
        else:
            self._by_thread = max(0, self._by_thread - 1)
            self._groups.put(group)

    def _may_inline(self, group: Group) -> bool:
        """Small, in a segment that is there, under `always`, and after quick syncs."""
        named = all(chunk.segment.named for chunk in group.chunks)
        return self._policy.sync is Sync.ALWAYS and group.bytes <= INLINE_BYTES_MAX and named and not self._by_thread

    def _write_inline(self, group: Group) -> None:
        begun = time.perf_counter()
        try:
            self._log.write_group(group, sync=True)
        except WriteFailed as failure:
            self._finished(_Outcome(failure=failure))
            return
        if time.perf_counter() - begun > INLINE_S_MAX:
            self._by_thread = THREAD_GROUPS
        self._finished(_Outcome(group=group))

    def close(self) -> None:
        """Write and sync all that was appended, and end the thread. Blocks; call it last, after the loop's work.

        Raises:
            WriteFailed: that failed, now or before.
        """
        self._closing = True
        if self._thread.is_alive():
            self._groups.put(None)
            self._thread.join()
        log = self._log
        group = log.take_group()
        if group is not None:
            log.write_group(group, sync=False)
            log.group_done(group, synced=False)
        log.sync_done(log.sync())

    def _finished(self, outcome: _Outcome) -> None:
        """On the event-loop thread: move the positions, send the next group, tell the runtime."""
        if outcome.failure is not None:
            if not self._failed:
                self._failed = True
                self._on_failure(outcome.failure)
            return
        if outcome.mark is not None:
            self._log.sync_done(outcome.mark)
        if outcome.group is not None:
            self._log.group_done(outcome.group, synced=self._policy.sync is Sync.ALWAYS)
            self._busy = False
            self.kick()
        if not self._failed:  # what is told after a failure is not trusted, though it be true
            self._on_done()

    # -- on the writer thread

    def _run(self) -> None:
        always = self._policy.sync is Sync.ALWAYS
        sync_at: float | None = None
        try:
            while True:
                try:
                    group = self._groups.get(timeout=None if sync_at is None else max(0.0, sync_at - time.monotonic()))
                except Empty:
                    sync_at = None
                    self._call_soon(self._finished, _Outcome(mark=self._log.sync()))
                    continue
                if group is None:
                    return
                self._log.write_group(group, sync=always)
                self._call_soon(self._finished, _Outcome(group=group))
                if self._policy.sync is Sync.INTERVAL and sync_at is None:
                    sync_at = time.monotonic() + self._policy.interval_ms / 1000
                if self._groups.empty():
                    self._log.prepare()
        except Exception as error:  # noqa: BLE001 - a thread that dies in silence would leave everybody waiting
            failure = error if isinstance(error, WriteFailed) else WriteFailed(f"the writer thread ended: {error!r}")
            self._call_soon(self._finished, _Outcome(failure=failure))

"""The running broker: decisions become durable, effects become bytes.

One turn of the event loop: the connections that had something to say change the state through the broker; what that
recorded is appended to the log's buffer at once. At the end of the turn ready messages are handed out, the buffer
goes to the writer thread as one group, and effects leave as soon as all they depend on is durable. While a group is
in flight the next one forms.
"""

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from vibemq.batch import Batch
from vibemq.errors import (
    BeyondLog,
    ConfigError,
    DiskFull,
    ShuttingDown,
    StorageError,
    UnknownMessage,
    VibeMQError,
    WriteFailed,
)
from vibemq.events import SegmentSealed
from vibemq.log.segment import seal_segment
from vibemq.log.writer import Writer
from vibemq.protocol.json_lines import headers_or_base64, rfc3339
from vibemq.server import effects as f
from vibemq.server.broker import Broker
from vibemq.server.checkpointer import Checkpointer
from vibemq.server.clock import BrokerClock
from vibemq.server.connection import TURN_US, ClientConnection
from vibemq.server.cron import CronCalendar
from vibemq.server.outbox import Outbox
from vibemq.server.queues import check_declarations
from vibemq.server.settings import Settings
from vibemq.server.storage import Progress, Storage
from vibemq.server.unread import Unread

HOUSEKEEPING_S = 1.0
PRESSURE_S = 0.25
"""How often it is looked whether the index must be committed before the next checkpoint."""
WAITING_BYTES_MAX = 8 << 20
"""With so many bytes of deliveries that wait for the disk no more are handed out: a slow disk would let memory fill."""
LAZY_S = 0.005
"""What nobody waits for is written after this time, or with the next group."""
LAZY_BYTES_MAX = 256 * 1024
LONE_EFFECTS_MAX = 2
"""A turn with no more to answer than this may sync on the loop's own thread."""
PEEKING_MAX = 2
"""Peeks that are read at the same time, for whomever: each takes memory of up to its limit."""
ASKED = TypeVar("ASKED")
ANSWER = TypeVar("ANSWER")
REFUSED_ADDRESSES = 1000
"""Told apart in a second; the others are counted together."""


class Runtime:
    """Owns the storage, the broker, the writer, and everybody who is connected. Belongs to one event loop."""

    def __init__(self, settings: Settings, version: str, clock: BrokerClock, logger: logging.Logger) -> None:
        """Nothing is opened before `open`."""
        self.settings, self.version, self.clock, self.logger = settings, version, clock, logger
        self.connections: dict[int, ClientConnection] = {}
        self._waiting = Outbox()
        self._collected: dict[ClientConnection, None] = {}
        self._closing: list[ClientConnection] = []
        self._paused: dict[ClientConnection, None] = {}
        self._unread = Unread[ClientConnection](settings.limits.unread_bytes)
        self._refused: Counter[tuple[str, str]] = Counter()
        self._scheduled = False
        self._heard = 0
        self._lazy: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_us = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(2, "vibemq-worker")
        self._peeking = asyncio.Semaphore(PEEKING_MAX)
        self.failure: VibeMQError | None = None
        """Why the process must end; nothing is decided or confirmed any more."""
        self._stopped = False

    # --- life

    def open(self, progress: Progress | None = None) -> Storage:
        """Open the data folder and replay its log. Blocks; call it before anything is served.

        Raises:
            StorageError: the folder cannot be used.
            ConfigError: a queue in it cannot be what the configuration wants of it.
        """
        settings = self.settings
        try:
            self.storage = Storage.open(
                settings.data,
                settings.segment_bytes,
                settings.reserve_bytes,
                lambda: secrets.randbits(64),
                self.clock.wall_us(),
                progress,
            )
        except (FileExistsError, NotADirectoryError) as problem:
            raise StorageError(f"the data folder {settings.data} cannot be opened: a file is in its place") from problem
        except OSError as problem:
            raise StorageError(f"the data folder {settings.data} cannot be opened: {problem}") from problem
        self.clock = BrokerClock(last_us=self.storage.state.audit.last_us)
        try:
            check_declarations(self.storage.state, settings.queues, settings.defaults, settings.limits)
        except ConfigError:
            self.storage.close()
            raise
        return self.storage

    def start(self, on_failure: Callable[[], None]) -> None:
        """Begin to decide and to write. Call it on the loop; `on_failure` is called when the process must end."""
        self._tell_failure = on_failure
        self._loop = asyncio.get_running_loop()
        storage, settings = self.storage, self.settings
        self.broker = Broker(
            storage.state,
            settings.limits,
            settings.defaults,
            auto_create=settings.auto_create,
            unroutable=settings.unroutable,
            calendar=CronCalendar(),
        )
        self.broker.schedules.has_room = self._has_room
        self.broker.delayed.has_room = self._has_space
        self._journal = self.broker.journal
        self.writer = Writer(
            storage.log, settings.fsync, self._loop.call_soon_threadsafe, self._on_durable, self._on_failure
        )
        self.writer.start()
        self._checkpointer = Checkpointer(storage, self._executor)
        self.begin()
        self.broker.start(self.version, self.clock.wall_us(), settings.queues)
        self.append()
        self.schedule()
        self._spawn(self._housekeep())
        self._spawn(self._seal_for_ever())
        self._spawn(self._checkpoint_for_ever())

    async def stop(self, reason: str) -> None:
        """End in order: tell the clients, write everything, checkpoint."""
        for connection in list(self.connections.values()):
            connection.lost = False
            connection.close(0, reason)
        await self._all_gone(0.02)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections.values()):
            connection.abort(reason)
        await self._all_gone(0)
        for timer in (self._timer, self._lazy):
            if timer is not None:
                timer.cancel()
        if self.failure is None:
            self.begin()
            self.broker.stop(reason)
            self._stopped = True  # nothing may be decided behind that: it would be lost on those who open the log
            self.append()
            self._journal.effects.clear()
            self.writer.close()
            await self._checkpointer.take()
        self._executor.shutdown(wait=True)
        self.storage.close()

    async def _all_gone(self, pause_s: float) -> None:
        """Wait until every client is gone and what it held is given back; at most a hundred pauses."""
        for _ in range(100):
            if not self.connections:
                return
            await asyncio.sleep(pause_s)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, VibeMQError):
                self._on_failure(error)
            else:
                self.logger.error("a background task failed", exc_info=error)
                self._on_failure(WriteFailed(f"a background task failed: {error!r}"))

    def _on_failure(self, error: VibeMQError) -> None:
        if self.failure is None:
            self.failure = error
            self.logger.critical(error.text)
            self._tell_failure()

    # --- a turn

    def begin(self) -> int:
        """Set the time of what is decided next."""
        now_us = self._journal.now_us = self.clock.now_us()
        return now_us

    def append(self) -> None:
        """Take what was decided to the log's buffer; nothing after a record that it did not take."""
        records = self._journal.records
        if self.failure is not None:
            records.clear()
        elif records:
            append = self.storage.append
            try:
                for record in records:
                    append(record)
            except StorageError as error:
                self._on_failure(error)
            records.clear()

    def schedule(self) -> None:
        """Let the turn end after the other connections that are readable now have been heard."""
        self._heard += 1
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._scheduled = False
        heard, self._heard = self._heard, 0
        if self.failure is not None or self._stopped:
            return
        self.begin()
        # Else there is enough to send, or to wait for the disk; when that is done this is called again.
        hand_out = not self._waiting.has_free(self.writer.durable) and self._waiting.waiting_bytes < WAITING_BYTES_MAX
        if hand_out:
            self.broker.end_turn()
        self.append()
        if self.failure is not None:
            return
        self._write(lone=heard == 1)
        self._route()
        self._set_timer()
        if hand_out and self.broker.has_more:
            self.schedule()

    def _write(self, *, lone: bool) -> None:
        """Send the buffer on its way, at once if somebody waits for it.

        Acks without confirmation and deliveries wait for nobody: alone, they would only put the sync of the next
        publish off by one of their own.
        """
        log, effects = self.storage.log, self._journal.effects
        durable = self.writer.durable
        is_pressing = log.buffered_bytes > LAZY_BYTES_MAX or self.broker.delayed.is_pressing
        if is_pressing or self._waiting or any(effect.after > durable for effect in effects):
            self.writer.kick(lone=lone and len(effects) <= LONE_EFFECTS_MAX)
        elif log.buffered_bytes and self._lazy is None:
            self._lazy = self._loop.call_later(LAZY_S, self._write_lazily)

    def _write_lazily(self) -> None:
        self._lazy = None
        if self.failure is None:
            self.writer.kick()

    def _route(self) -> None:
        """Send the effects that depend on nothing any more; the others wait, in order. Start the loads."""
        journal, durable = self._journal, self.writer.durable
        if journal.effects:
            effects, journal.effects = journal.effects, []
            for effect in self._waiting.sift(effects, durable):
                self._send(effect)
        if journal.loads:
            loads, journal.loads = journal.loads, []
            for load in loads:
                self._spawn(self._fetch(load))
        self._flush()

    def _on_durable(self) -> None:
        """A group is on the disk: what waited for it may go."""
        self._release()
        if self._paused and self._unsynced_bytes() < self.settings.limits.unsynced_bytes // 2:
            for connection in self._paused:
                connection.resume_reading()
            self._paused.clear()

    def _release(self) -> None:
        """Send what waited and may go, for so long; the rest in another turn of the loop, before anything newer."""
        begun_us = self.clock.now_us()
        for effect in self._waiting.release(self.writer.durable):
            self._send(effect)
            if self.clock.now_us() - begun_us > TURN_US:
                break
        self._flush()
        if self._waiting.has_free(self.writer.durable):
            self._loop.call_soon(self._release)
        elif self.broker.has_more:
            self.schedule()

    def _send(self, effect: f.Effect) -> None:
        connection = self.connections.get(effect.connection)
        if connection is None:
            return
        if isinstance(effect, f.Peeked):
            self._spawn(self._peek(connection, effect))
            return
        if isinstance(effect, f.DelayedListed | f.DelayedShown):
            self._spawn(self._look_delayed(connection, effect))
            return
        connection.conversation.send(effect)
        self._collected[connection] = None

    def collected(self, connection: ClientConnection) -> None:
        """A connection has bytes to send at the end of the turn."""
        self._collected[connection] = None
        self.schedule()

    def close_after_turn(self, connection: ClientConnection) -> None:
        """A connection ends when what it was sent has left."""
        self._closing.append(connection)
        self.schedule()

    def _flush(self) -> None:
        if self._collected:
            collected, self._collected = self._collected, {}
            for connection in collected:
                connection.flush()
        if self._closing:
            closing, self._closing = self._closing, []
            for connection in closing:
                connection.end()

    # --- what connections ask of the runtime

    def connected(self, connection: ClientConnection, name: str, codec: str, producer: int) -> int:
        """A client said hello; its number."""
        number = self.broker.connect(name, connection.address, codec, producer)
        self.connections[number] = connection
        self.logger.info(
            "client connected", extra={"connection": number, "client": name, "address": connection.address}
        )
        return number

    def disconnected(self, connection: ClientConnection, reason: str, *, lost: bool) -> None:
        """A client is gone."""
        self.connections.pop(connection.number, None)
        self._paused.pop(connection, None)
        self._unread.forget(connection)
        self._collected.pop(connection, None)
        if self.failure is not None:
            return
        self.begin()
        self.broker.disconnect(connection.number, reason, lost=lost)
        self.append()
        self.logger.info("client disconnected", extra={"connection": connection.number, "reason": reason})
        self.schedule()

    def blocked(self, connection: ClientConnection, *, blocked: bool) -> None:
        """A client does not read what it is sent, or reads again."""
        if not blocked:
            self._unread.forget(connection)
        if self.failure is None:
            self.broker.block(connection.number, blocked=blocked)
            self.schedule()

    def unread(self, connection: ClientConnection, size: int) -> None:
        """So much more waits for a client that does not read; above the limit, who began that first is cut off."""
        for client in self._unread.add(connection, size):
            client.abort("it did not read, and too much was waiting for such clients")

    def refused(self, address: str, reason: str) -> None:
        """Somebody was turned away; the log hears of it once a second, by address."""
        known = (address, reason) in self._refused or len(self._refused) < REFUSED_ADDRESSES
        self._refused[address if known else "others", reason] += 1

    def admit(self, connection: ClientConnection, size: int) -> None:
        """Take room on the disk for a publish, and slow its sender down while the log is behind.

        Raises:
            DiskFull: only the reserve is left.
            ShuttingDown: the log cannot be written any more.
        """
        try:
            admitted = self.storage.log.admit(size)
        except StorageError as error:  # perhaps before the writer's thread could tell
            self._on_failure(error)
            raise ShuttingDown("the broker stops: its log cannot be written") from error
        if not admitted:
            raise DiskFull(
                "the broker's disk is full: publishing is refused until there is room, consuming and acking go on"
            )
        if self._unsynced_bytes() > self.settings.limits.unsynced_bytes:
            connection.pause_reading()
            self._paused[connection] = None

    def _has_room(self, size: int) -> bool:
        """Whether the broker may publish so much by itself: the disk has room, and the log is not behind."""
        return self._unsynced_bytes() <= self.settings.limits.unsynced_bytes and self._has_space(size)

    def _has_space(self, size: int) -> bool:
        """Whether the disk has room for so much, beside the reserve."""
        try:
            return self.storage.log.admit(size)
        except StorageError as error:
            self._on_failure(error)
            return False

    def _unsynced_bytes(self) -> int:
        return self.storage.log.buffered_bytes

    # --- reading back

    async def _fetch(self, reading: f.Reading) -> None:
        """Read what the broker asked for, and give it to it."""
        tell: Callable[[], None]
        if isinstance(reading, f.Load):
            tell = partial(self.broker.loaded, reading, await self._read(reading))
        elif isinstance(reading, f.Recall):
            event = await self._in_files(self.storage.recall, reading)
            tell = partial(self.broker.transactions.recalled, reading, event)
        else:
            tell = partial(self.broker.found, reading, await self._in_files(self.storage.look, reading))
        if self.failure is None:
            self.begin()
            tell()
            self.append()
            self.schedule()

    async def _read(self, load: f.Load) -> list[f.StoredBatch]:
        return await self._in_files(self.storage.load, load)

    async def _in_files(self, look: Callable[[ASKED], ANSWER], asked: ASKED) -> ANSWER:
        """Look for what is, or is about to be, in the files."""
        log, appended = self.storage.log, self._journal.next_offset
        while True:
            written = log.written >= appended
            try:
                return await self._loop.run_in_executor(self._executor, look, asked)
            except BeyondLog as error:
                if written:  # all that there was is in the files, and it is not among it
                    raise StorageError(f"the state and the log do not agree: {error.text}") from error
            await asyncio.sleep(LAZY_S)

    async def _peek(self, connection: ClientConnection, peeked: f.Peeked) -> None:
        """Answer a Peek with what was ready when it came."""
        async with self._peeking:
            connection.conversation.answer_peek(peeked.request, await self._read_peeked(peeked))
        self.collected(connection)

    async def _look_delayed(self, connection: ClientConnection, asked: f.DelayedListed | f.DelayedShown) -> None:
        """Answer what is asked about messages that wait for their time."""
        reading, conversation = self.storage.delayed, connection.conversation
        async with self._peeking:
            if isinstance(asked, f.DelayedListed):
                conversation.answer_peek(asked.request, await self._in_files(reading.listed, asked))
            elif (found := await self._in_files(reading.shown, asked)) is not None:
                conversation.answer_peek(asked.request, found)
            else:
                text = f"no message waits for its time there that has the id {asked.offset}-{asked.at}"
                conversation.refuse_peek(f.Refusal(0, asked.connection, asked.request, UnknownMessage(text)))
        self.collected(connection)

    async def _read_peeked(self, peeked: f.Peeked) -> list[dict[str, Any]]:
        left = self.settings.limits.peek_bytes
        found: list[dict[str, Any]] = []
        read = deque[f.StoredBatch]()  # one look in the files may be enough for a thousand dead letters
        for number, (lane, start, end, failed, redelivered) in enumerate(peeked.spans):
            why = _timed(peeked.why[number]) if peeked.why else {}
            at = start
            while at < end and left > 0:
                while read and (read[0].origin.lane != lane or read[0].end <= at):
                    read.popleft()
                if not read or read[0].sequence > at:
                    read = deque(await self._read(f.Load(peeked.queue, lane, at)))
                stored = read[0]
                first, count = at - stored.sequence, min(end, stored.end) - at
                found += [one | why for one in _describe(stored, first, count, failed + 1, redelivered)]
                left -= stored.origin.bytes(first, count)
                at += count
        return found

    # --- time

    def _set_timer(self) -> None:
        due_us = self.broker.next_due_us()
        if due_us is None or (self._timer is not None and self._timer_due_us <= due_us):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_us = due_us
        self._timer = self._loop.call_later(max(0, due_us - self.clock.now_us()) / 1_000_000 + 0.0005, self._tick)

    def _tick(self) -> None:
        # Housekeeping comes here, too: a timer that was forgotten, not cancelled, would go on beside the next one.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.failure is not None or self._stopped:
            return
        self.begin()
        self.broker.tick()
        self.append()
        self.schedule()

    async def _housekeep(self) -> None:
        """Once a second: heartbeats, the disk, refusals, the wall clock."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._tick()
            if self.failure is not None:
                return
            self._check_heartbeats()
            log = self.storage.log
            if log.disk_full and log.space_returned():
                self.logger.warning("the disk has room again: publishes are accepted")
            for (address, reason), count in self._refused.items():
                self.broker.refused(address, reason, count)
            self._refused.clear()
            self.append()
            if jump_us := self.clock.wall_jump_us():
                self.logger.warning(
                    "the wall clock was set; broker time goes on", extra={"seconds": jump_us / 1_000_000}
                )

    def _check_heartbeats(self) -> None:
        now_us = self.clock.now_us()
        for connection in list(self.connections.values()):
            if now_us - connection.last_heard_us > 2 * connection.heartbeat_us:
                connection.close(105, f"nothing was heard for {2 * connection.heartbeat_us // 1_000_000} s")

    async def _seal_for_ever(self) -> None:
        """Apart from the rest: what an earlier run left unsealed may take minutes."""
        while self.failure is None:
            await asyncio.sleep(HOUSEKEEPING_S)
            await self._seal()

    async def _seal(self) -> None:
        log = self.storage.log
        for facts in log.unsealed():
            previous = log.last_seal
            end, seal = await self._loop.run_in_executor(
                self._executor, seal_segment, self.storage.disk, log.id, facts.base, previous
            )
            if self.failure is not None:
                return
            self.begin()
            self._journal.record(SegmentSealed(facts.base, end, seal, previous))
            self.append()
            self.schedule()

    async def _checkpoint_for_ever(self) -> None:
        left_s = interval_s = self.settings.checkpoint_interval_ms / 1000
        while True:
            pause_s = min(left_s, PRESSURE_S)
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            if left_s <= 0:
                done, left_s = await self._checkpointer.take(), interval_s
            else:
                done = not self._checkpointer.is_pressed or await self._checkpointer.relieve()
            if not done and self.failure is None:
                self.logger.warning("no checkpoint was taken", extra={"reason": self.storage.index.failure})


def _describe(stored: f.StoredBatch, first: int, count: int, attempt: int, redelivered: bool) -> list[dict[str, Any]]:
    """Messages as the answer to Peek has them (docs/protocol.md)."""
    batch = Batch(b"".join(stored.batch.cut(first, count)))
    return [
        {
            "id": f"{stored.origin.offset}-{stored.origin.index + first + at}",
            "sequence": stored.sequence + first + at,
            "body": body,
            **_headers(packed),
            "attempt": attempt,
            "redelivered": redelivered,
            "published_at": rfc3339(stored.time_us),
        }
        for at, (body, packed) in enumerate(zip(batch.bodies(), batch.packed_headers(), strict=True))
    ]


def _headers(packed: bytes | memoryview) -> dict[str, Any]:
    """The headers of a message; as base64 where its producer packed something else."""
    headers, encoded = headers_or_base64(packed)
    return {"headers": headers} if encoded is None else {"headers": headers, "headers_base64": encoded}


def _timed(why: dict[str, Any]) -> dict[str, Any]:
    """Where a message is a dead letter, and why, with the time as text."""
    dead = {key: value for key, value in why["dead"].items() if key != "dead_us"}
    return why | {"dead": dead | {"at": rfc3339(why["dead"]["dead_us"])}}

"""The thread that writes, driven by a loop made of a queue."""

import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from tests.log.building import TIME_US, event, new_log, recovered
from tests.sim.disk import SimulatedDisk
from vibemq.errors import UsageError, WriteFailed
from vibemq.log import writer as writing
from vibemq.log.disk import Disk
from vibemq.log.index import MemoryIndex
from vibemq.log.log import Group, Log
from vibemq.log.writer import INLINE_BYTES_MAX, INLINE_S_MAX, THREAD_GROUPS, Sync, SyncPolicy, Writer

WAIT_S = 30


class Loop:
    """What of an event loop the writer needs: run this over there."""

    def __init__(self, log: Log, policy: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self.done = 0
        self.failures: list[WriteFailed] = []
        self.writer = Writer(
            log,
            SyncPolicy.parse(policy),
            lambda call, *args: self._calls.put((call, args)),
            self._done,
            self.failures.append,
        )
        self.writer.start()

    def _done(self) -> None:
        self.done += 1

    def turn(self) -> None:
        call, args = self._calls.get(timeout=WAIT_S)
        call(*args)

    def until_idle(self) -> None:
        while self.writer.busy and not self.failures:
            self.turn()


@pytest.mark.parametrize("policy", ["always", "interval:5", "os"])
def test_what_was_appended_meanwhile_is_the_next_group(policy: str) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    loop = Loop(log, policy)
    for number in range(50):
        log.append(event(number), TIME_US, [bytes(200)])
        loop.writer.kick()
    assert loop.writer.busy
    loop.until_idle()
    assert loop.writer.durable == log.written == 50
    assert 2 <= loop.done <= 50
    assert (log.synced == 50) == (policy == "always") or policy == "interval:5"
    loop.writer.close()
    assert log.synced == 50
    disk.crash()
    assert len(recovered(disk)[2]) == 50


def test_an_interval_syncs_by_itself_again_and_again() -> None:
    log = new_log(SimulatedDisk())
    loop = Loop(log, "interval:1")
    for number in range(3):
        log.append(event(number), TIME_US)
        loop.writer.kick()
        while log.synced <= number:
            loop.turn()
    loop.writer.close()


def waits_of_thread(log: Log, policy: str, clock: list[float], script: list[tuple[float, str]]) -> list[float | None]:
    """How long the thread is ready to wait, when so many seconds pass each time and then that happens."""
    waits: list[float | None] = []
    failures: list[WriteFailed] = []

    def get(timeout: float | None) -> object:
        waits.append(timeout)
        passed_s, what = script.pop(0)
        clock[0] += passed_s
        if what == "nothing":
            raise Empty
        if what == "close":
            return None
        log.append(event(1), TIME_US)
        return log.take_group()

    writer = Writer(log, SyncPolicy.parse(policy), lambda call, *args: call(*args), lambda: None, failures.append)
    writer._groups = SimpleNamespace(get=get, empty=lambda: True)  # type: ignore[assignment]
    writer._run()
    assert not failures
    return waits


def test_an_interval_begins_with_the_first_group_that_is_not_synced(clock: list[float]) -> None:
    log = new_log(SimulatedDisk())
    script = [(9.0, "group"), (0.25, "group"), (0.25, "nothing"), (9.0, "group"), (1.0, "nothing"), (9.0, "close")]
    assert waits_of_thread(log, "interval:500", clock, script) == [None, 0.5, 0.25, None, 0.5, None]
    assert log.synced == log.written == 3


@pytest.mark.parametrize("policy", ["always", "os"])
def test_without_an_interval_the_thread_waits_for_groups_alone(policy: str, clock: list[float]) -> None:
    log = new_log(SimulatedDisk())
    script = [(1.0, "group"), (1.0, "group"), (1.0, "close")]
    assert waits_of_thread(log, policy, clock, script) == [None, None, None]
    assert log.synced == (2 if policy == "always" else 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the writer measures syncs with: it stands still unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(writing, "time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    return now


@pytest.mark.usefixtures("clock")
def test_a_lone_group_is_done_when_kick_returns() -> None:
    log = new_log(SimulatedDisk())
    loop = Loop(log, "always")
    for number in range(3):
        log.append(event(number), TIME_US)
        loop.writer.kick(lone=True)
        assert (log.synced, loop.writer.busy, loop.done) == (number + 1, False, number + 1)
    loop.writer.close()


def goes_inline(loop: Loop, log: Log, payload_bytes: int = 0) -> bool:
    """Whether a lone group with such a payload was done when `kick` returned."""
    log.append(event(1), TIME_US, [bytes(payload_bytes)])
    loop.writer.kick(lone=True)
    inline = not loop.writer.busy
    loop.until_idle()
    return inline


@pytest.mark.usefixtures("clock")
def test_the_thread_takes_what_is_large_or_opens_a_segment_and_all_under_other_policies() -> None:
    log = new_log(SimulatedDisk(), segment_bytes=1 << 20)
    loop = Loop(log, "always")
    log.append(event(1), TIME_US)
    head = log.buffered_bytes
    loop.writer.kick()
    loop.until_idle()
    assert goes_inline(loop, log, INLINE_BYTES_MAX - head)
    assert not goes_inline(loop, log, INLINE_BYTES_MAX - head + 1)
    assert goes_inline(loop, log, 1)
    loop.writer.close()
    log = new_log(SimulatedDisk())
    loop = Loop(log, "always")
    base = log.last_base
    while goes_inline(loop, log, 500):
        assert log.last_base == base
    assert log.last_base > base
    loop.writer.close()
    for policy in ("os", "interval:60000"):
        log = new_log(SimulatedDisk())
        loop = Loop(log, policy)
        assert not goes_inline(loop, log)
        loop.writer.close()


def test_after_a_slow_sync_the_thread_does_them_for_a_while(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(SimulatedDisk(), segment_bytes=1 << 20)
    write_group, took = log.write_group, INLINE_S_MAX

    def write_slowly(group: Group, sync: bool) -> None:
        write_group(group, sync)
        clock[0] += took

    monkeypatch.setattr(log, "write_group", write_slowly)
    loop = Loop(log, "always")
    assert all(goes_inline(loop, log) for _ in range(3))
    clock[0], took = 0.0, 2 * INLINE_S_MAX
    assert goes_inline(loop, log)
    assert not any(goes_inline(loop, log) for _ in range(THREAD_GROUPS))
    assert goes_inline(loop, log)
    loop.writer.close()


def test_nothing_is_sent_after_closing_and_the_thread_keeps_no_process_alive() -> None:
    log = new_log(SimulatedDisk())
    loop = Loop(log, "always")
    threads = [thread for thread in threading.enumerate() if thread.name == "vibemq-writer"]
    assert threads
    assert all(thread.daemon for thread in threads)
    loop.writer.close()
    log.append(event(1), TIME_US)
    loop.writer.kick()
    assert (loop.writer.busy, log.buffered_bytes > 0) == (False, True)


@pytest.mark.parametrize("lone", [False, True])
@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_a_failure_is_told_once_and_nothing_follows(operation: str, *, lone: bool) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    loop = Loop(log, "always")
    disk.fail(operation)
    log.append(event(1), TIME_US)
    loop.writer.kick(lone=lone)
    loop.until_idle()
    assert [str(failure) for failure in loop.failures] == [log.failure]
    assert (log.synced, loop.done) == (0, 0)
    with pytest.raises(WriteFailed):
        log.append(event(2), TIME_US)
    with pytest.raises(WriteFailed):
        loop.writer.close()


def test_a_bug_on_the_thread_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(SimulatedDisk())
    loop = Loop(log, "always")
    monkeypatch.setattr(log, "write_group", lambda *_args, **_more: 1 / 0)
    log.append(event(1), TIME_US)
    loop.writer.kick()
    loop.until_idle()
    assert "the writer thread ended: ZeroDivisionError" in str(loop.failures[0])


def test_room_that_cannot_be_taken_ahead_is_told_once_by_whoever_notices_it_first() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    loop = Loop(log, "always")
    disk.fail("create")
    while not log.failure:  # until the thread wants the next segment
        log.append(event(1), TIME_US, [bytes(200)])
        loop.writer.kick()
        while loop.writer.busy and not log.failure:
            loop.turn()
    for _ in range(3):
        loop.writer.kick()
    loop.until_idle()
    assert len(loop.failures) == 1
    with pytest.raises(WriteFailed):
        loop.writer.close()
    while not loop._calls.empty():
        loop.turn()
    assert len(loop.failures) == 1


def test_closing_writes_what_is_left() -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    loop = Loop(log, "os")
    for number in range(10):
        log.append(event(number), TIME_US)
    loop.writer.close()
    log.close()
    disk.crash()
    assert len(recovered(disk)[2]) == 10


@pytest.mark.parametrize("policy", ["interval:60000", "os"])
def test_a_new_segment_proves_the_one_before_to_an_index_as_well(policy: str) -> None:
    disk = SimulatedDisk()
    log = new_log(disk)
    loop = Loop(log, policy)
    index = MemoryIndex()
    for number in range(20):
        log.append(event(number), TIME_US, [bytes(500)])
        loop.writer.kick()
        loop.until_idle()
    assert 0 < log.synced < 20
    assert log.synced_mark.offset == log.synced
    assert log.holds(log.synced_mark)
    assert index.commit(log.synced_mark, {"part": (log.synced, b"")}, start=log.synced)
    loop.writer.close()
    log.close()
    disk.crash()
    again = new_log(disk)
    assert again.holds(index.mark)
    assert index.after_crash(again).rebuilt == ""


def test_policies() -> None:
    assert SyncPolicy.parse("always") == SyncPolicy(Sync.ALWAYS)
    assert SyncPolicy.parse("interval:20") == SyncPolicy(Sync.INTERVAL, 20)
    assert SyncPolicy.parse("os") == SyncPolicy(Sync.OS)
    for wrong in ("", "never", "interval", "interval:", "interval:0", "interval:-1", "always:1", "os:2", "interval:x"):
        with pytest.raises(UsageError, match="always, interval"):
            SyncPolicy.parse(wrong)


@pytest.mark.parametrize("policy", ["always", "interval:1", "os"])
def test_two_threads_and_many_segments_on_a_real_disk(policy: str, tmp_path: Path) -> None:
    log = new_log(Disk(tmp_path))
    loop = Loop(log, policy)
    for number in range(1500):
        assert log.admit(number % 700)
        log.append(event(number), TIME_US, [bytes(number % 700)])
        loop.writer.kick(lone=number % 5 == 0)
        if number % 9 == 0:
            loop.until_idle()
            assert log.read(log.written - 1).offset == log.written - 1
    loop.until_idle()
    assert [record.payload_bytes for record in log.scan(0)] == [number % 700 for number in range(1500)]
    loop.writer.close()
    log.close()
    log, recovery, records = recovered(Disk(tmp_path))
    assert (len(records), recovery.cut_bytes, log.verify().problems) == (1500, 0, [])
    assert len(log.segments()) > 100
    log.close()

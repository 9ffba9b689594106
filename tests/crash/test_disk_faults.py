"""G7 and G8 in large numbers: disks that fail at any call, once or for ever, and disks that fill up."""

import errno
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from typing import Any

from tests.counting import counted
from tests.log.building import TIME_US, acked, event, new_log, open_log, recovered, write
from tests.sim.disk import SimulatedDisk
from vibemq.errors import OutOfSpace, WriteFailed
from vibemq.log.writer import SyncPolicy, Writer

OPERATIONS = {"pwrite": 40, "fdatasync": 40} | dict.fromkeys(
    ("rename", "sync_directory", "truncate", "allocate", "create"), 6
)
"""And among how many of its next calls the failing one is."""
RECORDS_MAX = 120


class OnceFailing(SimulatedDisk):
    """Fails at one call and is well again: whoever tries a second time believes that all is well."""

    def called(self, operation: str) -> None:
        try:
            super().called(operation)
        except OSError:
            self.heal()
            raise


class Publisher:
    """Appends, and believes what the writer says is durable."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = (OnceFailing if self.random.random() < 0.5 else SimulatedDisk)(seed)
        self.log = new_log(self.disk)
        self.appended: list[bytes] = []
        self.confirmed = 0
        self.failures: list[WriteFailed] = []
        self.calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self.writer = Writer(
            self.log,
            SyncPolicy.parse("always"),
            lambda call, *args: self.calls.put((call, args)),
            self.done,
            self.failures.append,
        )
        self.threaded = self.random.random() < 0.1  # a thread costs more than all the rest
        if self.threaded:
            self.writer.start()

    def done(self) -> None:
        assert not self.failures, "something was confirmed after a failure"
        self.confirmed = self.writer.durable

    def run(self) -> None:
        random = self.random
        operation = random.choice(list(OPERATIONS))
        self.disk.fail(operation, random.choice((errno.EIO, errno.EROFS)), random.randrange(OPERATIONS[operation]))
        try:
            for number in range(RECORDS_MAX):
                payload = bytes([number + 1]) * random.randrange(600)
                if not self.log.admit(len(payload)):
                    break
                self.log.append(event(number), TIME_US, [payload])
                self.appended.append(payload)
                if random.random() < 0.4:
                    self.write()
                if self.failures:
                    break
        except (WriteFailed, OutOfSpace):
            pass

    def write(self) -> None:
        if not self.threaded:
            group = self.log.take_group()
            if group is not None:
                self.log.write_group(group, sync=True)
                self.log.group_done(group, synced=True)
                self.done()
                self.log.prepare()
            return
        self.writer.kick(lone=self.random.random() < 0.5)
        while self.writer.busy and not self.failures:
            call, args = self.calls.get(timeout=30)
            call(*args)

    def finish(self) -> None:
        """Nothing is accepted after a failure; after a power loss all that was confirmed is there, and nothing else."""
        if self.log.failure:
            synced = self.log.synced
            for attempt in (self.log.take_group, self.log.sync, lambda: self.log.append(event(1), TIME_US)):
                try:
                    attempt()
                except WriteFailed:
                    continue
                raise AssertionError("a failed log went on")
            assert self.log.synced == synced
        self.disk.heal()
        if self.threaded:
            try:
                self.writer.close()
            except WriteFailed:
                assert self.log.failure
        self.disk.crash()
        got = [bytes(record.payload) for record in recovered(self.disk)[2]]
        assert len(got) >= self.confirmed
        assert got == self.appended[: len(got)]


def test_nothing_is_confirmed_after_a_fault_and_nothing_confirmed_is_lost() -> None:
    failed = 0
    with counted("G7_DISK", 1000) as rounds:
        for seed in rounds:
            publisher = Publisher(seed)
            try:
                publisher.run()
                publisher.finish()
            except AssertionError as problem:
                problem.add_note(f"again: VIBEMQ_TORTURE_SEED={seed} VIBEMQ_TORTURE_G7_DISK=1 pytest {__file__}")
                raise
            failed += bool(publisher.log.failure)
        assert failed > rounds.done // 2, "most faults must be met"


def test_full_disks_refuse_publishes_and_nothing_else() -> None:
    with counted("G8_DISK", 50) as rounds:
        for seed in rounds:
            fill_up(seed)


def fill_up(seed: int) -> None:
    """Publish to a disk of any size until it is full; acks go on, and publishes too when it has grown."""
    random = Random(seed)
    disk = SimulatedDisk(seed, capacity_bytes=random.randrange(40_000, 120_000))
    log = open_log(disk, segment_bytes=random.choice((4096, 16_384)), reserve_bytes=16_384)
    log.recover()
    for grown in range(3):
        published = 0
        while log.admit(size := random.randrange(1, 2000)):
            log.append(event(published), TIME_US, [bytes(size)])
            published += 1
            if random.random() < 0.5:
                write(log)
        write(log)
        assert log.disk_full
        for number in range(random.randrange(60)):
            log.append(acked(number), TIME_US)
            write(log)
        assert not log.admit(1)
        assert disk.capacity_bytes is not None
        disk.capacity_bytes += random.randrange(100_000, 200_000)
        assert log.space_returned(), f"seed {seed}, grown {grown} times"
        assert log.admit(1)
    count = log.next_offset
    disk.crash(power=random.random() < 0.5)
    disk.capacity_bytes = None
    assert len(recovered(disk)[2]) == count

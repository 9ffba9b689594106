"""G7 in large numbers: a disk that fails at any call, under the log and its writer, once or for ever."""

import errno
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from typing import Any

from tests.counting import counted
from tests.log.building import TIME_US, event, new_log, recovered
from tests.sim.disk import SimulatedDisk
from vibemq.errors import OutOfSpace, WriteFailed
from vibemq.log.writer import SyncPolicy, Writer

OPERATIONS = ("pwrite", "fdatasync", "rename", "sync_directory", "truncate", "allocate", "create")
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
        self.disk.fail(random.choice(OPERATIONS), random.choice((errno.EIO, errno.EROFS)), random.randrange(40))
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

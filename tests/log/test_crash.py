"""What a power loss leaves: everything that was synced, and nothing but a prefix of what was appended."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.counting import counted
from tests.log.building import TIME_US, event, new_log, open_log, recovered
from tests.sim.disk import SimulatedDisk, SimulatedFile
from vibemq.errors import StorageError
from vibemq.log.log import Group, Log


class CrashingLog(RuleBasedStateMachine):
    """Appends, writes, syncs and crashes in any order; the model is the list of payloads that were appended."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.log = new_log(self.disk)
        self.appended: list[bytes] = []
        self.synced = 0
        self.written = 0
        self.unsynced: list[Group] = []

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.disk.random.seed(seed)

    @rule(sizes=st.lists(st.integers(0, 1500) | st.integers(0, 9000), min_size=1, max_size=8))
    def append(self, sizes: list[int]) -> None:
        for size in sizes:
            payload = bytes([len(self.appended) % 251 + 1]) * size
            offset = self.log.append(event(len(self.appended)), TIME_US, [payload[:100], payload[100:]])
            assert offset == len(self.appended)
            self.appended.append(payload)

    @rule(sync=st.booleans(), prepare=st.booleans())
    def write(self, *, sync: bool, prepare: bool) -> None:
        group = self.log.take_group()
        if group is None:
            return
        self.log.write_group(group, sync)
        self.log.group_done(group, sync)
        self.written = group.end
        if prepare:
            self.log.prepare()

    @rule()
    def sync(self) -> None:
        self.log.sync_done(self.log.sync())

    @rule()
    def half_written(self) -> None:
        """The crash comes after the write and before the group is done."""
        group = self.log.take_group()
        if group is not None:
            self.log.write_group(group, sync=False)
        self.crash(power=True)

    @rule(power=st.booleans())
    def crash(self, *, power: bool) -> None:
        self.synced = self.log.synced
        self.disk.crash(power=power)
        log, recovery, records = recovered(self.disk)
        got = [bytes(record.payload) for record in records]
        least = self.synced if power else self.written
        assert least <= len(got)
        assert got == self.appended[: len(got)]
        assert [record.offset for record in records] == list(range(len(got)))
        assert recovery.end.offset == log.synced == log.next_offset == len(got)
        self.log, self.appended, self.written = log, got, len(got)

    @invariant()
    def positions_are_in_order(self) -> None:
        assert self.log.synced <= self.log.written <= self.log.next_offset == len(self.appended)

    @invariant()
    def what_is_written_can_be_read(self) -> None:
        if self.log.written:
            for offset in {0, self.log.written // 2, self.log.written - 1}:
                assert bytes(self.log.read(offset).payload) == self.appended[offset]


TestCrashingLog = CrashingLog.TestCase
TestCrashingLog.settings = settings(max_examples=60, stateful_step_count=25)


def run_with_crashes(seed: int, crash_at: int) -> tuple[int, int]:
    """Fill a log of many small segments on a disk whose power goes after so many calls: synced before, found after."""
    disk = CrashAfter(seed, crash_at)
    synced = appended = 0
    log: Log | None = None
    try:
        log = open_log(disk)
        log.recover()
        for number in range(60):
            log.append(event(number), TIME_US, [bytes([number + 1]) * 400])
            appended += 1
            if number % 3 == 2:
                group = log.take_group()
                assert group is not None
                log.write_group(group, sync=True)
                log.group_done(group, synced=True)
                log.prepare()
                synced = log.synced
    except PowerLossError:
        pass
    disk.lose()
    log, _, records = recovered(disk)
    assert [bytes(record.payload) for record in records] == [
        bytes([number + 1]) * 400 for number in range(len(records))
    ]
    assert len(records) <= appended
    assert log.verify().problems == []
    return synced, len(records)


class PowerLossError(Exception):
    """The machine is off."""


class CrashAfter(SimulatedDisk):
    """Its power goes at the n-th call that changes anything."""

    def __init__(self, seed: int, crash_at: int) -> None:
        super().__init__(seed)
        self._left = crash_at

    def called(self, operation: str) -> None:
        super().called(operation)
        if operation != "pread":
            self._left -= 1
            if self._left == 0:
                raise PowerLossError

    def lose(self) -> None:
        self._left = 0
        self.crash()


def test_a_crash_at_any_call_loses_nothing_that_was_synced() -> None:
    """Creation, growth, rolling to the next segment: a crash before each call that they make."""
    with counted("G2", 20_000) as rounds:
        for seed in rounds:
            crash_at = seed % 219 + 1
            synced, found = run_with_crashes(seed, crash_at)
            assert found >= synced, f"run_with_crashes({seed}, {crash_at})"


def plant_directory_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedDisk, "sync_directory", lambda *_: None)


def plant_file_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedFile, "fdatasync", lambda *_: None)


@pytest.mark.parametrize("plant", [plant_directory_not_synced, plant_file_not_synced])
def test_a_sync_left_out_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(noticed(seed, crash_at) for crash_at in range(100, 220, 5) for seed in range(5))


def noticed(seed: int, crash_at: int) -> bool:
    """Whether something synced was lost, or the log is refused."""
    try:
        synced, found = run_with_crashes(seed, crash_at)
    except StorageError:
        return True
    return found < synced

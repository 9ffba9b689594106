"""What a power loss leaves: everything that was synced, and nothing but a prefix of what was appended."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.counting import counted
from tests.log.building import TIME_US, event, new_log, open_log, recovered
from tests.sim.disk import SimulatedDisk, SimulatedFile
from vibemq.errors import StorageError
from vibemq.log.log import Group


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


WORKLOADS = [(group, size) for group in (1, 3, 5) for size in (100, 400, 1500)]
"""Records in a group, and bytes in a record."""
OUTCOMES = 4
"""So many states are looked at of all that a disk may be in after one power loss."""


def fill_until_crash(disk: "CrashAfter", group: int, size: int) -> tuple[int, int]:
    """Fill a log of many small segments until the power goes: records synced, and appended, by then."""
    synced = appended = 0
    with suppress(PowerLossError):
        log = open_log(disk)
        log.recover()
        for number in range(60):
            log.append(event(number), TIME_US, [bytes([number + 1]) * size])
            appended += 1
            if appended % group == 0:
                taken = log.take_group()
                assert taken is not None
                log.write_group(taken, sync=True)
                log.group_done(taken, synced=True)
                log.prepare()
                synced = log.synced
    return synced, appended


def every_point() -> list[tuple[int, int, int]]:
    """Each call of each workload, for the power to go at, and its end."""
    points: list[tuple[int, int, int]] = []
    for workload in WORKLOADS:
        disk = CrashAfter(0, 0)
        fill_until_crash(disk, *workload)
        points += [(crash_at, *workload) for crash_at in range(1, disk.changes + 2)]
    return points


def run_with_crashes(seed: int, crash_at: int, group: int = 3, size: int = 400) -> Iterator[tuple[int, int]]:
    """Some of the states that a power loss may leave: records synced before it, and found after it."""
    disk = CrashAfter(seed, crash_at)
    synced, appended = fill_until_crash(disk, group, size)
    for outcome in range(OUTCOMES):
        yield synced, found_after(disk.fork(seed + outcome), appended, size)


def found_after(disk: SimulatedDisk, appended: int, size: int) -> int:
    """How many records are there after a power loss; they are the first ones, and the log is whole."""
    disk.crash()
    log, _, records = recovered(disk)
    assert [bytes(record.payload) for record in records] == [
        bytes([number + 1]) * size for number in range(len(records))
    ]
    assert len(records) <= appended
    assert log.verify().problems == []
    return len(records)


class PowerLossError(Exception):
    """The machine is off."""


class CrashAfter(SimulatedDisk):
    """Its power goes at the n-th call that changes anything; never for 0."""

    def __init__(self, seed: int, crash_at: int) -> None:
        super().__init__(seed)
        self._crash_at = crash_at
        self.changes = 0

    def called(self, operation: str) -> None:
        super().called(operation)
        if operation != "pread":
            self.changes += 1
            if self.changes == self._crash_at:
                raise PowerLossError


def test_a_crash_at_any_call_loses_nothing_that_was_synced() -> None:
    """Creation, growth, rolling to the next segment: a crash before each call that they make."""
    points = every_point()
    with counted("G2", 20_000) as rounds:
        while rounds.left:
            seed = rounds.first + rounds.done
            where = (seed, *points[seed // OUTCOMES % len(points)])
            for synced, found in run_with_crashes(*where):
                assert found >= synced, f"run_with_crashes{where}"
            rounds.add(OUTCOMES)


def plant_directory_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedDisk, "sync_directory", lambda *_: None)


def plant_file_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedFile, "fdatasync", lambda *_: None)


@pytest.mark.parametrize("plant", [plant_directory_not_synced, plant_file_not_synced])
def test_a_sync_left_out_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(noticed(seed, crash_at) for crash_at in range(20, 120, 5) for seed in range(5))


def noticed(seed: int, crash_at: int) -> bool:
    """Whether something synced was lost, or the log is refused."""
    try:
        return any(found < synced for synced, found in run_with_crashes(seed, crash_at))
    except StorageError:
        return True

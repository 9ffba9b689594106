"""Every bug of the table is caught by the test that the table names."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.log.building import TIME_US, event, new_log, recovered
from tests.planted.table import ELSEWHERE, TABLE, Planted
from tests.sim.disk import SimulatedDisk
from vibemq.errors import VibeMQError
from vibemq.log.disk import Disk

PROCESS_TRIES = 6
"""A real broker is killed when chance has it: in so many laboratories the bug shows for sure, mostly in the first."""


def segments_are_synced_in_order() -> None:
    """Without a sync of the groups themselves, as `--fsync os` has it: a successor proves its predecessor."""
    for seed in range(100):
        disk = SimulatedDisk(seed)
        log = new_log(disk)
        for number in range(seed % 40 + 10):
            log.append(event(number), TIME_US, [bytes([number + 1]) * 400])
            group = log.take_group()
            assert group is not None
            log.write_group(group, sync=False)
            log.group_done(group, synced=False)
        disk.crash()
        records = recovered(disk)[2]
        assert len(records) >= log.synced


def test_segments_are_synced_in_order() -> None:
    segments_are_synced_in_order()


def test_the_table_is_long_enough_and_names_every_bug_once() -> None:
    names = [planted.name for planted in TABLE]
    assert len(names) == len(set(names)) >= 15
    root = Path(__file__).parents[2]
    for _, where in ELSEWHERE:
        file, _, test = where.partition("::")
        assert not test or f"def {test}(" in (root / file).read_text()


@pytest.mark.parametrize("planted", TABLE, ids=lambda planted: planted.name)
def test_a_planted_bug_is_caught(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted.process:
        tries = range(1, PROCESS_TRIES + 1)
        program = [sys.executable, "-m", "tests.planted.run", planted.name]
        assert any(is_noticed(planted, tmp_path / str(seed), seed=seed, program=program) for seed in tries)
        return
    assert not is_noticed(planted, tmp_path / "without")
    planted.plant(monkeypatch)
    assert is_noticed(planted, tmp_path / "with")


def is_noticed(planted: Planted, tmp_path: Path, **more: object) -> bool:
    """Whether the test that catches this bug fails."""
    test, given = arguments(planted, tmp_path)
    try:
        test(**given, **more)
    except (AssertionError, VibeMQError, LookupError, pytest.fail.Exception) as problem:
        if planted.fault not in str(problem):  # something else went wrong
            raise
        return True
    return False


def arguments(planted: Planted, tmp_path: Path) -> tuple[Callable[..., None], dict[str, Any]]:
    """The test that catches it, and what to call it with."""
    tmp_path.mkdir(exist_ok=True)
    module, _, name = planted.caught_by.partition(":")
    test: Callable[..., None] = getattr(importlib.import_module(module), name)
    given = dict(planted.arguments)
    wanted = inspect.signature(test).parameters
    if "tmp_path" in wanted:
        given["tmp_path"] = tmp_path
    if "disk" in wanted:
        given["disk"] = Disk(tmp_path)
    return test, given

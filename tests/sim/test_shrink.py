"""A failing history shrinks to the few steps that matter, and tells them."""

import pytest

from tests.sim import shrink
from tests.sim.bugs import acks_confirmed_before_the_sync
from tests.sim.world import STEPS, run_seed


def test_a_row_shrinks_to_what_is_needed() -> None:
    assert shrink.shrink(list(range(500)), lambda steps: {3, 77, 499} <= set(steps)) == [3, 77, 499]
    assert shrink.shrink([1, 2, 3], lambda _: True) == []


def test_a_history_shrinks_and_fails_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted bug needs a publish, a delivery, an ack, and a loss of power: that is all that is left."""
    acks_confirmed_before_the_sync(monkeypatch)
    seed = next(seed for seed in range(200) if shrink.failure(seed, "any", list(range(STEPS))))
    with pytest.raises(AssertionError) as failed:
        run_seed(seed)
    assert f"python -m tests.sim.shrink {seed} {STEPS} any" in "".join(failed.value.__notes__)
    monkeypatch.setattr("sys.argv", ["shrink", str(seed)])
    shrink.main()
    told = capsys.readouterr().out
    left = int(told.splitlines()[-1].split()[0])
    assert 0 < left < STEPS // 10
    assert "they fail: answered before it is durable" in told.splitlines()[-1]
    assert "publish" in told
    assert "and wait" in told


def test_what_does_not_fail_is_not_shrunk() -> None:
    assert shrink.shrunken(1, 20, "any") == []

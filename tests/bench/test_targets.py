import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.targets import MEASUREMENTS, Figure, table

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.targets", "--rounds", "1", "--scale", "0.005", "--only", name, "--json"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in {0, 1}, done.stderr  # 1: a target was missed, which so small a run does not decide
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert figures, done.stderr
    assert all(len(figure["rounds"]) == 1 for figure in figures)
    assert list(tmp_path.iterdir()) == []


def test_the_verdict_is_about_the_share_that_is_shown() -> None:
    """The quotient of the medians here is 35 %, the median of the shares 60 %: one of them must do for both."""
    figure = Figure("x", "messages/s", [60.0, 35.0, 30.0], [100.0, 50.0, 200.0], share_wanted=0.5)
    assert figure.verdict is True
    row = table([figure]).splitlines()[1]
    assert "60%" in row
    assert "15% - 70%" in row
    assert row.endswith("at least 50%: met")
    missed = Figure("x", "messages/s", [49.0], [100.0], share_wanted=0.5)
    assert missed.verdict is False
    assert "49%" in table([missed])
    assert table([missed]).endswith("at least 50%: MISSED")


def test_a_figure_without_a_target_has_no_verdict() -> None:
    assert Figure("x", "s", [1.0]).verdict is None
    assert Figure("x", "messages/s", [99_999.0], value_wanted=100_000).verdict is False


def test_the_bare_path_moves_what_it_is_asked_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.ceiling", "--messages", "5000", "--batch", "100", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    figures = json.loads(done.stdout)
    assert figures["messages"] == 5_000
    assert figures["end_to_end_per_s"] > 0
    assert list(tmp_path.iterdir()) == []

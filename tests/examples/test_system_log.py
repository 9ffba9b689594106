import subprocess
import sys
from pathlib import Path

import pytest

from examples.system_log.check import Consumed, faults, read_records
from examples.system_log.source import numbered, system_log

ROOT = Path(__file__).parent.parent.parent
SENT = [b"0 a", b"1 b", b"2 c"]
CONFIRMED = ["5-0", "5-1", "6-0"]
CONSUMED = [Consumed(line, name, redelivered=False) for line, name in zip(SENT, CONFIRMED, strict=True)]


def test_no_line_is_lost_in_kills(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.system_log", "--lines", "20000", "--kills", "2", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("killed the broker") for line in lines) == 2
    assert "vibemq publish ended with 0; 20000 lines confirmed" in lines
    consumed = [one for path in tmp_path.glob("consumer-*") for one in read_records(path)]
    assert {one.line for one in consumed} == set(numbered(system_log()[1], 20_000))


def test_a_run_without_fault_passes() -> None:
    again = Consumed(SENT[1], CONFIRMED[1], redelivered=True)
    assert faults(SENT, CONFIRMED, CONSUMED) == []
    assert faults(SENT, CONFIRMED, [again, again, *CONSUMED]) == []


@pytest.mark.parametrize(
    ("consumed", "word"),
    [
        (CONSUMED[:2], "lost"),
        ([*CONSUMED, Consumed(b"3 d", "7-0", redelivered=False)], "unexpected"),
        ([*CONSUMED, CONSUMED[0]], "not flagged"),
        ([*CONSUMED, Consumed(SENT[0], "9-0", redelivered=True)], "stored twice"),
    ],
)
def test_a_planted_fault_is_found(consumed: list[Consumed], word: str) -> None:
    (fault,) = faults(SENT, CONFIRMED, consumed)
    assert fault.startswith(word)


def test_lines_without_a_receipt_and_lines_alike_are_faults() -> None:
    assert len(faults(SENT, CONFIRMED[:2], CONSUMED)) == 1
    assert len(faults([*SENT, SENT[0]], [*CONFIRMED, "5-0"], CONSUMED)) == 1


def test_there_is_a_log_on_every_machine_and_its_lines_are_made_unique() -> None:
    name, lines = system_log()
    assert name
    found = list(numbered(lines, len(lines) + 10))
    assert len(found) == len(set(found)) == len(lines) + 10

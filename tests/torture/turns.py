"""The tests of a source in a process of their own, for one turn."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.torture.report import Figure, Outcome
from tests.torture.schedule import Turn

ROOT: Final = Path(__file__).parents[2]
OVERTIME_S: Final = 300
"""How long after its time a test may take to finish its round."""
LEAVE_S: Final = 60
"""How long an interrupted test may take to clean up."""


class RunningTurn:
    """A turn that runs. It is a process group of its own, so that Ctrl-C reaches it through `interrupt` only."""

    def __init__(self, turn: Turn) -> None:
        """Begin it."""
        self.turn = turn
        self._folder = tempfile.TemporaryDirectory(prefix="vibemq-torture-")
        self._began = time.monotonic()
        folder = Path(self._folder.name)
        self._report, self._said = folder / "report", folder / "said"
        self._report.touch()
        environment = {
            **os.environ,
            f"VIBEMQ_TORTURE_{turn.source.key}": str(turn.rounds),
            "VIBEMQ_TORTURE_SEED": str(turn.seed),
            "VIBEMQ_TORTURE_SECONDS": str(turn.seconds / turn.source.parts),
            "VIBEMQ_TORTURE_REPORT": str(self._report),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, *turn.source.tests],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        """Whether it has ended, by itself or because it was late."""
        if self._process.poll() is None and time.monotonic() - self._began > self.turn.seconds + OVERTIME_S:
            self.interrupt()
        return self._process.poll() is not None

    def interrupt(self) -> None:
        """Have it stop where it is, clean up, and report what it has done."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(LEAVE_S)

    def result(self, *, interrupted: bool) -> tuple[Outcome, str]:
        """What came of it, and what its tests said if any of them failed. `interrupted` by whoever runs all this."""
        lines = [json.loads(line) for line in self._report.read_text().splitlines()]
        said = self._said.read_text(errors="replace")
        self._folder.cleanup()
        source, seconds = self.turn.source, time.monotonic() - self._began
        counts = [line for line in lines if line["guarantee"] == source.key and "rounds" in line]
        figures = [Figure(line["guarantee"], line["what"], line["figure"]) for line in lines if "figure" in line]
        failures = sum(line["failures"] for line in counts)
        if self._process.returncode and not interrupted:
            failures = max(failures, 1)
        outcome = Outcome(source, sum(line["rounds"] for line in counts), failures, seconds, figures)
        return outcome, said if failures else ""

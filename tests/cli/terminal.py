"""A terminal for the command line: what is asked there, and what is drawn."""

import os
import pty
import subprocess
import termios
from contextlib import suppress

from tests.cli.processes import PATIENCE_SECONDS, VIBEMQ, ServedBroker, environment


def answered(broker: ServedBroker, answer: bytes, *arguments: str) -> int:
    """Run a command at a terminal, and answer what it asks; its exit code."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*VIBEMQ, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(broker.url)
        ) as process:
            os.write(ours, answer)
            return process.wait(PATIENCE_SECONDS)
    finally:
        os.close(theirs)
        os.close(ours)


def drawn(broker: ServedBroker, *arguments: str, columns: int = 200) -> str:
    """What a command that asks nothing prints on a terminal of that width."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    found = environment(broker.url)
    found = {name: value for name, value in found.items() if name not in {"COLUMNS", "LINES"}} | {"TERM": "xterm"}
    with subprocess.Popen([*VIBEMQ, *arguments], stdout=theirs, stderr=theirs, env=found) as process:
        os.close(theirs)  # so that reading ends with the process
        text = b""
        with suppress(OSError):
            while some := os.read(ours, 100_000):
                text += some
        assert process.wait(PATIENCE_SECONDS) == 0
    os.close(ours)
    return text.decode()

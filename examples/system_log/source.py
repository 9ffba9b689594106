"""Where the lines come from: a log that this machine has written itself."""

import subprocess
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Final

LOGS: Final = (Path("/var/log/dpkg.log"), Path("/var/log/apt/history.log"))
REPOSITORY: Final = Path(__file__).parent.parent.parent


def system_log() -> tuple[str, list[bytes]]:
    """The name of the first log that is there, and its lines; without any, the history of this repository."""
    for path in LOGS:
        if path.is_file() and (lines := path.read_bytes().splitlines()):
            return str(path), lines
    command = ["git", "-C", str(REPOSITORY), "log", "--stat"]
    history = subprocess.run(command, capture_output=True, check=True).stdout
    return "git log", history.splitlines()


def numbered(lines: list[bytes], count: int) -> Iterator[bytes]:
    """`count` lines, the log again and again; a number in front of each makes it unlike all others."""
    for number, line in enumerate(islice(cycle(lines), count)):
        yield b"%07d %s" % (number, line)

"""Runs in the interpreter, and with the PYTHONPATH, of one build: prints the digests of a log at the offsets on stdin.

A line of JSON for each offset: {"offset", "digests"}; after {"offset", "error"} the build could not go on.
"""

import json
import sys
from pathlib import Path

from vibemq.errors import VibeMQError
from vibemq.history.replay import digests_at
from vibemq.history.source import History


def main(data: str) -> None:
    """Answer all questions, or say why not."""
    offsets = [int(line) for line in sys.stdin]
    history = History.open(Path(data))
    try:
        for offset, digests in digests_at(history, offsets):
            _print({"offset": offset, "digests": digests})
    except VibeMQError as error:
        _print({"offset": getattr(error, "offset", 0), "error": error.text})


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

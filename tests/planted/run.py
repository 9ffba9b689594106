"""The command `vibemq` with a planted bug in it: python -m tests.planted.run BUG serve ..."""

import sys

import pytest

from tests.planted import bugs
from vibemq.cli.main import main

if __name__ == "__main__":
    name = sys.argv.pop(1)
    getattr(bugs, name)(pytest.MonkeyPatch())
    sys.exit(main())

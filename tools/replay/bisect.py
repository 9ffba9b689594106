"""Where two builds part: the first event after which they have different digests, for each part of the state.

Each build replays the log in a process of its own and prints digests at the offsets that it is asked for. Between the
last offset at which a part agrees and the first at which it differs, more offsets are asked for, until these two are
next to each other. A replay starts from zero each time, so a round costs two replays; each divides the ranges by FAN.

A difference that is gone again at the next offset asked for is not seen. The first round asks for FIRST of them, or for
each `every`-th: with 1 nothing is missed, at the price of a digest for each event.
"""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from vibemq.errors import UsageError
from vibemq.history.replay import kind_of
from vibemq.history.source import History

FIRST: Final = 64
FAN: Final = 16
REPLAY: Final = "replay"
"""Stands for a part where a build cannot go on at all."""

Digests = dict[str, str]


class Build(NamedTuple):
    """An interpreter, and the PYTHONPATH that lets it import one build of VibeMQ (empty: what is installed)."""

    python: str
    pythonpath: str


class Disagreement(NamedTuple):
    """A part, the first offset at which its digests differ, the event before that offset, and both digests."""

    part: str
    offset: int
    event: str
    first: str | None
    second: str | None


class Bisection(NamedTuple):
    """All parts that differ, in the order of the log; the replays went up to `end`."""

    end: int
    disagreements: list[Disagreement]


class _Answers:
    """What one build says: digests by offset, and where it had to stop."""

    def __init__(self, lines: list[dict[str, object]]) -> None:
        self.by_offset: dict[int, Digests] = {}
        self.stopped_at: int | None = None
        self.error = ""
        for line in lines:
            offset, digests = line["offset"], line.get("digests")
            assert isinstance(offset, int)
            if isinstance(digests, dict):
                self.by_offset[offset] = {key: value for key, value in digests.items() if key != "all"}
            else:
                self.stopped_at, self.error = offset, str(line.get("error"))

    def at(self, offset: int) -> Digests:
        """The digests there; only REPLAY where the build did not get so far."""
        if self.stopped_at is not None and offset > self.stopped_at:
            return {REPLAY: self.error}
        return self.by_offset[offset]


class _Range(NamedTuple):
    """A part agrees at offset `low` (-1: nowhere) and differs at `high`, where it has these digests."""

    low: int
    high: int
    first: str | None
    second: str | None


def bisect(
    data: Path, first: Build, second: Build, wanted: frozenset[str] = frozenset(), every: int | None = None
) -> Bisection:
    """Find where two builds part. `wanted` names the parts to look at; empty: all.

    Raises:
        UsageError: a build cannot be run.
        StorageError: the log cannot be read.
    """
    end = _end(data)
    offsets = _spread(0, end, FIRST) if every is None else [*range(0, end, every), end]
    ranges: dict[str, _Range] = {}
    keys: set[str] = set()
    while offsets:
        answers = _ask(data, (first, second), offsets)
        keys = keys or {REPLAY, *(key for one in answers for at in one.by_offset.values() for key in at)}
        for key in keys if not wanted else keys & (wanted | {REPLAY}):
            found = _narrow(key, ranges.get(key), offsets, answers)
            if found is not None:
                ranges[key] = found
        keys = set(ranges)
        offsets = sorted({at for one in ranges.values() for at in _spread(one.low, one.high, FAN)[1:-1]})
    history = History.open(data)
    parts = sorted(ranges.items(), key=lambda item: (item[1].high, item[0]))
    found_parts = [
        Disagreement(part, one.high, _event_before(history, one.high), one.first, one.second) for part, one in parts
    ]
    return Bisection(end, found_parts)


def _end(data: Path) -> int:
    """The length of the log, in records."""
    count = 0
    for record in History.open(data).records():
        count = record.offset + 1
    return count


def _spread(low: int, high: int, count: int) -> list[int]:
    """Up to `count` + 1 offsets from low to high, both included."""
    steps = min(count, high - low)
    return [low + (high - low) * step // steps for step in range(steps + 1)] if steps > 0 else [low]


def _narrow(key: str, known: _Range | None, offsets: list[int], answers: tuple[_Answers, _Answers]) -> _Range | None:
    """What is known of a part after these answers; None when it does not differ."""
    low = -1 if known is None else known.low
    for offset in offsets:
        if offset <= low or (known is not None and offset >= known.high):
            continue
        first, second = (one.at(offset) for one in answers)
        if key != REPLAY and (REPLAY in first or REPLAY in second):
            break
        if first.get(key) != second.get(key):
            return _Range(low, offset, first.get(key), second.get(key))
        low = offset
    return None if known is None else known._replace(low=low)


def _event_before(history: History, offset: int) -> str:
    record = next(history.records(offset - 1, offset), None) if offset > 0 else None
    return "" if record is None else kind_of(record.tag)


def _ask(data: Path, builds: tuple[Build, Build], offsets: list[int]) -> tuple[_Answers, _Answers]:
    """Let both builds replay the log at the same time."""
    children = [_start(data, build) for build in builds]
    question = "".join(f"{offset}\n" for offset in offsets)
    found = []
    for child in children:
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already; its exit code is looked at below
            child.stdin.write(question)
            child.stdin.close()
        child.stdin = None
    for child, build in zip(children, builds, strict=True):
        output, errors = child.communicate()
        if child.returncode:
            lines = errors.strip().splitlines() or [f"exit code {child.returncode}"]
            raise UsageError(
                f"the build of {build.python} (PYTHONPATH={build.pythonpath!r}) cannot replay: {lines[-1]}"
            )
        found.append(_Answers([json.loads(line) for line in output.splitlines()]))
    return found[0], found[1]


def _start(data: Path, build: Build) -> "subprocess.Popen[str]":
    """One build's process. -P keeps this checkout out of its imports."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if build.pythonpath:
        environment["PYTHONPATH"] = build.pythonpath
    command = [build.python, "-P", str(Path(__file__).with_name("child.py")), str(data)]
    try:
        return subprocess.Popen(  # noqa: S603 - an interpreter that the caller names
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    except OSError as problem:
        raise UsageError(f"{build.python} cannot be run: {problem}") from None

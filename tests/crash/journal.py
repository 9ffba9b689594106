"""What a client of the crash laboratory knows, in a file of its own that survives its death.

A line is one write to a file opened with O_APPEND, so that a killed client leaves whole lines:

    attempted WRITER FIRST END           messages FIRST .. END - 1 are about to be published
    confirmed WRITER FIRST END
    delivered WRITER NUMBER SINCE AT REDELIVERED ID [GROUP]
    asked     WRITER NUMBER [GROUP]      its ack is about to be sent
    acked     WRITER NUMBER AT [GROUP]
    refused   WRITER FIRST END WHY       it may be stored all the same

Times are those of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.checker import Delivery, History, Name

Line = tuple[object, ...]


class Journal:
    """A journal that is written."""

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, lines: Iterable[Line]) -> None:
        """Have the operating system know these lines."""
        text = "".join(f"{' '.join(map(str, line))}\n" for line in lines)
        if text:
            os.write(self._file, text.encode())


class Ticker:
    """Tells since when the loop has surely read what had arrived.

    A loop that has gone round several times after a moment has by then read everything that lay in its sockets at that
    moment, and has noticed the connections that had ended. So what a client finds in its hands now cannot have been
    sent before the third-last tick, unless it was in its hands already; after a pause of the process the ticks are old.
    """

    def __init__(self, interval_s: float = 0.003) -> None:
        """Begin with now."""
        self._interval_s = interval_s
        self._ticks = deque([0.0, 0.0, 0.0], maxlen=3)

    async def run(self, on_tick: Callable[[], None] = lambda: None) -> None:
        """Tick for ever."""
        while True:
            on_tick()
            self._ticks.append(time.monotonic())
            await asyncio.sleep(self._interval_s)

    @property
    def since(self) -> float:
        """The third-last tick."""
        return self._ticks[0]


def body_of(name: Name, size: int) -> bytes:
    """The one body that this message can have; at least as long as its name."""
    head = f"{name.writer} {name.number} {size} ".encode()
    return head + bytes((name.number + at) % 251 for at in range(max(0, size - len(head))))


def name_of(body: bytes) -> Name:
    """Which message a body is; one that was not made by `body_of` is nobody's."""
    try:
        writer, number, size, _ = body.split(b" ", 3)
        name = Name(writer.decode(), int(number))
        if body == body_of(name, int(size)):
            return name
    except ValueError:
        pass
    return Name("nobody:" + body[:32].hex(), 0)


def read(paths: Iterable[Path]) -> History:
    """The history that all journals tell together."""
    history = History()
    for path in paths:
        for line in path.read_text().splitlines():
            _add(history, *line.split(" "))
    return history


def _add(history: History, kind: str, writer: str, *rest: str) -> None:
    if kind == "refused":
        return
    if kind in {"attempted", "confirmed"}:
        names = {Name(writer, number) for number in range(int(rest[0]), int(rest[1]))}
        (history.attempted if kind == "attempted" else history.confirmed).update(names)
        return
    name = Name(writer, int(rest[0]))
    if kind == "delivered":
        since, at, redelivered, identity, *group = rest[1:]
        flagged = redelivered == "True"
        history.delivered.append(Delivery(name, float(since), float(at), flagged, identity, of="".join(group)))
    elif kind == "asked":
        history.asked_for(name, "".join(rest[1:]))
    elif kind == "acked":
        history.acked_at(name, float(rest[1]), "".join(rest[2:]))
    else:
        raise AssertionError(f"a journal has a line of kind {kind!r}")

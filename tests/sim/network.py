"""A network between clients and broker: bytes arrive late, in pieces of any size, or not at all.

A connection is two pipes. What one side writes the other gets in order, in chunks that chance cuts, also inside of a
frame. When a connection is cut, each direction keeps what had got through, and each side learns of the end only when it
has read all of that: until then it may go on talking to nobody, while the client has long come back by another way.
"""

from collections import deque
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING

from vibemq.server.conversation import Conversation

if TYPE_CHECKING:
    from tests.sim.clients import Client

CHUNK_BYTES = (*[1 << 20] * 8, 300, 40, 7, 1)
"""How much arrives at once, at most."""


class Pipe:
    """One direction. `ended`: nothing more is let in; who has read it to its end then learns that."""

    __slots__ = ("_data", "_read", "_writes", "_written", "ended")

    def __init__(self) -> None:
        """Empty, and open."""
        self._data = bytearray()
        self._writes: deque[tuple[int, int]] = deque()  # (bytes written up to it, moment)
        self._read = self._written = 0
        self.ended = False

    def __len__(self) -> int:
        return len(self._data)

    def write(self, parts: Iterable[bytes | memoryview], moment: int) -> None:
        """Send; into an ended pipe for nothing."""
        if not self.ended:
            data = b"".join(parts)
            self._data += data
            self._written += len(data)
            self._writes.append((self._written, moment))

    def read(self, most: int) -> tuple[bytes, int]:
        """Up to `most` bytes, and the moment when the first of them was written: no frame they complete is older."""
        chunk = bytes(self._data[:most])
        del self._data[:most]
        while self._writes and self._writes[0][0] <= self._read:
            self._writes.popleft()
        self._read += len(chunk)
        return chunk, self._writes[0][1]

    def end(self, kept: int | None = None) -> None:
        """Let nothing more in; of what is on its way only the first `kept` bytes arrive."""
        self.ended = True
        if kept is not None:
            del self._data[kept:]


class Wire:
    """A connection: the client's end, the broker's, and what is between."""

    __slots__ = ("client", "conversation", "down", "is_blocked", "up")

    def __init__(self, client: "Client") -> None:
        """From the client; nobody has heard of it yet."""
        self.client: Client | None = client
        """None once the client has closed its end, or learned that it is gone."""
        self.conversation: Conversation | None = None
        """None once the broker has."""
        self.up, self.down = Pipe(), Pipe()
        self.is_blocked = False
        """The client does not read, and the broker has noticed."""

    def cut(self, random: Random) -> None:
        """Break it; some of what was on its way still arrives."""
        for pipe in (self.up, self.down):
            pipe.end(random.randrange(len(pipe) + 1))

    @property
    def is_over(self) -> bool:
        """Whether both ends have learned that it is."""
        return self.client is None and self.conversation is None

"""What waits for clients that do not read.

A client that stops reading is given nothing more, but what it was given before is on its way to it, and in JSON that is
several times as long as what was stored. Of thousands of such clients the memory would be gone, so there is a limit for
all of them together.
"""

from typing import Generic, TypeVar

C = TypeVar("C")


class Unread(Generic[C]):
    """Clients that do not read, since the longest first, and how many bytes wait for each."""

    def __init__(self, bytes_max: int) -> None:
        """Let `bytes_max` wait for all of them."""
        self._bytes_max = bytes_max
        self._waiting: dict[C, int] = {}
        self._bytes = 0

    def add(self, client: C, size: int) -> list[C]:
        """`size` bytes more wait for a client; who is to be cut off for that, and is forgotten here."""
        self._bytes += size
        self._waiting[client] = self._waiting.get(client, 0) + size
        cut: list[C] = []
        while self._bytes > self._bytes_max:
            cut.append(next(iter(self._waiting)))
            self.forget(cut[-1])
        return cut

    def forget(self, client: C) -> None:
        """A client reads again, or is gone."""
        self._bytes -= self._waiting.pop(client, 0)

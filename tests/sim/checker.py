"""What must hold for clients, whatever happens to the broker: docs in GUARANTEES terms, judged from outside.

The checker hears what clients ask for and what reaches them, and nothing of the broker's state. Bodies are unique, so a
body names a message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

Identity = tuple[int, int]


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Checker:
    """Keeps what was asked and what was told, and raises Violation."""

    origin: dict[bytes, str] = field(default_factory=dict)
    """Body -> the queue that a client tried to publish it to."""
    confirmed: set[bytes] = field(default_factory=set)
    identity: dict[bytes, Identity] = field(default_factory=dict)
    sent: set[tuple[str, bytes]] = field(default_factory=set)
    """What has reached a client, by queue."""
    ack_asked: set[bytes] = field(default_factory=set)
    ack_confirmed: set[bytes] = field(default_factory=set)
    excused: set[bytes] = field(default_factory=set)
    """May be gone: purged, deleted, or rejected from the dead-letter queue."""
    gone: set[tuple[str, bytes]] = field(default_factory=set)
    """Confirmed to be gone from that queue."""
    deliveries: int = 0
    redeliveries: int = 0

    def attempted(self, queue: str, bodies: Iterable[bytes]) -> None:
        """A client is about to publish these, perhaps again."""
        for body in bodies:
            self.origin.setdefault(body, queue)

    def publish_confirmed(self, bodies: Iterable[bytes], offset: int) -> None:
        """The client was told that these are stored."""
        for index, body in enumerate(bodies):
            self._same_identity(body, (offset, index))
            self.confirmed.add(body)

    def delivered(self, queue: str, body: bytes, identity: Identity, *, redelivered: bool) -> None:
        """A message reached a client."""
        self.deliveries += 1
        self.redeliveries += redelivered
        if body not in self.origin:
            raise Violation(f"{body!r} was delivered, and nobody ever sent it")
        if queue not in {self.origin[body], "dead"}:
            raise Violation(f"{body!r} of queue {self.origin[body]} was delivered from {queue}")
        if body in self.ack_confirmed:
            raise Violation(f"{body!r} was delivered after its ack was confirmed")
        if (queue, body) in self.gone:
            raise Violation(f"{body!r} was delivered after its queue was confirmed to be deleted")
        if (queue, body) in self.sent and not redelivered:
            raise Violation(f"{body!r} was delivered again from {queue} without being marked as redelivered")
        self._same_identity(body, identity)
        self.sent.add((queue, body))

    def _same_identity(self, body: bytes, identity: Identity) -> None:
        known = self.identity.setdefault(body, identity)
        if known != identity:
            raise Violation(f"{body!r} was stored twice, as {known} and {identity}")

    def excuse(self, queue: str) -> None:
        """A client asks to throw away what is in a queue."""
        self.excused |= {body for body, origin in self.origin.items() if queue in {origin, "dead"}}

    def deleted(self, queue: str, bodies: Iterable[bytes]) -> None:
        """The client was told that the queue, with these confirmed messages, is gone."""
        self.gone |= {(queue, body) for body in bodies}

    def finish(self) -> None:
        """All queues were drained."""
        lost = sorted(self.confirmed - self.ack_asked - self.excused)
        if lost:
            raise Violation(f"{len(lost)} confirmed messages are lost: {lost[:5]!r}")

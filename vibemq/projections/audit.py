"""The history in numbers: how many events of each kind, when, whether the broker ended well, and the chain of seals."""

from typing import Any, Final

from vibemq import events as e

_FREQUENT: Final = frozenset({e.Tag.PUBLISHED, e.Tag.DELIVERED, e.Tag.ACKED})


class Audit:
    """Facts about the log itself."""

    key = "audit"

    def __init__(self) -> None:
        """Begin before the first event."""
        self.as_of = 0
        self.counts: dict[int, int] = {}
        """Tag -> number of events."""
        self.last_us = 0
        self.running = False
        """A broker has started and not stopped."""
        self.refused: dict[str, int] = {}
        """Reason -> connections refused."""
        self.sealed_end = 0
        """Every record below belongs to a sealed segment."""
        self.seal = b""
        """The last seal of the chain."""

    def apply(self, time_us: int, event: e.Event) -> None:
        """Any event happened."""
        self.counts[event.TAG] = self.counts.get(event.TAG, 0) + 1
        self.last_us = time_us
        if event.TAG in _FREQUENT:
            return
        if isinstance(event, e.BrokerStarted):
            self.running = True
        elif isinstance(event, e.BrokerStopped):
            self.running = False
        elif isinstance(event, e.ClientRefused):
            self.refused[event.reason] = self.refused.get(event.reason, 0) + event.count
        elif isinstance(event, e.SegmentSealed):
            self.sealed_end, self.seal = event.end, event.seal

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        counts, refused = sorted(self.counts.items()), sorted(self.refused.items())
        return [counts, self.last_us, self.running, refused, self.sealed_end, self.seal]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Audit":
        """The audit of which this is a snapshot."""
        counts, last_us, running, refused, sealed_end, seal = snapshot
        audit = cls()
        audit.as_of = as_of
        audit.counts, audit.refused = dict(counts), dict(refused)
        audit.last_us, audit.running, audit.sealed_end, audit.seal = last_us, running, sealed_end, seal
        return audit

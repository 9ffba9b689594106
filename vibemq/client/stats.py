"""What happened to a client that its calls do not report."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Counts since the client was made."""

    connects: int = 0
    """Connections that were opened, the first one included."""
    batches_resent: int = 0
    """Batches of publishes that were sent again after a connection broke."""
    acks_void: int = 0
    """Messages settled without confirmation after their connection or subscription was lost: they may come again."""
    deliveries_dropped: int = 0
    """Messages that had arrived and were dropped before the application saw them, as their lease was lost."""

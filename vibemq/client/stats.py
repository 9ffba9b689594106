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
    publishes_blocked: int = 0
    """Messages that had to wait until their queue took more: it has `overflow="block"`, or a publish rate."""
    groups_lost: int = 0
    """Groups without a name that were gone after an outage: a new one started, and may have missed messages."""
    replies_late: int = 0
    """Replies that came when nobody waited for them any more."""
    declares_failed: int = 0
    """Queues that connect() was told to declare, and that the broker refused after a reconnect; the log says why."""

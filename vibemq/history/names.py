"""Who the numbers in events are: names of queues and clients, from the events that introduced them.

Names are known from their event on until the one that ends them, as numbers are never used again: what is kept is what
was alive at the same time, however long the log.
"""

from typing import Final, NamedTuple

from vibemq import events as e

NAMING: Final = frozenset(
    {
        e.Tag.BROKER_STARTED,
        e.Tag.BROKER_STOPPED,
        e.Tag.CLIENT_CONNECTED,
        e.Tag.CLIENT_DISCONNECTED,
        e.Tag.QUEUE_DECLARED,
        e.Tag.QUEUE_DELETED,
        e.Tag.SUBSCRIBED,
        e.Tag.UNSUBSCRIBED,
    }
)
"""The kinds of event that change what is known."""


class Client(NamedTuple):
    """A connection: its number, what its client calls itself (may be empty), and where it came from."""

    connection: int
    name: str
    address: str

    def __str__(self) -> str:
        """Name and address, for people."""
        return f"{self.name or f'#{self.connection}'} ({self.address})"


class Names:
    """What is known at one point of the log. Call `introduce` before, and `forget` after an event is looked at."""

    def __init__(self) -> None:
        """Know nobody."""
        self._queues: dict[int, str] = {}
        self._clients: dict[int, Client] = {}
        self._subscriptions: dict[int, int] = {}

    def introduce(self, event: e.Event) -> None:
        """Learn who comes with this event."""
        if isinstance(event, e.QueueDeclared):
            self._queues[event.queue] = event.name
        elif isinstance(event, e.ClientConnected):
            self._clients[event.connection] = Client(event.connection, event.name, event.address)
        elif isinstance(event, e.Subscribed):
            self._subscriptions[event.subscription] = event.connection

    def forget(self, event: e.Event) -> None:
        """Let go of who leaves with this event."""
        if isinstance(event, e.QueueDeleted):
            self._queues.pop(event.queue, None)
        elif isinstance(event, e.ClientDisconnected):
            self._clients.pop(event.connection, None)
        elif isinstance(event, e.Unsubscribed):
            self._subscriptions.pop(event.subscription, None)
        elif isinstance(event, e.BrokerStarted | e.BrokerStopped):
            self._clients.clear()
            self._subscriptions.clear()

    def queue(self, number: int) -> str:
        """The name of a queue."""
        return self._queues.get(number, f"#{number}")

    def client(self, event: e.Event) -> Client | None:
        """Whose doing an event is, or whom it befell; None: the broker itself, or nobody who ever got in."""
        connection = getattr(event, "connection", 0)
        if not connection:
            connection = self._subscriptions.get(getattr(event, "subscription", 0), 0)
        return self._clients.get(connection) or (Client(connection, "", "unknown") if connection else None)

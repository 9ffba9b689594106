"""Who is there: queues by name, connections, subscriptions; and the numbers that come next."""

from typing import Any

from vibemq import events as e


class Topology:
    """Names and numbers of what exists. Numbers are never used again."""

    key = "topology"

    def __init__(self) -> None:
        """Begin with nothing."""
        self.as_of = 0
        self.queues: dict[str, int] = {}
        """Name -> number, of those that are not deleted."""
        self.deleted: dict[int, tuple[str, int]] = {}
        """Number -> (the name it had, until when it can be brought back, in us), oldest first."""
        self.connections: dict[int, tuple[str, str, str, int]] = {}
        """Number -> (client's name, address, codec, connected at us)."""
        self.subscriptions: dict[int, tuple[int, int, int]] = {}
        """Number -> (queue, group, connection)."""
        self.next_queue = 1
        self.next_connection = 1
        self.next_subscription = 1

    def queue_declared(self, event: e.QueueDeclared) -> None:
        """A queue came."""
        self.queues[event.name] = event.queue
        self.next_queue = event.queue + 1

    def queue_renamed(self, event: e.QueueRenamed) -> None:
        """A queue has another name."""
        del self.queues[self._name(event.queue)]
        self.queues[event.name] = event.queue

    def queue_deleted(self, event: e.QueueDeleted) -> None:
        """A queue went, with its subscriptions; for a while, or for good."""
        if self.deleted.pop(event.queue, None) is None:
            name = self._name(event.queue)
            del self.queues[name]
            if event.until_us:
                self.deleted[event.queue] = name, event.until_us
        self.subscriptions = {n: entry for n, entry in self.subscriptions.items() if entry[0] != event.queue}

    def queue_undeleted(self, event: e.QueueUndeleted) -> None:
        """A queue is back."""
        del self.deleted[event.queue]
        self.queues[event.name] = event.queue

    def _name(self, queue: int) -> str:
        return next(name for name, number in self.queues.items() if number == queue)

    def client_connected(self, event: e.ClientConnected, time_us: int) -> None:
        """A client came."""
        self.connections[event.connection] = (event.name, event.address, event.codec, time_us)
        self.next_connection = event.connection + 1

    def client_disconnected(self, event: e.ClientDisconnected) -> None:
        """A client went; its subscriptions ended before."""
        del self.connections[event.connection]

    def subscribed(self, event: e.Subscribed) -> None:
        """A consumer came."""
        self.subscriptions[event.subscription] = (event.queue, event.group, event.connection)
        self.next_subscription = event.subscription + 1

    def unsubscribed(self, event: e.Unsubscribed) -> None:
        """A consumer went."""
        del self.subscriptions[event.subscription]

    def everyone_left(self) -> None:
        """The broker stopped or started."""
        self.connections.clear()
        self.subscriptions.clear()

    def snapshot(self) -> list[Any]:
        """Plain values in canonical order."""
        return [
            sorted(self.queues.items()),
            list(self.deleted.items()),
            sorted(self.connections.items()),
            sorted(self.subscriptions.items()),
            [self.next_queue, self.next_connection, self.next_subscription],
        ]

    @classmethod
    def restore(cls, snapshot: list[Any], as_of: int) -> "Topology":
        """The topology of which this is a snapshot."""
        queues, deleted, connections, subscriptions, numbers = snapshot
        topology = cls()
        topology.as_of = as_of
        topology.queues = dict(queues)
        topology.deleted = {number: tuple(entry) for number, entry in deleted}
        topology.connections = {number: tuple(entry) for number, entry in connections}
        topology.subscriptions = {number: tuple(entry) for number, entry in subscriptions}
        topology.next_queue, topology.next_connection, topology.next_subscription = numbers
        return topology

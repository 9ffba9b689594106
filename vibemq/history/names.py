"""Who the numbers in events are: names of queues, groups, schedules and clients, from the events that introduced them.

Names are known from their event on until the one that ends them, as numbers are never used again: what is kept is what
was alive at the same time, or could be brought back, however long the log.
"""

from typing import Final, NamedTuple

from vibemq import events as e
from vibemq.declaration import Mode

NAMING: Final = frozenset(
    {
        e.Tag.BROKER_STARTED,
        e.Tag.BROKER_STOPPED,
        e.Tag.CLIENT_CONNECTED,
        e.Tag.CLIENT_DISCONNECTED,
        e.Tag.QUEUE_DECLARED,
        e.Tag.QUEUE_RENAMED,
        e.Tag.QUEUE_DELETED,
        e.Tag.QUEUE_UNDELETED,
        e.Tag.GROUP_CREATED,
        e.Tag.GROUP_DELETED,
        e.Tag.SUBSCRIBED,
        e.Tag.UNSUBSCRIBED,
        e.Tag.SCHEDULE_SET,
        e.Tag.SCHEDULE_DELETED,
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


class _Queue:
    """What is known of a queue: its name, the one before while it gets another, and its groups."""

    __slots__ = ("former", "groups", "mode", "name")

    def __init__(self, name: str, mode: Mode) -> None:
        self.name, self.mode = name, mode
        self.former: str | None = None
        self.groups: dict[int, str] = {}

    def call(self, name: str) -> None:
        """It has another name from now on."""
        self.former, self.name = self.name, name


class Names:
    """What is known at one point of the log. Call `introduce` before, and `forget` after an event is looked at."""

    def __init__(self) -> None:
        """Know nobody."""
        self._queues: dict[int, _Queue] = {}
        self._clients: dict[int, Client] = {}
        self._subscriptions: dict[int, int] = {}
        self._schedules: dict[int, str] = {}

    def introduce(self, event: e.Event) -> None:
        """Learn who comes with this event."""
        if isinstance(event, e.QueueDeclared):
            self._queues[event.queue] = _Queue(event.name, event.settings.mode)
        elif isinstance(event, e.QueueRenamed | e.QueueUndeleted):
            if (queue := self._queues.get(event.queue)) is not None:
                queue.call(event.name)
        elif isinstance(event, e.GroupCreated):
            if (queue := self._queues.get(event.queue)) is not None:
                queue.groups[event.group] = event.name
        elif isinstance(event, e.ClientConnected):
            self._clients[event.connection] = Client(event.connection, event.name, event.address)
        elif isinstance(event, e.Subscribed):
            self._subscriptions[event.subscription] = event.connection
        elif isinstance(event, e.ScheduleSet):
            self._schedules[event.schedule] = event.name

    def forget(self, event: e.Event) -> None:
        """Let go of who leaves with this event."""
        if isinstance(event, e.QueueDeleted | e.QueueRenamed | e.QueueUndeleted | e.GroupDeleted):
            self._forget_of_queue(event)
        elif isinstance(event, e.ClientDisconnected):
            self._clients.pop(event.connection, None)
        elif isinstance(event, e.Unsubscribed):
            self._subscriptions.pop(event.subscription, None)
        elif isinstance(event, e.ScheduleDeleted):
            self._schedules.pop(event.schedule, None)
        elif isinstance(event, e.BrokerStarted | e.BrokerStopped):
            self._clients.clear()
            self._subscriptions.clear()

    def _forget_of_queue(self, event: e.QueueDeleted | e.QueueRenamed | e.QueueUndeleted | e.GroupDeleted) -> None:
        queue = self._queues.get(event.queue)
        if queue is None:
            return
        if isinstance(event, e.GroupDeleted):
            queue.groups.pop(event.group, None)
        elif not isinstance(event, e.QueueDeleted):
            queue.former = None
        elif not event.until_us:
            del self._queues[event.queue]

    def queue(self, number: int) -> str:
        """The name of a queue, or the one it had before it was deleted."""
        known = self._queues.get(number)
        return known.name if known is not None else f"#{number}"

    def former(self, number: int) -> str | None:
        """The name that a queue had until this event; None: the one that it has."""
        known = self._queues.get(number)
        return known.former if known is not None else None

    def mode(self, number: int) -> Mode:
        """How a queue hands out."""
        known = self._queues.get(number)
        return known.mode if known is not None else Mode.ROUND_ROBIN

    def groups(self, number: int) -> tuple[int, ...]:
        """The groups of a queue: those with names, or the one without."""
        known = self._queues.get(number)
        return tuple(known.groups) if known is not None and known.mode.has_groups else (e.DEFAULT_GROUP,)

    def group(self, event: e.Event) -> str | None:
        """The name of the group that an event is about; None: of none, or of one without a name."""
        number = getattr(event, "group", e.DEFAULT_GROUP)
        if number == e.DEFAULT_GROUP:
            return None
        known = self._queues.get(getattr(event, "queue", 0))
        return known.groups.get(number, f"#{number}") if known is not None else f"#{number}"

    def schedule(self, number: int) -> str:
        """The name of a schedule."""
        return self._schedules.get(number, f"#{number}")

    def client(self, event: e.Event) -> Client | None:
        """Whose doing an event is, or whom it befell; None: the broker itself, or nobody who ever got in."""
        connection = getattr(event, "connection", 0)
        if not connection:
            connection = self._subscriptions.get(getattr(event, "subscription", 0), 0)
        return self._clients.get(connection) or (Client(connection, "", "unknown") if connection else None)

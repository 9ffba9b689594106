"""Events of what comes and goes: the broker, its clients, queues, groups and bindings.

All of it is found in events.py, too, by which it is imported.
"""

from vibemq.declaration import QueueSettings
from vibemq.event_base import Event, Spans, Tag


class BrokerStarted(Event, frozen=True):
    """A broker opened the log. After an unclean end, what groups with consumers had not settled may have been sent."""

    TAG = Tag.BROKER_STARTED
    version: str
    clean: bool
    wall_us: int


class BrokerStopped(Event, frozen=True):
    """A broker ended on purpose; every consumer is gone and what it held is ready again."""

    TAG = Tag.BROKER_STOPPED
    reason: str


class ClientConnected(Event, frozen=True):
    """A client passed the handshake."""

    TAG = Tag.CLIENT_CONNECTED
    connection: int
    name: str
    address: str
    codec: str


class ClientRefused(Event, frozen=True):
    """`count` connections from `address` were refused since the last such event about it."""

    TAG = Tag.CLIENT_REFUSED
    address: str
    reason: str
    count: int


class ClientDisconnected(Event, frozen=True):
    """A client left or was lost. What it held is released by events of its own, before this one."""

    TAG = Tag.CLIENT_DISCONNECTED
    connection: int
    reason: str


class QueueDeclared(Event, frozen=True):
    """A queue was created. `connection` is 0 when the broker did it itself."""

    TAG = Tag.QUEUE_DECLARED
    queue: int
    name: str
    settings: QueueSettings
    connection: int


class QueueChanged(Event, frozen=True):
    """A queue has other settings from now on."""

    TAG = Tag.QUEUE_CHANGED
    queue: int
    settings: QueueSettings
    connection: int


class QueueRenamed(Event, frozen=True):
    """A queue has another name from now on."""

    TAG = Tag.QUEUE_RENAMED
    queue: int
    name: str
    connection: int


class QueueDeleted(Event, frozen=True):
    """A queue, its groups and all of its messages are gone: `count` messages, `bytes` of records.

    With `until_us` it can be brought back up to that time: it has lost its name and its consumers, and keeps the rest.
    """

    TAG = Tag.QUEUE_DELETED
    queue: int
    count: int
    bytes: int
    connection: int
    until_us: int = 0


class QueueUndeleted(Event, frozen=True):
    """A deleted queue is back, whole, as `name`."""

    TAG = Tag.QUEUE_UNDELETED
    queue: int
    name: str
    connection: int


class QueuePurged(Event, frozen=True):
    """All ready and waiting messages were thrown away; what consumers hold, `kept`, stays with them."""

    TAG = Tag.QUEUE_PURGED
    queue: int
    count: int
    bytes: int
    connection: int
    kept: Spans


class GroupCreated(Event, frozen=True):
    """A group begins to work through a queue, from `sequence` on. An `ephemeral` one goes soon after its consumers."""

    TAG = Tag.GROUP_CREATED
    queue: int
    group: int
    name: str
    sequence: int
    ephemeral: bool
    connection: int


class GroupDeleted(Event, frozen=True):
    """A group is gone; its consumers ended before. `connection` is 0 when it had been idle for too long."""

    TAG = Tag.GROUP_DELETED
    queue: int
    group: int
    connection: int


class GroupSought(Event, frozen=True):
    """A group goes on from `sequence`, back or forth; what its consumers held was taken from them."""

    TAG = Tag.GROUP_SOUGHT
    queue: int
    group: int
    sequence: int
    connection: int


class Bound(Event, frozen=True):
    """A queue gets what is published to topics that match `pattern`."""

    TAG = Tag.BOUND
    queue: int
    pattern: str
    connection: int


class Unbound(Event, frozen=True):
    """A queue no longer gets what is published to topics that match `pattern`."""

    TAG = Tag.UNBOUND
    queue: int
    pattern: str
    connection: int

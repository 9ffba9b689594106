"""The blocking client: the asynchronous one in a loop of its own, on a thread of its own.

A call travels to that loop and its result comes back.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, Unpack

from vibemq.client.client import Client, address_of
from vibemq.client.dead_letters import Redriven
from vibemq.client.membership import Membership, StartAt
from vibemq.client.message import Received
from vibemq.client.options import ConnectOptions, Options
from vibemq.client.outgoing import (
    Body,
    MessageHeaders,
    Priority,
    PublishManyOptions,
    PublishOptions,
    Receipt,
    TopicManyOptions,
    TopicOptions,
)
from vibemq.client.peeked import DeadLetter, PeekedMessage
from vibemq.client.queues import QueueSettings
from vibemq.client.stats import Stats
from vibemq.client.sync_messages import Bridge, SyncConsuming, SyncMessage
from vibemq.client.sync_requesting import SyncReplies, blocking
from vibemq.client.sync_timed import SyncTimed
from vibemq.client.sync_transaction import SyncTransaction
from vibemq.client.transaction import DEFAULT_SECONDS
from vibemq.durations import Duration
from vibemq.errors import ClientClosed
from vibemq.protocol.fields import OnDifference


def connect_sync(url: str | None = None, **options: Unpack[ConnectOptions]) -> "SyncClient":
    """A blocking client, to be used as `with connect_sync(url) as client`; URL and options as for connect().

    Raises:
        UsageError: a URL or an option that cannot be.
    """
    return SyncClient(Client(address_of(url), Options.of(options)))


class SyncClient(SyncTimed):
    """A blocking client: the verbs of Client. Threads may share it; each consumer belongs to one of them."""

    def __init__(self, client: Client) -> None:
        """Drive `client`, which must not be open."""
        self._client = client
        self._bridge = Bridge()

    def __repr__(self) -> str:
        return f"<SyncClient over {self._client!r}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """What happened that no call reports."""
        return self._client.stats

    def open(self) -> None:
        """Connect, as Client.open()."""
        self._bridge.start()
        try:
            self._bridge.call(self._client.open())
        except BaseException:
            self._bridge.stop()
            raise

    def close(self) -> None:
        """Send what was settled, and end; closing again does nothing."""
        try:
            self._bridge.call(self._client.close())
        except ClientClosed:
            return
        finally:
            self._bridge.stop()

    # --- publishing ------------------------------------------------------------------------------------------------

    def publish(self, queue: str, body: Body, **options: Unpack[PublishOptions]) -> Receipt:
        """Store a message, as Client.publish(). One at a time this waits for the disk each time: see publish_many()."""
        return self._bridge.call(self._client.publish(queue, body, **options))

    def publish_topic(self, topic: str, body: Body, **options: Unpack[TopicOptions]) -> Receipt:
        """Store a message in every queue that is bound to `topic`, as Client.publish_topic()."""
        return self._bridge.call(self._client.publish_topic(topic, body, **options))

    def publish_many(self, queue: str, bodies: Sequence[Body], **options: Unpack[PublishManyOptions]) -> list[Receipt]:
        """Store messages as one batch, as Client.publish_many()."""
        return self._bridge.call(self._client.publish_many(queue, bodies, **options))

    def publish_topic_many(
        self, topic: str, bodies: Sequence[Body], **options: Unpack[TopicManyOptions]
    ) -> list[Receipt]:
        """Store messages as one batch in every queue that is bound to `topic`, as Client.publish_topic_many()."""
        return self._bridge.call(self._client.publish_topic_many(topic, bodies, **options))

    def flush(self) -> None:
        """Return once all that was published and settled before is durable, as Client.flush()."""
        self._bridge.call(self._client.flush())

    # --- consuming -------------------------------------------------------------------------------------------------

    def consume(
        self,
        queue: str,
        prefetch: int = 500,
        group: str | None = None,
        *,
        start: StartAt = "tail",
        exclusive: bool = False,
    ) -> SyncConsuming:
        """Take part in a queue: `with client.consume(queue) as messages`, then iterate them; as Client.consume()."""
        return SyncConsuming(self._bridge, self._client, Membership(queue, group, start, exclusive), prefetch)

    def pull(
        self,
        queue: str,
        max_messages: int = 100,
        wait: Duration = 0.0,
        *,
        group: str | None = None,
        start: StartAt = "tail",
        exclusive: bool = False,
    ) -> list[SyncMessage]:
        """What is there, up to `max_messages`, as Client.pull(). [] when there is nothing."""
        bridge = self._bridge
        return bridge.call(
            self._client.pull_as(
                lambda parcel, number, body: SyncMessage(parcel, number, body, bridge=bridge),
                Membership(queue, group, start, exclusive),
                max_messages,
                wait,
            )
        )

    def ack_all(self, batch: Iterable[Received]) -> None:
        """Ack messages, and return once that is durable, as Client.ack_all()."""
        self._bridge.call(self._client.ack_all(batch))

    def request(
        self,
        queue: str,
        body: Body,
        *,
        timeout: Duration | None = None,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> SyncMessage:
        """Ask whoever consumes a queue, and return the reply, as Client.request()."""
        call = self._client.request(queue, body, timeout=timeout, headers=headers, priority=priority, key=key)
        return blocking(self._bridge, self._bridge.call(call))

    def request_many(
        self,
        queue: str,
        body: Body,
        *,
        timeout: Duration | None = None,
        max_replies: int | None = None,
        headers: MessageHeaders | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> SyncReplies:
        """Ask, and iterate over the replies: `with client.request_many(...) as replies`, as Client.request_many()."""
        replies = self._client.request_many(
            queue, body, timeout=timeout, max_replies=max_replies, headers=headers, priority=priority, key=key
        )
        return SyncReplies(self._bridge, replies)

    def transaction(self, timeout: Duration = DEFAULT_SECONDS) -> SyncTransaction:
        """Publishes and acks that happen together, or not at all: `with client.transaction() as tx`.

        As Client.transaction(); it belongs to one thread.
        """
        return SyncTransaction(self._bridge, self._client.transaction_of(timeout, self._bridge.call_soon))

    # --- queues, groups, topics ------------------------------------------------------------------------------------

    def declare(
        self, name: str, *, on_difference: OnDifference = "fail", **settings: Unpack[QueueSettings]
    ) -> dict[str, object]:
        """Create a queue, or compare the one that is there with these settings, as Client.declare()."""
        return self._bridge.call(self._client.declare(name, on_difference=on_difference, **settings))

    def change(self, name: str, **settings: Unpack[QueueSettings]) -> dict[str, object]:
        """Give a queue other settings; those that are not named stay. As Client.change()."""
        return self._bridge.call(self._client.change(name, **settings))

    def rename(self, name: str, new: str) -> dict[str, object]:
        """Give a queue another name, as Client.rename()."""
        return self._bridge.call(self._client.rename(name, new))

    def list_queues(self) -> list[dict[str, object]]:
        """All queues by name, each as show_queue() gives it."""
        return self._bridge.call(self._client.list_queues())

    def list_deleted(self) -> list[dict[str, object]]:
        """The queues that undelete() can bring back, as Client.list_deleted()."""
        return self._bridge.call(self._client.list_deleted())

    def show_queue(self, name: str) -> dict[str, object]:
        """The counts and settings of a queue, as Client.show_queue()."""
        return self._bridge.call(self._client.show_queue(name))

    def purge(self, name: str) -> int:
        """Throw away what is ready in a queue, as Client.purge()."""
        return self._bridge.call(self._client.purge(name))

    def delete(self, name: str, grace: Duration | None = None) -> int:
        """Delete a queue, as Client.delete(). For `grace` undelete() brings it back."""
        return self._bridge.call(self._client.delete(name, grace))

    def undelete(self, name: str, as_name: str | None = None) -> dict[str, object]:
        """Bring a deleted queue back, as Client.undelete()."""
        return self._bridge.call(self._client.undelete(name, as_name))

    def peek(
        self,
        queue: str,
        start: int = 0,
        count: int = 100,
        group: str | None = None,
        *,
        priority: Priority | None = None,
    ) -> list[PeekedMessage]:
        """Ready messages, none of which is taken, as Client.peek()."""
        return self._bridge.call(self._client.peek(queue, start, count, group, priority=priority))

    def seek(self, queue: str, group: str, to: StartAt) -> int:
        """Let a group go on from the "head", the "tail", a sequence or a time, as Client.seek()."""
        return self._bridge.call(self._client.seek(queue, group, to))

    def delete_group(self, queue: str, group: str) -> None:
        """Delete a group, as Client.delete_group()."""
        self._bridge.call(self._client.delete_group(queue, group))

    def bind(self, queue: str, pattern: str) -> None:
        """Let a queue have what is published to topics that match `pattern`, as Client.bind()."""
        self._bridge.call(self._client.bind(queue, pattern))

    def unbind(self, queue: str, pattern: str) -> bool:
        """Take a binding back; returns whether there was one."""
        return self._bridge.call(self._client.unbind(queue, pattern))

    def bindings(self, queue: str | None = None) -> list[tuple[str, str]]:
        """The bindings of a queue, or of all queues: (queue, pattern) each."""
        return self._bridge.call(self._client.bindings(queue))

    # --- dead letters ----------------------------------------------------------------------------------------------

    def dead_letters(
        self,
        queue: str,
        *,
        start: int = 0,
        count: int = 100,
        reason: str | None = None,
        source: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[DeadLetter]:
        """Dead letters that pass the filters, none of which is taken, as Client.dead_letters()."""
        return self._bridge.call(
            self._client.dead_letters(
                queue, start=start, count=count, reason=reason, source=source, error=error, since=since, until=until
            )
        )

    def redrive(
        self,
        queue: str,
        *,
        to: str | None = None,
        start: int = 0,
        end: int | None = None,
        reason: str | None = None,
        source: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        count: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        on_progress: Callable[[Redriven], object] | None = None,
    ) -> Redriven:
        """Send dead letters back to work, as Client.redrive(). `on_progress` is called on the client's own thread."""
        return self._bridge.call(
            self._client.redrive(
                queue,
                to=to,
                start=start,
                end=end,
                reason=reason,
                source=source,
                error=error,
                since=since,
                until=until,
                count=count,
                rate=rate,
                dry_run=dry_run,
                on_progress=on_progress,
            )
        )

    # --- the broker ------------------------------------------------------------------------------------------------

    def digest(self) -> dict[str, object]:
        """The digest of every projection of the broker."""
        return self._bridge.call(self._client.digest())

    def ping(self) -> float:
        """How many seconds the broker took to answer."""
        return self._bridge.call(self._client.ping())

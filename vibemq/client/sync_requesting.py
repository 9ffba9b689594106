"""Requests of a blocking client, and the replies to them."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from vibemq.client.message import Message
from vibemq.client.requesting import Replies
from vibemq.client.sync_messages import Bridge, SyncMessage


class SyncReplies(Iterator[SyncMessage]):
    """Many replies to one request: the verbs of Replies, for one thread."""

    def __init__(self, bridge: Bridge, replies: Replies) -> None:
        """Iterate `replies` over `bridge`."""
        self._bridge = bridge
        self._replies = replies

    def __enter__(self) -> Self:
        self._bridge.call(self._replies.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bridge.call(self._replies.__aexit__(kind, error, trace))

    def __next__(self) -> SyncMessage:
        try:
            return blocking(self._bridge, self._bridge.call(self._replies.__anext__()))
        except StopAsyncIteration:
            raise StopIteration from None


def blocking(bridge: Bridge, message: Message) -> SyncMessage:
    """The same message with blocking verbs."""
    return SyncMessage(message.parcel, message.delivery, message.body, message.settled, bridge)

"""Transactions of a blocking client: what is collected stays on the thread of the program until the commit."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

from vibemq.client.message import Received
from vibemq.client.outgoing import (
    Body,
    MessageHeaders,
    PublishManyOptions,
    PublishOptions,
    Receipt,
    TopicManyOptions,
    TopicOptions,
)
from vibemq.client.sync_messages import Bridge
from vibemq.client.transaction import Collected, Transaction
from vibemq.errors import VibeMQError


class SyncTransaction:
    """What SyncClient.transaction() returns: the verbs of Transaction, for one thread."""

    def __init__(self, bridge: Bridge, transaction: Transaction) -> None:
        """Collect in `transaction`, and commit it over `bridge`."""
        self._bridge = bridge
        self._transaction = transaction

    def __repr__(self) -> str:
        return f"<SyncTransaction over {self._transaction!r}>"

    def __enter__(self) -> Self:
        self._bridge.call(self._transaction.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._bridge.call(self._transaction.__aexit__(kind, error, trace))
        except VibeMQError:
            if error is None:  # else what happened first is what the caller must see
                raise

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of all that was published in it, once it is committed."""
        return self._transaction.receipts

    def publish(self, queue: str, body: Body, **options: Unpack[PublishOptions]) -> Collected:
        """Store a message when the transaction is committed, as Transaction.publish()."""
        return self._transaction.publish(queue, body, **options)

    def publish_topic(self, topic: str, body: Body, **options: Unpack[TopicOptions]) -> Collected:
        """Store a message in every queue that is bound to `topic`, as Transaction.publish_topic()."""
        return self._transaction.publish_topic(topic, body, **options)

    def publish_many(self, queue: str, bodies: Sequence[Body], **options: Unpack[PublishManyOptions]) -> Collected:
        """Store messages, as Transaction.publish_many()."""
        return self._transaction.publish_many(queue, bodies, **options)

    def publish_topic_many(self, topic: str, bodies: Sequence[Body], **options: Unpack[TopicManyOptions]) -> Collected:
        """Store messages in every queue that is bound to `topic`, as Transaction.publish_topic_many()."""
        return self._transaction.publish_topic_many(topic, bodies, **options)

    def reply(self, message: Received, body: Body, *, headers: MessageHeaders | None = None) -> Collected:
        """Answer a request when the transaction is committed, as Transaction.reply()."""
        return self._transaction.reply(message, body, headers=headers)

    def ack(self, message: Received) -> None:
        """Let a message be done when the transaction is committed, as Transaction.ack()."""
        self._transaction.ack(message)

    def ack_all(self, batch: Iterable[Received]) -> None:
        """Ack messages, as Transaction.ack_all()."""
        self._transaction.ack_all(batch)

    def commit(self) -> list[Receipt]:
        """Carry out all of it, as Transaction.commit()."""
        return self._bridge.call(self._transaction.commit())

    def rollback(self) -> None:
        """Do nothing of it, as Transaction.rollback()."""
        self._bridge.call(self._transaction.rollback())

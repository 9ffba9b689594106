"""The client: `connect` and what its calls take and give. Everything else in this package is inside."""

from vibemq.client.client import Client, connect
from vibemq.client.consumer import Batches, Consuming, Messages
from vibemq.client.dead_letters import Redriven
from vibemq.client.delayed import DelayedMessage, MessageIds, ShownDelayed
from vibemq.client.membership import StartAt
from vibemq.client.message import Message, Received
from vibemq.client.moment import Moment
from vibemq.client.options import ConnectOptions
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
from vibemq.client.queues import Declaration, QueueSettings
from vibemq.client.requesting import Replies
from vibemq.client.schedules import Schedule
from vibemq.client.stats import Stats
from vibemq.client.sync import SyncClient, connect_sync
from vibemq.client.sync_messages import SyncMessage, SyncMessages
from vibemq.client.sync_requesting import SyncReplies
from vibemq.client.sync_transaction import SyncTransaction
from vibemq.client.transaction import Collected, Transaction
from vibemq.durations import Duration

__all__ = [
    "Batches",
    "Body",
    "Client",
    "Collected",
    "ConnectOptions",
    "Consuming",
    "DeadLetter",
    "Declaration",
    "DelayedMessage",
    "Duration",
    "Message",
    "MessageHeaders",
    "MessageIds",
    "Messages",
    "Moment",
    "PeekedMessage",
    "Priority",
    "PublishManyOptions",
    "PublishOptions",
    "QueueSettings",
    "Receipt",
    "Received",
    "Redriven",
    "Replies",
    "Schedule",
    "ShownDelayed",
    "StartAt",
    "Stats",
    "SyncClient",
    "SyncMessage",
    "SyncMessages",
    "SyncReplies",
    "SyncTransaction",
    "TopicManyOptions",
    "TopicOptions",
    "Transaction",
    "connect",
    "connect_sync",
]

"""The client: `connect` and what its calls take and give. Everything else in this package is inside."""

from vibemq.client.client import Client, connect
from vibemq.client.consumer import Batches, Consuming, Messages
from vibemq.client.dead_letters import Redriven
from vibemq.client.membership import StartAt
from vibemq.client.message import Message, Received
from vibemq.client.options import ConnectOptions
from vibemq.client.outgoing import Body, MessageHeaders, Priority, Receipt
from vibemq.client.peeked import DeadLetter, PeekedMessage
from vibemq.client.queues import Declaration, QueueSettings
from vibemq.client.stats import Stats
from vibemq.client.sync import SyncClient, connect_sync
from vibemq.client.sync_messages import SyncMessage, SyncMessages
from vibemq.durations import Duration

__all__ = [
    "Batches",
    "Body",
    "Client",
    "ConnectOptions",
    "Consuming",
    "DeadLetter",
    "Declaration",
    "Duration",
    "Message",
    "MessageHeaders",
    "Messages",
    "PeekedMessage",
    "Priority",
    "QueueSettings",
    "Receipt",
    "Received",
    "Redriven",
    "StartAt",
    "Stats",
    "SyncClient",
    "SyncMessage",
    "SyncMessages",
    "connect",
    "connect_sync",
]

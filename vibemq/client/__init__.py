"""The client: `connect` and what its calls take and give. Everything else in this package is inside."""

from vibemq.client.client import Client, connect
from vibemq.client.consumer import Batches, Consuming, Messages
from vibemq.client.message import Message, Received
from vibemq.client.options import ConnectOptions
from vibemq.client.peeked import PeekedMessage
from vibemq.client.publisher import Body, MessageHeaders, Receipt
from vibemq.client.queues import QueueSettings
from vibemq.client.stats import Stats
from vibemq.client.sync import SyncClient, SyncMessage, SyncMessages, connect_sync
from vibemq.durations import Duration

__all__ = [
    "Batches",
    "Body",
    "Client",
    "ConnectOptions",
    "Consuming",
    "Duration",
    "Message",
    "MessageHeaders",
    "Messages",
    "PeekedMessage",
    "QueueSettings",
    "Receipt",
    "Received",
    "Stats",
    "SyncClient",
    "SyncMessage",
    "SyncMessages",
    "connect",
    "connect_sync",
]

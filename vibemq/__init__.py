"""VibeMQ: a durable message broker in which the log is the truth.

    import vibemq

    async with vibemq.connect("vibemq://127.0.0.1:2925") as client:
        receipt = await client.publish("orders", b"...")
        async with client.consume("orders") as messages:
            async for message in messages:
                await message.ack()

`connect_sync` has the same verbs, blocking. Errors are in vibemq.errors.
"""

from vibemq.client import (
    Client,
    DeadLetter,
    DelayedMessage,
    Message,
    PeekedMessage,
    Receipt,
    Schedule,
    SyncClient,
    SyncMessage,
    Transaction,
    connect,
    connect_sync,
)
from vibemq.errors import VibeMQError

__all__ = [
    "Client",
    "DeadLetter",
    "DelayedMessage",
    "Message",
    "PeekedMessage",
    "Receipt",
    "Schedule",
    "SyncClient",
    "SyncMessage",
    "Transaction",
    "VibeMQError",
    "connect",
    "connect_sync",
]

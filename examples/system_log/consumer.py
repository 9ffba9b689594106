"""One of the competing consumers: writes what it gets to a file, then acks it.

python -m examples.system_log.consumer URL QUEUE FILE
"""

import asyncio
import base64
import json
import os
import signal
import sys
from contextlib import suppress
from typing import TextIO

import vibemq
from vibemq.errors import LeaseLost


async def consume(url: str, queue: str, out: TextIO) -> None:
    """Consume until this task is cancelled."""
    async with vibemq.connect(url, name="system-log consumer") as client, client.consume(queue) as messages:
        async for batch in messages.batches(max_messages=500):
            out.writelines(json.dumps(record_of(message)) + "\n" for message in batch)
            out.flush()
            os.fsync(out.fileno())
            with suppress(LeaseLost):  # the connection broke meanwhile: these messages come again, redelivered
                await client.ack_all(batch)


def record_of(message: vibemq.Message) -> dict[str, object]:
    """What the check has to know of a message. The line as base64: logs are not always text."""
    line = base64.b64encode(message.body).decode()
    return {"line": line, "id": message.id, "redelivered": message.redelivered}


async def _until_a_signal(url: str, queue: str, path: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with open(path, "w", encoding="ascii") as out, suppress(asyncio.CancelledError):  # noqa: ASYNC230, PTH123
        await consume(url, queue, out)


if __name__ == "__main__":
    asyncio.run(_until_a_signal(*sys.argv[1:]))

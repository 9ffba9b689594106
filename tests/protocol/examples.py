"""One message of each type, whose bytes in both codecs are kept in tests/golden/protocol.

`python -m tests.protocol.examples` writes the files that are missing. A file is never changed: clients in other
languages are tested against them.
"""

from pathlib import Path

from tests.protocol.strategies import json_line
from vibemq.batch import Batch, pack
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m

GOLDEN = Path(__file__).parent.parent / "golden" / "protocol"
BATCH = Batch(b"".join(pack([b"one", "zwölf".encode()], [{"k": "v", "n": 1}, None], 4)))
RUNS = ((1, 4), (9, 10))

COMMANDS: tuple[m.Command, ...] = (
    m.Hello(request=1, client="worker", heartbeat_ms=15_000, producer=(1 << 63) + 5, compression=()),
    m.Publish(2, "orders", 41, BATCH, 31),
    m.Subscribe(request=3, queue="orders", messages=500, bytes=8_388_608),
    m.Unsubscribe(request=4, subscription=11),
    m.Credit(subscription=11, messages=250, bytes=65_536, handed=9, wait_ms=-1),
    m.Ack(request=5, subscription=11, deliveries=RUNS),
    m.Nack(request=6, subscription=11, deliveries=RUNS, delay_ms=1_500, reason="no stock", reject=False),
    m.Extend(request=7, subscription=11, deliveries=RUNS, lease_ms=60_000),
    m.Declare(request=8, queue="orders", settings={"mode": "round-robin", "max_attempts": 3}),
    m.ListQueues(request=9),
    m.ShowQueue(request=10, queue="orders"),
    m.Purge(request=11, queue="orders"),
    m.Delete(request=12, queue="orders"),
    m.Peek(request=13, queue="orders", start=5, count=10),
    m.Flush(request=14),
    m.Digest(request=15),
    m.Ping(),
    m.Goodbye(code=0, text=""),
)
REPLIES: tuple[m.Reply, ...] = (
    m.Welcome(
        request=1,
        version=1,
        broker="vibemq 0.1.0",
        connection=7,
        heartbeat_ms=15_000,
        frame_bytes_max=16_777_216,
        batch_messages_max=65_536,
        publish_window_bytes=16_777_216,
        publish_window_batches=1_000,
    ),
    m.Confirmed(request=2, offset=1_234, sequence=70_000, duplicate=True),
    m.Deliver(11, 9, 70_000, 1_234, 0, 1_753_000_000_123_456, 2, True, [BATCH.data]),
    m.Done(request=3, result={"subscription": 11, "queue": "orders", "lease_ms": 30_000}),
    m.Failed(request=8, code=202, text="queue 'orders' exists with other settings"),
    m.Drained(subscription=11),
    m.LeasesLost(subscription=11, deliveries=RUNS),
    m.Ended(subscription=11, code=201, text="queue 'orders' was deleted"),
    m.Pong(),
)


def files() -> dict[Path, bytes]:
    """What each golden file holds; the binary ones as hexadecimal."""
    found: dict[Path, bytes] = {}
    for command in COMMANDS:
        found |= _both(f"client-{type(command).__name__.lower()}", binary.encode_command(command), json_line(command))
    for reply in REPLIES:
        line = b"".join(json_lines.encode_reply(reply))
        found |= _both(f"broker-{type(reply).__name__.lower()}", binary.encode_reply(reply), line)
    return found


def _both(name: str, frame: list[bytes | memoryview], line: bytes) -> dict[Path, bytes]:
    return {GOLDEN / f"{name}.hex": b"".join(frame).hex(" ").encode() + b"\n", GOLDEN / f"{name}.json": line}


if __name__ == "__main__":
    for path, content in files().items():
        if not path.exists():
            path.write_bytes(content)

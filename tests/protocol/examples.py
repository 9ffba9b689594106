"""One message of each type at least, whose bytes in both codecs are kept in tests/golden/protocol.

`python -m tests.protocol.examples` writes the files that are missing. A file is never changed: clients in other
languages are tested against them. When a message grows by a field, its file moves to the folder `earlier`, with its
message in EARLIER: what was sent before is understood for ever.
"""

from pathlib import Path

from tests.protocol.strategies import json_line
from vibemq.batch import Batch, pack
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.keys import dedup_hash, key_hash

GOLDEN = Path(__file__).parent.parent / "golden" / "protocol"
GOLDEN_EARLIER = GOLDEN / "earlier"
BATCH = Batch(b"".join(pack([b"one", "zwölf".encode()], [{"k": "v", "n": 1}, None], 4)))
KEYED = Batch(
    b"".join(
        pack(
            [b"one", "zwölf".encode()],
            [{"k": "v", "topic": "orders.eu", "key": "customer-7"}, {"topic": "orders.eu"}],
            9,
            60_000,
            [key_hash("customer-7"), 0],
        )
    )
)
RUNS = ((1, 4), (9, 10))

COMMANDS: dict[str, m.Command] = {
    "hello": m.Hello(request=1, client="worker", heartbeat_ms=15_000, producer=(1 << 63) + 5, compression=()),
    "publish": m.Publish(2, "orders", 41, BATCH, 31),
    "publish-to-topic": m.Publish(2, "orders.eu", 43, KEYED, 41, to_topic=True),
    "subscribe": m.Subscribe(
        request=3,
        queue="orders",
        group="billing",
        messages=500,
        bytes=8_388_608,
        start="sequence",
        at=70_000,
        exclusive=True,
    ),
    "unsubscribe": m.Unsubscribe(request=4, subscription=11),
    "seek": m.Seek(request=16, queue="orders", group="billing", start="time", at=1_753_000_000_123_456),
    "deletegroup": m.DeleteGroup(request=17, queue="orders", group="billing"),
    "credit": m.Credit(subscription=11, messages=250, bytes=65_536, handed=9, wait_ms=-1),
    "ack": m.Ack(request=5, subscription=11, deliveries=RUNS),
    "nack": m.Nack(request=6, subscription=11, deliveries=RUNS, delay_ms=1_500, reason="no stock", reject=False),
    "extend": m.Extend(request=7, subscription=11, deliveries=RUNS, lease_ms=60_000),
    "declare": m.Declare(
        request=8,
        queue="orders",
        settings={"mode": "fan-out", "max_attempts": 3, "order_by_key": True},
        on_difference="override",
    ),
    "change": m.Change(request=18, queue="orders", settings={"ttl_ms": 60_000, "single_active": False}),
    "rename": m.Rename(request=19, queue="orders", name="orders.old"),
    "bind": m.Bind(request=20, queue="orders", pattern="orders.*.#"),
    "unbind": m.Unbind(request=21, queue="orders", pattern="orders.*.#"),
    "listbindings": m.ListBindings(request=22, queue=None),
    "listqueues": m.ListQueues(request=9),
    "listdeleted": m.ListDeleted(request=26),
    "showqueue": m.ShowQueue(request=10, queue="orders"),
    "purge": m.Purge(request=11, queue="orders"),
    "delete": m.Delete(request=12, queue="orders", grace_ms=3_600_000),
    "undelete": m.Undelete(request=23, queue="orders", name="orders.again"),
    "peek": m.Peek(request=13, queue="orders", start=5, count=10, group="billing", priority=9),
    "deadletters": m.DeadLetters(
        request=24,
        queue="orders",
        start=5,
        count=10,
        reason="max-attempts",
        source="orders",
        error="no stock",
        since_us=1_753_000_000_000_000,
        until_us=1_753_000_000_123_456,
    ),
    "redrive": m.Redrive(
        request=25,
        queue="orders.dlq",
        target="orders.eu",
        start=5,
        end=900,
        count=100,
        dry_run=True,
        reason="expired",
        source="orders",
        error="",
        since_us=1_753_000_000_000_000,
        until_us=0,
    ),
    "publish-delayed": m.Publish(2, "orders", 45, BATCH, 41, delay_ms=90_000),
    "publish-due-and-once": m.Publish(
        2, "orders", 47, BATCH, 41, due_us=1_753_000_000_123_456, dedup=dedup_hash("order-1") + bytes(16)
    ),
    "begin": m.Begin(request=27, timeout_ms=60_000),
    "commit": m.Commit(
        28,
        (7 << 20) + 3,
        49,
        (
            m.Publish(0, "orders", 0, BATCH),
            m.Publish(0, "orders.eu", 0, KEYED, to_topic=True, delay_ms=90_000),
            m.Publish(0, "bills", 0, BATCH, dedup=bytes(16) + dedup_hash("order-1")),
        ),
        (m.TransactionAck(11, RUNS), m.TransactionAck(12, ((1, 2),))),
        41,
    ),
    "commit-acks": m.Commit(28, (7 << 20) + 4, 0, (), (m.TransactionAck(11, RUNS),)),
    "rollback": m.Rollback(request=29, epoch=(7 << 20) + 3),
    "listdelayed": m.ListDelayed(request=30, queue="orders", after=(1_753_000_000_123_456, 1_234, 1), count=50),
    "showdelayed": m.ShowDelayed(request=31, queue="orders", id="1234-1"),
    "canceldelayed": m.CancelDelayed(request=32, queue="orders", ids=("1234-0", "1234-1")),
    "reschedule": m.Reschedule(request=33, queue="orders", ids=("1234-0", "1234-1"), due_us=1_753_000_000_123_456),
    "setschedule": m.SetSchedule(
        request=34,
        name="nightly",
        queue="reports.eu",
        to_topic=True,
        body="zwölf".encode(),
        headers={"k": "v", "n": 1},
        priority=7,
        ttl_ms=60_000,
        cron="30 4 * * 1-5",
        zone="Europe/Berlin",
        start_us=1_753_000_000_000_000,
        end_us=1_853_000_000_000_000,
        times=100,
        misfire="all",
    ),
    "setschedule-every": m.SetSchedule(request=34, name="beat", queue="beats", every_ms=1_500),
    "listschedules": m.ListSchedules(request=35, name="nightly"),
    "pauseschedule": m.PauseSchedule(request=36, name="nightly", paused=False),
    "deleteschedule": m.DeleteSchedule(request=37, name="nightly"),
    "flush": m.Flush(request=14),
    "digest": m.Digest(request=15),
    "ping": m.Ping(),
    "goodbye": m.Goodbye(code=0, text=""),
}
REPLIES: dict[str, m.Reply] = {
    "welcome": m.Welcome(
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
    "confirmed": m.Confirmed(request=2, offset=1_234, sequence=70_000, duplicate=True),
    "confirmed-dropped": m.Confirmed(request=2, offset=1_234, sequence=70_000, dropped=300),
    "confirmed-delayed": m.Confirmed(request=2, offset=1_234, sequence=0, due_us=1_753_000_000_123_456),
    "confirmed-duplicates": m.Confirmed(
        request=2,
        offset=1_234,
        sequence=70_000,
        dropped=300,
        due_us=1_753_000_000_123_456,
        duplicates=((0, 1_200, 3), (4, 1_234, 1)),
    ),
    "committed": m.Committed(
        request=28,
        offset=1_234,
        duplicate=True,
        stored=(
            m.Stored(0, 70_000),
            m.Stored(2, 0, due_us=1_753_000_000_123_456),
            m.Stored(4, 7, 1, duplicates=((1, 1_200, 3),)),
        ),
    ),
    "deliver": m.Deliver(11, 9, 70_000, 1_234, 0, 1_753_000_000_123_456, 2, True, [BATCH.data]),
    "deliver-keyed": m.Deliver(11, 11, 70_002, 1_235, 0, 1_753_000_000_123_456, 1, False, [KEYED.data]),
    "done": m.Done(request=3, result={"subscription": 11, "queue": "orders", "lease_ms": 30_000}),
    "failed": m.Failed(request=8, code=202, text="queue 'orders' exists with other settings"),
    "drained": m.Drained(subscription=11),
    "leaseslost": m.LeasesLost(subscription=11, deliveries=RUNS),
    "ended": m.Ended(subscription=11, code=201, text="queue 'orders' was deleted"),
    "unblocked": m.Unblocked(queue="orders"),
    "pong": m.Pong(),
}
EARLIER: dict[str, m.Command | m.Reply] = {
    "client-subscribe": m.Subscribe(request=3, queue="orders", messages=500, bytes=8_388_608),
    "client-declare": m.Declare(request=8, queue="orders", settings={"mode": "round-robin", "max_attempts": 3}),
    "client-delete": m.Delete(request=12, queue="orders"),
    "client-peek": m.Peek(request=13, queue="orders", start=5, count=10),
    "broker-confirmed": m.Confirmed(request=2, offset=1_234, sequence=70_000, duplicate=True),
    "broker-confirmed-dropped": m.Confirmed(request=2, offset=1_234, sequence=70_000, dropped=300),
}
"""By file: what is understood today in bytes that were sent before a message grew."""


def files() -> dict[Path, bytes]:
    """What each golden file holds; the binary ones as hexadecimal."""
    found: dict[Path, bytes] = {}
    for name, command in COMMANDS.items():
        found |= _both(f"client-{name}", binary.encode_command(command), json_line(command))
    for name, reply in REPLIES.items():
        found |= _both(f"broker-{name}", binary.encode_reply(reply), b"".join(json_lines.encode_reply(reply)))
    return found


def _both(name: str, frame: list[bytes | memoryview], line: bytes) -> dict[Path, bytes]:
    return {GOLDEN / f"{name}.hex": b"".join(frame).hex(" ").encode() + b"\n", GOLDEN / f"{name}.json": line}


if __name__ == "__main__":
    for path, content in files().items():
        if not path.exists():
            path.write_bytes(content)

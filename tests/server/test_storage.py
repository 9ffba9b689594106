"""Opening a data folder whose checkpoint is of no use: it is dropped, and the log is replayed from its beginning."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from vibemq.batch import Batch, pack
from vibemq.log.frame import Record
from vibemq.projections import part as parts
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.effects import Load
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.storage import Storage

LOG_ID = 7


def opened(data: Path) -> Storage:
    return Storage.open(data, 1 << 16, 1 << 16, lambda: LOG_ID, 1)


def write_out(storage: Storage, broker: Broker) -> None:
    """Take what the broker decided to the disk."""
    for record in broker.journal.records:
        storage.append(record)
    broker.journal.records.clear()
    group = storage.log.take_group()
    if group is not None:
        storage.log.write_group(group, sync=True)
        storage.log.group_done(group, synced=True)


def publish(storage: Storage, count: int) -> Broker:
    broker = Broker(storage.state, Limits(), QueueDefaults())
    broker.start("test", 1)
    connection = broker.connect("a", "b", "json", 0)
    for number in range(count):
        broker.publishing.publish(Publish(connection, 1, "q", 0, Batch(b"".join(pack([b"%d" % number])))))
    write_out(storage, broker)
    return broker


def other_length(snapshot: list[Any]) -> list[Any]:
    snapshot[6] = [[0, 99]]  # the next sequence of its lane
    return snapshot


def too_short(snapshot: list[Any]) -> list[Any]:
    return snapshot[:3]


@pytest.mark.parametrize("damage", [other_length, too_short])
def test_a_checkpoint_that_contradicts_the_log_is_dropped(tmp_path: Path, damage: Any) -> None:  # noqa: ANN401 - a function
    storage = opened(tmp_path)
    broker = publish(storage, 3)
    saved = {part.key: (part.as_of, parts.encode(part)) for part in storage.state.parts()}
    as_of, blob = saved["queue/1"]
    saved["queue/1"] = (as_of, parts._encoder.encode(damage(parts.decode(blob))))
    storage.index.commit(storage.log.synced_mark, saved, (), storage.state.next_offset)
    broker.publishing.publish(Publish(1, 2, "q", 0, Batch(b"".join(pack([b"later"])))))
    write_out(storage, broker)
    expected = storage.state.digests()
    storage.close()

    again = opened(tmp_path)
    assert "checkpoint could not be used" in again.opened.index_rebuilt
    assert again.state.digests() == expected
    again.close()


def test_a_batch_whose_messages_died_one_by_one_is_read_once_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opened(tmp_path)
    broker = publish(storage, 0)
    bodies = [[b"%d of %d" % (number, batch) for number in range(20)] for batch in range(2)]
    for some in bodies:
        broker.publishing.publish(Publish(1, 1, "q", 0, Batch(b"".join(pack(some)))))
    broker.subscribe(Subscribing(1, 2, "q", None, 100, 1 << 20))
    broker.end_turn()
    for delivery in (number + 20 * batch for number in range(1, 21) for batch in range(2)):
        broker.deliveries.nack(1, 1, ((delivery, delivery + 1),), 0, delay_ms=None, reason="", reject=True)
    write_out(storage, broker)
    dead = storage.state.queue_named("q.dlq")
    assert dead is not None

    read: list[int] = []
    read_many = storage.log.read_many

    def counted(offsets: Sequence[int]) -> Iterator[Record]:
        read.extend(offsets)
        return read_many(offsets)

    monkeypatch.setattr(storage.log, "read_many", counted)
    found = storage.load(Load(dead.id, 0, 1))
    assert [body for one in found for body in one.batch.bodies()] == [
        one for pair in zip(*bodies, strict=True) for one in pair
    ]
    assert len(read) == len(bodies)
    storage.close()

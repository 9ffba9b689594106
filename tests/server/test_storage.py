"""Opening a data folder whose checkpoint is of no use: it is dropped, and the log is replayed from its beginning."""

from pathlib import Path
from typing import Any

import pytest

from vibemq.batch import Batch, pack
from vibemq.projections import part as parts
from vibemq.server.broker import Broker
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
    snapshot[5] = [[0, 99]]  # the next sequence of its lane
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

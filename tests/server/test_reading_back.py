"""What is read back of a log, by message and by time, after random histories: it is what a plain search finds."""

from pathlib import Path
from random import Random

import pytest

from tests.server.machine import Machine, long_history
from tests.server.rig import Rig
from tests.server.test_broker_model import WEIGHTS as LANES_WEIGHTS
from tests.server.test_broker_model import LanesMachine
from tests.server.test_groups_model import WEIGHTS as GROUPS_WEIGHTS
from tests.server.test_groups_model import GroupsMachine
from tests.server.test_storage import opened
from vibemq.server.effects import Find, Load, StoredBatch
from vibemq.server.storage import Storage


def written(rig: Rig, data: Path) -> Storage:
    """A data folder with the log of a rig, in groups and small segments."""
    storage = opened(data)
    for number, record in enumerate(rig.log):
        storage.append(record)
        if number % 7 == 0 or number == len(rig.log) - 1:
            group = storage.log.take_group()
            assert group is not None
            storage.log.write_group(group, sync=False)
            storage.log.group_done(group, synced=False)
    return storage


def facts(stored: StoredBatch) -> list[object]:
    """All that is known of a batch."""
    origin = stored.origin
    place = [stored.queue, origin.lane, stored.sequence, stored.end, origin.offset, origin.index]
    times = [stored.made_ready, stored.time_us, stored.ready_us, stored.ttl_ms, stored.expires_us(40)]
    return [*place, *times, origin.dead, bytes(stored.batch.data), list(origin.lengths), list(origin.keys or ())]


@pytest.mark.parametrize(
    ("machine", "weights"),
    [(LanesMachine(), LANES_WEIGHTS), (GroupsMachine(), GROUPS_WEIGHTS)],
    ids=["lanes", "groups"],
)
def test_what_is_read_back_is_what_was_written(machine: Machine, weights: dict[str, int], tmp_path: Path) -> None:
    long_history(machine, 5, 500, weights)
    rig, random = machine.rig, Random(5)
    storage = written(rig, tmp_path)
    looked = 0
    for queue in rig.state.queues.values():
        for lane, end in queue.next.items():
            for sequence in sorted(random.sample(range(1, end), min(end - 1, 20))):
                load = Load(queue.id, lane, sequence)
                found, expected = storage.load(load), rig.stored(load)
                assert found
                assert all(facts(one) == facts(other) for one, other in zip(found, expected, strict=False))
                looked += 1
        times = [time_us + off for _, time_us, _ in random.sample(rig.log, 15) for off in (-1, 0, 1)]
        for time_us in times:
            find = Find(queue.id, time_us, queue.floor, queue.next[0], 1)
            assert storage.find(find) == rig.first_from(find)
    assert looked > 50, "there is something to look at"
    storage.close()

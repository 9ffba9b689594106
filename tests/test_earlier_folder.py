"""A data folder of an earlier version opens: its log is read as it is, its checkpoint is thrown away and built anew.

`golden/folder` was written by the version before queues had groups and lanes: a shop, a worker and a clerk, a queue
that was deleted, a dead letter, a message that waits for its retry, and no clean end. It is never written again. Of the
index only what matters is kept, the checkpoint that was taken before record 14.
"""

import json
from pathlib import Path

from tests.counting import counted
from tests.history.building import LOG_ID, Driver
from vibemq import batch
from vibemq.batch import Batch
from vibemq.history.replay import Agreement, replay
from vibemq.history.source import History
from vibemq.log.disk import Disk
from vibemq.log.frame import Mark
from vibemq.log.index import LmdbIndex
from vibemq.log.log import Log
from vibemq.server.effects import Confirmed, Delivery
from vibemq.server.publishing import Publish

GOLDEN = Path(__file__).parent / "golden" / "folder"
DAY_US = 86_400_000_000
START_US = 1_795_442_400_000_000 + DAY_US
END = 19
"""So many records are in the log."""


def unpack(folder: Path) -> Path:
    """Make the folder as the earlier version left it."""
    (folder / "log").mkdir(parents=True)
    for name in ("FORMAT", "log/00000000000000000000.seg"):
        content = (GOLDEN / f"{Path(name).name}.hex").read_text("ascii")
        (folder / name).write_bytes(bytes.fromhex(content))
    saved = json.loads((GOLDEN / "checkpoint.json").read_text("ascii"))
    disk = Disk(folder)
    log = Log.open(disk, new_log_id=lambda: 0)
    log.recover()
    index = LmdbIndex.open(disk, log, map_bytes=64 << 20)
    for record in log.scan(0):
        index.note(record.offset, record.time_us, record.base, record.at, record.event)
    parts = {key: (as_of, bytes.fromhex(blob)) for key, (as_of, blob) in saved["parts"].items()}
    assert index.commit(Mark(*saved["mark"]), parts, (), saved["start"])
    index.close()
    log.close()
    return folder


def test_its_checkpoint_is_not_used_and_its_log_is(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "data")
    history = History.open(folder)
    found = replay(history)
    assert (history.log_id, found.offset) == (LOG_ID, END)
    assert found.checkpoint.agreement is Agreement.UNUSABLE
    assert "nothing is lost" in found.checkpoint.text or "does without it" in found.checkpoint.text
    with Driver(folder, now_us=START_US) as driver:
        opened = driver.storage.opened
        assert opened.replayed_from == 0
        assert opened.index_rebuilt.startswith("its checkpoint could not be used")
        assert opened.recovery.end.offset == END
        assert driver.digests.keys() == found.digests.keys()
        driver.checkpoint()
    with counted("G15", 0) as logs, Driver(folder, now_us=START_US + DAY_US) as driver:
        assert (driver.storage.opened.replayed_from > END, driver.storage.opened.index_rebuilt) == (True, "")
        logs.add(1)


def test_the_digest_of_its_log(tmp_path: Path) -> None:
    """Not what the earlier version gave: the state says more now, of the same log."""
    assert replay(History.open(unpack(tmp_path / "data"))).digests["all"] == (
        "10b30d5e7c2c659c0e7ca9777a603a358a4e7769a162b0595bcc3f07834b1436"
    )


def test_everything_in_it_is_where_it_was(tmp_path: Path) -> None:
    with Driver(unpack(tmp_path / "data"), now_us=START_US - DAY_US + 60_000_000) as driver:
        state = driver.storage.state
        assert sorted(state.topology.queues) == ["orders", "orders.dlq"]
        orders, dead = state.queue_named("orders"), state.queue_named("orders.dlq")
        assert orders is not None
        assert dead is not None
        assert (orders.length, orders.bytes, orders.ready, orders.waiting) == (6, 46, 5, 1)
        assert (orders.settings.max_attempts, orders.settings.retry_delay_ms) == (2, 3_600_000)
        (run,) = state.dead[dead.id].runs
        assert (run.start, run.end, run.queue, run.attempts, run.error, run.lane) == (1, 2, orders.id, 1, "bad", 0)

        connection = driver.connect("worker-2")
        # Sent again by a producer that had no answer: it was stored.
        stored = Batch(b"".join(batch.pack([b"order 8"])))
        driver.broker.publishing.publish(Publish(connection, 1, "orders", 5, stored, 5))
        driver.end_turn()
        (confirmed,) = [one for one in driver.effects if isinstance(one, Confirmed)]
        assert (confirmed.duplicate, confirmed.sequence) == (True, 8)
        assert delivered(driver, connection, "orders") == [
            (4, b"order 4", True),
            *((number, f"order {number}".encode(), True) for number in (5, 6, 7, 8)),
        ]
        assert delivered(driver, connection, "orders.dlq") == [(1, b"order 3", True)]
        driver.ack(connection, state.topology.next_subscription - 2, 1, 6)
        driver.tick(3_600)  # the retry is due
        last = [one for one in driver.effects if isinstance(one, Delivery)][-1]
        assert (last.stored.batch.bodies()[last.first], last.attempt) == (b"order 2", 2)
        assert orders.length == 1


def delivered(driver: Driver, connection: int, queue: str) -> list[tuple[int, bytes, bool]]:
    """What a new consumer gets: sequence, body, and whether it may have been sent before."""
    known = len(driver.effects)
    driver.subscribe(connection, queue, 100)
    found = []
    for one in driver.effects[known:]:
        if isinstance(one, Delivery):
            first, bodies = one.stored.sequence + one.first, one.stored.batch.bodies()
            for at, body in enumerate(bodies[one.first : one.first + one.messages]):
                found.append((first + at, bytes(body), one.redelivered))
    return found

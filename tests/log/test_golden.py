"""A small log, byte for byte as this version writes it, and its walk in docs/log-format.md.

The log in `earlier/` is the one that the first version wrote, that in `earlier/modes` the one of the version that gave
queues their modes. They are never written again: they are read for ever. To write the files of the present one again,
after the format was changed on purpose: `python -m tests.log.test_golden`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.counting import counted
from tests.log.building import LOG_ID, TIME_US, seal_all, write
from tests.sim.disk import SimulatedDisk
from vibemq.batch import pack
from vibemq.declaration import ScheduleSpec
from vibemq.events import (
    Acked,
    BrokerStarted,
    Cancelled,
    DeadLettered,
    DeadReason,
    Event,
    Fired,
    GroupCreated,
    Matured,
    Published,
    Redriven,
    Routed,
    ScheduleSet,
    SegmentSealed,
    Subscribed,
    TransactionCommitted,
)
from vibemq.log.disk import AnyDisk
from vibemq.log.log import Log
from vibemq.log.segment import SEGMENT_HEADER_BYTES

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "log"
WALK = ROOT / "docs" / "log-format.md"
FILES = ("FORMAT", "log/00000000000000000000.seg", "log/00000000000000000005.seg")
FIRST_EVENTS = (
    (BrokerStarted("0.1.0", clean=True, wall_us=TIME_US), b""),
    (Subscribed(3, 1, 0, 7), b""),
    (Published(1, 0, 1, 2, 10, 0, 0, 7), b"\x02\0\0\0\0\0\x04\0\x05\0\0\0\x05\0\0\0helloworld"),
    (Acked(1, 0, 3, ((0, 1, 3),), 10), b""),
    (Published(1, 0, 3, 1, 3500, 0, 0, 7), b"\x01\0\0\0\0\0\x04\0\xac\x0d\0\0" + b"." * 3500),
    (Published(1, 0, 4, 1, 3, 0, 0, 7), b"\x01\0\0\0\0\0\x04\0\x03\0\0\0end"),
)
"""What the first version knew."""
MODES_EVENTS = (
    *FIRST_EVENTS,
    (GroupCreated(2, 1, "billing", 1, ephemeral=False, connection=7), b""),
    (
        Routed("orders.new", ((1, 7, 1), (2, 0, 1)), 2, 6, 0, 0, 7, timed=True),
        b"".join(pack([b"one", b"two"], priority=7, ttl_ms=60_000, keys=[0, 1 << 63])),
    ),
    (DeadLettered(1, 0, 0, ((7, 1, 2),), 3, DeadReason.EXPIRED, 1, "", 3, 1, ((7, 0, 1),)), b""),
    (Redriven(3, ((0, 1, 2),), 3, 1, 1, 7, 3, ((7, 0, 1),), 7), b""),
)
"""What was known when queues had got their modes."""
LATER = b"".join(pack([b"later", b"too"]))
NOW = b"".join(pack([b"now"]))
DUE_US = TIME_US + 11
EVENTS = (
    *MODES_EVENTS,
    (
        Published(1, 0, 0, 2, 8, 0, 0, 7, due_us=DUE_US, dedup=bytes(range(16)) + bytes(16), duplicates=((1, 2, 0),)),
        LATER,
    ),
    (
        TransactionCommitted(
            (Published(1, 0, 5, 1, 3, 0, 0, 0), Published(2, 0, 0, 2, 8, 0, 0, 0, due_us=DUE_US)),
            (Routed("orders.new", ((1, 0, 6), (2, 0, 2)), 1, 3, 0, 0, 0),),
            (Acked(1, 0, 3, ((0, 3, 4),), 3_500),),
            (len(NOW), len(LATER), len(NOW)),
            (7 << 20) + 1,
            9,
            1,
            7,
            1,
        ),
        NOW + LATER + NOW,
    ),
    (Matured(2, 0, 3, ((DUE_US, 11, 1, 2, 8, 0),), 8), b""),
    (Cancelled(1, ((DUE_US, 10, 0, 2, 8, 0),), ((DUE_US, 10, 1, 1, 3, 0),), 7), b""),
    (ScheduleSet(14, "beat", ScheduleSpec(queue="orders", body=b"now", every_ms=1_500), TIME_US + 15, 7), b""),
    (Fired(14, TIME_US + 15, TIME_US + 1_500_015, 0, ((1, 0, 7),), 1, 3), NOW),
)


def build(disk: AnyDisk) -> Log:
    """The log of the golden files: some events, each synced before the next, and the seal of the first segment."""
    log = Log.open(disk, new_log_id=lambda: LOG_ID, segment_bytes=4096, reserve_bytes=0, time_us=TIME_US)
    log.recover()
    for number, (event, payload) in enumerate(EVENTS):
        log.append(event, TIME_US + number, [payload] if payload else ())
        write(log)
    seal_all(log, disk)
    return log


def built() -> dict[str, bytes]:
    disk = SimulatedDisk()
    log = build(disk)
    files = disk.contents()
    end = log.read(log.written - 1).end  # zeros follow: the file is allocated ahead
    return {name: files[name][:end] if name == FILES[-1] else files[name] for name in FILES}


def golden(folder: Path = GOLDEN) -> dict[str, bytes]:
    return {name: bytes.fromhex((folder / f"{Path(name).name}.hex").read_text(encoding="ascii")) for name in FILES}


def test_the_log_is_written_byte_for_byte_as_before() -> None:
    assert built() == golden()


@pytest.mark.parametrize(
    ("folder", "events"),
    [(GOLDEN, EVENTS), (GOLDEN / "earlier" / "modes", MODES_EVENTS), (GOLDEN / "earlier", FIRST_EVENTS)],
    ids=["present", "modes", "first"],
)
def test_the_golden_log_is_read(folder: Path, events: Sequence[tuple[Event, bytes]]) -> None:
    with counted("G15", 0) as logs:
        disk = SimulatedDisk()
        for name, data in golden(folder).items():
            disk.create(name)
            disk.overwrite(name, data)
        disk.sync_directory("")
        log = Log.open(disk, new_log_id=lambda: 0, read_only=True)
        assert log.id == LOG_ID
        *records, last = log.scan(0)
        assert [(record.event, bytes(record.payload)) for record in records] == list(events)
        assert [record.time_us for record in records] == [TIME_US + number for number in range(len(events))]
        sealed = last.event
        assert isinstance(sealed, SegmentSealed)
        assert (sealed.base, sealed.end) == (0, 5)
        report = log.verify()
        assert (report.problems, report.seals, report.records) == ([], 1, len(events) + 1)
        logs.add(1)


def test_the_walk_in_the_documentation_is_that_of_the_golden_log() -> None:
    text = WALK.read_text(encoding="utf-8")
    for name, start, length in (
        ("FORMAT", 0, None),
        (FILES[1], 0, SEGMENT_HEADER_BYTES),
        (FILES[1], SEGMENT_HEADER_BYTES, None),
    ):
        walk = re.search(rf"<!-- walk {re.escape(name)} from {start} -->\n```\n(.*?)```", text, re.DOTALL)
        assert walk is not None, f"no walk of {name} from {start}"
        at = start
        for line in walk[1].splitlines():
            position, octets = re.fullmatch(r" *(\d+)  ((?:[0-9a-f]{2} )+) *\S.*", line, re.ASCII).groups()  # type: ignore[union-attr]
            data = bytes.fromhex(octets)
            assert (int(position), data) == (at, golden()[name][at : at + len(data)]), line
            at += len(data)
        assert length is None or at == start + length
        assert at > start


if __name__ == "__main__":
    for written, content in built().items():
        lines = [content[at : at + 32].hex(" ") for at in range(0, len(content), 32)]
        (GOLDEN / f"{Path(written).name}.hex").write_text("\n".join(lines) + "\n", encoding="ascii")

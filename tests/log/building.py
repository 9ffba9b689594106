"""Logs to test with: small segments, fixed ids and times."""

import hashlib

import xxhash

from tests.sim.disk import SimulatedDisk
from vibemq.events import Acked, Event, Published, SegmentSealed
from vibemq.log.disk import AnyDisk
from vibemq.log.frame import ERASED, HEADER_BYTES, Record
from vibemq.log.log import Log
from vibemq.log.recovery import Recovery
from vibemq.log.segment import list_bases, seal_segment, segment_name

LOG_ID = 0x1122334455667788
TIME_US = 1_700_000_000_000_000
SEGMENT_BYTES = 4096


def event(number: int, queue: int = 1) -> Published:
    """The publish of one message with that sequence."""
    return Published(queue, 0, number, 1, 10, 0, 0, 7)


def acked(number: int) -> Event:
    """An event without a payload."""
    return Acked(1, 0, 5, ((0, number, number + 1),), 10)


def open_log(disk: AnyDisk, *, segment_bytes: int = SEGMENT_BYTES, reserve_bytes: int = 4096) -> Log:
    """A log opened, and not recovered yet."""
    return Log.open(disk, new_log_id=lambda: LOG_ID, segment_bytes=segment_bytes, reserve_bytes=reserve_bytes)


def recovered(
    disk: AnyDisk, *, segment_bytes: int = SEGMENT_BYTES, known_synced: int = 0
) -> tuple[Log, Recovery, list[Record]]:
    """A log opened and recovered from zero, with what it held."""
    log, records = open_log(disk, segment_bytes=segment_bytes), list[Record]()
    return log, log.recover(known_synced=known_synced, on_record=records.append), records


def new_log(disk: AnyDisk, *, segment_bytes: int = SEGMENT_BYTES) -> Log:
    """A log ready to append to."""
    return recovered(disk, segment_bytes=segment_bytes)[0]


def write(log: Log, *, sync: bool = True) -> None:
    """Write what is buffered."""
    group = log.take_group()
    if group is not None:
        log.write_group(group, sync)
        log.group_done(group, sync)
        log.prepare()


def fill(log: Log, count: int, *, group: int = 5, payload: bytes = b"payload") -> None:
    """Append `count` publishes, synced in groups."""
    for number in range(log.next_offset + 1, log.next_offset + count + 1):
        log.append(event(number), TIME_US + number, [payload * (number % 7)])
        if number % group == 0:
            write(log)
    write(log)


def seal_all(log: Log, disk: AnyDisk) -> int:
    """Seal every full segment, as the runtime does; how many that were."""
    facts = log.unsealed()
    for segment in facts:
        end, seal = seal_segment(disk, log.id, segment.base, log.last_seal, lambda: None)
        log.append(SegmentSealed(segment.base, end, seal, log.last_seal), TIME_US)
    write(log)
    return len(facts)


def erased(data: bytes, payload: bytes) -> bytes:
    """What erasing makes of a record: the flag, the header's checksum anew, and a hash in place of the payload."""
    body = bytearray(data[8:HEADER_BYTES])
    body[59] |= ERASED
    facts = data[HEADER_BYTES : len(data) - len(payload)]
    digest = hashlib.sha256(payload).digest()
    sums = [xxhash.xxh3_64_intdigest(bytes(part), LOG_ID).to_bytes(8, "little") for part in (body, digest)]
    return sums[0] + bytes(body) + facts + digest + sums[1]


# -- a log to damage

COUNT = 145


def full_log() -> tuple[SimulatedDisk, list[int], list[Record]]:
    """Several segments, their bases, and all their records."""
    disk = SimulatedDisk()
    log = new_log(disk)
    fill(log, COUNT)
    records = list(log.scan(0))
    log.close()
    bases = list_bases(disk)
    assert len(bases) >= 4
    return disk, bases, records


def change(disk: SimulatedDisk, base: int, at: int, data: bytes) -> None:
    """Put other bytes into a segment."""
    content = bytearray(disk.contents()[segment_name(base)])
    content[at : at + len(data)] = data
    disk.overwrite(segment_name(base), bytes(content))


def flip(disk: SimulatedDisk, base: int, at: int) -> None:
    """Change one bit."""
    change(disk, base, at, bytes([disk.contents()[segment_name(base)][at] ^ 1]))


def cut(disk: SimulatedDisk, base: int, length: int) -> None:
    """Leave so many bytes of a segment."""
    disk.overwrite(segment_name(base), disk.contents()[segment_name(base)][:length])

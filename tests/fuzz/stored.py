"""Targets for what is read from the data folder: facts of events, segments, checkpoints."""

import functools
from collections.abc import Sequence
from pathlib import Path

import xxhash

from tests.fuzz.target import Target
from tests.log.building import LOG_ID, fill, new_log, open_log, seal_all
from tests.sim.disk import SimulatedDisk
from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import Mode, Overflow, QueueSettings
from vibemq.errors import CorruptLog, FormatUnsupported
from vibemq.log.frame import HEADER_BYTES, MAGIC_AT, Record
from vibemq.log.index import Checkpoint, MemoryIndex
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.journal import Journal
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.storage import Storage, restore

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
SEGMENT_BYTES = 4096
EDIT_BYTES = 4
TIME_US = 1_700_000_000_000_000


def run_events(data: bytes) -> None:
    """events.decode: byte 0 the tag, byte 1 the version, then facts."""
    if len(data) < 2:
        return
    try:
        event = e.decode(data[0], data[1], data[2:])
    except FormatUnsupported:
        return
    again = e.decode(event.TAG, event.VERSION, e.encode(event))
    assert e.encode(again) == e.encode(event)


def _event_seeds() -> list[bytes]:
    golden = [
        bytes([int(path.name[:3]), int(path.stem.split("-")[2][1:])]) + bytes.fromhex(path.read_text())
        for path in sorted(GOLDEN.rglob("*.hex"))  # 020-Published-v1.hex
    ]
    return [*golden, *(bytes([record.tag, record.version]) + record.facts for record in _life()[1])]


# --- a log whose files were changed


@functools.cache
def _log() -> tuple[dict[str, bytes], tuple[bytes, ...], int]:
    """The files of a log of four segments, the bytes of its records, and what its last record says was synced."""
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=SEGMENT_BYTES)
    fill(log, 60, group=5)
    seal_all(log, disk)
    fill(log, 12, group=4)
    records = list(log.scan(0))
    kept = tuple(bytes(one.header) + bytes(one.facts) + bytes(one.payload) for one in records)
    log.close()
    files = {name: data for name, data in disk.contents().items() if name.endswith(".seg") or name == "FORMAT"}
    return files, kept, records[-1].synced


def run_recovery(data: bytes) -> None:
    """Byte 0: how much an index knows to be synced; then edits of 4 bytes: file, place (u16, big), what to do there.

    A start gives what was written, or a part of it from the beginning that holds all that was known to be synced; or it
    says CorruptLog or FormatUnsupported. It never gives a record that nobody wrote, and never anything else.
    """
    files, written, synced = _log()
    if not data:
        return
    known = data[0] * len(written) // 255
    names, forged = sorted(files), False
    changed = {name: bytearray(content) for name, content in files.items()}
    for at in range(1, min(len(data), 40) - EDIT_BYTES + 1, EDIT_BYTES):
        forged |= _edit(changed[names[data[at] % len(names)]], data[at + 1 : at + EDIT_BYTES])
    disk = SimulatedDisk()
    disk.make_folder()
    disk.make_folder("log")
    for name, content in changed.items():
        disk.create(name).close()
        disk.overwrite(name, bytes(content))
    found: list[bytes] = []

    def take(record: Record) -> None:
        event = record.event
        assert forged or e.encode(event) == bytes(record.facts)
        found.append(bytes(record.header) + bytes(record.facts) + bytes(record.payload))

    try:
        log = open_log(disk, segment_bytes=SEGMENT_BYTES)
        try:
            recovery = log.recover(known_synced=known, on_record=take)
        finally:
            log.close()
    except (CorruptLog, FormatUnsupported):
        assert changed != {name: bytearray(content) for name, content in files.items()} or known > len(written)
        return
    assert len(found) == recovery.end.offset >= known, "what was known to be synced is gone, and nobody says so"
    if not forged:
        assert tuple(found) == written[: len(found)], "a record that was not written so"
        proof = written[-1] in changed[names[-1]]
        assert synced <= len(found) or not proof, "what the log itself shows to have been synced is gone"


def _edit(content: bytearray, edit: bytes) -> bool:
    """One change of a file; whether a valid checksum was put on it, as no accident does."""
    if not content:
        return False
    at, what = int.from_bytes(edit[:2], "big") % len(content), edit[2]
    if what < 8:
        content[at] ^= 1 << what
    elif what < 16:
        del content[at:]
    elif what < 24:
        end = at + (512 if what & 1 else 64)
        content[at:end] = bytes(len(content[at:end]))
    elif what < 32:
        content[at : at + 16] = content[max(0, at - 80) : max(0, at - 64)]
    elif what < 40:
        del content[at : at + what - 31]
    elif what < 64:
        return _forge(content, at, what)
    else:
        content[at] = what
    return False


def _forge(content: bytearray, at: int, what: int) -> bool:
    """Change a byte of the header of the record near `at`, and put a right checksum on it."""
    start = content.find(b"VMQr", at) - MAGIC_AT
    if start < 0:
        return False
    content[start + 8 + what * 7 % 60] ^= what
    fixed = xxhash.xxh3_64_intdigest(bytes(content[start + 8 : start + HEADER_BYTES]), LOG_ID)
    content[start : start + 8] = fixed.to_bytes(8, "little")
    return True


def _recovery_seeds() -> list[bytes]:
    names = range(len(_log()[0]))
    edits = [bytes([name, at, 7, what]) for name in names for at in (0, 2, 9) for what in (0, 9, 17, 25, 33, 44, 200)]
    return [b"\0", b"\xff", *(bytes([known]) + edit for edit in edits for known in (0, 200))]


# --- a checkpoint whose checksum is right and whose content is not


class _Noted:
    """An event as the log holds it."""

    def __init__(self, event: e.Event, time_us: int) -> None:
        self.event, self.time_us = event, time_us
        self.tag, self.version, self.facts = event.TAG, event.VERSION, e.encode(event)


_PATTERNS = (
    ("fan", {"mode": Mode.FAN_OUT}),
    ("urgent", {"mode": Mode.PRIORITY, "max_length": 20, "overflow": Overflow.DROP_NEWEST}),
)


@functools.cache
def _life() -> tuple[Checkpoint, list[_Noted]]:
    """A checkpoint taken in the middle of a short life, and all of that life's events."""
    broker = Broker(Projector(), Limits(), QueueDefaults(QueueSettings(max_attempts=2), _PATTERNS))
    saved = Checkpoint(0, {})
    journal = broker.journal
    journal.now_us = TIME_US
    broker.start("1", TIME_US)
    connection = broker.connect("c", "here", "binary", 5)
    broker.subscribe(Subscribing(connection, 1, "q", None, 100, 1 << 20))
    for group in ("g", None):
        broker.subscribe(Subscribing(connection, 1, "fan", group, 4, 1 << 20))
    for queue, pattern in ((1, "a.#"), (2, "a.b"), (2, "*.b")):
        journal.record(e.Bound(queue, pattern, connection))
    for number in range(1, 40, 3):
        journal.now_us += 1_000_000
        batch = Batch(b"".join(pack([b"x"] * 3, priority=number % 10, ttl_ms=4_000 * (number % 2))))
        broker.publishing.publish(Publish(connection, 2, "q", number, batch))
        broker.publishing.publish(Publish(connection, 3, "urgent", 1_000 + number, batch))
        broker.publishing.publish(Publish(connection, 4, "a.b", 2_000 + number, batch, to_topic=True))
        broker.end_turn()
        broker.deliveries.ack(connection, 1, ((number, number + 1),), 0)
        broker.deliveries.nack(
            connection, 1, ((number + 1, number + 2),), 0, delay_ms=3, reason="r", reject=number > 20
        )
        broker.tick()
        if number == 19:
            journal.record(_first_redriven(journal))
        if number == 22:
            saved = Checkpoint(
                journal.next_offset, {one.key: (one.as_of, parts.encode(one)) for one in journal.state.parts()}
            )
    broker.delete_group(connection, 3, "fan", "g")
    broker.disconnect(connection, "gone", lost=True)
    broker.stop("end")
    return saved, [_Noted(record.event, record.time_us) for record in journal.records]


def _first_redriven(journal: Journal) -> e.Redriven:
    """The first dead letter goes back to work, although it failed before."""
    state = journal.state
    number, dead = next(iter(state.dead.items()))
    run = dead.runs[0]
    event = journal.records[run.offset].event
    assert isinstance(event, e.DeadLettered)
    target, refs = state.queues[run.queue], ((*event.refs[0][:2], 1),)
    spans, size = ((0, run.start, run.start + 1),), event.bytes // event.count
    return e.Redriven(number, spans, size, 1, target.id, run.lane, target.next[run.lane], refs, 1)


def run_checkpoint(data: bytes) -> None:
    """Byte 0 chooses a part, the rest stands in its place. It is refused as a whole, or it is a state like any other.

    A state that contradicts the log is found by the events that follow: those of a start, which drops the checkpoint.
    """
    if not data:
        return
    whole, events = _life()
    key = sorted(whole.parts)[data[0] % len(whole.parts)]
    changed = Checkpoint(whole.start, whole.parts | {key: (whole.parts[key][0], data[1:])})
    try:
        state = restore(changed)
        assert {one.key for one in state.parts()} <= {*whole.parts, *(one.key for one in state.parts())}
    except FormatUnsupported:
        return
    _start(changed, events)


def _start(checkpoint: Checkpoint, events: Sequence[_Noted]) -> None:
    """Open a data folder that has this checkpoint: it must open, and with the state that the log adds up to."""
    disk = SimulatedDisk()
    log = new_log(disk, segment_bytes=1 << 16)
    for one in events:
        log.append(one.event, one.time_us)
    group = log.take_group()
    assert group is not None
    log.write_group(group, sync=True)
    log.group_done(group, synced=True)
    mark = log.synced_mark
    log.close()
    index = MemoryIndex()
    index.commit(mark, checkpoint.parts, (), checkpoint.start)
    opened = [index, MemoryIndex()]
    storage = Storage.recover(disk, open_log(disk, segment_bytes=1 << 16), lambda _disk, _log: opened.pop(0))
    assert storage.state.next_offset == len(events)
    storage.state.digests()
    if storage.opened.index_rebuilt.startswith("its checkpoint"):
        assert storage.opened.replayed_from == 0
    storage.close()


def _checkpoint_seeds() -> list[bytes]:
    whole, _ = _life()
    return [bytes([at]) + whole.parts[key][1] for at, key in enumerate(sorted(whole.parts))]


WORDS = (
    b"\x90",
    b"\x91\x00",
    b"\xc0",
    b"\xa0",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\0\0\0\0\0\0\0",
    b"\xc4\x07",
)
TARGETS = (
    Target("events", run_events, _event_seeds, WORDS),
    Target("recovery", run_recovery, _recovery_seeds),
    Target("checkpoint", run_checkpoint, _checkpoint_seeds, WORDS),
)

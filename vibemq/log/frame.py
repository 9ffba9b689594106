"""The record: how one event lies in the log.

     0        8        16       24       32       40       48       56    60    64   66  67  68     72
     +--------+--------+--------+--------+--------+--------+--------+-----+-----+----+---+---+------+- - - -+- - - - -+
     | header | offset | time   | synced | link   | facts  | payload|facts|pay- |tag |ver|fla| magic| facts | payload |
     | check- |        | us     |        |        | check- | check- |len  |load |    |   |gs |"VMQr"|       |         |
     | sum    |        |        |        |        | sum    | sum    |     |len  |    |   |   |      |       |         |
     | u64    | u64    | u64    | u64    | u64    | u64    | u64    | u32 | u32 | u16| u8| u8| 4    |       |         |
     +--------+--------+--------+--------+--------+--------+--------+-----+-----+----+---+---+------+- - - -+- - - - -+

All integers are little-endian. All checksums are xxh3-64, seeded with the log id, a random number made once for each
data folder: what one log wrote is never valid in another, and a payload cannot contain a valid record by accident or
by intent.

* header checksum covers bytes 8..71.
* synced: every record with a smaller offset was durable when this one was appended. It is what tells corruption from
  a torn tail.
* link is the identity of the record before (0 for the first of the log). The identity of a record is its header
  checksum with the ERASED flag taken as clear, so that erasing a payload later breaks no link.
* payload checksum and length are those of the payload as first written. With flag ERASED, what lies in its place is the
  payload's SHA-256 (32 bytes) and the xxh3-64 of these 32 bytes (8 bytes).
* magic lets a reader find records behind a damaged one with bytes.find.

This module is pure: bytes in, records out.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import xxhash

from vibemq import events

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER_BYTES: Final = 72
MAGIC: Final = b"VMQr"
MAGIC_AT: Final = 68
ERASED: Final = 1
KNOWN_FLAGS: Final = ERASED
ERASED_BYTES: Final = 40
LENGTH_MAX: Final = (1 << 32) - 1

_IDENTITY: Final = struct.Struct("<6Q2IH2B4s")
_HEADER: Final = struct.Struct("<7Q2IH2B4s")
_LENGTHS: Final = struct.Struct("<8xQ40x2I3xB")
_U64: Final = struct.Struct("<Q")
_FLAGS_AT: Final = 67 - 8
_checksum = xxhash.xxh3_64_intdigest


class Damage(Exception):
    """Bytes that are no whole record; `problem` says why, for people. It becomes CorruptLog, or the place of a cut."""

    def __init__(self, problem: str) -> None:
        """Keep the `problem`."""
        super().__init__(problem)
        self.problem = problem


class Place(NamedTuple):
    """Where a record stands: its offset, the base of its segment, and the byte in that file."""

    offset: int
    base: int
    at: int


class Mark(NamedTuple):
    """The end of a log at `offset`: the record before it, by place and identity. An index knows its log again by it.

    `at` is 0 when the segment has no record yet; `identity` is then the link in its header.
    """

    offset: int
    base: int
    at: int
    identity: int


class Record:
    """One record. `facts` and `payload` are views of the block that was read: copy what is to be kept.

    `base` and `at` tell where it stands: the segment's base offset and the byte in it. `identity` is what the next
    record links to, `payload_bytes` the length of the payload as first written.
    """

    __slots__ = (
        "at",
        "base",
        "facts",
        "facts_bytes",
        "facts_checksum",
        "flags",
        "header",
        "identity",
        "link",
        "offset",
        "payload",
        "payload_bytes",
        "payload_checksum",
        "stored_bytes",
        "synced",
        "tag",
        "time_us",
        "version",
    )

    base: int
    at: int
    offset: int
    time_us: int
    synced: int
    link: int
    identity: int
    tag: int
    version: int
    flags: int
    header: memoryview
    facts: memoryview
    payload: memoryview
    facts_bytes: int
    facts_checksum: int
    payload_bytes: int
    payload_checksum: int
    stored_bytes: int

    @property
    def event(self) -> events.Event:
        """The event, decoded anew at each use.

        Raises:
            FormatUnsupported: an event that a later VibeMQ has written.
        """
        return events.decode(self.tag, self.version, self.facts)

    @property
    def erased(self) -> bool:
        """Whether only the hash of the payload is left."""
        return bool(self.flags & ERASED)

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.offset, self.base, self.at)

    @property
    def end(self) -> int:
        """The byte of the segment behind this record."""
        return self.at + self.stored_bytes

    def __repr__(self) -> str:
        """Where it is and what it is."""
        return f"<Record {self.offset} at {self.base}+{self.at}: tag {self.tag}, {self.stored_bytes} bytes>"


def payload_checksum(parts: Sequence[Buffer], log_id: int) -> int:
    """The checksum of a payload that comes in parts."""
    if len(parts) == 1:
        return _checksum(parts[0], log_id)
    state = xxhash.xxh3_64(seed=log_id)
    for part in parts:
        state.update(part)
    return state.intdigest()


def pack(
    log_id: int,
    offset: int,
    time_us: int,
    synced: int,
    link: int,
    tag: int,
    version: int,
    facts: bytes,
    payload_bytes: int,
    payload_sum: int,
) -> tuple[bytes, int]:
    """The header and facts of a record, as one piece, and the record's identity (the next one's link)."""
    body = _IDENTITY.pack(
        offset,
        time_us,
        synced,
        link,
        _checksum(facts, log_id),
        payload_sum,
        len(facts),
        payload_bytes,
        tag,
        version,
        0,
        MAGIC,
    )
    identity = _checksum(body, log_id)
    return b"".join((identity.to_bytes(8, "little"), body, facts)), identity


def identity_bytes(header: memoryview) -> bytes:
    """Bytes 8..71 of a record's header with the ERASED flag clear: what its identity and the seal are made of."""
    fixed = bytearray(header[8:])
    fixed[_FLAGS_AT] &= ~ERASED
    return bytes(fixed)


def parse(block: memoryview, index: int, log_id: int, base: int, at: int) -> Record | int:
    """The record at `block[index:]`, which stands at byte `at` of segment `base`; its body is checked too.

    Returns how many bytes from `index` on are needed when the block holds fewer.

    Raises:
        Damage: no whole record is here.
    """
    if len(block) - index < HEADER_BYTES:
        return HEADER_BYTES
    record = parse_header(block, index, log_id, base, at)
    if record is None:
        raise Damage("no record header" if any(block[index : index + HEADER_BYTES]) else "only zeros")
    if len(block) - index < record.stored_bytes:
        return record.stored_bytes
    attach_body(record, block, index, log_id)
    return record


def parse_header(block: memoryview, index: int, log_id: int, base: int, at: int) -> Record | None:
    """The record whose header stands at `block[index:]`, without its body; None when no valid header is there."""
    header = block[index : index + HEADER_BYTES]
    (
        checksum,
        offset,
        time_us,
        synced,
        link,
        facts_sum,
        payload_sum,
        facts_bytes,
        payload_bytes,
        tag,
        version,
        flags,
        magic,
    ) = _HEADER.unpack(header)
    if magic != MAGIC or _checksum(header[8:], log_id) != checksum or flags & ~KNOWN_FLAGS:
        return None
    record = Record()
    record.header = header
    record.base = base
    record.at = at
    record.offset = offset
    record.time_us = time_us
    record.synced = synced
    record.link = link
    record.tag = tag
    record.version = version
    record.flags = flags
    record.facts_bytes = facts_bytes
    record.facts_checksum = facts_sum
    record.payload_bytes = payload_bytes
    record.payload_checksum = payload_sum
    if flags:
        record.identity = _checksum(identity_bytes(header), log_id)
        payload_bytes = ERASED_BYTES
    else:
        record.identity = checksum
    record.stored_bytes = HEADER_BYTES + facts_bytes + payload_bytes
    return record


def skip_to(block: Buffer, index: int, offset: int) -> int:
    """Where in a block record `offset` stands, going by the lengths of those from `index` on; -1: not in this block.

    Nothing is checked: whoever goes there has to.
    """
    unpack, end = _LENGTHS.unpack_from, len(block) - HEADER_BYTES
    while index <= end:
        number, facts_bytes, payload_bytes, flags = unpack(block, index)
        if number >= offset:
            return index if number == offset else -1
        index += HEADER_BYTES + facts_bytes + (ERASED_BYTES if flags else payload_bytes)
    return -1


def attach_body(record: Record, block: memoryview, index: int, log_id: int) -> None:
    """Check facts and payload behind the header at `block[index:]` and put views of them into the record.

    Raises:
        Damage: a checksum that does not fit.
    """
    payload_at = index + HEADER_BYTES + record.facts_bytes
    facts = block[index + HEADER_BYTES : payload_at]
    payload = block[payload_at : index + record.stored_bytes]
    if _checksum(facts, log_id) != record.facts_checksum:
        raise Damage("the checksum of its facts does not fit")
    if record.flags:
        if _checksum(payload[:32], log_id) != _U64.unpack_from(payload, 32)[0]:
            raise Damage("the checksum of its erased payload's hash does not fit")
    elif _checksum(payload, log_id) != record.payload_checksum:
        raise Damage("the checksum of its payload does not fit")
    record.facts = facts
    record.payload = payload


def find_headers(block: bytes | bytearray, log_id: int, base: int, at: int, start: int = 0) -> Iterator[Record]:
    """Every valid record header in a block that stands at byte `at` of a segment, found by its magic, from `start` on.

    Bodies are not looked at. Headers that reach over the end of the block are not found: let blocks overlap by
    HEADER_BYTES.
    """
    view = memoryview(block)
    found = block.find(MAGIC, start + MAGIC_AT)
    while found >= 0:
        index = found - MAGIC_AT
        record = parse_header(view, index, log_id, base, at + index)
        if record is not None:
            yield record
        found = block.find(MAGIC, found + 1)

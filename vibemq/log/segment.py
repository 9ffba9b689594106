"""A segment: a file of records that follow each other, and its seal.

    0          8        16     24         32     40           48      56         64
    +----------+--------+------+----------+------+------------+-------+----------+- - - - - -+- - - - - - - - +
    | magic    | log id | base | previous | link | created us | zero  | checksum | records   | zeros          |
    | VMQSEG   | u64    | u64  | u64      | u64  | u64        | u64   | u64      |           | (only the last |
    | 0 1      |        |      |          |      |            |       |          |           |  segment)      |
    +----------+--------+------+----------+------+------------+-------+----------+- - - - - -+- - - - - - - - +

The file is named by its base, the offset of its first record, in 20 digits. `previous` is the base of the segment
before (its own base in the first one), so that a missing file is seen from the headers alone; `link` is the identity
of the last record before. The checksum is xxh3-64 of bytes 0..55, seeded with the log id. The file is allocated ahead
of the records, therefore zeros behind the last record of the last segment are its normal end. A full segment is cut
to its length and synced BEFORE its successor gets its name: the name of a successor proves that the whole predecessor
was durable.

The seal of a full segment:

    body = SHA-256(for each record: bytes 8..71 of its header with the ERASED flag clear, facts, SHA-256(payload))
    seal = SHA-256("vibemq seal 1", seal of the segment before (32 zero bytes for the first), log id, base, end, body)

An erased record keeps SHA-256(payload) in place of the payload, so erasing does not change the seal.
"""

import hashlib
import struct
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple

import xxhash

from vibemq.errors import CorruptLog
from vibemq.log import frame
from vibemq.log.disk import AnyDisk, AnyFile
from vibemq.log.frame import Damage, Record

FOLDER: Final = "log"
SUFFIX: Final = ".seg"
SEGMENT_HEADER_BYTES: Final = 64
SEGMENT_MAGIC: Final = b"VMQSEG\x00\x01"
READ_BYTES: Final = 1 << 20
NO_SEAL: Final = bytes(32)

_HEADER: Final = struct.Struct("<8s6QQ")
_SEALED: Final = struct.Struct("<13s32s3Q32s")
_SLICE_S: Final = 0.0003
_PAUSE_S: Final = 0.0005


class SegmentHeader(NamedTuple):
    """The facts at the front of a segment."""

    log_id: int
    base: int
    previous: int
    link: int
    created_us: int

    def pack(self) -> bytes:
        """The 64 bytes."""
        front = _HEADER.pack(SEGMENT_MAGIC, self.log_id, self.base, self.previous, self.link, self.created_us, 0, 0)[
            :-8
        ]
        return front + xxhash.xxh3_64_intdigest(front, self.log_id).to_bytes(8, "little")

    @classmethod
    def parse(cls, data: bytes, log_id: int) -> "SegmentHeader":
        """The header in the first bytes of a file.

        Raises:
            Damage: it is not whole, or not of this log.
        """
        if len(data) < SEGMENT_HEADER_BYTES:
            raise Damage(f"the segment header has only {len(data)} of {SEGMENT_HEADER_BYTES} bytes")
        magic, found_id, base, previous, link, created_us, zero, checksum = _HEADER.unpack_from(data)
        if (
            xxhash.xxh3_64_intdigest(data[: SEGMENT_HEADER_BYTES - 8], log_id) != checksum
            or magic != SEGMENT_MAGIC
            or zero
        ):
            raise Damage("the segment header is damaged")
        if found_id != log_id:
            raise Damage("the segment belongs to another log")
        return cls(found_id, base, previous, link, created_us)


def segment_name(base: int) -> str:
    """The file of the segment whose first record has offset `base`."""
    return f"{FOLDER}/{base:020d}{SUFFIX}"


def list_bases(disk: AnyDisk) -> list[int]:
    """The bases of all segments in the folder, ascending."""
    names = [name.removesuffix(SUFFIX) for name in disk.list(FOLDER) if name.endswith(SUFFIX)]
    return [int(name) for name in names if len(name) == 20 and name.isascii() and name.isdigit()]


def read_header(disk: AnyDisk, base: int, log_id: int) -> SegmentHeader:
    """The header of a segment.

    Raises:
        Damage: it is not whole, of another log, or of another base than the file's name says.
    """
    file = disk.open_read(segment_name(base))
    try:
        header = SegmentHeader.parse(file.pread(SEGMENT_HEADER_BYTES, 0), log_id)
    finally:
        file.close()
    if header.base != base:
        raise Damage(f"the file's header says that it begins with record {header.base}")
    return header


class Walk:
    """Reads the records of one segment in order and stops at the first bytes that are no whole, fitting record.

    After the iteration `at`, `offset` and `link` are those that the next record must have, and `problem` says why it
    stopped (empty: exactly at the end of the file). Offset and link are checked when they are known beforehand.
    """

    __slots__ = ("_file", "at", "base", "link", "log_id", "offset", "problem")

    def __init__(self, file: AnyFile, log_id: int, base: int, at: int, offset: int, link: int | None) -> None:
        """Begin at byte `at`, where record `offset` stands; `link` is the identity of the record before, if known."""
        self._file, self.log_id, self.base = file, log_id, base
        self.at, self.offset, self.link = at, offset, link
        self.problem = ""

    def __iter__(self) -> Iterator[Record]:
        """The records, with their bodies checked."""
        wanted = READ_BYTES
        while True:
            block = self._file.pread(wanted, self.at)
            if not block:
                self.problem = ""
                return
            found = yield from self._block(memoryview(block))
            if found == 0:
                return
            if len(block) < wanted and found > len(block):
                self.problem = f"the file ends within it ({len(block)} of {found} bytes)"
                return
            wanted = max(READ_BYTES, found)

    def _block(self, block: memoryview) -> Generator[Record, None, int]:
        """The whole records of a block; returns how many bytes the next one needs, 0 when there is none."""
        parse, log_id, base, origin = frame.parse, self.log_id, self.base, self.at
        index, length = 0, len(block)
        while index < length:
            try:
                record = parse(block, index, log_id, base, origin + index)
            except Damage as damage:
                self.problem = damage.problem
                return 0
            if isinstance(record, int):
                return record
            if record.offset != self.offset:
                self.problem = f"record {record.offset} stands in its place"
                return 0
            if self.link is not None and record.link != self.link:
                self.problem = "it does not follow the record before it"
                return 0
            index += record.stored_bytes
            self.at, self.offset, self.link = origin + index, record.offset + 1, record.identity
            yield record
        return 1


def _yield_processor() -> None:
    time.sleep(_PAUSE_S)


class SealBody:
    """The body hash of a seal, fed record by record."""

    def __init__(self) -> None:
        """Begin with no record."""
        self._hash = hashlib.sha256()

    def add(self, record: Record) -> None:
        """The next record of the segment, as `Walk` gives it."""
        self._hash.update(frame.identity_bytes(record.header))
        self._hash.update(record.facts)
        self._hash.update(record.payload[:32] if record.erased else hashlib.sha256(record.payload).digest())

    def digest(self) -> bytes:
        """The hash of what was added."""
        return self._hash.digest()


def seal_of(previous: bytes, log_id: int, base: int, end: int, body: bytes) -> bytes:
    """The seal of a segment with records `base` .. `end - 1`."""
    return hashlib.sha256(_SEALED.pack(b"vibemq seal 1", previous, log_id, base, end, body)).digest()


def seal_segment(
    disk: AnyDisk, log_id: int, base: int, previous: bytes, pause: Callable[[], None] = _yield_processor
) -> tuple[int, bytes]:
    """The end offset and the seal of a full segment. For a background thread: it gives way to others all the time.

    `previous` is the seal of the segment before, `pause` is called after each 0.3 ms of work.

    Raises:
        CorruptLog: a record in it is damaged.
    """
    name = segment_name(base)
    file = disk.open_read(name)
    try:
        header = _header_or_corrupt(file, name, log_id, base)
        walk, body = Walk(file, log_id, base, SEGMENT_HEADER_BYTES, base, header.link), SealBody()
        begun = time.perf_counter()
        for record in walk:
            body.add(record)
            if time.perf_counter() - begun > _SLICE_S:
                pause()
                begun = time.perf_counter()
        if walk.problem:
            raise CorruptLog(name, walk.at, walk.offset, walk.problem)
        return walk.offset, seal_of(previous, log_id, base, walk.offset, body.digest())
    finally:
        file.close()


def _header_or_corrupt(file: AnyFile, name: str, log_id: int, base: int) -> SegmentHeader:
    try:
        return SegmentHeader.parse(file.pread(SEGMENT_HEADER_BYTES, 0), log_id)
    except Damage as damage:
        raise CorruptLog(name, 0, base, damage.problem) from None

"""A batch: the unit in which messages travel, are stored and are delivered.

    0        4        6         7         8                                     8 + 4n (or 8n)
    +--------+--------+---------+---------+-----------------+- - - - - - - - - +---------------------+
    | count  | flags  | priority| zero    | lengths         | header lengths   | records             |
    | u32    | u16    | u8      | u8      | u32 x count     | u32 x count      | one after the other |
    +--------+--------+---------+---------+-----------------+- - - - - - - - - +---------------------+

All integers are little-endian. `lengths[i]` is the whole length of record i. With flag HEADERS a second column gives how
many of those bytes, at the front of the record, are its headers: one MessagePack map from text to nil, boolean, integer,
float, text or bytes; zero means none. What remains of a record is the body, as it came.

The broker checks the columns and never looks into a record. A batch is stored, cached and delivered as it came; when a
consumer may take only part of it, `cut` makes a smaller batch from slices. The columns are summed in C through
memoryview.cast, which uses the machine's own byte order: VibeMQ runs on little-endian machines.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from typing import Any, Final, TypeAlias

import msgspec

from vibemq.errors import InvalidRequest

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("VibeMQ needs a little-endian machine: batch columns are read in the machine's byte order")

HeaderValue: TypeAlias = str | bytes | int | float | bool | None
Headers: TypeAlias = dict[str, HeaderValue]

HEAD: Final = struct.Struct("<IHBB")
HEADERS: Final = 1
KNOWN_FLAGS: Final = HEADERS
PRIORITY_NORMAL: Final = 4

_headers_encoder = msgspec.msgpack.Encoder()
_headers_decoder = msgspec.msgpack.Decoder(dict[str, Any])  # msgspec has no union of text and bytes


def pack(bodies: Sequence[bytes], headers: Sequence[Headers | None] | None = None, priority: int = PRIORITY_NORMAL) -> list[bytes]:
    """The parts of a batch of `bodies`, ready for writelines.

    `headers` has an entry for each body, or is None when no message has any.
    """
    if headers is None or not any(headers):
        return [HEAD.pack(len(bodies), 0, priority, 0), array("I", map(len, bodies)).tobytes(), *bodies]
    packed = [_headers_encoder.encode(one) if one else b"" for one in headers]
    header_lengths = array("I", map(len, packed))
    lengths = array("I", map(int.__add__, map(len, bodies), header_lengths))
    records = [part for pair in zip(packed, bodies, strict=True) for part in pair]
    return [HEAD.pack(len(bodies), HEADERS, priority, 0), lengths.tobytes(), header_lengths.tobytes(), *records]


class Batch:
    """A checked view of the bytes of one batch; nothing is copied.

    `count` messages, `flags`, `priority`, `lengths` as a memoryview of u32, and `record_bytes`, the sum of lengths.
    """

    __slots__ = ("count", "data", "flags", "lengths", "priority", "record_bytes", "records_at")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Check `data` and keep a view of it.

        Raises:
            InvalidRequest: an empty batch, unknown flags, or lengths that do not add up to the bytes that are there.
        """
        view = memoryview(data)
        size = len(view)
        if size < HEAD.size:
            raise InvalidRequest(f"a batch of {size} bytes has no room for its header of {HEAD.size}")
        count, flags, priority, zero = HEAD.unpack_from(view)
        if flags & ~KNOWN_FLAGS or zero:
            raise InvalidRequest(f"batch flags {flags:#06x} are not known to this version")
        if priority > 9:
            raise InvalidRequest(f"priority {priority} is not in 0..9")
        records_at = HEAD.size + (8 if flags & HEADERS else 4) * count
        if not count or records_at > size:
            raise InvalidRequest(f"a batch of {size} bytes cannot hold the columns of {count} messages")
        lengths = view[HEAD.size : HEAD.size + 4 * count].cast("I")
        record_bytes = sum(lengths)
        if records_at + record_bytes != size:
            raise InvalidRequest(f"the lengths of a batch add up to {records_at + record_bytes} bytes of {size}")
        self.data, self.count, self.flags, self.priority = view, count, flags, priority
        self.lengths, self.record_bytes, self.records_at = lengths, record_bytes, records_at
        if flags & HEADERS and any(map(int.__gt__, self.header_lengths, lengths)):
            raise InvalidRequest("a message's headers are longer than the message")

    @property
    def header_lengths(self) -> Sequence[int]:
        """How many bytes at the front of each record are its headers."""
        if self.flags & HEADERS:
            at = HEAD.size + 4 * self.count
            return self.data[at : at + 4 * self.count].cast("I")
        return bytes(self.count)

    def cut(self, first: int, count: int) -> list[bytes | memoryview]:
        """The parts of a batch that holds `count` messages of this one, from index `first`."""
        if first == 0 and count == self.count:
            return [self.data]
        start = self.records_at + sum(self.lengths[:first])
        stop = start + sum(self.lengths[first : first + count])
        at = HEAD.size + 4 * first
        parts: list[bytes | memoryview] = [HEAD.pack(count, self.flags, self.priority, 0), self.data[at : at + 4 * count]]
        if self.flags & HEADERS:
            at += 4 * self.count
            parts.append(self.data[at : at + 4 * count])
        parts.append(self.data[start:stop])
        return parts

    def bodies(self) -> list[bytes]:
        """The body of each message, copied out."""
        records = bytes(self.data[self.records_at :])
        bounds = pairwise(accumulate(self.lengths, initial=0))
        if self.flags & HEADERS:
            pairs = zip(bounds, self.header_lengths, strict=True)
            return [records[start + skip : stop] for (start, stop), skip in pairs]
        return [records[start:stop] for start, stop in bounds]

    def headers(self) -> Iterator[Headers]:
        """The headers of each message.

        Raises:
            InvalidRequest: bytes that are no map from text to plain values. The broker never looks, so this is the
                producer's mistake, found by the reader.
        """
        if not self.flags & HEADERS:
            yield from (empty.copy() for empty in repeat({}, self.count))
            return
        starts = accumulate(self.lengths, initial=self.records_at)
        for start, size in zip(starts, self.header_lengths, strict=False):
            yield unpack_headers(self.data[start : start + size])


def unpack_headers(data: bytes | memoryview) -> Headers:
    """The headers in their bytes; none where there are no bytes."""
    if not data:
        return {}
    try:
        headers = _headers_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise InvalidRequest(f"message headers are no map of text to plain values: {problem}") from None
    for key, value in headers.items():
        if not isinstance(value, HeaderValue):
            raise InvalidRequest(f"message header {key!r} is no plain value but a {type(value).__name__}")
    return headers

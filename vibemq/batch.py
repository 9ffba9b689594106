"""A batch: the unit in which messages travel, are stored and are delivered.

    0        4        6         7         8                                     8 + 4n (or 8n)
    +--------+--------+---------+---------+-----------------+- - - - - - - - - +---------------------+
    | count  | flags  | priority| zero    | lengths         | header lengths   | records             |
    | u32    | u16    | u8      | u8      | u32 x count     | u32 x count      | one after the other |
    +--------+--------+---------+---------+-----------------+- - - - - - - - - +---------------------+

All integers are little-endian. `lengths[i]` is the whole length of record i. With flag HEADERS a second column gives
how many of those bytes, at the front of the record, are its headers: one MessagePack map from text to nil, boolean,
integer, float, text or bytes; zero means none. What remains of a record is the body, as it came.

A batch has 1 to MESSAGES_MAX messages, and each at most HEADER_BYTES_MAX of headers.

The broker checks the columns and never looks into a record. A batch is stored, cached and delivered as it came; when a
consumer may take only part of it, `cut` makes a smaller batch from slices. The columns are summed in C through
memoryview.cast, which uses the machine's own byte order: VibeMQ runs on little-endian machines.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import NoneType
from typing import Any, Final, TypeAlias

import msgspec

from vibemq.errors import InvalidRequest

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("VibeMQ needs a little-endian machine: batch columns are read in the machine's byte order")

HeaderValue: TypeAlias = str | bytes | int | float | bool | None
Headers: TypeAlias = dict[str, HeaderValue]
_PLAIN: Final = (str, bytes, int, float, NoneType)
"""HeaderValue for isinstance, which takes a tuple in a third of the time; bool is an int."""

HEAD: Final = struct.Struct("<IHBB")
HEAD_BYTES: Final = 8
HEADERS: Final = 1
KNOWN_FLAGS: Final = HEADERS
PRIORITY_NORMAL: Final = 4
PRIORITY_MAX: Final = 9
MESSAGES_MAX: Final = 1 << 16
"""Messages in a batch: their columns are summed in one go, while nothing else runs."""
HEADER_BYTES_MAX: Final = 1 << 16
"""Bytes of one message's headers."""

_headers_encoder = msgspec.msgpack.Encoder()
_headers_decoder = msgspec.msgpack.Decoder(dict[str, Any])  # msgspec has no union of text and bytes


def pack(
    bodies: Sequence[bytes],
    headers: Sequence[Mapping[str, HeaderValue] | None] | None = None,
    priority: int = PRIORITY_NORMAL,
) -> list[bytes]:
    """The parts of a batch of `bodies`, ready for writelines.

    `headers` has an entry for each body, or is None when no message has any.

    Raises:
        InvalidRequest: no message or more than MESSAGES_MAX, a priority outside 0..9, or headers that are no plain
            values.
    """
    if not 0 < len(bodies) <= MESSAGES_MAX:
        raise InvalidRequest(f"a batch holds 1 to {MESSAGES_MAX} messages, not {len(bodies)}: send them in several")
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidRequest(f"priority {priority} is not in 0..{PRIORITY_MAX}")
    if headers is None or not any(headers):
        return [HEAD.pack(len(bodies), 0, priority, 0), array("I", map(len, bodies)).tobytes(), *bodies]
    packed = [pack_headers(one) if one else b"" for one in headers]
    header_lengths = array("I", map(len, packed))
    lengths = array("I", map(int.__add__, map(len, bodies), header_lengths))
    records = [part for pair in zip(packed, bodies, strict=True) for part in pair]
    return [HEAD.pack(len(bodies), HEADERS, priority, 0), lengths.tobytes(), header_lengths.tobytes(), *records]


class Batch:
    """A checked view of the bytes of one batch; nothing is copied.

    `count` messages, `flags`, `priority`, `lengths` as a memoryview of u32, and `record_bytes`, the sum of lengths.
    """

    __slots__ = ("_cut_at", "_cut_index", "count", "data", "flags", "lengths", "priority", "record_bytes", "records_at")

    count: int
    flags: int
    priority: int
    record_bytes: int

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Check `data` and keep a view of it.

        Raises:
            InvalidRequest: an empty or too large batch, unknown flags, lengths that do not add up to the bytes that
                are there, or headers longer than their message or their limit.
        """
        view = memoryview(data)
        size = len(view)
        if size < HEAD_BYTES:
            raise InvalidRequest(f"a batch of {size} bytes has no room for its header of {HEAD_BYTES}")
        count, flags, priority, zero = HEAD.unpack_from(view)
        if flags & ~KNOWN_FLAGS or zero:
            raise InvalidRequest(f"batch flags {flags:#06x} are not known to this version")
        if priority > PRIORITY_MAX:
            raise InvalidRequest(f"priority {priority} is not in 0..{PRIORITY_MAX}")
        records_at = HEAD_BYTES + (8 if flags & HEADERS else 4) * count
        if not 0 < count <= MESSAGES_MAX:
            raise InvalidRequest(f"a batch holds 1 to {MESSAGES_MAX} messages, not {count}: send them in several")
        if records_at > size:
            raise InvalidRequest(f"a batch of {size} bytes cannot hold the columns of {count} messages")
        lengths = view[HEAD_BYTES : HEAD_BYTES + 4 * count].cast("I")
        record_bytes = sum(lengths)
        if records_at + record_bytes != size:
            raise InvalidRequest(f"the lengths of a batch add up to {records_at + record_bytes} bytes of {size}")
        self.data, self.count, self.flags, self.priority = view, count, flags, priority
        self.lengths, self.record_bytes, self.records_at = lengths, record_bytes, records_at
        self._cut_index, self._cut_at = 0, records_at
        if flags & HEADERS:
            self._check_header_lengths()

    def _check_header_lengths(self) -> None:
        if any(map(int.__gt__, self.header_lengths, self.lengths)):
            raise InvalidRequest("a message's headers are longer than the message")
        longest = max(self.header_lengths)
        if longest > HEADER_BYTES_MAX:
            raise InvalidRequest(f"a message has {longest} bytes of headers, more than {HEADER_BYTES_MAX}")

    @property
    def header_lengths(self) -> Sequence[int]:
        """How many bytes at the front of each record are its headers."""
        if self.flags & HEADERS:
            at = HEAD_BYTES + 4 * self.count
            return self.data[at : at + 4 * self.count].cast("I")
        return bytes(self.count)

    def cut(self, first: int, count: int) -> list[bytes | memoryview]:
        """The parts of a batch that holds `count` messages of this one, from index `first`.

        Raises:
            ValueError: these messages are not all in this batch.
        """
        if not 0 <= first < first + count <= self.count:
            raise ValueError(f"messages {first} to {first + count} are not in a batch of {self.count}")
        if count == self.count:
            return [self.data]
        # One cut often begins where the last one ended: adding up from there keeps many small cuts linear.
        known, start = self._cut_index, self._cut_at
        if first < known:
            known, start = 0, self.records_at
        start += sum(self.lengths[known:first])
        stop = start + sum(self.lengths[first : first + count])
        self._cut_index, self._cut_at = first + count, stop
        at = HEAD_BYTES + 4 * first
        parts: list[bytes | memoryview] = [
            HEAD.pack(count, self.flags, self.priority, 0),
            self.data[at : at + 4 * count],
        ]
        if self.flags & HEADERS:
            at += 4 * self.count
            parts.append(self.data[at : at + 4 * count])
        parts.append(self.data[start:stop])
        return parts

    def bodies(self) -> list[bytes]:
        """The body of each message, copied out."""
        records = bytes(self.data[self.records_at :])
        length = self.lengths[0]
        if length and not self.flags & HEADERS and self.lengths.tobytes() == self.lengths[:1].tobytes() * self.count:
            return [body for (body,) in struct.iter_unpack(f"{length}s", records)]  # all of one length: cut in C
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
        return map(unpack_headers, self.packed_headers())

    def packed_headers(self) -> Iterator[memoryview]:
        """The bytes of each message's headers, empty where it has none."""
        starts = accumulate(self.lengths[:-1], initial=self.records_at)
        for start, size in zip(starts, self.header_lengths, strict=True):
            yield self.data[start : start + size]


def pack_headers(headers: Mapping[str, HeaderValue]) -> bytes:
    """The bytes of one message's headers.

    Raises:
        InvalidRequest: a key that is no text, a value that is no plain value or does not fit MessagePack, or too many.
    """
    unchecked: Iterable[tuple[object, object]] = headers.items()
    for key, value in unchecked:
        if not isinstance(key, str) or not isinstance(value, _PLAIN):
            raise InvalidRequest(
                f"message header {_shown(key)} is a {type(value).__name__}: headers are "
                f"text with text, bytes, numbers, booleans or None"
            )
    try:
        packed = _headers_encoder.encode(dict(headers))
    except (OverflowError, UnicodeEncodeError) as problem:
        raise InvalidRequest(f"message headers do not fit MessagePack: {problem}") from None
    if len(packed) > HEADER_BYTES_MAX:
        raise InvalidRequest(f"a message has {len(packed)} bytes of headers, more than {HEADER_BYTES_MAX}")
    return packed


def unpack_headers(data: bytes | memoryview) -> Headers:
    """The headers in their bytes; none where there are no bytes.

    Raises:
        InvalidRequest: bytes that are no map from text to plain values.
    """
    if not data:
        return {}
    try:
        headers = _headers_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidRequest(f"message headers are no map of text to plain values: {problem}") from None
    for key, value in headers.items():
        if not isinstance(value, _PLAIN):
            raise InvalidRequest(f"message header {_shown(key)} is no plain value but a {type(value).__name__}")
    return headers


def _shown(key: object) -> str:
    return repr(key)[:80]

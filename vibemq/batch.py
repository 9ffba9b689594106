"""A batch: the unit in which messages travel, are stored and are delivered.

    0        4        6         7         8
    +--------+--------+---------+---------+- - - - - - -+-----------+- - - - - - - - -+- - - - - - -+---------+
    | count  | flags  | priority| zero    | ttl_ms      | lengths   | header lengths  | key hashes  | records |
    | u32    | u16    | u8      | u8      | u64         | u32 x n   | u32 x n         | u64 x n     |         |
    +--------+--------+---------+---------+- - - - - - -+-----------+- - - - - - - - -+- - - - - - -+---------+
                                            flag TTL (2)              flag HEADERS (1)  flag KEYS (4)

All integers are little-endian, n is `count`. `lengths[i]` is the whole length of record i; the records lie one after
the other. `header_lengths[i]` is how many of those bytes, at the front of the record, are its headers: one MessagePack
map from text to nil, boolean, integer, float, text or bytes; zero means none. What remains of a record is the body, as
it came. `keys[i]` is the hash of the message's key (protocol/keys.py), zero where it has none. `ttl_ms`, 1 to
TTL_MS_MAX, is how long the messages may wait to be delivered. What has no flag has no bytes.

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
TTL: Final = 2
KEYS: Final = 4
KNOWN_FLAGS: Final = HEADERS | TTL | KEYS
TTL_FIELD: Final = struct.Struct("<Q")
TTL_MS_MAX: Final = 1 << 40
"""About 35 years: with the present time added it is still a time."""
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
    ttl_ms: int = 0,
    keys: Sequence[int] | None = None,
) -> list[bytes]:
    """The parts of a batch of `bodies`, ready for writelines.

    `headers` and `keys` (hashes) have an entry for each body, or are None when no message has any. With `ttl_ms` 0 the
    messages may wait for ever.

    Raises:
        InvalidRequest: no message or more than MESSAGES_MAX, a priority outside 0..9, a time outside 0..TTL_MS_MAX, or
            headers that are no plain values.
    """
    count = len(bodies)
    if not 0 < count <= MESSAGES_MAX:
        raise InvalidRequest(f"a batch holds 1 to {MESSAGES_MAX} messages, not {count}: send them in several")
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidRequest(f"priority {priority} is not in 0..{PRIORITY_MAX}")
    lengths = array("I", map(len, bodies))
    if not (ttl_ms or headers or keys):
        return [HEAD.pack(count, 0, priority, 0), lengths.tobytes(), *bodies]
    flags, ttl, header_column, key_column, records = 0, b"", b"", b"", bodies
    if ttl_ms:
        flags, ttl = TTL, _pack_ttl(ttl_ms)
    if headers and any(headers):
        packed = [pack_headers(one) if one else b"" for one in headers]
        header_lengths = array("I", map(len, packed))
        lengths = array("I", map(int.__add__, lengths, header_lengths))
        records = [part for pair in zip(packed, bodies, strict=True) for part in pair]
        flags, header_column = flags | HEADERS, header_lengths.tobytes()
    if keys and any(keys):
        if len(keys) != count:
            raise ValueError(f"{len(keys)} keys are not one for each of {count} messages")
        flags, key_column = flags | KEYS, array("Q", keys).tobytes()
    return [HEAD.pack(count, flags, priority, 0) + ttl, lengths.tobytes() + header_column + key_column, *records]


def _pack_ttl(ttl_ms: int) -> bytes:
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise InvalidRequest(f"a message may wait for 1 to {TTL_MS_MAX} ms, or with 0 for ever, not for {ttl_ms}")
    return TTL_FIELD.pack(ttl_ms)


class Batch:
    """A checked view of the bytes of one batch; nothing is copied.

    `count` messages, `flags`, `priority`, `ttl_ms` (0: none), `lengths` as a memoryview of u32, and `record_bytes`, the
    sum of lengths.
    """

    __slots__ = (
        "_columns_at",
        "_cut_at",
        "_cut_index",
        "count",
        "data",
        "flags",
        "lengths",
        "priority",
        "record_bytes",
        "records_at",
        "ttl_ms",
    )

    count: int
    flags: int
    priority: int
    record_bytes: int
    ttl_ms: int

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Check `data` and keep a view of it.

        Raises:
            InvalidRequest: an empty or too large batch, unknown flags, a time to live that is none, lengths that do not
                add up to the bytes that are there, or headers longer than their message or their limit.
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
        columns_at, width, self.ttl_ms = HEAD_BYTES, 4, 0
        if flags:
            width += (4 if flags & HEADERS else 0) + (8 if flags & KEYS else 0)
            if flags & TTL:
                columns_at, self.ttl_ms = HEAD_BYTES + TTL_FIELD.size, _unpack_ttl(view)
        records_at = columns_at + width * count
        if not 0 < count <= MESSAGES_MAX:
            raise InvalidRequest(f"a batch holds 1 to {MESSAGES_MAX} messages, not {count}: send them in several")
        if records_at > size:
            raise InvalidRequest(f"a batch of {size} bytes cannot hold the columns of {count} messages")
        lengths = view[columns_at : columns_at + 4 * count].cast("I")
        record_bytes = sum(lengths)
        if records_at + record_bytes != size:
            raise InvalidRequest(f"the lengths of a batch add up to {records_at + record_bytes} bytes of {size}")
        self.data, self.count, self.flags, self.priority = view, count, flags, priority
        self.lengths, self.record_bytes, self.records_at = lengths, record_bytes, records_at
        self._columns_at, self._cut_index, self._cut_at = columns_at, 0, records_at
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
            at = self._columns_at + 4 * self.count
            return self.data[at : at + 4 * self.count].cast("I")
        return bytes(self.count)

    @property
    def keys(self) -> Sequence[int] | None:
        """The hash of each message's key, 0 where it has none; None where no message has any."""
        if self.flags & KEYS:
            return self.data[self.records_at - 8 * self.count : self.records_at].cast("Q")
        return None

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
        at, flags = self._columns_at + 4 * first, self.flags
        head = HEAD.pack(count, flags, self.priority, 0)
        if not flags:
            return [head, self.data[at : at + 4 * count], self.data[start:stop]]
        parts: list[bytes | memoryview] = [head, self.data[at : at + 4 * count]]
        if flags & TTL:
            parts.insert(1, TTL_FIELD.pack(self.ttl_ms))
        if flags & HEADERS:
            at += 4 * self.count
            parts.append(self.data[at : at + 4 * count])
        if flags & KEYS:
            at = self.records_at - 8 * (self.count - first)
            parts.append(self.data[at : at + 8 * count])
        parts.append(self.data[start:stop])
        return parts

    def pick(self, runs: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """The parts of a batch that holds the messages first <= index < end of each run, which are in order."""
        flags, count = self.flags, sum(end - first for first, end in runs)
        head: list[bytes | memoryview] = [HEAD.pack(count, flags, self.priority, 0)]
        if flags & TTL:
            head.append(TTL_FIELD.pack(self.ttl_ms))
        columns_at, starts = self._columns_at, list(accumulate(self.lengths, initial=self.records_at))
        lengths = [self.data[columns_at + 4 * first : columns_at + 4 * end] for first, end in runs]
        headers, keys = list[memoryview](), list[memoryview]()
        if flags & HEADERS:
            at = columns_at + 4 * self.count
            headers = [self.data[at + 4 * first : at + 4 * end] for first, end in runs]
        if flags & KEYS:
            at = self.records_at - 8 * self.count
            keys = [self.data[at + 8 * first : at + 8 * end] for first, end in runs]
        records = [self.data[starts[first] : starts[end]] for first, end in runs]
        return [*head, *lengths, *headers, *keys, *records]

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


def _unpack_ttl(view: memoryview) -> int:
    if len(view) < HEAD_BYTES + TTL_FIELD.size:
        raise InvalidRequest(f"a batch of {len(view)} bytes has no room for its time to live")
    (ttl_ms,) = TTL_FIELD.unpack_from(view, HEAD_BYTES)
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise InvalidRequest(f"a time to live of {ttl_ms} ms is not in 1..{TTL_MS_MAX}")
    return int(ttl_ms)


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

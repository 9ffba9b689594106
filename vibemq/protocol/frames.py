"""Frames of the binary codec: cutting a stream of bytes into frames, without I/O.

    0            4       5       6        8
    +------------+-------+-------+--------+------------------+
    | length u32 | kind  | flags | zero   | body             |
    |            | u8    | u8    | u16    | `length` bytes   |
    +------------+-------+-------+--------+------------------+

All integers are little-endian. A connection begins with the four bytes of PREFACE; then each side sends frames.
"""

import enum
import struct
import sys
from collections.abc import Iterator
from typing import Final, TypeAlias

from vibemq.errors import FrameTooLong, MalformedFrame, ProtocolError

PREFACE: Final = b"VMQ\x00"
HEAD: Final = struct.Struct("<IBBH")
HEAD_BYTES: Final = 8

Frame: TypeAlias = tuple[int, int, memoryview]
"""(kind, flags, body). The body is a view that is valid only until the next feed."""


class Kind(enum.IntEnum):
    """What a frame's body is."""

    CONTROL = 0
    """A MessagePack map with its `type`; everything that is not listed below."""
    PUBLISH = 1
    CONFIRMED = 2
    DELIVER = 3
    ACK = 4
    CREDIT = 5
    COMMIT = 6


class FrameReader:
    """Cuts what arrives into frames.

    `limit` is the largest body that is accepted and may be raised later. A frame that straddles two reads is collected
    as its bytes arrive: no memory is reserved for a length that was only announced.
    """

    __slots__ = ("_partial", "_rest", "error", "limit")

    def __init__(self, limit: int) -> None:
        """Accept bodies of at most `limit` bytes."""
        self.limit = limit
        self.error: ProtocolError | None = None
        self._partial = bytearray()
        self._rest = b""

    @property
    def has_more(self) -> bool:
        """Whether bytes were kept that may hold frames: feed it again, with nothing if need be."""
        return bool(self._rest)

    def feed(self, data: memoryview, most: int = sys.maxsize) -> Iterator[Frame]:
        """The frames that `data` completes. After a bad frame `error` is set, and nothing more is read.

        What lies behind about `most` frames is kept for the next call. Lazy, so that a limit raised by one frame holds
        for the next; it must be read to its end.
        """
        if self.error is not None:
            return
        if self._rest:
            data, self._rest = memoryview(self._rest + data), b""
        at = 0
        if self._partial:
            at = self._collect(data)
            if self._partial_is_whole():
                partial, self._partial = self._partial, bytearray()
                _, kind, flags, _ = HEAD.unpack_from(partial)
                yield kind, flags, memoryview(partial)[HEAD_BYTES:]
        size = len(data)
        while size - at >= HEAD_BYTES and self.error is None:
            if most <= 0:
                self._rest = bytes(data[at:])
                return
            most -= 1
            length, kind, flags, zero = HEAD.unpack_from(data, at)
            if length > self.limit or zero:
                self._refuse(length, zero)
                return
            start = at + HEAD_BYTES
            end = start + length
            if end > size:
                break
            yield kind, flags, data[start:end]
            at = end
        if at < size and self.error is None:
            self._partial += data[at:]

    def _collect(self, data: memoryview) -> int:
        """Add to the frame that straddles what it still needs, and give how much of `data` that took."""
        partial = self._partial
        taken = max(0, HEAD_BYTES - len(partial))
        partial += data[:taken]
        if len(partial) < HEAD_BYTES:
            return len(data)
        length, _, _, zero = HEAD.unpack_from(partial)
        if length > self.limit or zero:
            self._refuse(length, zero)
            return len(data)
        need: int = HEAD_BYTES + length - len(partial)
        partial += data[taken : taken + need]
        return min(len(data), taken + need)

    def _partial_is_whole(self) -> bool:
        partial = self._partial
        if len(partial) < HEAD_BYTES:
            return False
        length, _, _, _ = HEAD.unpack_from(partial)
        return bool(len(partial) == HEAD_BYTES + length)

    def _refuse(self, length: int, zero: int) -> None:
        self._partial = bytearray()
        if zero:
            self.error = MalformedFrame(
                "bytes 6 and 7 of a frame must be zero: this is no VibeMQ frame, or the stream is out of step"
            )
        else:
            self.error = FrameTooLong(
                f"a frame of {length} bytes is above the limit of {self.limit}: send smaller batches"
            )

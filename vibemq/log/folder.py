"""What makes a folder a data folder: FORMAT, and the first segment.

FORMAT is three lines of text:

    vibemq data 1
    log 0123456789abcdef        the log id, in hexadecimal
    check 0123456789abcdef      xxh3-64 of the lines above

It is written after the first segment, so it proves that there was one: a folder with FORMAT and without segments has
lost them, and a folder with an empty segment and without FORMAT was never finished.
"""

from typing import Final

import xxhash

from vibemq.errors import CorruptLog, FormatUnsupported
from vibemq.log.disk import TEMPORARY, AnyDisk
from vibemq.log.segment import FOLDER, READ_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, list_bases, segment_name

FORMAT: Final = "FORMAT"
FORMAT_VERSION: Final = 1


def _format_text(log_id: int) -> bytes:
    text = f"vibemq data {FORMAT_VERSION}\nlog {log_id:016x}\n".encode()
    return text + f"check {xxhash.xxh3_64_intdigest(text):016x}\n".encode()


def read_format(disk: AnyDisk) -> int | None:
    """The log id in FORMAT; None when there is no such file.

    Raises:
        FormatUnsupported: of a later version.
        CorruptLog: not as it was written.
    """
    data = disk.read_small(FORMAT)
    if data is None:
        return None
    body, mark, check = data.rpartition(b"check ")
    first, _, rest = body.partition(b"\n")
    if not mark or check != f"{xxhash.xxh3_64_intdigest(body):016x}\n".encode():
        raise CorruptLog(FORMAT, 0, 0, "its checksum does not fit")
    if first != f"vibemq data {FORMAT_VERSION}".encode():
        raise FormatUnsupported(
            f"the data folder {disk.path} has format {first.decode('ascii', 'replace')!r}; this VibeMQ reads "
            f"format {FORMAT_VERSION}. Use the version that wrote it, or a later one"
        )
    return int(rest.split()[1], 16)


def create_log(disk: AnyDisk, log_id: int, start: int, time_us: int) -> int:
    """A new log: first its first segment, then FORMAT. A crash between leaves what is seen to have never begun."""
    for base in list_bases(disk):
        file = disk.open_read(segment_name(base))
        try:
            used = any(file.pread(READ_BYTES, SEGMENT_HEADER_BYTES))
        finally:
            file.close()
        if used or base != start:
            raise CorruptLog(FORMAT, 0, base, "it is missing, but there are records in the log")
        disk.unlink(segment_name(base))
    create_segment(disk, SegmentHeader(log_id, start, start, 0, time_us))
    disk.write_small(FORMAT, _format_text(log_id))
    return log_id


def create_segment(disk: AnyDisk, header: SegmentHeader) -> SegmentHeader:
    """An empty segment, whole or not at all."""
    temporary = f"{FOLDER}/first{TEMPORARY}"
    file = disk.create(temporary)
    try:
        file.pwrite([header.pack()], 0)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(temporary, segment_name(header.base))
    disk.sync_directory(FOLDER)
    return header

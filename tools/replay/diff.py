"""Where two logs part: the first record that is not the same in both.

Compared is what was recorded: the kind of event, its time, its facts, its payload. Left out is what only says how the
log lies on its disk: checksums, which are seeded with the log id, segments, and how far was synced when a record was
written.
"""

import hashlib
from typing import NamedTuple, Protocol

from vibemq.errors import FormatUnsupported
from vibemq.history.audit import Recorded
from vibemq.history.printable import plain
from vibemq.history.replay import kind_of
from vibemq.history.source import History, Progress
from vibemq.history.times import rfc3339
from vibemq.history.wording import facts


class Stored(Recorded, Protocol):
    """A record with all that is compared of it."""

    @property
    def version(self) -> int:
        """Of the event's fields."""

    @property
    def facts(self) -> memoryview:
        """The event's fields as they were written."""

    @property
    def payload(self) -> memoryview:
        """What came with it, or what is left of that."""

    @property
    def payload_bytes(self) -> int:
        """Its length as first written."""

    @property
    def erased(self) -> bool:
        """Whether only the hash of the payload is left."""


class Finding(NamedTuple):
    """Where they differ: `first` and `second` hold what differs there, empty for a log that ends before `offset`.

    If they do not differ, `offset` is how many records both have.
    """

    differs: bool
    offset: int
    first: dict[str, str]
    second: dict[str, str]


def diff(one: History, other: History, progress: Progress | None = None) -> Finding:
    """Compare two logs record by record.

    Raises:
        CorruptLog: one is damaged before they differ.
    """
    offset = 0
    left, right = one.records(progress=progress), other.records()
    while True:
        first, second = next(left, None), next(right, None)
        if first is None and second is None:
            return Finding(False, offset, {}, {})
        if first is None or second is None or not _same(first, second):
            break
        offset += 1
    sides = [{} if record is None else _shown(record) for record in (first, second)]
    if first is not None and second is not None:
        keys = [
            key
            for key in dict.fromkeys([*sides[0], *sides[1]])
            if key == "kind" or sides[0].get(key) != sides[1].get(key)
        ]
        sides = [{key: side[key] for key in keys if key in side} for side in sides]
    return Finding(True, offset, sides[0], sides[1])


def _same(first: Stored, second: Stored) -> bool:
    if (first.time_us, first.tag, first.version) != (second.time_us, second.tag, second.version):
        return False
    if first.facts != second.facts or first.payload_bytes != second.payload_bytes:
        return False
    if first.erased or second.erased:
        return _payload_hash(first) == _payload_hash(second)
    return bool(first.payload == second.payload)


def _payload_hash(record: Stored) -> str:
    """SHA-256 of the payload, which an erased record keeps in its place."""
    return bytes(record.payload[:32]).hex() if record.erased else hashlib.sha256(record.payload).hexdigest()


def _shown(record: Stored) -> dict[str, str]:
    """All that is compared of a record, as text; of the payload its length and hash."""
    shown = {"kind": kind_of(record.tag), "version": str(record.version), "time": rfc3339(record.time_us)}
    try:
        shown |= {name: plain(str(value)) for name, value in facts(record.event).items()}
    except FormatUnsupported:
        shown["facts"] = bytes(record.facts).hex()
    if record.payload_bytes:
        shown["payload bytes"] = str(record.payload_bytes)
        shown["payload SHA-256"] = _payload_hash(record)
    return shown

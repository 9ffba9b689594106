"""Reading what waits for its time: which entries there are, from the index, and what is in them, from the log."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from heapq import nsmallest
from typing import Any, TypeAlias

from vibemq.batch import Batch
from vibemq.events import Entry
from vibemq.log.delayed import DueKey, Waiting
from vibemq.log.index import Index
from vibemq.protocol.json_lines import headers_or_base64, rfc3339
from vibemq.server.effects import DelayedListed, DelayedOf, DelayedShown, DueAfter

Part: TypeAlias = Callable[[int, int, int], tuple[Batch, int]]
"""Messages of a record: (offset, index, count) -> what they are, and the time of the record."""
FEW = 20_000
"""Of a queue with no more delayed messages all are looked through; of another, those of all queues in due order."""


class DelayedReading:
    """Looks in index and log. For any thread."""

    def __init__(self, index: Index, parts: Callable[[], Part]) -> None:
        """Look there. What one of the `parts` has read of the log it keeps for a while: one for each look."""
        self._index, self._parts = index, parts

    def after(self, reading: DueAfter) -> tuple[list[Waiting], DueKey]:
        """What is due next, and how far that was looked for."""
        overlay = self._index.overlay.delayed
        return overlay.after(self._index.delayed, reading.after, reading.until_us, reading.most, reading.without)

    def of(self, reading: DelayedOf) -> list[tuple[Entry, tuple[int, ...]]]:
        """The entries of some records, with the bytes of each message.

        Raises:
            BeyondLog: one is not written yet.
            CorruptLog: the log is damaged there.
        """
        wanted = dict(zip(reading.offsets, reading.indices, strict=True))
        part = self._parts()
        return [
            (entry, _lengths(entry, part))
            for _, entry in self._index.overlay.delayed.of_records(self._index.delayed, reading.queue, reading.offsets)
            if _has_some(entry, wanted[entry[1]])
        ]

    # --- for people

    def listed(self, asked: DelayedListed) -> dict[str, Any]:
        """The answer to ListDelayed.

        Raises:
            BeyondLog: a message is not written yet.
            CorruptLog: the log is damaged there.
        """
        messages: list[dict[str, Any]] = []
        last, part = asked.behind, self._parts()
        for entry in self._entries(asked):
            due_us, offset, index, count, _, _ = entry
            batch, time_us = part(offset, index, count)
            for at, length in enumerate(batch.lengths):
                place = (due_us, offset, index + at)
                if place <= asked.behind:
                    continue
                if len(messages) == asked.most:
                    return {"messages": messages, "count": asked.total, "next": list(last)}
                last = place
                messages.append(
                    {
                        "id": f"{offset}-{index + at}",
                        "due_at": rfc3339(due_us),
                        "published_at": rfc3339(time_us),
                        "bytes": length,
                    }
                )
        return {"messages": messages, "count": asked.total, "next": None}

    def _entries(self, asked: DelayedListed) -> Iterator[Entry]:
        """The entries of a queue that may be behind the place, in due order: one more than can be needed, or all."""
        overlay, base = self._index.overlay.delayed, self._index.delayed
        if asked.total <= FEW:
            found = overlay.of_queue(base, asked.queue, asked.floor)
            behind = (entry for _, entry in found if (entry[0], entry[1], entry[2] + entry[3]) > asked.behind)
            yield from nsmallest(asked.most + 2, behind)
            return
        # The place may be within an entry: it begins with the same record, further in front.
        key: DueKey = (*asked.behind[:2], 0, 0)
        ordered = overlay.of_queue_after(base, asked.queue, key)
        yield from (entry for entry in ordered if entry[1] >= asked.floor)

    def shown(self, asked: DelayedShown) -> dict[str, Any] | None:
        """The answer to ShowDelayed; None: there is no such message.

        Raises:
            BeyondLog: it is not written yet.
            CorruptLog: the log is damaged there.
        """
        found = self._index.overlay.delayed.of_records(self._index.delayed, asked.queue, (asked.offset,))
        for _, entry in found:
            due_us, offset, index, count, _, _ = entry
            if index <= asked.at < index + count and offset >= asked.floor:
                batch, time_us = self._parts()(offset, asked.at, 1)
                (body,), (packed,) = batch.bodies(), batch.packed_headers()
                headers, encoded = headers_or_base64(packed)
                return {
                    "id": f"{offset}-{asked.at}",
                    "body": body,
                    "headers": headers,
                    **({} if encoded is None else {"headers_base64": encoded}),
                    "due_at": rfc3339(due_us),
                    "published_at": rfc3339(time_us),
                }
        return None


def _has_some(entry: Entry, indices: tuple[int, ...]) -> bool:
    """Whether one of these messages is in an entry."""
    at = bisect_left(indices, entry[2])
    return at < len(indices) and indices[at] < entry[2] + entry[3]


def _lengths(entry: Entry, part: Part) -> tuple[int, ...]:
    """The bytes of each message of an entry."""
    _, offset, index, count, size, _ = entry
    return (size,) if count == 1 else tuple(part(offset, index, count)[0].lengths)

"""Messages that wait for their time, as events name them: in entries."""

from collections.abc import Iterable, Iterator

from vibemq import events as e

Run = tuple[int, int, int]
"""Messages of one record: (offset, index, count)."""


def due_of(entries: Iterable[e.Entry], offset: int, index: int) -> int:
    """When a message is due; 0: it is not in these entries."""
    for due_us, record, first, count, _, _ in entries:
        if record == offset and first <= index < first + count:
            return due_us
    return 0


def place_of(entries: Iterable[e.Entry], offset: int, index: int) -> int | None:
    """At which place among the messages of these entries one is; None: it is not."""
    before = 0
    for _, record, first, count, _, _ in entries:
        if record == offset and first <= index < first + count:
            return before + index - first
        before += count
    return None


def changed(before: Iterable[e.Entry], after: Iterable[e.Entry]) -> Iterator[Run]:
    """The messages of `before` that are not in `after`, or are due at another time there."""
    same: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for due_us, offset, index, count, _, _ in after:
        same.setdefault((offset, due_us), []).append((index, index + count))
    for due_us, offset, index, count, _, _ in before:
        end = index + count
        for first, behind in sorted(same.get((offset, due_us), [])):
            if first < end and behind > index:
                if first > index:
                    yield offset, index, first - index
                index = behind  # noqa: PLW2901 - up to here all is looked at
        if index < end:
            yield offset, index, end - index

"""The verdict: what was sent, what was confirmed, and what was consumed, held against each other."""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Consumed(NamedTuple):
    """A line as a consumer got it, one delivery at a time."""

    line: bytes
    id: str
    redelivered: bool


def read_records(path: Path) -> list[Consumed]:
    """What one consumer wrote."""
    records = map(json.loads, path.read_text("ascii").splitlines())
    return [Consumed(base64.b64decode(one["line"]), one["id"], one["redelivered"]) for one in records]


def faults(sent: Sequence[bytes], confirmed: Sequence[str], consumed: Iterable[Consumed]) -> list[str]:
    """Everything that went wrong, in words; nothing when all is well.

    `sent` are the lines, no two alike, and `confirmed` the ids that they were confirmed under, in the same order.
    """
    deliveries: dict[bytes, list[Consumed]] = defaultdict(list)
    for one in consumed:
        deliveries[one.line].append(one)
    found = [f"{len(sent) - len(confirmed)} lines were not confirmed"] if len(confirmed) != len(sent) else []
    found += [
        f"the line {line!r} was sent {number} times, so it proves nothing"
        for line, number in Counter(sent).items()
        if number > 1
    ]
    for line, expected in zip(sent, confirmed, strict=False):
        ids = {one.id for one in deliveries.get(line, ())}
        if not ids:
            found.append(f"lost: {line!r} was confirmed as {expected} and never consumed")
        elif ids != {expected}:
            found.append(f"stored twice: {line!r} was confirmed as {expected} and consumed as {sorted(ids)}")
    found += [f"unexpected: {line!r} was consumed and never sent" for line in sorted(deliveries.keys() - set(sent))]
    found += [
        f"not flagged: {line!r} was consumed {len(times)} times, more than once as if it were new"
        for line, times in deliveries.items()
        if sum(not one.redelivered for one in times) > 1
    ]
    return found

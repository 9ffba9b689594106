"""How deliveries are settled, and how many settlements become few frames."""

from collections.abc import Iterable
from typing import NamedTuple

from vibemq.durations import Duration, milliseconds
from vibemq.protocol import messages as m
from vibemq.protocol.fields import RUNS_MAX


class Failure(NamedTuple):
    """How a message failed: to be tried again after `delay_ms` (None: as the queue is set), or rejected for good."""

    delay_ms: int | None
    reason: str
    reject: bool

    @classmethod
    def nack(cls, delay: Duration | None, reason: str) -> "Failure":
        """A failure that may be tried again."""
        return cls(None if delay is None else milliseconds(delay, "delay"), reason, reject=False)


def request_of(
    subscription: int, failure: Failure | None, runs: tuple[tuple[int, int], ...], number: int = 0
) -> m.Ack | m.Nack:
    """The request that settles `runs`: an Ack, or with `failure` a Nack."""
    if failure is None:
        return m.Ack(subscription=subscription, deliveries=runs, request=number)
    return m.Nack(
        subscription=subscription,
        deliveries=runs,
        request=number,
        delay_ms=failure.delay_ms,
        reason=failure.reason,
        reject=failure.reject,
    )


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Half-open runs that hold exactly `numbers`, in ascending order."""
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):  # the common case, compared in C
        return [(numbers[0], numbers[-1] + 1)]
    return merged([(number, number + 1) for number in numbers])


def merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few runs as possible, in ascending order."""
    if len(runs) < 2:
        return runs
    runs.sort()
    found: list[tuple[int, int]] = []
    first, end = runs[0]
    for start, stop in runs:
        if start > end:
            found.append((first, end))
            first, end = start, stop
        elif stop > end:
            end = stop
    found.append((first, end))
    return found


def in_pieces(runs: list[tuple[int, int]]) -> Iterable[tuple[tuple[int, int], ...]]:
    """`runs` in as many requests as they need."""
    for at in range(0, len(runs), RUNS_MAX):
        yield tuple(runs[at : at + RUNS_MAX])

"""Transactions: what one record did, part by part, and whether it was all of what was asked, and rightly so.

A part is judged and written into the book as an event by itself would be, one after the other: acks come first, and
make room for what is published with them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.checker import Violation
from tests.sim.contents import Told, Where, wheres
from vibemq import events as e
from vibemq.protocol import messages as m


def publishes_of(event: e.TransactionCommitted) -> tuple[e.Published | e.Routed, ...]:
    """What it published, in the order in which it is in the record."""
    return (*event.published, *event.routed)


def parts_of(told: Told) -> Iterator[Told]:
    """The events that an event stands for; but for a transaction it is one."""
    event = told.event
    if not isinstance(event, e.TransactionCommitted):
        yield told
        return
    for acked in event.acked:
        yield Told(acked, told.time_us, ())
    at = 0
    for part in publishes_of(event):
        yield Told(part, told.time_us, told.messages[at : at + part.count])
        at += part.count
    if at != len(told.messages):
        raise Violation(f"{event} with {len(told.messages)} messages")


def causes_of(event: e.TransactionCommitted, commit: m.Commit) -> list[m.Command]:
    """The request behind each part, as it would have been if it had stood by itself."""
    plain = [one for one in commit.publishes if not one.to_topic]
    routed = [one for one in commit.publishes if one.to_topic]
    if (len(plain), len(routed)) != (len(event.published), len(event.routed)):
        raise Violation(f"{event} does not have all that {commit} publishes")
    acks = {one.subscription: one for one in commit.acks}
    if not all(one.subscription in acks for one in event.acked):
        raise Violation(f"{event} acks for others than {commit}")
    causes = [m.Ack(subscription=one.subscription, deliveries=acks[one.subscription].deliveries) for one in event.acked]
    return [*causes, *plain, *routed]


def acked_by(event: e.TransactionCommitted) -> dict[int, set[Where]]:
    """Which messages it acks for each subscription."""
    found: dict[int, set[Where]] = {}
    for part in event.acked:
        known = found.setdefault(part.subscription, set())
        spans = set(wheres(part.spans))
        if known & spans:
            raise Violation(f"{event} acks {known & spans} twice")
        known |= spans
    return found


class Open(NamedTuple):
    """An attempt that was begun and may be committed."""

    connection: int
    until_us: int
    """By the broker's clock."""


class Attempts:
    """What is remembered of attempts: those that are open, and those that did something."""

    def __init__(self) -> None:
        """None was begun."""
        self.open: dict[int, Open] = {}
        self._producers: dict[int, int] = {}
        self._commits: dict[tuple[int, int], int] = {}
        """(producer, its sequence) -> the record."""
        self._epochs: dict[int, int] = {}
        """-> the record."""

    def restarted(self, offset: int) -> None:
        """The broker has forgotten those that were open, and the log ends before that record."""
        self.open.clear()
        self._producers.clear()
        self._commits = {key: at for key, at in self._commits.items() if at < offset}
        self._epochs = {key: at for key, at in self._epochs.items() if at < offset}

    def connected(self, connection: int, producer: int) -> None:
        """A client came; what its producer had begun by other connections is over."""
        for other, known in self._producers.items():
            if known == producer:
                self.close_all(other)
        self._producers[connection] = producer

    def answered(self, command: m.Command, result: Any, connection: int, now_us: int) -> None:  # noqa: ANN401 - as answers have it
        """A client was told something."""
        if isinstance(command, m.Begin):
            self._begun(connection, result["epoch"], now_us + result["timeout_ms"] * 1000)
        elif isinstance(command, m.Rollback):
            self.open.pop(command.epoch, None)

    def is_open(self, epoch: int, connection: int, now_us: int) -> bool:
        """Whether it may be committed now."""
        found = self.open.get(epoch)
        return found is not None and found.connection == connection and found.until_us > now_us

    def _begun(self, connection: int, epoch: int, until_us: int) -> None:
        """One more is open."""
        if epoch in self.open or epoch in self._epochs:
            raise Violation(f"attempt {epoch} was begun before")
        self.open[epoch] = Open(connection, until_us)

    def close_all(self, connection: int) -> None:
        """A connection is gone, or its producer has come by another: its attempts are over."""
        self.open = {epoch: one for epoch, one in self.open.items() if one.connection != connection}

    def check(self, event: e.TransactionCommitted, offset: int, now_us: int) -> None:
        """An attempt that is open may be committed, by the connection that began it, in time, and once."""
        found = self.open.pop(event.epoch, None)
        if found is None or found.connection != event.connection:
            raise Violation(f"{event} of an attempt that is not open: {found}")
        if found.until_us <= now_us:
            raise Violation(f"{event} at {now_us}, and its time was over at {found.until_us}")
        key = event.producer, event.producer_sequence
        if event.producer and key in self._commits:
            raise Violation(f"{event} was committed before, as record {self._commits[key]}")
        self._commits[key] = self._epochs[event.epoch] = offset

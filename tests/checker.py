"""Judges what clients saw: nothing confirmed is lost, nothing is there that nobody sent, acks stay done.

After the idea of Jepsen's queue checkers (total-queue). A history is a set of facts, each noted by the client that
knew it, with times of one clock (seconds, steps, whatever grows):

    attempted    a writer is about to publish its message n
    confirmed    the broker said that it is durable
    delivered    a consumer got it; `since` is the earliest time at which the broker can have sent it
    asked        a consumer is about to ack it
    acked        the broker said that the ack is durable, at that time

    excused      a client is about to throw it away: it may be gone
    gone         the broker said, at that time, that it is no longer in that queue

At the end of the history the queues were drained: what is not settled by then is not there.

    lost           confirmed and never delivered; or delivered, never acked by anybody, and gone; and not excused
    unexpected     delivered, and nobody sent it
    astray         delivered from another queue than it was sent to, which is none for dead letters
    risen          delivered after its ack was confirmed
    returned       delivered from a queue that it was gone from
    unflagged      delivered again from the same queue and not flagged as redelivered
    stored twice   one publish has become two messages
    recovered      delivered although never confirmed: allowed
    unknown        neither confirmed nor delivered: allowed

Each loss is classed by its place in what its writer had confirmed: a prefix, the tail, or in the middle. A lost tail
speaks of confirms that were too early, a prefix of a log that lost its head, a middle of a hole.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Violation(AssertionError):
    """A promise was broken."""


class Name(NamedTuple):
    """A message as its writer counts: message `number` of `writer`."""

    writer: str
    number: int


class Delivery(NamedTuple):
    """A consumer got a message: between `since`, when it cannot have been sent yet, and `at`."""

    name: Name
    since: float
    at: float
    redelivered: bool
    id: str
    """What the broker calls the message."""
    queue: str = ""
    """Where it came from, in histories of several queues."""


class Place(enum.StrEnum):
    """Where a loss lies in what its writer had confirmed."""

    PREFIX = "prefix"
    MIDDLE = "middle"
    TAIL = "tail"


class Loss(NamedTuple):
    """A confirmed message that is not there."""

    name: Name
    place: Place
    delivered: bool
    """Whether it was delivered before, and never acked."""


@dataclass
class History:
    """What all clients noted together."""

    attempted: set[Name] = field(default_factory=set)
    confirmed: set[Name] = field(default_factory=set)
    delivered: list[Delivery] = field(default_factory=list)
    asked: set[Name] = field(default_factory=set)
    acked: dict[Name, float] = field(default_factory=dict)
    """When the first confirmation of its ack came."""
    excused: set[Name] = field(default_factory=set)
    gone: dict[tuple[str, Name], float] = field(default_factory=dict)
    """When the broker first said so, by queue."""
    queues: dict[Name, str] = field(default_factory=dict)
    """Where each was sent to, as far as that was noted."""
    dead_letter_queues: frozenset[str] = frozenset()
    """Any message may come from these."""
    ids: dict[Name, str] = field(default_factory=dict)
    """What the broker called a message when it confirmed it, as far as that was noted."""

    def acked_at(self, name: Name, at: float) -> None:
        """Note a confirmed ack."""
        self.asked.add(name)
        self.acked[name] = min(at, self.acked.get(name, at))


@dataclass
class Verdict:
    """What is wrong with a history, and what it held."""

    lost: list[Loss]
    unexpected: list[Delivery]
    astray: list[Delivery]
    risen: list[Delivery]
    returned: list[Delivery]
    unflagged: list[Delivery]
    stored_twice: list[Name]
    recovered: set[Name]
    unknown: set[Name]
    duplicates: int
    """Deliveries beyond the first of a message, flagged or not."""
    confirmed: int
    delivered: int
    acked: int

    def faults(self, most: int = 5) -> list[str]:
        """One line for each kind of fault, with up to `most` examples; empty when all is well."""
        kinds: list[tuple[str, Sequence[object]]] = [
            *((f"lost at the {place}" if place is not Place.MIDDLE else "lost in the middle", self.lost_at(place))
              for place in Place),
            ("unexpected", self.unexpected),
            ("delivered from a queue that they were not sent to", self.astray),
            ("delivered after a confirmed ack", self.risen),
            ("delivered from a queue that they were gone from", self.returned),
            ("delivered again without the redelivered flag", self.unflagged),
            ("stored twice", self.stored_twice),
        ]  # fmt: skip
        return [f"{len(found)} {what}: {', '.join(map(str, found[:most]))}" for what, found in kinds if found]

    def lost_at(self, place: Place) -> list[Loss]:
        """The losses of one class."""
        return [loss for loss in self.lost if loss.place is place]

    def __str__(self) -> str:
        """The figures in a line, and the faults below."""
        figures = (
            f"{self.confirmed} confirmed, {self.delivered} delivered, {self.acked} acks confirmed, "
            f"{self.duplicates} delivered again, {len(self.recovered)} recovered, {len(self.unknown)} unknown"
        )
        return "\n".join([figures, *self.faults()])


def check(history: History) -> Verdict:
    """Judge a history that ended with empty queues."""
    never = float("inf")
    by_place: dict[tuple[str, Name], list[Delivery]] = defaultdict(list)
    ids: dict[Name, set[str]] = defaultdict(set)
    for name, identity in history.ids.items():
        ids[name].add(identity)
    for one in history.delivered:
        by_place[one.queue, one.name].append(one)
        ids[one.name].add(one.id)
    seen = {name for _, name in by_place}
    return Verdict(
        lost=list(_losses(history, seen)),
        unexpected=[one for one in history.delivered if one.name not in history.attempted],
        astray=[one for one in history.delivered if _is_astray(history, one)],
        risen=[one for one in history.delivered if one.since > history.acked.get(one.name, never)],
        returned=[one for one in history.delivered if one.since > history.gone.get((one.queue, one.name), never)],
        unflagged=[one for several in by_place.values() for one in _unflagged(several)],
        stored_twice=[name for name, called in ids.items() if len(called) > 1],
        recovered=(seen & history.attempted) - history.confirmed,
        unknown=history.attempted - history.confirmed - seen,
        duplicates=len(history.delivered) - len(by_place),
        confirmed=len(history.confirmed),
        delivered=len(seen),
        acked=len(history.acked),
    )


def _is_astray(history: History, one: Delivery) -> bool:
    wanted = history.queues.get(one.name, one.queue)
    return one.queue != wanted and one.queue not in history.dead_letter_queues


def _losses(history: History, seen: set[Name]) -> Iterator[Loss]:
    by_writer: dict[str, list[Name]] = defaultdict(list)
    for name in sorted(history.confirmed - history.excused):
        by_writer[name.writer].append(name)
    for names in by_writer.values():
        missing = [name not in seen or name not in history.asked for name in names]
        first = missing.index(False) if False in missing else len(missing)
        last = len(missing) - (missing[::-1].index(False) if False in missing else 0)
        for at, name in enumerate(names):
            if missing[at]:
                place = Place.PREFIX if at < first else Place.TAIL if at >= last else Place.MIDDLE
                yield Loss(name, place, name in seen)


def _unflagged(several: Iterable[Delivery]) -> Iterator[Delivery]:
    """Those that are not the first and say that they are.

    Which of two came first is known only when one cannot have been sent before the other had arrived; of several
    without the flag all but one are wrong in any order.
    """
    arrived = sorted(several, key=lambda one: one.at)
    if len(arrived) < 2:
        return
    plain = [one for one in arrived if not one.redelivered]
    yield from plain[1:]
    for one in plain[:1]:
        if any(other.at < one.since for other in arrived if other is not one):
            yield one

"""Judges what clients saw: nothing confirmed is lost, nothing is there that nobody sent, acks stay done.

After the idea of Jepsen's queue checkers (total-queue). A history is a set of facts, each noted by the client that
knew it, with times of one clock (seconds, steps, whatever grows):

    attempted    a writer is about to publish its message n
    confirmed    the broker said that it is durable
    denied       the broker said that it is not stored, and will not be
    delivered    a consumer got it; `since` is the earliest time at which the broker can have sent it
    asked        a consumer is about to ack it
    acked        the broker said that the ack is durable, at that time

A message may be there several times: every group of every queue that it came to has a copy of its own, and what
becomes of one says nothing of the others. A copy is named by whose it is, `of`; a history of one queue and one group
needs no names. Two more facts say which copies there have to be:

    owed         these copies were to be delivered, and acked
    excused      these may be gone, and why: dropped, expired, thrown away

At the end of the history the queues were drained: what is not settled by then is not there.

    lost           confirmed, owed and never delivered; or delivered, never acked by anybody, and gone; and not excused
    unexpected     delivered, and nobody sent it
    impossible     delivered, and the broker had said that it was not stored
    astray         delivered from a queue that it never came to
    risen          a copy that was delivered after its ack was confirmed
    returned       delivered from a queue that is gone
    recalled       delivered after it was taken back
    torn           a transaction of which some messages are there and others are not
    unflagged      delivered again from the same place and not flagged as redelivered
    overtaken      first deliveries that must come in order, and did not
    stored twice   one publish has become two messages
    recovered      delivered although never confirmed: allowed
    unknown        neither confirmed nor delivered: allowed

Each loss is classed by its place in what its writer had confirmed: a prefix, the tail, or in the middle. A lost tail
speaks of confirms that were too early, a prefix of a log that lost its head, a middle of a hole.
"""

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Violation(AssertionError):
    """A promise was broken."""


class Name(NamedTuple):
    """A message as its writer counts: message `number` of `writer`."""

    writer: str
    number: int


class Copy(NamedTuple):
    """A message where it is to be delivered: the copy of one group of one queue."""

    name: Name
    of: str = ""


class Delivery(NamedTuple):
    """A consumer got a message: between `since`, when it cannot have been sent yet, and `at`."""

    name: Name
    since: float
    at: float
    redelivered: bool
    id: str
    """What the broker calls the message."""
    of: str = ""
    """Whose copy it is."""
    queue: str = ""
    """Where it came from, in histories of several queues."""
    place: str = ""
    """Where it stood there: a copy that moves, as a dead letter does, is flagged anew in its new place."""
    row: str = ""
    """First deliveries of a row come in order of their `number`: of one consumer, one priority, or one key."""
    number: int = 0

    @property
    def copy(self) -> Copy:
        """Which copy it is."""
        return Copy(self.name, self.of)


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
    of: str = ""


class Together(NamedTuple):
    """What a transaction publishes: all of it, or nothing."""

    names: tuple[Name, ...]


@dataclass
class History:
    """What all clients noted together."""

    attempted: set[Name] = field(default_factory=set)
    confirmed: set[Name] = field(default_factory=set)
    denied: set[Name] = field(default_factory=set)
    delivered: list[Delivery] = field(default_factory=list)
    asked: set[Copy] = field(default_factory=set)
    acked: dict[Copy, float] = field(default_factory=dict)
    """When the first confirmation of its ack came."""
    owed: set[Copy] | None = None
    """None: a copy of each confirmed message, of nobody in particular."""
    excused: dict[Copy, str] = field(default_factory=dict)
    """And why."""
    together: list["Together"] = field(default_factory=list)
    """Transactions that were tried."""
    stored: set[Name] = field(default_factory=set)
    """Messages that are known to be stored, beside those that were delivered."""
    left_out: set[Name] = field(default_factory=set)
    """Messages that were not stored where others of their batch or transaction were: a queue was full, or had them."""
    taken_back: dict[tuple[Name, str], float] = field(default_factory=dict)
    """(message, whose copy), and when the broker said that it will not be delivered any more."""
    gone: dict[str, float] = field(default_factory=dict)
    """Queues, and when the broker said that they are gone for good."""
    queues: dict[Name, set[str]] = field(default_factory=dict)
    """Which queues each has come to, as far as that was noted."""
    ids: dict[Name, str] = field(default_factory=dict)
    """What the broker called a message when it confirmed it, as far as that was noted."""

    def asked_for(self, name: Name, of: str = "") -> None:
        """Note that an ack is about to be sent."""
        self.asked.add(Copy(name, of))

    def acked_at(self, name: Name, at: float, of: str = "") -> None:
        """Note a confirmed ack."""
        copy = Copy(name, of)
        self.asked.add(copy)
        self.acked[copy] = min(at, self.acked.get(copy, at))


@dataclass
class Verdict:
    """What is wrong with a history, and what it held."""

    lost: list[Loss]
    unexpected: list[Delivery]
    impossible: list[Delivery]
    astray: list[Delivery]
    risen: list[Delivery]
    returned: list[Delivery]
    recalled: list[Delivery]
    torn: list[Together]
    unflagged: list[Delivery]
    overtaken: list[Delivery]
    stored_twice: list[Name]
    recovered: set[Name]
    unknown: set[Name]
    excused: Counter[str]
    """Copies that may be gone, by why."""
    duplicates: int
    """Deliveries beyond the first of a copy in its place, flagged or not."""
    confirmed: int
    delivered: int
    acked: int

    def faults(self, most: int = 5) -> list[str]:
        """One line for each kind of fault, with up to `most` examples; empty when all is well."""
        kinds: list[tuple[str, Sequence[object]]] = [
            *((f"lost at the {place}" if place is not Place.MIDDLE else "lost in the middle", self.lost_at(place))
              for place in Place),
            ("unexpected", self.unexpected),
            ("delivered though they were said not to be stored", self.impossible),
            ("delivered from a queue that they never came to", self.astray),
            ("delivered after a confirmed ack", self.risen),
            ("delivered from a queue that is gone", self.returned),
            ("delivered after they were taken back", self.recalled),
            ("transactions of which a part is there", self.torn),
            ("delivered again without the redelivered flag", self.unflagged),
            ("delivered for the first time after later ones", self.overtaken),
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
        why = "".join(f", {count} {reason}" for reason, count in sorted(self.excused.items()))
        return "\n".join([figures + why, *self.faults()])


def check(history: History) -> Verdict:
    """Judge a history that ended with empty queues."""
    never = float("inf")
    by_place: dict[tuple[Copy, str, str], list[Delivery]] = defaultdict(list)
    ids: dict[Name, set[str]] = defaultdict(set)
    for name, identity in history.ids.items():
        ids[name].add(identity)
    for one in history.delivered:
        # A group that is sent back has new copies of what it had, in the same places: those come again, too.
        by_place[one.copy if not one.place else Copy(one.name), one.queue, one.place].append(one)
        ids[one.name].add(one.id)
    copies = {one.copy for one in history.delivered}
    seen = {copy.name for copy in copies}
    return Verdict(
        lost=list(_losses(history, copies)),
        unexpected=[one for one in history.delivered if one.name not in history.attempted],
        impossible=[one for one in history.delivered if one.name in history.denied],
        astray=[one for one in history.delivered if one.queue not in history.queues.get(one.name, {one.queue})],
        risen=[one for one in history.delivered if one.since > history.acked.get(one.copy, never)],
        returned=[one for one in history.delivered if one.since > history.gone.get(one.queue, never)],
        recalled=[one for one in history.delivered if one.since > _taken_back(history, one, never)],
        torn=[one for one in history.together if _is_torn(one, seen | history.stored, history.left_out)],
        unflagged=[one for several in by_place.values() for one in _unflagged(several)],
        overtaken=list(_overtaken(history.delivered)),
        stored_twice=[name for name, called in ids.items() if len(called) > 1],
        recovered=(seen & history.attempted) - history.confirmed,
        unknown=history.attempted - history.confirmed - seen,
        excused=Counter(history.excused.values()),
        duplicates=len(history.delivered) - len(by_place),
        confirmed=len(history.confirmed),
        delivered=len(seen),
        acked=len(history.acked),
    )


def _taken_back(history: History, one: Delivery, never: float) -> float:
    """When a copy was taken back; of a queue with groups each of them has one."""
    if not history.taken_back:
        return never
    return history.taken_back.get((one.name, one.of.partition("/")[0]), never)


def _is_torn(one: Together, there: set[Name], left_out: set[Name]) -> bool:
    found = there.intersection(one.names)
    return bool(found) and not (found | left_out).issuperset(one.names)


def _losses(history: History, seen: set[Copy]) -> Iterator[Loss]:
    owed = history.owed if history.owed is not None else {Copy(name) for name in history.confirmed}
    rows: dict[tuple[str, str], list[Copy]] = defaultdict(list)
    for copy in sorted(owed):
        if copy.name in history.confirmed and copy not in history.excused:
            rows[copy.name.writer, copy.of].append(copy)
    for copies in rows.values():
        missing = [copy not in seen or copy not in history.asked for copy in copies]
        first = missing.index(False) if False in missing else len(missing)
        last = len(missing) - (missing[::-1].index(False) if False in missing else 0)
        for at, copy in enumerate(copies):
            if missing[at]:
                place = Place.PREFIX if at < first else Place.TAIL if at >= last else Place.MIDDLE
                yield Loss(copy.name, place, copy in seen, copy.of)


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


def _overtaken(delivered: Iterable[Delivery]) -> Iterator[Delivery]:
    """First deliveries of a row that came behind one of a higher number. Those of a row are noted as they came."""
    highest: dict[str, int] = {}
    for one in delivered:
        if one.row and not one.redelivered:
            if one.number < highest.get(one.row, 0):
                yield one
            else:
                highest[one.row] = one.number

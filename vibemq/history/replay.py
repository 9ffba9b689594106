"""Replay: the state as the log alone tells it, from zero, and whether what was saved of it agrees.

A broker starts from a checkpoint: parts of the state, each saved at its own offset, and the log from the lowest of
these on. That must give what a replay from zero gives, byte for byte; `replay` does both in one pass over the log and
compares the digests.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from vibemq.errors import BeyondLog, EventNotApplied, FormatUnsupported, StorageError
from vibemq.events import Tag
from vibemq.history.source import History, Progress
from vibemq.log.frame import Record
from vibemq.log.index import Checkpoint
from vibemq.projections.projector import Projector

Digests = dict[str, str]
"""The digest of every part of the state by its key, and of all of them under `all`."""

# What folding an event raises when it contradicts the state: the asserts of the projections, or a look-up that fails.
_CONTRADICTIONS: Final = (AssertionError, LookupError, TypeError, ValueError, AttributeError)


class Agreement(enum.StrEnum):
    """How a checkpoint compares with the replay from zero."""

    SAME = "same"
    DIFFERENT = "different"
    NO_CHECKPOINT = "none"
    LATER = "later"
    UNUSABLE = "unusable"


class Difference(NamedTuple):
    """A part with two digests; None where it is not there at all."""

    part: str
    replayed: str | None
    found: str | None


class Verdict(NamedTuple):
    """What came of the comparison; `text` says it for people. `start` is where a replay over the checkpoint begins."""

    agreement: Agreement
    text: str
    start: int | None = None
    differences: tuple[Difference, ...] = ()


class Replayed(NamedTuple):
    """The state before record `offset`: its digests, the names of its queues by part, and the checkpoint's verdict."""

    offset: int
    digests: Digests
    queues: dict[str, str]
    checkpoint: Verdict


def differences(replayed: Digests, found: Digests) -> tuple[Difference, ...]:
    """The parts in which two states differ. `all` is left out: it differs when anything does."""
    keys = [key for key in dict.fromkeys([*replayed, *found]) if key != "all"]
    pairs = (Difference(key, replayed.get(key), found.get(key)) for key in keys)
    return tuple(pair for pair in pairs if pair.replayed != pair.found)


def apply(state: Projector, record: Record) -> None:
    """Add one record to a state.

    Raises:
        EventNotApplied: it contradicts the state, or is of a kind that this version does not know.
    """
    try:
        state.apply(record.offset, record.time_us, record.event)
    except FormatUnsupported as problem:
        raise EventNotApplied(record.offset, kind_of(record.tag), str(problem)) from None
    except _CONTRADICTIONS as problem:
        raise EventNotApplied(record.offset, kind_of(record.tag), f"{type(problem).__name__}: {problem}") from problem


def kind_of(tag: int) -> str:
    """The name of a kind of event, as people write it: `dead-lettered`."""
    try:
        return Tag(tag).name.lower().replace("_", "-")
    except ValueError:
        return f"tag-{tag}"


class _Restored:
    """A state that continues from a checkpoint, beside the replay from zero."""

    def __init__(self, checkpoint: Checkpoint, state: Projector) -> None:
        self.start = checkpoint.start
        self.settled = max([checkpoint.start, *(as_of for as_of, _ in checkpoint.parts.values())])
        """Before this offset its parts are of different times."""
        self._state = state
        self._problem = ""

    def apply(self, record: Record) -> None:
        if record.offset >= self.start and not self._problem:
            try:
                apply(self._state, record)
            except EventNotApplied as problem:
                self._problem = problem.text

    def verdict(self, offset: int, digests: Digests) -> Verdict:
        if offset < self.settled:
            text = f"it holds the state at {self.settled}, which is after {offset}: not compared"
            return Verdict(Agreement.LATER, text, self.start)
        if self._problem:
            return Verdict(Agreement.DIFFERENT, f"it cannot be continued: {self._problem}", self.start)
        found = differences(digests, self._state.digests())
        whence = f"the one of offset {self.start}, continued with {offset - self.start} records"
        if found:
            return Verdict(Agreement.DIFFERENT, f"{whence}, gives other digests", self.start, found)
        return Verdict(Agreement.SAME, f"{whence}, gives the same digests", self.start)


def _restored(history: History) -> _Restored | Verdict:
    """The state that the checkpoint holds, or why there is none to compare."""
    try:
        saved = history.saved()
    except StorageError as problem:
        return Verdict(Agreement.UNUSABLE, f"{problem}; nothing is lost with it, the next start builds it anew")
    if saved is None:
        return Verdict(Agreement.NO_CHECKPOINT, "the index holds nothing yet, so there is none to compare with")
    if not history.holds(saved):
        return Verdict(Agreement.UNUSABLE, "the index is of another history of this log; the next start builds it anew")
    if saved.checkpoint is None:
        return Verdict(Agreement.NO_CHECKPOINT, "the index holds none to compare with")
    try:
        parts = [(key, as_of, blob) for key, (as_of, blob) in saved.checkpoint.parts.items()]
        return _Restored(saved.checkpoint, Projector.restore(parts, saved.checkpoint.start))
    except (FormatUnsupported, msgspec.MsgspecError, *_CONTRADICTIONS) as problem:
        text = f"it cannot be used, the next start does without it: {problem}"
        return Verdict(Agreement.UNUSABLE, text, saved.checkpoint.start)


def replay(history: History, at: int | None = None, progress: Progress | None = None) -> Replayed:
    """Rebuild the state from zero, up to (and without) record `at` or to the end of the log.

    Raises:
        BeyondLog: the log ends before `at`.
        CorruptLog: damage to what was synced, or the index knows that records are missing.
        EventNotApplied: an event contradicts those before it.
    """
    restored = _restored(history)  # first: so the log is at least as long as the checkpoint says
    state = Projector()
    for record in history.records(0, at, progress):
        apply(state, record)
        if isinstance(restored, _Restored):
            restored.apply(record)
    if at is not None and state.next_offset < at:
        raise beyond(state.next_offset, at)
    digests = state.digests()
    verdict = restored if isinstance(restored, Verdict) else restored.verdict(state.next_offset, digests)
    names = {f"{kind}/{queue.id}": queue.name for queue in state.queues.values() for kind in ("queue", "dead")}
    return Replayed(state.next_offset, digests, names, verdict)


def digests_at(history: History, offsets: Iterable[int]) -> Iterator[tuple[int, Digests]]:
    """The digests before each of these records, in ascending order of the offsets, from one replay.

    Raises:
        BeyondLog: the log ends before one of them.
        CorruptLog, EventNotApplied: as `replay`.
    """
    state, wanted = Projector(), sorted(set(offsets))
    records = history.records(0, wanted[-1] if wanted else 0)
    for offset in wanted:
        while state.next_offset < offset:
            record = next(records, None)
            if record is None:
                raise beyond(state.next_offset, offset)
            apply(state, record)
        yield offset, state.digests()


def beyond(end: int, at: int) -> BeyondLog:
    """The log has no record `at - 1`."""
    return BeyondLog(f"the log ends at offset {end}; there is no state at {at}")

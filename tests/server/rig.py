"""A broker without a runtime: commands go in, every event is kept in a list that stands for the log."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from vibemq import events as e
from vibemq.batch import Batch, pack
from vibemq.declaration import QueueSettings
from vibemq.log.delayed import LAST, DueKey, due_key
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.cron import CronCalendar
from vibemq.server.effects import (
    DelayedOf,
    DueAfter,
    Effect,
    Find,
    Load,
    Reading,
    Recall,
    StoredBatch,
    Waiting,
)
from vibemq.server.journal import NewRecord
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import QueueDefaults

EVENT = TypeVar("EVENT", bound=e.Event)
START_US = 1_700_000_000_000_000


def batch_of(bodies: Sequence[bytes]) -> Batch:
    """A checked batch of these bodies."""
    return Batch(b"".join(pack(bodies)))


class Rig:
    """A broker, its log in memory, and its clock."""

    def __init__(
        self,
        limits: Limits | None = None,
        defaults: QueueSettings | None = None,
        unroutable: str = "",
        *,
        auto_create: bool = True,
    ) -> None:
        self.auto_create = auto_create
        self.limits = limits or Limits()
        self.unroutable = unroutable
        self.defaults = defaults or QueueSettings()
        self.log: list[NewRecord] = []
        self.now_us = START_US
        self.loads: list[Reading] = []
        self.begin(Projector())

    def begin(self, state: Projector) -> None:
        """Start a broker that goes on with this state."""
        self.loads.clear()
        self.broker = Broker(
            state,
            self.limits,
            QueueDefaults(self.defaults),
            auto_create=self.auto_create,
            unroutable=self.unroutable,
            calendar=CronCalendar(),
        )
        self.broker.journal.now_us = self.now_us
        self.broker.start("1", self.now_us)

    @property
    def state(self) -> Projector:
        """The live state."""
        return self.broker.journal.state

    def pass_time(self, passed_us: int) -> None:
        """Let the clock go on."""
        self.now_us += passed_us
        self.broker.journal.now_us = self.now_us

    def take(self) -> tuple[list[e.Event], list[Effect]]:
        """The events and effects since the last call; loads are put aside."""
        journal = self.broker.journal
        records, effects = journal.records[:], journal.effects[:]
        self.loads += journal.loads
        journal.records.clear()
        journal.effects.clear()
        journal.loads.clear()
        self.log += records
        assert len(self.log) == self.state.next_offset
        return [record.event for record in records], effects

    def take_events(self, kind: type[EVENT]) -> list[EVENT]:
        """The events of one kind since the last call."""
        return [event for event in self.take()[0] if isinstance(event, kind)]

    def effects(self) -> list[Effect]:
        """The effects since the last call."""
        return self.take()[1]

    def replayed(self, state: Projector | None = None) -> Projector:
        """A state, or the empty one, with all events that follow; each one through its bytes."""
        state = state or Projector()
        for offset in range(state.next_offset, len(self.log)):
            event, time_us, _ = self.log[offset]
            state.apply(offset, time_us, e.decode(event.TAG, event.VERSION, e.encode(event)))
        return state

    def load_one(self, at: int = 0) -> None:
        """Do one of the loads that were asked for."""
        load = self.loads.pop(at % len(self.loads))
        if isinstance(load, Find):
            self.broker.found(load, self.first_from(load))
            return
        if isinstance(load, Recall):
            self.broker.transactions.recalled(load, self.log[load.offset].event)
            return
        if isinstance(load, DueAfter):
            self.broker.found(load, self.due_after(load))
            return
        if isinstance(load, DelayedOf):
            self.broker.found(load, self.delayed_of(load))
            return
        self.broker.loaded(load, self.stored(load))

    def delayed(self) -> list[Waiting]:
        """All that waits for its time, as the log says, in the order of due times."""
        found: dict[tuple[int, int, int], Waiting] = {}
        for offset, (event, _, _) in enumerate(self.log):
            if isinstance(event, e.Published | e.Routed | e.TransactionCommitted):
                come = event.delayed(offset)
                gone: list[Waiting] = []
            elif isinstance(event, e.Matured):
                come, gone = (), [(event.queue, entry) for entry in event.entries]
            elif isinstance(event, e.Rescheduled | e.Cancelled):
                gone = [(event.queue, entry) for entry in event.before]
                come = tuple((event.queue, entry) for entry in event.after)
            elif isinstance(event, e.QueuePurged) or (isinstance(event, e.QueueDeleted) and not event.until_us):
                come, gone = (), [one for one in found.values() if one[0] == event.queue]
            else:
                continue
            for queue, entry in gone:
                assert found.pop((queue, entry[1], entry[2])) == (queue, entry)
            for queue, entry in come:
                assert (queue, entry[1], entry[2]) not in found
                found[queue, entry[1], entry[2]] = (queue, entry)
        return sorted(found.values(), key=lambda one: due_key(*one))

    def due_after(self, reading: DueAfter) -> tuple[list[Waiting], DueKey]:
        """What is due next."""
        rest = [
            (queue, entry)
            for queue, entry in self.delayed()
            if due_key(queue, entry) > reading.after and entry[0] < reading.until_us and queue not in reading.without
        ]
        return rest[: reading.most], due_key(*rest[reading.most - 1]) if len(rest) > reading.most else LAST

    def delayed_of(self, reading: DelayedOf) -> list[tuple[e.Entry, tuple[int, ...]]]:
        """The entries of some records, with the bytes of each message."""
        return [
            (entry, tuple(Batch(b"".join(self.log[entry[1]].payload)).lengths[entry[2] : entry[2] + entry[3]]))
            for queue, entry in self.delayed()
            if queue == reading.queue
            and entry[1] in reading.offsets
            and any(
                entry[2] <= index < entry[2] + entry[3] for index in reading.indices[reading.offsets.index(entry[1])]
            )
        ]

    def first_from(self, find: Find) -> int:
        """The first message of a queue that became ready at a time or later."""
        for event, time_us, _ in self.log:
            for queue, lane, sequence, count in event.arrivals:
                if (queue, lane) == (find.queue, 0) and time_us >= find.time_us and sequence + count > find.first:
                    return min(max(sequence, find.first), find.end)
        return find.end

    def stored(self, load: Load) -> list[StoredBatch]:
        """The batch that a load asks for, and the one after it."""
        found = [one for offset in range(len(self.log)) for one in self._made_ready(offset, load)]
        return [one for one in found if one.end > load.sequence][:2]

    def part(self, offset: int, index: int, count: int) -> Batch:
        """Messages of a record."""
        event, _, payload = self.log[offset]
        for data in payload:  # the batches of a transaction, which are its parts
            batch = Batch(data if isinstance(event, e.TransactionCommitted) else b"".join(payload))
            if index < batch.count:
                return Batch(b"".join(batch.cut(index, count)))
            index -= batch.count
        raise AssertionError("a record has all that is said to be in it")

    def _pieces(self, refs: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """The same messages, each piece of one batch: those of a transaction may be of several."""
        for offset, index, count in refs:
            event, _, payload = self.log[offset]
            sizes = [Batch(data).count for data in payload] if isinstance(event, e.TransactionCommitted) else []
            ends = [*accumulate(sizes), index + count]
            for start, end in pairwise([0, *ends]):
                first, last = max(start, index), min(end, index + count)
                if first < last:
                    yield offset, first, last - first

    def _in_transaction(
        self, at: int, load: Load, event: e.TransactionCommitted, time_us: int
    ) -> Iterator[StoredBatch]:
        index = 0
        parts: tuple[e.Published | e.Routed, ...] = (*event.published, *event.routed)
        for part in parts:
            dead = e.DeadReason.UNROUTABLE if isinstance(part, e.Routed) and part.unroutable else 0
            for queue, lane, sequence, count in part.arrivals:
                if (queue, lane) == (load.queue, load.lane):
                    batch = self.part(at, index, count)
                    yield StoredBatch(queue, lane, sequence, at, index, at, time_us, time_us, batch, dead=dead)
            index += part.count

    def _made_ready(self, at: int, load: Load) -> list[StoredBatch]:
        event, time_us, payload = self.log[at]
        if isinstance(event, e.TransactionCommitted):
            return list(self._in_transaction(at, load, event, time_us))
        found = []
        for queue, lane, sequence, _ in event.arrivals:
            if (queue, lane) != (load.queue, load.lane):
                continue
            if not isinstance(event, e.DeadLettered | e.Redriven | e.Matured):
                batch = Batch(b"".join(payload))
                dead = e.DeadReason.UNROUTABLE if isinstance(event, e.Routed) and event.unroutable else 0
                found.append(StoredBatch(queue, lane, sequence, at, 0, at, time_us, time_us, batch, dead=dead))
                continue
            first = sequence
            for origin, index, count in self._pieces(event.refs):
                origin_us = self.log[origin].time_us
                part = self.part(origin, index, count)
                dead = event.reason if isinstance(event, e.DeadLettered) else 0
                found.append(StoredBatch(queue, lane, first, origin, index, at, origin_us, time_us, part, dead=dead))
                first += count
        return found

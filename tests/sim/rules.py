"""What the broker may decide: each event is judged by the book as it is before it, and by the request that led to it.

A rule here says what docs/semantics.md promises of one kind of event: who may be handed what, and in which order; when
a message is tried again, given up, dropped, or sent back; what a publish may and may not add. The words are those of a
user: a rule does not know how the broker comes to its decisions.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tests.checker import Name, Violation
from tests.sim import leaving
from tests.sim.book import Book
from tests.sim.contents import Group, Queue, Told, Where, wheres
from tests.sim.dedup import DedupRules
from tests.sim.delayed import DelayedRules
from tests.sim.leaving import TRIMMING, expired
from tests.sim.mail import names_in
from tests.sim.rates import Bucket
from tests.sim.schedules import ScheduleRules
from vibemq import events as e
from vibemq.batch import Batch
from vibemq.declaration import Backoff, Mode, Overflow
from vibemq.events import DEFAULT_LANE, DeadReason, ReleaseReason
from vibemq.projections.bindings import matches
from vibemq.protocol import messages as m

EPHEMERAL_IDLE_US = 60_000_000
COMING_BACK_US = 60_000_000
"""After a start of the broker no queue ends for want of consumers before that time, or its own."""
ROUNDING = 0.01
"""Parts of a message that the broker rounds otherwise."""
LEASE_ENDED = "the lease ended"


def overdue(book: Book, now_us: int) -> None:
    """What the broker should have removed by now: groups without consumers, and queues that were deleted."""
    for queue in book.queues.values():
        if queue.deleted_until_us:
            if queue.deleted_until_us <= now_us:
                raise Violation(
                    f"queue {queue.name} could come back until {queue.deleted_until_us}, and is still there"
                )
            continue
        for group in queue.groups.values():
            idle_us = EPHEMERAL_IDLE_US if group.ephemeral else queue.settings.group_idle_ms * 1000
            if group.of and idle_us and not group.consumers and group.idle_since_us + idle_us <= now_us:
                raise Violation(f"group {group.name} of queue {queue.name} is idle since {group.idle_since_us}")


class Rules:
    """Judges events. What it remembers beside the book is what a broker keeps in memory only."""

    def __init__(self, book: Book) -> None:
        """Judge by this book."""
        self.book = book
        self.overtaken: dict[tuple[int, int], int] = {}
        """(queue, group) -> messages in a row that went before others of a lower priority."""
        self.deliver_rates: dict[tuple[int, int], Bucket] = {}
        self.in_transaction = False
        """What is judged is a part of one. What is dropped there is decided in another order than it is written in."""
        self.together: set[tuple[str, int]] = set()
        """What of these was looked at for the event at hand, or the part of one."""
        self.publish_rates: dict[tuple[str, int], Bucket] = {}
        """By ("queue", number) and ("connection", number)."""
        self.connection_rate = 0
        self.exclusive: set[int] = set()
        """Subscriptions that have a group for themselves."""
        self.found: int | None = None
        """What a look-up of a time came to; it is what is being told to the broker now."""
        self.latest: dict[tuple[int, int, str, str], int] = {}
        """(queue, lane, where it was sent to, writer) -> the latest message."""
        self._too_much: tuple[tuple[int, int], int, set[Where]] = ((0, 0), 0, set())
        """Of which group what is too much, as of which event."""
        self.delayed, self.dedup = DelayedRules(book), DedupRules(book)
        self.out_of_order: set[Name] = set()
        """Messages that were refused, and sent again when others had gone before."""
        self._judge: dict[type, Callable[[Any, Told, Any], None]] = {
            e.QueuePurged: self._purged,
            e.GroupCreated: self._group_created,
            e.GroupSought: self._sought,
            e.GroupDeleted: self._group_deleted,
            e.Published: self._published,
            e.Routed: self._routed,
            e.Subscribed: self._subscribed,
            e.Unsubscribed: self._unsubscribed,
            e.Delivered: self._delivered,
            e.Acked: self._acked,
            e.Released: self._released,
            e.MadeReady: self._made_ready,
            e.Dropped: self._dropped,
            e.DeadLettered: self._dead_lettered,
            e.Redriven: self._redriven,
            e.QueueChanged: self._changed,
            e.QueueDeleted: self._deleted,
            e.QueueUndeleted: self._undeleted,
            e.QueueRenamed: self._renamed,
            e.Bound: self._bound,
            e.Unbound: self._bound,
            **self.delayed.judges,
            **self.dedup.judges,
            **ScheduleRules(book).judges,
        }

    def judge(self, told: Told, cause: m.Command | None) -> None:
        """Whether this may happen now. `cause` is the request that the broker was carrying out, if it was."""
        judge = self._judge.get(type(told.event))
        if judge is not None:
            judge(told.event, told, cause)

    def restarted(self) -> None:
        """What the broker had in memory is gone."""
        self.overtaken.clear()
        self.deliver_rates.clear()
        self.publish_rates.clear()
        self.exclusive.clear()
        self.found = None
        self.latest.clear()

    def _at(self, event: Any) -> tuple[Queue, Group]:  # noqa: ANN401 - any event of a group
        queue = self.book.queues[event.queue]
        if queue.deleted_until_us:
            raise Violation(f"{event} in a queue that is deleted")
        return queue, queue.groups[event.group]

    # --- publishing

    def _published(self, event: e.Published, told: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        if not isinstance(cause, m.Publish) or cause.to_topic or cause.queue != queue.name:
            raise Violation(f"{event} in queue {queue.name} for {cause}")
        batch = cause.batch
        self.dedup.check_batch(event, told, cause)
        self.delayed.check_due(event, told, cause)
        self._check_lane(queue, event.lane, batch.priority)
        if event.dropped and queue.settings.overflow is not Overflow.DROP_NEWEST:
            raise Violation(f"{event} in a queue with {queue.settings.overflow}")
        if event.dropped and not self.in_transaction:
            size = event.bytes + self._first_dropped(event, batch)
            if self._has_room(queue, event.count + 1, size):
                raise Violation(f"{event} drops messages for which there is room")
        if event.due_us and _delays_too_much(queue, event.count, event.bytes):
            raise Violation(f"{event} in queue {queue.name}, which has {len(queue.delayed)} that are delayed")
        if event.count:
            self._check_room(event, queue)
        self._in_order(event.queue, event.lane, cause.queue, told)
        self._check_publish_rate("queue", event.queue, queue.settings.publish_rate, event.count, told.time_us)
        self._check_publish_rate("connection", event.connection, self.connection_rate, batch.count, told.time_us)

    def _check_room(self, event: e.Published | e.Routed, queue: Queue) -> None:
        """What is stored has room. In a transaction groups keep the average size of a message that they had before."""
        if self.in_transaction and queue.settings.mode.has_groups:
            return
        if queue.settings.overflow not in TRIMMING and not self._has_room(queue, event.count, event.bytes):
            raise Violation(f"{event} in queue {queue.name}, which has {queue.length} messages and no room")

    def _first_dropped(self, event: e.Published, batch: Batch) -> int:
        """How many bytes the first message has that was not stored for want of room."""
        twice = {position for position, _, _ in event.duplicates}
        return [size for position, size in enumerate(batch.lengths) if position not in twice][event.count]

    def _check_publish_rate(self, whose: str, number: int, rate: int, count: int, now_us: int) -> None:
        """One batch may be more than there is; the next one waits for longer."""
        if rate and count:
            key = whose, number
            if key in self.together:  # the rest of a transaction comes with what came first
                self.publish_rates[key].level -= count
                return
            self.together.add(key)
            bucket = self.publish_rates.setdefault(key, Bucket(rate, now_us))
            bucket.fill(rate, now_us)
            if bucket.level < 1 - ROUNDING:
                raise Violation(f"{whose} {number} publishes more than {rate} messages a second")
            bucket.level -= count

    def _check_lane(self, queue: Queue, lane: int, priority: int) -> None:
        if lane != (priority if queue.settings.mode is Mode.PRIORITY else DEFAULT_LANE):
            raise Violation(f"messages of priority {priority} in lane {lane} of queue {queue.name}")

    def _has_room(self, queue: Queue, count: int, size: int) -> bool:
        settings = queue.settings
        if queue.length + len(queue.delayed) + count > settings.max_length:
            return False
        return queue.bytes + queue.delayed_bytes + size <= settings.max_bytes

    def _in_order(self, queue: int, lane: int, target: str, told: Told) -> None:
        """What a writer sent to one place, in a row, stands in that row, but for what was refused meanwhile."""
        for message in told.messages:
            name = message.name
            if name in self.out_of_order:
                continue
            key = queue, lane, target, name.writer
            if name.number < self.latest.get(key, 0):
                raise Violation(f"{name} came to queue {queue} behind message {self.latest[key]} of its writer")
            self.latest[key] = name.number

    def _routed(self, event: e.Routed, told: Told, cause: m.Command | None) -> None:
        if not isinstance(cause, m.Publish) or not cause.to_topic or cause.queue != event.topic:
            raise Violation(f"{event} for {cause}")
        self.delayed.check_due(event, told, cause)
        bound = {queue.id for queue in self._targets(cause)}
        targets = {queue for queue, _, _ in event.targets}
        if event.unroutable:
            if bound or len(targets) != 1:
                raise Violation(f"{event} is said to be unroutable, and {bound} are bound")
        elif not targets <= bound:
            raise Violation(f"{event} goes to more than {bound}")
        for number in bound - targets:
            queue = self.book.queues[number]
            is_there = not self.in_transaction and self._has_room(queue, event.count, event.bytes)
            if queue.settings.overflow is not Overflow.DROP_NEWEST or is_there:
                raise Violation(f"{event} leaves out queue {queue.name}")
        for number, lane, _ in event.targets:
            queue = self.book.queues[number]
            self._check_lane(queue, lane, cause.batch.priority)
            self._check_room(event, queue)
            self._in_order(number, lane, event.topic, told)
            self._check_publish_rate("queue", number, queue.settings.publish_rate, event.count, told.time_us)
        self._check_publish_rate("connection", event.connection, self.connection_rate, event.count, told.time_us)

    def may_be_refused(self, publish: m.Publish) -> bool:
        """Whether there is a reason in the queues to refuse a publish; who sent too much before is not known here."""
        queues = self._targets(publish)
        waits = any(one.settings.publish_rate or one.settings.overflow is Overflow.BLOCK for one in queues)
        return not queues or waits or self.lacks_room(publish)

    def lacks_room(self, publish: m.Publish) -> bool:
        """Whether a queue refuses a publish that it has no room for."""
        count, size = publish.batch.count, publish.batch.record_bytes
        targets = self._targets(publish)
        if (publish.delay_ms or publish.due_us) and any(_delays_too_much(queue, count, size) for queue in targets):
            return True
        refusing = [queue for queue in targets if queue.settings.overflow is Overflow.REJECT]
        return any(not self._has_room(queue, count, size) for queue in refusing)

    def _targets(self, publish: m.Publish) -> list[Queue]:
        if publish.to_topic:
            return [one for one in self.book.there() if any(matches(word, publish.queue) for word in one.patterns)]
        named = self.book.queue_named(publish.queue)
        return [named] if named is not None else []

    def refused(self, publish: m.Publish) -> None:
        """A publish was refused for good: what its writer sends after it may come before it."""
        self.out_of_order.update(names_in(publish.batch))

    # --- groups and consumers

    def _group_created(self, event: e.GroupCreated, _: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        if not queue.settings.mode.has_groups:
            raise Violation(f"{event} in queue {queue.name}, which is {queue.settings.mode}")
        self._check_place(queue, event.sequence, cause)
        if event.ephemeral != event.name.startswith("$"):
            raise Violation(f"{event} with a name that is not for it")

    def _sought(self, event: e.GroupSought, _: Told, cause: m.Command | None) -> None:
        self._check_place(self.book.queues[event.queue], event.sequence, cause)
        self.overtaken.pop((event.queue, event.group), None)

    def _check_place(self, queue: Queue, sequence: int, cause: m.Command | None) -> None:
        if self.found is not None:
            wanted = max(self.found, queue.floor)
        elif isinstance(cause, m.Subscribe | m.Seek):
            wanted = {
                "head": queue.floor,
                "tail": queue.next(),
                "sequence": min(max(cause.at, queue.floor), queue.next()),
            }[cause.start]
        else:
            raise Violation(f"a group is put to message {sequence} for {cause}")
        if sequence != wanted:
            raise Violation(f"a group is put to message {sequence}, and not to {wanted}, for {cause}")

    def place_of(self, queue: int, time_us: int, first: int, end: int) -> int:
        """The first message from `first` on that became ready at that time or later; `end` without one."""
        found = self.book.queues.get(queue)  # it may be gone meanwhile
        entries = found.lanes[DEFAULT_LANE][first - 1 : end - 1] if found is not None else []
        return next((first + at for at, entry in enumerate(entries) if entry.ready_us >= time_us), end)

    def _group_deleted(self, event: e.GroupDeleted, told: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        group = queue.groups[event.group]
        if event.connection:
            if not isinstance(cause, m.DeleteGroup) or (cause.queue, cause.group) != (queue.name, group.name):
                raise Violation(f"{event} for {cause}")
            return
        idle_us = EPHEMERAL_IDLE_US if group.ephemeral else queue.settings.group_idle_ms * 1000
        if not idle_us or told.time_us < group.idle_since_us + idle_us:
            raise Violation(f"group {group.name} is deleted {told.time_us - group.idle_since_us} us after its last")

    def _subscribed(self, event: e.Subscribed, _: Told, cause: m.Command | None) -> None:
        group = self._at(event)[1]
        wants_all = isinstance(cause, m.Subscribe) and cause.exclusive
        if group.consumers and (wants_all or not self.exclusive.isdisjoint(group.consumers)):
            raise Violation(f"{event} with {group.consumers} there, of which {self.exclusive} are exclusive")
        if wants_all:
            self.exclusive.add(event.subscription)

    def _unsubscribed(self, event: e.Unsubscribed, _: Told, __: m.Command | None) -> None:
        group = self.book.queues[event.queue].groups[event.group]
        if group.consumers == [event.subscription]:
            self.overtaken.pop((event.queue, event.group), None)
            self.deliver_rates.pop((event.queue, event.group), None)

    def _changed(self, event: e.QueueChanged, told: Told, _: m.Command | None) -> None:
        before = self.book.queues[event.queue].settings
        bucket = self.publish_rates.get(("queue", event.queue))
        if bucket is not None:  # it may be looked at just before, or not until later
            bucket.fill(max(before.publish_rate, event.settings.publish_rate), told.time_us)
        if (before.mode, before.order_by_key) != (event.settings.mode, event.settings.order_by_key):
            raise Violation(f"{event} changes what cannot be changed")
        self.deliver_rates = {key: one for key, one in self.deliver_rates.items() if key[0] != event.queue}

    # --- handing out

    def _delivered(self, event: e.Delivered, told: Told, _: m.Command | None) -> None:
        queue, group = self._at(event)
        found = wheres(event.spans)
        self._check_bytes(queue, found, event.bytes)
        if queue.settings.single_active and event.subscription != group.consumers[0]:
            raise Violation(f"{event} in a queue with a single active consumer, which is {group.consumers[0]}")
        left = self.fresh(queue, group, told.time_us)
        if queue.settings.order_by_key:
            self._check_keys(queue, group, found, left.get(DEFAULT_LANE, []))
        else:
            self._check_order(queue, group, found, left)
        self._check_deliver_rate(queue, group, len(found), told.time_us)

    def _check_bytes(self, queue: Queue, found: list[Where], size: int) -> None:
        if sum(queue.entry(where).message.size for where in found) != size:
            raise Violation(f"messages {found} of queue {queue.name} are not {size} bytes")

    def fresh(self, queue: Queue, group: Group, now_us: int) -> dict[int, list[int]]:
        """What is ready and may be handed out. What has expired may not, and holds up nothing."""
        left = {
            lane: [sequence for sequence in sequences if not expired(queue, queue.entry((lane, sequence)), now_us)]
            for lane, sequences in group.ready.items()
        }
        return {lane: sequences for lane, sequences in left.items() if sequences}

    def _check_order(self, queue: Queue, group: Group, found: list[Where], left: dict[int, list[int]]) -> None:
        """The oldest of the highest priority go first; now and then, where that is wanted, one of the lowest."""
        key, guard = (queue.id, group.id), queue.settings.priority_guard
        for lane, sequence in found:
            if lane not in left or left[lane][0] != sequence:
                raise Violation(f"message {sequence} of lane {lane} is handed out before {left}")
            highest, lowest = max(left), min(left)
            if lane == lowest:
                if lane != highest and not guard:
                    raise Violation(f"priority {lane} is handed out before {left}")
                self.overtaken[key] = 0
            elif lane != highest:
                raise Violation(f"priority {lane} is handed out before {left}")
            else:
                self.overtaken[key] = self.overtaken.get(key, 0) + 1 if guard else 0
                if guard and self.overtaken[key] > guard:
                    raise Violation(f"{self.overtaken[key]} messages in a row went before those of priority {lowest}")
            del left[lane][0]
            if not left[lane]:
                del left[lane]

    def _check_keys(self, queue: Queue, group: Group, found: list[Where], left: list[int]) -> None:
        """The oldest go first, but of a key only one is out at a time."""
        busy = {queue.entry(where).message.key for where in (*group.held, *group.waiting)}
        for where in found:
            parked = set(busy)
            for sequence in left:
                key = queue.entry((DEFAULT_LANE, sequence)).message.key
                if not key or key not in parked:
                    break
                parked.add(key)
            else:
                raise Violation(f"message {where} is handed out, and its key is out")
            if where != (DEFAULT_LANE, sequence):
                raise Violation(f"message {where} is handed out before {sequence}, whose key {key} is free")
            left.remove(sequence)
            busy.add(key)

    def _check_deliver_rate(self, queue: Queue, group: Group, count: int, now_us: int) -> None:
        rate = queue.settings.deliver_rate
        if not rate:
            return
        bucket = self.deliver_rates.setdefault((queue.id, group.id), Bucket(rate, now_us))
        bucket.fill(rate, now_us)
        if bucket.level < count - ROUNDING:
            raise Violation(f"{count} messages are handed out of queue {queue.name}, where {bucket.level} may be")
        bucket.level -= count

    # --- what becomes of what was handed out

    def _acked(self, event: e.Acked, _: Told, cause: m.Command | None) -> None:
        queue = self._at(event)[0]
        if not isinstance(cause, m.Ack) or cause.subscription != event.subscription:
            raise Violation(f"{event} for {cause}")
        self._check_bytes(queue, wheres(event.spans), event.bytes)

    def _released(self, event: e.Released, told: Told, cause: m.Command | None) -> None:
        queue, group = self._at(event)
        self._check_bytes(queue, wheres(event.spans), event.bytes)
        if (event.reason == ReleaseReason.NACKED) != (isinstance(cause, m.Nack) and not cause.reject):
            raise Violation(f"{event} for {cause}")
        counts = event.reason in {ReleaseReason.NACKED, ReleaseReason.LEASE_EXPIRED}
        if event.counted != counts and event.reason is not ReleaseReason.CONSUMER_LOST:
            raise Violation(f"{event} counts wrongly")
        if not event.counted:
            if event.not_before_us:
                raise Violation(f"{event} has nothing to wait for")
            return
        delay_us = event.not_before_us - told.time_us if event.not_before_us else 0
        wished_ms = cause.delay_ms if isinstance(cause, m.Nack) else None
        for where in wheres(event.spans):
            failures = group.failed[where] + 1
            if queue.settings.max_attempts and failures >= queue.settings.max_attempts:
                raise Violation(f"{event}, though {failures} attempts at message {where} have failed")
            low_us, high_us = delays_us(queue, failures, wished_ms)
            if not low_us <= delay_us <= high_us:
                raise Violation(f"{event} waits for {delay_us} us, not {low_us} to {high_us}")

    def _made_ready(self, event: e.MadeReady, told: Told, _: m.Command | None) -> None:
        group = self._at(event)[1]
        for where in wheres(event.spans):
            if group.waiting.get(where, 0) > told.time_us:
                raise Violation(f"{event} before {group.waiting[where]}")

    # --- what leaves

    def _dropped(self, event: e.Dropped, told: Told, _: m.Command | None) -> None:
        queue, group = self._at(event)
        found = wheres(event.spans)
        self._check_bytes(queue, found, event.bytes)
        if event.reason == DeadReason.EXPIRED:
            self._check_expired(queue, found, told.time_us)
            stays = [where for where in found if leaving.goes_on(self.book, queue, queue.entry(where))]
        else:
            self._check_overflow(queue, group, found)
            is_kept = queue.settings.overflow is Overflow.DEAD_LETTER
            stays = [where for where in found if is_kept and leaving.goes_on(self.book, queue, queue.entry(where))]
        if stays:
            raise Violation(f"{event}, where {stays} should go to the dead letters")

    def _check_expired(self, queue: Queue, found: list[Where], now_us: int) -> None:
        for where in found:
            if not expired(queue, queue.entry(where), now_us):
                raise Violation(f"message {where} of queue {queue.name} leaves as expired, and has not")

    def _check_overflow(self, queue: Queue, group: Group, found: list[Where]) -> None:
        """Only what is too much goes: of the lowest priority, the oldest, and no more than needed.

        What goes at once may be several events, as it failed more or less often before.
        """
        key, written, needed = self._too_much
        is_more = key == (queue.id, group.id) and written == len(self.book.told) and needed.issuperset(found)
        if not is_more:
            needed = leaving.too_much(queue, group)
        if not needed.issuperset(found):
            raise Violation(f"queue {queue.name} drops {found}, where {sorted(needed)} are too much")
        self._too_much = (queue.id, group.id), len(self.book.told) + 1, needed.difference(found)

    def _dead_lettered(self, event: e.DeadLettered, told: Told, cause: m.Command | None) -> None:
        queue, group = self._at(event)
        found = wheres(event.spans)
        self._check_bytes(queue, found, event.bytes)
        target = self.book.queues[event.dead_queue].name if event.dead_queue else ""
        for wanted in {leaving.goes_to(queue, queue.entry(where)) for where in found}:
            if target != wanted:
                raise Violation(f"{event} goes to {target!r}, not to {wanted!r}")
        self._check_reason(event, queue, group, told, cause)
        held = event.reason in {DeadReason.REJECTED, DeadReason.MAX_ATTEMPTS}
        if held != bool(event.subscription):
            raise Violation(f"{event} was held by nobody who could fail, or by somebody who did not")
        for where in found:
            failures = group.failed[where] + 1
            if event.reason == DeadReason.MAX_ATTEMPTS and not 0 < queue.settings.max_attempts <= failures:
                raise Violation(f"{event} after {failures} failed attempts")
            if event.attempts != group.attempts(where) + held:
                raise Violation(f"{event}, but {group.attempts(where) + held} attempts failed")
            if where[0] != found[0][0]:
                raise Violation(f"{event} is of more than one lane")

    def _check_reason(
        self, event: e.DeadLettered, queue: Queue, group: Group, told: Told, cause: m.Command | None
    ) -> None:
        if event.reason == DeadReason.EXPIRED:
            self._check_expired(queue, wheres(event.spans), told.time_us)
        elif event.reason == DeadReason.OVERFLOW:
            found = wheres(event.spans)
            self._check_overflow(queue, group, found)
            if queue.settings.overflow is not Overflow.DEAD_LETTER:
                raise Violation(f"{event} of what should be dropped")
        elif (event.reason == DeadReason.REJECTED) != (isinstance(cause, m.Nack) and cause.reject):
            raise Violation(f"{event} for {cause}")

    def _redriven(self, event: e.Redriven, _: Told, cause: m.Command | None) -> None:
        queue, target = self.book.queues[event.queue], self.book.queues[event.target]
        if queue.deleted_until_us or target.deleted_until_us or queue is target:
            raise Violation(f"{event} from or to a queue that is deleted, or to itself")
        found = wheres(event.spans)
        self._check_bytes(queue, found, event.bytes)
        if target.settings.overflow not in TRIMMING and not self._has_room(target, len(found), event.bytes):
            raise Violation(f"{event} into queue {target.name}, which has no room")
        ask = cause if isinstance(cause, m.Redrive) else None
        for where in found:
            dead = queue.entry(where).dead
            if dead is None:
                raise Violation(f"{event} of message {where}, which is no dead letter")
            if event.attempts != dead.attempts:
                raise Violation(f"{event}, but {dead.attempts} attempts failed")
            if event.lane != (dead.lane if target.settings.mode is Mode.PRIORITY else DEFAULT_LANE):
                raise Violation(f"{event} into lane {event.lane}, where it was in lane {dead.lane}")
            if ask is not None and (where[1] < ask.start or (ask.reason and ask.reason != word(dead.reason))):
                raise Violation(f"{event} for {ask}")
            if (ask is None or not ask.target) and dead.queue != target.id and ask is not None:
                raise Violation(f"{event}, which came from queue {dead.queue}")

    # --- queues

    def _purged(self, event: e.QueuePurged, _: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        if not isinstance(cause, m.Purge) or cause.queue != queue.name:
            raise Violation(f"{event} for {cause}")
        held = {where for group in queue.groups.values() for where in group.held}
        if held != set(wheres(event.kept)):
            raise Violation(f"{event}, but consumers hold {held}")
        furthest = max(queue.groups.values(), key=lambda group: group.length, default=None)
        count = furthest.length - len(furthest.held) if furthest is not None else 0
        if event.count != count + len(queue.delayed):
            raise Violation(f"{event}, but of {queue.length} messages {len(held)} are held")

    def _deleted(self, event: e.QueueDeleted, told: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        if queue.deleted_until_us:
            if event.until_us or told.time_us < queue.deleted_until_us:
                raise Violation(f"{event} before {queue.deleted_until_us}")
        elif not event.connection:
            expires_us = queue.settings.expires_ms * 1000
            if not expires_us or queue.has_consumers or told.time_us < queue.idle_since_us + expires_us:
                raise Violation(f"{event} at {told.time_us}, of a queue that is idle since {queue.idle_since_us}")
            if told.time_us < self.delayed.started_us + min(expires_us, COMING_BACK_US):
                raise Violation(f"{event} before consumers could come back")
        elif not isinstance(cause, m.Delete) or cause.queue != queue.name:
            raise Violation(f"{event} for {cause}")
        if event.count != queue.length + len(queue.delayed):
            raise Violation(f"{event} of {queue.length} messages, and {len(queue.delayed)} that are delayed")
        self.publish_rates.pop(("queue", event.queue), None)

    def _undeleted(self, event: e.QueueUndeleted, told: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        self.delayed.came_back(queue, told)
        if not isinstance(cause, m.Undelete) or (cause.name or cause.queue) != event.name:
            raise Violation(f"{event} for {cause}")
        if queue is not self.book.last_deleted(cause.queue) or event.name in self.book.names:
            raise Violation(f"{event}, which is not the last of that name, or takes the name of another")

    def _renamed(self, event: e.QueueRenamed, _: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        if not isinstance(cause, m.Rename) or (cause.queue, cause.name) != (queue.name, event.name):
            raise Violation(f"{event} for {cause}")
        if event.name in self.book.names:
            raise Violation(f"{event} takes the name of another")

    def _bound(self, event: e.Bound | e.Unbound, _: Told, cause: m.Command | None) -> None:
        queue = self.book.queues[event.queue]
        asked = m.Bind if isinstance(event, e.Bound) else m.Unbind
        if not isinstance(cause, asked) or (cause.queue, cause.pattern) != (queue.name, event.pattern):
            raise Violation(f"{event} for {cause}")


def _delays_too_much(queue: Queue, count: int, size: int) -> bool:
    """Whether a queue that makes room for what comes could not make any for so many that are delayed."""
    settings = queue.settings
    too_many = len(queue.delayed) + count > settings.max_length or queue.delayed_bytes + size > settings.max_bytes
    return settings.overflow in TRIMMING and too_many


def delays_us(queue: Queue, failures: int, wished_ms: int | None) -> tuple[int, int]:
    """The shortest and the longest time for which a message waits that has failed so often."""
    if wished_ms is not None:
        return wished_ms * 1000, wished_ms * 1000
    settings = queue.settings
    delay_us = settings.retry_delay_ms * 1000
    if settings.retry_backoff is Backoff.EXPONENTIAL:
        longest_us = max(settings.retry_delay_max_ms * 1000, delay_us)
        delay_us = min(delay_us << (failures - 1), longest_us)
    return delay_us - delay_us * settings.retry_jitter_percent // 100, delay_us


def word(reason: int) -> str:
    """A reason as the protocol has it."""
    return DeadReason(reason).name.lower().replace("_", "-")


def ready_in(group: Group, start: int) -> Iterator[Where]:
    """What is ready from sequence `start` on, highest priority first."""
    for lane in group.lanes():
        yield from ((lane, sequence) for sequence in group.ready[lane] if sequence >= start)

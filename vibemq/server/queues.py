"""The administration of queues: they are declared, changed, renamed, bound, purged, deleted and brought back.

A queue that is deleted with a grace time loses its name and its consumers at once, and keeps the rest until that time
is over: then a second QueueDeleted, without a way back, removes it for good.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.errors import (
    ConfigError,
    DeclareConflict,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    RequestError,
    UnknownQueue,
)
from vibemq.projections.intervals import IntervalSet
from vibemq.projections.projector import Projector
from vibemq.projections.queue import Queue
from vibemq.server.deduplication import Deduplication
from vibemq.server.deliveries import Deliveries
from vibemq.server.effects import Answer
from vibemq.server.expiring import Expiring
from vibemq.server.groups import Groups
from vibemq.server.journal import Journal
from vibemq.server.limits import NAME_BYTES_MAX, Limits
from vibemq.server.queue_settings import (
    DEAD_LETTER_QUEUE,
    DEAD_LETTER_SUFFIX,
    REPLY_PREFIX,
    Class,
    Declaration,
    Difference,
    QueueDefaults,
    checked,
    differences,
    resolved,
    usual_dead_letter_queue,
)
from vibemq.server.subscription import Subscription

_NAMES_SHOWN = 5


class Queues:
    """Every queue by its name. Methods that take a client's `request` answer it through effects."""

    def __init__(
        self,
        journal: Journal,
        deliveries: Deliveries,
        groups: Groups,
        deduplication: Deduplication,
        limits: Limits,
        defaults: QueueDefaults,
        *,
        auto_create: bool,
    ) -> None:
        """Continue with the journal's state."""
        self._journal = journal
        self._state = journal.state
        self._deliveries = deliveries
        self._groups = groups
        self._deduplication = deduplication
        self._limits = limits
        self._defaults = defaults
        self._auto_create = auto_create
        self._expiring = Expiring(journal)
        self._grace_ends_us: int | None = None
        self._watch_graces()

    # --- finding and making

    def require(self, name: str) -> Queue:
        """The queue of that name.

        Raises:
            UnknownQueue: there is none.
        """
        queue = self._state.queue_named(name)
        if queue is None:
            raise UnknownQueue(f"there is no queue {name!r}")
        return queue

    def named_or_new(self, name: str, connection: int) -> Queue:
        """The queue of that name, created with its defaults if need be.

        Raises:
            UnknownQueue: there is none, and none may be created on the way.
            RequestError: a name too long, or too many queues.
        """
        return self._state.queue_named(name) or self.create(self.to_create(name), connection)

    def to_create(self, name: str) -> Queue:
        """What `create` would make of that name for whoever uses it first, empty and with id 0. There is none yet.

        Raises:
            UnknownQueue: none may be created on the way.
            RequestError: a name too long, or too many queues.
        """
        if name.startswith(REPLY_PREFIX):
            raise UnknownQueue(f"there is no queue {name!r}: the requester is gone")
        if not self._auto_create:
            raise UnknownQueue(f"there is no queue {name!r}; declare it first (auto_create is off)")
        return self._would_be(name, self._defaults.of(name))

    def to_create_for_dead_letters(self, name: str) -> Queue:
        """The same, for dead letters: it may always be created, as nothing else keeps what is to go there.

        Raises:
            LimitExceeded: there are too many queues.
        """
        return self._would_be(name, self._defaults.of(name, base=DEAD_LETTER_QUEUE))

    def _would_be(self, name: str, settings: QueueSettings) -> Queue:
        self.check_count()
        _check_length(name, settings)
        return Queue(e.QueueDeclared(0, name, settings, 0), self._journal.now_us)

    def create(self, queue: Queue, connection: int) -> Queue:
        """Create a queue that is to be created."""
        return self._create(queue.name, queue.settings, connection)

    def settings_of(self, name: str) -> QueueSettings:
        """The settings of the queue of that name; if there is none, those that it would be created with."""
        queue = self._state.queue_named(name)
        return queue.settings if queue is not None else self._defaults.of(name)

    def _create(self, name: str, settings: QueueSettings, connection: int) -> Queue:
        self.check_count()
        _check_length(name, settings)
        number = self._state.topology.next_queue
        self._journal.record(e.QueueDeclared(number, name, settings, connection))
        self._expiring.watch(self._state.queues[number])
        return self._state.queues[number]

    def check_count(self, more: int = 1) -> None:
        """Whether there may be so many more queues.

        Raises:
            LimitExceeded: there would be too many.
        """
        count = len(self._state.topology.queues)
        if count + more > self._limits.queues:
            raise LimitExceeded(f"there are {count} queues, and the limit is {self._limits.queues}")

    # --- declaring and changing

    def declare(
        self, connection: int, request: int, name: str, wanted: Mapping[str, object], on_difference: str = "fail"
    ) -> None:
        """Create a queue; or compare the one that is there with what is said of it, and change it where that is wanted.

        Raises:
            DeclareConflict: it differs in what may not differ.
            RequestError: settings that make no sense, or a limit.
        """
        given = checked(wanted, self._limits)
        queue = self._state.queue_named(name)
        found: list[Difference] = []
        if queue is None:
            queue = self._create(name, self._defaults.of(name, given), connection)
        else:
            found = differences(queue.settings, given)
            # What is declared for another mode need not fit this one.
            is_hard = any(one["class"] == Class.HARD for one in found)
            settings = queue.settings if is_hard else _changed(queue, given)
            conflict = _conflict(name, found, on_difference)
            if conflict is not None:
                raise conflict
            if on_difference == "override":
                self._change(queue, settings, connection)
        self._answer(connection, request, {**self.describe(queue), "differences": found})

    def change(self, connection: int, request: int, name: str, wanted: Mapping[str, object]) -> None:
        """Give a queue other settings; those that are not named stay.

        Raises:
            UnknownQueue: there is none of that name.
            DeclareConflict: a setting that cannot be changed.
            InvalidRequest: settings that make no sense.
        """
        queue = self.require(name)
        given = checked(wanted, self._limits)
        conflict = _conflict(name, differences(queue.settings, given), "override")
        if conflict is not None:
            raise conflict
        self._change(queue, _changed(queue, given), connection)
        self._answer(connection, request, self.describe(queue))

    def _change(self, queue: Queue, settings: QueueSettings, connection: int) -> None:
        if settings == queue.settings:
            return
        _check_length(queue.name, settings)
        self._journal.record(e.QueueChanged(queue.id, settings, connection))
        self._deliveries.changed_settings(queue)
        self._groups.watch_idle(queue)
        self._deduplication.watch(queue.id)
        self._expiring.watch(queue)

    def rename(self, connection: int, request: int, name: str, new_name: str) -> None:
        """Give a queue another name. Dead letters go where they went before: its own, and those that came to it.

        Raises:
            UnknownQueue: there is none of that name.
            DeclareConflict: the new name is taken.
            RequestError: the new name does not go with the settings.
        """
        queue = self.require(name)
        if new_name in self._state.topology.queues:
            raise DeclareConflict(f"queue {name!r} cannot be renamed: there is a queue {new_name!r}")
        settings = self._settings_under(new_name, queue)
        source = self._source_of(name)
        self._journal.record(e.QueueRenamed(queue.id, new_name, connection))
        self._change(queue, settings, connection)
        if source is not None:
            self._change(source, _changed(source, {"dead_letter_queue": new_name}), connection)
        self._answer(connection, request, self.describe(queue))

    def _settings_under(self, new_name: str, queue: Queue) -> QueueSettings:
        """What a queue has under another name: its dead-letter queue is named where it was the usual one."""
        present = msgspec.structs.asdict(queue.settings)
        usual = usual_dead_letter_queue(queue.name)
        if not queue.settings.dead_letter_queue and usual != new_name and usual in self._state.topology.queues:
            present["dead_letter_queue"] = usual
        settings = resolved(new_name, present, {"dead_letter_queue": present["dead_letter_queue"]})
        _check_length(new_name, settings)
        return settings

    def _source_of(self, name: str) -> Queue | None:
        """The queue of which this one, by its name alone, is the dead-letter queue."""
        if not name.endswith(DEAD_LETTER_SUFFIX):
            return None
        source = self._state.queue_named(name.removesuffix(DEAD_LETTER_SUFFIX))
        return source if source is not None and not source.settings.dead_letter_queue else None

    # --- looking

    def list_all(self, connection: int, request: int) -> None:
        """Answer with all queues, by name."""
        found = [self.describe(queue) for queue in self._by_name()]
        self._journal.effects.append(Answer(0, connection, request, found))

    def list_deleted(self, connection: int, request: int) -> None:
        """Answer with the queues that can be brought back, the one that was deleted first in front."""
        found = [
            self.describe(self._state.queues[number]) | {"name": name, "until_us": until_us}
            for number, (name, until_us) in self._state.topology.deleted.items()
        ]
        self._journal.effects.append(Answer(0, connection, request, found))

    def show(self, connection: int, request: int, name: str) -> None:
        """Answer with one queue.

        Raises:
            UnknownQueue: there is none of that name.
        """
        self._journal.effects.append(Answer(0, connection, request, self.describe(self.require(name))))

    def describe(self, queue: Queue) -> dict[str, Any]:
        """What people want to know of a queue, as plain values. Its counts are those of the group furthest behind."""
        settings: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(queue.settings))
        group = queue.behind
        ready, unacked, waiting = (
            (group.ready(queue.next), group.unacked, group.waiting_count) if group is not None else (0, 0, 0)
        )
        found = {
            "name": queue.name,
            "mode": settings.pop("mode"),
            "ready": ready,
            "unacked": unacked,
            "waiting": waiting,
            "messages": ready + unacked + waiting,
            "delayed": queue.delayed.count,
            "bytes": queue.bytes,
            "consumers": self._deliveries.consumers(queue.id),
            "next_sequence": 1 + sum(sequence - 1 for sequence in queue.next.values()),
            "dead_letters": queue.id in self._state.dead,
        }
        if queue.settings.mode.has_groups:
            found["groups"] = self._describe_groups(queue)
        return {**found, "settings": settings}

    def _describe_groups(self, queue: Queue) -> list[dict[str, Any]]:
        return [
            {
                "name": group.name,
                "ready": group.ready(queue.next),
                "unacked": group.unacked,
                "waiting": group.waiting_count,
                "messages": group.length(queue.next),
                "consumers": self._deliveries.consumers(queue.id, group.id),
            }
            for group in sorted(queue.groups.values(), key=lambda group: group.name)
        ]

    # --- emptying and deleting

    def purge(self, connection: int, request: int, name: str) -> None:
        """Throw away what is ready, waiting or delayed, in every group; what consumers hold stays theirs.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require(name)
        group = queue.behind
        count = group.length(queue.next) - group.unacked if group is not None else 0
        size = max(0, queue.bytes - group.unacked_bytes) if group is not None else 0
        count += queue.delayed.count
        self._journal.record(e.QueuePurged(queue.id, count, size, connection, _held(queue)))
        self._deliveries.purged(queue)
        self._answer(connection, request, {"count": count})

    def delete(self, connection: int, request: int, name: str, grace_ms: int | None = None) -> list[Subscription]:
        """Delete a queue and everything in it. The subscriptions that ended by that.

        For `grace_ms`, or the queue's own such time, it can be brought back.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queue = self.require(name)
        ended = [one for group in list(queue.groups) for one in self._deliveries.end(queue, group)]
        count = queue.filled
        until_us = self._delete(queue, connection, queue.settings.delete_grace_ms if grace_ms is None else grace_ms)
        self._deliveries.tell_ended(ended, UnknownQueue(f"queue {name!r} was deleted"))
        self._answer(connection, request, {"count": count, "until_us": until_us})
        return ended

    def _delete(self, queue: Queue, connection: int, grace_ms: int) -> int:
        """Delete a queue that has no consumers any more. Until when it can be brought back; 0: it cannot."""
        until_us = self._journal.now_us + grace_ms * 1000 if grace_ms else 0
        self._journal.record(e.QueueDeleted(queue.id, queue.filled, queue.filled_bytes, connection, until_us))
        self._deliveries.queue_gone(queue)
        deleted = list(self._state.topology.deleted)
        for number in deleted[: max(0, len(deleted) - self._limits.deleted_queues)]:
            self._remove(number)
        self._watch_graces()
        return until_us

    def _remove(self, number: int) -> None:
        """Nobody can bring this queue back any more."""
        queue = self._state.queues[number]
        self._journal.record(e.QueueDeleted(number, queue.filled, queue.filled_bytes, 0))

    def undelete(self, connection: int, request: int, name: str, new_name: str = "") -> Queue:
        """Bring a deleted queue back, the last one of that name, and return it; as `new_name` if that is not empty.

        Raises:
            UnknownQueue: there is none of that name that could come back.
            DeclareConflict: the name is taken.
            RequestError: the new name does not go with the settings, or there are too many queues.
        """
        queue = self._deleted(name)
        wanted = new_name or name
        if wanted in self._state.topology.queues:
            raise DeclareConflict(
                f"queue {name!r} cannot come back as {wanted!r}, there is a queue of that name: choose another"
            )
        self.check_count()
        settings = self._settings_under(wanted, queue) if wanted != queue.name else queue.settings
        self._journal.record(e.QueueUndeleted(queue.id, wanted, connection))
        self._deliveries.came_back(queue)
        self._groups.watch_idle(queue)
        self._expiring.watch(queue)
        self._change(queue, settings, connection)
        self._watch_graces()
        self._answer(connection, request, self.describe(queue))
        return queue

    def _deleted(self, name: str) -> Queue:
        deleted = self._state.topology.deleted
        for number in reversed(deleted):
            if deleted[number][0] == name:
                return self._state.queues[number]
        others = ", ".join(repr(other) for other, _ in list(deleted.values())[-_NAMES_SHOWN:]) or "none"
        raise UnknownQueue(f"there is no deleted queue {name!r} to bring back; the last that there are: {others}")

    # --- topics

    def bind(self, connection: int, request: int, name: str, pattern: str) -> None:
        """Let a queue have what is published to topics that match `pattern`. Answers how many bindings that made.

        Raises:
            UnknownQueue: there is none of that name.
            LimitExceeded: there are too many bindings.
        """
        queue = self.require(name)
        self._answer(connection, request, {"count": int(self._bind(queue, pattern, connection))})

    def _bind(self, queue: Queue, pattern: str, connection: int) -> bool:
        if pattern in queue.patterns:
            return False
        count = self._state.bindings.count
        if count >= self._limits.bindings:
            raise LimitExceeded(f"there are {count} bindings, which is the limit")
        _check_bound(queue.name, len(queue.patterns) + 1, self._limits)
        self._journal.record(e.Bound(queue.id, pattern, connection))
        return True

    def unbind(self, connection: int, request: int, name: str, pattern: str) -> None:
        """Take a binding back. Answers how many there were: 1 or 0.

        Raises:
            UnknownQueue: there is no queue of that name.
        """
        queue = self.require(name)
        bound = pattern in queue.patterns
        if bound:
            self._journal.record(e.Unbound(queue.id, pattern, connection))
        self._answer(connection, request, {"count": int(bound)})

    def list_bindings(self, connection: int, request: int, name: str | None) -> None:
        """Answer with the bindings of a queue, or of all that are there, by queue and pattern.

        Raises:
            UnknownQueue: there is none of that name.
        """
        queues = [self.require(name)] if name is not None else self._by_name()
        found = [{"queue": queue.name, "pattern": pattern} for queue in queues for pattern in sorted(queue.patterns)]
        self._journal.effects.append(Answer(0, connection, request, found))

    def _by_name(self) -> list[Queue]:
        return [self._state.queues[number] for _, number in sorted(self._state.topology.queues.items())]

    # --- what the configuration wants, and time

    def declare_all(self, declarations: Mapping[str, Declaration]) -> None:
        """Make the queues of the configuration what it says. It went through `check_declarations`."""
        for name, wanted in declarations.items():
            queue = self._state.queue_named(name)
            if queue is None:
                queue = self._create(name, self._defaults.of(name, wanted.settings), 0)
            else:
                self._change(queue, _changed(queue, wanted.settings), 0)
            for pattern in wanted.bind:
                self._bind(queue, pattern, 0)

    def start(self) -> None:
        """The broker starts."""
        self._expiring.start()

    def tick(self) -> list[int]:
        """Delete the queues that have been without consumers for too long, and remove those whose grace time is over.

        The numbers of the former.
        """
        ended = []
        while (queue := self._expiring.next()) is not None:
            self._delete(queue, 0, queue.settings.delete_grace_ms)
            ended.append(queue.id)
        if self._grace_ends_us is not None and self._grace_ends_us <= self._journal.now_us:
            self._end_graces()
        return ended

    def _end_graces(self) -> None:
        for number, (_, until_us) in list(self._state.topology.deleted.items()):
            if until_us <= self._journal.now_us:
                self._remove(number)
        self._watch_graces()

    def _watch_graces(self) -> None:
        ends = (until_us for _, until_us in self._state.topology.deleted.values())
        self._grace_ends_us = min(ends, default=None)

    def next_due_us(self) -> int | None:
        """When `tick` has something to do next."""
        times = (self._grace_ends_us, self._expiring.next_due_us())
        return min((time_us for time_us in times if time_us is not None), default=None)

    def _answer(self, connection: int, request: int, result: dict[str, Any]) -> None:
        self._journal.effects.append(Answer(self._journal.next_offset, connection, request, result))


def check_declarations(
    state: Projector, declarations: Mapping[str, Declaration], defaults: QueueDefaults, limits: Limits
) -> None:
    """Whether the queues of a state can become what a configuration wants of them.

    Raises:
        ConfigError: one cannot; the text says which, and why.
    """
    queues, bindings = len(state.topology.queues), state.bindings.count
    for name, wanted in declarations.items():
        queue = state.queue_named(name)
        queues += queue is None
        bound = queue.patterns if queue is not None else ()
        missing = len({*wanted.bind}.difference(bound))
        bindings += missing
        try:
            if queue is None:
                settings = defaults.of(name, wanted.settings)
            else:
                conflict = _conflict(name, differences(queue.settings, wanted.settings), "override")
                if conflict is not None:
                    raise conflict
                settings = _changed(queue, wanted.settings)
            _check_length(name, settings)
            if missing:
                _check_bound(name, len(bound) + missing, limits)
        except RequestError as error:
            raise ConfigError(f"the configuration cannot be carried out: {error.text}") from None
    for count, limit, what in ((queues, limits.queues, "queues"), (bindings, limits.bindings, "bindings")):
        if count > limit and declarations:
            raise ConfigError(f"with those of the configuration there are {count} {what}: the limit is {limit}")


def _check_bound(name: str, count: int, limits: Limits) -> None:
    if name.startswith(REPLY_PREFIX):
        raise InvalidRequest(f"queue {name!r} is for replies, and cannot be bound to topics")
    if count > limits.bindings_per_queue:
        limit = limits.bindings_per_queue
        raise LimitExceeded(f"queue {name!r} would have {count} bindings: the limit of one queue is {limit}")


def _changed(queue: Queue, given: Mapping[str, Any]) -> QueueSettings:
    return resolved(queue.name, msgspec.structs.asdict(queue.settings), given)


def _conflict(name: str, found: list[Difference], on_difference: str) -> DeclareConflict | None:
    """Why a queue cannot be declared so, where it differs in this."""
    if on_difference == "ignore":
        return None
    hard = [one for one in found if one["class"] == Class.HARD]
    soft = [one for one in found if one["class"] == Class.SOFT] if on_difference == "fail" else []
    if not hard and not soft:
        return None
    what = ", ".join(
        f"{one['setting']} is {_shown(one['live'])}, not {_shown(one['declared'])}" for one in [*hard, *soft]
    )
    if hard:
        names = " and ".join(one["setting"] for one in hard)
        advice = f"{names} cannot be changed while there is a queue {name!r}: use another one, or delete it"
    else:
        advice = "declare it so that it is overridden, or ignored, if that is wanted"
    return DeclareConflict(f"queue {name!r} exists with other settings: {what}; {advice}")


def _shown(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else repr(value)


def _check_length(name: str, settings: QueueSettings) -> None:
    room = NAME_BYTES_MAX - len(DEAD_LETTER_SUFFIX)
    if not settings.dead_letter_queue and len(usual_dead_letter_queue(name).encode()) > NAME_BYTES_MAX:
        raise InvalidName(
            f"the name of a queue may have {room} bytes, which leaves room for {DEAD_LETTER_SUFFIX} behind it; "
            f"a longer one needs a dead_letter_queue of its own"
        )


def _held(queue: Queue) -> e.Spans:
    """What consumers hold of a queue, in any group."""
    lanes: dict[int, IntervalSet] = {}
    for group in queue.groups.values():
        for held in group.held.values():
            for number, sequences in held.items():
                for start, end in sequences:
                    lanes.setdefault(number, IntervalSet()).add(start, end)
    return tuple((number, start, end) for number in sorted(lanes) for start, end in lanes[number])

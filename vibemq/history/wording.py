"""The facts of an event in words. Payloads are never among them."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from vibemq import events as e
from vibemq.declaration import QueueSettings, ScheduleSpec
from vibemq.history.names import Names
from vibemq.history.printable import plain
from vibemq.history.times import rfc3339
from vibemq.history.waiting import changed, due_of

_SHOWN: Final = 8
"""Of a long list so many are shown, and how many there are more."""
_RELEASED: Final = {
    e.ReleaseReason.NACKED: "nacked",
    e.ReleaseReason.LEASE_EXPIRED: "the lease expired",
    e.ReleaseReason.CONSUMER_LOST: "the consumer was lost",
    e.ReleaseReason.UNSUBSCRIBED: "the consumer left",
}
_DEAD: Final = {
    e.DeadReason.MAX_ATTEMPTS: "too many failed attempts",
    e.DeadReason.REJECTED: "rejected",
    e.DeadReason.EXPIRED: "expired",
    e.DeadReason.OVERFLOW: "the queue was full",
    e.DeadReason.UNROUTABLE: "unroutable",
}


def facts(event: e.Event) -> dict[str, Any]:
    """The fields of an event by name, as JSON can hold them: seals and hashes in hexadecimal, reasons by name.

    The parts of a transaction are shown like events. Of what a schedule publishes only the length is told.
    """
    found: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(event).items():
        if isinstance(value, bytes):
            found[name] = value.hex()
        elif isinstance(value, e.ReleaseReason | e.DeadReason):
            found[name] = value.name.lower().replace("_", "-")
        elif isinstance(value, QueueSettings):
            found[name] = msgspec.to_builtins(msgspec.structs.asdict(value))
        elif isinstance(value, ScheduleSpec):
            shown = {key: one for key, one in msgspec.structs.asdict(value).items() if key not in {"body", "headers"}}
            found[name] = msgspec.to_builtins(shown | {"body_bytes": len(value.body)})
        elif isinstance(event, e.TransactionCommitted) and isinstance(value, tuple):
            found[name] = [facts(one) if isinstance(one, e.Event) else one for one in value]
        else:
            found[name] = value
    return found


def words(offset: int, event: e.Event, names: Names) -> str:
    """What happened, in one line. Text that came from outside cannot break the line or reach the terminal."""
    match event:
        case e.Published():
            return _published(offset, event)
        case e.Routed():
            return _routed(offset, event, names)
        case e.TransactionCommitted():
            return _committed(offset, event, names)
        case e.Fired():
            return _fired(offset, event, names)
        case _:
            pass
    say = _SAY.get(type(event))
    if say is not None:
        return say(event, names)
    return " ".join(f"{name}={plain(str(value))}" for name, value in facts(event).items())


# --- messages come


def _published(offset: int, event: e.Published, index: int = 0) -> str:
    said = [_came(event.lane, event.sequence, event), _batch(offset, event, index)] if event.count else []
    there = ", ".join(f"{record}-{place}" for _, record, place in event.duplicates[:_SHOWN])
    more = f" and {len(event.duplicates) - _SHOWN} others" if len(event.duplicates) > _SHOWN else ""
    reasons = ((event.dropped, "the queue was full"), (len(event.duplicates), f"there already as {there}{more}"))
    for count, why in reasons:
        if count:
            said.append(f"{f'{count} more' if said else _counted(count, 'message')} not stored: {why}")
    return ", ".join(said)


def _routed(offset: int, event: e.Routed, names: Names, index: int = 0) -> str:
    to = _targets(event, names) or "nobody, as the queues that are bound to it were full"
    why = ", as no queue is bound to it" if event.unroutable else ""
    return f"topic {plain(event.topic)}, {_batch(offset, event, index)}, to {to}{why}"


def _targets(event: e.Routed | e.Fired, names: Names) -> str:
    return ", ".join(
        f"{plain(names.queue(queue))} ({_came(lane, first, event)})" for queue, lane, first in event.targets
    )


def _came(lane: int, first: int, event: e.Published | e.Routed | e.Fired) -> str:
    """Which messages of a queue they became, or when they will."""
    if isinstance(event, e.Fired) or not event.due_us:
        return _run(lane, first, event.count)
    return f"{_counted(event.count, 'message')} due at {rfc3339(event.due_us)}"


def _batch(offset: int, event: e.Published | e.Routed | e.Fired, index: int = 0) -> str:
    """The ids of a batch, its bytes, and what its header says."""
    ids = _ids([(offset, index, event.count)])
    return f"{ids}, {event.bytes} bytes" + (", with a time to live" if event.timed else "")


def _ids(runs: Sequence[tuple[int, int, int]]) -> str:
    """`id 5-0 to 5-2, 8-1`."""
    shown = ", ".join(
        f"{offset}-{index}" + (f" to {offset}-{index + count - 1}" if count > 1 else "")
        for offset, index, count in runs[:_SHOWN]
    )
    more = f" and {len(runs) - _SHOWN} more ranges" if len(runs) > _SHOWN else ""
    return f"id {shown}{more}"


def _committed(offset: int, event: e.TransactionCommitted, names: Names) -> str:
    said, index = list[str](), 0
    for published in event.published:
        said.append(f"{plain(names.queue(published.queue))} ({_published(offset, published, index)})")
        index += published.count
    for routed in event.routed:
        said.append(_routed(offset, routed, names, index))
        index += routed.count
    for acked in event.acked:
        what = f"{_of(acked, names)} of {plain(names.queue(acked.queue))}"
        said.append(f"acked {what} by subscription {acked.subscription}")
    more = f"; and {len(said) - _SHOWN} more parts" if len(said) > _SHOWN else ""
    return f"epoch {event.epoch}: {'; '.join(said[:_SHOWN])}{more}"


# --- messages wait for their time


def _matured(event: e.Matured, _: Names) -> str:
    return f"{_run(event.lane, event.sequence, event.count)}, {_ids(event.refs)}, due now"


def _rescheduled(event: e.Rescheduled, _: Names) -> str:
    runs = list(changed(event.before, event.after))
    times = sorted({due_of(event.after, offset, index) for offset, index, _ in runs})
    return f"{_ids(runs)}: now due at {', '.join(map(rfc3339, times[:_SHOWN]))}"


def _cancelled(event: e.Cancelled, _: Names) -> str:
    runs = list(changed(event.before, event.after))
    return f"{_counted(sum(count for _, _, count in runs), 'message')}, {_ids(runs)}"


# --- schedules


def _schedule_set(event: e.ScheduleSet, _: Names) -> str:
    spec = event.spec
    times = f"at {plain(spec.cron)!r} in {plain(spec.zone)}" if spec.cron else f"every {spec.every_ms} ms"
    to = f"to {'topic ' if spec.to_topic else ''}{plain(spec.queue)}"
    return f"schedule {plain(event.name)} {times}, {len(spec.body)} bytes {to}; {_next(event.next_us)}"


def _schedule_paused(event: e.SchedulePaused, names: Names) -> str:
    what = "paused" if event.paused else f"goes on; {_next(event.next_us)}"
    return f"schedule {plain(names.schedule(event.schedule))} {what}"


def _schedule_deleted(event: e.ScheduleDeleted, names: Names) -> str:
    end = "" if event.connection else ", which had come to its end"
    return f"schedule {plain(names.schedule(event.schedule))}{end}"


def _fired(offset: int, event: e.Fired, names: Names) -> str:
    what = f"schedule {plain(names.schedule(event.schedule))} for {rfc3339(event.due_us)}"
    to = _targets(event, names) or "nobody, as the queues that are bound to it were full"
    missed = f"; {_counted(event.missed, 'time')} before left out" if event.missed else ""
    return f"{what}, {_batch(offset, event)}, to {to}{missed}; {_next(event.next_us)}"


def _misfired(event: e.Misfired, names: Names) -> str:
    what = f"schedule {plain(names.schedule(event.schedule))}: {_counted(event.missed, 'time')} left out"
    return f"{what}, {plain(event.reason)}; {_next(event.next_us)}"


def _next(next_us: int) -> str:
    return f"next at {rfc3339(next_us)}" if next_us else "no next time"


# --- messages leave


def _dead_lettered(event: e.DeadLettered, names: Names) -> str:
    to = "nowhere"
    if event.dead_queue:
        run = _run(e.DEFAULT_LANE, event.dead_sequence, event.count)
        to = f"{plain(names.queue(event.dead_queue))}, {run}"
    failed = _counted(event.attempts, "failed attempt")
    return f"{_of(event, names)}: {_because(_DEAD[event.reason], event.error)}; {failed}; to {to}"


def _redriven(event: e.Redriven, names: Names) -> str:
    to = f"{plain(names.queue(event.target))}, {_run(event.lane, event.sequence, event.count)}"
    return f"{_spans(event.spans)}: {_counted(event.attempts, 'failed attempt')} forgiven; back to {to}"


# --- messages go to consumers


def _released(event: e.Released, names: Names) -> str:
    ready = f"ready at {rfc3339(event.not_before_us)}" if event.not_before_us else "ready again"
    counted = "counts as an attempt" if event.counted else "does not count"
    return f"{_of(event, names)}: {_because(_RELEASED[event.reason], event.error)}; {counted}; {ready}"


def _delivered(event: e.Delivered, names: Names) -> str:
    until = f", lease until {rfc3339(event.lease_until_us)}" if event.lease_until_us else ""
    return f"{_of(event, names)} to subscription {event.subscription}{until}"


def _extended(event: e.LeaseExtended, names: Names) -> str:
    return f"{_of(event, names)} of subscription {event.subscription}, until {rfc3339(event.lease_until_us)}"


# --- queues and groups


def _deleted(event: e.QueueDeleted, _: Names) -> str:
    size = f"{_counted(event.count, 'message')}, {event.bytes} bytes"
    return f"{size}; can be brought back until {rfc3339(event.until_us)}" if event.until_us else f"{size} gone"


def _undeleted(event: e.QueueUndeleted, names: Names) -> str:
    former = names.former(event.queue)
    return "is back" if former in {None, event.name} else f"is back; it was called {plain(former or '')}"


def _created(event: e.GroupCreated, names: Names) -> str:
    life = "; it goes soon after its consumers" if event.ephemeral else ""
    return f"{_group(event, names)}, from message {event.sequence} on{life}"


def _group_deleted(event: e.GroupDeleted, names: Names) -> str:
    return _group(event, names) + ("" if event.connection else ", which had no consumers for too long")


_Say: TypeAlias = Callable[[Any, Names], str]
_SAY: Final[dict[type[e.Event], _Say]] = {
    e.BrokerStarted: lambda event, _: f"version {plain(event.version)}, after {'a' if event.clean else 'no'} clean end",
    e.BrokerStopped: lambda event, _: plain(event.reason),
    e.ClientConnected: lambda event, _: f"connection {event.connection}, {plain(event.codec)}",
    e.ClientRefused: lambda event, _: (
        f"{_counted(event.count, 'connection')} from {plain(event.address)}: {plain(event.reason)}"
    ),
    e.ClientDisconnected: lambda event, _: f"connection {event.connection}: {plain(event.reason) or 'goodbye'}",
    e.QueueDeclared: lambda event, _: _settings(event.settings),
    e.QueueChanged: lambda event, _: f"now {_settings(event.settings)}",
    e.QueueRenamed: lambda event, names: f"it was called {plain(names.former(event.queue) or '')}",
    e.QueueDeleted: _deleted,
    e.QueueUndeleted: _undeleted,
    e.QueuePurged: lambda event, _: f"{_counted(event.count, 'message')} gone, {event.bytes} bytes",
    e.GroupCreated: _created,
    e.GroupDeleted: _group_deleted,
    e.GroupSought: lambda event, names: f"{_group(event, names)} goes on from message {event.sequence}",
    e.Bound: lambda event, _: f"to {plain(event.pattern)}",
    e.Unbound: lambda event, _: f"from {plain(event.pattern)}",
    e.DedupForgotten: lambda event, _: f"dedup ids that came before record {event.below}",
    e.ProducersForgotten: lambda event, _: _counted(len(event.producers), "producer"),
    e.Subscribed: lambda event, names: f"subscription {event.subscription}{_in(event, names)}",
    e.Unsubscribed: lambda event, names: f"subscription {event.subscription}{_in(event, names)}",
    e.Matured: _matured,
    e.Rescheduled: _rescheduled,
    e.Cancelled: _cancelled,
    e.DedupForgotten: lambda event, _: f"dedup ids of what came before record {event.below}",
    e.ScheduleSet: _schedule_set,
    e.SchedulePaused: _schedule_paused,
    e.ScheduleDeleted: _schedule_deleted,
    e.Misfired: _misfired,
    e.Delivered: _delivered,
    e.Acked: lambda event, names: f"{_of(event, names)} by subscription {event.subscription}",
    e.LeaseExtended: _extended,
    e.Released: _released,
    e.MadeReady: lambda event, names: f"{_of(event, names)}, due now",
    e.Dropped: lambda event, names: f"{_of(event, names)}: {_DEAD[event.reason]}; thrown away",
    e.DeadLettered: _dead_lettered,
    e.Redriven: _redriven,
    e.SegmentSealed: lambda event, _: f"records {event.base} to {event.end - 1}: {event.seal.hex()}",
}
"""What is said of each kind of event; of any other its facts are shown as they are."""


def _group(event: e.Event, names: Names) -> str:
    return f"group {plain(names.group(event) or '')}"


def _in(event: e.Event, names: Names) -> str:
    """In which group, where there are several."""
    return "" if names.group(event) is None else f" in {_group(event, names)}"


def _of(event: Any, names: Names) -> str:  # noqa: ANN401 - any event with spans
    """Which messages, and in which group."""
    return _spans(event.spans) + _in(event, names)


def _because(reason: str, error: str) -> str:
    return f"{reason}, {plain(error)!r}" if error and error != reason else reason


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _run(lane: int, first: int, count: int) -> str:
    return _spans(((lane, first, first + count),))


def _spans(spans: e.Spans) -> str:
    """`message 7`, `messages 1-5, 9`; with their priority, which is their lane, where it is not the usual one."""
    single = len(spans) == 1 and spans[0][2] - spans[0][1] == 1
    shown = ", ".join(_span(*span) for span in spans[:_SHOWN])
    more = f" and {len(spans) - _SHOWN} more ranges" if len(spans) > _SHOWN else ""
    return f"message{'' if single else 's'} {shown}{more}"


def _span(lane: int, first: int, end: int) -> str:
    numbers = str(first) if end - first == 1 else f"{first}-{end - 1}"
    return numbers if lane == e.DEFAULT_LANE else f"{numbers} of priority {lane}"


def _settings(settings: QueueSettings) -> str:
    """The mode, and what differs from the defaults."""
    default = msgspec.structs.asdict(QueueSettings(mode=settings.mode))
    changed = {key: value for key, value in msgspec.structs.asdict(settings).items() if value != default[key]}
    return ", ".join([settings.mode.value, *(f"{key}={plain(str(value))}" for key, value in changed.items())])

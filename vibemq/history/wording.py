"""The facts of an event in words. Payloads are never among them."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.history.names import Names
from vibemq.history.printable import plain
from vibemq.history.times import rfc3339

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
    """The fields of an event by name, as JSON can hold them: seals in hexadecimal, reasons by name."""
    found: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(event).items():
        if isinstance(value, bytes):
            found[name] = value.hex()
        elif isinstance(value, e.ReleaseReason | e.DeadReason):
            found[name] = value.name.lower().replace("_", "-")
        elif isinstance(value, QueueSettings):
            found[name] = msgspec.to_builtins(msgspec.structs.asdict(value))
        else:
            found[name] = value
    return found


def words(offset: int, event: e.Event, names: Names) -> str:
    """What happened, in one line. Text that came from outside cannot break the line or reach the terminal."""
    if isinstance(event, e.Published):
        return _published(offset, event)
    if isinstance(event, e.Routed):
        return _routed(offset, event, names)
    say = _SAY.get(type(event))
    if say is not None:
        return say(event, names)
    return " ".join(f"{name}={plain(str(value))}" for name, value in facts(event).items())


# --- messages come


def _published(offset: int, event: e.Published) -> str:
    if not event.count:
        return f"{_counted(event.dropped, 'message')} not stored: the queue was full"
    missing = f", {event.dropped} more not stored: the queue was full" if event.dropped else ""
    return f"{_run(event.lane, event.sequence, event.count)}, {_batch(offset, event)}{missing}"


def _routed(offset: int, event: e.Routed, names: Names) -> str:
    targets = [
        f"{plain(names.queue(queue))} ({_run(lane, first, event.count)})" for queue, lane, first in event.targets
    ]
    to = ", ".join(targets) or "nobody, as the queues that are bound to it were full"
    why = ", as no queue is bound to it" if event.unroutable else ""
    return f"topic {plain(event.topic)}, {_batch(offset, event)}, to {to}{why}"


def _batch(offset: int, event: e.Published | e.Routed) -> str:
    """The ids of a batch, its bytes, and what its header says."""
    ids = f"id {offset}-0" + (f" to {offset}-{event.count - 1}" if event.count > 1 else "")
    return f"{ids}, {event.bytes} bytes" + (", with a time to live" if event.timed else "")


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


# --- messages go


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
    shown = ", ".join(_span(*span) for span in spans[:8])
    more = f" and {len(spans) - 8} more ranges" if len(spans) > 8 else ""
    return f"message{'' if single else 's'} {shown}{more}"


def _span(lane: int, first: int, end: int) -> str:
    numbers = str(first) if end - first == 1 else f"{first}-{end - 1}"
    return numbers if lane == e.DEFAULT_LANE else f"{numbers} of priority {lane}"


def _settings(settings: QueueSettings) -> str:
    """The mode, and what differs from the defaults."""
    default = msgspec.structs.asdict(QueueSettings(mode=settings.mode))
    changed = {key: value for key, value in msgspec.structs.asdict(settings).items() if value != default[key]}
    return ", ".join([settings.mode.value, *(f"{key}={plain(str(value))}" for key, value in changed.items())])

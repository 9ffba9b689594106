"""The facts of an event in words. Payloads are never among them."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from vibemq import events as e
from vibemq.history.names import Names
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
        elif isinstance(value, e.QueueSettings):
            found[name] = msgspec.to_builtins(msgspec.structs.asdict(value))
        else:
            found[name] = value
    return found


def words(offset: int, event: e.Event, names: Names) -> str:
    """What happened, in one line. Text that came from outside cannot break the line or reach the terminal."""
    if isinstance(event, e.Published):
        return _published(offset, event)
    if isinstance(event, e.DeadLettered):
        return _dead_lettered(event, names)
    say = _SAY.get(type(event))
    if say is not None:
        return say(event)
    return " ".join(f"{name}={plain(str(value))}" for name, value in facts(event).items())


def _published(offset: int, event: e.Published) -> str:
    messages = _spans(((event.lane, event.sequence, event.sequence + event.count),))
    ids = f"id {offset}-0" + (f" to {offset}-{event.count - 1}" if event.count > 1 else "")
    return f"{messages}, {ids}, {event.bytes} bytes"


def _dead_lettered(event: e.DeadLettered, names: Names) -> str:
    to = "nowhere"
    if event.dead_queue:
        span = e.DEFAULT_LANE, event.dead_sequence, event.dead_sequence + event.count
        to = f"{plain(names.queue(event.dead_queue))}, {_spans((span,))}"
    failed = _counted(event.attempts, "failed attempt")
    return f"{_spans(event.spans)}: {_because(_DEAD[event.reason], event.error)}; {failed}; to {to}"


def _released(event: e.Released) -> str:
    ready = f"ready at {rfc3339(event.not_before_us)}" if event.not_before_us else "ready again"
    counted = "counts as an attempt" if event.counted else "does not count"
    return f"{_spans(event.spans)}: {_because(_RELEASED[event.reason], event.error)}; {counted}; {ready}"


def _delivered(event: e.Delivered) -> str:
    return f"{_spans(event.spans)} to subscription {event.subscription}, lease until {rfc3339(event.lease_until_us)}"


def _extended(event: e.LeaseExtended) -> str:
    return f"{_spans(event.spans)} of subscription {event.subscription}, until {rfc3339(event.lease_until_us)}"


_SAY: Final[dict[type[e.Event], Callable[[Any], str]]] = {
    e.BrokerStarted: lambda event: f"version {plain(event.version)}, after {'a' if event.clean else 'no'} clean end",
    e.BrokerStopped: lambda event: plain(event.reason),
    e.ClientConnected: lambda event: f"connection {event.connection}, {plain(event.codec)}",
    e.ClientRefused: lambda event: (
        f"{_counted(event.count, 'connection')} from {plain(event.address)}: {plain(event.reason)}"
    ),
    e.ClientDisconnected: lambda event: f"connection {event.connection}: {plain(event.reason) or 'goodbye'}",
    e.QueueDeclared: lambda event: _settings(event.settings),
    e.QueueDeleted: lambda event: f"{_counted(event.count, 'message')} gone, {event.bytes} bytes",
    e.QueuePurged: lambda event: f"{_counted(event.count, 'message')} gone, {event.bytes} bytes",
    e.ProducersForgotten: lambda event: _counted(len(event.producers), "producer"),
    e.Subscribed: lambda event: f"subscription {event.subscription}",
    e.Unsubscribed: lambda event: f"subscription {event.subscription}",
    e.Delivered: _delivered,
    e.Acked: lambda event: f"{_spans(event.spans)} by subscription {event.subscription}",
    e.LeaseExtended: _extended,
    e.Released: _released,
    e.MadeReady: lambda event: f"{_spans(event.spans)}, due now",
    e.SegmentSealed: lambda event: f"records {event.base} to {event.end - 1}: {event.seal.hex()}",
}
"""What is said of each kind of event; of any other its facts are shown as they are."""


def _because(reason: str, error: str) -> str:
    return f"{reason}, {plain(error)!r}" if error and error != reason else reason


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _spans(spans: e.Spans) -> str:
    """`message 7`, `messages 1-5, 9`; with the lane where it is not the usual one."""
    single = len(spans) == 1 and spans[0][2] - spans[0][1] == 1
    shown = ", ".join(_span(*span) for span in spans[:8])
    more = f" and {len(spans) - 8} more ranges" if len(spans) > 8 else ""
    return f"message{'' if single else 's'} {shown}{more}"


def _span(lane: int, first: int, end: int) -> str:
    numbers = str(first) if end - first == 1 else f"{first}-{end - 1}"
    return numbers if lane == e.DEFAULT_LANE else f"{numbers} of lane {lane}"


def _settings(settings: e.QueueSettings) -> str:
    """The mode, and what differs from the defaults."""
    default = msgspec.structs.asdict(e.QueueSettings())
    changed = {key: value for key, value in msgspec.structs.asdict(settings).items() if value != default[key]}
    return ", ".join([settings.mode.value, *(f"{key}={plain(str(value))}" for key, value in changed.items())])


def plain(text: str) -> str:
    """Text that is safe on a terminal and stays in its line: what cannot be printed is shown as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)

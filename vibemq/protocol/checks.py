"""What the types of fields cannot state, and how a request that breaks a rule is refused rather than the connection."""

import math
from typing import Final

import msgspec

from vibemq.batch import pack_headers
from vibemq.errors import InvalidRequest, MalformedFrame, RequestError
from vibemq.protocol import messages as m
from vibemq.protocol.fields import (
    HASH_BYTES,
    NUMBER_MAX,
    PRODUCER_MAX,
    RUNS_MAX,
    TEXT_MAX,
    RequestOrNone,
    check_name,
    check_pattern,
    check_topic,
)

REFUSAL_TEXT_MAX: Final = 300
"""Characters of a refusal. A decoder quotes what it was sent, which may be as long as a frame."""

BAD_INPUT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was asked for. Not all of it descends from its own error."""


class _Numbered(msgspec.Struct, frozen=True):
    """Only the number of a request, whatever else is in the map."""

    request: RequestOrNone | None = None


_json_numbered: Final = msgspec.json.Decoder(_Numbered)
_binary_numbered: Final = msgspec.msgpack.Decoder(_Numbered)


def refuse_json(line: bytes, problem: Exception) -> m.Refused:
    """The refusal of a line that is no request, with its number where it has one, else 0.

    Raises:
        MalformedFrame: the line is no JSON.
    """
    text = str(problem)[:REFUSAL_TEXT_MAX]
    try:
        # Half of a surrogate pair is JSON for most who write it, and none for msgspec: look at other letters there.
        whole = line.replace(b"\\ud", b"\\u0").replace(b"\\uD", b"\\u0")
        request = _json_numbered.decode(whole).request
    except msgspec.ValidationError:  # no object, or its request is no number
        request = None
    except BAD_INPUT:
        raise MalformedFrame(f"a line is no JSON: {text}") from None
    return m.Refused(request or 0, InvalidRequest(f"this is no request of the protocol: {text}"))


def refuse_control(body: memoryview, problem: Exception) -> m.Refused:
    """The refusal of a control frame that is no request.

    Raises:
        MalformedFrame: no number can be read from it: nobody would learn of the refusal.
    """
    text = str(problem)[:REFUSAL_TEXT_MAX]
    try:
        request = _binary_numbered.decode(body).request
    except BAD_INPUT:
        request = None
    if request is None:
        raise MalformedFrame(f"a control frame is no request of this protocol: {text}") from None
    return m.Refused(request, InvalidRequest(f"this is no request of the protocol: {text}"))


def check_deliveries(deliveries: tuple[tuple[int, int], ...]) -> None:
    """Check the runs of an Ack, Nack or Extend that came from either codec.

    Raises:
        InvalidRequest: none or too many, an empty or reversed run, or numbers out of range.
    """
    if not 0 < len(deliveries) <= RUNS_MAX:
        raise InvalidRequest(f"a request has 1 to {RUNS_MAX} runs of deliveries, not {len(deliveries)}: send several")
    for first, end in deliveries:
        if not 0 < first < end <= NUMBER_MAX:
            raise InvalidRequest(f"({first}, {end}) is no run of delivery numbers: 1 <= first < end <= {NUMBER_MAX}")


def check_extras(count: int, delay_ms: int, due_us: int, dedup: bytes) -> None:
    """Check what a publish of `count` messages says besides its batch, from either codec.

    Raises:
        InvalidRequest: a delay and a due time, numbers out of range, or hashes that are not one for each message.
    """
    if delay_ms and due_us:
        raise InvalidRequest("a publish has a delay_ms or a due_us, not both")
    if delay_ms > NUMBER_MAX or due_us > NUMBER_MAX:
        raise InvalidRequest(f"a delay_ms and a due_us are at most {NUMBER_MAX}")
    if dedup and len(dedup) != count * HASH_BYTES:
        raise InvalidRequest(
            f"{len(dedup) // HASH_BYTES} hashes of dedup ids are not one for each of {count} messages; "
            f"a message without an id has {HASH_BYTES} zeros"
        )


def check_commit(request: int, epoch: int, sequence: int, oldest: int, acks: tuple[m.TransactionAck, ...]) -> None:
    """Check a Commit that came from either codec, but for its publishes.

    Raises:
        InvalidRequest: numbers out of range, no runs, too many of them in all, or runs that are none.
    """
    if not request or epoch > NUMBER_MAX or sequence > NUMBER_MAX or oldest > sequence:
        raise InvalidRequest(
            f"a commit needs a request above 0, an epoch and a sequence of at most {NUMBER_MAX}, "
            f"and an oldest not above the sequence"
        )
    if sum(len(ack.deliveries) for ack in acks) > RUNS_MAX:
        raise InvalidRequest(f"a commit has at most {RUNS_MAX} runs of deliveries in all: use several transactions")
    for ack in acks:
        check_deliveries(ack.deliveries)


def checked(command: m.Command) -> m.Command | m.Refused:
    """The command, or its refusal when it breaks a rule that its types cannot state. A reason too long is cut."""
    try:
        _check(command)
    except RequestError as problem:
        return m.Refused(getattr(command, "request", 0), problem)
    if isinstance(command, m.Nack) and len(command.reason) > TEXT_MAX:
        return msgspec.structs.replace(command, reason=command.reason[:TEXT_MAX])
    return command


def _check(command: m.Command) -> None:
    _check_names(command)
    match command:
        case m.Ack() | m.Nack() | m.Extend():
            check_deliveries(command.deliveries)
        case m.Hello():
            if command.producer > PRODUCER_MAX:
                raise InvalidRequest(f"producer {command.producer} is above {PRODUCER_MAX}")
        case m.Declare() | m.Change():
            for name, value in command.settings.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise InvalidRequest(f"setting {name[:40]!r} is {value}, which is no number")
        case m.Reschedule():
            if command.delay_ms and command.due_us:
                raise InvalidRequest("a message waits for another delay_ms or until another due_us, not both")
        case m.SetSchedule():
            pack_headers(command.headers)
        case _:
            pass


def _check_names(command: m.Command) -> None:
    queue = getattr(command, "queue", None)
    if queue is not None:
        check_name(queue)
    match command:
        case (
            m.Subscribe(group=str(group)) | m.Peek(group=str(group)) | m.Seek(group=group) | m.DeleteGroup(group=group)
        ):
            check_name(group, "group")
        case m.Bind() | m.Unbind():
            check_pattern(command.pattern)
        case m.Rename():
            check_name(command.name)
        case m.Undelete(name=name) | m.Redrive(target=name) if name:
            check_name(name)
        case m.SetSchedule():
            check_name(command.name, "schedule")
            if command.to_topic:
                check_topic(command.queue)
        case _:
            pass

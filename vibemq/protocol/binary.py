"""The binary codec: frames to values and back.

What is frequent has a fixed layout, little-endian, given beside each Struct below; all else is a CONTROL frame whose
body is a MessagePack map with its `type`. Strings are UTF-8.
"""

import struct
from typing import Final

import msgspec

from vibemq.batch import Batch
from vibemq.errors import FrameTooLong, InvalidName, InvalidRequest, MalformedFrame, RequestError, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.checks import BAD_INPUT, REFUSAL_TEXT_MAX, check_deliveries, checked, refuse_control
from vibemq.protocol.fields import CONTROL_BYTES_MAX, NUMBER_MAX, RUNS_MAX, check_name, check_topic
from vibemq.protocol.frames import HEAD, Frame, Kind

PUBLISH: Final = struct.Struct("<IQQB")
"""request u32, producer sequence u64, oldest u64, length of the queue's name u8; then the name, then the batch.
Flag TO_TOPIC (1): the name is that of a topic."""
CONFIRMED: Final = struct.Struct("<IQQ")
"""request u32, record offset u64, sequence of the first message u64. Flag 1: duplicate.
Flag DROPPED (2): DROPS follows."""
DROPS: Final = struct.Struct("<I")
"""How many messages at the end of the batch were not stored, u32. It is there only when there are any: rarely."""
DELIVER: Final = struct.Struct("<QQQQQIHH")
"""subscription, delivery, sequence, offset, time_us u64 each, index u32, attempt u16, zero u16; then a batch.
Flag 1: redelivered."""
ACK: Final = struct.Struct("<IQ")
"""request u32, subscription u64; then runs of two u64, first and end."""
CREDIT: Final = struct.Struct("<QIIQi")
"""subscription u64, messages u32, bytes u32, handed u64, wait_ms i32."""
FLAG: Final = 1
TO_TOPIC: Final = 1
DROPPED: Final = 2

PUBLISH_BYTES: Final = PUBLISH.size
DELIVER_BYTES: Final = DELIVER.size

_PUBLISH_HEAD: Final = struct.Struct(HEAD.format + PUBLISH.format[1:])
_CONFIRMED_HEAD: Final = struct.Struct(HEAD.format + CONFIRMED.format[1:])
_DELIVER_HEAD: Final = struct.Struct(HEAD.format + DELIVER.format[1:])
_RUN: Final = struct.Struct("<QQ")

ControlCommand = (
    m.Hello
    | m.Begin
    | m.Rollback
    | m.Subscribe
    | m.Unsubscribe
    | m.Seek
    | m.DeleteGroup
    | m.Credit
    | m.Ack
    | m.Nack
    | m.Extend
    | m.Declare
    | m.Change
    | m.Rename
    | m.Bind
    | m.Unbind
    | m.ListBindings
    | m.ListQueues
    | m.ListDeleted
    | m.ShowQueue
    | m.Purge
    | m.Delete
    | m.Undelete
    | m.Peek
    | m.DeadLetters
    | m.Redrive
    | m.ListDelayed
    | m.ShowDelayed
    | m.CancelDelayed
    | m.Reschedule
    | m.SetSchedule
    | m.ListSchedules
    | m.PauseSchedule
    | m.DeleteSchedule
    | m.Flush
    | m.Digest
    | m.Ping
    | m.Goodbye
)
ControlReply = (
    m.Welcome
    | m.Confirmed
    | m.Committed
    | m.Done
    | m.Failed
    | m.Drained
    | m.LeasesLost
    | m.Ended
    | m.Unblocked
    | m.Ping
    | m.Pong
    | m.Goodbye
)

# Kinds as plain integers: looking up a member of an enum costs as much as unpacking a frame's head.
_CONTROL: Final = int(Kind.CONTROL)
_PUBLISH: Final = int(Kind.PUBLISH)
_CONFIRMED: Final = int(Kind.CONFIRMED)
_DELIVER: Final = int(Kind.DELIVER)
_ACK: Final = int(Kind.ACK)
_CREDIT: Final = int(Kind.CREDIT)

_encoder = msgspec.msgpack.Encoder()
_command_decoder = msgspec.msgpack.Decoder(ControlCommand)
_reply_decoder = msgspec.msgpack.Decoder(ControlReply)


def decode_command(frame: Frame) -> m.Command | m.Refused:
    """The command in a frame that a client sent, or what to refuse. A batch is copied out of the frame.

    Raises:
        MalformedFrame: the connection cannot go on.
        FrameTooLong: a control frame above CONTROL_BYTES_MAX.
    """
    kind, flags, body = frame
    if flags and (kind != _PUBLISH or flags != TO_TOPIC):
        raise MalformedFrame(f"flags {flags:#04x} on a frame of kind {kind} are not known to this version")
    try:
        if kind == _PUBLISH:
            return _decode_publish(body, to_topic=bool(flags))
        if kind == _ACK:
            return _decode_ack(body)
        if kind == _CREDIT:
            return _decode_credit(body)
    except struct.error:
        raise MalformedFrame(f"a {Kind(kind).name} frame cannot have a body of {len(body)} bytes") from None
    if kind == _CONTROL:
        return _decode_control(body)
    raise MalformedFrame(f"frames of kind {kind} are not known, or not sent by clients")


def _decode_publish(body: memoryview, *, to_topic: bool) -> m.Publish | m.Refused:
    request, sequence, oldest, size = PUBLISH.unpack_from(body)
    at = PUBLISH_BYTES + size
    try:
        queue = str(body[PUBLISH_BYTES:at], "utf-8")
        if to_topic:
            check_topic(queue)
        else:
            check_name(queue)
        if not request or sequence > NUMBER_MAX or oldest > sequence:
            raise InvalidRequest(
                f"a publish needs a request above 0, a sequence of at most {NUMBER_MAX}, and an oldest not above it"
            )
        return m.Publish(request, queue, sequence, Batch(bytes(body[at:])), oldest, to_topic)
    except UnicodeDecodeError:
        return m.Refused(request, InvalidName("the name of a queue or topic is not UTF-8"))
    except RequestError as problem:
        return m.Refused(request, problem)


def _decode_ack(body: memoryview) -> m.Ack | m.Refused:
    request, subscription = ACK.unpack_from(body)
    runs = body[ACK.size :]
    if len(runs) % _RUN.size:
        raise MalformedFrame(f"an ACK frame has runs of {_RUN.size} bytes, and not {len(runs)} of them")
    try:
        if subscription > NUMBER_MAX or len(runs) > RUNS_MAX * _RUN.size:
            raise InvalidRequest(f"an ack has a subscription of at most {NUMBER_MAX} and at most {RUNS_MAX} runs")
        deliveries = tuple(_RUN.iter_unpack(runs))
        check_deliveries(deliveries)
    except InvalidRequest as problem:
        return m.Refused(request, problem)
    return m.Ack(request=request, subscription=subscription, deliveries=deliveries)


def _decode_credit(body: memoryview) -> m.Credit:
    subscription, count, size, handed, wait_ms = CREDIT.unpack(body)
    if subscription > NUMBER_MAX or handed > NUMBER_MAX or wait_ms < -1:
        raise MalformedFrame(f"a CREDIT frame has numbers of at most {NUMBER_MAX}, and wait_ms from -1 on")
    return m.Credit(subscription=subscription, messages=count, bytes=size, handed=handed, wait_ms=wait_ms)


def _decode_control(body: memoryview) -> m.Command | m.Refused:
    if len(body) > CONTROL_BYTES_MAX:
        raise FrameTooLong(f"a control frame of {len(body)} bytes is above the limit of {CONTROL_BYTES_MAX}")
    try:
        command = _command_decoder.decode(body)
    except BAD_INPUT as problem:
        return refuse_control(body, problem)
    return checked(command)


def encode_command(command: m.Command) -> list[bytes | memoryview]:
    """The buffers of a frame for a client to send. Publish goes through `encode_publish`, which takes parts.

    Raises:
        UsageError: a field that does not fit its place in the frame.
    """
    try:
        if isinstance(command, m.Ack):
            runs = b"".join(_RUN.pack(*run) for run in command.deliveries)
            return [
                HEAD.pack(ACK.size + len(runs), _ACK, 0, 0) + ACK.pack(command.request, command.subscription) + runs
            ]
        if isinstance(command, m.Credit):
            body = CREDIT.pack(command.subscription, command.messages, command.bytes, command.handed, command.wait_ms)
            return [HEAD.pack(CREDIT.size, _CREDIT, 0, 0) + body]
        if isinstance(command, m.Publish):
            return encode_publish(
                command.request,
                command.queue.encode(),
                command.sequence,
                [command.batch.data],
                command.oldest,
                to_topic=command.to_topic,
            )
        assert not isinstance(command, m.Commit)
        return _encode_control(command)
    except (struct.error, OverflowError, UnicodeEncodeError) as problem:
        text = f"a field of {type(command).__name__} does not fit its frame: {problem}"
        raise UsageError(text[:REFUSAL_TEXT_MAX]) from None


def _encode_control(message: m.Control) -> list[bytes | memoryview]:
    body = _encoder.encode(message)
    return [HEAD.pack(len(body), _CONTROL, 0, 0) + body]


def encode_publish(
    request: int,
    queue: bytes,
    sequence: int,
    batch: list[bytes | memoryview],
    oldest: int = 0,
    *,
    to_topic: bool = False,
) -> list[bytes | memoryview]:
    """The buffers of a PUBLISH frame whose batch is given in parts.

    Raises:
        struct.error: a name above 255 bytes, a batch above 4 GiB, or a number that does not fit; `encode_command` and
            callers that keep to the limits of Welcome never meet it.
    """
    length = PUBLISH_BYTES + len(queue) + sum(map(len, batch))
    return [_PUBLISH_HEAD.pack(length, _PUBLISH, to_topic, 0, request, sequence, oldest, len(queue)) + queue, *batch]


def encode_reply(reply: m.Reply) -> list[bytes | memoryview]:
    """The buffers of a frame for the broker to send."""
    if isinstance(reply, m.Deliver):
        length = DELIVER_BYTES + sum(map(len, reply.parts))
        head = _DELIVER_HEAD.pack(
            length,
            _DELIVER,
            reply.redelivered,
            0,
            reply.subscription,
            reply.delivery,
            reply.sequence,
            reply.offset,
            reply.time_us,
            reply.index,
            min(reply.attempt, 0xFFFF),
            0,
        )
        return [head, *reply.parts]
    if isinstance(reply, m.Confirmed):
        return [_encode_confirmed(reply)]
    return _encode_control(reply)


def _encode_confirmed(reply: m.Confirmed) -> bytes:
    flags, drops = int(reply.duplicate), b""
    if reply.dropped:
        flags, drops = flags | DROPPED, DROPS.pack(reply.dropped)
    length = CONFIRMED.size + len(drops)
    return _CONFIRMED_HEAD.pack(length, _CONFIRMED, flags, 0, reply.request, reply.offset, reply.sequence) + drops


def decode_reply(frame: Frame) -> m.Reply:
    """The reply in a frame that the broker sent. The batch of a Deliver is copied out of the frame.

    Raises:
        MalformedFrame: the connection cannot go on.
    """
    kind, flags, body = frame
    try:
        if kind == _DELIVER:
            return _decode_deliver(flags, body)
        if kind == _CONFIRMED:
            return _decode_confirmed(flags, body)
    except struct.error:
        raise MalformedFrame(f"a {Kind(kind).name} frame cannot have a body of {len(body)} bytes") from None
    if kind != _CONTROL:
        raise MalformedFrame(f"frames of kind {kind} are not known, or not sent by brokers")
    try:
        reply: m.Reply = _reply_decoder.decode(body)
    except BAD_INPUT as problem:
        text = str(problem)[:REFUSAL_TEXT_MAX]
        raise MalformedFrame(f"a control frame is no reply of this protocol: {text}") from None
    return reply


def _decode_confirmed(flags: int, body: memoryview) -> m.Confirmed:
    dropped = 0
    if flags & DROPPED:
        (dropped,) = DROPS.unpack(body[CONFIRMED.size :])
        body = body[: CONFIRMED.size]
    request, offset, sequence = CONFIRMED.unpack(body)
    return m.Confirmed(request=request, offset=offset, sequence=sequence, duplicate=bool(flags & FLAG), dropped=dropped)


def _decode_deliver(flags: int, body: memoryview) -> m.Deliver:
    subscription, delivery, sequence, offset, time_us, index, attempt, _ = DELIVER.unpack_from(body)
    batch: list[bytes | memoryview] = [bytes(body[DELIVER_BYTES:])]
    return m.Deliver(subscription, delivery, sequence, offset, index, time_us, attempt, bool(flags & FLAG), batch)

"""The binary codec: frames to values and back.

What is frequent has a fixed layout, little-endian, given beside each Struct below; all else is a CONTROL frame whose body
is a MessagePack map with its `type`. Strings are UTF-8.
"""

import struct
from typing import Final

import msgspec

from vibemq.batch import Batch
from vibemq.errors import InvalidName, InvalidRequest, MalformedFrame
from vibemq.protocol import messages as m
from vibemq.protocol.frames import HEAD, Frame, Kind

PUBLISH: Final = struct.Struct("<IQB")
"""request u32, producer sequence u64, length of the queue's name u8; then the name, then the batch."""
CONFIRMED: Final = struct.Struct("<IQQ")
"""request u32, record offset u64, sequence of the first message u64. Flag 1: duplicate."""
DELIVER: Final = struct.Struct("<QQQQQIHH")
"""subscription, delivery, sequence, offset, time_us u64 each, index u32, attempt u16, zero u16; then a batch. Flag 1: redelivered."""
ACK: Final = struct.Struct("<IQ")
"""request u32, subscription u64; then runs of two u64, first and end."""
CREDIT: Final = struct.Struct("<QIIQi")
"""subscription u64, messages u32, bytes u32, handed u64, wait_ms i32."""
FLAG: Final = 1

_PUBLISH_HEAD: Final = struct.Struct(HEAD.format + PUBLISH.format[1:])
_CONFIRMED_HEAD: Final = struct.Struct(HEAD.format + CONFIRMED.format[1:])
_DELIVER_HEAD: Final = struct.Struct(HEAD.format + DELIVER.format[1:])
_RUN: Final = struct.Struct("<QQ")

ControlCommand = (
    m.Hello
    | m.Subscribe
    | m.Unsubscribe
    | m.Credit
    | m.Ack
    | m.Nack
    | m.Extend
    | m.Declare
    | m.ListQueues
    | m.ShowQueue
    | m.Purge
    | m.Delete
    | m.Peek
    | m.Flush
    | m.Digest
    | m.Ping
    | m.Goodbye
)
ControlReply = (
    m.Welcome | m.Confirmed | m.Done | m.Failed | m.Drained | m.LeasesLost | m.Ended | m.Ping | m.Pong | m.Goodbye
)

_encoder = msgspec.msgpack.Encoder()
_command_decoder = msgspec.msgpack.Decoder(ControlCommand)
_reply_decoder = msgspec.msgpack.Decoder(ControlReply)


def _control(message: m.Control) -> list[bytes | memoryview]:
    body = _encoder.encode(message)
    return [HEAD.pack(len(body), Kind.CONTROL, 0, 0) + body]


def _decode_control(decoder: msgspec.msgpack.Decoder[m.Control], body: memoryview) -> m.Control:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise MalformedFrame(f"a control frame is no request of this protocol: {problem}") from None


def decode_command(frame: Frame) -> m.Command | m.Refused:
    """The command in a frame that a client sent, or what to refuse. A batch is copied out of the frame.

    Raises:
        MalformedFrame: the connection cannot go on.
    """
    kind, _, body = frame
    try:
        if kind == Kind.PUBLISH:
            return _decode_publish(body)
        if kind == Kind.ACK:
            request, subscription = ACK.unpack_from(body)
            return m.Ack(request=request, subscription=subscription, deliveries=_decode_runs(body[ACK.size :]))
        if kind == Kind.CREDIT:
            subscription, count, size, handed, wait_ms = CREDIT.unpack(body)
            return m.Credit(subscription=subscription, messages=count, bytes=size, handed=handed, wait_ms=wait_ms)
    except struct.error:
        raise MalformedFrame(f"a {Kind(kind).name} frame with a body of {len(body)} bytes is too short") from None
    if kind == Kind.CONTROL:
        return _decode_control(_command_decoder, body)
    raise MalformedFrame(f"frames of kind {kind} are not known, or not sent by clients")


def _decode_publish(body: memoryview) -> m.Publish | m.Refused:
    request, sequence, size = PUBLISH.unpack_from(body)
    at = PUBLISH.size + size
    try:
        queue = str(body[PUBLISH.size : at], "utf-8")
        batch = Batch(bytes(body[at:]))
    except UnicodeDecodeError:
        return m.Refused(request, InvalidName("a queue's name is not UTF-8"))
    except InvalidRequest as problem:
        return m.Refused(request, problem)
    return m.Publish(request, queue, sequence, batch)


def _decode_runs(data: memoryview) -> m.Deliveries:
    if not data or len(data) % _RUN.size:
        raise MalformedFrame(f"an ACK frame needs runs of {_RUN.size} bytes and has {len(data)}")
    return tuple(_RUN.iter_unpack(data))


def encode_command(command: m.Command) -> list[bytes | memoryview]:
    """The buffers of a frame for a client to send. Publish goes through `encode_publish`, which takes parts."""
    if isinstance(command, m.Ack):
        body = ACK.pack(command.request, command.subscription) + b"".join(_RUN.pack(*run) for run in command.deliveries)
        return [HEAD.pack(len(body), Kind.ACK, 0, 0) + body]
    if isinstance(command, m.Credit):
        body = CREDIT.pack(command.subscription, command.messages, command.bytes, command.handed, command.wait_ms)
        return [HEAD.pack(len(body), Kind.CREDIT, 0, 0) + body]
    if isinstance(command, m.Publish):
        return encode_publish(command.request, command.queue.encode(), command.sequence, [command.batch.data])
    return _control(command)


def encode_publish(request: int, queue: bytes, sequence: int, batch: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The buffers of a PUBLISH frame whose batch is given in parts."""
    length = PUBLISH.size + len(queue) + sum(map(len, batch))
    return [_PUBLISH_HEAD.pack(length, Kind.PUBLISH, 0, 0, request, sequence, len(queue)) + queue, *batch]


def encode_reply(reply: m.Reply) -> list[bytes | memoryview]:
    """The buffers of a frame for the broker to send."""
    if isinstance(reply, m.Deliver):
        length = DELIVER.size + sum(map(len, reply.parts))
        head = _DELIVER_HEAD.pack(
            length,
            Kind.DELIVER,
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
        return [
            _CONFIRMED_HEAD.pack(
                CONFIRMED.size, Kind.CONFIRMED, reply.duplicate, 0, reply.request, reply.offset, reply.sequence
            )
        ]
    return _control(reply)


def decode_reply(frame: Frame) -> m.Reply:
    """The reply in a frame that the broker sent. The batch of a Deliver is copied out of the frame.

    Raises:
        MalformedFrame: the connection cannot go on.
    """
    kind, flags, body = frame
    try:
        if kind == Kind.DELIVER:
            subscription, delivery, sequence, offset, time_us, index, attempt, _ = DELIVER.unpack_from(body)
            batch: list[bytes | memoryview] = [bytes(body[DELIVER.size :])]
            redelivered = bool(flags & FLAG)
            return m.Deliver(subscription, delivery, sequence, offset, index, time_us, attempt, redelivered, batch)
        if kind == Kind.CONFIRMED:
            request, offset, sequence = CONFIRMED.unpack(body)
            return m.Confirmed(request=request, offset=offset, sequence=sequence, duplicate=bool(flags & FLAG))
    except struct.error:
        raise MalformedFrame(f"a {Kind(kind).name} frame with a body of {len(body)} bytes is too short") from None
    if kind == Kind.CONTROL:
        return _decode_control(_reply_decoder, body)
    raise MalformedFrame(f"frames of kind {kind} are not known, or not sent by brokers")

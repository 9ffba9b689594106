"""The binary codec: frames to values and back.

What is frequent has a fixed layout, little-endian, given beside each Struct below; all else is a CONTROL frame whose
body is a MessagePack map with its `type`. Strings are UTF-8.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from vibemq.batch import Batch
from vibemq.errors import FrameTooLong, InvalidName, InvalidRequest, MalformedFrame, RequestError, UsageError
from vibemq.protocol import messages as m
from vibemq.protocol.checks import (
    BAD_INPUT,
    REFUSAL_TEXT_MAX,
    check_commit,
    check_deliveries,
    check_extras,
    checked,
    refuse_control,
)
from vibemq.protocol.fields import (
    CONTROL_BYTES_MAX,
    HASH_BYTES,
    NUMBER_MAX,
    PUBLISHES_MAX,
    RUNS_MAX,
    check_name,
    check_topic,
)
from vibemq.protocol.frames import HEAD, HEAD_BYTES, Frame, Kind

PUBLISH: Final = struct.Struct("<IQQB")
"""request u32, producer sequence u64, oldest u64, length of the queue's name u8; then the name; with flag DELAY (2) a
TIME, delay_ms; with DUE (4) a TIME, due_us; with DEDUP (8) a COUNT and so many hashes of HASH_BYTES; then the batch.
Flag TO_TOPIC (1): the name is that of a topic."""
COMMIT: Final = struct.Struct("<IQQQI")
"""request u32, epoch u64, producer sequence u64, oldest u64, length of the acks u32; then the acks, a MessagePack array
of [subscription, runs]; then the publishes, each a whole PUBLISH frame, in which request, sequence and oldest mean
nothing."""
CONFIRMED: Final = struct.Struct("<IQQ")
"""request u32, record offset u64, sequence of the first message u64. Flag 1: duplicate. What most confirms have not got
follows: with flag DROPPED (2) a COUNT, how many messages at the end of the batch were not stored; with DUE (4) a TIME,
due_us; with DUPLICATES (8) a COUNT and so many DUPLICATE."""
TIME: Final = struct.Struct("<Q")
COUNT: Final = struct.Struct("<I")
DUPLICATE: Final = struct.Struct("<IQI")
"""position in the batch u32, record offset u64, index u32."""
DELIVER: Final = struct.Struct("<QQQQQIHH")
"""subscription, delivery, sequence, offset, time_us u64 each, index u32, attempt u16, zero u16; then a batch.
Flag 1: redelivered."""
ACK: Final = struct.Struct("<IQ")
"""request u32, subscription u64; then runs of two u64, first and end."""
CREDIT: Final = struct.Struct("<QIIQi")
"""subscription u64, messages u32, bytes u32, handed u64, wait_ms i32."""
FLAG: Final = 1
TO_TOPIC: Final = 1
DELAY: Final = 2
DUE: Final = 4
DEDUP: Final = 8
DROPPED: Final = 2
DUPLICATES: Final = 8

PUBLISH_BYTES: Final = PUBLISH.size
DELIVER_BYTES: Final = DELIVER.size

_PUBLISH_HEAD: Final = struct.Struct(HEAD.format + PUBLISH.format[1:])
_CONFIRMED_HEAD: Final = struct.Struct(HEAD.format + CONFIRMED.format[1:])
_DELIVER_HEAD: Final = struct.Struct(HEAD.format + DELIVER.format[1:])
_COMMIT_HEAD: Final = struct.Struct(HEAD.format + COMMIT.format[1:])
_RUN: Final = struct.Struct("<QQ")
_UNKNOWN_TO_PUBLISH: Final = ~(TO_TOPIC | DELAY | DUE | DEDUP)
_UNKNOWN_TO_CONFIRMED: Final = ~(FLAG | DROPPED | DUE | DUPLICATES)

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
_COMMIT: Final = int(Kind.COMMIT)

_encoder = msgspec.msgpack.Encoder()
_command_decoder = msgspec.msgpack.Decoder(ControlCommand)
_reply_decoder = msgspec.msgpack.Decoder(ControlReply)
_acks_decoder = msgspec.msgpack.Decoder(tuple[m.TransactionAck, ...])


def decode_command(frame: Frame) -> m.Command | m.Refused:
    """The command in a frame that a client sent, or what to refuse. A batch is copied out of the frame.

    Raises:
        MalformedFrame: the connection cannot go on.
        FrameTooLong: a control frame above CONTROL_BYTES_MAX.
    """
    kind, flags, body = frame
    if flags and (kind != _PUBLISH or flags & _UNKNOWN_TO_PUBLISH):
        raise MalformedFrame(f"flags {flags:#04x} on a frame of kind {kind} are not known to this version")
    try:
        if kind == _PUBLISH:
            return _decode_publish(body, flags)
        if kind == _ACK:
            return _decode_ack(body)
        if kind == _CREDIT:
            return _decode_credit(body)
        if kind == _COMMIT:
            return _decode_commit(body)
    except struct.error:
        raise MalformedFrame(f"a {Kind(kind).name} frame cannot have a body of {len(body)} bytes") from None
    if kind == _CONTROL:
        return _decode_control(body)
    raise MalformedFrame(f"frames of kind {kind} are not known, or not sent by clients")


def _decode_publish(body: memoryview, flags: int, *, is_part: bool = False) -> m.Publish | m.Refused:
    request, sequence, oldest, size = PUBLISH.unpack_from(body)
    at = PUBLISH_BYTES + size
    if is_part:
        request = sequence = oldest = 0
    try:
        queue = str(body[PUBLISH_BYTES:at], "utf-8")
        if flags & TO_TOPIC:
            check_topic(queue)
        else:
            check_name(queue)
        if (not request or sequence > NUMBER_MAX or oldest > sequence) and not is_part:
            raise InvalidRequest(
                f"a publish needs a request above 0, a sequence of at most {NUMBER_MAX}, and an oldest not above it"
            )
        if flags > TO_TOPIC:
            delay_ms, due_us, dedup, at = _decode_extras(body, at, flags)
            batch = Batch(bytes(body[at:]))
            check_extras(batch.count, delay_ms, due_us, dedup)
            return m.Publish(request, queue, sequence, batch, oldest, bool(flags & TO_TOPIC), delay_ms, due_us, dedup)
        return m.Publish(request, queue, sequence, Batch(bytes(body[at:])), oldest, bool(flags))
    except UnicodeDecodeError:
        return m.Refused(request, InvalidName("the name of a queue or topic is not UTF-8"))
    except RequestError as problem:
        return m.Refused(request, problem)


def _decode_extras(body: memoryview, at: int, flags: int) -> tuple[int, int, bytes, int]:
    """Delay, due time and hashes, as far as the flags say, and where the batch begins."""
    delay_ms, due_us, dedup = 0, 0, b""
    try:
        if flags & DELAY:
            (delay_ms,) = TIME.unpack_from(body, at)
            at += TIME.size
        if flags & DUE:
            (due_us,) = TIME.unpack_from(body, at)
            at += TIME.size
        if flags & DEDUP:
            (count,) = COUNT.unpack_from(body, at)
            at += COUNT.size
            dedup = bytes(body[at : at + count * HASH_BYTES])
            at += count * HASH_BYTES
    except struct.error:
        at = len(body) + 1
    if at > len(body):
        raise InvalidRequest(f"a PUBLISH frame of {len(body)} bytes has no room for what its flags {flags:#04x} say")
    return delay_ms, due_us, dedup, at


def _decode_commit(body: memoryview) -> m.Commit | m.Refused:
    request, epoch, sequence, oldest, size = COMMIT.unpack_from(body)
    at = COMMIT.size + size
    try:
        if size > CONTROL_BYTES_MAX or at > len(body):
            raise InvalidRequest(
                f"the acks of a commit have {size} bytes: more than are there, or than {CONTROL_BYTES_MAX}"
            )
        try:
            acks = _acks_decoder.decode(body[COMMIT.size : at])
        except BAD_INPUT as problem:
            text = str(problem)[:REFUSAL_TEXT_MAX]
            raise InvalidRequest(f"the acks of a commit are no array of [subscription, deliveries]: {text}") from None
        check_commit(request, epoch, sequence, oldest, acks)
        return m.Commit(request, epoch, sequence, tuple(_publishes_of(body, at)), acks, oldest)
    except RequestError as problem:
        return m.Refused(request, problem)


def _publishes_of(body: memoryview, at: int) -> Iterator[m.Publish]:
    """The publishes of a COMMIT frame, from `at` on."""
    for _ in range(PUBLISHES_MAX):
        if at == len(body):
            return
        if len(body) - at < HEAD_BYTES:
            raise InvalidRequest(f"{len(body) - at} bytes after the publishes of a commit are no PUBLISH frame")
        length, kind, flags, zero = HEAD.unpack_from(body, at)
        at += HEAD_BYTES
        if kind != _PUBLISH or zero or flags & _UNKNOWN_TO_PUBLISH or not PUBLISH_BYTES <= length <= len(body) - at:
            raise InvalidRequest(
                f"a commit holds PUBLISH frames; kind {kind}, flags {flags:#04x}, {length} bytes is none"
            )
        publish = _decode_publish(body[at : at + length], flags, is_part=True)
        if isinstance(publish, m.Refused):
            raise publish.error
        yield publish
        at += length
    if at != len(body):
        raise InvalidRequest(f"a commit holds at most {PUBLISHES_MAX} publishes: put more messages into each")


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
            return _encode_publish(command, command.request, command.sequence, command.oldest)
        if isinstance(command, m.Commit):
            parts = [_encode_publish(one) for one in command.publishes]
            return encode_commit(command.request, command.epoch, command.sequence, parts, command.acks, command.oldest)
        return _encode_control(command)
    except (struct.error, OverflowError, UnicodeEncodeError) as problem:
        text = f"a field of {type(command).__name__} does not fit its frame: {problem}"
        raise UsageError(text[:REFUSAL_TEXT_MAX]) from None


def _encode_control(message: m.Control) -> list[bytes | memoryview]:
    body = _encoder.encode(message)
    return [HEAD.pack(len(body), _CONTROL, 0, 0) + body]


def _encode_publish(
    publish: m.Publish, request: int = 0, sequence: int = 0, oldest: int = 0
) -> list[bytes | memoryview]:
    return encode_publish(
        request,
        publish.queue.encode(),
        sequence,
        [publish.batch.data],
        oldest,
        to_topic=publish.to_topic,
        delay_ms=publish.delay_ms,
        due_us=publish.due_us,
        dedup=publish.dedup,
    )


def encode_publish(
    request: int,
    queue: bytes,
    sequence: int,
    batch: list[bytes | memoryview],
    oldest: int = 0,
    *,
    to_topic: bool = False,
    delay_ms: int = 0,
    due_us: int = 0,
    dedup: bytes = b"",
) -> list[bytes | memoryview]:
    """The buffers of a PUBLISH frame whose batch is given in parts.

    Raises:
        struct.error: a name above 255 bytes, a batch above 4 GiB, or a number that does not fit; `encode_command` and
            callers that keep to the limits of Welcome never meet it.
    """
    flags: int = to_topic
    size = len(queue)
    if delay_ms or due_us or dedup:
        extras, more = _encode_extras(delay_ms, due_us, dedup)
        queue, flags = queue + extras, flags | more
    length = PUBLISH_BYTES + len(queue) + sum(map(len, batch))
    return [_PUBLISH_HEAD.pack(length, _PUBLISH, flags, 0, request, sequence, oldest, size) + queue, *batch]


def _encode_extras(delay_ms: int, due_us: int, dedup: bytes) -> tuple[bytes, int]:
    """What follows the queue's name where a publish has it, and the flags that say so."""
    extras, flags = b"", 0
    if delay_ms:
        extras, flags = TIME.pack(delay_ms), DELAY
    if due_us:
        extras, flags = extras + TIME.pack(due_us), flags | DUE
    if dedup:
        extras, flags = extras + COUNT.pack(len(dedup) // HASH_BYTES) + dedup, flags | DEDUP
    return extras, flags


def encode_commit(
    request: int,
    epoch: int,
    sequence: int,
    publishes: Iterable[Sequence[bytes | memoryview]],
    acks: Sequence[m.TransactionAck] = (),
    oldest: int = 0,
) -> list[bytes | memoryview]:
    """The buffers of a COMMIT frame, each of `publishes` given as `encode_publish` gives it, with request 0.

    Raises:
        struct.error: more than 4 GiB, or a number that does not fit.
    """
    packed = _encoder.encode(acks)
    buffers = [buffer for publish in publishes for buffer in publish]
    length = COMMIT.size + len(packed) + sum(map(len, buffers))
    head = _COMMIT_HEAD.pack(length, _COMMIT, 0, 0, request, epoch, sequence, oldest, len(packed))
    return [head + packed, *buffers]


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
    flags, extras = int(reply.duplicate), b""
    if reply.dropped:
        flags, extras = flags | DROPPED, COUNT.pack(reply.dropped)
    if reply.due_us:
        flags, extras = flags | DUE, extras + TIME.pack(reply.due_us)
    if reply.duplicates:
        flags |= DUPLICATES
        extras += COUNT.pack(len(reply.duplicates)) + b"".join(DUPLICATE.pack(*one) for one in reply.duplicates)
    length = CONFIRMED.size + len(extras)
    return _CONFIRMED_HEAD.pack(length, _CONFIRMED, flags, 0, reply.request, reply.offset, reply.sequence) + extras


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
    if flags > FLAG:
        return _decode_confirmed_with_extras(flags, body)
    request, offset, sequence = CONFIRMED.unpack(body)
    return m.Confirmed(request=request, offset=offset, sequence=sequence, duplicate=bool(flags))


def _decode_confirmed_with_extras(flags: int, body: memoryview) -> m.Confirmed:
    if flags & _UNKNOWN_TO_CONFIRMED:
        raise MalformedFrame(f"flags {flags:#04x} on a CONFIRMED frame are not known to this version")
    request, offset, sequence = CONFIRMED.unpack_from(body)
    at, dropped, due_us, count = CONFIRMED.size, 0, 0, 0
    if flags & DROPPED:
        (dropped,) = COUNT.unpack_from(body, at)
        at += COUNT.size
    if flags & DUE:
        (due_us,) = TIME.unpack_from(body, at)
        at += TIME.size
    if flags & DUPLICATES:
        (count,) = COUNT.unpack_from(body, at)
        at += COUNT.size
    if len(body) != at + count * DUPLICATE.size:
        raise MalformedFrame(f"a CONFIRMED frame with flags {flags:#04x} cannot have a body of {len(body)} bytes")
    return m.Confirmed(
        request=request,
        offset=offset,
        sequence=sequence,
        duplicate=bool(flags & FLAG),
        dropped=dropped,
        due_us=due_us,
        duplicates=tuple(DUPLICATE.iter_unpack(body[at:])),
    )


def _decode_deliver(flags: int, body: memoryview) -> m.Deliver:
    subscription, delivery, sequence, offset, time_us, index, attempt, _ = DELIVER.unpack_from(body)
    batch: list[bytes | memoryview] = [bytes(body[DELIVER_BYTES:])]
    return m.Deliver(subscription, delivery, sequence, offset, index, time_us, attempt, bool(flags & FLAG), batch)

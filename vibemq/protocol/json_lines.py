"""The JSON codec: one object a line, for people with netcat and for languages without MessagePack.

It says the same as the binary codec. Only Publish, Commit and Deliver differ: a batch is a list of messages, which is
packed into the canonical layout on the way in, with the hashes of its keys and dedup ids, and unpacked on the way out.
Bytes in a Done.result become base64, but for the `body` of a message or schedule, which becomes `body` or `body_base64`
as it does in Deliver; they come in as either, too.
"""

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Union, get_args

import msgspec

from vibemq import batch as batches
from vibemq.batch import Batch
from vibemq.errors import FrameTooLong, InvalidRequest, ProtocolError, RequestError
from vibemq.protocol import json_shapes as shapes
from vibemq.protocol import messages as m
from vibemq.protocol.binary import ControlCommand
from vibemq.protocol.checks import BAD_INPUT, check_commit, check_extras, checked, refuse_json
from vibemq.protocol.fields import ELEMENTS_MAX, HASH_BYTES, check_name, check_topic
from vibemq.protocol.keys import dedup_hash, key_hash

_ALIKE: Final = tuple(kind for kind in get_args(ControlCommand) if kind is not m.SetSchedule)
_command_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    Union[*_ALIKE, shapes.JsonPublish, shapes.JsonCommit, shapes.JsonSetSchedule]
)
_encoder = msgspec.json.Encoder()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class LineReader:
    """Cuts what arrives into lines of at most `limit` bytes."""

    __slots__ = ("_partial", "_rest", "error", "limit")

    def __init__(self, limit: int) -> None:
        """Accept lines of at most `limit` bytes."""
        self.limit = limit
        self.error: ProtocolError | None = None
        self._partial = bytearray()
        self._rest = b""

    @property
    def has_more(self) -> bool:
        """Whether lines were kept: feed it again, with nothing if need be."""
        return bool(self._rest)

    def feed(self, data: memoryview, most: int = -1) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends; empty ones are skipped.

        What lies behind `most` lines, empty ones counted, is kept for the next call. Lazy, as FrameReader.feed.
        """
        if self.error is not None:
            return
        *lines, rest = (self._rest + data).split(b"\n", most)
        self._rest = b""
        for line in lines:
            whole = line
            if self._partial:
                whole, self._partial = bytes(self._partial) + line, bytearray()
            if len(whole) > self.limit:
                self._refuse()
                return
            if whole.strip():
                yield whole
        if b"\n" in rest:
            self._rest = rest
        elif len(self._partial) + len(rest) > self.limit:
            self._refuse()
        else:
            self._partial += rest

    def _refuse(self) -> None:
        self.error = FrameTooLong(
            f"a line of more than {self.limit} bytes: send fewer messages at a time, large ones in the binary codec"
        )
        self._partial = bytearray()


def decode_command(line: bytes) -> m.Command | m.Refused:
    """The command in a line, or what to refuse.

    Raises:
        MalformedFrame: the line is no JSON.
    """
    if line.count(b",") > ELEMENTS_MAX and _has_too_many_elements(line):
        return refuse_json(line, InvalidRequest(f"more than {ELEMENTS_MAX} elements: send fewer messages at a time"))
    try:
        command = _command_decoder.decode(line)
    except BAD_INPUT as problem:
        return refuse_json(line, problem)
    try:
        match command:
            case shapes.JsonPublish():
                return _numbered_publish(command)
            case shapes.JsonCommit():
                return _commit(command)
            case shapes.JsonSetSchedule():
                command = _set_schedule(command)
    except RequestError as problem:
        return m.Refused(command.request, problem)
    return checked(command)


def _numbered_publish(ask: shapes.JsonPublish) -> m.Publish:
    if ask.oldest > ask.sequence:
        raise InvalidRequest("oldest must not be above sequence")
    return _publish(ask, ask.request, ask.sequence, ask.oldest)


def _publish(ask: shapes.JsonPublishPart, request: int = 0, sequence: int = 0, oldest: int = 0) -> m.Publish:
    """What a client library would have sent: keys and the topic are headers too."""
    if ask.to_topic:
        check_topic(ask.queue)
    else:
        check_name(ask.queue)
    topic = {"topic": ask.queue} if ask.to_topic else {}
    bodies = [_body(message.body, message.body_base64) for message in ask.messages]
    headers = [message.headers | topic | ({"key": message.key} if message.key else {}) for message in ask.messages]
    keys = [key_hash(message.key) if message.key else 0 for message in ask.messages]
    batch = Batch(b"".join(batches.pack(bodies, headers, ask.priority, ask.ttl_ms, keys)))
    dedup = _dedup(ask.messages)
    check_extras(batch.count, ask.delay_ms, ask.due_us, dedup)
    return m.Publish(request, ask.queue, sequence, batch, oldest, ask.to_topic, ask.delay_ms, ask.due_us, dedup)


def _dedup(messages: Sequence[shapes.JsonNewMessage]) -> bytes:
    if not any(message.dedup_id for message in messages):
        return b""
    none = bytes(HASH_BYTES)
    return b"".join(dedup_hash(message.dedup_id) if message.dedup_id else none for message in messages)


def _commit(ask: shapes.JsonCommit) -> m.Commit:
    check_commit(ask.request, ask.epoch, ask.sequence, ask.oldest, ask.acks)
    return m.Commit(ask.request, ask.epoch, ask.sequence, tuple(map(_publish, ask.publishes)), ask.acks, ask.oldest)


def _set_schedule(ask: shapes.JsonSetSchedule) -> m.SetSchedule:
    said = {name: getattr(ask, name) for name in m.SetSchedule.__struct_fields__}
    has_none = ask.body is None and ask.body_base64 is None
    return m.SetSchedule(**said | {"body": b"" if has_none else _body(ask.body, ask.body_base64)})


def _has_too_many_elements(line: bytes) -> bool:
    """Whether there are too many commas outside of strings, or twice as many strings: the work is bounded by that.

    No regular expression: Python's keeps a stack entry of the heap for each escape in a string.
    """
    bare = line.replace(b"\\\\", b"").replace(b'\\"', b"")  # without escapes a string ends at the next quote
    parts = bare.split(b'"', 4 * ELEMENTS_MAX)  # by turns outside and inside of a string
    return len(parts) > 4 * ELEMENTS_MAX or b"".join(parts[::2]).count(b",") > ELEMENTS_MAX


def _body(text: str | None, encoded: str | None) -> bytes:
    if (text is None) == (encoded is None):
        raise InvalidRequest("a message needs either a body or a body_base64")
    if text is not None:
        return text.encode()
    try:
        return base64.b64decode(encoded or "", validate=True)
    except ValueError as problem:  # binascii.Error, or characters that are not ASCII
        raise InvalidRequest(f"body_base64 is no base64: {problem}") from None


def rfc3339(time_us: int) -> str:
    """A time in microseconds since 1970 as RFC 3339 text, UTC; what lies behind the year 9999 is its end."""
    return (_EPOCH + timedelta(microseconds=min(time_us, _LAST_US))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def json_messages(queue: str | None, deliver: m.Deliver) -> Iterator[shapes.JsonMessage]:
    """The messages of a delivery, in the shape of the public contract, lazily: never all of a large batch at once."""
    batch = Batch(b"".join(deliver.parts))
    published_at = rfc3339(deliver.time_us)
    for at, (body, packed) in enumerate(zip(batch.bodies(), batch.packed_headers(), strict=True)):
        text, encoded = _text_or_base64(body)
        headers, headers_base64 = headers_or_base64(packed)
        yield shapes.JsonMessage(
            id=f"{deliver.offset}-{deliver.index + at}",
            queue=queue,
            sequence=deliver.sequence + at,
            body=text,
            body_base64=encoded,
            headers=headers,
            headers_base64=headers_base64,
            attempt=deliver.attempt,
            redelivered=deliver.redelivered,
            published_at=published_at,
        )


def _text_or_base64(body: bytes) -> tuple[str | None, str | None]:
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(body).decode()


def headers_or_base64(packed: bytes | memoryview) -> tuple[batches.Headers, str | None]:
    """A message's headers, or where its producer sent bytes that are none, no headers and those bytes as base64.

    For whoever shows messages of unknown producers, and must not fail with one of them.
    """
    try:
        return batches.unpack_headers(packed), None
    except InvalidRequest:
        return {}, base64.b64encode(packed).decode()


def encode_reply(reply: m.Reply) -> list[bytes | memoryview]:
    """The line of a reply."""
    if isinstance(reply, m.Deliver):
        messages = [msgspec.Raw(_encoder.encode(message)) for message in json_messages(None, reply)]
        line = {"type": "deliver", "subscription": reply.subscription, "delivery": reply.delivery, "messages": messages}
        return [_encoder.encode(line) + b"\n"]
    if isinstance(reply, m.Done) and isinstance(reply.result, list | dict):
        result = reply.result
        shown = [_with_json_body(item) for item in result] if isinstance(result, list) else _with_json_body(result)
        reply = m.Done(request=reply.request, result=shown)
    return [_encoder.encode(reply) + b"\n"]


def _with_json_body(item: object) -> object:
    if not isinstance(item, dict) or not isinstance(item.get("body"), bytes):
        return item
    text, encoded = _text_or_base64(item["body"])
    shape = {"body": text} if encoded is None else {"body_base64": encoded}
    return shape | {key: value for key, value in item.items() if key != "body"}

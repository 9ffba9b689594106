"""The JSON codec: one object a line, for people with netcat and for languages without MessagePack.

It says the same as the binary codec. Only Publish and Deliver differ: their batch is a list of messages, which is packed
into the canonical layout on the way in and unpacked on the way out.
"""

import base64
import binascii
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from vibemq import batch as batches
from vibemq.batch import Batch
from vibemq.errors import FrameTooLong, InvalidRequest, MalformedFrame, ProtocolError
from vibemq.protocol import messages as m
from vibemq.protocol.binary import ControlCommand

_command_decoder = msgspec.json.Decoder(ControlCommand | m.JsonPublish)
_encoder = msgspec.json.Encoder()


class LineReader:
    """Cuts what arrives into lines of at most `limit` bytes."""

    __slots__ = ("_partial", "error", "limit")

    def __init__(self, limit: int) -> None:
        """Accept lines of at most `limit` bytes."""
        self.limit = limit
        self.error: ProtocolError | None = None
        self._partial = bytearray()

    def feed(self, data: memoryview) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends; empty ones are skipped. Lazy, as FrameReader.feed."""
        if self.error is not None:
            return
        *lines, rest = bytes(data).split(b"\n")
        for line in lines:
            whole, self._partial = bytes(self._partial + line), bytearray()
            if len(whole) > self.limit:
                self._refuse()
                return
            if whole.strip():
                yield whole
        self._partial += rest
        if len(self._partial) > self.limit:
            self._refuse()

    def _refuse(self) -> None:
        self.error = FrameTooLong(f"a line of more than {self.limit} bytes: send fewer messages at a time")
        self._partial = bytearray()


def decode_command(line: bytes) -> m.Command | m.Refused:
    """The command in a line, or what to refuse.

    Raises:
        MalformedFrame: no JSON object of this protocol.
    """
    try:
        command: m.Command | m.JsonPublish = _command_decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise MalformedFrame(f"a line is no JSON request of this protocol: {problem}") from None
    if not isinstance(command, m.JsonPublish):
        return command
    try:
        bodies = [_body(message) for message in command.messages]
        for message in command.messages:
            for key, value in message.headers.items():
                if not isinstance(value, batches.HeaderValue):
                    raise InvalidRequest(f"message header {key!r} is no plain value")
        parts = batches.pack(bodies, [message.headers for message in command.messages], command.priority)
        return m.Publish(command.request, command.queue, command.sequence, Batch(b"".join(parts)))
    except InvalidRequest as problem:
        return m.Refused(command.request, problem)
    except Exception as problem:  # a number too large for a column
        return m.Refused(command.request, InvalidRequest(str(problem)))


def _body(message: m.JsonMessage) -> bytes:
    if (message.body is None) == (message.body_base64 is None):
        raise InvalidRequest("a message needs either a body or a body_base64")
    if message.body is not None:
        return message.body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(message.body_base64 or "", validate=True)
    except binascii.Error as problem:
        raise InvalidRequest(f"body_base64 is no base64: {problem}") from None


def rfc3339(time_us: int) -> str:
    """A time in microseconds since 1970 as RFC 3339 text, UTC."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def json_messages(queue: str | None, deliver: m.Deliver) -> tuple[m.JsonMessage, ...]:
    """The messages of a delivery, in the shape of the public contract."""
    batch = Batch(b"".join(deliver.parts))
    published_at = rfc3339(deliver.time_us)
    found = []
    for at, (body, headers) in enumerate(zip(batch.bodies(), batch.headers(), strict=True)):
        text, encoded = _text_or_base64(body)
        found.append(
            m.JsonMessage(
                id=f"{deliver.offset}-{deliver.index + at}",
                queue=queue,
                sequence=deliver.sequence + at,
                body=text,
                body_base64=encoded,
                headers=headers,
                attempt=deliver.attempt,
                redelivered=deliver.redelivered,
                published_at=published_at,
            )
        )
    return tuple(found)


def _text_or_base64(body: bytes) -> tuple[str | None, str | None]:
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(body).decode()


def encode_reply(reply: m.Reply) -> list[bytes | memoryview]:
    """The line of a reply."""
    if isinstance(reply, m.Deliver):
        messages = json_messages(None, reply)
        reply = m.JsonDeliver(subscription=reply.subscription, delivery=reply.delivery, messages=messages)  # type: ignore[assignment]
    return [_encoder.encode(reply) + b"\n"]

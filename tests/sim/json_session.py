"""A client's end of a connection that speaks JSON lines, with the calls of vibemq.protocol.session.ClientSession."""

from collections.abc import Iterator

import msgspec

from tests.sim.mail import KEY_OF
from vibemq.batch import pack
from vibemq.protocol import json_shapes as shapes
from vibemq.protocol import messages as m
from vibemq.protocol.binary import ControlReply

_encoder = msgspec.json.Encoder()


class _Deliver(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="deliver"):
    subscription: int
    delivery: int
    messages: list[shapes.JsonMessage]


_decoder = msgspec.json.Decoder(ControlReply | _Deliver)


class JsonSession:
    """Lines in, replies out."""

    def __init__(self) -> None:
        """Nothing has been said."""
        self._partial = b""

    def begin(self, hello: m.Hello) -> bytes:
        """The first line."""
        return encode(hello)

    def receive(self, data: memoryview) -> Iterator[m.Reply]:
        """The replies that `data` completes, in order."""
        *lines, self._partial = (self._partial + bytes(data)).split(b"\n")
        for line in lines:
            reply: m.Reply | _Deliver = _decoder.decode(line)
            yield _delivery(reply) if isinstance(reply, _Deliver) else reply


def encode(command: m.Command) -> bytes:
    """The line of a command."""
    if isinstance(command, m.Publish):
        batch = command.batch
        keys = [KEY_OF[key] for key in batch.keys or (0,) * batch.count]
        publish = shapes.JsonPublish(
            request=command.request,
            queue=command.queue,
            messages=tuple(
                shapes.JsonNewMessage(body=body.decode(), key=key)
                for body, key in zip(batch.bodies(), keys, strict=True)
            ),
            sequence=command.sequence,
            oldest=command.oldest,
            priority=batch.priority,
            ttl_ms=batch.ttl_ms,
            to_topic=command.to_topic,
        )
        return _encoder.encode(publish) + b"\n"
    return _encoder.encode(command) + b"\n"


def _delivery(line: _Deliver) -> m.Deliver:
    """A row of messages as the binary codec has it; all of them must be from one record, one after the other."""
    first = line.messages[0]
    offset, index = map(int, str(first.id).split("-"))
    for at, message in enumerate(line.messages):
        facts = (f"{offset}-{index + at}", first.attempt, first.redelivered)
        assert (message.id, message.attempt, message.redelivered) == facts, f"{message} does not follow {first}"
    batch = b"".join(pack([(message.body or "").encode() for message in line.messages]))
    return m.Deliver(
        line.subscription,
        line.delivery,
        first.sequence or 0,
        offset,
        index,
        0,
        first.attempt or 0,
        first.redelivered is True,
        [batch],
    )

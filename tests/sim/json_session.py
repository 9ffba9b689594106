"""A client's end of a connection that speaks JSON lines, with the calls of vibemq.protocol.session.ClientSession."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tests.sim.mail import DEDUP_OF, KEY_OF, split
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
        numbers = {"request": command.request, "sequence": command.sequence, "oldest": command.oldest}
        return _encoder.encode(shapes.JsonPublish(**_part(command) | numbers)) + b"\n"
    if isinstance(command, m.Commit):
        commit = shapes.JsonCommit(
            request=command.request,
            epoch=command.epoch,
            sequence=command.sequence,
            oldest=command.oldest,
            publishes=tuple(shapes.JsonPublishPart(**_part(one)) for one in command.publishes),
            acks=command.acks,
        )
        return _encoder.encode(commit) + b"\n"
    if isinstance(command, m.SetSchedule):
        said = {name: getattr(command, name) for name in m.SetSchedule.__struct_fields__}
        return _encoder.encode(shapes.JsonSetSchedule(**said | {"body": command.body.decode()})) + b"\n"
    return _encoder.encode(command) + b"\n"


def _part(publish: m.Publish) -> dict[str, Any]:
    """What a publish says of its batch."""
    batch = publish.batch
    keys = [KEY_OF[key] for key in batch.keys or (0,) * batch.count]
    ids = [one and DEDUP_OF[one] for one in split(publish.dedup) or [b""] * batch.count]
    messages = [
        shapes.JsonNewMessage(body=body.decode(), key=key, dedup_id=one or "")
        for body, key, one in zip(batch.bodies(), keys, ids, strict=True)
    ]
    return {
        "queue": publish.queue,
        "messages": tuple(messages),
        "priority": batch.priority,
        "ttl_ms": batch.ttl_ms,
        "to_topic": publish.to_topic,
        "delay_ms": publish.delay_ms,
        "due_us": publish.due_us,
    }


def _delivery(line: _Deliver) -> m.Deliver:
    """A row of messages as the binary codec has it; all of them must be from one record, one after the other."""
    first = line.messages[0]
    offset, index = map(int, str(first.id).split("-"))
    for at, message in enumerate(line.messages):
        facts = (f"{offset}-{index + at}", first.attempt, first.redelivered)
        assert (message.id, message.attempt, message.redelivered) == facts, f"{message} does not follow {first}"
    bodies = [(message.body or "").encode() for message in line.messages]
    batch = b"".join(pack(bodies, [message.headers for message in line.messages]))
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

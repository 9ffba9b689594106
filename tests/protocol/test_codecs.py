"""Both codecs say the same, and say it back."""

import itertools
import json
import math
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol import strategies as s
from vibemq import batch as batches
from vibemq.batch import KEYS, TTL, Batch, pack
from vibemq.errors import InvalidRequest, MalformedFrame, UsageError
from vibemq.protocol import binary, json_lines
from vibemq.protocol import json_shapes as shapes
from vibemq.protocol import messages as m
from vibemq.protocol.fields import (
    CONTROL_BYTES_MAX,
    COUNT_MAX,
    DURATION_MS_MAX,
    ELEMENTS_MAX,
    NUMBER_MAX,
    PRODUCER_MAX,
    RUNS_MAX,
    TEXT_MAX,
)
from vibemq.protocol.frames import HEAD, Kind

json_replies = msgspec.json.Decoder(binary.ControlReply)


@given(s.commands)
def test_a_command_survives_the_binary_codec(command: m.Command) -> None:
    assert s.plain(s.through_binary(command)) == s.plain(command)


@given(s.controls | s.json_publishes | s.json_commits)
def test_a_command_survives_the_json_codec(command: m.Command) -> None:
    got, expected = s.through_json(command), command
    if isinstance(command, m.Publish):
        assert isinstance(got, m.Publish)
        assert said(got) == said(command)
    elif isinstance(command, m.Commit):
        assert isinstance(got, m.Commit)
        assert (got.request, got.epoch, got.sequence, got.oldest) == (
            *(command.request, command.epoch, command.sequence, command.oldest),
        )
        assert list(map(said, got.publishes)) == list(map(said, command.publishes))
        assert got.acks == command.acks
    else:
        assert got == expected


def said(publish: m.Publish) -> tuple[object, ...]:
    """What a publish is; headers may come in another order, so compare the messages."""
    batch = publish.batch
    return (
        *(publish.delay_ms, publish.due_us, publish.dedup),
        *(publish.request, publish.queue, publish.sequence, publish.oldest, publish.to_topic),
        *(batch.priority, batch.ttl_ms, list(batch.keys or ())),
        *(batch.bodies(), list(batch.headers())),
    )


@given(s.replies)
def test_a_reply_survives_the_binary_codec(reply: m.Reply) -> None:
    assert s.plain(binary.decode_reply(s.frame(binary.encode_reply(reply)))) == s.plain(reply)


@given(s.control_replies)
def test_a_reply_survives_the_json_codec(reply: m.Reply) -> None:
    (encoded,) = json_lines.encode_reply(reply)
    assert bytes(encoded).endswith(b"\n")
    assert bytes(encoded).count(b"\n") == 1
    assert json_replies.decode(encoded) == reply


@given(s.delivers)
def test_a_delivery_in_json_has_every_message(deliver: m.Deliver) -> None:
    (encoded,) = json_lines.encode_reply(deliver)
    got = msgspec.json.decode(encoded)
    batch = Batch(b"".join(deliver.parts))
    assert (got["type"], got["subscription"], got["delivery"]) == ("deliver", deliver.subscription, deliver.delivery)
    assert [message["sequence"] for message in got["messages"]] == [deliver.sequence + at for at in range(batch.count)]
    found = [msgspec.convert(message, shapes.JsonNewMessage, strict=False) for message in got["messages"]]
    assert [json_lines._body(message.body, message.body_base64) for message in found] == batch.bodies()


def test_a_lost_field_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = m.Credit(subscription=1, messages=2, bytes=3, handed=4, wait_ms=5)
    assert s.through_binary(command) == command
    monkeypatch.setattr(binary, "_decode_credit", lambda _: m.Credit(subscription=1, messages=2, bytes=3, handed=4))
    assert s.through_binary(command) != command


@given(st.integers(-(1 << 66), 1 << 66) | st.sampled_from([0, 1, COUNT_MAX, NUMBER_MAX, NUMBER_MAX + 1, 1 << 64]))
@pytest.mark.parametrize(
    ("fields", "name", "least", "most"),
    [
        ({"type": "flush"}, "request", 1, COUNT_MAX),
        ({"type": "ack", "subscription": 1, "deliveries": [[1, 2]]}, "request", 0, COUNT_MAX),
        ({"type": "unsubscribe", "request": 1}, "subscription", 0, NUMBER_MAX),
        ({"type": "subscribe", "request": 1, "queue": "q"}, "messages", 0, COUNT_MAX),
        ({"type": "subscribe", "request": 1, "queue": "q"}, "bytes", 0, COUNT_MAX),
        ({"type": "peek", "request": 1, "queue": "q"}, "start", 0, NUMBER_MAX),
        ({"type": "hello"}, "producer", 0, PRODUCER_MAX),
        ({"type": "nack", "subscription": 1, "deliveries": [[1, 2]]}, "delay_ms", 0, DURATION_MS_MAX),
        ({"type": "credit", "subscription": 1, "messages": 1, "bytes": 1}, "wait_ms", -1, (1 << 31) - 1),
        ({"type": "credit", "subscription": 1, "messages": 1, "bytes": 1}, "handed", 0, NUMBER_MAX),
        ({"type": "subscribe", "request": 1, "queue": "q"}, "at", 0, NUMBER_MAX),
        ({"type": "seek", "request": 1, "queue": "q", "group": "g", "start": "time"}, "at", 0, NUMBER_MAX),
        ({"type": "delete", "request": 1, "queue": "q"}, "grace_ms", 0, DURATION_MS_MAX),
        ({"type": "dead-letters", "request": 1, "queue": "q"}, "since_us", 0, NUMBER_MAX),
        ({"type": "redrive", "request": 1, "queue": "q"}, "until_us", 0, NUMBER_MAX),
        ({"type": "redrive", "request": 1, "queue": "q"}, "count", 0, COUNT_MAX),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_codecs_accept_the_same_range(
    fields: dict[str, Any], name: str, least: int, most: int, value: int
) -> None:
    ask = {**fields, name: value}
    assert isinstance(s.line(ask), m.Refused) == (not least <= value <= most)
    if -(1 << 63) <= value < 1 << 64:  # what MessagePack can say at all
        try:
            refused = isinstance(s.control(ask), m.Refused)
        except MalformedFrame:
            refused = True
        assert refused == (not least <= value <= most)


@pytest.mark.parametrize(
    "deliveries",
    [[], [[1, 1]], [[2, 1]], [[0, 1]], [[1, NUMBER_MAX + 1]], [[1, 2], [5, 4]], [[1, 2]] * (RUNS_MAX + 1), [[1]], [1]],
    ids=["none", "empty", "reversed", "zero", "large", "second", "many", "single", "flat"],
)
@pytest.mark.parametrize("kind", ["ack", "nack", "extend"])
def test_runs_that_are_none_are_refused(kind: str, deliveries: list[Any]) -> None:
    ask = {"type": kind, "request": 9, "subscription": 1, "deliveries": deliveries}
    for refused in (s.control(ask), s.line(ask)):
        assert isinstance(refused, m.Refused)
        assert refused.request == 9
        assert isinstance(refused.error, InvalidRequest)


@pytest.mark.parametrize("run", [(1, 1), (2, 1), (0, 1), (1, NUMBER_MAX + 1)])
def test_an_ack_frame_with_a_bad_run_is_refused(run: tuple[int, int]) -> None:
    ack = m.Ack(request=9, subscription=1, deliveries=((1, 2), run))
    refused = s.through_binary(ack)
    assert isinstance(refused, m.Refused)
    assert refused.request == 9


def test_an_ack_frame_with_too_many_runs_is_refused() -> None:
    most = m.Ack(request=9, subscription=1, deliveries=((1, 2),) * RUNS_MAX)
    assert s.through_binary(most) == most
    assert isinstance(
        s.through_binary(m.Ack(request=9, subscription=1, deliveries=((1, 2),) * (RUNS_MAX + 1))), m.Refused
    )
    assert isinstance(s.through_binary(m.Ack(request=9, subscription=1 << 63, deliveries=((1, 2),))), m.Refused)


@pytest.mark.parametrize("request_", [0, 5])
def test_a_publish_frame_is_refused_with_its_request(request_: int) -> None:
    good = b"".join(pack([b"x"]))
    for name, sequence, batch in (
        (b"\xff", 1, good),
        (b"", 1, good),
        (b"q", NUMBER_MAX + 1, good),
        (b"q", 1, b""),
        (b"q", 1, good + b"x"),
        (b"q" * 255, 1, b""),
    ):
        refused = binary.decode_command(s.frame(binary.encode_publish(request_, name, sequence, [batch])))
        assert isinstance(refused, m.Refused)
        assert refused.request == request_
    without = binary.decode_command(s.frame(binary.encode_publish(0, b"q", 1, [good])))
    assert isinstance(without, m.Refused)


COLUMNS_OF_ONE = bytes(4)


@pytest.mark.parametrize(
    "batch",
    [
        batches.HEAD.pack(1, 8, 4, 0) + COLUMNS_OF_ONE,
        batches.HEAD.pack(1, 0x8000 | KEYS, 4, 0) + bytes(12),
        batches.HEAD.pack(1, KEYS, 4, 0) + COLUMNS_OF_ONE + bytes(7),
        batches.HEAD.pack(65_536, KEYS, 4, 0) + bytes(4 * 65_536),
        batches.HEAD.pack(1, TTL, 4, 0) + bytes(8) + COLUMNS_OF_ONE,
        batches.HEAD.pack(1, TTL, 4, 0) + b"\xff" * 8 + COLUMNS_OF_ONE,
        batches.HEAD.pack(1, TTL, 4, 0) + COLUMNS_OF_ONE,
    ],
    ids=["unknown", "unknown too", "keys cut", "no keys", "ttl 0", "ttl huge", "ttl cut"],
)
def test_a_batch_whose_columns_are_none_is_refused_with_its_request(batch: bytes) -> None:
    for to_topic in (False, True):
        sent = binary.encode_publish(7, b"q", 1, [batch], to_topic=to_topic)
        s.assert_refused(binary.decode_command(s.frame(sent)), InvalidRequest)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"body": "a", "body_base64": "YQ=="},
        {"body_base64": "?"},
        {"body_base64": "é"},
        {"body": "a", "headers": {"k": []}},
        {"body": "a", "headers": {"k": 1 << 70}},
        {"body": "a", "headers": {"k": "x" * 70_000}},
        {"body": "\ud800"},
    ],
)
def test_a_message_that_cannot_be_packed_is_refused_with_its_request(message: dict[str, Any]) -> None:
    refused = s.line({"type": "publish", "request": 7, "queue": "q", "messages": [message]})
    assert isinstance(refused, m.Refused)
    assert refused.request == 7
    assert isinstance(refused.error, InvalidRequest)


@pytest.mark.parametrize("priority", [-1, 10, 300, 1 << 40])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    ask = {"type": "publish", "request": 7, "queue": "q", "messages": [{"body": ""}], "priority": priority}
    assert isinstance(s.line(ask), m.Refused)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        (b"{}", 0),
        (b"[]", 0),
        (b"1", 0),
        (b'"hello"', 0),
        (b'{"type":"unknown","request":3}', 3),
        (b'{"type":"purge","request":3}', 3),
        (b'{"type":"purge","queue":1,"request":3}', 3),
        (b'{"type":"purge","queue":"q","request":-3}', 0),
        (b'{"type":"purge","queue":"q","request":"3"}', 0),
        (b'{"request":3,"type":"purge","queue":"\xff"}', 3),
        (b'{"request":3,"type":"purge","queue":"\\ud800"}', 3),
        (b'{"request":3,"type":"' + b"x" * 10_000 + b'"}', 3),
    ],
)
def test_json_that_is_no_request_is_refused(text: bytes, request_: int) -> None:
    refused = json_lines.decode_command(text)
    assert isinstance(refused, m.Refused)
    assert refused.request == request_
    assert len(refused.error.text) < 400
    (encoded,) = json_lines.encode_reply(m.Failed(request=request_, code=refused.error.code, text=refused.error.text))
    assert msgspec.json.decode(encoded)["type"] == "failed"


@pytest.mark.parametrize(
    "text", [b"hello", b"{", b'{"type":"ping"', b'{"a":' * 5_000, b'{"a":' + b"[" * 100_000, b"\x00", b"\xff"]
)
def test_a_line_that_is_no_json_ends_the_connection(text: bytes) -> None:
    with pytest.raises(MalformedFrame):
        json_lines.decode_command(text)


def test_control_frames_are_refused_where_their_request_can_be_read() -> None:
    assert isinstance(s.control({"type": "unknown", "request": 3}), m.Refused)
    assert isinstance(s.control({"type": "nack", "request": 0, "subscription": -1, "deliveries": []}), m.Refused)
    for body in (
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ):
        with pytest.raises(MalformedFrame):
            binary.decode_command((Kind.CONTROL, 0, memoryview(body)))
    with pytest.raises(MalformedFrame):
        s.control({"type": "unknown"})


def test_settings_must_be_numbers() -> None:
    for kind, value in itertools.product(("declare", "change"), (math.nan, math.inf, -math.inf)):
        assert isinstance(s.control({"type": kind, "request": 1, "queue": "q", "settings": {"a": value}}), m.Refused)
    for wrong in ("x" * 256, ["x"], {"a": 1}, None, 1 << 63):
        ask: dict[str, Any] = {"type": "declare", "request": 1, "queue": "q", "settings": {"a": wrong}}
        assert isinstance(s.control(ask), m.Refused)
        assert isinstance(s.line(ask), m.Refused)


def test_texts_have_a_limit() -> None:
    goodbye = {"type": "goodbye", "code": 1, "text": "x" * TEXT_MAX}
    assert isinstance(s.line(goodbye), m.Goodbye)
    assert isinstance(s.line({**goodbye, "text": "x" * (TEXT_MAX + 1)}), m.Refused)
    assert isinstance(s.line({"type": "hello", "request": 1, "client": "x" * 256}), m.Refused)


def test_a_long_reason_is_cut_and_the_nack_counts() -> None:
    ask = {"type": "nack", "request": 0, "subscription": 1, "deliveries": [[1, 2]], "reason": "é" * (TEXT_MAX + 1)}
    for nack in (s.line(ask), s.control(ask)):
        assert nack == m.Nack(subscription=1, deliveries=((1, 2),), reason="é" * TEXT_MAX)


def test_objects_are_never_many_times_larger_than_the_limits_allow() -> None:
    for text, request in (
        (b'{"type":"x","request":4,"y":[' + b"[]," * (ELEMENTS_MAX + 2) + b"[]]}", 4),
        (b'["",' + b'"",' * (ELEMENTS_MAX + 2) + b'""]', 0),
        (b'""' * (3 * ELEMENTS_MAX) + b"," * (ELEMENTS_MAX + 1), 0),
    ):
        refused = json_lines.decode_command(text)
        assert isinstance(refused, m.Refused)
        assert refused.request == request
        assert "elements" in refused.error.text
    commas = "," * (2 * ELEMENTS_MAX)
    accepted = s.line({"type": "publish", "request": 1, "queue": "q", "messages": [{"body": commas}, {"body": '\\",'}]})
    assert isinstance(accepted, m.Publish), "commas in a text are no elements"
    with pytest.raises(Exception, match="above the limit"):
        s.control({"type": "ping", "x": b"x" * CONTROL_BYTES_MAX})


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80))
def test_any_frame_is_a_command_a_refusal_or_malformed(kind: int, flags: int, body: bytes) -> None:
    for decode in (binary.decode_command, binary.decode_reply):
        for known in (kind, kind % 7):
            try:
                decode((known, flags, memoryview(body)))
                decode((known, 0, memoryview(body)))
            except MalformedFrame:
                continue


@given(s.commands, st.data())
def test_any_change_of_a_good_frame_is_a_command_a_refusal_or_malformed(
    command: m.Command, data: st.DataObject
) -> None:
    kind, flags, body = s.frame(binary.encode_command(command))
    hurt = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        if hurt:
            hurt[data.draw(st.integers(0, len(hurt) - 1))] = data.draw(st.integers(0, 255))
    hurt = hurt[: data.draw(st.integers(0, len(hurt)))] if data.draw(st.booleans()) else hurt
    try:
        binary.decode_command((kind, flags, memoryview(bytes(hurt))))
    except MalformedFrame:
        return


@given(s.controls | s.json_publishes | s.json_commits, st.data())
def test_any_change_of_a_good_line_is_a_command_a_refusal_or_malformed(command: m.Command, data: st.DataObject) -> None:
    hurt = bytearray(s.json_line(command)[:-1])
    for _ in range(data.draw(st.integers(1, 3))):
        hurt[data.draw(st.integers(0, len(hurt) - 1))] = data.draw(st.integers(0, 255))
    try:
        json_lines.decode_command(bytes(hurt))
    except MalformedFrame:
        return


PUBLISH_OF_ONE = bytes(s.frame(binary.encode_publish(7, b"q", 1, [*pack([b"x"])]))[2])


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        *((0, 0), (0, 19), (0, 21), (0, 24), (1, 24), (2, 0), (2, 20), (2, 23), (3, 20), (3, 25)),
        *((4, 20), (4, 27), (4, 29), (6, 28), (6, 33), (8, 20), (8, 23), (8, 40), (14, 35), (14, 37), (16, 20)),
    ],
)
def test_a_confirm_has_the_size_that_its_flags_say(flags: int, size: int) -> None:
    with pytest.raises(MalformedFrame):
        binary.decode_reply((Kind.CONFIRMED, flags, memoryview(bytes(size))))


def test_frames_that_cannot_be_are_malformed() -> None:
    for kind, flags, body in (
        (Kind.PUBLISH, 0, b"short"),
        (Kind.ACK, 0, b"short"),
        (Kind.ACK, 0, bytes(12 + 17)),
        (Kind.CREDIT, 0, bytes(27)),
        (Kind.CREDIT, 0, bytes(29)),
        (Kind.CREDIT, 0, binary.CREDIT.pack(1 << 63, 0, 0, 0, -1)),
        (Kind.CREDIT, 0, binary.CREDIT.pack(1, 0, 0, 1 << 63, -1)),
        (Kind.CREDIT, 0, binary.CREDIT.pack(1, 0, 0, 0, -2)),
        (Kind.CREDIT, 1, binary.CREDIT.pack(1, 0, 0, 0, -1)),
        (Kind.ACK, 1, binary.ACK.pack(1, 1) + bytes(16)),
        (Kind.CONTROL, 1, b"\x81\xa4type\xa4ping"),
        *((Kind.PUBLISH, flags, PUBLISH_OF_ONE) for flags in (0x10, 0x11, 0x80, 0x81, 0xFF)),
        (Kind.CONFIRMED, 0, bytes(20)),
        (Kind.DELIVER, 0, bytes(60)),
        (Kind.COMMIT, 0, bytes(31)),
        (Kind.COMMIT, 1, binary.COMMIT.pack(1, 1, 1, 1, 1) + b"\x90"),
        (7, 0, b""),
    ):
        with pytest.raises(MalformedFrame):
            binary.decode_command((kind, flags, memoryview(body)))


def test_a_command_that_does_not_fit_its_frame_is_a_mistake_of_its_author() -> None:
    batch = Batch(b"".join(pack([b""])))
    for command in (
        m.Ack(request=1 << 32, subscription=1, deliveries=((1, 2),)),
        m.Ack(subscription=-1, deliveries=((1, 2),)),
        m.Ack(subscription=1, deliveries=((1, 1 << 64),)),
        m.Credit(subscription=1, messages=-1, bytes=0),
        m.Publish(1, "q" * 256, 1, batch),
        m.Publish(1, "\ud800", 1, batch),
        m.Publish(-1, "q", 1, batch),
        m.Peek(request=1, queue="q", start=1 << 64),
        m.Purge(request=1, queue="\ud800"),
    ):
        with pytest.raises(UsageError, match=type(command).__name__):
            binary.encode_command(command)


def test_error_texts_can_always_be_sent() -> None:
    text = InvalidRequest("a file named \udcff").text
    for encode in (binary.encode_reply, json_lines.encode_reply):
        assert encode(m.Failed(request=1, code=204, text=text))


def test_hostile_headers_reach_a_json_consumer_as_bytes() -> None:
    for packed in (b"\xc1", b"\x81\xa1k\x90", b"\x81\xa1\xff\x01", b"\x91" * 5_000, b"\x81\x01\x01"):
        columns = HEAD_OF_ONE + len(packed).to_bytes(4, "little") * 2
        deliver = m.Deliver(1, 1, 1, 1, 0, 0, 1, False, [columns + packed])
        (encoded,) = json_lines.encode_reply(deliver)
        assert "headers_base64" in msgspec.json.decode(encoded)["messages"][0]


HEAD_OF_ONE = b"\x01\x00\x00\x00\x01\x00\x04\x00"


def test_peeked_bodies_are_text_or_base64_in_json() -> None:
    (encoded,) = json_lines.encode_reply(m.Done(request=1, result=[{"body": b"a", "id": "1-0"}, {"body": b"\xff"}, 3]))
    assert msgspec.json.decode(encoded)["result"] == [{"body": "a", "id": "1-0"}, {"body_base64": "/w=="}, 3]


def test_times_keep_their_microseconds() -> None:
    assert json_lines.rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert json_lines.rfc3339(1_753_000_000_123_457) == "2025-07-20T08:26:40.123457Z"
    assert json_lines.rfc3339((1 << 64) - 1) == "9999-12-31T23:59:59.999999Z"


def test_the_head_of_a_frame_is_as_documented() -> None:
    assert HEAD.size == 8
    assert [kind.value for kind in Kind] == [0, 1, 2, 3, 4, 5, 6]


def commas_outside_of_strings(text: str) -> int:
    found, inside, escaped = 0, False, False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = not escaped and letter == "\\"
        else:
            inside = letter == '"'
            found += letter == ","
    return found


json_values = st.recursive(
    st.none() | st.text(st.sampled_from('a,"\\[]{}é\n')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.sampled_from('a,"\\')), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.integers(0, 12))
def test_elements_are_the_commas_outside_of_strings(value: object, budget: int) -> None:
    text = json.dumps(value)
    commas = commas_outside_of_strings(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "ELEMENTS_MAX", budget)
        too_many = json_lines._has_too_many_elements(text.encode())
    assert too_many or commas <= budget
    assert not too_many or commas > budget or text.count('"') >= 4 * budget


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"publish","request":1,"queue":"q","messages":[{"body":"' + b'\\",' * 300_000 + b'"}]}',
        b"," * 200_000 + b'"' + b"\\" * 800_000,
        b'"' * 800_000 + b"," * 200_000,
        b'{"type":"purge","request":1,"queue":"' + b"\\ud800" * 150_000 + b'"}',
        b'{"type":"ack","x":[' + b"[]," * 300_000 + b"[]]}",
        b'{"a":' * 200_000,
    ],
    ids=["escapes", "backslashes", "quotes", "surrogates", "arrays", "nesting"],
)
def test_a_line_costs_a_few_times_its_size_in_memory(line: bytes) -> None:
    tracemalloc.start()
    try:
        json_lines.decode_command(line)
    except MalformedFrame:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * len(line) + 100_000

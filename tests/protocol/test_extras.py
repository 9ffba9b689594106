"""What a publish may say besides its batch, and transactions: what is refused, and that nothing of it is copied."""

import base64
from typing import Any

import msgspec
import pytest

from tests.protocol import strategies as s
from vibemq.batch import Batch, pack
from vibemq.errors import InvalidName, InvalidRequest, RequestError
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.fields import CONTROL_BYTES_MAX, NUMBER_MAX, PUBLISHES_MAX, RUNS_MAX
from vibemq.protocol.frames import HEAD, Kind
from vibemq.protocol.keys import dedup_hash

BATCH = b"".join(pack([b"one", b"two"]))
TWO = dedup_hash("a") + bytes(16)
ACK = m.TransactionAck(1, ((1, 2),))


def publish(flags: int, extras: bytes, batch: bytes = BATCH, name: bytes = b"q") -> m.Command | m.Refused:
    """What a broker makes of a PUBLISH frame, request 7, with these bytes after the name."""
    body = binary.PUBLISH.pack(7, 1, 1, len(name)) + name + extras + batch
    return binary.decode_command((Kind.PUBLISH, flags, memoryview(body)))


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def hashes(data: bytes, count: int | None = None) -> bytes:
    return (len(data) // 16 if count is None else count).to_bytes(4, "little") + data


def test_what_flags_say_follows_the_name_in_the_order_of_the_flags() -> None:
    found = publish(2 + 8, number(5) + hashes(TWO))
    assert isinstance(found, m.Publish)
    assert (found.delay_ms, found.due_us, found.dedup, found.to_topic) == (5, 0, TWO, False)
    found = publish(1 + 4 + 8, number(6) + hashes(TWO))
    assert isinstance(found, m.Publish)
    assert (found.delay_ms, found.due_us, found.dedup, found.to_topic) == (0, 6, TWO, True)
    assert found.batch.bodies() == [b"one", b"two"]


@pytest.mark.parametrize(
    ("flags", "extras"),
    [
        (2 + 4, number(1) + number(1)),
        (2, number(NUMBER_MAX + 1)),
        (4, number(NUMBER_MAX + 1)),
        (8, hashes(TWO[:16])),
        (8, hashes(TWO + TWO)),
        (8, hashes(TWO, (1 << 32) - 1)),
        (2, b""),
        (8, hashes(b"", 3)),
    ],
    ids=["both", "long", "late", "one hash", "four hashes", "all hashes", "no delay", "no hashes"],
)
def test_extras_that_cannot_be_are_refused_with_the_request(flags: int, extras: bytes) -> None:
    s.assert_refused(publish(flags, extras), InvalidRequest)


@pytest.mark.parametrize("flags", range(16))
def test_a_publish_cut_anywhere_behind_its_name_is_refused_with_its_request(flags: int) -> None:
    extras = b"".join(
        [number(1) if flags & 2 else b"", number(0) if flags & 4 else b"", hashes(TWO) if flags & 8 else b""]
    )
    assert isinstance(publish(flags, extras), m.Publish)
    for size in range(len(extras + BATCH)):
        s.assert_refused(publish(flags, (extras + BATCH)[:size], b""), InvalidRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"delay_ms": 1, "due_us": 1},
        {"delay_ms": -1},
        {"due_us": NUMBER_MAX + 1},
        {"messages": [{"body": "", "dedup_id": 7}]},
        {"messages": [{"body": "", "dedup_id": None}]},
    ],
    ids=str,
)
def test_extras_that_cannot_be_are_refused_in_json_too(fields: dict[str, Any]) -> None:
    ask = {"queue": "q", "messages": [{"body": ""}], **fields}
    s.assert_refused(s.line({"type": "publish", "request": 7, **ask}), InvalidRequest)
    s.assert_refused(s.line({"type": "commit", "request": 7, "epoch": 1, "publishes": [ask]}), InvalidRequest)


def test_a_dedup_id_in_json_becomes_its_hash() -> None:
    messages = [{"body": ""}, {"body": "", "dedup_id": "a"}, {"body": "", "dedup_id": ""}]
    found = s.line({"type": "publish", "request": 7, "queue": "q", "messages": messages})
    assert isinstance(found, m.Publish)
    assert found.dedup == bytes(16) + dedup_hash("a") + bytes(16)
    found = s.line({"type": "publish", "request": 7, "queue": "q", "messages": messages[:1]})
    assert isinstance(found, m.Publish)
    assert found.dedup == b"", "no message has one, and nothing says so for each"


def commit(
    publishes: bytes = b"", acks: bytes = b"\x90", *, size: int | None = None, numbers: tuple[int, ...] = (7, 1, 1, 1)
) -> m.Command | m.Refused:
    """What a broker makes of a COMMIT frame with these bytes."""
    body = binary.COMMIT.pack(*numbers, len(acks) if size is None else size) + acks + publishes
    return binary.decode_command((Kind.COMMIT, 0, memoryview(body)))


def part(flags: int = 0, kind: int = Kind.PUBLISH, zero: int = 0, *, more: int = 0, name: bytes = b"q") -> bytes:
    body = binary.PUBLISH.pack(0, 0, 0, len(name)) + name + BATCH
    return HEAD.pack(len(body) + more, kind, flags, zero) + body


def packed(acks: object) -> bytes:
    return msgspec.msgpack.encode(acks)


def test_a_commit_holds_frames_of_publishes_whose_numbers_mean_nothing() -> None:
    sent = b"".join(binary.encode_publish(5, b"q", 9, [BATCH], 3, delay_ms=4))
    found = commit(sent + part(1))
    assert isinstance(found, m.Commit)
    first, second = found.publishes
    assert (first.request, first.queue, first.sequence, first.oldest, first.delay_ms) == (0, "q", 0, 0, 4)
    assert (second.queue, second.to_topic, second.batch.bodies()) == ("q", True, [b"one", b"two"])


@pytest.mark.parametrize(
    "publishes",
    [
        part(0x10),
        part(2),
        part(kind=Kind.ACK),
        part(kind=Kind.COMMIT),
        part(zero=1),
        part(more=1),
        part(more=(1 << 31)),
        part()[:-1],
        part() + b"x",
        HEAD.pack(0, Kind.PUBLISH, 0, 0),
        HEAD.pack(20, Kind.PUBLISH, 0, 0) + bytes(20),
        part() * (PUBLISHES_MAX + 1),
    ],
    ids=["flags", "delay", "kind", "commit", "zero", "longer", "huge", "cut", "rest", "empty", "short", "many"],
)
def test_publishes_that_are_none_are_refused_with_the_request_of_the_commit(publishes: bytes) -> None:
    s.assert_refused(commit(publishes), InvalidRequest)


def test_a_publish_that_is_refused_is_refused_with_the_request_of_the_commit() -> None:
    s.assert_refused(commit(part() + part(name=b"\xff")), InvalidName)
    s.assert_refused(commit(part(1, name=b"a.*")), InvalidName)
    ask: dict[str, Any] = {"type": "commit", "request": 7, "epoch": 1, "publishes": []}
    s.assert_refused(s.line({**ask, "publishes": [{"queue": " q", "messages": [{"body": ""}]}]}), InvalidName)
    s.assert_refused(s.line({**ask, "publishes": [{"queue": "q", "messages": [{}]}]}), InvalidRequest)
    s.assert_refused(s.line({**ask, "publishes": [{"queue": "q", "messages": []}]}), InvalidRequest)
    s.assert_refused(s.line({**ask, "sequence": 1, "oldest": 2}), InvalidRequest)


def test_a_commit_may_have_as_many_publishes_and_runs_as_is_said() -> None:
    runs = [[1, 2]] * RUNS_MAX
    found = commit(part() * PUBLISHES_MAX, packed([[1, runs]]))
    assert isinstance(found, m.Commit)
    assert len(found.publishes) == PUBLISHES_MAX
    assert found.acks == (m.TransactionAck(1, ((1, 2),) * RUNS_MAX),)


TOO_MANY = [[1, [[1, 2]] * (RUNS_MAX - 1)], [2, [[1, 2]]], [3, [[1, 2]]]]


@pytest.mark.parametrize(
    "acks",
    [
        [[1, []]],
        [[1, [[2, 2]]]],
        [[1, [[0, 2]]]],
        [[-1, [[1, 2]]]],
        [[NUMBER_MAX + 1, [[1, 2]]]],
        [[1]],
        [1],
        {},
        TOO_MANY,
    ],
    ids=["none", "empty", "zero", "negative", "large", "short", "number", "map", "many"],
)
def test_acks_that_are_none_are_refused_in_both_codecs(acks: object) -> None:
    s.assert_refused(commit(acks=packed(acks)), InvalidRequest)
    s.assert_refused(s.line({"type": "commit", "request": 7, "epoch": 1, "acks": acks}), InvalidRequest)


@pytest.mark.parametrize(
    ("acks", "size"),
    [(b"", 0), (b"\xc1", 1), (b"\x90\x90", 2), (b"\x90", 2), (b"\x90", (1 << 32) - 1), (b"\x91" * 99_999, 99_999)],
    ids=["nothing", "invalid", "two", "cut", "huge", "nested"],
)
def test_acks_that_are_no_array_are_refused(acks: bytes, size: int) -> None:
    s.assert_refused(commit(acks=acks, size=size), InvalidRequest)


def test_acks_are_not_read_above_the_limit_of_control_frames() -> None:
    ignored = b"\x91\x93\x01\x91\x92\x01\x02\xc6" + (CONTROL_BYTES_MAX).to_bytes(4, "big") + bytes(CONTROL_BYTES_MAX)
    s.assert_refused(commit(acks=ignored), InvalidRequest)


@pytest.mark.parametrize(
    "numbers", [(0, 1, 1, 1), (7, NUMBER_MAX + 1, 1, 1), (7, 1, NUMBER_MAX + 1, 1), (7, 1, 1, 2)], ids=str
)
def test_numbers_of_a_commit_out_of_range_are_refused(numbers: tuple[int, ...]) -> None:
    refused = commit(part(), numbers=numbers)
    assert isinstance(refused, m.Refused)
    assert refused.request == numbers[0]
    assert isinstance(refused.error, RequestError)


def test_a_commit_is_written_without_copying_its_batches() -> None:
    bodies = [bytes(100_000), bytes(200_000)]
    parts = [binary.encode_publish(0, b"q", 0, [*pack([body])]) for body in bodies]
    buffers = binary.encode_commit(7, 1, 2, parts, [ACK], 2)
    assert [one for one in buffers if len(one) >= 100_000] == bodies
    assert all(any(one is body for one in buffers) for body in bodies)
    found = binary.decode_command(s.frame(buffers))
    assert isinstance(found, m.Commit)
    assert (found.request, found.epoch, found.sequence, found.oldest, found.acks) == (7, 1, 2, 2, (ACK,))
    assert [publish.batch.bodies() for publish in found.publishes] == [[body] for body in bodies]


def test_the_batches_of_a_commit_outlive_the_buffer_that_they_came_in() -> None:
    frame = bytearray(b"".join(binary.encode_commit(7, 1, 0, [binary.encode_publish(0, b"q", 0, [BATCH])])))
    found = binary.decode_command((Kind.COMMIT, 0, memoryview(frame)[HEAD.size :]))
    frame[:] = bytes(len(frame))
    assert isinstance(found, m.Commit)
    assert found.publishes[0].batch.bodies() == [b"one", b"two"]


def test_a_control_map_is_no_commit_and_no_publish() -> None:
    batch = Batch(BATCH)
    for ask in ({"type": "commit", "epoch": 1}, {"type": "publish", "queue": "q", "batch": bytes(batch.data)}):
        s.assert_refused(s.control({**ask, "request": 7}), InvalidRequest)


def schedule(**fields: object) -> m.SetSchedule:
    """What a JSON client's set-schedule is."""
    found = s.line({"type": "set-schedule", "request": 7, "name": "n", "queue": "q", "every_ms": 1, **fields})
    assert isinstance(found, m.SetSchedule)
    return found


def test_the_body_of_a_schedule_in_json_is_as_that_of_a_message() -> None:
    assert schedule().body == b""
    assert schedule(body="zwölf").body == "zwölf".encode()
    assert schedule(body_base64="/w==").body == b"\xff"
    ask = {"type": "set-schedule", "request": 7, "name": "n", "queue": "q"}
    for wrong in ({"body": "a", "body_base64": "YQ=="}, {"body_base64": "?"}, {"body": 1}):
        s.assert_refused(s.line({**ask, **wrong}), InvalidRequest)


def test_a_schedule_that_nobody_could_publish_is_refused() -> None:
    ask = {"type": "set-schedule", "request": 7, "name": "n", "queue": "q"}
    unusable: tuple[dict[str, object], ...] = (
        {"headers": {"k": []}},
        {"headers": {"k": {}}},
        {"priority": 10},
        {"misfire": "never"},
        {"times": -1},
    )
    for wrong in unusable:
        for found in (s.line({**ask, **wrong}), s.control({**ask, **wrong})):
            s.assert_refused(found, InvalidRequest)
    for name in ({"name": ""}, {"queue": ""}, {"queue": "a.*", "to_topic": True}, {"queue": "..", "to_topic": True}):
        for found in (s.line({**ask, **name}), s.control({**ask, **name})):
            s.assert_refused(found, InvalidName)


def test_delayed_messages_are_named_by_words_not_too_many() -> None:
    for kind in ("cancel-delayed", "reschedule"):
        ask = {"type": kind, "request": 7, "queue": "q"}
        unusable: tuple[object, ...] = ([], ["1-0"] * (RUNS_MAX + 1), ["x" * 256], [1], None)
        for wrong in unusable:
            for found in (s.line({**ask, "ids": wrong}), s.control({**ask, "ids": wrong})):
                s.assert_refused(found, InvalidRequest)
    both = {"type": "reschedule", "request": 7, "queue": "q", "ids": ["1-0"], "delay_ms": 1, "due_us": 1}
    s.assert_refused(s.line(both), InvalidRequest)
    s.assert_refused(s.control(both), InvalidRequest)


def test_a_result_that_is_one_message_has_its_body_as_text_or_base64_in_json() -> None:
    for body, shown in ((b"a", {"body": "a"}), (b"\xff", {"body_base64": base64.b64encode(b"\xff").decode()})):
        (encoded,) = json_lines.encode_reply(m.Done(request=1, result={"body": body, "due_at": "t"}))
        assert msgspec.json.decode(encoded)["result"] == {**shown, "due_at": "t"}


def test_the_reply_to_a_commit_has_every_field_in_both_codecs() -> None:
    stored = (m.Stored(0, 5), m.Stored(1, 0, 2, 9, ((0, 1, 2),)))
    reply = m.Committed(request=7, offset=3, stored=stored)
    assert binary.decode_reply(s.frame(binary.encode_reply(reply))) == reply
    (encoded,) = json_lines.encode_reply(reply)
    assert msgspec.json.decode(encoded)["stored"] == [[0, 5, 0, 0, []], [1, 0, 2, 9, [[0, 1, 2]]]]

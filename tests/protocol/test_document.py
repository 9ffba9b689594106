"""docs/protocol.md says what the code does."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from tests.protocol.strategies import frame, plain
from vibemq import batch as batches
from vibemq import durations, errors
from vibemq.batch import pack
from vibemq.declaration import Backoff, Mode, Overflow, QueueSettings
from vibemq.events import DeadReason
from vibemq.protocol import binary, fields, json_lines, session
from vibemq.protocol import json_shapes as shapes
from vibemq.protocol import messages as m
from vibemq.protocol.frames import PREFACE, Kind
from vibemq.protocol.keys import dedup_hash, key_hash
from vibemq.server import limits

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
LIMITS_OF_THE_EXAMPLE = m.Welcome(
    request=1,
    version=1,
    broker="vibemq 0.1.0",
    connection=7,
    heartbeat_ms=15_000,
    frame_bytes_max=16_777_216,
    batch_messages_max=65_536,
    publish_window_bytes=16_777_216,
    publish_window_batches=1_000,
    message_bytes_max=8_388_608,
)
SUBSCRIBED = {"subscription": 1, "queue": "orders", "group": None, "lease_ms": 30_000, "credit_bytes_max": 1 << 28}
BATCH = b"".join(pack([b"one", b"two!"]))
KEYED = b"".join(
    pack(
        [b"one", b"two!"],
        [{"topic": "orders.eu", "key": "customer-7"}, {"topic": "orders.eu"}],
        7,
        60_000,
        [key_hash("customer-7"), 0],
    )
)
CLIENT: dict[str, m.Command] = {
    "hello": m.Hello(client="demo"),
    "publish": m.Publish(2, "orders", 0, batches.Batch(BATCH)),
    "subscribe": m.Subscribe(request=3, queue="orders", messages=100, bytes=1 << 20),
    "ack": m.Ack(request=4, subscription=1, deliveries=((1, 3),)),
    "credit": m.Credit(subscription=1, messages=2, bytes=7, handed=3),
    "topic": m.Publish(5, "orders.eu", 0, batches.Batch(KEYED), to_topic=True),
    "reminder": m.Publish(
        6,
        "orders",
        0,
        batches.Batch(b"".join(pack([b"ring"]))),
        due_us=1_753_000_000_123_456,
        dedup=dedup_hash("order-1"),
    ),
    "commit": m.Commit(
        8,
        7,
        0,
        (m.Publish(0, "bills", 0, batches.Batch(b"".join(pack([b"one,two"])))),),
        (m.TransactionAck(1, ((1, 3),)),),
    ),
}
BROKER: dict[str, m.Reply] = {
    "welcome": LIMITS_OF_THE_EXAMPLE,
    "confirmed": m.Confirmed(request=2, offset=12, sequence=1),
    "subscribed": m.Done(request=3, result=SUBSCRIBED),
    "dropped": m.Confirmed(request=2, offset=12, sequence=1, dropped=1),
    "known": m.Confirmed(request=6, offset=13, sequence=0, due_us=1_753_000_000_123_456, duplicates=((0, 9, 1),)),
    "deliver": m.Deliver(1, 1, 1, 12, 0, 1_753_000_000_123_456, 1, False, [BATCH]),
}


def hex_block(name: str) -> bytes:
    found = re.search(rf"^```hex {name}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return bytes.fromhex(" ".join(line.split("#")[0] for line in found[1].splitlines()))


def section(title: str) -> str:
    found = re.search(rf"^### {title}\n(.*?)^##", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/protocol.md has no section {title}"
    return found[1]


def mentioned(text: str) -> set[str]:
    """The fields that a section tells of: first cells of its tables, and code."""
    cells = re.findall(r"^\| ([a-z_, ]+) \|", text, re.MULTILINE)
    return {name.strip() for cell in cells for name in cell.split(",")} | set(re.findall(r"`([a-z_]+)`", text))


@pytest.mark.parametrize("name", CLIENT)
def test_the_worked_example_has_the_bytes_of_the_client(name: str) -> None:
    written = hex_block(name)
    preface = PREFACE if name == "hello" else b""
    assert written.hex(" ") == (preface + b"".join(binary.encode_command(CLIENT[name]))).hex(" ")
    assert plain(binary.decode_command(frame([written[len(preface) :]]))) == plain(CLIENT[name])


@pytest.mark.parametrize("name", BROKER)
def test_the_worked_example_has_the_bytes_of_the_broker(name: str) -> None:
    written = hex_block(name)
    assert written.hex(" ") == b"".join(binary.encode_reply(BROKER[name])).hex(" ")
    assert plain(binary.decode_reply(frame([written]))) == plain(BROKER[name])


def test_there_is_no_other_block_of_bytes() -> None:
    assert set(re.findall(r"^```hex (\w+)", TEXT, re.MULTILINE)) == {*CLIENT, *BROKER}


def session_lines() -> list[tuple[bool, bytes]]:
    found = re.search(r"^```session\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [(line.startswith("> "), line.removeprefix("> ").encode()) for line in found[1].splitlines()]


def test_the_session_with_netcat_is_one_that_the_code_understands() -> None:
    server = session.ServerSession(1 << 24)
    expected = None
    for typed, line in session_lines():
        if typed:
            (command,) = server.receive(memoryview(line + b"\n"))
            if isinstance(command, m.Refused):
                expected = m.Failed(request=command.request, code=command.error.code, text=command.error.text)
        elif b'"type":"deliver"' in line:
            found = [msgspec.convert(one, shapes.JsonMessage) for one in msgspec.json.decode(line)["messages"]]
            assert b",".join(map(msgspec.json.encode, found)) in line
        else:
            reply = msgspec.json.decode(line, type=binary.ControlReply)
            assert json_lines.encode_reply(reply) == [line + b"\n"]
            if isinstance(reply, m.Failed) and reply.code == errors.InvalidRequest.code:
                assert reply == expected
    assert server.error is None
    assert server.state is session.State.CLOSED


def test_the_table_of_codes_is_that_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (\w+) \| (.*) \|$", TEXT, re.MULTILINE)
    expected = [
        (str(code), kind.__name__, (kind.__doc__ or "").split("\n")[0]) for code, kind in sorted(errors.BY_CODE.items())
    ]
    assert rows == expected


def every_error(root: type[errors.VibeMQError] = errors.VibeMQError) -> list[type[errors.VibeMQError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in every_error(child))]


def test_every_code_belongs_to_one_error() -> None:
    kinds = [kind for kind in every_error() if kind.__module__ == errors.__name__]
    codes = [kind.code for kind in kinds if kind.code]
    assert sorted(codes) == sorted(set(codes))
    for kind in kinds:
        if issubclass(kind, errors.ProtocolError):
            assert 100 <= kind.code < 200
        elif issubclass(kind, errors.RequestError):
            assert 200 <= kind.code < 300
        else:
            assert kind.code == 0, "what never travels has no code"


def test_the_tree_of_errors_is_the_one_at_the_top_of_its_module() -> None:
    kinds = [kind for kind in every_error() if kind.__module__ == errors.__name__]
    tree = re.findall(r"^    ( *)(\w+)", (errors.__doc__ or "").split("Errors with a `code`")[0], re.MULTILINE)
    parents: dict[int, str] = {}
    drawn = {}
    for indent, name in tree:
        drawn[name] = parents.get(len(indent) - 2, "VibeMQError")
        parents[len(indent)] = name
    bases = {kind.__name__: kind.__mro__[1].__name__ for kind in kinds}
    assert drawn == {**bases, "VibeMQError": "VibeMQError"}


def test_errors_come_out_of_the_wire_as_they_went_in() -> None:
    for code, kind in errors.BY_CODE.items():
        error = errors.from_wire(code, "what happened")
        assert type(error) is kind
        assert error.text == "what happened"
    for code in (0, 1, 999, 1 << 40):
        unknown = errors.from_wire(code, "what happened")
        assert type(unknown) is errors.RequestError
        assert str(code) in unknown.text


@pytest.mark.parametrize("kind", get_args(m.Command), ids=lambda kind: kind.__name__)
def test_every_field_that_a_client_sends_is_described(kind: type[msgspec.Struct]) -> None:
    name = kind.__struct_config__.tag or kind.__name__.lower()
    assert set(kind.__struct_fields__) <= mentioned(section(str(name))) | {"batch"}


@pytest.mark.parametrize("kind", get_args(m.Reply), ids=lambda kind: kind.__name__)
def test_every_field_that_the_broker_sends_is_described(kind: type[msgspec.Struct]) -> None:
    if kind in {m.Pong, m.Ping, m.Goodbye}:
        return
    name = kind.__struct_config__.tag or "deliver"
    assert set(kind.__struct_fields__) - {"parts"} <= mentioned(section(str(name)))


def test_a_field_left_out_would_be_noticed() -> None:
    assert "wait_ms" in mentioned(section("credit"))
    assert "wait_ms" not in mentioned(section("credit").replace("| wait_ms |", "|"))


def test_every_kind_of_frame_and_setting_is_described() -> None:
    for kind in Kind:
        assert re.search(rf"^\| {kind.value} \| {kind.name} \|", TEXT, re.MULTILINE)
    defaults = QueueSettings()
    for name in QueueSettings.__struct_fields__:
        shown = msgspec.json.encode(getattr(defaults, name)).decode()
        assert f"| {name} | {shown} |" in section("declare")


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    for number, place in (
        (fields.RUNS_MAX, "Runs in ack, nack, extend, and in all acks of a commit | | {}"),
        (fields.RUNS_MAX, "Ids in cancel-delayed and reschedule | | {}"),
        (fields.PUBLISHES_MAX, "Publishes in a commit | | {}"),
        (fields.RUNS_MAX, "deliveries | 1 to {} runs"),
        (fields.TEXT_MAX, "text | up to {} characters"),
        (fields.NAME_BYTES_MAX, "queue or group: 1 to {} bytes"),
        (fields.NAME_BYTES_MAX, "word | up to {} characters"),
        (fields.ELEMENTS_MAX, "{} elements"),
        (batches.MESSAGES_MAX, "`count`: 1 to {},"),
        (batches.HEADER_BYTES_MAX, "Headers of a message | | {} bytes"),
        (m.Redrive(request=1, queue="q").count, "Messages that one redrive moves | | {}"),
    ):
        assert place.format(f"{number:,}") in TEXT
    assert session.HELLO_BYTES_MAX == 16 * 1024
    assert fields.CONTROL_BYTES_MAX == 1 << 20
    assert (fields.NUMBER_MAX, fields.COUNT_MAX) == ((1 << 63) - 1, (1 << 32) - 1)
    assert fields.PRODUCER_MAX == (1 << 64) - 1
    assert (
        fields.DURATION_MS_MAX == batches.TTL_MS_MAX == durations.DURATION_MS_MAX == limits.DURATION_MS_MAX == 1 << 40
    )


def test_the_hash_of_a_key_in_the_text_is_that_of_the_code() -> None:
    assert f"`customer-7` has the hash {key_hash('customer-7'):#x}" in TEXT


def test_the_hash_of_a_dedup_id_in_the_text_is_that_of_the_code() -> None:
    assert f"`order-1` has the hash {dedup_hash('order-1').hex()}" in TEXT.replace("\n", " ")


def test_what_the_text_says_of_choices_is_what_there_is() -> None:
    for choices, place in (
        (Mode, section("declare")),
        (Overflow, section("declare")),
        (Backoff, section("declare")),
        (get_args(fields.OnDifference), section("declare")),
        (get_args(fields.Start), TEXT),
        (get_args(fields.Misfire), section("set-schedule")),
    ):
        for choice in choices:
            assert f'`"{choice}"`' in place
    for reason in DeadReason:
        assert f"`{reason.name.lower().replace('_', '-')}`" in section("dead-letters")

"""The bytes of every message are those that were agreed once: both ways, in both codecs."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from tests.protocol import strategies as s
from tests.protocol.examples import COMMANDS, GOLDEN, REPLIES, files
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.frames import Frame

CONTENTS = files()


@pytest.mark.parametrize("path", CONTENTS, ids=lambda path: path.name)
def test_a_message_is_encoded_as_in_its_golden_file(path: Path) -> None:
    assert path.read_bytes() == CONTENTS[path]


def test_there_is_no_golden_file_without_a_message() -> None:
    assert {path for path in GOLDEN.iterdir() if path.suffix in {".hex", ".json"}} == set(CONTENTS)


def test_every_message_has_an_example() -> None:
    assert {type(one) for one in COMMANDS} == set(get_args(m.Command))
    assert {type(one) for one in REPLIES} == set(get_args(m.Reply)) - {m.Ping, m.Goodbye}


def golden_frame(side: str, message: object) -> Frame:
    text = (GOLDEN / f"{side}-{type(message).__name__.lower()}.hex").read_text()
    return s.frame([bytes.fromhex(text)])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: type(one).__name__)
def test_a_golden_command_is_understood(command: m.Command) -> None:
    assert s.plain(binary.decode_command(golden_frame("client", command))) == s.plain(command)
    line = (GOLDEN / f"client-{type(command).__name__.lower()}.json").read_bytes()
    assert s.plain(json_lines.decode_command(line)) == s.plain(command)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda one: type(one).__name__)
def test_a_golden_reply_is_understood(reply: m.Reply) -> None:
    assert s.plain(binary.decode_reply(golden_frame("broker", reply))) == s.plain(reply)
    line = (GOLDEN / f"broker-{type(reply).__name__.lower()}.json").read_bytes()
    if isinstance(reply, m.Deliver):
        assert [one["sequence"] for one in msgspec.json.decode(line)["messages"]] == [
            reply.sequence,
            reply.sequence + 1,
        ]
    else:
        assert msgspec.json.decode(line, type=binary.ControlReply) == reply

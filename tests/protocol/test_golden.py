"""The bytes of every message are those that were agreed once: both ways, in both codecs."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from tests.protocol import strategies as s
from tests.protocol.examples import COMMANDS, EARLIER, GOLDEN, GOLDEN_EARLIER, REPLIES, files
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
    assert {type(one) for one in COMMANDS.values()} == set(get_args(m.Command))
    assert {type(one) for one in REPLIES.values()} == set(get_args(m.Reply)) - {m.Ping, m.Goodbye}


def golden_frame(path: Path) -> Frame:
    return s.frame([bytes.fromhex(path.read_text())])


def check_command(stem: Path, command: m.Command) -> None:
    """Both files of a command are understood as this one."""
    assert s.plain(binary.decode_command(golden_frame(stem.with_suffix(".hex")))) == s.plain(command)
    line = stem.with_suffix(".json").read_bytes()
    assert s.plain(json_lines.decode_command(line)) == s.plain(command)


def check_reply(stem: Path, reply: m.Reply) -> None:
    """Both files of a reply are understood as this one."""
    assert s.plain(binary.decode_reply(golden_frame(stem.with_suffix(".hex")))) == s.plain(reply)
    line = stem.with_suffix(".json").read_bytes()
    if isinstance(reply, m.Deliver):
        found = [one["sequence"] for one in msgspec.json.decode(line)["messages"]]
        assert found == [reply.sequence, reply.sequence + 1]
    else:
        assert msgspec.json.decode(line, type=binary.ControlReply) == reply


@pytest.mark.parametrize("name", COMMANDS)
def test_a_golden_command_is_understood(name: str) -> None:
    check_command(GOLDEN / f"client-{name}", COMMANDS[name])


@pytest.mark.parametrize("name", REPLIES)
def test_a_golden_reply_is_understood(name: str) -> None:
    check_reply(GOLDEN / f"broker-{name}", REPLIES[name])


@pytest.mark.parametrize("name", EARLIER)
def test_what_was_sent_before_a_message_grew_is_understood(name: str) -> None:
    message: Any = EARLIER[name]
    (check_command if name.startswith("client-") else check_reply)(GOLDEN_EARLIER / name, message)


def test_there_is_no_earlier_file_without_a_message() -> None:
    assert {path.stem for path in GOLDEN_EARLIER.iterdir()} == set(EARLIER)

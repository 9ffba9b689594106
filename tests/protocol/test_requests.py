"""What a request may say: names, topics, patterns, choices, and what JSON makes of keys and topics."""

from typing import Any

import pytest

from tests.protocol import strategies as s
from tests.protocol.strategies import assert_refused, control, line, through_binary, through_json
from vibemq.batch import Batch, pack
from vibemq.errors import InvalidName, InvalidRequest
from vibemq.protocol import messages as m
from vibemq.protocol.fields import DURATION_MS_MAX, TEXT_MAX
from vibemq.protocol.keys import key_hash

BAD_NAMES = ["", " q", "q ", "a\nb", "a\x7f", "a\x85b", "é" * 128, "q" * 256]


@pytest.mark.parametrize("queue", BAD_NAMES)
def test_a_bad_name_is_refused_with_the_request(queue: str) -> None:
    publish = {"type": "publish", "request": 7, "queue": queue, "messages": [{"body": ""}]}
    kinds = ("declare", "purge", "subscribe", "peek", "list-bindings", "undelete", "dead-letters", "redrive")
    asks = [{"type": kind, "request": 7, "queue": queue} for kind in kinds]
    found = [line(publish), *map(line, asks), *map(control, asks)]
    if len(queue.encode()) <= 255:
        found.append(through_binary(m.Publish(7, queue, 1, Batch(b"".join(pack([b""]))))))
    for refused in found:
        assert_refused(refused, InvalidName)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    ("kind", "field", "others"),
    [
        ("subscribe", "group", {}),
        ("peek", "group", {}),
        ("delete-group", "group", {}),
        ("seek", "group", {"start": "head"}),
        ("rename", "name", {}),
        ("undelete", "name", {}),
        ("redrive", "target", {}),
        ("bind", "pattern", {}),
        ("unbind", "pattern", {}),
    ],
)
def test_a_bad_name_beside_the_queue_is_refused_too(kind: str, field: str, others: dict[str, str], name: str) -> None:
    ask = {"type": kind, "request": 7, "queue": "q", field: name, **others}
    optional = not name and kind in {"undelete", "redrive"}
    too_long = field == "target" and len(name) > 255  # already above what its type allows
    for found in (line(ask), control(ask)):
        if optional:
            assert getattr(found, field) == ""
        else:
            assert_refused(found, InvalidRequest if too_long else InvalidName)


GOOD_TOPICS = ["a", "a.b.c", "orders.eu.created", "заказы.новые", "a b.c d", "$SYS.x", "x" * 255, "a.b.c.d.e.f.g.h.i.j"]
BAD_TOPICS = [*BAD_NAMES, ".", "..", ".a", "a.", "a..b", "a.*", "#", "a.b#", "*a", "a.b.c.d.e.f.g.h.i.j.k"]
GOOD_PATTERNS = [*GOOD_TOPICS, "*", "#", "a.*", "#.a", "a.#.b.*", "#.#", "#.a.#", ".".join("*" * 10)]
BAD_PATTERNS = [
    *BAD_NAMES,
    ".",
    "..",
    ".#",
    "#.",
    "a..#",
    "a*",
    "*a.b",
    "a.#b",
    "**",
    "##",
    "#.#.#",
    "#.a.#.b.#",
    ".".join("*" * 11),
]


@pytest.mark.parametrize("topic", GOOD_TOPICS)
def test_a_topic_is_words_between_dots(topic: str) -> None:
    publish = m.Publish(7, topic, 1, Batch(b"".join(pack([b"x"], [{"topic": topic}]))), to_topic=True)
    assert s.plain(through_binary(publish)) == s.plain(through_json(publish)) == s.plain(publish)


@pytest.mark.parametrize("topic", BAD_TOPICS)
def test_what_is_no_topic_is_refused(topic: str) -> None:
    ask = {"type": "publish", "request": 7, "queue": topic, "messages": [{"body": ""}], "to_topic": True}
    assert_refused(line(ask), InvalidName)
    if len(topic.encode()) <= 255:
        publish = m.Publish(7, topic, 1, Batch(b"".join(pack([b""]))), to_topic=True)
        assert_refused(through_binary(publish), InvalidName)


@pytest.mark.parametrize("name", ["a..b", "a.", "*", "a#"])
def test_the_name_of_a_queue_need_not_be_words(name: str) -> None:
    publish = m.Publish(7, name, 1, Batch(b"".join(pack([b""]))))
    assert s.plain(through_binary(publish)) == s.plain(publish)


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_a_pattern_is_words_and_wildcards(pattern: str) -> None:
    for command in (m.Bind(request=7, queue="q", pattern=pattern), m.Unbind(request=7, queue="q", pattern=pattern)):
        assert through_binary(command) == through_json(command) == command


@pytest.mark.parametrize("pattern", BAD_PATTERNS)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    for kind in ("bind", "unbind"):
        ask = {"type": kind, "request": 7, "queue": "q", "pattern": pattern}
        assert_refused(line(ask), InvalidName)
        assert_refused(control(ask), InvalidName)


def test_a_group_of_its_own_is_resumed_by_its_name() -> None:
    command = m.Subscribe(request=7, queue="q", group="$12")
    assert through_binary(command) == through_json(command) == command


@pytest.mark.parametrize(
    "ask",
    [
        {"type": "subscribe", "start": "middle"},
        {"type": "seek", "group": "g"},
        {"type": "seek", "group": "g", "start": "middle"},
        {"type": "seek", "start": "head"},
        {"type": "declare", "on_difference": "panic"},
        {"type": "change"},
        {"type": "rename"},
        {"type": "bind"},
        {"type": "redrive", "dry_run": 1},
        {"type": "dead-letters", "error": "x" * (TEXT_MAX + 1)},
        {"type": "dead-letters", "reason": "x" * 256},
        {"type": "subscribe", "exclusive": "yes"},
    ],
    ids=str,
)
def test_a_choice_that_there_is_not_is_refused(ask: dict[str, Any]) -> None:
    whole = {"request": 7, "queue": "q", **ask}
    assert_refused(line(whole), InvalidRequest)
    assert_refused(control(whole), InvalidRequest)


def test_names_may_hold_any_script() -> None:
    for queue in ("orders", "orders.dlq", "a b", "заказы", "注文", "é" * 127, "q" * 255, "\u2028"):
        command = m.Purge(request=1, queue=queue)
        assert through_binary(command) == through_json(command) == command


def one_message(message: dict[str, Any], **fields: object) -> m.Publish:
    """What a JSON client's publish of one message is."""
    found = line({"type": "publish", "request": 7, "queue": "q", "messages": [message], **fields})
    assert isinstance(found, m.Publish)
    return found


def test_a_key_in_json_becomes_a_header_and_its_hash() -> None:
    batch = one_message({"body": "x", "key": "customer-7", "headers": {"key": "other", "k": 1}}).batch
    assert list(batch.headers()) == [{"key": "customer-7", "k": 1}]
    assert list(batch.keys or ()) == [key_hash("customer-7")]


def test_messages_without_a_key_are_of_none() -> None:
    batch = one_message({"body": "x", "key": "", "headers": {"key": "not meant"}}).batch
    assert batch.keys is None
    assert list(batch.headers()) == [{"key": "not meant"}]
    two = line({"type": "publish", "request": 7, "queue": "q", "messages": [{"body": ""}, {"body": "", "key": "a"}]})
    assert isinstance(two, m.Publish)
    assert list(two.batch.keys or ()) == [0, key_hash("a")]


def test_a_topic_in_json_becomes_a_header() -> None:
    publish = one_message({"body": "x", "headers": {"topic": "other"}}, to_topic=True)
    assert (publish.queue, publish.to_topic) == ("q", True)
    assert list(publish.batch.headers()) == [{"topic": "q"}]
    assert list(one_message({"body": "x", "headers": {"topic": "kept"}}).batch.headers()) == [{"topic": "kept"}]


def test_a_time_to_live_in_json_is_that_of_the_batch() -> None:
    assert one_message({"body": "x"}, ttl_ms=1_500).batch.ttl_ms == 1_500
    assert one_message({"body": "x"}, ttl_ms=DURATION_MS_MAX).batch.ttl_ms == DURATION_MS_MAX
    assert one_message({"body": "x"}, ttl_ms=0).batch.flags == 0
    for wrong in (-1, DURATION_MS_MAX + 1, 1.5, "1s", None):
        ask = {"type": "publish", "request": 7, "queue": "q", "messages": [{"body": ""}], "ttl_ms": wrong}
        assert_refused(line(ask), InvalidRequest)


@pytest.mark.parametrize("key", ["x" * 256, 7, None])
def test_a_key_is_a_word(key: object) -> None:
    ask = {"type": "publish", "request": 7, "queue": "q", "messages": [{"body": "", "key": key}]}
    assert_refused(line(ask), InvalidRequest)

"""Strategies for everything that client and broker can say, and both codecs as a client sees them."""

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import strategies as st

from vibemq.batch import PRIORITY_MAX, TTL_MS_MAX, Batch, Headers, pack
from vibemq.errors import InvalidName, RequestError
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.fields import (
    COUNT_MAX,
    DURATION_MS_MAX,
    HASH_BYTES,
    NUMBER_MAX,
    PRODUCER_MAX,
    check_name,
    check_pattern,
    check_topic,
)
from vibemq.protocol.frames import Frame, FrameReader, Kind
from vibemq.protocol.keys import dedup_hash, key_hash

DEDUP_IDS = ("", "order-1", "zwölf", "2")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def _accepted_by(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except InvalidName:
        return False
    return True


names = texts.filter(partial(_accepted_by, check_name))
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=".*#"), min_size=1, max_size=8)
topics = st.lists(words, min_size=1, max_size=4).map(".".join).filter(partial(_accepted_by, check_topic))
patterns = (
    st.lists(words | st.sampled_from("*#"), min_size=1, max_size=4)
    .map(".".join)
    .filter(partial(_accepted_by, check_pattern))
)
requests = st.integers(1, COUNT_MAX)
requests_or_none = st.integers(0, COUNT_MAX)
numbers = st.integers(0, NUMBER_MAX)
counts = st.integers(0, COUNT_MAX)
durations = st.integers(0, DURATION_MS_MAX)
bits = st.booleans()
runs = (
    st.tuples(st.integers(1, NUMBER_MAX), st.integers(1, NUMBER_MAX))
    .filter(lambda run: run[0] != run[1])
    .map(lambda run: (min(run), max(run)))
)
deliveries = st.lists(runs, min_size=1, max_size=5).map(tuple)
finite = st.floats(allow_nan=False, allow_infinity=False)
settings = st.dictionaries(texts, texts | bits | st.integers(-NUMBER_MAX, NUMBER_MAX) | finite, max_size=3)

json_header_values = st.none() | bits | st.integers(-(1 << 63), (1 << 64) - 1) | finite | texts
headers: st.SearchStrategy[Headers] = st.dictionaries(
    texts, json_header_values | st.binary(max_size=20) | st.floats(), max_size=3
)
bodies = st.binary(max_size=40)


ttls = st.just(0) | st.integers(1, TTL_MS_MAX)
key_hashes = st.just(0) | st.integers(1, (1 << 64) - 1)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    found = draw(st.lists(st.tuples(bodies, st.none() | headers, key_hashes), min_size=1, max_size=6))
    sent, header_sets, keys = zip(*found, strict=True)
    return Batch(b"".join(pack(sent, header_sets, draw(st.integers(0, PRIORITY_MAX)), draw(ttls), keys)))


@st.composite
def json_batches(draw: st.DrawFn, topic: str) -> Batch:
    """What JSON can say: a key is text, and a header like the topic (empty: none)."""
    json_headers = st.dictionaries(texts, json_header_values, max_size=3)
    found = draw(st.lists(st.tuples(bodies, json_headers, texts), min_size=1, max_size=6))
    header_sets = [one | ({"topic": topic} if topic else {}) | ({"key": key} if key else {}) for _, one, key in found]
    keys = [key_hash(key) if key else 0 for _, _, key in found]
    sent = [body for body, _, _ in found]
    return Batch(b"".join(pack(sent, header_sets, draw(st.integers(0, PRIORITY_MAX)), draw(ttls), keys)))


starts = st.sampled_from(["tail", "head", "sequence", "time"])
filters = {
    "reason": texts,
    "source": texts,
    "error": texts,
    "since_us": numbers,
    "until_us": numbers,
    "start": numbers,
    "count": counts,
}
message_ids = st.lists(st.builds("{}-{}".format, numbers, counts), min_size=1, max_size=3).map(tuple)
duplicates = st.lists(st.tuples(counts, numbers, counts), max_size=3).map(tuple)
subscribed = {"subscription": numbers, "deliveries": deliveries}
controls = (
    st.builds(
        m.Hello,
        request=requests,
        version_min=st.integers(0, 0xFFFF),
        version_max=st.integers(0, 0xFFFF),
        client=texts,
        heartbeat_ms=durations,
        producer=st.integers(0, PRODUCER_MAX),
        compression=st.lists(texts, max_size=3).map(tuple),
    )
    | st.builds(
        m.Subscribe,
        request=requests,
        queue=names,
        group=st.none() | names,
        messages=counts,
        bytes=counts,
        start=starts,
        at=numbers,
        exclusive=bits,
    )
    | st.builds(m.Unsubscribe, request=requests, subscription=numbers)
    | st.builds(m.Seek, request=requests, queue=names, group=names, start=starts, at=numbers)
    | st.builds(m.DeleteGroup, request=requests, queue=names, group=names)
    | st.builds(
        m.Credit,
        subscription=numbers,
        messages=counts,
        bytes=counts,
        handed=numbers,
        wait_ms=st.integers(-1, (1 << 31) - 1),
    )
    | st.builds(m.Ack, request=requests_or_none, **subscribed)
    | st.builds(
        m.Nack,
        request=requests_or_none,
        delay_ms=st.none() | durations,
        reason=texts,
        reject=bits,
        **subscribed,
    )
    | st.builds(m.Extend, request=requests_or_none, lease_ms=durations, **subscribed)
    | st.builds(
        m.Declare,
        request=requests,
        queue=names,
        settings=settings,
        on_difference=st.sampled_from(["fail", "ignore", "override"]),
    )
    | st.builds(m.Change, request=requests, queue=names, settings=settings)
    | st.builds(m.Rename, request=requests, queue=names, name=names)
    | st.builds(m.Bind, request=requests, queue=names, pattern=patterns)
    | st.builds(m.Unbind, request=requests, queue=names, pattern=patterns)
    | st.builds(m.ListBindings, request=requests, queue=st.none() | names)
    | st.builds(m.ListQueues, request=requests)
    | st.builds(m.ShowQueue, request=requests, queue=names)
    | st.builds(m.Purge, request=requests, queue=names)
    | st.builds(m.Delete, request=requests, queue=names, grace_ms=st.none() | durations)
    | st.builds(m.Undelete, request=requests, queue=names, name=st.just("") | names)
    | st.builds(
        m.Peek,
        request=requests,
        queue=names,
        start=numbers,
        count=counts,
        group=st.none() | names,
        priority=st.none() | st.integers(0, 9),
    )
    | st.builds(m.DeadLetters, request=requests, queue=names, **filters)
    | st.builds(
        m.Redrive, request=requests, queue=names, target=st.just("") | names, end=numbers, dry_run=bits, **filters
    )
    | st.builds(m.Begin, request=requests, timeout_ms=durations)
    | st.builds(m.Rollback, request=requests, epoch=numbers)
    | st.builds(m.ListDelayed, request=requests, queue=names, after=st.tuples(numbers, numbers, numbers), count=counts)
    | st.builds(m.ShowDelayed, request=requests, queue=names, id=texts)
    | st.builds(m.CancelDelayed, request=requests, queue=names, ids=message_ids)
    | st.builds(m.Reschedule, request=requests, queue=names, ids=message_ids, delay_ms=numbers)
    | st.builds(m.Reschedule, request=requests, queue=names, ids=message_ids, due_us=numbers)
    | st.builds(
        m.SetSchedule,
        request=requests,
        name=names,
        queue=topics,
        to_topic=bits,
        body=bodies,
        headers=st.dictionaries(texts, json_header_values, max_size=3),
        priority=st.integers(0, PRIORITY_MAX),
        ttl_ms=durations,
        cron=texts,
        zone=texts,
        every_ms=durations,
        start_us=numbers,
        end_us=numbers,
        times=numbers,
        misfire=st.sampled_from(["skip", "once", "all"]),
    )
    | st.builds(m.ListSchedules, request=requests, name=st.none() | texts)
    | st.builds(m.PauseSchedule, request=requests, name=texts, paused=bits)
    | st.builds(m.DeleteSchedule, request=requests, name=texts)
    | st.builds(m.Flush, request=requests)
    | st.builds(m.Digest, request=requests)
    | st.just(m.Ping())
    | st.builds(m.Goodbye, code=counts, text=texts)
)


times = st.just((0, 0)) | st.tuples(numbers, st.just(0)) | st.tuples(st.just(0), numbers)
"""delay_ms and due_us, of which one is 0."""


@st.composite
def publishes(draw: st.DrawFn, *, as_json: bool = False, is_part: bool = False) -> m.Publish:
    """A publish to a queue or a topic; no batch is older than the oldest. A part of a commit has no numbers."""
    to_topic, sequence = draw(bits), 0 if is_part else draw(numbers)
    queue = draw(topics if to_topic else names)
    batch = draw(json_batches(queue if to_topic else "") if as_json else batches())
    request = 0 if is_part else draw(requests)
    dedup = draw(st.just(b"") | hashes(batch.count))
    return m.Publish(request, queue, sequence, batch, draw(st.integers(0, sequence)), to_topic, *draw(times), dedup)


def hashes(count: int) -> st.SearchStrategy[bytes]:
    """The hashes of the dedup ids of so many messages, of which one at least has some."""
    some = st.lists(st.sampled_from(DEDUP_IDS), min_size=count, max_size=count).filter(any)
    return some.map(lambda ids: b"".join(dedup_hash(one) if one else bytes(HASH_BYTES) for one in ids))


@st.composite
def commits(draw: st.DrawFn, *, as_json: bool = False) -> m.Commit:
    """Any number of publishes and acks at once."""
    sequence = draw(numbers)
    return m.Commit(
        draw(requests),
        draw(numbers),
        sequence,
        tuple(draw(st.lists(publishes(as_json=as_json, is_part=True), max_size=4))),
        tuple(draw(st.lists(st.builds(m.TransactionAck, numbers, deliveries), max_size=3))),
        draw(st.integers(0, sequence)),
    )


json_publishes = publishes(as_json=True)
json_commits = commits(as_json=True)
commands = controls | publishes() | commits()

results = st.recursive(
    st.none() | bits | st.integers(-NUMBER_MAX, NUMBER_MAX) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
control_replies = (
    st.builds(
        m.Welcome,
        request=requests,
        version=st.integers(0, 0xFFFF),
        broker=texts,
        connection=numbers,
        heartbeat_ms=durations,
        frame_bytes_max=counts,
        batch_messages_max=counts,
        publish_window_bytes=numbers,
        publish_window_batches=counts,
        message_bytes_max=counts,
        compression=texts,
    )
    | st.builds(
        m.Confirmed,
        request=requests,
        offset=numbers,
        sequence=numbers,
        duplicate=bits,
        dropped=counts,
        due_us=numbers,
        duplicates=duplicates,
    )
    | st.builds(
        m.Committed,
        request=requests,
        offset=numbers,
        duplicate=bits,
        stored=st.lists(st.builds(m.Stored, counts, numbers, counts, numbers, duplicates), max_size=3).map(tuple),
    )
    | st.builds(m.Done, request=requests, result=results)
    | st.builds(m.Failed, request=requests_or_none, code=counts, text=texts)
    | st.builds(m.Drained, subscription=numbers)
    | st.builds(m.LeasesLost, **subscribed)
    | st.builds(m.Ended, subscription=numbers, code=counts, text=texts)
    | st.builds(m.Unblocked, queue=names)
    | st.just(m.Ping())
    | st.just(m.Pong())
    | st.builds(m.Goodbye, code=counts, text=texts)
)
delivers = st.builds(
    m.Deliver,
    numbers,
    numbers,
    numbers,
    numbers,
    counts,
    st.integers(0, 1 << 60),
    st.integers(0, 0xFFFF),
    bits,
    batches().map(lambda batch: [batch.data]),
)
replies = control_replies | delivers


def plain(message: object) -> object:
    """A message in a form that compares by value: batches as their bytes, refusals as their text."""
    if isinstance(message, m.Publish):
        return ("publish", *_fields_but(message, "batch"), bytes(message.batch.data))
    if isinstance(message, m.Commit):
        return ("commit", *_fields_but(message, "publishes"), *map(plain, message.publishes))
    if isinstance(message, m.Deliver):
        return ("deliver", *_fields_but(message, "parts"), b"".join(message.parts))
    if isinstance(message, m.Refused):
        return ("refused", message.request, type(message.error), message.error.text)
    return message


def _fields_but(message: msgspec.Struct, left_out: str) -> list[object]:
    return [getattr(message, name) for name in message.__struct_fields__ if name != left_out]


def frame(buffers: list[bytes | memoryview]) -> Frame:
    """The one frame in these buffers."""
    (found,) = FrameReader(1 << 30).feed(memoryview(b"".join(buffers)))
    return found


def json_line(command: m.Command) -> bytes:
    """The line that a JSON client sends for `command`; what has its default is left out of a publish."""
    if isinstance(command, m.Publish):
        numbered = {name: getattr(command, name) for name in ("request", "queue", "sequence", "oldest")}
        return msgspec.json.encode({"type": "publish"} | numbered | _json_publish(command)) + b"\n"
    if isinstance(command, m.Commit):
        shown = {name: getattr(command, name) for name in command.__struct_fields__}
        publishes = [_json_publish(one) for one in command.publishes]
        return msgspec.json.encode({"type": "commit"} | shown | {"publishes": publishes}) + b"\n"
    if isinstance(command, m.SetSchedule):
        shown = msgspec.to_builtins(command)
        return msgspec.json.encode(shown | {"body_base64": shown.pop("body")}) + b"\n"
    return msgspec.json.encode(command) + b"\n"


def _json_publish(command: m.Publish) -> dict[str, object]:
    shown: dict[str, object] = {"queue": command.queue, "priority": command.batch.priority}
    if command.batch.ttl_ms:
        shown["ttl_ms"] = command.batch.ttl_ms
    if command.to_topic:
        shown["to_topic"] = True
    if command.delay_ms:
        shown["delay_ms"] = command.delay_ms
    if command.due_us:
        shown["due_us"] = command.due_us
    return shown | {"messages": _json_messages(command)}


def _json_messages(publish: m.Publish) -> list[dict[str, object]]:
    batch, found, none = publish.batch, list[dict[str, object]](), bytes(HASH_BYTES)
    for body, one, key in zip(batch.bodies(), batch.headers(), batch.keys or [0] * batch.count, strict=True):
        message: dict[str, object] = {"body_base64": base64.b64encode(body).decode(), "headers": one}
        if key:
            message["key"] = one.pop("key")
        if publish.to_topic:
            del one["topic"]
        if hashed := publish.dedup[len(found) * HASH_BYTES :][:HASH_BYTES]:
            message["dedup_id"] = next(name for name in DEDUP_IDS if (dedup_hash(name) if name else none) == hashed)
        found.append(message)
    return found


def through_binary(command: m.Command) -> m.Command | m.Refused:
    """What a broker makes of the frame of `command`."""
    return binary.decode_command(frame(binary.encode_command(command)))


def through_json(command: m.Command) -> m.Command | m.Refused:
    """What a broker makes of the line of `command`."""
    return json_lines.decode_command(json_line(command))


def control(fields: dict[str, Any]) -> m.Command | m.Refused:
    """What a broker makes of a CONTROL frame with these fields."""
    return binary.decode_command((Kind.CONTROL, 0, memoryview(msgspec.msgpack.encode(fields))))


def line(fields: dict[str, Any]) -> m.Command | m.Refused:
    """What a broker makes of a line with these fields."""
    return json_lines.decode_command(json.dumps(fields).encode())


def assert_refused(found: m.Command | m.Refused, error: type[RequestError]) -> None:
    """Refused for that reason, with request 7."""
    assert isinstance(found, m.Refused), f"accepted: {found}"
    assert found.request == 7
    assert type(found.error) is error

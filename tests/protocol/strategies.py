"""Strategies for everything that client and broker can say, and both codecs as a client sees them."""

import base64

import msgspec
from hypothesis import strategies as st

from vibemq.batch import PRIORITY_MAX, Batch, Headers, pack
from vibemq.errors import InvalidName
from vibemq.protocol import messages as m
from vibemq.protocol.fields import COUNT_MAX, DURATION_MS_MAX, NUMBER_MAX, PRODUCER_MAX, check_name
from vibemq.protocol.frames import Frame, FrameReader

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidName:
        return False
    return True


names = texts.filter(_is_name)
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
settings = st.dictionaries(texts, texts | st.integers(-NUMBER_MAX, NUMBER_MAX) | finite, max_size=3)

json_header_values = st.none() | bits | st.integers(-(1 << 63), (1 << 64) - 1) | finite | texts
headers: st.SearchStrategy[Headers] = st.dictionaries(
    texts, json_header_values | st.binary(max_size=20) | st.floats(), max_size=3
)
bodies = st.binary(max_size=40)


@st.composite
def batches(draw: st.DrawFn, header_sets: st.SearchStrategy[Headers] = headers) -> Batch:
    found = draw(st.lists(st.tuples(bodies, st.none() | header_sets), min_size=1, max_size=6))
    parts = pack([body for body, _ in found], [one for _, one in found], draw(st.integers(0, PRIORITY_MAX)))
    return Batch(b"".join(parts))


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
    | st.builds(m.Subscribe, request=requests, queue=names, group=st.none() | names, messages=counts, bytes=counts)
    | st.builds(m.Unsubscribe, request=requests, subscription=numbers)
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
    | st.builds(m.Declare, request=requests, queue=names, settings=settings)
    | st.builds(m.ListQueues, request=requests)
    | st.builds(m.ShowQueue, request=requests, queue=names)
    | st.builds(m.Purge, request=requests, queue=names)
    | st.builds(m.Delete, request=requests, queue=names)
    | st.builds(m.Peek, request=requests, queue=names, start=numbers, count=counts)
    | st.builds(m.Flush, request=requests)
    | st.builds(m.Digest, request=requests)
    | st.just(m.Ping())
    | st.builds(m.Goodbye, code=counts, text=texts)
)


def publishes_of(of: st.SearchStrategy[Batch]) -> st.SearchStrategy[m.Publish]:
    """Publishes of such batches: no batch is older than the oldest."""
    return numbers.flatmap(lambda n: st.builds(m.Publish, requests, names, st.just(n), of, st.integers(0, n)))


publishes = publishes_of(batches())
json_publishes = publishes_of(batches(st.dictionaries(texts, json_header_values, max_size=3)))
commands = controls | publishes

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
    | st.builds(m.Confirmed, request=requests, offset=numbers, sequence=numbers, duplicate=bits)
    | st.builds(m.Done, request=requests, result=results)
    | st.builds(m.Failed, request=requests_or_none, code=counts, text=texts)
    | st.builds(m.Drained, subscription=numbers)
    | st.builds(m.LeasesLost, **subscribed)
    | st.builds(m.Ended, subscription=numbers, code=counts, text=texts)
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
        return ("publish", message.request, message.queue, message.sequence, message.oldest, bytes(message.batch.data))
    if isinstance(message, m.Deliver):
        fields = [getattr(message, name) for name in message.__struct_fields__ if name != "parts"]
        return ("deliver", *fields, b"".join(message.parts))
    if isinstance(message, m.Refused):
        return ("refused", message.request, type(message.error), message.error.text)
    return message


def frame(buffers: list[bytes | memoryview]) -> Frame:
    """The one frame in these buffers."""
    (found,) = FrameReader(1 << 30).feed(memoryview(b"".join(buffers)))
    return found


def json_line(command: m.Command) -> bytes:
    """The line that a JSON client sends for `command`."""
    if not isinstance(command, m.Publish):
        return msgspec.json.encode(command) + b"\n"
    pairs = zip(command.batch.bodies(), command.batch.headers(), strict=True)
    line = {
        "type": "publish",
        "request": command.request,
        "queue": command.queue,
        "sequence": command.sequence,
        "oldest": command.oldest,
        "priority": command.batch.priority,
        "messages": [{"body_base64": base64.b64encode(body).decode(), "headers": one} for body, one in pairs],
    }
    return msgspec.json.encode(line) + b"\n"

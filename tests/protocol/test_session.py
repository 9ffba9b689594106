"""Streams of bytes: however they are cut, the same commands come out, and never anything but commands or one error."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol import strategies as s
from vibemq.batch import Batch, pack
from vibemq.errors import (
    FlowExceeded,
    FrameTooLong,
    MalformedFrame,
    RequestError,
    ShuttingDown,
    UnexpectedFrame,
    UnsupportedVersion,
)
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.frames import HEAD, PREFACE, FrameReader, Kind
from vibemq.protocol.json_lines import LineReader
from vibemq.protocol.session import COMMANDS_MAX, HELLO_BYTES_MAX, ClientSession, ServerSession, State

LIMIT = 1 << 20
HELLO = b"".join(binary.encode_command(m.Hello()))
JSON_HELLO = b'{"type":"hello"}\n'
anything_but_hello = st.lists((s.controls | s.publishes()).filter(lambda one: not isinstance(one, m.Hello | m.Goodbye)))


def received(session: ServerSession, pieces: list[bytes]) -> list[object]:
    return [s.plain(command) for piece in pieces for command in session.receive(memoryview(piece))]


def cut(data: st.DataObject, stream: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    return [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]


@given(anything_but_hello, st.data())
def test_any_cut_of_a_binary_stream_gives_the_same_commands(sent: list[m.Command], data: st.DataObject) -> None:
    stream = PREFACE + HELLO + b"".join(b"".join(binary.encode_command(one)) for one in sent)
    for pieces in (cut(data, stream), [bytes([byte]) for byte in stream]):
        session = ServerSession(LIMIT)
        assert received(session, pieces) == [m.Hello(), *map(s.plain, sent)]
        assert session.state is State.OPEN


@given(anything_but_hello, st.data())
def test_any_cut_of_json_lines_gives_the_same_commands(sent: list[m.Command], data: st.DataObject) -> None:
    sent = [one for one in sent if not isinstance(one, m.Publish)]
    stream = JSON_HELLO + b"".join(s.json_line(one) + b"\r\n" for one in sent)
    for pieces in (cut(data, stream), [bytes([byte]) for byte in stream]):
        session = ServerSession(LIMIT)
        assert received(session, pieces) == [m.Hello(), *sent]


def test_a_reader_that_drops_what_straddles_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = PREFACE + HELLO + b"".join(binary.encode_command(m.Flush(request=2)))
    pieces = [stream[:30], stream[30:]]
    assert received(ServerSession(LIMIT), pieces) == [m.Hello(), m.Flush(request=2)]
    monkeypatch.setattr(FrameReader, "_collect", lambda _, data: len(data))
    assert received(ServerSession(LIMIT), pieces) != [m.Hello(), m.Flush(request=2)]


@given(st.binary(max_size=200), st.sampled_from([b"", PREFACE, PREFACE + HELLO, b"{", JSON_HELLO]), st.data())
def test_arbitrary_bytes_raise_nothing(noise: bytes, before: bytes, data: st.DataObject) -> None:
    session = ServerSession(LIMIT)
    whole = received(session, [before + noise])
    again = ServerSession(LIMIT)
    assert received(again, cut(data, before + noise)) == whole
    assert again.state is session.state
    assert (session.error is not None) == (again.error is not None)
    if session.error is not None:
        assert session.state is State.CLOSED
        assert session.encode(m.Goodbye(code=session.error.code, text=session.error.text))
        assert session.receive(memoryview(HELLO)) == []


@given(st.lists(s.replies), st.data())
def test_any_cut_of_what_the_broker_sends_gives_the_same_replies(sent: list[m.Reply], data: st.DataObject) -> None:
    sent = [one for one in sent if not isinstance(one, m.Goodbye)]
    stream = b"".join(b"".join(binary.encode_reply(one)) for one in sent)
    session = ClientSession()
    found = [s.plain(one) for piece in cut(data, stream) for one in session.receive(memoryview(piece))]
    assert found == [s.plain(one) for one in sent]


@given(st.binary(max_size=200))
def test_a_client_meets_only_protocol_errors(noise: bytes) -> None:
    try:
        list(ClientSession().receive(memoryview(noise)))
    except (MalformedFrame, FrameTooLong):
        return


@pytest.mark.parametrize("announced", [LIMIT + 1, (1 << 32) - 1])
def test_a_length_above_the_limit_is_refused_before_anything_is_kept(announced: int) -> None:
    session = ServerSession(LIMIT)
    head = HEAD.pack(announced, Kind.PUBLISH, 0, 0)
    for piece in (PREFACE + HELLO, head[:5], head[5:]):
        assert session.error is None
        session.receive(memoryview(piece))
    assert isinstance(session.error, FrameTooLong)


def test_memory_grows_with_what_came_and_not_with_what_was_announced() -> None:
    reader = FrameReader(1 << 30)
    list(reader.feed(memoryview(HEAD.pack(1 << 29, Kind.PUBLISH, 0, 0) + bytes(100))))
    assert len(reader._partial) == 108
    assert reader._partial.__sizeof__() < 1_000


def test_only_small_frames_come_before_hello() -> None:
    large = m.Hello(client="x" * 250, compression=("y" * 250,) * 16)
    assert received(ServerSession(LIMIT), [PREFACE, b"".join(binary.encode_command(large))]) == [large]
    for stream in (PREFACE + HEAD.pack(HELLO_BYTES_MAX + 1, 0, 0, 0), b'{"' + b"x" * HELLO_BYTES_MAX):
        session = ServerSession(LIMIT)
        assert session.receive(memoryview(stream)) == []
        assert isinstance(session.error, FrameTooLong)


def test_the_limit_grows_with_hello_within_one_read() -> None:
    publish = b"".join(binary.encode_publish(2, b"q", 1, [*pack([bytes(HELLO_BYTES_MAX)])]))
    assert len(received(ServerSession(LIMIT), [PREFACE + HELLO + publish])) == 2
    line = b'{"type":"publish","request":2,"queue":"q","messages":[{"body":"%s"}]}\n' % (b"x" * HELLO_BYTES_MAX)
    assert len(received(ServerSession(LIMIT), [JSON_HELLO + line])) == 2


def test_a_long_line_is_collected_in_place() -> None:
    reader = LineReader(LIMIT)
    collected = reader._partial
    for _ in range(4096):
        assert list(reader.feed(memoryview(b"x" * 16))) == []
        assert reader._partial is collected, "a copy at each read makes a long line cost its square"
    assert list(reader.feed(memoryview(b"\n"))) == [b"x" * (1 << 16)]


def test_a_line_above_the_limit_ends_the_reader() -> None:
    for stream in (b"x" * 11, b"x" * 11 + b"\n", b"abc\n" + b"x" * 11):
        reader = LineReader(10)
        list(reader.feed(memoryview(stream)))
        assert isinstance(reader.error, FrameTooLong)
        assert list(reader.feed(memoryview(b"abc\n"))) == []
    reader = LineReader(10)
    assert list(reader.feed(memoryview(b"x" * 10 + b"\n\n \n"))) == [b"x" * 10]


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", MalformedFrame),
        (b"VMQ\x01", MalformedFrame),
        (b"\x16\x03\x01\x02\x00", MalformedFrame),
        (PREFACE + HEAD.pack(0, 0, 0, 1), MalformedFrame),
        (PREFACE + b"".join(binary.encode_command(m.Ping())), UnexpectedFrame),
        (PREFACE + b"".join(binary.encode_command(m.Goodbye())), UnexpectedFrame),
        (PREFACE + b"".join(binary.encode_publish(0, b"", 0, [])), MalformedFrame),
        (PREFACE + b"".join(binary.encode_command(m.Hello(version_min=2, version_max=3))), UnsupportedVersion),
        (PREFACE + HELLO + HELLO, UnexpectedFrame),
        (PREFACE + HELLO + HEAD.pack(0, 99, 0, 0), MalformedFrame),
        (b'{"type":"ping"}\n', UnexpectedFrame),
        (b'{"type":"hello","request":-1}\n', MalformedFrame),
        (JSON_HELLO + b"hello\n", MalformedFrame),
    ],
)
def test_what_breaks_the_protocol_ends_the_session(stream: bytes, error: type[Exception]) -> None:
    session = ServerSession(LIMIT)
    commands = session.receive(memoryview(stream))
    assert type(session.error) is error
    assert session.state is State.CLOSED
    assert all(isinstance(command, m.Hello) for command in commands), "what broke the protocol is no command"


def test_commands_before_an_error_still_count() -> None:
    session = ServerSession(LIMIT)
    flush = b"".join(binary.encode_command(m.Flush(request=2)))
    assert session.receive(memoryview(PREFACE + HELLO + flush + HEAD.pack(0, 99, 0, 0))) == [
        m.Hello(),
        m.Flush(request=2),
    ]
    assert isinstance(session.error, MalformedFrame)


def test_a_refused_request_keeps_the_connection() -> None:
    session = ServerSession(LIMIT)
    lines = JSON_HELLO + b'{"type":"purge","request":2}\n{"type":"flush","request":3}\n'
    hello, refused, flush = session.receive(memoryview(lines))
    assert isinstance(hello, m.Hello)
    assert isinstance(refused, m.Refused)
    assert refused.request == 2
    assert flush == m.Flush(request=3)
    assert session.error is None


def test_nothing_is_read_after_goodbye() -> None:
    session = ServerSession(LIMIT)
    commands = session.receive(memoryview(JSON_HELLO + b'{"type":"goodbye"}\n{"type":"ping"}\n'))
    assert commands == [m.Hello(), m.Goodbye()]
    assert session.state is State.CLOSED
    assert session.error is None


def test_strangers_are_told_in_text() -> None:
    session = ServerSession(LIMIT)
    session.receive(memoryview(b"hello?"))
    assert session.error is not None
    (line,) = session.encode(m.Goodbye(code=session.error.code, text=session.error.text))
    assert bytes(line).startswith(b'{"type":"goodbye"')


def test_a_client_learns_why_the_broker_leaves() -> None:
    welcome = m.Welcome(
        request=1,
        version=1,
        broker="b",
        connection=1,
        heartbeat_ms=1,
        frame_bytes_max=1,
        batch_messages_max=1,
        publish_window_bytes=1,
        publish_window_batches=1,
    )
    session = ClientSession()
    assert session.begin(m.Hello()) == PREFACE + HELLO
    assert list(session.receive(memoryview(b"".join(binary.encode_reply(welcome))))) == [welcome]
    states = [session.state]
    assert list(session.receive(memoryview(b"".join(binary.encode_reply(m.Goodbye()))))) == [m.Goodbye()]
    assert [*states, session.state] == [State.OPEN, State.CLOSED]


@pytest.mark.parametrize(("code", "kind"), [(106, FlowExceeded), (212, ShuttingDown), (9_999, RequestError)])
def test_what_came_before_a_goodbye_is_not_lost(code: int, kind: type[Exception]) -> None:
    confirmed = m.Confirmed(request=1, offset=2, sequence=3)
    replies = ClientSession().receive(
        memoryview(b"".join(binary.encode_reply(confirmed) + binary.encode_reply(m.Goodbye(code=code, text="because"))))
    )
    assert next(replies) == confirmed
    with pytest.raises(kind, match="because"):
        next(replies)


def test_a_batch_outlives_the_buffer_that_it_came_in() -> None:
    buffer = bytearray(PREFACE + HELLO + b"".join(binary.encode_publish(2, b"q", 1, [*pack([b"body"])])))
    _, publish = ServerSession(LIMIT).receive(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert isinstance(publish, m.Publish)
    assert isinstance(publish.batch, Batch)
    assert publish.batch.bodies() == [b"body"]


@pytest.mark.parametrize(
    ("hello", "ping"),
    [
        (PREFACE + HELLO, b"".join(binary.encode_command(m.Ping()))),
        (JSON_HELLO, b'{"type":"ping"}\n'),
        (JSON_HELLO + b"\n" * 1000, b'\n{"type":"ping"}\r\n\n'),
    ],
)
def test_many_commands_in_one_read_come_in_portions_and_in_order(hello: bytes, ping: bytes) -> None:
    session, last = ServerSession(LIMIT), ping.replace(b"ping", b"pong")  # no command of a client
    data, portions = hello + ping * 1000 + last[:-3], list[int]()
    while True:
        commands = session.receive(memoryview(data))
        portions.append(len(commands))
        data = b""
        if not session.has_more:
            break
    assert sum(portions) == 1001
    assert max(portions) <= COMMANDS_MAX + 1
    assert session.error is None
    session.receive(memoryview(last[-3:] + ping))  # the last one was whole now, and wrong in itself
    assert session.codec == "json" or isinstance(session.error, MalformedFrame)

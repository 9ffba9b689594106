"""Targets for what comes over the wire: sessions of both ends, batches, and the broker behind them."""

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from tests.fuzz.target import Target
from tests.protocol import strategies
from tests.protocol.examples import BATCH, COMMANDS, KEYED, REPLIES
from vibemq import events as e
from vibemq.batch import TTL_MS_MAX, Batch, pack
from vibemq.declaration import QueueSettings
from vibemq.errors import InvalidRequest, RequestError, VibeMQError
from vibemq.log.delayed import DelayedOverlay, MemoryBase
from vibemq.projections.projector import Projector
from vibemq.protocol import binary, json_lines
from vibemq.protocol import messages as m
from vibemq.protocol.frames import HEAD, PREFACE, Kind
from vibemq.protocol.keys import dedup_hash
from vibemq.protocol.session import ClientSession, ServerSession, State
from vibemq.server.broker import Broker
from vibemq.server.commands import COMMANDS as CALLS
from vibemq.server.effects import DelayedOf, DueAfter, Find, Recall
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.transactions import Commit

FRAME_BYTES_MAX = 4096
HELLO = PREFACE + b"".join(binary.encode_command(m.Hello()))
JSON_HELLO = b'{"type":"hello"}\n'
START_US = 1_700_000_000_000_000
EXAMPLES = (*COMMANDS.values(), *REPLIES.values())
WORDS = (
    *(str(one.__struct_config__.tag or "publish").encode() for one in EXAMPLES),
    *(name.encode() for one in EXAMPLES for name in one.__struct_fields__),
    *(
        b"a.b",
        b"a.*.#",
        b"..",
        b"$1",
        b'"key":"k"',
        b'"ttl_ms":1',
        b'"to_topic":true',
        b'"delay_ms":1',
        b'"due_us":1700000000000001',
        b'"dedup_id":"d"',
        b'"body_base64":"//8="',
        HEAD.pack(30, Kind.PUBLISH, 14, 0),
        b"1-0",
        b"head",
        b"override",
        b"fan-out",
    ),
    *(b"q", b'"type":"', b"[[1,2]]", b"\x92\x01\x02", b"\xc1", b"\\ud800", b"1e400", b"NaN", b'{"a":', b"\n", b"\r\n"),
)


def _pieces(stream: bytes, seed: int) -> list[bytes]:
    """The stream cut by chance; seed 0: byte by byte."""
    random, at, found = Random(seed), 0, list[bytes]()
    while at < len(stream):
        size = random.choice((1, 2, 7, 40, 600)) if seed else 1
        found.append(stream[at : at + size])
        at += size
    return found


def _heard(pieces: Sequence[bytes]) -> tuple[list[m.Command | m.Refused], ServerSession]:
    session, commands = ServerSession(FRAME_BYTES_MAX), list[m.Command | m.Refused]()
    for piece in pieces:
        commands += session.receive(memoryview(piece))
        while session.has_more:
            commands += session.receive(memoryview(b""))
    return commands, session


def _server(data: bytes, hello: bytes) -> None:
    """Byte 0: how the stream is cut, and whether a hello comes before it."""
    if not data:
        return
    stream = (hello if data[0] & 1 else b"") + data[1:]
    whole, session = _heard([stream])
    cut, other = _heard(_pieces(stream, data[0] >> 1))
    assert [strategies.plain(one) for one in cut] == [strategies.plain(one) for one in whole], (
        "what is understood depends on the cuts"
    )
    assert (other.state, type(other.error)) == (session.state, type(session.error))
    if session.error is not None:
        assert session.state is State.CLOSED
    for command in whole:
        _check_command(command, session)


def _check_command(command: m.Command | m.Refused, session: ServerSession) -> None:
    if isinstance(command, m.Refused):
        assert isinstance(command.error, RequestError)
        assert len(command.error.text) < 1000, "a refusal repeats what it was sent"
        session.encode(m.Failed(request=command.request, code=command.error.code, text=command.error.text))
        return
    frame = b"".join(binary.encode_command(command))
    length, kind, flags, _ = HEAD.unpack_from(frame)
    assert length == len(frame) - HEAD.size
    again = binary.decode_command((kind, flags, memoryview(frame)[HEAD.size :]))
    assert strategies.plain(again) == strategies.plain(command), (
        "a command that was accepted is another one in the binary codec"
    )


def run_binary(data: bytes) -> None:
    """ServerSession, binary."""
    _server(data, HELLO)


def run_json(data: bytes) -> None:
    """ServerSession, JSON lines."""
    _server(data, JSON_HELLO)


def _replies(pieces: Sequence[bytes]) -> tuple[list[m.Reply], str]:
    session, found = ClientSession(2 * FRAME_BYTES_MAX), list[m.Reply]()
    try:
        for piece in pieces:
            for reply in session.receive(memoryview(piece)):
                found.append(reply)  # one by one: what came before an error counts
    except VibeMQError as problem:
        return found, f"{type(problem).__name__} {problem.text}"
    return found, ""


def run_client(data: bytes) -> None:
    """ClientSession, and the batches of what it delivers."""
    if not data:
        return
    whole, end = _replies([data[1:]])
    cut, cut_end = _replies(_pieces(data[1:], data[0]))
    assert repr(list(map(strategies.plain, cut))) == repr(list(map(strategies.plain, whole)))  # NaN equals nothing
    assert end == cut_end
    for reply in cut:
        if isinstance(reply, m.Deliver):
            again, problem = _replies([b"".join(binary.encode_reply(reply))])
            assert (list(map(strategies.plain, again)), problem) == ([strategies.plain(reply)], "")
            run_batch(b"\x00\x01" + b"".join(reply.parts))


def run_batch(data: bytes) -> None:
    """Batch: bytes 0 and 1 are the cut. What is accepted can be cut, read and shown in any codec."""
    try:
        batch = Batch(data[2:])
    except InvalidRequest:
        return
    bodies, packed = batch.bodies(), list(map(bytes, batch.packed_headers()))
    assert len(bodies) == len(packed) == batch.count
    assert sum(map(len, bodies)) + sum(map(len, packed)) == batch.record_bytes == sum(batch.lengths)
    first = data[0] % batch.count
    count = 1 + data[1] % (batch.count - first)
    part = Batch(b"".join(batch.cut(first, count)))
    assert (part.count, part.priority, part.ttl_ms) == (count, batch.priority, batch.ttl_ms)
    assert 0 <= batch.ttl_ms <= TTL_MS_MAX
    assert list(part.keys or ()) == list(batch.keys or ())[first : first + count]
    assert batch.keys is None or len(batch.keys) == batch.count
    assert part.bodies() == bodies[first : first + count]
    assert list(map(bytes, part.packed_headers())) == packed[first : first + count]
    try:
        headers = list(batch.headers())
    except InvalidRequest:
        pass
    else:
        assert len(headers) == batch.count
    line = b"".join(json_lines.encode_reply(m.Deliver(1, 1, 1, 1, 0, 1 << 62, 1, False, [batch.data])))
    assert line.count(b"\n") == 1


def run_requests(data: bytes) -> None:
    """Byte 0: bit 0 the codec. Commands carried out by a broker; its log, replayed, adds up to the same state."""
    if not data:
        return
    codec, hello = ("json", JSON_HELLO) if data[0] & 1 else ("binary", HELLO)
    broker, log = _noted()
    connection = broker.connect("a", "b", codec, data[0] >> 1)
    heard, _ = _heard([hello + data[1:]])
    for command in heard[1:]:
        broker.journal.now_us += 1_000_000 * (data[0] & 7)
        _carry_out(broker, connection, command)
        if data[0] & 8:
            _turn(broker, log)
    _turn(broker, log)
    broker.disconnect(connection, "", lost=bool(data[0] & 16))
    _turn(broker, log)
    replayed = Projector()
    for offset, (event, time_us) in enumerate(log):
        replayed.apply(offset, time_us, e.decode(event.TAG, event.VERSION, e.encode(event)))
    assert replayed.digests() == broker.journal.state.digests(), "the log adds up to another state"


def _noted() -> tuple[Broker, list[tuple[e.Event, int]]]:
    limits = Limits(queues=20, subscriptions_per_connection=5, groups_per_queue=5)
    broker = Broker(Projector(), limits, QueueDefaults(QueueSettings(max_attempts=2)), unroutable="lost")
    broker.journal.now_us = START_US
    broker.start("1", START_US)
    log: list[tuple[e.Event, int]] = []
    _turn(broker, log)
    return broker, log


def _carry_out(broker: Broker, connection: int, command: m.Command | m.Refused) -> None:
    try:
        if isinstance(command, m.Publish):
            broker.publishing.publish(_publish(connection, command))
        elif isinstance(command, m.Commit):
            publishes = [_publish(connection, one) for one in command.publishes]
            acks = [(ack.subscription, ack.deliveries) for ack in command.acks]
            epoch = (connection << 32) + command.epoch % 8  # else it would hardly ever be one that was begun
            broker.transactions.commit(
                Commit(connection, command.request, epoch, command.sequence, publishes, acks, command.oldest)
            )
        elif (call := CALLS.get(type(command))) is not None:
            call(broker, connection, command)
    except RequestError:
        pass


def _publish(connection: int, command: m.Publish) -> Publish:
    return Publish(connection, *msgspec.structs.astuple(command))


def _turn(broker: Broker, log: list[tuple[e.Event, int]]) -> None:
    journal = broker.journal
    broker.tick()
    _take(broker, log)
    while journal.loads:
        loads, journal.loads = journal.loads, []
        waiting = DelayedOverlay()
        for offset, (event, _) in enumerate(log):
            waiting.note(offset, event)
        for load in loads:
            _answer(broker, log, waiting, load)
        _take(broker, log)


def _take(broker: Broker, log: list[tuple[e.Event, int]]) -> None:
    journal = broker.journal
    log += [(record.event, record.time_us) for record in journal.records]
    for effect in journal.effects:
        assert effect.after <= journal.next_offset
    journal.records.clear()
    journal.effects.clear()


def _answer(broker: Broker, log: list[tuple[e.Event, int]], waiting: DelayedOverlay, load: object) -> None:
    """Tell what was asked for, but for messages: these are not kept here, and stay away."""
    if isinstance(load, Find):
        broker.found(load, load.first)
    elif isinstance(load, DueAfter):
        broker.found(load, waiting.after(MemoryBase(), load.after, load.until_us, load.most, load.without))
    elif isinstance(load, DelayedOf):
        found = waiting.of_records(MemoryBase(), load.queue, load.offsets)
        lengths = ((entry, (entry[4], *[0] * (entry[3] - 1))) for _, entry in found)  # they add up
        broker.found(load, list(lengths))
    elif isinstance(load, Recall):
        broker.transactions.recalled(load, log[load.offset][0])


def _lines() -> list[bytes]:
    publish = (
        b'{"type":"publish","request":2,"queue":"q","messages":[{"body":"x","headers":{"a":1}},{"body_base64":"//8="}]}'
    )
    return [publish, *(strategies.json_line(one).strip() for one in COMMANDS.values())]


def _with_modes(streams: Sequence[bytes], modes: Sequence[int]) -> list[bytes]:
    return [bytes([mode]) + stream for stream in streams for mode in modes]


def _binary_seeds() -> list[bytes]:
    frames = [b"".join(binary.encode_command(one)) for one in COMMANDS.values()]
    return [*_with_modes([*frames, b"".join(frames[1:])], (1, 7)), b"\0" + HELLO + frames[1]]


def _json_seeds() -> list[bytes]:
    lines = [line + b"\n" for line in _lines()]
    return [*_with_modes([*lines, b"".join(lines[1:])], (1, 7)), b"\0" + JSON_HELLO + lines[0]]


def _request_seeds() -> list[bytes]:
    work: tuple[m.Command, ...] = (
        m.Subscribe(request=1, queue="q", messages=100, bytes=1000),
        m.Publish(2, "q", 1, BATCH),
        m.Publish(3, "q", 3, BATCH),
        m.Nack(subscription=1, deliveries=((1, 2),), delay_ms=2000, reason="no"),
        m.Nack(subscription=1, deliveries=((2, 3),), reject=True),
        m.Extend(subscription=1, deliveries=((3, 4),), lease_ms=1),
        m.Ack(subscription=1, deliveries=((3, 4),), request=4),
        m.Credit(subscription=1, messages=5, bytes=100, handed=2, wait_ms=0),
        m.Peek(request=6, queue="q.dlq"),
        m.DeadLetters(request=15, queue="q", reason="rejected"),
        m.Redrive(request=16, queue="q.dlq", dry_run=True),
        m.Redrive(request=17, queue="q.dlq"),
        m.Purge(request=7, queue="q"),
        m.Publish(8, "q", 1, BATCH),
        m.Unsubscribe(request=9, subscription=1),
        m.Change(request=12, queue="q", settings={"max_length": 1, "overflow": "drop-oldest", "ttl_ms": 1}),
        m.Publish(13, "q", 5, KEYED),
        m.Rename(request=14, queue="q", name="r"),
        m.Delete(request=10, queue="r"),
        m.Undelete(request=18, queue="r", name="q"),
        m.Digest(request=11),
    )
    groups: tuple[m.Command, ...] = (
        m.Declare(request=1, queue="q", settings={"mode": "fan-out", "order_by_key": True}),
        m.Subscribe(request=2, queue="q", group="g", messages=100, bytes=1000, start="head"),
        m.Subscribe(request=3, queue="q", messages=1, bytes=10),
        m.Bind(request=4, queue="q", pattern="a.#"),
        m.Bind(request=5, queue="p", pattern="*.b"),
        m.Publish(6, "a.b", 1, KEYED, to_topic=True),
        m.Publish(7, "nobody", 3, KEYED, to_topic=True),
        m.Ack(subscription=1, deliveries=((1, 2),)),
        m.Seek(request=8, queue="q", group="g", start="sequence", at=1),
        m.Peek(request=9, queue="q", group="g"),
        m.ListBindings(request=10),
        m.Unbind(request=11, queue="q", pattern="a.#"),
        m.DeleteGroup(request=12, queue="q", group="g"),
        m.Delete(request=13, queue="q", grace_ms=0),
        m.Digest(request=14),
    )
    ids = dedup_hash("a") + dedup_hash("b")
    timed: tuple[m.Command, ...] = (
        m.Publish(1, "q", 1, BATCH, delay_ms=1_500),
        m.Publish(2, "q", 3, BATCH, due_us=START_US + 9_000_000, dedup=ids),
        m.Publish(3, "q", 5, BATCH, dedup=ids),
        m.Bind(request=4, queue="q", pattern="a.#"),
        m.Publish(5, "a.b", 7, KEYED, to_topic=True, delay_ms=1_000),
        m.ListDelayed(request=6, queue="q"),
        *(m.CancelDelayed(request=7, queue="q", ids=(f"{offset}-0",)) for offset in (2, 3, 4)),
        *(m.Reschedule(request=8, queue="q", ids=(f"{offset}-1",), delay_ms=1) for offset in (2, 3, 4)),
        m.Subscribe(request=9, queue="q", messages=10, bytes=1000),
        m.SetSchedule(request=10, name="s", queue="q", body=b"x", every_ms=1_000, times=3),
        m.PauseSchedule(request=11, name="s"),
        m.PauseSchedule(request=12, name="s", paused=False),
        m.ListSchedules(request=13),
        m.Begin(request=14),
        m.Commit(
            15,
            1,
            9,
            (m.Publish(0, "q", 0, BATCH), m.Publish(0, "r", 0, BATCH, delay_ms=1, dedup=ids)),
            (m.TransactionAck(1, ((1, 2),)),),
        ),
        m.Begin(request=16),
        m.Commit(17, 2, 9, (m.Publish(0, "a.b", 0, KEYED, to_topic=True),), ()),
        m.Rollback(request=18, epoch=2),
        m.Purge(request=19, queue="q"),
        m.DeleteSchedule(request=20, name="s"),
        m.Digest(request=21),
    )
    modes = (0, 8, 9, 15, 28, 31)
    return [bytes([mode]) + _stream(ask, as_json=bool(mode & 1)) for ask in (work, groups, timed) for mode in modes]


def _stream(ask: Sequence[m.Command], *, as_json: bool) -> bytes:
    if not as_json:
        return b"".join(b"".join(binary.encode_command(one)) for one in ask)
    plain = _lines()[0] + b"\n"
    return b"".join(
        plain if isinstance(one, m.Publish) and one == m.Publish(one.request, "q", one.sequence, BATCH) else line
        for one, line in zip(ask, map(_json_line, ask), strict=True)
    )


def _json_line(command: m.Command) -> bytes:
    """The line of a command; dedup ids that no strategy knows are left out."""
    if isinstance(command, m.Publish):
        command = msgspec.structs.replace(command, dedup=b"")
    elif isinstance(command, m.Commit):
        publishes = tuple(msgspec.structs.replace(one, dedup=b"") for one in command.publishes)
        command = msgspec.structs.replace(command, publishes=publishes)
    return strategies.json_line(command)


def _batches() -> list[bytes]:
    some = (
        pack([b""]),
        pack([b"one", b"two", b"\xff" * 40]),
        pack([b"", b"x", b""], [{"a": 1}, None, {"b": "c", "d": None}]),
        pack([b"a", b"b", b"c"], ttl_ms=1_000),
        pack([b"a", b"", b"c"], keys=[7, 0, (1 << 64) - 1]),
        pack([b"a", b"b"], [{"key": "k"}, None], 9, TTL_MS_MAX, [1, 2]),
    )
    return [b"".join(parts) for parts in (*some, [bytes(BATCH.data)], [bytes(KEYED.data)])]


def _batch_seeds() -> list[bytes]:
    return [bytes([first, count]) + batch for batch in _batches() for first, count in ((0, 9), (1, 0))]


def _client_seeds() -> list[bytes]:
    frames = [b"".join(binary.encode_reply(one)) for one in REPLIES.values()]
    deliveries = [b"".join(binary.encode_reply(m.Deliver(1, 1, 1, 1, 0, 1, 1, False, [one]))) for one in _batches()]
    return _with_modes([*frames, *deliveries, b"".join(frames)], (0, 3))


def _target(name: str, run: Callable[[bytes], None], seeds: Callable[[], Sequence[bytes]]) -> Target:
    return Target(name, run, seeds, WORDS)


TARGETS = (
    _target("binary", run_binary, _binary_seeds),
    _target("json", run_json, _json_seeds),
    _target("client", run_client, _client_seeds),
    _target("batch", run_batch, _batch_seeds),
    _target("requests", run_requests, _request_seeds),
)

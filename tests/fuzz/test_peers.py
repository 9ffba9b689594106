"""Hostile peers at a real broker, while another client publishes: it is served, and the broker's memory stays bounded.

Each attack tells what it cost: `pytest -s tests/fuzz/test_peers.py`. Times are told and not judged.
"""

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import vibemq
from tests.counting import counted, full_size, measured
from tests.running import JsonClient, RunningBroker, running
from vibemq.batch import pack
from vibemq.protocol import binary
from vibemq.protocol import messages as m
from vibemq.protocol.fields import RUNS_MAX
from vibemq.protocol.frames import HEAD, PREFACE
from vibemq.server.limits import Limits

MIB: Final = 1 << 20
GROWTH_MAX: Final = 100 * MIB
"""What the limits allow beside a broker at rest: caches and buffers, with room for the allocator."""
UNREAD_BYTES: Final = Limits().unread_bytes
"""What may wait for clients that do not read."""
ATTACK_S_MAX: Final = 30.0 if full_size("PEERS") else 3.0
QUIET_S: Final = 3.0 if full_size("PEERS") else 0.3
FRAMES: Final = 1_000_000
"""Tiny frames in one attack, as many of them as the broker takes in its time."""
HELLO: Final = PREFACE + b"".join(binary.encode_command(m.Hello()))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """One broker for all attacks: what one leaves behind, the next one meets."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "vibemq.toml").write_text("[limits]\nhello_timeout_ms = 2000\n")
    with running(folder / "data", "--config", str(folder / "vibemq.toml")) as started:
        yield started


class Bystander:
    """A client that publishes, waits for the confirm and the delivery, and acks, again and again, in a thread."""

    def __init__(self, broker: RunningBroker) -> None:
        self._client, self._over = JsonClient(broker.port), threading.Event()
        self.publish_ms, self.delivery_ms = list[float](), list[float]()
        self.failure = ""
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        client = self._client
        try:
            answer = client.ask(type="subscribe", queue="bystander", messages=1 << 17, bytes=1 << 27)
            subscription = answer["result"]["subscription"]
            while not self._over.is_set():
                delivery = self._publish()
                client.send(type="ack", subscription=subscription, deliveries=[[delivery, delivery + 1]])
                time.sleep(0.002)
        except (OSError, LookupError) as problem:
            self.failure = repr(problem)

    def _publish(self) -> int:
        """Publish a message; the number of its delivery."""
        begun = time.perf_counter()
        self._client.send(request=99, type="publish", queue="bystander", messages=[{"body": "x"}])
        delivery = confirmed = 0
        while not (delivery and confirmed):
            answer = self._client.read()
            ms = (time.perf_counter() - begun) * 1000
            if answer.get("type") == "confirmed":
                self.publish_ms.append(ms)
                confirmed = True
            elif answer.get("type") == "deliver":
                self.delivery_ms.append(ms)
                delivery = answer["delivery"]
            else:
                raise LookupError(f"was answered {answer}")
        return delivery

    def latencies(self) -> str:
        """p50, p99 and the highest of its publishes and of their deliveries."""
        return f"{percentiles(self.publish_ms)} ms and {percentiles(self.delivery_ms)} ms"

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join(30)
        self._client.close()


def percentiles(ms: Sequence[float]) -> str:
    """p50, p99 and the highest."""
    order = sorted(ms) or [0.0]
    return " / ".join(f"{order[at]:.1f}" for at in (len(order) // 2, len(order) * 99 // 100, -1))


def connect(broker: RunningBroker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", broker.port), timeout=10)


def send_for_a_while(connection: socket.socket, data: bytes, seconds: float = ATTACK_S_MAX) -> None:
    """Send as much as the broker takes, and read what it answers, until it has done with all, or the time is over."""
    connection.setblocking(False)
    view, deadline = memoryview(data), time.monotonic() + seconds
    with selectors.DefaultSelector() as selector, suppress(ConnectionError):
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while time.monotonic() < deadline:
            for _, ready in selector.select(0.1):
                if ready & selectors.EVENT_READ and not connection.recv(1 << 20):
                    return
                if ready & selectors.EVENT_WRITE:
                    view = view[connection.send(view[: 1 << 18]) :]
                    if not view:  # the broker closes when it has read to the end
                        selector.modify(connection, selectors.EVENT_READ)
                        connection.shutdown(socket.SHUT_WR)


def opened(broker: RunningBroker, hello: bytes = HELLO) -> socket.socket:
    connection = connect(broker)
    connection.sendall(hello)
    connection.recv(4096)
    return connection


def frames(*commands: m.Command) -> bytes:
    return b"".join(b"".join(binary.encode_command(one)) for one in commands)


def flood(broker: RunningBroker, data: bytes, hello: bytes = HELLO) -> None:
    with opened(broker, hello) as connection:
        send_for_a_while(connection, data)


def lengths_that_lie(broker: RunningBroker) -> None:
    for _ in range(100):
        with opened(broker) as connection, suppress(ConnectionError):
            connection.sendall(HEAD.pack(16 * MIB, 1, 0, 0) + b"x" * 1000)
    with opened(broker) as connection, suppress(ConnectionError):
        connection.sendall(HEAD.pack((1 << 32) - 1, 1, 0, 0))


def half_frames(broker: RunningBroker) -> None:
    publish = frames(m.Flush(request=1))[:-1]
    some = [opened(broker) for _ in range(200)]
    for connection in some:
        connection.sendall(publish)
    time.sleep(0.5)
    for connection in some:
        connection.close()


def slow_bytes(broker: RunningBroker) -> None:
    some = [connect(broker) for _ in range(200)]
    for at in range(20):
        for connection in some:
            with suppress(ConnectionError):
                connection.sendall(HELLO[at : at + 1])
        time.sleep(0.01)
    for connection in some:
        connection.close()


def pings(broker: RunningBroker) -> None:
    flood(broker, frames(m.Ping()) * FRAMES)


def credits_for_nobody(broker: RunningBroker) -> None:
    flood(broker, frames(m.Credit(subscription=77, messages=1, bytes=1)) * FRAMES)


def acks_for_nobody(broker: RunningBroker) -> None:
    flood(broker, frames(m.Ack(subscription=77, deliveries=((1, 2),), request=3)) * FRAMES)


def empty_lines(broker: RunningBroker) -> None:
    flood(broker, b"\n" * FRAMES, b'{"type":"hello"}\n')


def many_runs(broker: RunningBroker) -> None:
    runs = tuple((2 * at + 1, 2 * at + 2) for at in range(RUNS_MAX))
    subscribe = frames(m.Subscribe(request=1, queue="runs", messages=1 << 20, bytes=1 << 28))
    batch = b"".join(pack([b""] * 4 * RUNS_MAX))
    publish = b"".join(binary.encode_publish(2, b"runs", 0, [batch]))
    flood(broker, subscribe + publish * 4 + frames(m.Ack(subscription=1, deliveries=runs)) * 200)


def empty_messages(broker: RunningBroker) -> None:
    publish = b"".join(binary.encode_publish(2, b"empties", 0, [b"".join(pack([b""] * 65_536))]))
    flood(broker, publish * 40)


def a_backlog_for_json(broker: RunningBroker) -> None:
    subscribe = b'{"type":"subscribe","request":1,"queue":"empties","messages":1000000,"bytes":100000000}\n'
    with opened(broker, b'{"type":"hello"}\n' + subscribe) as connection:
        connection.settimeout(2)
        received, deadline = 0, time.monotonic() + ATTACK_S_MAX
        with suppress(TimeoutError):
            while received < 40 * MIB and time.monotonic() < deadline:
                received += len(connection.recv(1 << 20))


def no_reads(broker: RunningBroker) -> None:
    some = [connect(broker) for _ in range(5)]
    ask = b"".join(
        frames(m.Peek(request=at, queue="empties", count=1000), m.ListQueues(request=at)) for at in range(1, 3000)
    )
    for connection in some:
        connection.settimeout(0.2)
        with suppress(TimeoutError, ConnectionError):
            connection.sendall(HELLO + ask * 5)
    time.sleep(1)
    for connection in some:
        connection.close()


def deaf_consumers(broker: RunningBroker) -> None:
    """In JSON each byte of these messages takes six."""
    with vibemq.connect_sync(broker.url) as publisher:
        for _ in range(80):
            publisher.publish_many("deaf", [bytes(50_000)] * 20)
    subscribe = b'{"type":"subscribe","request":1,"queue":"deaf","messages":9999,"bytes":999999999}\n'
    some = [connect(broker) for _ in range(60)]
    for connection in some:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b'{"type":"hello"}\n' + subscribe)
    time.sleep(ATTACK_S_MAX)
    for connection in some:
        connection.close()


def connections(broker: RunningBroker) -> None:
    for _ in range(2000):
        connect(broker).close()


def header_bombs(broker: RunningBroker) -> None:
    body = b"\xdf\x00\x00\xff\xff" + b"\xa1a\xc0" * 20_000
    head = (1).to_bytes(4, "little") + b"\x01\x00\x04\x00" + len(body).to_bytes(4, "little") * 2
    publish = b"".join(binary.encode_publish(2, b"bombs", 0, [head + body]))
    nested = (
        b'{"type":"publish","request":1,"queue":"bombs","messages":[{"body":"","headers":' + b'{"a":' * 100_000 + b"\n"
    )
    flood(broker, publish * 100)
    flood(broker, nested, b'{"type":"hello"}\n')
    reader = broker.json()
    assert reader.ask(type="peek", queue="bombs", count=5)["type"] == "done"


def large_maps(broker: RunningBroker) -> None:
    padding = {f"{at:06}": at for at in range(50_000)}
    encoded = json.dumps({"type": "declare", "request": 1, "queue": "maps", "settings": padding}).encode()
    flood(broker, (encoded + b"\n") * 10, b'{"type":"hello"}\n')
    runs = b"\xdd" + (340_000).to_bytes(4, "big") + b"\x92\x01\x02" * 340_000
    control = b"\x84\xa4type\xa3ack\xacsubscription\x01\xa7request\x01\xaadeliveries" + runs
    flood(broker, (HEAD.pack(len(control), 0, 0, 0) + control) * 10)


def nested_json(broker: RunningBroker) -> None:
    for line in (b"[" * 500_000, b'{"a":' * 200_000, b'{"type":"publish","request":1,"x":' + b"[" * 500_000):
        flood(broker, line + b"\n", b'{"type":"hello"}\n')


ATTACKS: Final[tuple[Callable[[RunningBroker], None], ...]] = (
    lengths_that_lie,
    half_frames,
    slow_bytes,
    pings,
    credits_for_nobody,
    acks_for_nobody,
    empty_lines,
    many_runs,
    empty_messages,
    a_backlog_for_json,
    no_reads,
    deaf_consumers,
    connections,
    header_bombs,
    large_maps,
    nested_json,
)


def beside(broker: RunningBroker, attack: Callable[[RunningBroker], None]) -> Bystander:
    """What another client saw of an attack."""
    bystander = Bystander(broker)
    time.sleep(0.1)
    try:
        attack(broker)
    finally:
        bystander.stop()
    assert bystander.failure == ""
    return bystander


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_peer_costs_bounded_memory_and_others_are_served(
    broker: RunningBroker, attack: Callable[[RunningBroker], None]
) -> None:
    with counted("PEERS", 1, of=len(ATTACKS)) as rounds:
        for _ in rounds:
            quiet = beside(broker, lambda _: time.sleep(QUIET_S))
            before = broker.forget_peak()
            attacked = beside(broker, attack)
            grown = broker.peak_bytes() - before
            measured(
                "G17",
                f"hostile peer: {attack.__name__.replace('_', ' ')}",
                f"RSS +{max(0, grown) / MIB:.0f} MiB at its peak; publish and delivery of another client "
                f"{attacked.latencies()}, without it {quiet.latencies()}",
            )
            assert len(attacked.delivery_ms) > 2, "another client was hardly served"
            assert grown < GROWTH_MAX + (UNREAD_BYTES if attack is deaf_consumers else 0)
            assert broker.process is not None
            assert broker.process.poll() is None


def test_the_broker_has_logged_no_traceback(broker: RunningBroker) -> None:
    assert "Traceback" not in broker.log.read_text()
    assert Path(broker.data).exists()

"""What a broken or hostile peer can do to a broker: get a clear error, and harm nobody else."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.running import RunningBroker, running

MIB = 1 << 20
SETTINGS = """
[limits]
hello_timeout_ms = 300
connections = 20
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker with short deadlines."""
    (tmp_path / "vibemq.toml").write_text(SETTINGS)
    with running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as started:
        yield started


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker with the default settings."""
    with running(tmp_path / "data") as started:
        yield started


def all_that_comes(connection: socket.socket) -> bytes:
    """Everything until the broker closes."""
    connection.settimeout(20)
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def connect(broker: RunningBroker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", broker.port), timeout=20)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"this is a VibeMQ port"),
        (b"{nonsense\n", b"no JSON"),
        (
            b'{"type":"hello","request":1,"version_min":7,"version_max":9}\n',
            b"version 1 of the protocol, the client 7 to 9",
        ),
        (b'{"type":"list-queues","request":1}\n', b"first request must be hello"),
        (b"VMQ\0" + struct.pack("<IBBH", 0xFFFFFF00, 0, 0, 0), b"above the limit"),
        (b"VMQ\0" + struct.pack("<IBBH", 4, 0, 0, 0) + b"\xc1\xc1\xc1\xc1", b"no request of this protocol"),
        (b"VMQ\0" + struct.pack("<IBBH", 4, 99, 0, 0) + b"abcd", b"kind 99"),
        (b"VMQ\0" + struct.pack("<IBBH", 4, 0, 0, 7), b"must be zero"),
    ],
)
def test_what_is_no_hello_gets_a_clear_error(broker: RunningBroker, sent: bytes, text: bytes) -> None:
    with connect(broker) as connection:
        connection.sendall(sent)
        answer = all_that_comes(connection)
    assert text in answer
    assert broker.json().ask(type="list-queues")["result"] == []


def test_nonsense_in_an_open_json_session_fails_that_request_only(broker: RunningBroker) -> None:
    client = broker.json()
    refusals: list[tuple[dict[str, object], int]] = [
        ({"type": "publish", "queue": "q", "messages": [{}]}, 204),
        ({"type": "publish", "queue": "", "messages": [{"body": "x"}]}, 203),
        ({"type": "publish", "queue": "q\n", "messages": [{"body": "x"}]}, 203),
        ({"type": "publish", "queue": "q", "messages": []}, 204),
        ({"type": "show-queue", "queue": "nobody"}, 201),
        ({"type": "declare", "queue": "q", "settings": {"mode": "sideways"}}, 204),
        ({"type": "declare", "queue": "q", "settings": {"order_by_key": True, "mode": "priority"}}, 204),
        ({"type": "publish", "queue": "nobody.home", "to_topic": True, "messages": [{"body": "x"}]}, 214),
        ({"type": "publish", "queue": "a.*", "to_topic": True, "messages": [{"body": "x"}]}, 203),
        ({"type": "seek", "queue": "nobody", "group": "g", "start": "head"}, 201),
        ({"type": "redrive", "queue": "nobody"}, 201),
        ({"type": "undelete", "queue": "nobody"}, 201),
        ({"type": "declare", "queue": "q", "settings": {"colour": "red"}}, 204),
        ({"type": "declare", "queue": "q", "settings": {"max_attempts": -1}}, 204),
        ({"type": "declare", "queue": "q", "settings": {"lease_ms": "soon"}}, 204),
        ({"type": "declare", "queue": "q", "settings": {"dead_letter_queue": "q"}}, 204),
        ({"type": "unsubscribe", "subscription": 12345}, 209),
        ({"type": "ack", "subscription": 12345, "deliveries": [[1, 2]]}, 208),
        ({"type": "no-such-thing"}, 204),
    ]
    for wrong, code in refusals:
        answer = client.ask(**wrong)
        assert (answer.get("type"), answer.get("code")) == ("failed", code), (wrong, answer)
        assert answer["text"]
    client.raw(b"this is no JSON\n")
    assert client.read_until("goodbye")["code"] == 101
    assert client.read() == {}


def test_a_frame_that_is_announced_reserves_nothing(patient: RunningBroker) -> None:
    before = patient.rss_bytes()
    connections = []
    for _ in range(50):
        connection = connect(patient)
        connection.sendall(b'{"type":"hello","request":1}\n')
        connection.recv(65536)
        connection.sendall(b'{"type":"publish"' + b" " * 1000)
        connections.append(connection)
    assert patient.rss_bytes() - before < 8 * MIB
    for connection in connections:
        connection.close()


def test_who_says_nothing_is_turned_away(broker: RunningBroker) -> None:
    with connect(broker) as silent:
        assert b"no hello" in all_that_comes(silent)
    client = broker.json(hello=False)
    client.send(type="hello", request=1, heartbeat_ms=300)
    assert client.read_until("goodbye")["code"] == 105


def test_a_client_that_pings_stays(broker: RunningBroker) -> None:
    client = broker.json(hello=False)
    client.send(type="hello", request=1, heartbeat_ms=300)
    assert client.read()["heartbeat_ms"] == 300
    for _ in range(12):
        client.send(type="ping")
        assert client.read() == {"type": "pong"}
        time.sleep(0.1)


def test_above_the_limit_of_connections_there_is_a_clear_error(broker: RunningBroker) -> None:
    clients = [broker.json() for _ in range(20)]
    with connect(broker) as another:
        assert b"limit of 20 connections" in all_that_comes(another)
    clients[0].send(type="ping")
    assert clients[0].read() == {"type": "pong"}


def test_a_consumer_that_stops_reading_costs_bounded_memory(patient: RunningBroker) -> None:
    producer, consumer = patient.json(), patient.json()
    answer = consumer.ask(type="subscribe", queue="q", messages=1_000_000, bytes=1 << 30)
    assert answer["type"] == "done"
    body = "x" * 50_000
    before = patient.rss_bytes()
    for _ in range(160):
        answer = producer.ask(type="publish", queue="q", messages=[{"body": body}] * 20)
        assert answer["type"] == "confirmed"
    # 160 MB were published: what is cached (32 MiB), one write buffer, one turn's share.
    assert patient.rss_bytes() - before < 90 * MIB
    shown = producer.ask(type="show-queue", queue="q")["result"]
    assert shown["unacked"] < 3200


def test_more_publishes_than_the_window_are_carried_out_in_turns_or_end_the_connection(patient: RunningBroker) -> None:
    client = patient.json()
    line = b'{"type":"publish","request":5,"queue":"q","messages":[{"body":"x"}]}\n'
    client.raw(line * 10_000)
    confirmed, answer = 0, client.read()
    with suppress(ConnectionError):
        while answer["type"] == "confirmed" and confirmed < 9_999:
            confirmed, answer = confirmed + 1, client.read()
    assert answer["type"] == "goodbye" or confirmed == 9_999
    client = patient.json()
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] >= confirmed


def slow_reader(broker: RunningBroker, heartbeat_ms: int = 300) -> socket.socket:
    """A client that asked for more than the sockets hold, reads none of it, and falls silent."""
    publisher = broker.json()
    for _ in range(12):
        publisher.ask(type="publish", queue="q", messages=[{"body": "x" * 60_000}] * 15)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", broker.port))
    slow.sendall(b'{"type":"hello","heartbeat_ms":%d}\n' % heartbeat_ms)
    assert b"welcome" in slow.recv(4096)
    slow.sendall(b'{"type":"subscribe","request":2,"queue":"q","messages":1000,"bytes":30000000}\n')
    return slow


def test_a_dead_client_that_left_much_unread_loses_its_messages_with_its_heartbeat(patient: RunningBroker) -> None:
    with slow_reader(patient):
        client = patient.json()
        deadline = time.monotonic() + 20
        while client.ask(type="show-queue", queue="q")["result"]["unacked"] == 0:
            assert time.monotonic() < deadline
        while (shown := client.ask(type="show-queue", queue="q")["result"])["consumers"]:
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        assert (shown["ready"], shown["unacked"]) == (180, 0)


def test_of_many_clients_that_do_not_read_the_first_are_cut_off_and_others_are_served(tmp_path: Path) -> None:
    (tmp_path / "vibemq.toml").write_text(f"[limits]\nunread_bytes = {8 * MIB}\n")
    with running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as broker:
        readers = [slow_reader(broker, heartbeat_ms=60_000) for _ in range(10)]
        client = broker.json()
        deadline = time.monotonic() + 20
        while (shown := client.ask(type="show-queue", queue="q")["result"])["consumers"] > 9:
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert shown["ready"] + shown["unacked"] == 1800
        assert any("too much was waiting" in str(event.get("reason")) for event in broker.events())
        for reader in readers:
            reader.close()


def test_a_stop_ends_in_order_beside_a_client_that_reads_nothing(patient: RunningBroker) -> None:
    with slow_reader(patient):
        time.sleep(0.2)
        patient.stop()
    assert "Traceback" not in patient.log.read_text()

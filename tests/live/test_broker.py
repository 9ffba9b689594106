"""A broker in a process of its own: restarts, shutdown, and the main promises over the wire."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import vibemq
from tests.running import JsonClient, RunningBroker, running


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh broker."""
    with running(tmp_path / "data") as started:
        yield started


def publish(client: JsonClient, queue: str, *bodies: str) -> dict[str, object]:
    """Publish in one batch."""
    return client.ask(type="publish", queue=queue, messages=[{"body": body} for body in bodies])


def take(client: JsonClient, queue: str, count: int) -> list[dict[str, object]]:
    """Subscribe, read `count` messages, and keep them."""
    subscription = client.ask(type="subscribe", queue=queue, messages=count, bytes=1 << 20)["result"]["subscription"]
    found: list[dict[str, object]] = []
    while len(found) < count:
        delivered = client.read_until("deliver")
        assert delivered["subscription"] == subscription
        for at, message in enumerate(delivered["messages"]):
            found.append(message | {"delivery": delivered["delivery"] + at, "subscription": subscription})
    return found


def test_what_was_confirmed_is_there_after_a_kill_and_what_was_acked_is_not(broker: RunningBroker) -> None:
    client = broker.json()
    assert publish(client, "orders", "a", "b", "c")["type"] == "confirmed"
    got = take(client, "orders", 2)
    assert [message["body"] for message in got] == ["a", "b"]
    acked = client.ask(type="ack", subscription=got[0]["subscription"], deliveries=[[1, 2]])
    assert acked["type"] == "done"
    broker.kill()
    broker.start()
    client = broker.json()
    got = take(client, "orders", 2)
    assert [(m["body"], m["redelivered"], m["attempt"]) for m in got] == [("b", True, 1), ("c", True, 1)]


def test_a_stop_tells_the_clients_and_loses_nothing(broker: RunningBroker) -> None:
    client = broker.json()
    publish(client, "orders", "a", "b")
    take(client, "orders", 1)
    assert broker.process is not None
    broker.process.terminate()
    goodbye = client.read_until("goodbye")
    assert goodbye["code"] == 0
    assert "stops" in goodbye["text"]
    assert client.read() == {}
    assert broker.stop() == 0
    broker.start()
    assert [event["replayed"] for event in broker.events() if event["event"] == "opened the log"][-1] <= 1
    client = broker.json()
    got = take(client, "orders", 2)
    assert [(m["body"], m["redelivered"]) for m in got] == [("a", True), ("b", False)]


def test_a_publish_that_is_sent_again_is_stored_once(broker: RunningBroker) -> None:
    def connect() -> JsonClient:
        client = broker.json(hello=False)
        client.send(type="hello", request=1, producer=7)
        client.read_until("welcome")
        return client

    client = connect()
    message = {"type": "publish", "queue": "q", "sequence": 1, "messages": [{"body": "once"}]}
    first = client.ask(**message)
    broker.kill()
    broker.start()
    client = connect()
    again = client.ask(**message)
    assert again["duplicate"]
    assert (again["offset"], again["sequence"]) == (first["offset"], first["sequence"])
    assert client.ask(type="show-queue", queue="q")["result"]["messages"] == 1


def test_failures_count_and_the_last_one_is_dead(broker: RunningBroker) -> None:
    client = broker.json()
    client.ask(type="declare", queue="q", settings={"max_attempts": 2})
    publish(client, "q", "poison", "good")
    (message,) = take(client, "q", 1)
    sub = message["subscription"]
    client.ask(type="nack", subscription=sub, deliveries=[[1, 2]], reason="first")
    client.send(type="credit", subscription=sub, messages=2, bytes=1000)
    again = client.read_until("deliver")
    assert [(m["body"], m["attempt"], m["redelivered"]) for m in again["messages"]] == [("poison", 2, True)]
    client.ask(type="nack", subscription=sub, deliveries=[[2, 3]], reason="second")
    (dead,) = take(client, "q.dlq", 1)
    assert (dead["body"], dead["id"]) == ("poison", again["messages"][0]["id"])
    assert client.ask(type="show-queue", queue="q")["result"]["unacked"] == 1


def test_a_lease_that_ends_gives_the_message_to_somebody_else(broker: RunningBroker) -> None:
    slow, quick = broker.json(), broker.json()
    slow.ask(type="declare", queue="q", settings={"lease_ms": 200})
    publish(slow, "q", "work")
    (held,) = take(slow, "q", 1)
    (taken,) = take(quick, "q", 1)
    assert (taken["body"], taken["attempt"], taken["redelivered"]) == ("work", 2, True)
    lost = slow.read_until("leases-lost")
    assert lost["deliveries"] == [[1, 2]]
    late = slow.ask(type="ack", subscription=held["subscription"], deliveries=[[1, 2]])
    assert (late["type"], late["code"]) == ("failed", 208)
    done = quick.ask(type="ack", subscription=taken["subscription"], deliveries=[[1, 2]])
    assert done["type"] == "done"


def test_consumers_take_turns(broker: RunningBroker) -> None:
    clients = [broker.json() for _ in range(3)]
    for client in clients:
        client.ask(type="subscribe", queue="q", messages=10, bytes=1000)
    for number in range(6):
        publish(clients[0], "q", str(number))
    got = [[client.read_until("deliver")["messages"][0]["body"] for _ in range(2)] for client in clients[1:]]
    assert got == [["1", "4"], ["2", "5"]]


def test_an_empty_queue_drains_at_once(broker: RunningBroker) -> None:
    client = broker.json()
    sub = client.ask(type="subscribe", queue="q")["result"]["subscription"]
    client.send(type="credit", subscription=sub, messages=10, bytes=1000, wait_ms=0)
    assert client.read() == {"type": "drained", "subscription": sub}


def test_every_part_of_the_state_is_the_same_after_a_replay(broker: RunningBroker) -> None:
    client = broker.json()
    publish(client, "q", *map(str, range(100)))
    got = take(client, "q", 50)
    client.ask(type="ack", subscription=got[0]["subscription"], deliveries=[[3, 9], [20, 30]])
    client.ask(type="nack", subscription=got[0]["subscription"], deliveries=[[1, 2]], reject=True)
    before = broker.json()
    assert before.ask(type="digest")["result"]["digests"].keys() >= {
        "topology",
        "audit",
        "queue/1",
        "queue/2",
        "dead/2",
    }
    broker.stop()
    digests = []
    for wipe in (False, True):
        if wipe:
            for file in (broker.data / "index").iterdir():
                file.unlink()
        broker.start()
        client = broker.json()
        shown = client.ask(type="digest")["result"]["digests"]
        digests.append({key: value for key, value in shown.items() if key.startswith(("queue", "dead"))})
        broker.stop()
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("how", "attempt"), [("stop", 1), ("kill", 1), ("hang up", 2), ("goodbye", 1)])
def test_only_a_consumer_that_is_lost_counts_as_an_attempt(broker: RunningBroker, how: str, attempt: int) -> None:
    client = broker.json()
    publish(client, "q", "a")
    (held,) = take(client, "q", 1)
    client.send(type="credit", subscription=held["subscription"], messages=1, bytes=1, handed=2)
    assert client.ask(type="flush")["type"] == "done"
    if how == "stop":
        broker.stop()
    elif how == "kill":
        broker.kill()
    elif how == "goodbye":
        client.send(type="goodbye")
        assert client.read() == {}
    client.close()
    if how in {"stop", "kill"}:
        broker.start()
    (again,) = take(broker.json(), "q", 1)
    assert (again["body"], again["attempt"], again["redelivered"]) == ("a", attempt, True)


def test_messages_that_left_the_memory_are_read_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "vibemq.toml").write_text("segment_bytes = 65536\n[limits]\ncache_bytes = 10000\n")
    with running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as broker:
        client = broker.json()
        for number in range(100):
            publish(client, "q", *(f"{number}.{index} " + "x" * 300 for index in range(10)))
        got = take(client, "q", 1000)
        assert [str(m["body"]).split()[0] for m in got] == [f"{n}.{i}" for n in range(100) for i in range(10)]
        assert [m["sequence"] for m in got] == list(range(1, 1001))
        client.ask(type="nack", subscription=got[0]["subscription"], deliveries=[[15, 35]], reject=True)
        dead = take(client, "q.dlq", 20)
        assert [str(m["body"]).split()[0] for m in dead] == [str(m["body"]).split()[0] for m in got[14:34]]
        assert [m["id"] for m in dead] == [m["id"] for m in got[14:34]]


def test_a_consumer_that_holds_all_it_may_gets_more_when_it_settles(tmp_path: Path) -> None:
    (tmp_path / "vibemq.toml").write_text("[limits]\nunacked_per_subscription = 10\n")
    with running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as broker:
        client = broker.json()
        publish(client, "q", *map(str, range(25)))
        got = take(client, "q", 10)  # and credit for as many more:
        subscription = got[0]["subscription"]
        client.send(type="credit", subscription=subscription, messages=20, bytes=1000)
        assert client.ask(type="show-queue", queue="q")["result"]["unacked"] == 10
        client.send(type="ack", subscription=subscription, deliveries=[[1, 11]])
        assert [m["body"] for m in client.read_until("deliver")["messages"]] == [str(n) for n in range(10, 20)]
        client.send(type="nack", subscription=subscription, deliveries=[[11, 21]], reject=True)
        assert [m["body"] for m in client.read_until("deliver")["messages"]] == [str(n) for n in range(20, 25)]


def test_a_client_wants_no_more_ahead_than_the_broker_grants(tmp_path: Path) -> None:
    (tmp_path / "vibemq.toml").write_text("[limits]\ncredit_bytes_per_subscription = 1_000_000\n")
    with (
        running(tmp_path / "data", "--config", str(tmp_path / "vibemq.toml")) as broker,
        vibemq.connect_sync(broker.url, timeout=20) as client,
    ):
        client.publish_many("q", [bytes(100_000)] * 40)
        with client.consume("q") as messages:
            for _, message in zip(range(40), messages, strict=False):
                message.ack()
        assert client.show_queue("q")["messages"] == 0

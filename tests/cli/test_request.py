import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import vibemq
from tests.cli.processes import ServedBroker

Answer = Callable[[vibemq.SyncClient, vibemq.SyncMessage], None]


@contextmanager
def served(broker: ServedBroker, queue: str, answer: Answer) -> Iterator[None]:
    """Somebody who consumes a queue and answers one request."""

    def work() -> None:
        with vibemq.connect_sync(broker.url) as client:
            for message in client.pull(queue, max_messages=1, wait=30.0):
                answer(client, message)
                message.ack()
            client.flush()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def upper(_: vibemq.SyncClient, message: vibemq.SyncMessage) -> None:
    message.reply(message.body.upper() + str(message.headers.get("n", "")).encode())


def thrice(_: vibemq.SyncClient, message: vibemq.SyncMessage) -> None:
    for number in range(3):
        message.reply(b"%d" % number)


def test_the_reply_is_printed(broker: ServedBroker) -> None:
    with served(broker, "shouts", upper):
        done = broker.run("request", "shouts", "hello", "--header", "n=7")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"HELLO7\n", b"")
    with served(broker, "shouts", upper):
        (line,) = broker.lines("request", "shouts", "hello")
    assert line["body"] == "HELLO"
    assert {"id", "queue", "headers", "published_at"} <= line.keys()


def test_many_replies_are_printed_as_they_come(broker: ServedBroker) -> None:
    with served(broker, "counts", thrice):
        done = broker.run("request", "counts", "go", "--many", "--count", "3")
    assert (done.returncode, done.stdout) == (0, b"0\n1\n2\n")
    with served(broker, "counts", thrice):
        done = broker.run("request", "counts", "go", "--many", "--timeout", "3")
    assert (done.returncode, done.stdout) == (0, b"0\n1\n2\n")


@pytest.mark.parametrize("options", [[], ["--many"]], ids=["one", "many"])
def test_no_reply_is_a_failure(broker: ServedBroker, options: list[str]) -> None:
    done = broker.run("request", "nobody", "hello", "--timeout", "0.3", *options)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no reply" in done.stderr.lower()


def test_a_count_goes_with_many(broker: ServedBroker) -> None:
    assert broker.run("request", "nobody", "hello", "--count", "3").returncode == 2

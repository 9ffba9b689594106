"""Relay and broker as real processes, killed at every step: each message is there once."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import vibemq
from tests.outbox.conftest import Database
from tests.outbox.relay_process import STEPS
from tests.running import RunningBroker, running
from vibemq.outbox import PostgresOutbox, SqliteOutbox

ROOT: Final = Path(__file__).parents[2]
SECONDS_MAX: Final = 60
KILLED: Final = -9


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running(tmp_path / "data") as found:
        yield found


def relay(database: Database, url: str, step: str, turns: int) -> "subprocess.Popen[bytes]":
    """A relay in a process of its own, that ends at a step."""
    outbox = database.outbox
    if isinstance(outbox, SqliteOutbox):
        where = ["sqlite", str(outbox.path), outbox.table]
    else:
        assert isinstance(outbox, PostgresOutbox)
        where = ["postgres", outbox.dsn, outbox.table]
    command = [sys.executable, "-m", "tests.outbox.relay_process", *where, url, step, str(turns)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)


def bodies(broker: RunningBroker, queue: str) -> list[bytes]:
    """All that is in a queue, in order."""
    with vibemq.connect_sync(broker.url) as client:
        shown = client.show_queue(queue)["messages"]
        assert isinstance(shown, int)
        found = client.peek(queue, count=max(1, shown))
        assert len(found) == shown
        return [message.body for message in found]


def check(broker: RunningBroker, database: Database, places: list[str]) -> None:
    """Each message is in its queue, once, in the order in which it was added."""
    for queue in sorted(set(places) - {" bad"}):
        assert bodies(broker, queue) == [b"%d" % at for at, place in enumerate(places) if place == queue]
    status = database.outbox.status()
    assert (status.waiting, status.parked) == (0, places.count(" bad"))


def fill(database: Database, places: list[str]) -> None:
    """Rows, of which those for " bad" are such as add() would refuse."""
    database.add(*("bad" if place == " bad" else place for place in places))
    database.query("UPDATE TABLE SET queue = ' bad' WHERE queue = 'bad'")


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_that_is_killed_at_a_step_publishes_all_and_nothing_twice(
    database: Database, broker: RunningBroker, step: str
) -> None:
    places = [*["a", "b"] * 12, " bad", *["b", "a", "a"] * 4]
    fill(database, places)
    killed = 0
    for turns in (1, 2, 1):
        code = relay(database, broker.url, step, turns).wait(SECONDS_MAX)
        assert code in {0, KILLED}
        killed += code == KILLED
    assert killed, "no relay came as far as this step"
    assert relay(database, broker.url, "none", 1).wait(SECONDS_MAX) == 0
    check(broker, database, places)


def test_relays_and_broker_that_are_killed_at_any_moment_publish_all_and_nothing_twice(
    database: Database, broker: RunningBroker
) -> None:
    chance = random.Random(5)
    places = [chance.choice("abc") for _ in range(600)]
    fill(database, places)
    for _ in range(6):
        # Two at a time: one waits for the other to end, and takes over.
        both = [relay(database, broker.url, chance.choice(STEPS), chance.randint(1, 12)) for _ in range(2)]
        try:
            if chance.random() < 0.7:
                with suppress(subprocess.TimeoutExpired):
                    both[0].wait(chance.uniform(0.3, 0.6))
                broker.kill()
                broker.start()
            both[0].wait(SECONDS_MAX)
        finally:
            for one in both:
                one.kill()
                one.wait()
    assert relay(database, broker.url, "none", 1).wait(SECONDS_MAX) == 0
    check(broker, database, places)

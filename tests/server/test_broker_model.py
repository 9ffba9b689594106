"""Queues whose consumers compete, with all they can do, against the naive model."""

from random import Random
from typing import Any

import pytest
from hypothesis import settings

from tests.server.machine import long_history
from tests.server.publishing_machine import PublishingMachine
from vibemq.declaration import Overflow

WEIGHTS = {
    "publish": 30,
    "publish_to_topic": 3,
    "publish_again": 4,
    "bind": 1,
    "credit": 15,
    "ack": 24,
    "nack": 12,
    "extend": 6,
    "tick": 12,
    "turn": 6,
    "load": 20,
    "subscribe": 4,
    "unsubscribe": 3,
    "connect": 2,
    "disconnect": 1,
    "declare": 3,
    "purge": 1,
    "delete": 1,
    "capture_step": 16,
    "restart": 1,
}


class LanesMachine(PublishingMachine):
    """One group of consumers for each queue."""

    NAMES = ("a", "a", "a", "b", "a.dlq")
    TARGETS = ("a", "a", "b")

    def settings_for(self, random: Random, name: str) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "mode": random.choice(["round-robin", "priority"]),
            "max_attempts": random.randrange(4),
            "lease_ms": 30,
            "retry_delay_ms": random.choice([0, 15]),
            "ttl_ms": random.choice([0, 0, 25]),
            "overflow": random.choice([one.value for one in Overflow]),
            "max_length": random.choice([1 << 30, 8, 25]),
            "max_bytes": random.choice([1 << 30, 1 << 30, 200]),
            "single_active": random.random() < 0.2,
            "delete_grace_ms": 0,
        }
        if random.random() < 0.5:
            wanted["dead_letter_queue"] = "b" if name == "a" else "a"
        if random.random() < 0.5:
            wanted |= {"retry_backoff": "exponential", "retry_delay_max_ms": 50, "retry_jitter_percent": 40}
        if wanted["mode"] == "priority":
            wanted["priority_guard"] = random.choice([0, 1, 3])
        return wanted


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=120, stateful_step_count=60)


@pytest.mark.parametrize("seed", range(12))
def test_long_random_histories(seed: int) -> None:
    long_history(LanesMachine(), seed, 600, WEIGHTS)

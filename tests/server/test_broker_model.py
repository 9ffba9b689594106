"""Queues whose consumers compete, with all they can do, against the naive model."""

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import settings

from tests.server.machine import long_history
from tests.server.queues_machine import QueuesMachine
from vibemq.declaration import Overflow
from vibemq.server.limits import Limits

WEIGHTS = {
    "publish": 30,
    "publish_to_topic": 6,
    "publish_again": 4,
    "resend": 8,
    "commit": 24,
    "commit_again": 4,
    "begin": 2,
    "rollback": 1,
    "come_anew": 2,
    "bind": 3,
    "change": 2,
    "rename": 2,
    "delete_for_a_while": 2,
    "undelete": 2,
    "peek": 3,
    "peek_dead_letters": 3,
    "redrive": 10,
    "credit": 20,
    "ack": 30,
    "nack": 18,
    "extend": 6,
    "tick": 12,
    "turn": 6,
    "load": 20,
    "subscribe": 4,
    "unsubscribe": 2,
    "stop_reading": 3,
    "connect": 2,
    "disconnect": 1,
    "declare": 3,
    "purge": 4,
    "delete": 1,
    "capture_step": 16,
    "restart": 3,
}


class LanesMachine(QueuesMachine):
    """One group of consumers for each queue."""

    NAMES = ("a", "a", "a", "b", "a.dlq")
    TARGETS = ("a", "a", "b")

    def settings_for(self, random: Random, name: str) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "mode": random.choice(["round-robin", "priority"]),
            "max_attempts": random.choice([0, 0, 1, 2, 2, 3, 3]),
            "lease_ms": 30,
            "retry_delay_ms": random.choice([0, 15, 15]),
            "ttl_ms": random.choice([0, 0, 0, 25]),
            "overflow": random.choice([one.value for one in Overflow]),
            "max_length": random.choice([1 << 30, 8, 25]),
            "max_bytes": random.choice([1 << 30, 1 << 30, 200]),
            "single_active": random.random() < 0.2,
            "deliver_rate": random.choice([0, 0, 0, 0, 0, 200]),
            "delete_grace_ms": 0,
        }
        if random.random() < 0.5:
            wanted["dead_letter_queue"] = "b" if name == "a" else "a"
        if random.random() < 0.5:
            wanted |= {"retry_backoff": "exponential", "retry_delay_max_ms": random.choice([20, 20, 50])}
            wanted["retry_jitter_percent"] = random.choice([0, 40])
        if wanted["mode"] == "priority":
            wanted["priority_guard"] = random.choice([0, 1, 3])
        return wanted


class WithoutMemory(LanesMachine):
    """The cache holds one batch, so that nearly everything is read back. And there is a place for what nobody wants."""

    UNROUTABLE = "a.dlq"
    LIMITS = Limits(cache_bytes=1, unacked_per_subscription=30)


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=120, stateful_step_count=60)


def histories(seeds: Iterable[int]) -> None:
    """Several histories: a bug in the broker shows in one of them."""
    for seed in seeds:
        long_history(LanesMachine(), seed, 600, WEIGHTS)


@pytest.mark.parametrize("seed", range(10))
def test_long_random_histories(seed: int) -> None:
    histories([seed])


@pytest.mark.parametrize("seed", range(4))
def test_long_random_histories_without_memory(seed: int) -> None:
    long_history(WithoutMemory(), seed, 600, WEIGHTS | {"load": 90})

"""Queues that keep the order of each key, with one group and with many, against the naive model."""

from random import Random
from typing import Any

import pytest
from hypothesis import settings

from tests.server.machine import long_history
from tests.server.test_groups_model import WEIGHTS as GROUPS_WEIGHTS
from tests.server.test_groups_model import GroupsMachine
from vibemq.server.limits import Limits

WEIGHTS = GROUPS_WEIGHTS | {"publish": 40, "credit": 30, "ack": 50, "seek": 2}


class KeysMachine(GroupsMachine):
    """One message of a key is out at a time."""

    NAMES = ("k", "k", "k", "f", "k.dlq")
    TARGETS = ("k", "k", "f")
    KEYS = (1, 2, 3, 3, 4, 0)

    def settings_for(self, random: Random, name: str) -> dict[str, Any]:
        wanted = super().settings_for(random, name)
        if name != "k.dlq":
            wanted["order_by_key"] = True
        if wanted["mode"] == "fan-out-no-ack":
            wanted["mode"] = "fan-out"
        if random.random() < 0.5:
            wanted |= {"overflow": "reject", "max_length": 1 << 30, "max_bytes": 1 << 30}
        return wanted


class WithoutMemory(KeysMachine):
    """The cache holds one batch, so that nearly everything is read back."""

    LIMITS = Limits(cache_bytes=1, unacked_per_subscription=30)


TestKeys = KeysMachine.TestCase
TestKeys.settings = settings(max_examples=120, stateful_step_count=60)


@pytest.mark.parametrize("seed", range(10))
def test_long_random_histories(seed: int) -> None:
    long_history(KeysMachine(), seed, 600, WEIGHTS)


@pytest.mark.parametrize("seed", range(4))
def test_long_random_histories_without_memory(seed: int) -> None:
    long_history(WithoutMemory(), seed, 600, WEIGHTS | {"load": 90})

"""Queues that fan out, with all that their groups can do, against the naive model."""

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from tests.server.machine import RANDOM, long_history, refused
from tests.server.model import MS, Group
from tests.server.queues_machine import QueuesMachine
from tests.server.test_broker_model import WEIGHTS as LANES_WEIGHTS
from vibemq.declaration import Overflow
from vibemq.errors import UnknownGroup, UnknownQueue
from vibemq.server import effects as f
from vibemq.server.limits import Limits

WEIGHTS = LANES_WEIGHTS | {"subscribe": 8, "unsubscribe": 4, "seek": 4, "delete_group": 2, "tick": 16}


class GroupsMachine(QueuesMachine):
    """Every group gets every message."""

    NAMES = ("f", "f", "f", "n", "f.dlq")
    TARGETS = ("f", "f", "n")

    def settings_for(self, random: Random, name: str) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "mode": {"f": "fan-out", "n": "fan-out-no-ack"}.get(name, "round-robin"),
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
        if wanted["mode"] != "round-robin":
            wanted |= {"group_idle_ms": random.choice([0, 0, 40]), "group_max_lag": random.choice([0, 0, 6])}
        return wanted

    def start(self, random: Random) -> tuple[str, int]:
        """Where a group is to begin."""
        start = random.choice(["tail", "tail", "head", "head", "sequence", "time"])
        ago_us = random.choice([-5, 0, 5, 30, 300]) * MS
        return start, {"sequence": random.randrange(30), "time": self.rig.now_us - ago_us}.get(start, 0)

    def asking(self, random: Random, name: str) -> tuple[str | None, str, int]:
        queue = self.model.named(name)
        if queue is None or not queue.settings.mode.has_groups:
            return random.choice([None, None, None, "g"]), random.choice(["tail", "tail", "tail", "head"]), 0
        known = [group.name for group in queue.groups.values()]
        group = random.choice([None, "g", "g", "h", "$9", *known])
        return group, *self.start(random)

    def some_group(self, random: Random) -> Group | None:
        """A group of any queue that has some."""
        found = [group for group in self.model.groups if group.number]
        return random.choice(found) if found else None

    @rule(random=RANDOM)
    def seek(self, random: Random) -> None:
        if (group := self.some_group(random)) is None:
            return
        connection, request, queue = self.connection(random), self.request(), group.queue
        start, at = self.start(random)
        begin = self.place(queue.name, start, at)

        def sought(effect: f.Effect) -> None:
            if isinstance(effect, f.Refusal):
                assert start == "time"
                assert type(effect.error) in {UnknownQueue, UnknownGroup}
                return
            assert isinstance(effect, f.Answer)
            assert effect.result == {"sequence": max(begin, queue.floor)}
            if group in self.model.groups:  # else it is another one of that name
                live = self.rig.state.queues[queue.number].groups[group.number]
                assert live.lanes[0].cursor == max(begin, queue.floor)

        self.answers[request] = connection, sought
        live = self.rig.state.queues[queue.number]
        self.rig.broker.groups.seek(connection, request, live, group.name, start, at)
        assert self.settle() == []
        assert start == "time" or request not in self.answers
        if random.random() < 0.75:
            self.turn()

    @rule(random=RANDOM)
    def delete_group(self, random: Random) -> None:
        if (group := self.some_group(random)) is None or random.random() < 0.5:
            return
        connection, name = self.connection(random), group.name if random.random() < 0.8 else "nobody"
        ended = list(group.consumers)
        broker, queue = self.rig.broker, group.queue.name
        if name == "nobody":
            assert isinstance(refused(lambda: broker.delete_group(connection, 1, queue, name)), UnknownGroup)
            assert self.settle() == []
            return
        broker.delete_group(connection, 1, queue, name)
        for consumer in ended:
            self.model.leave(consumer, lost=False)
        *endings, answer = self.settle()
        assert isinstance(answer, f.Answer)
        self.check_endings(endings, ended)
        assert group not in self.model.groups


class WithoutMemory(GroupsMachine):
    """The cache holds one batch, so that nearly everything is read back."""

    LIMITS = Limits(cache_bytes=1, unacked_per_subscription=30)


TestGroups = GroupsMachine.TestCase
TestGroups.settings = settings(max_examples=120, stateful_step_count=60)


@pytest.mark.parametrize("seed", range(10))
def test_long_random_histories(seed: int) -> None:
    long_history(GroupsMachine(), seed, 600, WEIGHTS)


@pytest.mark.parametrize("seed", range(4))
def test_long_random_histories_without_memory(seed: int) -> None:
    long_history(WithoutMemory(), seed, 600, WEIGHTS | {"load": 90})

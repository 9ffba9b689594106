"""What a history is about: the queues that its clients use, how they are declared, and what else may be said of them.

Chance puts together what users do, so that every setting meets every other in some history; one in four is as plain as
most queues are. A queue has two sets of settings, between which its clients change it while it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from vibemq.declaration import Mode, Overflow
from vibemq.server.queue_settings import ONLY_WITH

Settings = dict[str, Any]

WORK: Final = ("work", "jobs", "news")
DEAD: Final = "dead"
RENAMED: Final = "other"
"""What a queue may be called for a while."""
TOPICS: Final = ("a.b", "a.c", "b", "b.c.d")
PATTERNS: Final = ("a.*", "a.b", "#", "*.c", "b.#", "*")
GROUPS: Final = ("g1", "g2")


OFTEN: Final = {
    "publish": 60,
    "subscribe": 10,
    "credit": 36,
    "ack": 80,
    "nack": 20,
    "extend": 6,
    "look": 3,
    "unsubscribe": 3,
    "leave": 1,
}
"""What all clients do, and how often."""
SOMETIMES: Final = {
    "bind": 3,
    "unbind": 1,
    "seek": 3,
    "delete_group": 1,
    "redrive": 16,
    "change": 3,
    "rename": 2,
    "wreck": 2,
    "undelete": 3,
}
"""What clients do in some histories and not in others, and in some very often."""
TRANSACTIONS: Final = {"begin": 30, "commit": 80, "repeat": 10, "hop": 6, "rollback": 1}
SCHEDULES: Final = {"schedule": 8, "pause": 4, "unschedule": 2, "list_schedules": 1}
DELAYED: Final = {"cancel": 24, "reschedule": 24, "list_delayed": 8}
"""What clients do who do such things at all."""


_ALL: Final = tuple(Mode)
_GROUPS: Final = (Mode.FAN_OUT, Mode.FAN_OUT_NO_ACK)
_LIMITS: Final = ({"max_length": 8}, {"max_length": 20}, {"max_length": 20}, {"max_bytes": 800})
_GROWING: Final = {"retry_backoff": "exponential", "retry_delay_ms": 5}
_OPTIONS: Final[tuple[tuple[float, tuple[Mode, ...], tuple[Settings, ...]], ...]] = (
    (0.35, _ALL, tuple(_GROWING | {"retry_delay_max_ms": most} for most in (8, 30))),
    (0.3, _ALL, ({"retry_jitter_percent": 20}, {"retry_jitter_percent": 100})),
    (0.25, _ALL, ({"ttl_ms": 30}, {"ttl_ms": 80}, {"ttl_ms": 150})),
    (
        0.6,
        _ALL,
        tuple(
            {"overflow": str(one), **limit}
            for one in (*Overflow, *Overflow, Overflow.BLOCK, Overflow.REJECT)
            for limit in _LIMITS
        ),
    ),
    (0.4, (Mode.PRIORITY,), ({"priority_guard": 1}, {"priority_guard": 3})),
    (0.3, _GROUPS, ({"group_idle_ms": 60},)),
    (0.25, _GROUPS, ({"group_max_lag": 12},)),
    (0.2, _ALL, ({"single_active": True},)),
    (0.15, _ALL, ({"publish_rate": 50}, {"publish_rate": 300})),
    (0.15, _ALL, ({"expires_ms": 80}, {"expires_ms": 400}, {"expires_ms": 20_000})),
    (0.15, _ALL, ({"deliver_rate": 100}, {"deliver_rate": 400})),
    (0.5, _ALL, ({"dedup_window_ms": 30}, {"dedup_window_ms": 150}, {"dedup_window_ms": 0})),
)
"""How often a queue of which mode has one of which settings."""


@dataclass(frozen=True)
class Scene:
    """The queues of one history."""

    queues: dict[str, Settings]
    """As they are declared first."""
    others: dict[str, Settings] = field(default_factory=dict)
    """What of them may be changed, and to what."""
    unroutable: str = ""
    publish_rate: int = 0
    """Of one connection."""
    delayed: float = 0.0
    """How often a batch is to wait."""
    dedup: float = 0.0
    """How often one has dedup ids."""
    actions: tuple[str, ...] = tuple(action for action, weight in OFTEN.items() for _ in range(weight))
    """What clients do, each as often as it is done."""

    @property
    def names(self) -> tuple[str, ...]:
        """The queues for work."""
        return tuple(name for name in self.queues if name != DEAD)

    def mode(self, name: str) -> Mode:
        """How a queue of that name hands out its messages, as far as one knows."""
        return Mode(self.queues.get(name, {}).get("mode", Mode.ROUND_ROBIN))


PLAIN: Final = Scene(
    {
        "work": {"max_attempts": 3, "lease_ms": 40, "retry_delay_ms": 15, "dead_letter_queue": DEAD},
        "jobs": {"max_attempts": 2, "lease_ms": 25, "dead_letter_queue": DEAD, "max_length": 60},
        DEAD: {"max_attempts": 0, "lease_ms": 60},
    }
)


class Taste(NamedTuple):
    """What all queues of a history are like, and what its clients like to do."""

    settings: Mapping[str, Any] = MappingProxyType({})
    often: Mapping[str, int] = MappingProxyType({})
    delayed: float = 0.0
    dedup: float = 0.0
    transactions: float = 0.0
    schedules: float = 0.0


TASTES: Final[dict[str, Taste]] = {
    "blocked": Taste({"overflow": "block", "max_length": 8, "dead_letter_queue": DEAD}, {"publish": 120}),
    "failing": Taste(
        {"max_attempts": 0, "retry_backoff": "exponential", "retry_delay_ms": 5, "retry_delay_max_ms": 8}, {"nack": 80}
    ),
    "redriven": Taste({"max_attempts": 2, "dead_letter_queue": ""}, {"nack": 60, "redrive": 60}),
    "delayed": Taste({"delete_grace_ms": 3_600_000}, {"wreck": 8, "undelete": 16}, delayed=0.5),
    "dedup": Taste({"dedup_window_ms": 100}, dedup=0.7),
    "atomic": Taste({"max_attempts": 0, "lease_ms": 200}, transactions=1.0, delayed=0.1, dedup=0.2),
    "tight": Taste({"max_length": 8, "overflow": "reject"}, {"publish": 10}, transactions=1.5),
    "processing": Taste({"mode": "round-robin", "lease_ms": 100}, {"ack": 5, "nack": 5}, transactions=1.5),
    "scheduled": Taste(schedules=1.5),
    "groups": Taste({"mode": "fan-out", "group_idle_ms": 60}, {"delete_group": 8, "unsubscribe": 12, "seek": 12}),
}
"""Histories in which one kind of thing happens much, by name."""


def drawn(random: Random, taste: Taste | None = None) -> Scene:
    """What chance has it, to somebody's taste."""
    if taste is None:
        chance = random.random()
        if chance < 0.12:
            return PLAIN
        taste = random.choice(list(TASTES.values())) if chance < 0.5 else Taste()
    settings, likes, *_ = taste
    names = WORK[: random.choice((1, 2, 2, 2, 3))]
    queues = {name: resolved(_queue(random), settings) for name in names}
    queues[DEAD] = {"max_attempts": 0, "lease_ms": 60}
    if random.random() < 0.4:
        queues[DEAD] |= random.choice(
            (
                {"ttl_ms": 120},
                {"max_length": 10, "overflow": "drop-oldest"},
                {"max_length": 8, "overflow": "block"},
                {"max_length": 8, "overflow": "dead-letter", "dead_letter_queue": "work"},
                {"mode": "fan-out", "ttl_ms": 60, "dead_letter_queue": "work"},
            )
        )
    others = {
        name: resolved(_soft(random, Mode(queue["mode"])) | {"mode": queue["mode"]}, settings)
        for name, queue in queues.items()
        if name != DEAD
    }
    often = OFTEN | {action: weight * random.choice((0, 1, 1, 4)) for action, weight in SOMETIMES.items()}
    often.update(likes)
    delayed = taste.delayed or random.choice((0, 0.1, 0.4))
    transactions = taste.transactions or random.choice((0, 0.5, 1))
    often |= {action: round(weight * transactions) for action, weight in TRANSACTIONS.items()}
    schedules = taste.schedules or random.choice((0, 0, 1))
    often |= {action: round(weight * schedules) for action, weight in SCHEDULES.items()}
    often |= {action: round(weight * delayed) for action, weight in DELAYED.items()}
    return Scene(
        queues,
        others,
        delayed=delayed,
        dedup=taste.dedup or random.choice((0, 0, 0.2, 0.6)),
        unroutable=DEAD if random.random() < 0.4 else "",
        publish_rate=random.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 400)),
        actions=tuple(action for action, weight in often.items() for _ in range(weight)),
    )


def resolved(settings: Settings, taste: Mapping[str, Any]) -> Settings:
    """A queue to somebody's taste: what does not go with that is left out."""
    wanted = {**settings, **taste}
    mode = Mode(wanted["mode"])
    return {name: value for name, value in wanted.items() if mode in ONLY_WITH.get(name, _ALL)}


def _queue(random: Random) -> Settings:
    mode = random.choice((Mode.ROUND_ROBIN,) * 3 + (Mode.PRIORITY,) * 2 + (Mode.FAN_OUT,) * 4 + (Mode.FAN_OUT_NO_ACK,))
    settings: Settings = {"mode": str(mode), **_soft(random, mode)}
    if mode in {Mode.ROUND_ROBIN, Mode.FAN_OUT} and random.random() < 0.35:
        settings["order_by_key"] = True
    return settings


def _soft(random: Random, mode: Mode) -> Settings:
    """What may be changed while a queue is used."""
    settings: Settings = {
        "max_attempts": random.choice((0, 2, 3, 4)),
        "lease_ms": random.choice((25, 40, 60)),
        "retry_delay_ms": random.choice((0, 5, 15, 40)),
        "dead_letter_queue": random.choice((DEAD, DEAD, "")),
        "delete_grace_ms": random.choice((0, 50, 3_600_000)),
    }
    for often, modes, choices in _OPTIONS:
        if mode in modes and random.random() < often:
            settings |= random.choice(choices)
    return settings

"""Histories with every kind of event, and the state that they add up to, written out.

A fold compared with itself, live against replayed, agrees however wrong it is. Here the state stands written out, and
logs of users depend on it: another state from the same log is another digest. BUSY holds what the first version wrote.
It is read as it was then; the state has more to say of it since queues have groups and lanes, so that its digest is not
that of the first version any more.
"""

from array import array
from typing import Any, Final

import msgspec
import pytest

from vibemq import events as e
from vibemq.declaration import Misfire, Mode, QueueSettings, ScheduleSpec
from vibemq.projections import part as parts
from vibemq.projections.delayed import hash_of
from vibemq.projections.part import Part
from vibemq.projections.projector import Projector

SECOND_US: Final = 1_000_000
LEASE_US: Final = 90 * SECOND_US
FAR_US: Final = 1 << 40
SETTINGS: Final = QueueSettings(max_attempts=2, lease_ms=45_000, retry_delay_ms=1_500, dead_letter_queue="morgue")
NACKED, LOST = e.ReleaseReason.NACKED, e.ReleaseReason.LEASE_EXPIRED
REJECTED, TOO_OFTEN = e.DeadReason.REJECTED, e.DeadReason.MAX_ATTEMPTS

BUSY: Final[tuple[e.Event, ...]] = (
    e.BrokerStarted("0.1.0", clean=True, wall_us=0),
    e.ClientConnected(1, "shop", "10.0.0.1:4001", "binary"),
    e.ClientConnected(2, "worker", "10.0.0.2:4002", "json"),
    e.ClientConnected(3, "guest", "10.0.0.3:4003", "binary"),
    e.ClientRefused("10.0.0.9", "MalformedFrame", 12),
    e.ClientRefused("10.0.0.8", "MalformedFrame", 3),
    e.ClientRefused("10.0.0.8", "LimitExceeded", 1),
    e.QueueDeclared(1, "orders", SETTINGS, 1),
    e.QueueDeclared(2, "morgue", QueueSettings(), 0),
    e.QueueDeclared(3, "gone", QueueSettings(), 1),
    e.Published(1, 0, 1, 10, 1_000, 7, 1, 1),  # record 10
    e.Published(1, 0, 11, 5, 500, 8, 901, 1),
    e.Published(1, 0, 16, 4, 400, 7, 11, 1, 11),
    e.Published(3, 0, 1, 2, 20, 9, 5, 1, 5),
    e.Published(1, 0, 20, 1, 100, 0, 0, 1),
    e.Subscribed(1, 1, 0, 2),
    e.Subscribed(2, 1, 0, 1),
    e.Subscribed(3, 3, 0, 3),
    e.Delivered(1, 0, 1, ((0, 1, 7),), 600, LEASE_US),
    e.Delivered(1, 0, 2, ((0, 7, 9),), 200, LEASE_US),
    e.LeaseExtended(1, 0, 2, ((0, 7, 9),), 2 * LEASE_US),
    e.Acked(1, 0, 1, ((0, 2, 3),), 100),
    e.Released(1, 0, 1, ((0, 3, 5),), 200, NACKED, True, 0, "no stock"),
    e.Released(1, 0, 1, ((0, 5, 6),), 100, NACKED, True, FAR_US, "later"),
    e.Released(1, 0, 1, ((0, 6, 7),), 100, NACKED, False, 5 * SECOND_US, ""),
    e.Delivered(1, 0, 2, ((0, 3, 5), (0, 9, 12)), 500, LEASE_US),
    e.Released(1, 0, 2, ((0, 4, 5),), 100, LOST, True, 0, ""),
    e.MadeReady(1, 0, ((0, 6, 7),)),
    e.DeadLettered(1, 0, 2, ((0, 3, 4),), 100, REJECTED, 2, "no such address", 2, 1, ((10, 2, 1),)),
    e.DeadLettered(1, 0, 1, ((0, 1, 2),), 100, TOO_OFTEN, 1, "no stock", 2, 2, ((10, 0, 1),)),
    e.DeadLettered(1, 0, 2, ((0, 9, 12),), 300, REJECTED, 1, "", 2, 3, ((10, 8, 2), (11, 0, 1))),
    e.Subscribed(4, 2, 0, 1),
    e.Delivered(2, 0, 4, ((0, 1, 5),), 400, LEASE_US),
    e.Acked(2, 0, 4, ((0, 2, 3),), 100),
    e.DeadLettered(2, 0, 4, ((0, 4, 5),), 100, REJECTED, 1, "twice", 0, 0, ((10, 9, 1),)),
    e.QueueDeleted(3, 2, 20, 1),
    e.ProducersForgotten((9, 12)),
    e.Unsubscribed(1, 1, 0),
    e.ClientDisconnected(2, "the connection broke"),
    e.SegmentSealed(0, 30, b"s" * 32, bytes(32)),
)


EXPIRED, OVERFLOW = e.DeadReason.EXPIRED, e.DeadReason.OVERFLOW
CHANGED: Final = QueueSettings(mode=Mode.PRIORITY, priority_guard=3, description="what is to be done")
LATER_US: Final = 100 * SECOND_US

MODES: Final[tuple[e.Event, ...]] = (
    e.BrokerStarted("0.2.0", clean=True, wall_us=0),
    e.ClientConnected(1, "shop", "10.0.0.1:4001", "binary"),
    e.ClientConnected(2, "worker", "10.0.0.2:4002", "json"),
    e.QueueDeclared(1, "events", QueueSettings(mode=Mode.FAN_OUT), 1),
    e.QueueDeclared(2, "jobs", QueueSettings(mode=Mode.PRIORITY), 1),
    e.QueueDeclared(3, "jobs.dlq", QueueSettings(), 0),
    e.QueueDeclared(4, "prices", QueueSettings(mode=Mode.FAN_OUT_NO_ACK), 1),
    e.Published(1, 0, 1, 10, 1_000, 0, 0, 1),
    e.GroupCreated(1, 1, "billing", 1, False, 2),
    e.GroupCreated(1, 2, "$2", 11, True, 2),
    e.Bound(1, "orders.#", 1),  # record 10
    e.Bound(2, "orders.*.new", 1),
    e.Bound(4, "prices", 1),
    e.Routed("orders.eu.new", ((1, 0, 11), (2, 7, 1)), 3, 300, 5, 1, 1, 1, True),
    e.Published(2, 4, 1, 6, 600, 5, 4, 1, 1),
    e.Published(2, 1, 1, 2, 200, 5, 10, 1, 1, 1),
    e.Published(2, 1, 3, 0, 0, 5, 13, 1, 10, 4),
    e.Subscribed(1, 1, 1, 2),
    e.Subscribed(2, 1, 2, 2),
    e.Subscribed(3, 2, 0, 2),
    e.Delivered(1, 1, 1, ((0, 1, 5),), 400, LEASE_US),  # record 20
    e.Acked(1, 1, 1, ((0, 1, 3),), 200),
    e.Released(1, 1, 1, ((0, 3, 4),), 100, NACKED, True, FAR_US, "later"),
    e.Delivered(1, 2, 2, ((0, 11, 13),), 200, LEASE_US),
    e.Delivered(2, 0, 3, ((7, 2, 4), (4, 1, 3)), 400, LEASE_US),
    e.Released(2, 0, 3, ((4, 1, 2),), 100, NACKED, True, 0, "no stock"),
    e.DeadLettered(2, 0, 3, ((4, 2, 3),), 100, REJECTED, 1, "no", 3, 1, ((14, 1, 1),)),
    e.DeadLettered(2, 0, 0, ((7, 1, 2),), 100, EXPIRED, 0, "", 3, 2, ((13, 0, 1),)),
    e.Dropped(2, 0, ((1, 1, 2),), 100, OVERFLOW),
    e.Redriven(3, ((0, 1, 2),), 100, 1, 2, 4, 7, ((14, 1, 1),), 1),
    e.QueueChanged(2, CHANGED, 1),  # record 30
    e.QueueRenamed(2, "work", 1),
    e.Routed("nobody.home", ((3, 0, 3),), 2, 50, 0, 0, 1, 0, False, True),
    e.Routed("full", (), 4, 80, 5, 17, 1, 17),
    e.GroupCreated(4, 1, "all", 1, False, 2),
    e.Published(4, 0, 1, 5, 50, 0, 0, 1),
    e.Subscribed(4, 4, 1, 2),
    e.Delivered(4, 1, 4, ((0, 1, 4),), 30, 0),
    e.SegmentSealed(0, 30, b"s" * 32, bytes(32)),
)


def packed(*intervals: tuple[int, int]) -> list[bytes]:
    """Intervals as a snapshot holds them."""
    return [array("q", bounds).tobytes() for bounds in ([low for low, _ in intervals], [high for _, high in intervals])]


def replayed(*history: e.Event, state: Projector | None = None, end: int | None = None) -> Projector:
    """The state, the empty one if none is given, with the events that follow; one a second."""
    state = state or Projector()
    for offset in range(state.next_offset, len(history) if end is None else end):
        state.apply(offset, offset * SECOND_US, history[offset])
    return state


def snapshots(state: Projector) -> dict[str, Any]:
    return {part.key: part.snapshot() for part in state.parts()}


def lane(
    cursor: int,
    redelivered_below: int,
    returned: list[bytes],
    failed: list[list[Any]],
    *,
    number: int = 0,
    untouched: list[bytes] | None = None,
    forgiven: list[list[Any]] | None = None,
) -> list[Any]:
    return [number, cursor, redelivered_below, returned, untouched or packed(), failed, forgiven or []]


def alone(
    lanes: list[Any],
    held: list[Any],
    waiting: list[Any],
    unacked_bytes: int,
    idle_since_us: int = 0,
    patterns: list[str] | None = None,
    purged_by: int = 0,
) -> list[Any]:
    """What it is bound to and the groups, of a queue that has but the one without a name."""
    return [
        1,
        patterns or [],
        [0, 0, 0, purged_by],
        [[0, "", False, idle_since_us, lanes, held, waiting, unacked_bytes]],
    ]


ORDERS: Final = [1, "orders", SETTINGS, 7 * SECOND_US, 0, 37 * SECOND_US, [(0, 21)], 1, False, 2_000]
MORGUE: Final = [2, "morgue", QueueSettings(), 8 * SECOND_US, 0, 8 * SECOND_US, [(0, 6)], 1, False, 500]
COUNTS: Final = [
    *[(1, 1), (3, 3), (4, 3), (5, 1), (10, 3), (12, 1), (20, 5), (22, 1), (23, 1)],
    *[(30, 4), (31, 1), (32, 4), (33, 2), (34, 1), (35, 4), (40, 4), (60, 1)],
]
RUN_1: Final = (1, 2, 28, 28 * SECOND_US, 1, REJECTED, 2, "no such address", 0)
RUN_3: Final = (3, 6, 30, 30 * SECOND_US, 1, REJECTED, 1, "", 0)


def test_the_state_before_the_first_event() -> None:
    assert snapshots(Projector()) == {
        "topology": [[], [], [], [], [1, 1, 1]],
        "producers": [],
        "audit": [[], 0, False, [], 0, b""],
    }
    assert all(part.as_of == 0 for part in Projector().parts())


def test_the_state_of_a_broker_at_work() -> None:
    failed = [[1, packed((5, 6))], [2, packed((4, 5))]]
    held: list[Any] = [[2, [[0, packed((7, 9))]]]]
    waiting = [(FAR_US, 0, 5, 6)]
    lanes = [lane(12, 1, packed((4, 5), (6, 7)), failed)]
    assert snapshots(replayed(*BUSY)) == {
        "topology": [
            [("morgue", 2), ("orders", 1)],
            [],
            [
                (1, ("shop", "10.0.0.1:4001", "binary", 1 * SECOND_US)),
                (3, ("guest", "10.0.0.3:4003", "binary", 3 * SECOND_US)),
            ],
            [(2, (1, 0, 1)), (4, (2, 0, 1))],
            [4, 4, 5],
        ],
        "producers": [[8, 905, 0, [(901, 5, 11, 11, 0, 0, ())]], [7, 14, 11, [(11, 4, 12, 16, 0, 0, ())]]],
        "queue/1": [*ORDERS, 600, *alone(lanes, held, waiting, 200)],
        "queue/2": [
            *MORGUE,
            200,
            *alone([lane(5, 1, packed(), [])], [[4, [[0, packed((1, 2), (3, 4))]]]], [], 200),
        ],
        "dead/2": [2, [RUN_1, RUN_3], packed((1, 2), (3, 4), (5, 6))],
        "audit": [
            COUNTS,
            39 * SECOND_US,
            True,
            [("LimitExceeded", 1), ("MalformedFrame", 15)],
            30,
            b"s" * 32,
        ],
    }


def test_a_clean_stop_puts_back_what_was_held_and_doubts_nothing() -> None:
    found = snapshots(replayed(*BUSY, e.BrokerStopped("asked to")))
    returned = packed((4, 5), (6, 9))
    lanes = [lane(12, 1, returned, [[1, packed((5, 6))], [2, packed((4, 5))]])]
    assert found["queue/1"] == [
        *[*ORDERS[:5], 40 * SECOND_US, *ORDERS[6:], 600],
        *alone(lanes, [], [(FAR_US, 0, 5, 6)], 0, 40 * SECOND_US),
    ]
    assert found["topology"] == [[("morgue", 2), ("orders", 1)], [], [], [], [4, 4, 5]]
    assert found["audit"][1:3] == [40 * SECOND_US, False]
    assert found["dead/2"] == snapshots(replayed(*BUSY))["dead/2"]


@pytest.mark.parametrize("clean", [True, False])
def test_after_a_crash_all_of_a_queue_with_consumers_may_have_been_sent(clean: bool) -> None:
    found = snapshots(replayed(*BUSY, e.BrokerStarted("0.1.0", clean=clean, wall_us=0)))
    lanes = [lane(5, 1 if clean else 6, packed((1, 2), (3, 4)), [])]
    assert found["queue/2"] == [
        *[*MORGUE[:5], 40 * SECOND_US, *MORGUE[6:], 200],
        *alone(lanes, [], [], 0, 40 * SECOND_US),
    ]
    assert found["topology"][2:4] == [[], []]
    assert found["audit"][2]


def test_a_crash_without_consumers_raises_no_doubt() -> None:
    stopped = (*BUSY, e.BrokerStopped("asked to"))
    found = snapshots(replayed(*stopped, e.BrokerStarted("0.1.0", clean=False, wall_us=0)))
    assert found["queue/1"] == snapshots(replayed(*stopped))["queue/1"]


def test_a_purge_leaves_what_consumers_hold() -> None:
    redelivered = e.Delivered(1, 0, 2, ((0, 4, 5),), 100, LEASE_US)
    found = snapshots(replayed(*BUSY, redelivered, e.QueuePurged(1, 11, 1_100, 1, ((0, 4, 5), (0, 7, 9)))))
    lanes = [lane(21, 1, packed(), [[2, packed((4, 5))]])]
    orders = [*ORDERS[:7], 21, *ORDERS[8:]]  # no group goes back below
    assert found["queue/1"] == [
        *orders,
        1_700,
        *alone(lanes, [[2, [[0, packed((4, 5), (7, 9))]]]], [], 300, purged_by=41),
    ]
    found = snapshots(replayed(*BUSY, e.QueuePurged(2, 1, 100, 1, ((0, 1, 2), (0, 3, 4)))))
    assert found["queue/2"][9:11] == [500, 300]
    assert found["dead/2"] == [2, [RUN_1, RUN_3], packed((1, 2), (3, 4))]
    found = snapshots(replayed(*BUSY, e.QueuePurged(2, 1, 100, 1, ((0, 1, 2),))))
    assert found["dead/2"] == [2, [RUN_1], packed((1, 2))]


def test_the_digest_of_what_the_first_version_wrote() -> None:
    assert replayed(*BUSY).digests()["all"] == "ddbb71a75a722281a4bc426178a90816f9e9cfcd8ca5313e4ac2de9494786781"


# -- queues of all modes


EVENTS: Final = [1, "events", QueueSettings(mode=Mode.FAN_OUT), 3 * SECOND_US, 0, 3 * SECOND_US]
WORK: Final = [2, "work", CHANGED, 4 * SECOND_US, 0, 4 * SECOND_US, [(0, 1), (1, 3), (4, 8), (7, 4)], 1, True, 1_200]
DEAD: Final = [3, "jobs.dlq", QueueSettings(), 5 * SECOND_US, 0, 5 * SECOND_US, [(0, 5)], 1, False, 250]
PRICES: Final = [
    4,
    "prices",
    QueueSettings(mode=Mode.FAN_OUT_NO_ACK),
    6 * SECOND_US,
    0,
    6 * SECOND_US,
    [(0, 6)],
    1,
    False,
    50,
]
ALL: Final = [1, "all", False, 0, [lane(4, 1, packed(), [])], [[4, []]], [], 0]
RUN_2: Final = (2, 3, 27, 27 * SECOND_US, 2, EXPIRED, 0, "", 7)
UNROUTABLE: Final = (3, 5, 32, 32 * SECOND_US, 0, e.DeadReason.UNROUTABLE, 0, "nobody.home", 0)


def test_the_state_of_queues_of_all_modes() -> None:
    billing = [lane(5, 1, packed(), [[1, packed((3, 4))]])]
    own = [lane(13, 1, packed(), [])]
    jobs = [
        lane(1, 1, packed(), []),
        lane(2, 1, packed(), [], number=1),
        lane(3, 1, packed((1, 2)), [[1, packed((1, 2), (7, 8))]], number=4, forgiven=[[1, packed((7, 8))]]),
        lane(4, 1, packed(), [], number=7),
    ]
    found = snapshots(replayed(*MODES))
    del found["audit"]
    assert found == {
        "topology": [
            [("events", 1), ("jobs.dlq", 3), ("prices", 4), ("work", 2)],
            [],
            [
                (1, ("shop", "10.0.0.1:4001", "binary", 1 * SECOND_US)),
                (2, ("worker", "10.0.0.2:4002", "json", 2 * SECOND_US)),
            ],
            [(1, (1, 1, 2)), (2, (1, 2, 2)), (3, (2, 0, 2)), (4, (4, 1, 2))],
            [5, 3, 5],
        ],
        # What was not stored is remembered as well: it is confirmed again as it was.
        "producers": [[5, 20, 17, [(17, 4, 33, 0, 4, 0, ())]]],
        "queue/1": [
            *EVENTS,
            [(0, 14)],
            1,
            True,
            1_300,
            0,  # settled bytes are counted where there is one group
            3,
            ["orders.#"],
            [0, 0, 0, 0],
            [
                [1, "billing", False, 0, billing, [[1, [[0, packed((4, 5))]]]], [(FAR_US, 0, 3, 4)], 100],
                [2, "$2", True, 0, own, [[2, [[0, packed((11, 13))]]]], [], 200],
            ],
        ],
        "queue/2": [*WORK, 300, *alone(jobs, [[3, [[7, packed((2, 4))]]]], [], 200, patterns=["orders.*.new"])],
        "queue/3": [*DEAD, 100, *alone([lane(2, 1, packed(), [])], [], [], 0)],
        "queue/4": [*PRICES, 0, 2, ["prices"], [0, 0, 0, 0], [ALL]],
        "dead/3": [3, [RUN_2, UNROUTABLE], packed((2, 5))],
    }


def test_the_cursor_passes_over_what_is_not_handed_out() -> None:
    """Message 1 of lane 7 waits while those behind it go, and is marked as never handed out until it goes, too."""
    found = snapshots(replayed(*MODES, end=25))["queue/2"]
    assert found[-1][0][4][-1] == lane(4, 1, packed((1, 2)), [], number=7, untouched=packed((1, 2)))


def test_a_group_that_is_sought_forgets_what_it_did() -> None:
    found = snapshots(replayed(*MODES, e.GroupSought(1, 1, 2, 2)))
    assert found["queue/1"][-1][0] == [1, "billing", False, 0, [lane(2, 5, packed(), [])], [[1, []]], [], 0]


def test_a_group_that_is_deleted_takes_only_itself() -> None:
    left = e.Released(1, 2, 2, ((0, 11, 13),), 200, e.ReleaseReason.UNSUBSCRIBED, False, 0, "")
    state = replayed(*MODES, left, e.Unsubscribed(2, 1, 2))
    assert state.queues[1].groups[2].idle_since_us == 40 * SECOND_US
    found = snapshots(replayed(*MODES, left, e.Unsubscribed(2, 1, 2), e.GroupDeleted(1, 2, 0)))
    assert found["queue/1"] == [
        *EVENTS[:5],
        40 * SECOND_US,
        [(0, 14)],
        1,
        True,
        1_300,
        0,
        3,
        ["orders.#"],
        [0, 0, 0, 0],
        snapshots(replayed(*MODES))["queue/1"][-1][:1],
    ]


def test_a_deleted_queue_comes_back_whole() -> None:
    gone = (*MODES, e.Unsubscribed(4, 4, 1), e.QueueDeleted(4, 2, 20, 1, LATER_US))
    found = snapshots(replayed(*gone))
    assert found["topology"][:2] == [[("events", 1), ("jobs.dlq", 3), ("work", 2)], [(4, ("prices", LATER_US))]]
    idle = [1, "all", False, 39 * SECOND_US, [lane(4, 1, packed(), [])], [], [], 0]
    assert found["queue/4"] == [
        *[*PRICES[:4], LATER_US, 39 * SECOND_US, *PRICES[6:]],
        *[0, 2, ["prices"], [0, 0, 0, 0], [idle]],
    ]
    found = snapshots(replayed(*gone, e.QueueUndeleted(4, "prices.again", 1)))
    assert found["topology"][:2] == [[("events", 1), ("jobs.dlq", 3), ("prices.again", 4), ("work", 2)], []]
    assert found["queue/4"] == [
        *[4, "prices.again", *PRICES[2:5], 41 * SECOND_US, *PRICES[6:]],
        *[0, 2, ["prices"], [0, 0, 0, 0], [idle]],
    ]
    found = snapshots(replayed(*gone, e.QueueDeleted(4, 2, 20, 0)))
    assert found["topology"][:2] == [[("events", 1), ("jobs.dlq", 3), ("work", 2)], []]
    assert "queue/4" not in found


def test_what_is_unbound_is_bound_no_more() -> None:
    bound, unbound = replayed(*MODES), replayed(*MODES, e.Unbound(2, "orders.*.new", 1))
    assert snapshots(bound)["queue/2"][-3:-2] == [["orders.*.new"]]
    assert snapshots(unbound)["queue/2"][-3:-2] == [[]]


def test_a_purge_moves_every_group() -> None:
    found = snapshots(replayed(*MODES, e.QueuePurged(1, 8, 800, 1, ((0, 4, 5), (0, 11, 13)))))["queue/1"]
    assert found[7] == 14
    assert [group[4:7] for group in found[-1]] == [
        [[lane(14, 1, packed(), [])], [[1, [[0, packed((4, 5))]]]], []],
        [[lane(14, 1, packed(), [])], [[2, [[0, packed((11, 13))]]]], []],
    ]


def test_the_digest_of_queues_of_all_modes() -> None:
    assert replayed(*MODES).digests()["all"] == "4970bd4d0cc25819489bb4d4e75ad6fa6e86c083cfda22ced4e6ec25f665fa5a"


# -- parts saved at different times


HISTORY: Final = (
    *BUSY,
    e.QueueDeclared(4, "gone", QueueSettings(), 3),
    e.Subscribed(5, 4, 0, 3),
    e.QueuePurged(2, 1, 100, 1, ((0, 1, 2), (0, 3, 4))),
    e.QueueDeleted(2, 2, 200, 1),
    e.BrokerStopped("asked to"),
    e.BrokerStarted("0.1.0", clean=False, wall_us=0),
)


def saved(part: Part) -> tuple[str, int, bytes]:
    return part.key, part.as_of, parts.encode(part)


MODERN: Final = (
    *MODES,
    e.GroupSought(1, 1, 2, 2),
    e.Unsubscribed(4, 4, 1),
    e.QueueDeleted(4, 2, 20, 1, LATER_US),
    e.Unbound(2, "orders.*.new", 1),
    e.QueueUndeleted(4, "prices", 1),
    e.QueueDeleted(4, 2, 20, 1, LATER_US),
    e.BrokerStopped("asked to"),
    e.BrokerStarted("0.2.0", clean=False, wall_us=0),
    e.QueueDeleted(4, 2, 20, 0),
    e.GroupDeleted(1, 2, 0),
    e.QueueDeleted(3, 3, 150, 1),
    e.QueuePurged(1, 12, 1_200, 1, ()),
    e.Published(1, 0, 14, 2, 20, 5, 21, 1, 21, 0, False, 0, b"d" * 16 + bytes(16), ((1, 13, 0),)),
    e.Published(1, 0, 16, 1, 10, 0, 0, 1, dedup=b"e" * 16),
    e.DedupForgotten(1, 52),
)
NIGHTLY: Final = ScheduleSpec(
    queue="reports", body=b"go", headers={"kind": "daily"}, cron="0 3 * * *", zone="Europe/Berlin", misfire=Misfire.ALL
)
BEAT: Final = ScheduleSpec(queue="beats.*", to_topic=True, every_ms=1_000, start_us=5, end_us=FAR_US, times=9)
SCHEDULES: Final = (
    e.BrokerStarted("0.3.0", clean=True, wall_us=0),
    e.QueueDeclared(1, "reports", QueueSettings(mode=Mode.PRIORITY), 0),
    e.QueueDeclared(2, "beats", QueueSettings(), 0),
    e.ScheduleSet(3, "nightly", NIGHTLY, 3 * SECOND_US, 1),
    e.ScheduleSet(4, "beat", BEAT, 4 * SECOND_US, 1),
    e.ScheduleSet(5, "short", BEAT, 4 * SECOND_US, 1),
    e.Fired(3, 3 * SECOND_US, 8 * SECOND_US, 0, ((1, 4, 1),), 1, 50, True),
    e.Fired(4, 4 * SECOND_US, 5 * SECOND_US, 0, ((1, 4, 2), (2, 0, 1)), 1, 70),
    e.Misfired(3, 5, 9 * SECOND_US, "the queue is full"),
    e.ScheduleDeleted(5, 0),
    e.Fired(4, 9 * SECOND_US, 10 * SECOND_US, 4, ((2, 0, 2),), 1, 70),
    e.SchedulePaused(3, True, 0, 1),
    e.ScheduleSet(4, "beat", msgspec.structs.replace(BEAT, body=b"b", times=0), 10 * SECOND_US, 1),
    e.ScheduleSet(3, "nightly", msgspec.structs.replace(NIGHTLY, zone="UTC"), 0, 1),
    e.BrokerStopped("asked to"),
    e.BrokerStarted("0.3.0", clean=True, wall_us=0),
    e.SchedulePaused(3, False, 20 * SECOND_US, 2),
)


def test_schedules_as_their_history_left_them() -> None:
    found = snapshots(replayed(*SCHEDULES))
    assert found["schedule/3"] == [
        *(3, "nightly", msgspec.structs.replace(NIGHTLY, zone="UTC"), 13 * SECOND_US, False),
        *(1, 5, 3 * SECOND_US, 20 * SECOND_US, "the queue is full"),
    ]
    assert found["schedule/4"] == [
        *(4, "beat", msgspec.structs.replace(BEAT, body=b"b", times=0), 4 * SECOND_US, False),
        *(2, 4, 9 * SECOND_US, 10 * SECOND_US, ""),
    ]
    assert "schedule/5" not in found
    assert replayed(*SCHEDULES).digests()["schedule/3"] == (
        "69a920e3cc8a9c530c4f21d8f458f8fe8ffdd65bb96937d4d996e1034b374306"
    )
    assert {number: queue.next for number, queue in replayed(*SCHEDULES).queues.items()} == {
        1: {0: 1, 4: 3},
        2: {0: 3},
    }
    assert [queue.timed for queue in replayed(*SCHEDULES).queues.values()] == [True, False]


DUE_US: Final = 50 * SECOND_US
DELAYED: Final[tuple[e.Event, ...]] = (
    e.BrokerStarted("0.3.0", clean=True, wall_us=0),
    e.QueueDeclared(1, "later", QueueSettings(), 0),
    e.QueueDeclared(2, "too", QueueSettings(mode=Mode.FAN_OUT), 0),
    e.Published(1, 0, 0, 5, 50, 7, 1, 1, timed=True, due_us=DUE_US),
    e.Routed("a", ((1, 0, 0), (2, 0, 0)), 2, 20, 7, 6, 1, due_us=DUE_US),
    e.TransactionCommitted(
        (e.Published(1, 0, 1, 1, 10, 0, 0, 1), e.Published(1, 0, 0, 3, 30, 0, 0, 1, due_us=DUE_US)),
        (e.Routed("a", ((2, 0, 0),), 1, 10, 0, 0, 1, due_us=DUE_US),),
        (),
        (20, 40, 20),
        9,
        7,
        8,
        1,
    ),
    e.Rescheduled(
        1,
        ((DUE_US, 3, 0, 5, 50, 0),),
        ((DUE_US, 3, 0, 1, 10, 0), (LATER_US, 3, 1, 2, 20, 0), (DUE_US, 3, 3, 2, 20, 0)),
        1,
    ),
    e.Cancelled(1, ((LATER_US, 3, 1, 2, 20, 0),), ((LATER_US, 3, 2, 1, 10, 0),), 1),
    e.Matured(1, 0, 2, ((DUE_US, 3, 0, 1, 10, 0), (DUE_US, 5, 1, 3, 30, 0)), 40),
    e.QueuePurged(2, 3, 30, 1, ()),
    e.BrokerStopped("asked to"),
)


def test_the_state_of_queues_with_delayed_messages() -> None:
    state = replayed(*DELAYED)
    later, too = state.queues[1].delayed, state.queues[2].delayed
    left = ((DUE_US, 3, 3, 2, 20, 0), (DUE_US, 4, 0, 2, 20, 0), (LATER_US, 3, 2, 1, 10, 0))
    assert (later.count, later.bytes, later.floor) == (5, 50, 0)
    assert later.sum == sum(map(hash_of, left)) % (1 << 64)
    assert too.snapshot() == [0, 0, 0, 9]
    assert state.queues[1].next == {0: 6}
    assert state.queues[1].filled == 10
    before = replayed(*DELAYED, end=9).queues[2].delayed
    assert before.sum == sum(map(hash_of, ((DUE_US, 4, 0, 2, 20, 0), (DUE_US, 5, 4, 1, 10, 0)))) % (1 << 64)
    assert state.queues[1].timed


every_history = pytest.mark.parametrize(
    "history", [HISTORY, MODERN, SCHEDULES, DELAYED], ids=["busy", "modern", "schedules", "delayed"]
)


@every_history
def test_a_saved_state_goes_on_as_if_nothing_had_been(history: tuple[e.Event, ...]) -> None:
    for end in range(len(history) + 1):
        parts_then = [saved(part) for part in replayed(*history, end=end).parts()]
        restored = Projector.restore(parts_then, end)
        assert [saved(part) for part in restored.parts()] == parts_then
        assert snapshots(replayed(*history, state=restored)) == snapshots(replayed(*history))


@every_history
@pytest.mark.parametrize("pace", range(4))
def test_parts_that_were_saved_one_after_the_other_meet_again(history: tuple[e.Event, ...], pace: int) -> None:
    """They are saved in their order, with `pace` events between each and the next."""
    final = [saved(part) for part in replayed(*history).parts()]
    for begin in range(len(history)):
        state, found = replayed(*history, end=begin), list[tuple[str, int, bytes]]()
        for part in state.parts():
            found.append(saved(part))
            replayed(*history, state=state, end=min(state.next_offset + pace, len(history)))
        again = replayed(*history, state=Projector.restore(found, begin))
        assert [saved(part) for part in again.parts()] == final, f"saved from event {begin} on"


def test_the_histories_have_every_kind_of_event() -> None:
    assert {event.TAG for event in (*HISTORY, *MODERN, *SCHEDULES, *DELAYED)} == e.CATALOGUE.keys()

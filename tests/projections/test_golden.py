"""A history with every kind of event, and the state that it adds up to: what the first version made of it.

A fold compared with itself, live against replayed, agrees however wrong it is. Here the state stands written out, and
logs of users depend on it: another state from the same log is another digest.
"""

from array import array
from typing import Any, Final

import pytest

from vibemq import events as e
from vibemq.projections import part as parts
from vibemq.projections.part import Part
from vibemq.projections.projector import Projector

SECOND_US: Final = 1_000_000
LEASE_US: Final = 90 * SECOND_US
FAR_US: Final = 1 << 40
SETTINGS: Final = e.QueueSettings(max_attempts=2, lease_ms=45_000, retry_delay_ms=1_500, dead_letter_queue="morgue")
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
    e.QueueDeclared(2, "morgue", e.QueueSettings(), 0),
    e.QueueDeclared(3, "gone", e.QueueSettings(), 1),
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


def lane(cursor: int, redelivered_below: int, returned: list[bytes], failed: list[list[Any]]) -> list[Any]:
    return [0, cursor, redelivered_below, returned, failed]


ORDERS: Final = [1, "orders", SETTINGS, 7 * SECOND_US, [(0, 21)]]
MORGUE: Final = [2, "morgue", e.QueueSettings(), 8 * SECOND_US, [(0, 6)]]
COUNTS: Final = [
    *[(1, 1), (3, 3), (4, 3), (5, 1), (10, 3), (12, 1), (20, 5), (22, 1), (23, 1)],
    *[(30, 4), (31, 1), (32, 4), (33, 2), (34, 1), (35, 4), (40, 4), (60, 1)],
]
RUN_1: Final = (1, 2, 28, 28 * SECOND_US, 1, REJECTED, 2, "no such address")
RUN_3: Final = (3, 6, 30, 30 * SECOND_US, 1, REJECTED, 1, "")


def test_the_state_before_the_first_event() -> None:
    assert snapshots(Projector()) == {
        "topology": [[], [], [], [1, 1, 1]],
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
            [
                (1, ("shop", "10.0.0.1:4001", "binary", 1 * SECOND_US)),
                (3, ("guest", "10.0.0.3:4003", "binary", 3 * SECOND_US)),
            ],
            [(2, (1, 0, 1)), (4, (2, 0, 1))],
            [4, 4, 5],
        ],
        "producers": [[8, 905, 0, [(901, 5, 11, 11)]], [7, 14, 11, [(11, 4, 12, 16)]]],
        "queue/1": [*ORDERS, 14, 1_400, [[0, [lanes, held, waiting, 200]]]],
        "queue/2": [
            *MORGUE,
            3,
            300,
            [[0, [[lane(5, 1, packed(), [])], [[4, [[0, packed((1, 2), (3, 4))]]]], [], 200]]],
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
    assert found["queue/1"] == [*ORDERS, 14, 1_400, [[0, [lanes, [], [(FAR_US, 0, 5, 6)], 0]]]]
    assert found["topology"] == [[("morgue", 2), ("orders", 1)], [], [], [4, 4, 5]]
    assert found["audit"][1:3] == [40 * SECOND_US, False]
    assert found["dead/2"] == snapshots(replayed(*BUSY))["dead/2"]


@pytest.mark.parametrize("clean", [True, False])
def test_after_a_crash_all_of_a_queue_with_consumers_may_have_been_sent(clean: bool) -> None:
    found = snapshots(replayed(*BUSY, e.BrokerStarted("0.1.0", clean=clean, wall_us=0)))
    lanes = [lane(5, 1 if clean else 6, packed((1, 2), (3, 4)), [])]
    assert found["queue/2"] == [*MORGUE, 3, 300, [[0, [lanes, [], [], 0]]]]
    assert found["topology"][1:3] == [[], []]
    assert found["audit"][2]


def test_a_crash_without_consumers_raises_no_doubt() -> None:
    stopped = (*BUSY, e.BrokerStopped("asked to"))
    found = snapshots(replayed(*stopped, e.BrokerStarted("0.1.0", clean=False, wall_us=0)))
    assert found["queue/1"] == snapshots(replayed(*stopped))["queue/1"]


def test_a_purge_leaves_what_consumers_hold() -> None:
    redelivered = e.Delivered(1, 0, 2, ((0, 4, 5),), 100, LEASE_US)
    found = snapshots(replayed(*BUSY, redelivered, e.QueuePurged(1, 11, 1_100, 1, ((0, 4, 5), (0, 7, 9)))))
    lanes = [lane(21, 1, packed(), [[2, packed((4, 5))]])]
    assert found["queue/1"] == [*ORDERS, 3, 300, [[0, [lanes, [[2, [[0, packed((4, 5), (7, 9))]]]], [], 300]]]]
    found = snapshots(replayed(*BUSY, e.QueuePurged(2, 1, 100, 1, ((0, 1, 2), (0, 3, 4)))))
    assert found["queue/2"][5:7] == [2, 200]
    assert found["dead/2"] == [2, [RUN_1, RUN_3], packed((1, 2), (3, 4))]
    found = snapshots(replayed(*BUSY, e.QueuePurged(2, 1, 100, 1, ((0, 1, 2),))))
    assert found["dead/2"] == [2, [RUN_1], packed((1, 2))]


def test_the_digests_are_those_of_the_first_version() -> None:
    assert replayed(*BUSY).digests()["all"] == "79eba60102c1e7a40cbea3ad4036bc33ecebf90049cd82faba6c2833c98fed57"


# -- parts saved at different times


HISTORY: Final = (
    *BUSY,
    e.QueueDeclared(4, "gone", e.QueueSettings(), 3),
    e.Subscribed(5, 4, 0, 3),
    e.QueuePurged(2, 1, 100, 1, ((0, 1, 2), (0, 3, 4))),
    e.QueueDeleted(2, 2, 200, 1),
    e.BrokerStopped("asked to"),
    e.BrokerStarted("0.1.0", clean=False, wall_us=0),
)


def saved(part: Part) -> tuple[str, int, bytes]:
    return part.key, part.as_of, parts.encode(part)


STATES: Final = [[saved(part) for part in replayed(*HISTORY, end=end).parts()] for end in range(len(HISTORY) + 1)]
"""All parts after so many events."""


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    for end, parts_then in enumerate(STATES):
        restored = Projector.restore(parts_then, end)
        assert [saved(part) for part in restored.parts()] == parts_then
        assert snapshots(replayed(*HISTORY, state=restored)) == snapshots(replayed(*HISTORY))


@pytest.mark.parametrize("pace", range(4))
def test_parts_that_were_saved_one_after_the_other_meet_again(pace: int) -> None:
    """They are saved in their order, with `pace` events between each and the next."""
    for begin in range(len(HISTORY)):
        state, found = replayed(*HISTORY, end=begin), list[tuple[str, int, bytes]]()
        for part in state.parts():
            found.append(saved(part))
            replayed(*HISTORY, state=state, end=min(state.next_offset + pace, len(HISTORY)))
        again = replayed(*HISTORY, state=Projector.restore(found, begin))
        assert [saved(part) for part in again.parts()] == STATES[-1], f"saved from event {begin} on"

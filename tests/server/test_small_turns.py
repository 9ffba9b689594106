"""The random histories again, where every turn does as little as can be: whatever is cut short goes on."""

import pytest

from tests.server import machine
from tests.server.machine import Machine, long_history
from tests.server.test_broker_model import WEIGHTS as LANES_WEIGHTS
from tests.server.test_broker_model import LanesMachine
from tests.server.test_groups_model import WEIGHTS as GROUPS_WEIGHTS
from tests.server.test_groups_model import GroupsMachine
from tests.server.test_keys_model import WEIGHTS as KEYS_WEIGHTS
from tests.server.test_keys_model import KeysMachine
from vibemq.projections import intervals
from vibemq.server import dead_letters, deliveries, dispatch, key_order, publishers, removal, subscription


@pytest.fixture(autouse=True)
def small_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (intervals, "BLOCK_MAX", 2),
        (dead_letters, "MOVES_MAX", 2),
        (deliveries, "LOST_RUNS_MAX", 1),
        (deliveries, "MADE_READY_MAX", 1),
        (dispatch, "TURN_BYTES_MAX", 2 * dispatch.PIECE_BYTES),
        (key_order, "SCAN_MAX", 2),
        (publishers, "LOOKS_MAX", 1),
        (removal, "PIECES_MAX", 1),
        (subscription, "RUNS_MIN", 1),
        (machine, "TURNS_MAX", 5_000),
    ):
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("seed", range(100, 103))
@pytest.mark.parametrize(
    ("kind", "weights"),
    [(LanesMachine, LANES_WEIGHTS), (GroupsMachine, GROUPS_WEIGHTS), (KeysMachine, KEYS_WEIGHTS)],
)
def test_what_is_cut_short_goes_on(kind: type[Machine], weights: dict[str, int], seed: int) -> None:
    long_history(kind(), seed, 600, weights)

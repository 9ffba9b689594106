"""What is promised, and which tests count for it."""

from typing import Final, NamedTuple


class Source(NamedTuple):
    """Tests that count their rounds under `key`; see tests/counting.py."""

    key: str
    unit: str
    torture: int
    """How many rounds a long run wants."""
    share: float
    """Its part of the time, as a weight."""
    tests: tuple[str, ...]
    parts: int = 1
    """How many tests share the time."""
    waits: bool = False
    """Whether it mostly waits for disks, clocks and other processes, so that another one may compute meanwhile."""


class Promise(NamedTuple):
    """A promise, and where it is tested; without sources it is not tested by counting, for the reason given."""

    name: str
    text: str
    sources: tuple[Source, ...]
    why_not: str = ""


RECOVERY: Final = "tests/log/test_recovery.py"
SYSTEM_CALLS: Final = "tests/crash/test_system_calls.py"

KILLS: Final = Source("G1", "kills", 1000, 14, ("tests/crash/test_kills.py",), waits=True)
GROUPS: Final = Source("GROUPS", "kills under groups", 200, 4, ("tests/crash/test_groups.py",), waits=True)
DELAYED: Final = Source("DELAYED", "kills while messages wait", 200, 4, ("tests/crash/test_delayed.py",), waits=True)
NETWORK: Final = Source("NETWORK", "bad networks", 100, 4, ("tests/crash/test_network.py",), waits=True)
PAUSES: Final = Source("PAUSES", "runs with pauses", 100, 4, ("tests/crash/test_pauses.py",), waits=True)
RESTARTS: Final = Source("G18", "restarts", 1000, 8, ("tests/crash/test_restarts.py",), parts=4, waits=True)
STATES: Final = Source("G2", "crash states", 1_000_000, 12, ("tests/log/test_crash.py",))
HISTORIES: Final = Source("G11", "histories", 100_000, 50, ("tests/sim/test_world.py::test_histories",), parts=8)
CLOCKS: Final = Source(
    "G10", "histories with jumping clocks", 50_000, 10, ("tests/sim/test_clocks.py::test_clocks_that_jump",), parts=2
)
TRANSACTIONS: Final = Source(
    "G13",
    "histories of transactions",
    50_000,
    10,
    ("tests/sim/test_atomicity.py::test_transactions_are_all_or_nothing",),
    parts=2,
)
CUT_OFF: Final = Source(
    "G13_STATES",
    "crashes between the steps of transactions",
    50_000,
    5,
    ("tests/sim/test_atomicity.py::test_a_crash_after_any_step_leaves_all_or_nothing",),
)
TRANSFORMED: Final = Source(
    "G13_KILLS",
    "kills at the steps of transactions",
    2000,
    6,
    ("tests/crash/test_transactions.py::test_each_message_is_transformed_exactly_once",),
    waits=True,
)
SAME: Final = Source("G14", "seeds", 10_000, 6, ("tests/sim/test_world.py::test_a_seed_is_a_history_byte_for_byte",))
CUTS: Final = Source(
    "G5",
    "cuts",
    65_536,
    1,
    (f"{RECOVERY}::test_a_log_cut_at_every_byte_of_its_end_holds_exactly_the_whole_records",),
)
ALL_FLIPS: Final = Source(
    "G6_ALL",
    "flipped bits, all of small logs",
    16_351,
    0.2,
    (f"{RECOVERY}::test_every_flipped_bit_is_refused_or_cut_and_never_accepted",),
)
FLIPS: Final = Source(
    "G6",
    "flipped bits of larger logs",
    1_000_000,
    6,
    (f"{RECOVERY}::test_random_flipped_bits_of_larger_logs_are_refused_or_cut",),
)
CALLS: Final = Source(
    "G7_CALLS",
    "failed system calls",
    700,
    12,
    (f"{SYSTEM_CALLS}::test_a_failed_call_ends_the_broker_and_nothing_confirmed_is_lost",),
    parts=7,
    waits=True,
)
INDEX: Final = Source(
    "G7_INDEX",
    "indexes that cannot be written",
    100,
    2,
    (f"{SYSTEM_CALLS}::test_an_index_that_cannot_be_written_costs_checkpoints_and_nothing_else",),
    parts=2,
    waits=True,
)
STARTS: Final = Source(
    "G7_STARTS",
    "starts with failing calls",
    80,
    1,
    (f"{SYSTEM_CALLS}::test_a_start_that_fails_says_why_and_spoils_nothing",),
    waits=True,
)
DISKS: Final = Source(
    "G7_DISK",
    "failed disks",
    100_000,
    4,
    ("tests/crash/test_disk_faults.py::test_nothing_is_confirmed_after_a_fault_and_nothing_confirmed_is_lost",),
)
FULL_DISKS: Final = Source(
    "G8_DISK",
    "full disks",
    1000,
    0.5,
    ("tests/crash/test_disk_faults.py::test_full_disks_refuse_publishes_and_nothing_else",),
)
FULL_BROKERS: Final = Source(
    "G8_CALLS",
    "brokers without room",
    50,
    1.5,
    (f"{SYSTEM_CALLS}::test_without_room_publishes_are_refused_and_the_rest_goes_on",),
    waits=True,
)
TMPFS: Final = Source("G8_TMPFS", "small file systems", 1, 0.2, ("tests/live/test_disk_full.py",), waits=True)
GOLDEN: Final = Source("G15", "golden logs", 3, 0.1, ("tests/log/test_golden.py", "tests/test_earlier_folder.py"))
MEMORY: Final = Source("G16", "loads at full size", 6, 3, ("tests/live/test_memory.py",), parts=6)
INPUTS: Final = Source("G17", "inputs", 10_000_000, 10, ("tests/fuzz/test_fuzz.py::test_no_input_breaks",), parts=10)
PEERS: Final = Source("PEERS", "hostile peers", 16, 4, ("tests/fuzz/test_peers.py",), parts=16)

LATER: Final = "not in this version"

PROMISES: Final = (
    Promise("G1", "A confirmed publish survives a process crash", (KILLS, GROUPS, DELAYED, NETWORK)),
    Promise("G2", "... and a power loss", (STATES, HISTORIES)),
    Promise("G3", "No delivery after a confirmed ack", (KILLS, GROUPS, PAUSES, NETWORK, HISTORIES)),
    Promise("G4", "Nothing unexpected; duplicates are flagged", (KILLS, GROUPS, PAUSES, NETWORK, HISTORIES)),
    Promise("G5", "A torn tail costs only what was never confirmed", (CUTS,)),
    Promise("G6", "Damage to what was synced is refused; above that it is cut and reported", (ALL_FLIPS, FLIPS)),
    Promise(
        "G7", "A failed write or sync stops the process; nothing is confirmed after it", (CALLS, STARTS, INDEX, DISKS)
    ),
    Promise("G8", "A full disk refuses publishes and nothing else", (FULL_DISKS, FULL_BROKERS, INDEX, TMPFS)),
    Promise("G9", "Create, rename and unlink are safe before the directory is synced", (STATES,)),
    Promise("G10", "A clock that jumps loses and expires nothing", (CLOCKS,)),
    Promise("G11", "Every projection equals a replay from zero", (HISTORIES,)),
    Promise("G12", "A crash in compaction, backup or restore is safe", (), LATER),
    Promise("G13", "A transaction is all or nothing", (TRANSACTIONS, CUT_OFF, TRANSFORMED)),
    Promise("G14", "The same seed gives the same log, byte for byte", (SAME,)),
    Promise("G15", "Old logs open forever", (GOLDEN,)),
    Promise("G16", "Memory is bounded", (MEMORY,)),
    Promise("G17", "Bad input never kills or bloats the broker", (INPUTS, PEERS)),
    Promise("G18", "A client rides through broker restarts", (RESTARTS, KILLS)),
)

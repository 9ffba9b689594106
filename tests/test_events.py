"""Events: the bytes of their facts never change, and old versions are brought to the present one.

The golden files hold the facts of one event of each kind and version, as they stand in logs of users. A new kind or
version gets a new file, by `python -m tests.test_events`, which writes what is missing; none is ever changed or
removed. Where fields were added at the end of a kind, `earlier/` holds the facts as they were written without them.
"""

import enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.declaration import Backoff, Misfire, Mode, Overflow, QueueSettings, ScheduleSpec
from vibemq.errors import FormatUnsupported

GOLDEN = Path(__file__).parent / "golden" / "events"
SPANS = ((0, 1, 4), (0, 70_000, 70_001))
EARLIER_SETTINGS = QueueSettings(
    mode=Mode.ROUND_ROBIN,
    max_attempts=3,
    lease_ms=45_000,
    retry_delay_ms=1_500,
    dead_letter_queue="graveyard",
    max_length=1_000,
    max_bytes=1 << 33,
)
SETTINGS_OF_MODES = msgspec.structs.replace(
    EARLIER_SETTINGS,
    mode=Mode.FAN_OUT,
    overflow=Overflow.BLOCK,
    ttl_ms=600_000,
    retry_backoff=Backoff.EXPONENTIAL,
    retry_delay_max_ms=60_000,
    retry_jitter_percent=20,
    priority_guard=50,
    order_by_key=True,
    single_active=True,
    group_idle_ms=86_400_000,
    group_max_lag=100_000,
    publish_rate=5_000,
    deliver_rate=1_000,
    delete_grace_ms=0,
    description="новые",
)
SETTINGS = msgspec.structs.replace(SETTINGS_OF_MODES, dedup_window_ms=60_000, expires_ms=90_000)
SCHEDULE = ScheduleSpec(
    queue="reports.eu",
    to_topic=True,
    body="zwölf".encode(),
    headers={"k": "v", "n": 1, "none": None},
    priority=7,
    ttl_ms=60_000,
    cron="30 4 * * 1-5",
    zone="Europe/Berlin",
    every_ms=1,
    start_us=1_753_000_000_000_000,
    end_us=1_853_000_000_000_000,
    times=100,
    misfire=Misfire.ALL,
)
HASHES = bytes(range(16)) + bytes(16)
DUE_US = 1_753_000_090_123_456
ENTRIES = ((DUE_US, 5, 0, 3, 768, 9), (DUE_US + 1, 8, 2, 1, 256, 9))
LATER = ((DUE_US + 7, 5, 0, 1, 256, 9), (DUE_US, 5, 1, 2, 512, 9), (DUE_US + 7, 8, 2, 1, 256, 9))
REFS = ((5, 0, 3), (8, 2, 1))
EXAMPLES: tuple[e.Event, ...] = (
    e.BrokerStarted("0.1.0", clean=False, wall_us=1_753_000_000_123_456),
    e.BrokerStopped("asked to"),
    e.ClientConnected(7, "worker", "127.0.0.1:40000", "binary"),
    e.ClientRefused("10.0.0.9", "MalformedFrame", 12),
    e.ClientDisconnected(7, "the connection broke"),
    e.QueueDeclared(3, "заказы", SETTINGS, 7),
    e.QueueChanged(3, SETTINGS, 7),
    e.QueueRenamed(3, "заказы.2", 7),
    e.QueueDeleted(3, 10, 2_560, 7, 1_753_003_600_123_456),
    e.QueueUndeleted(3, "заказы.3", 7),
    e.QueuePurged(3, 10, 2_560, 7, SPANS),
    e.GroupCreated(3, 2, "billing", 70_000, False, 7),
    e.GroupDeleted(3, 2, 0),
    e.GroupSought(3, 2, 1, 7),
    e.Bound(3, "orders.*.#", 7),
    e.Unbound(3, "orders.*.#", 7),
    e.Published(3, 9, 0, 2, 512, (1 << 64) - 1, 901, 7, 801, 28, True, DUE_US, HASHES, ((0, 5, 0), (3, 8, 2))),
    e.TransactionCommitted(
        (
            e.Published(3, 9, 70_000, 2, 512, 0, 0, 0, dropped=1, dedup=HASHES, duplicates=((1, 8, 2),)),
            e.Published(4, 0, 0, 1, 256, 0, 0, 0, due_us=DUE_US),
        ),
        (
            e.Routed("orders.eu.new", ((3, 0, 5), (5, 9, 1)), 3, 768, 0, 0, 0),
            e.Routed("orders.eu.old", ((5, 9, 0),), 1, 256, 0, 0, 0, due_us=DUE_US + 1),
        ),
        (e.Acked(3, 0, 11, SPANS, 1_024),),
        (600, 280, 800, 280),
        (7 << 20) + 3,
        (1 << 64) - 1,
        901,
        7,
        801,
    ),
    e.Routed("orders.eu.new", ((3, 0, 0), (4, 9, 0)), 100, 25_600, (1 << 64) - 1, 901, 7, 801, True, True, DUE_US),
    e.Matured(3, 9, 70_000, ENTRIES, 1_024),
    e.Rescheduled(3, ENTRIES, LATER, 7),
    e.Cancelled(3, ENTRIES, LATER[:1], 7),
    e.MadeReady(3, 0, SPANS),
    e.ProducersForgotten((1, 1 << 63)),
    e.Subscribed(11, 3, 0, 7),
    e.Unsubscribed(11, 3, 0),
    e.Delivered(3, 0, 11, SPANS, 1_024, 1_753_000_030_123_456),
    e.Acked(3, 0, 11, SPANS, 1_024),
    e.LeaseExtended(3, 0, 11, SPANS, 1_753_000_060_123_456),
    e.Released(3, 0, 11, SPANS, 1_024, e.ReleaseReason.NACKED, True, 1_753_000_001_623_456, "no stock"),
    e.DeadLettered(3, 0, 11, SPANS, 1_024, e.DeadReason.MAX_ATTEMPTS, 3, "no stock", 4, 90, REFS),
    e.Dropped(3, 2, SPANS, 1_024, e.DeadReason.OVERFLOW),
    e.Redriven(4, SPANS, 1_024, 5, 3, 7, 80_000, REFS, 7),
    e.DedupForgotten(3, 12),
    e.ScheduleSet(900, "nightly", SCHEDULE, DUE_US, 7),
    e.SchedulePaused(900, True, 0, 7),
    e.ScheduleDeleted(900, 7),
    e.Fired(900, DUE_US, DUE_US + 86_400_000_000, 2, ((3, 9, 70_000), (4, 0, 1)), 1, 256, True),
    e.Misfired(900, 2, DUE_US + 86_400_000_000, "queue 'reports' is full"),
    e.SegmentSealed(0, 5_000, bytes(range(32)), bytes(32)),
)
EARLIER: dict[str, e.Event] = {
    "010-QueueDeclared-v1": e.QueueDeclared(3, "заказы", EARLIER_SETTINGS, 7),
    "010-QueueDeclared-v1-modes": e.QueueDeclared(3, "заказы", SETTINGS_OF_MODES, 7),
    "011-QueueChanged-v1": e.QueueChanged(3, SETTINGS_OF_MODES, 7),
    "012-QueueDeleted-v1": e.QueueDeleted(3, 10, 2_560, 7),
    "020-Published-v1": e.Published(3, 0, 70_000, 100, 25_600, (1 << 64) - 1, 901, 7, 801),
    "020-Published-v1-timed": e.Published(3, 9, 70_000, 100, 25_600, (1 << 64) - 1, 901, 7, 801, 28, True),
    "024-Routed-v1": e.Routed(
        "orders.eu.new", ((3, 0, 70_000), (4, 9, 1)), 100, 25_600, (1 << 64) - 1, 901, 7, 801, True, True
    ),
}
"""By file in `earlier/`: what it is read as now."""
TAGS = """
1 BROKER_STARTED, 2 BROKER_STOPPED, 3 CLIENT_CONNECTED, 4 CLIENT_REFUSED, 5 CLIENT_DISCONNECTED,
10 QUEUE_DECLARED, 11 QUEUE_CHANGED, 12 QUEUE_DELETED, 13 QUEUE_PURGED, 14 GROUP_CREATED, 15 GROUP_DELETED,
16 GROUP_SOUGHT, 17 QUEUE_RENAMED, 18 QUEUE_UNDELETED,
20 PUBLISHED, 21 TRANSACTION_COMMITTED, 22 MADE_READY, 23 PRODUCERS_FORGOTTEN, 24 ROUTED, 25 BOUND, 26 UNBOUND,
27 MATURED, 28 RESCHEDULED, 29 CANCELLED,
30 SUBSCRIBED, 31 UNSUBSCRIBED, 32 DELIVERED, 33 ACKED, 34 LEASE_EXTENDED, 35 RELEASED, 36 DROPPED,
40 DEAD_LETTERED, 41 REDRIVEN, 42 DEDUP_FORGOTTEN,
50 USER_CHANGED, 51 ROLE_CHANGED, 52 PERMISSION_CHANGED, 53 TOKEN_CHANGED,
60 SEGMENT_SEALED, 61 COMPACTED, 62 ERASED, 63 HORIZON, 64 BACKUP_TAKEN, 65 RESTORED,
70 SCHEDULE_SET, 71 SCHEDULE_PAUSED, 72 SCHEDULE_DELETED, 73 FIRED, 74 MISFIRED
"""
RELEASE_REASONS = "1 NACKED, 2 LEASE_EXPIRED, 3 CONSUMER_LOST, 4 UNSUBSCRIBED"
DEAD_REASONS = "1 MAX_ATTEMPTS, 2 REJECTED, 3 EXPIRED, 4 OVERFLOW, 5 UNROUTABLE"
by_name = {type(event).__name__: event for event in EXAMPLES}


def file_of(event: e.Event) -> Path:
    return GOLDEN / f"{event.TAG:03}-{type(event).__name__}-v{event.VERSION}.hex"


def facts_in(path: Path) -> bytes:
    return bytes.fromhex(path.read_text())


def listed(text: str) -> dict[str, int]:
    pairs = (entry.split() for entry in text.replace("\n", " ").strip().split(","))
    return {name: int(number) for number, name in pairs}


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(e.Tag, TAGS), (e.ReleaseReason, RELEASE_REASONS), (e.DeadReason, DEAD_REASONS)],
    ids=["tags", "release reasons", "dead reasons"],
)
def test_numbers_in_the_log_keep_their_meaning(kind: type[enum.IntEnum], numbers: str) -> None:
    found = {name: member.value for name, member in kind.__members__.items()}
    assert {name: found.get(name) for name in listed(numbers)} == listed(numbers)
    assert found == listed(numbers), "a new one belongs in the list, too"


def test_every_kind_of_event_has_an_example() -> None:
    assert sorted(type(event).TAG for event in EXAMPLES) == sorted(e.CATALOGUE)


def test_every_kind_has_a_tag_of_its_own() -> None:
    kinds = [kind for kind in e.Event.__subclasses__() if kind.__module__.startswith("vibemq.")]
    assert sorted(kind.TAG for kind in kinds) == sorted({kind.TAG for kind in kinds})


@pytest.mark.parametrize("name", by_name)
def test_facts_are_the_golden_bytes(name: str) -> None:
    event = by_name[name]
    assert e.encode(event).hex() == facts_in(file_of(event)).hex()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.hex")), ids=lambda path: path.stem)
def test_golden_bytes_are_read_for_ever(path: Path) -> None:
    tag, name, version = path.stem.split("-")
    event = e.decode(int(tag), int(version.removeprefix("v")), facts_in(path))
    assert type(event).__name__ == name
    assert event == by_name[name]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("earlier/*.hex")), ids=lambda path: path.stem)
def test_golden_bytes_without_later_fields_are_read_for_ever(path: Path) -> None:
    tag, _, version = path.stem.split("-")[:3]
    assert e.decode(int(tag), int(version.removeprefix("v")), facts_in(path)) == EARLIER[path.stem]


def test_every_earlier_form_has_its_bytes() -> None:
    assert {path.stem for path in GOLDEN.glob("earlier/*.hex")} == set(EARLIER)


@pytest.mark.parametrize(("example", "default"), [(SETTINGS, QueueSettings()), (SCHEDULE, ScheduleSpec(queue=""))])
def test_every_setting_in_the_example_differs_from_its_default(
    example: msgspec.Struct, default: msgspec.Struct
) -> None:
    given, defaults = msgspec.structs.asdict(example), msgspec.structs.asdict(default)
    assert [name for name in given if given[name] == defaults[name]] == []


def test_events_say_what_they_made_ready() -> None:
    assert {name: event.arrivals for name, event in by_name.items() if event.arrivals} == {
        "TransactionCommitted": ((3, 9, 70_000, 2), (3, 0, 5, 3), (5, 9, 1, 3)),
        "Matured": ((3, 9, 70_000, 4),),
        "DeadLettered": ((4, 0, 90, 4),),
        "Redriven": ((3, 7, 80_000, 4),),
        "Fired": ((3, 9, 70_000, 1), (4, 0, 1, 1)),
    }
    assert EARLIER["020-Published-v1-timed"].arrivals == ((3, 9, 70_000, 100),)
    assert EARLIER["024-Routed-v1"].arrivals == ((3, 0, 70_000, 100), (4, 9, 1, 100))
    arriving = {event.TAG for event in (*EXAMPLES, *EARLIER.values()) if event.arrivals}
    assert arriving == e.ARRIVING


def test_events_say_what_waits_for_its_time() -> None:
    published, routed, committed = by_name["Published"], by_name["Routed"], by_name["TransactionCommitted"]
    assert isinstance(published, e.Published)
    assert published.delayed(5, 2) == ((3, (DUE_US, 5, 2, 2, 512, 9)),)
    assert isinstance(routed, e.Routed)
    entry = (DUE_US, 5, 0, 100, 25_600)
    assert routed.delayed(5) == ((3, (*entry, 0)), (4, (*entry, 9)))
    assert isinstance(committed, e.TransactionCommitted)
    assert committed.delayed(5) == ((4, (DUE_US, 5, 2, 1, 256, 0)), (5, (DUE_US + 1, 5, 6, 1, 256, 9))), (
        "an index counts through all batches of the record"
    )
    for name in ("020-Published-v1-timed", "024-Routed-v1"):
        ready = EARLIER[name]
        assert isinstance(ready, e.Published | e.Routed)
        assert ready.delayed(5) == ()


def test_a_batch_that_was_dropped_whole_and_dead_letters_that_are_gone_arrive_nowhere() -> None:
    assert e.Published(3, 0, 1, 0, 0, 0, 0, 7, dropped=5).arrivals == ()
    gone = e.DeadLettered(3, 0, 11, SPANS, 1_024, e.DeadReason.REJECTED, 3, "", 0, 0, REFS)
    assert gone.arrivals == ()


def test_facts_are_an_array_in_the_order_of_the_fields() -> None:
    assert msgspec.msgpack.decode(e.encode(e.Subscribed(11, 3, 0, 7))) == [11, 3, 0, 7]


class Moved(e.Event, frozen=True):
    """An event in its third version: `distance` was in miles in the first, and had no `reason` before the third."""

    TAG = e.Tag.HORIZON
    VERSION = 3
    metres: int
    reason: str


def _to_metres(facts: list[Any]) -> list[Any]:
    return [facts[0] * 1_609]


def _with_reason(facts: list[Any]) -> list[Any]:
    return [*facts, "not recorded"]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> int:
    tag = int(Moved.TAG)
    monkeypatch.setitem(e.CATALOGUE, tag, Moved)
    decoders: dict[Any, Any] = {**e._decoders, tag: msgspec.msgpack.Decoder(Moved)}
    monkeypatch.setattr(e, "_decoders", decoders)
    monkeypatch.setitem(e.UPCASTERS, (tag, 1), _to_metres)
    monkeypatch.setitem(e.UPCASTERS, (tag, 2), _with_reason)
    return tag


def test_old_versions_pass_through_every_upcaster(moved: int) -> None:
    pack = msgspec.msgpack.encode
    assert e.decode(moved, 1, pack([2])) == Moved(3_218, "not recorded")
    assert e.decode(moved, 2, pack([2])) == Moved(2, "not recorded")
    assert e.decode(moved, 3, pack([2, "asked"])) == Moved(2, "asked")


def test_an_upcaster_left_out_would_be_noticed(moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(e.UPCASTERS, (moved, 2))
    with pytest.raises(FormatUnsupported):
        e.decode(moved, 1, msgspec.msgpack.encode([2]))


@pytest.mark.parametrize("facts", [b"", b"\xc1", b"\x90", b"\x91\xc0", b"\x91\xa1x", b"\x01", b"\x91\xa1\xff"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_facts_that_do_not_fit_are_unsupported(moved: int, version: int, facts: bytes) -> None:
    with pytest.raises(FormatUnsupported):
        e.decode(moved, version, facts)


@pytest.mark.parametrize(("tag", "version"), [(0, 1), (255, 1), (1, 0), (1, 2), (1, 255), (63, 1)])
def test_what_a_later_version_wrote_is_unsupported(tag: int, version: int) -> None:
    with pytest.raises(FormatUnsupported, match=f"tag {tag}, version {version}"):
        e.decode(tag, version, b"\x90")


@given(st.sampled_from(sorted(e.CATALOGUE)), st.binary(max_size=60))
def test_arbitrary_facts_are_an_event_or_unsupported(tag: int, facts: bytes) -> None:
    try:
        event = e.decode(tag, 1, facts)
    except FormatUnsupported:
        return
    assert type(event) is e.CATALOGUE[tag]


def write_missing() -> None:
    """Write the golden files that are not there yet."""
    for event in EXAMPLES:
        if not file_of(event).exists():
            file_of(event).write_text(e.encode(event).hex(" ") + "\n")


if __name__ == "__main__":
    write_missing()

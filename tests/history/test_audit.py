"""The audit trail, against a naive one and in small histories."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history.naive import PUBLISHES, Naive, parts_of
from tests.history.world import QUEUES, Kept, World, world_of
from vibemq import events as e
from vibemq.declaration import Mode, QueueSettings, ScheduleSpec
from vibemq.errors import BeyondLog, UsageError
from vibemq.history.audit import KINDS, Filter, select
from vibemq.history.names import Names
from vibemq.history.replay import kind_of
from vibemq.history.story import MessageId
from vibemq.history.times import parse_time, rfc3339
from vibemq.history.waiting import changed
from vibemq.history.wording import facts, words


def filter_of(random: Random, kept: list[Kept]) -> Filter:
    """Some filter; most leave something out by two or three criteria."""
    published = [
        (record.offset, count)
        for record in kept
        if (count := sum(one.count for one in parts_of(record.event) if isinstance(one, PUBLISHES)))
    ]
    message = None
    if published and random.random() < 0.5:
        offset, count = random.choice(published)
        message = MessageId(offset, random.randrange(count))
    times = (0, kept[-1].time_us + 2_000)
    return Filter(
        random.choice([*QUEUES, "y", "z", "unknown"]) if random.random() < 0.3 else None,
        random.choice(["shop", "worker", "10.0.0.1", "10.0.0.0:3", "#2", "nobody at all"])
        if random.random() < 0.3
        else None,
        message,
        frozenset(random.choices(sorted(KINDS.values()), k=4)) if random.random() < 0.3 else frozenset(),
        random.randrange(*times) if random.random() < 0.3 else 0,
        random.randrange(*times) if random.random() < 0.3 else None,
    )


@given(seed=st.integers(0, 1 << 32))
def test_filters_find_what_a_naive_filter_finds(seed: int) -> None:
    random, kept = Random(seed), world_of(seed).kept
    naive = Naive(kept)
    for _ in range(20):
        wanted = filter_of(random, kept)
        found = list(select(kept, wanted))
        assert [entry.offset for entry in found] == naive.offsets(kept, wanted), wanted
        for entry in found:
            client = naive.clients[entry.offset]
            assert (entry.client is None) == (client is None)
            assert entry.client is None or tuple(entry.client) == client
            assert entry.queue is None or entry.queue in naive.queues[entry.offset]


def test_the_histories_have_all_kinds_of_event() -> None:
    seen = {record.tag for seed in range(30) for record in world_of(seed).kept}
    never = {e.Tag.CLIENT_REFUSED, e.Tag.PRODUCERS_FORGOTTEN, e.Tag.SEGMENT_SEALED}
    assert seen == set(e.CATALOGUE) - never


def offsets_of(history: tuple[e.Event, ...], message: str, read: list[int] | None = None) -> list[int]:
    """Which events the trail shows of a message; `read` gets all that it looked at."""

    def reading() -> Iterator[Kept]:
        for offset, event in enumerate(history):
            if read is not None:
                read.append(offset)
            yield Kept(offset, offset, event.TAG, event)

    return [entry.offset for entry in select(reading(), Filter(message=MessageId.parse(message)))]


NACKED = e.ReleaseReason.NACKED
SECOND_LIFE = (
    e.QueueDeclared(1, "q", QueueSettings(max_attempts=2), 0),
    e.QueueDeclared(2, "q.dlq", QueueSettings(), 0),
    e.Subscribed(1, 1, 0, 9),
    e.Published(1, 0, 1, 3, 30, 0, 0, 9),
    e.Delivered(1, 0, 1, ((0, 1, 4),), 30, 99),
    e.Acked(1, 0, 1, ((0, 1, 2),), 10),
    e.Released(1, 0, 1, ((0, 2, 3),), 10, NACKED, True, 0, "no"),
    e.Delivered(1, 0, 1, ((0, 2, 3),), 10, 99),
    e.DeadLettered(1, 0, 1, ((0, 2, 4),), 20, e.DeadReason.REJECTED, 2, "no", 2, 1, ((3, 1, 2),)),
    e.Redriven(2, ((0, 1, 3),), 20, 2, 1, 0, 4, ((3, 1, 2),), 9),
    e.Delivered(1, 0, 1, ((0, 4, 5),), 10, 99),
    e.Acked(1, 0, 1, ((0, 4, 5),), 10),
    e.Delivered(1, 0, 1, ((0, 5, 6),), 10, 99),
)


def test_a_message_is_followed_to_the_dead_letters_back_to_work_and_to_its_end() -> None:
    read: list[int] = []
    assert offsets_of(SECOND_LIFE, "3-1", read) == [3, 4, 6, 7, 8, 9, 10, 11]
    assert read[-1] == 11, "nothing can follow"
    assert offsets_of(SECOND_LIFE, "3-2") == [3, 4, 8, 9, 12]
    assert offsets_of(SECOND_LIFE, "3-0") == [3, 4, 5]


FAN_OUT = (
    e.QueueDeclared(1, "f", QueueSettings(mode=Mode.FAN_OUT), 0),
    e.GroupCreated(1, 1, "g", 1, False, 9),
    e.Subscribed(1, 1, 1, 9),
    e.Published(1, 0, 1, 2, 20, 0, 0, 9),
    e.Delivered(1, 1, 1, ((0, 1, 3),), 20, 99),
    e.Acked(1, 1, 1, ((0, 1, 3),), 20),
    e.GroupCreated(1, 2, "later", 2, False, 9),  # behind the first message
    e.GroupSought(1, 1, 2, 9),
    e.GroupSought(1, 1, 1, 9),
    e.Delivered(1, 1, 1, ((0, 1, 2),), 10, 99),
    e.GroupSought(1, 2, 3, 9),
    e.QueuePurged(1, 0, 0, 9, ((0, 1, 2),)),
    e.Acked(1, 1, 1, ((0, 1, 2),), 10),
    e.GroupDeleted(1, 2, 9),
)


def test_a_message_is_followed_through_all_groups_as_long_as_one_can_come_to_it() -> None:
    read: list[int] = []
    assert offsets_of(FAN_OUT, "3-0", read) == [3, 4, 5, 8, 9, 12]
    assert read[-1] == 12, "it was purged, and the last group has settled it"
    read.clear()
    assert offsets_of(FAN_OUT, "3-1", read) == [3, 4, 5, 6, 7, 8, 10, 11]
    assert read[-1] == 11


def entry(due_us: int, index: int, count: int) -> e.Entry:
    """Some messages of record 2."""
    return due_us, 2, index, count, 10 * count, 0


WAITING = (
    e.QueueDeclared(1, "q", QueueSettings(), 0),
    e.QueueDeclared(2, "r", QueueSettings(), 0),
    e.Routed("t", ((1, 0, 0), (2, 0, 0)), 4, 40, 0, 0, 9, due_us=100),
    e.Rescheduled(1, (entry(100, 0, 4),), (entry(100, 0, 1), entry(70, 1, 1), entry(100, 2, 2)), 9),
    e.Cancelled(1, (entry(100, 2, 2),), (entry(100, 3, 1),), 9),
    e.Matured(1, 0, 5, (entry(70, 1, 1),), 10),
    e.QueuePurged(2, 4, 40, 9, ()),
    e.Subscribed(1, 1, 0, 9),
    e.Delivered(1, 0, 1, ((0, 5, 6),), 10, 99),
    e.Matured(1, 0, 6, ((90, 1, 0, 3, 30, 0), entry(100, 0, 1), entry(100, 3, 1)), 50),
    e.Acked(1, 0, 1, ((0, 5, 6),), 10),
    e.QueueDeleted(1, 4, 40, 9, until_us=200),
    e.QueueUndeleted(1, "q", 9),
    e.Delivered(1, 0, 1, ((0, 9, 11),), 20, 99),
)


def test_a_message_is_followed_while_it_waits_for_its_time() -> None:
    read: list[int] = []
    assert offsets_of(WAITING, "2-1", read) == [2, 3, 5, 6, 8, 10]
    assert read[-1] == 10, "in the other queue it was purged"
    assert offsets_of(WAITING, "2-2") == [2, 4, 6], "it was taken back, and not put off"
    assert offsets_of(WAITING, "2-0") == [2, 6, 9, 11, 12, 13]
    assert offsets_of(WAITING, "2-3") == [2, 6, 9, 11, 12, 13]


def test_a_deleted_queue_keeps_what_waits_as_long_as_it_can_come_back() -> None:
    history = (
        e.QueueDeclared(1, "q", QueueSettings(), 0),
        e.BrokerStopped(""),
        e.Published(1, 0, 0, 1, 10, 0, 0, 9, due_us=100),
        e.QueueDeleted(1, 1, 10, 9, until_us=50),
        e.QueueUndeleted(1, "q", 9),
        e.QueueDeleted(1, 1, 10, 9),
        e.QueueUndeleted(1, "q", 9),
    )
    assert offsets_of(history, "2-0") == [2, 3, 4, 5]


TOGETHER = (
    e.QueueDeclared(1, "q", QueueSettings(), 0),
    e.QueueDeclared(2, "r", QueueSettings(), 0),
    e.Published(1, 0, 1, 2, 20, 0, 0, 9, dedup=b"d" * 32),
    e.Subscribed(1, 1, 0, 9),
    e.Delivered(1, 0, 1, ((0, 1, 3),), 20, 99),
    e.TransactionCommitted(
        (
            e.Published(1, 0, 3, 2, 20, 0, 0, 9, duplicates=((1, 2, 1),)),
            e.Published(2, 0, 0, 1, 10, 0, 0, 9, due_us=70),
        ),
        (e.Routed("t", ((1, 0, 5), (2, 0, 1)), 2, 20, 0, 0, 9),),
        (e.Acked(1, 0, 1, ((0, 1, 2),), 10),),
        (20, 10, 20),
        5,
        0,
        0,
        9,
    ),
    e.Matured(2, 0, 3, ((70, 5, 2, 1, 10, 0),), 10),
    e.Delivered(1, 0, 1, ((0, 5, 6),), 10, 99),
    e.Subscribed(2, 2, 0, 9),
    e.Delivered(2, 0, 2, ((0, 3, 4),), 10, 99),
    e.Acked(1, 0, 1, ((0, 2, 6),), 40),
    e.Acked(2, 0, 2, ((0, 1, 4),), 30),
)


def test_a_message_of_a_transaction_is_followed_by_its_place_in_the_record() -> None:
    assert offsets_of(TOGETHER, "5-0") == [5, 10]
    assert offsets_of(TOGETHER, "5-2") == [5, 6, 9, 11]
    assert offsets_of(TOGETHER, "5-3") == [5, 7, 10, 11]
    assert offsets_of(TOGETHER, "5-4") == [5, 11], "its place counts through all batches"
    assert offsets_of(TOGETHER, "2-0") == [2, 4, 5], "a transaction acked it"
    assert offsets_of(TOGETHER, "2-1") == [2, 4, 5, 10], "another one with its dedup id was not stored"
    with pytest.raises(UsageError, match="holds 5 messages: the last is 5-4"):
        offsets_of(TOGETHER, "5-5")


def test_a_transaction_is_about_all_of_its_queues() -> None:
    kept = [Kept(offset, offset, event.TAG, event) for offset, event in enumerate(TOGETHER)]
    for queue in "qr":
        assert 5 in [one.offset for one in select(kept, Filter(queue=queue))]
    (one,) = select(kept, Filter(kinds=frozenset({e.Tag.TRANSACTION_COMMITTED})))
    assert one.text == (
        "epoch 5: q (messages 3-4, id 5-0 to 5-1, 20 bytes, 1 more not stored: there already as 2-1); "
        "r (1 message due at 1970-01-01T00:00:00.000070Z, id 5-2, 10 bytes); "
        "topic t, id 5-3 to 5-4, 20 bytes, to q (messages 5-6), r (messages 1-2); "
        "acked message 1 of q by subscription 1"
    )
    shown = facts(one.event)
    assert shown["published"][1]["due_us"] == 70
    assert shown["acked"][0]["spans"] == ((0, 1, 2),)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (WAITING[2], "topic t, id 2-0 to 2-3, 40 bytes, to q (4 messages due at {}), r (4 messages due at {})"),
        (WAITING[3], "id 2-1: now due at 1970-01-01T00:00:00.000070Z"),
        (WAITING[4], "1 message, id 2-2"),
        (WAITING[9], "messages 6-10, id 1-0 to 1-2, 2-0, 2-3, due now"),
        (e.Published(1, 0, 0, 0, 0, 0, 0, 9, dropped=2, duplicates=((0, 2, 1), (1, 3, 0))), None),
        (e.DedupForgotten(1, 40), "dedup ids of what came before record 40"),
        (e.ScheduleSet(7, "s", ScheduleSpec(queue="q", body=b"x", every_ms=50), 100, 9), None),
        (e.SchedulePaused(7, True, 0, 9), "schedule #7 paused"),
        (e.SchedulePaused(7, False, 100, 9), "schedule #7 goes on; next at {}"),
        (e.ScheduleDeleted(7, 0), "schedule #7, which had come to its end"),
        (e.ScheduleDeleted(7, 9), "schedule #7"),
        (e.Fired(7, 100, 0, 2, ((1, 0, 4),), 1, 30), None),
        (e.Misfired(7, 3, 100, "no queue"), "schedule #7: 3 times left out, no queue; next at {}"),
    ],
    ids=lambda value: kind_of(value.TAG) if isinstance(value, e.Event) else "",
)
def test_what_is_said_of_time(event: e.Event, text: str | None) -> None:
    longer = {
        e.Tag.PUBLISHED: "2 messages not stored: the queue was full, 2 more not stored: there already as 2-1, 3-0",
        e.Tag.SCHEDULE_SET: "schedule s every 50 ms, 1 bytes to q; next at {}",
        e.Tag.FIRED: "schedule #7 for {}, id 2-0, 30 bytes, to q (message 4); 2 times before left out; no next time",
    }
    names = Names()
    for one in WAITING[:2]:
        names.introduce(one)
    expected = text if text is not None else longer[event.TAG]
    assert words(2, event, names) == expected.replace("{}", "1970-01-01T00:00:00.000100Z")


def test_a_schedule_is_called_by_its_name_as_long_as_it_is_there() -> None:
    history = (
        e.ScheduleSet(0, "nightly", ScheduleSpec(queue="q", cron="30 4 * * *", body=b"secret"), 100, 9),
        e.Fired(0, 100, 200, 0, (), 1, 30),
        e.ScheduleDeleted(0, 9),
        e.Misfired(0, 1, 0, ""),
    )
    kept = [Kept(offset, offset, event.TAG, event) for offset, event in enumerate(history)]
    texts = [one.text for one in select(kept, Filter())]
    assert ["nightly" in text for text in texts] == [True, True, True, False]
    assert "'30 4 * * *' in UTC" in texts[0]
    assert "secret" not in repr(facts(history[0])), "what it publishes is never shown"
    assert facts(history[0])["spec"]["body_bytes"] == 6


PIECES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=5)


@given(PIECES, st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19)))
def test_what_has_changed_of_what_waits(pieces: list[tuple[int, int]], moved: set[int], gone: set[int]) -> None:
    """Against the same, message by message."""
    before, index = list[e.Entry](), 0
    for due_us, count in pieces:
        before.append((due_us, 5, index, count, count, 0))
        index += count
    left = [
        (9 if at in moved else due_us, 5, at, 1, 1, 0)
        for due_us, _, first, count, _, _ in before
        for at in range(first, first + count)
        if at not in gone
    ]
    found = {at for _, first, count in changed(before, left) for at in range(first, first + count)}
    assert found == {at for at in range(index) if at in moved or at in gone}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (e.Published(1, 0, 1, 0, 0, 0, 0, 9, dropped=2), "holds 0 messages: none was stored"),
        (e.Published(1, 0, 1, 1, 10, 0, 0, 9, dropped=2), "holds 1 messages: the last is 1-0"),
    ],
)
def test_what_was_dropped_at_its_publish_has_no_story(event: e.Event, error: str) -> None:
    history = (e.QueueDeclared(1, "q", QueueSettings(), 0), event)
    with pytest.raises(UsageError, match=error):
        offsets_of(history, "1-1")


def test_what_was_routed_to_full_queues_has_a_short_story() -> None:
    read: list[int] = []
    assert offsets_of((e.Routed("t", (), 2, 20, 0, 0, 9), e.BrokerStopped("")), "0-1", read) == [0]
    assert read == [0]


def some_history() -> list[Kept]:
    world = World()
    for name, second in (
        ("connect", 1),
        ("publish", 2),
        ("subscribe", 3),
        ("settle", 6),
        ("settle", 1),
        ("disconnect", 0),
    ):
        world.do(name, 0, second)
    return world.kept


@pytest.mark.parametrize(("text", "error"), [("3-9", "holds"), ("0-0", "published no message")])
def test_an_id_that_names_no_message_is_refused(text: str, error: str) -> None:
    kept = some_history()
    text = text.replace("3", str(next(record.offset for record in kept if record.tag == e.Tag.PUBLISHED)))
    with pytest.raises(UsageError, match=error):
        list(select(kept, Filter(message=MessageId.parse(text))))


def test_an_id_beyond_the_log_is_told_apart() -> None:
    with pytest.raises(BeyondLog, match="no record 999"):
        list(select(some_history(), Filter(message=MessageId(999, 0))))


@pytest.mark.parametrize("text", ["", "12", "12-", "-1", "a-b", "1-2-3", "\uff11-\uff10", "1 - 2"])
def test_what_is_no_message_id(text: str) -> None:
    with pytest.raises(UsageError, match="no message id"):
        MessageId.parse(text)


def test_reading_ends_where_nothing_can_follow() -> None:
    kept = some_history()
    read: list[int] = []

    def reading() -> Iterator[Kept]:
        for one in kept:
            read.append(one.offset)
            yield one

    found = select(reading(), Filter(until_us=kept[3].time_us))
    assert [entry.offset for entry in found] == [one.offset for one in kept if one.time_us < kept[3].time_us]
    assert max(read) <= 3


EVENTS = [
    e.BrokerStarted("0.1\x1b[2J", False, 1),
    e.ClientRefused("1.2.3.4", "too many\nconnections", 2),
    e.ClientConnected(1, "evil\x1b]0;x\x07", "1.2.3.4:5", "json"),
    e.QueueDeclared(1, "q", QueueSettings(dead_letter_queue="x\ny"), 0),
    e.DeadLettered(1, 0, 1, ((0, 1, 2),), 3, e.DeadReason.REJECTED, 1, "a\r\nb", 0, 0, ((1, 0, 1),)),
    e.Released(1, 0, 1, ((3, 1, 2), (0, 4, 9)), 3, e.ReleaseReason.NACKED, True, 1 << 62, "\x9b"),
    e.Published(1, 7, 1, 2, 20, 0, 0, 9, dropped=3, timed=True),
    e.Routed("a\nb", ((1, 0, 1), (2, 7, 1)), 1, 20, 0, 0, 9, unroutable=True),
    e.QueueChanged(1, QueueSettings(description="\x1b[2J"), 9),
    e.QueueRenamed(1, "evil\n", 9),
    e.QueueUndeleted(1, "evil\r", 9),
    e.GroupCreated(1, 2, "\x07", 1, True, 9),
    e.GroupSought(1, 2, 1, 9),
    e.Bound(1, "\x1b.#", 9),
    e.Dropped(1, 2, ((0, 1, 2),), 10, e.DeadReason.EXPIRED),
    e.Redriven(2, ((0, 1, 2),), 10, 1, 1, 4, 7, ((0, 0, 1),), 9),
    e.Rescheduled(1, (entry(100, 0, 1),), (entry(1 << 62, 0, 1),), 9),
    e.ScheduleSet(7, "a\nb", ScheduleSpec(queue="\x1b", to_topic=True, cron="\r", zone="\x9b"), 1 << 62, 9),
    e.Misfired(7, 1, 0, "a\nb"),
    TOGETHER[5],
    e.SegmentSealed(0, 4, b"\xff" * 32, bytes(32)),
    e.ProducersForgotten((1, 2, 3)),
    e.MadeReady(1, 0, tuple((0, n, n + 1) for n in range(1, 40, 2))),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: kind_of(event.TAG))
def test_text_from_outside_stays_in_its_line(event: e.Event) -> None:
    names = Names()
    for one in (e.QueueDeclared(1, "old\n", QueueSettings(mode=Mode.FAN_OUT), 9), event):
        names.introduce(one)
    text = words(7, event, names)
    assert text.isprintable()
    assert facts(event).keys() == set(event.__struct_fields__)


def test_every_kind_has_words_and_facts() -> None:
    kept = some_history()
    assert {entry.text != "" for entry in select(kept, Filter()) if entry.kind != "broker-stopped"} == {True}
    assert set(KINDS) == {kind_of(tag) for tag in e.CATALOGUE}


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:01.5+00:00", 1_500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 00:00:02", 2_000_000),
        ("1970-01-02", 86_400_000_000),
        ("1s", 9_000_000),
        ("2.5s ago", 7_500_000),
        ("1s500ms", 8_500_000),
        ("1h", 0),
    ],
)
def test_times(text: str, expected_us: int) -> None:
    assert parse_time(text, 10_000_000) == expected_us


@pytest.mark.parametrize("text", ["", "soon", "5", "5 m", "m", "2026-13-01", "99:99"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="no time"):
        parse_time(text, 0)


@given(st.integers(0, (1 << 53) - 1))
def test_a_time_that_was_shown_can_be_asked_for(time_us: int) -> None:
    assert parse_time(rfc3339(time_us), 0) == time_us

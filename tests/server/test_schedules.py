"""Schedules: when they publish, what they publish, and what becomes of the times at which they could not."""

import pytest

from tests.server.rig import START_US
from tests.server.scheduling import DAY_US, MINUTE_US, SECOND_US, Office, us
from vibemq import events as e
from vibemq.declaration import Misfire, Mode, Overflow, QueueSettings
from vibemq.errors import UnknownSchedule
from vibemq.server.effects import Delivery
from vibemq.server.limits import Limits
from vibemq.server.schedules import FIRES_MAX, NoCalendar

# --- when


def test_an_interval_counts_from_when_it_was_set() -> None:
    office = Office()
    assert office.set(every_ms=1500)["next_us"] == START_US + 1_500_000
    assert office.wait_due(1_499_999) == []
    assert office.wait_due(1) == [1_500_000]
    assert office.wait_due(3_000_000) == [3_000_000, 4_500_000]


def test_an_interval_counts_from_its_start() -> None:
    office = Office()
    office.set(every_ms=1000, start_us=START_US + 10 * SECOND_US)
    assert office.wait_due(11 * SECOND_US) == [10 * SECOND_US, 11 * SECOND_US]
    office.set("past", every_ms=1000, start_us=START_US - 300_000)
    assert office.broker.schedules.next_due_us() == START_US + 11_700_000


def test_a_cron_expression_is_read_in_its_zone() -> None:
    office = Office()
    found = office.set(cron="0 9 * * *", zone="Europe/Berlin")  # it is 14 November, 22:13 UTC
    assert found["next_us"] == us("2023-11-15T08:00:00Z")
    found = office.set("new", cron="0 9 * * *", zone="America/New_York", start_us=us("2023-12-24T14:00:00Z"))
    assert found["next_us"] == us("2023-12-24T14:00:00Z")


def test_it_ends_before_its_end_and_is_gone() -> None:
    office = Office()
    office.set(every_ms=1000, end_us=START_US + 3 * SECOND_US)
    *fired, gone = office.wait(10 * SECOND_US)
    assert [one.due_us - START_US for one in fired if isinstance(one, e.Fired)] == [SECOND_US, 2 * SECOND_US]
    assert isinstance(gone, e.ScheduleDeleted)
    assert gone.connection == 0
    assert not office.state.schedules
    with pytest.raises(UnknownSchedule):
        office.shown()


def test_it_ends_after_so_many_times() -> None:
    office = Office()
    office.set(every_ms=1000, times=2)
    kinds = [type(one) for one in office.wait(10 * SECOND_US)]
    assert kinds == [e.Fired, e.Fired, e.ScheduleDeleted]
    assert office.set(every_ms=1000, times=2)["fired"] == 0  # another one of that name


def test_one_that_had_ended_is_gone_after_a_crash_right_before_that() -> None:
    office = Office()
    office.set(every_ms=1000, times=1)
    office.wait(SECOND_US)
    del office.log[-1]
    office.begin(office.replayed())
    assert not office.state.schedules
    assert office.broker.schedules.next_due_us() is None


def test_several_that_are_due_publish_in_the_order_of_their_times() -> None:
    office = Office()
    for number, every_ms in enumerate((700, 500, 600)):
        office.set(f"s{number}", every_ms=every_ms)
    assert office.wait_due(1300 * 1000) == [500_000, 600_000, 700_000, 1_000_000, 1_200_000]


def test_a_turn_publishes_so_many_and_goes_on_in_the_next() -> None:
    office = Office()
    for number in range(50):
        office.set(f"s{number}", every_ms=100)
    office.take()
    office.pass_time(100_000)
    counts = []
    for _ in range(4):
        office.broker.tick()
        counts.append(len(office.take_events(e.Fired)))
    assert counts == [FIRES_MAX, FIRES_MAX, 50 - 2 * FIRES_MAX, 0]
    assert office.broker.schedules.next_due_us() == office.now_us + 100_000


def test_a_turn_ends_early_where_messages_are_large() -> None:
    office = Office()
    for number in range(10):
        office.set(f"s{number}", every_ms=100, body=bytes(60_000))
    office.take()
    office.pass_time(100_000)
    office.broker.tick()
    assert len(office.take_events(e.Fired)) == 5


def test_setting_it_again_and_again_leaves_no_trace_of_the_times_before() -> None:
    office = Office()
    for every_ms in range(1000, 2000):
        office.set(every_ms=every_ms)
    assert len(office.broker.schedules._due) < 110
    assert office.wait_due(2 * SECOND_US) == [1_999_000]


# --- what


def test_the_message_says_whose_it_is_and_for_when() -> None:
    office = Office()
    office.set("nightly", every_ms=500, headers={"k": "v"}, priority=7, ttl_ms=5000)
    (fired,) = office.wait(600_000)
    assert isinstance(fired, e.Fired)
    batch = office.stored_batch(len(office.log) - 1)
    assert batch.bodies() == [b"hi"]
    assert list(batch.headers()) == [{"k": "v", "schedule": "nightly", "scheduled_for": "2023-11-14T22:13:20.500000Z"}]
    assert (batch.priority, batch.ttl_ms, fired.timed, fired.bytes) == (7, 5000, True, batch.record_bytes)


def test_a_topic_has_its_name_in_the_message_and_each_bound_queue_gets_it() -> None:
    office = Office()
    for name, mode in (("a", Mode.ROUND_ROBIN), ("b", Mode.PRIORITY), ("c", Mode.ROUND_ROBIN)):
        office.broker.queues.declare(7, 1, name, {"mode": mode.value})
        if name != "c":
            office.broker.queues.bind(7, 1, name, "jobs.*")
    office.effects()
    office.set(queue="jobs.clean", to_topic=True, every_ms=1000, priority=9)
    (fired,) = office.wait(SECOND_US)
    assert isinstance(fired, e.Fired)
    assert fired.targets == ((1, 0, 1), (2, 9, 1))
    (headers,) = office.stored_batch(len(office.log) - 1).headers()
    assert headers["topic"] == "jobs.clean"
    assert [office.queue_length(name) for name in "abc"] == [1, 1, 0]


def test_a_queue_that_is_not_there_is_created() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.wait(SECOND_US)
    assert office.queue_length() == 1


def test_the_message_reaches_a_consumer_also_one_that_comes_later() -> None:
    office = Office(Limits(cache_bytes=1))
    office.set(every_ms=1000)
    office.wait(5 * SECOND_US)
    connection = office.broker.connect("worker", "here", "binary", 0)
    queue = office.state.queues[1]
    subscription = office.broker.deliveries.subscribe(queue, queue.groups[0], connection)
    office.broker.deliveries.credit(connection, subscription.id, 100, 1 << 20, 0, -1)
    delivered: list[Delivery] = []
    while len(delivered) < 5:
        office.broker.end_turn()
        delivered += [one for one in office.effects() if isinstance(one, Delivery)]
        while office.loads:
            office.load_one()
    fired = [offset for offset, record in enumerate(office.log) if isinstance(record.event, e.Fired)]
    assert [one.stored.origin.offset for one in delivered] == fired


# --- what cannot be published


@pytest.mark.parametrize("overflow", [Overflow.REJECT, Overflow.BLOCK, Overflow.DROP_NEWEST])
def test_a_full_queue_leaves_it_out_and_says_so(overflow: Overflow) -> None:
    office = Office(defaults=QueueSettings(max_length=1, overflow=overflow))
    office.set(every_ms=1000)
    fired, misfired, _ = office.wait(3 * SECOND_US)
    assert isinstance(fired, e.Fired)
    assert misfired == e.Misfired(fired.schedule, 1, START_US + 3 * SECOND_US, misfired.reason)  # type: ignore[attr-defined]
    shown = office.shown()
    assert "'q'" in shown["problem"]
    assert (shown["fired"], shown["missed"], shown["last_us"]) == (1, 2, START_US + SECOND_US)
    office.broker.queues.purge(7, 1, "q")
    assert office.wait_due(SECOND_US) == [4 * SECOND_US]
    assert office.shown()["problem"] == ""


def test_a_queue_that_makes_room_makes_it_for_schedules_too() -> None:
    office = Office(defaults=QueueSettings(max_length=1, overflow=Overflow.DROP_OLDEST))
    office.set(every_ms=1000)
    assert len(office.wait_due(3 * SECOND_US)) == 3
    assert office.queue_length() == 1


def test_a_rate_that_is_used_up_leaves_it_out() -> None:
    office = Office(defaults=QueueSettings(publish_rate=1))
    office.set(every_ms=100)
    kinds = [type(one) for _ in range(10) for one in office.wait(100_000)]
    assert kinds.count(e.Fired) == 1
    assert kinds.count(e.Misfired) == 9


@pytest.mark.parametrize("unroutable", ["", "lost"])
def test_a_topic_that_nobody_is_bound_to_leaves_it_out(unroutable: str) -> None:
    office = Office(unroutable=unroutable)
    office.set(queue="a.b", to_topic=True, every_ms=1000)
    (misfired,) = office.wait(SECOND_US)
    assert isinstance(misfired, e.Misfired)
    assert "no queue is bound" in misfired.reason
    assert not office.state.queues


def test_a_queue_that_may_not_be_created_leaves_it_out() -> None:
    office = Office(auto_create=False)
    office.set(every_ms=1000)
    (misfired,) = office.wait(SECOND_US)
    assert isinstance(misfired, e.Misfired)
    assert "there is no queue 'q'" in misfired.reason


def test_a_queue_that_is_deleted_for_a_while_does_not_get_it() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.wait(SECOND_US)
    office.broker.delete(7, 1, "q", 3_600_000)
    (fired,) = office.wait(SECOND_US)
    assert isinstance(fired, e.Fired)
    assert fired.targets == ((2, 0, 1),)


def test_it_waits_while_there_is_no_room_to_write() -> None:
    office = Office()
    office.set(every_ms=1000)
    asked: list[int] = []

    def is_full(size: int) -> bool:
        asked.append(size)
        return False

    office.broker.schedules.has_room = is_full
    assert office.wait(SECOND_US) == []
    due_us = office.broker.schedules.next_due_us()
    assert due_us is not None
    assert due_us > office.now_us
    office.broker.schedules.has_room = lambda _: True
    assert office.wait(SECOND_US - 1) != []
    assert len(asked) == 1


# --- what was missed


def test_what_is_late_by_less_than_a_minute_comes_late() -> None:
    office = Office()
    office.set(every_ms=20_000, misfire=Misfire.SKIP)
    office.restart(80 * SECOND_US)
    assert office.wait_due(0) == [20 * SECOND_US, 40 * SECOND_US, 60 * SECOND_US, 80 * SECOND_US]


def test_skip_leaves_out_what_was_missed() -> None:
    office = Office()
    office.set(every_ms=20_000, misfire=Misfire.SKIP)
    office.restart(80 * SECOND_US + 1)
    (misfired,) = office.wait(0)
    assert isinstance(misfired, e.Misfired)
    assert (misfired.missed, misfired.next_us) == (4, START_US + 100 * SECOND_US)
    assert "away" in misfired.reason
    assert office.wait_due(20 * SECOND_US) == [100 * SECOND_US]


def test_once_publishes_for_the_last_of_them() -> None:
    office = Office()
    office.set(every_ms=20_000, misfire=Misfire.ONCE)
    office.restart(DAY_US + 1)
    (fired,) = office.wait(0)
    assert isinstance(fired, e.Fired)
    assert (fired.due_us, fired.missed) == (START_US + DAY_US, DAY_US // (20 * SECOND_US) - 1)
    assert fired.next_us == START_US + DAY_US + 20 * SECOND_US


def test_all_publishes_for_each_of_them_a_part_in_each_turn() -> None:
    office = Office()
    office.set(every_ms=20_000, misfire=Misfire.ALL)
    office.restart(3600 * SECOND_US)
    office.broker.tick()
    assert len(office.take_events(e.Fired)) == FIRES_MAX
    fired = office.wait_due(0)
    assert fired == [at * 20 * SECOND_US for at in range(FIRES_MAX + 1, 181)]
    assert office.shown()["missed"] == 0


def test_all_makes_up_for_so_many_and_leaves_out_the_rest() -> None:
    office = Office(Limits(schedule_catch_up=5))
    office.set(every_ms=20_000, misfire=Misfire.ALL)
    office.restart(3600 * SECOND_US)
    *fired, misfired = office.wait(0)
    assert [type(one) for one in fired] == [e.Fired] * 5
    assert isinstance(misfired, e.Misfired)
    assert misfired.missed == 175
    assert len(office.wait_due(20 * SECOND_US)) == 1
    office.restart(3600 * SECOND_US)
    assert [type(one) for one in office.wait(0)] == [e.Fired] * 5 + [e.Misfired]


def test_a_year_of_a_cron_expression_is_over_at_once() -> None:
    office = Office()
    office.set(cron="* * * * *", zone="Europe/Berlin", misfire=Misfire.ONCE)
    office.set("other", cron="0 3 1 * *", misfire=Misfire.ONCE)
    office.restart(365 * DAY_US)
    once, monthly = sorted((one for one in office.wait(0) if isinstance(one, e.Fired)), key=lambda one: -one.due_us)
    assert once.due_us == us("2024-11-13T22:13:00Z")
    assert once.next_us == us("2024-11-13T22:14:00Z")
    assert once.missed == 49  # no more are counted
    assert (monthly.due_us, monthly.missed) == (us("2024-11-01T03:00:00Z"), 11)


def test_what_is_missed_past_the_end_is_not_made_up_for() -> None:
    for misfire, kinds in (
        (Misfire.SKIP, [e.Misfired, e.ScheduleDeleted]),
        (Misfire.ONCE, [e.Fired, e.ScheduleDeleted]),
        (Misfire.ALL, [e.Fired] * 4 + [e.ScheduleDeleted]),
    ):
        office = Office()
        office.set(every_ms=20_000, end_us=START_US + 100 * SECOND_US, misfire=misfire)
        office.restart(DAY_US)
        assert [type(one) for one in office.wait(0)] == kinds


def test_all_ends_after_so_many_times() -> None:
    office = Office()
    office.set(every_ms=20_000, times=3, misfire=Misfire.ALL)
    office.restart(DAY_US)
    assert [type(one) for one in office.wait(0)] == [e.Fired] * 3 + [e.ScheduleDeleted]


def test_a_calendar_that_went_away_pauses_it() -> None:
    office = Office()
    office.set(cron="* * * * *")
    office.broker.schedules._calendar = NoCalendar()
    paused, misfired = office.wait(MINUTE_US)
    assert isinstance(paused, e.SchedulePaused)
    assert isinstance(misfired, e.Misfired)
    assert "calendar" in misfired.reason
    shown = office.shown()
    assert (shown["paused"], shown["next_us"]) == (True, 0)
    office.restart()
    assert office.shown()["paused"]
    assert office.pause(paused=False)["next_us"] > office.now_us

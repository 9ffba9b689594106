"""Schedules: when they publish, what they publish, and what becomes of the times at which they could not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.server.rig import START_US, Rig, batch_of
from vibemq import events as e
from vibemq.batch import Batch, pack_headers
from vibemq.declaration import Misfire, Mode, Overflow, QueueSettings, ScheduleSpec
from vibemq.errors import InvalidRequest, LimitExceeded, NotSupported, RequestError, UnknownSchedule
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.effects import Answer, Delivery
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.schedules import FIRES_MAX, LAST_US, NoCalendar, describe

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
DAY_US = 24 * 60 * MINUTE_US
SPEC: dict[str, Any] = {"queue": "q", "body": b"hi"}


class Office(Rig):
    """A rig whose schedules are asked for by keyword."""

    def set(self, name: str = "s", **said: Any) -> Any:  # noqa: ANN401 - whatever is answered
        self.broker.schedules.set(7, 1, name, ScheduleSpec(**SPEC | said))
        return self.answer()

    def answer(self) -> Any:  # noqa: ANN401
        (answer,) = (one for one in self.effects() if isinstance(one, Answer))
        assert answer.after == self.state.next_offset
        return answer.result

    def pause(self, *, paused: bool = True) -> Any:  # noqa: ANN401
        self.broker.schedules.pause(7, 1, "s", paused=paused)
        return self.answer()

    def shown(self) -> Any:  # noqa: ANN401
        self.broker.schedules.list_all(7, 1, "s")
        (found,) = self.answer()
        return found

    def wait(self, passed_us: int, ticks: int = 1) -> list[e.Event]:
        """Let time pass, tick until nothing is due, and give what schedules did."""
        self.take()
        self.pass_time(passed_us)
        for _ in range(ticks):
            self.broker.tick()
        while (due_us := self.broker.schedules.next_due_us()) is not None and due_us <= self.now_us:
            self.broker.tick()
        events = self.take()[0]
        return [one for one in events if isinstance(one, e.Fired | e.Misfired | e.SchedulePaused | e.ScheduleDeleted)]

    def wait_due(self, passed_us: int) -> list[int]:
        """The times that were published for meanwhile, from the start on."""
        events = self.wait(passed_us)
        assert all(isinstance(one, e.Fired) for one in events), events
        return [one.due_us - START_US for one in events if isinstance(one, e.Fired)]

    def restart(self, away_us: int = 0) -> None:
        """The broker ends, is away, and comes back."""
        self.take()
        self.pass_time(away_us)
        self.begin(self.replayed())

    def stored_batch(self, offset: int) -> Batch:
        """What a record holds."""
        return Batch(b"".join(self.log[offset].payload))

    def queue_length(self, name: str = "q") -> int:
        queue = self.state.queue_named(name)
        return queue.length if queue is not None else 0


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


# --- changing


def test_the_same_again_changes_nothing() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.pass_time(300_000)
    office.set(every_ms=1000)
    assert office.take()[0] == []
    assert len(office.log) == 2
    assert office.wait_due(700_000) == [SECOND_US]


def test_another_message_moves_no_time_and_makes_nothing_due_again() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.pass_time(300_000)
    office.set(every_ms=1000, body=b"other")
    assert office.wait_due(700_000) == [SECOND_US]
    assert office.stored_batch(len(office.log) - 1).bodies() == [b"other"]
    office.pass_time(300_000)
    office.set(every_ms=1000, body=b"third", times=9)
    assert office.wait_due(1_700_000) == [2 * SECOND_US, 3 * SECOND_US]


def test_another_time_counts_anew() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.pass_time(900_000)
    assert office.set(every_ms=500)["next_us"] == START_US + 1_400_000
    assert office.wait_due(1_100_000) == [1_400_000, 1_900_000]


def test_a_change_keeps_number_and_counts_and_whether_it_is_paused() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.wait(2 * SECOND_US)
    office.pause()
    found = office.set(every_ms=1000, body=b"other")
    assert (found["fired"], found["paused"], found["next_us"]) == (2, True, 0)
    assert list(office.state.schedules) == [1]
    assert office.wait(10 * SECOND_US) == []


def test_it_cannot_end_after_fewer_times_than_it_had() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.wait(2 * SECOND_US)
    with pytest.raises(InvalidRequest, match="has published 2"):
        office.set(every_ms=1000, times=2)
    office.set(every_ms=1000, times=3)
    assert [type(one) for one in office.wait(5 * SECOND_US)] == [e.Fired, e.ScheduleDeleted]


def test_a_pause_is_not_made_up_for() -> None:
    office = Office()
    office.set(every_ms=1000)
    assert office.pause()["paused"]
    assert office.broker.schedules.next_due_us() in {None, START_US + SECOND_US}
    assert office.wait(5 * SECOND_US + 300_000) == []
    found = office.pause(paused=False)
    assert (found["paused"], found["next_us"]) == (False, START_US + 6 * SECOND_US)
    assert office.wait_due(SECOND_US) == [6 * SECOND_US]
    assert office.shown()["missed"] == 0


def test_pausing_twice_is_pausing_once() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.pause()
    records = len(office.log)
    office.pause()
    assert len(office.log) == records


def test_it_cannot_go_on_after_its_end() -> None:
    office = Office()
    office.set(every_ms=1000, end_us=START_US + 5 * SECOND_US)
    office.pause()
    office.pass_time(DAY_US)
    with pytest.raises(InvalidRequest, match="would never publish"):
        office.pause(paused=False)
    assert office.shown()["paused"]


def test_what_is_deleted_is_gone_with_its_number() -> None:
    office = Office()
    office.set(every_ms=1000)
    office.broker.schedules.delete(7, 1, "s")
    assert office.answer() is None
    assert office.wait(5 * SECOND_US) == []
    office.set(every_ms=1000)
    assert list(office.state.schedules) == [3]
    with pytest.raises(UnknownSchedule, match="'x'"):
        office.broker.schedules.delete(7, 1, "x")
    with pytest.raises(UnknownSchedule, match="'x'"):
        office.broker.schedules.list_all(7, 1, "x")


def test_the_list_is_by_name_and_without_messages() -> None:
    office = Office()
    for name in ("b", "c", "a"):
        office.set(name, every_ms=1000)
    office.broker.schedules.list_all(7, 1, None)
    found = office.answer()
    assert [one["name"] for one in found] == ["a", "b", "c"]
    whole = describe(office.state.schedules[1])
    assert found[1] == {key: value for key, value in whole.items() if key not in {"body", "headers"}}
    office.broker.schedules.list_all(7, 1, "b")
    assert office.answer() == [whole]


# --- what is refused


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        ({}, InvalidRequest, "either cron or every_ms"),
        ({"cron": "* * * * *", "every_ms": 1000}, InvalidRequest, "either cron or every_ms"),
        ({"every_ms": 99}, InvalidRequest, "100 ms"),
        ({"every_ms": 1000, "zone": "Europe/Berlin"}, InvalidRequest, "zone goes with cron"),
        ({"cron": "* * * * *", "zone": "../UTC"}, InvalidRequest, "no time zone"),
        ({"cron": "* * * *"}, InvalidRequest, "no cron expression"),
        ({"cron": "0 0 31 2 *"}, InvalidRequest, "no cron expression"),
        ({"cron": "0 0 */20 * 1L"}, InvalidRequest, "would never publish"),
        ({"every_ms": 1000, "start_us": 5, "end_us": 5}, InvalidRequest, "must come after its start"),
        ({"every_ms": 1000, "end_us": START_US}, InvalidRequest, "would never publish"),
        ({"every_ms": 5000, "end_us": START_US + SECOND_US}, InvalidRequest, "would never publish"),
        ({"every_ms": 1000, "start_us": (1 << 63) - 1}, InvalidRequest, "would never publish"),
        ({"every_ms": 1000, "start_us": LAST_US + 1}, InvalidRequest, "would never publish"),
        ({"cron": "* * * * *", "start_us": (1 << 63) - 1}, InvalidRequest, "would never publish"),
        ({"every_ms": 1000, "headers": {"schedule": "x"}}, InvalidRequest, "the broker's own"),
        ({"every_ms": 1000, "headers": {"scheduled_for": "x"}}, InvalidRequest, "the broker's own"),
        ({"every_ms": 1000, "headers": {"k": [1]}}, InvalidRequest, "headers"),
        ({"every_ms": 1000, "headers": {"k": 1 << 70}}, InvalidRequest, "headers"),
        ({"every_ms": 1000, "headers": {"k": "v" * (1 << 16)}}, InvalidRequest, "headers"),
        ({"every_ms": 1000, "body": bytes(1 << 16)}, LimitExceeded, "65536 bytes"),
        ({"every_ms": 1000, "ttl_ms": 1 << 41}, InvalidRequest, "may wait"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    said: dict[str, Any], error: type[RequestError], text: str
) -> None:
    office = Office()
    office.set("there", every_ms=1000)
    for name in ("s", "there"):
        with pytest.raises(error, match=text):
            office.set(name, **said)
    assert office.take()[0] == []
    assert len(office.log) == 2
    assert office.state.schedules[1].spec.every_ms == 1000


def test_a_message_is_as_large_as_it_is_allowed_to_be_and_no_larger() -> None:
    office = Office(Limits(schedule_bytes=1000))
    own = len(pack_headers({"schedule": "s", "scheduled_for": "2023-11-14T22:13:20.500000Z"}))
    office.set(every_ms=1000, body=bytes(1000 - own))
    with pytest.raises(LimitExceeded, match="1000 bytes"):
        office.set("t", every_ms=1000, body=bytes(1001 - own))


def test_there_are_so_many_and_no_more() -> None:
    office = Office(Limits(schedules=2))
    office.set("a", every_ms=1000)
    office.set("b", every_ms=1000, times=1)
    with pytest.raises(LimitExceeded, match="2 schedules"):
        office.set("c", every_ms=1000)
    office.set("b", every_ms=2000, times=1)
    office.wait(2 * SECOND_US)
    office.set("c", every_ms=1000)


def test_a_broker_without_a_calendar_takes_intervals_only() -> None:
    office = Office()
    broker = Broker(office.state, Limits(), QueueDefaults())
    broker.journal.now_us = office.now_us
    broker.schedules.set(7, 1, "s", ScheduleSpec(**SPEC, every_ms=1000))
    with pytest.raises(NotSupported, match="every_ms only"):
        broker.schedules.set(7, 1, "c", ScheduleSpec(**SPEC, cron="* * * * *"))


# --- state


def test_every_state_is_that_of_its_log() -> None:
    office = Office()
    office.set("a", every_ms=700, headers={"n": 1, "b": b"\xff", "f": 0.5, "none": None, "yes": True})
    office.set("b", cron="*/5 * * * *", zone="Europe/Berlin", misfire=Misfire.ALL)
    office.set("c", every_ms=900, times=2)
    office.wait(2 * SECOND_US)
    office.wait(30 * MINUTE_US)
    office.broker.schedules.pause(7, 1, "a", paused=True)
    office.effects()
    office.set("b", cron="*/10 * * * *", misfire=Misfire.SKIP)
    office.take()
    assert office.replayed().digests() == office.state.digests()
    assert [key for key in office.state.digests() if "schedule" in key] == ["schedule/1", "schedule/2"]


def test_a_folder_without_schedules_has_no_part_of_them() -> None:
    office = Office()
    assert [part.key for part in office.state.parts()] == ["topology", "producers", "audit"]


def test_parts_saved_at_different_times_come_to_the_same_state() -> None:
    office = Office()
    office.set("a", every_ms=1000)
    office.set("b", every_ms=1500)
    office.set("c", every_ms=500, times=3)
    saved: list[tuple[str, int, bytes]] = []
    start = office.state.next_offset
    for part in office.state.parts():
        saved.append((part.key, part.as_of, parts.encode(part)))
        office.wait(SECOND_US)
        if part.key == "schedule/1":
            office.set("d", every_ms=800)
            office.set("a", every_ms=900)
            office.broker.schedules.delete(7, 1, "b")
    office.take()
    restored = Projector.restore(saved, start)
    assert office.replayed(restored).digests() == office.state.digests()


def test_publishing_between_firings_is_numbered_together_with_them() -> None:
    office = Office()
    office.set(every_ms=1000)
    connection = office.broker.connect("shop", "here", "binary", 0)
    for _ in range(3):
        office.wait(SECOND_US)
        office.broker.publishing.publish(Publish(connection, 1, "q", 0, batch_of([b"by hand"])))
    assert office.queue_length() == 6
    office.take()
    assert office.replayed().digests() == office.state.digests()


def us(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

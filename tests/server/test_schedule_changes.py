"""Schedules are changed, paused and deleted, or refused; and the state that this adds up to."""

from typing import Any

import pytest

from tests.server.rig import START_US, batch_of
from tests.server.scheduling import DAY_US, MINUTE_US, SECOND_US, SPEC, Office
from vibemq import events as e
from vibemq.batch import pack_headers
from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.errors import InvalidRequest, LimitExceeded, NotSupported, RequestError, UnknownSchedule
from vibemq.projections import part as parts
from vibemq.projections.projector import Projector
from vibemq.server.broker import Broker
from vibemq.server.limits import Limits
from vibemq.server.publishing import Publish
from vibemq.server.queue_settings import QueueDefaults
from vibemq.server.schedules import LAST_US, describe

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

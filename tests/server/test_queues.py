"""Queues are declared, changed, renamed, bound, purged, deleted and brought back; the log tells all of it again."""

from random import Random

import pytest
from msgspec.structs import replace

from tests.server.office import START_US, Office
from vibemq import events as e
from vibemq.declaration import Mode, QueueSettings
from vibemq.errors import (
    ConfigError,
    DeclareConflict,
    InvalidName,
    InvalidRequest,
    LimitExceeded,
    RequestError,
    UnknownQueue,
)
from vibemq.events import DEFAULT_GROUP
from vibemq.projections.projector import Projector
from vibemq.server.effects import Ended
from vibemq.server.limits import Limits
from vibemq.server.queue_settings import DEAD_LETTER_QUEUE, PLAIN, Declaration, QueueDefaults, checked
from vibemq.server.queues import check_declarations

HOUR_US = 3_600_000_000


@pytest.fixture
def office() -> Office:
    return Office()


# --- declaring


def test_a_declared_queue_has_what_was_said_and_else_the_defaults(office: Office) -> None:
    office.defaults = QueueDefaults(patterns=(("orders.*", {"ttl_ms": 5, "max_attempts": 9}),))
    office.begin(Projector(), START_US)
    found = office.declare("orders.new", mode="priority", max_attempts=2)
    assert (found["name"], found["mode"], found["differences"]) == ("orders.new", "priority", [])
    assert found["settings"] == {
        **{name: value for name, value in PLAIN.items() if name != "mode"},
        "max_attempts": 2,
        "ttl_ms": 5,
    }
    settings = QueueSettings(mode=Mode.PRIORITY, max_attempts=2, ttl_ms=5)
    assert office.events() == [e.QueueDeclared(1, "orders.new", settings, 7)]


@pytest.mark.parametrize("on_difference", ["fail", "ignore", "override"])
def test_declaring_what_is_so_changes_nothing(office: Office, on_difference: str) -> None:
    office.declare("q", mode="fan-out", group_idle_ms=5)
    office.events()
    for said in ({}, {"group_idle_ms": 5}, {"mode": "fan-out", "group_idle_ms": 5, "max_attempts": 5}):
        assert office.declare("q", on_difference, **said)["differences"] == []
    assert office.events() == []


SOFT = {"setting": "ttl_ms", "live": 0, "declared": 5, "class": "soft"}
INFO = {"setting": "description", "live": "", "declared": "new", "class": "info"}
HARD = {"setting": "mode", "live": "round-robin", "declared": "priority", "class": "hard"}


def test_a_soft_difference_fails_is_ignored_or_overrides(office: Office) -> None:
    office.declare("q")
    office.events()
    with pytest.raises(DeclareConflict, match="'q' exists with other settings: ttl_ms is 0, not 5; declare it so"):
        office.declare("q", ttl_ms=5)
    assert office.declare("q", "ignore", ttl_ms=5)["differences"] == [SOFT]
    assert office.events() == []
    found = office.declare("q", "override", ttl_ms=5)
    assert found["differences"] == [SOFT]
    assert found["settings"]["ttl_ms"] == 5
    assert office.events() == [e.QueueChanged(1, QueueSettings(ttl_ms=5), 7)]


def test_a_difference_for_information_never_fails(office: Office) -> None:
    office.declare("q")
    assert office.declare("q", description="new")["differences"] == [INFO]
    assert office.queue("q").settings.description == ""
    assert office.declare("q", "override", description="new")["differences"] == [INFO]
    assert office.queue("q").settings.description == "new"


def test_a_hard_difference_can_only_be_ignored(office: Office) -> None:
    office.declare("q")
    office.events()
    for on_difference in ("fail", "override"):
        with pytest.raises(DeclareConflict, match=r"mode is 'round-robin', not 'priority'.*mode cannot be changed"):
            office.declare("q", on_difference, mode="priority", ttl_ms=5)
    found = office.declare("q", "ignore", mode="priority", ttl_ms=5)
    assert found["differences"] == [HARD, SOFT]
    assert (found["mode"], found["settings"]["ttl_ms"]) == ("round-robin", 0)
    assert office.events() == []


def test_settings_that_make_no_sense_are_refused_whatever_is_there(office: Office) -> None:
    office.declare("live")
    office.events()
    for name in ("new", "live"):
        for on_difference in ("fail", "ignore", "override"):
            for said in ({"ttl": 5}, {"ttl_ms": -1}, {"priority_guard": 5}, {"dead_letter_queue": name}):
                with pytest.raises(InvalidRequest):
                    office.declare(name, on_difference, **said)
    assert office.events() == []


def test_a_name_leaves_room_for_the_dead_letters(office: Office) -> None:
    office.declare("q" * 251)
    with pytest.raises(InvalidName, match="251 bytes"):
        office.declare("q" * 252)
    office.declare("q" * 255, dead_letter_queue="morgue")
    with pytest.raises(InvalidName, match="251 bytes"):
        office.ask(office.queues.change, "q" * 255, {"dead_letter_queue": ""})


def test_there_are_at_most_so_many_queues() -> None:
    office = Office(Limits(queues=2))
    office.declare("a")
    office.declare("b")
    with pytest.raises(LimitExceeded, match="there are 2 queues"):
        office.declare("c")
    office.ask(office.queues.delete, "a")
    office.declare("c")
    with pytest.raises(LimitExceeded):
        office.ask(office.queues.undelete, "a")


def test_queues_are_created_on_the_way_unless_that_is_off() -> None:
    defaults = QueueDefaults(patterns=(("a.*", {"ttl_ms": 5}),))
    assert Office(defaults=defaults).queues.named_or_new("a.b", 7).settings == QueueSettings(ttl_ms=5)
    office = Office(auto_create=False)
    with pytest.raises(UnknownQueue, match="auto_create is off"):
        office.queues.named_or_new("a", 7)
    office.declare("a")
    assert office.queues.named_or_new("a", 7) is office.queue("a")


def test_a_queue_for_dead_letters_is_made_for_them() -> None:
    office = Office(
        defaults=QueueDefaults(patterns=(("#", {"ttl_ms": 5}), ("*.dlq", {"max_length": 6}))), auto_create=False
    )
    lost = office.queues.to_create_for_dead_letters("lost.dlq")
    assert lost.settings == replace(DEAD_LETTER_QUEUE, max_length=6)
    assert "lost.dlq" not in office.state.topology.queues
    assert office.queues.create(lost, 0) is office.queue("lost.dlq")


# --- changing


def test_a_change_takes_effect_at_once_and_names_only_what_it_changes(office: Office) -> None:
    office.declare("q", ttl_ms=5, max_attempts=2)
    office.deliveries.dispatch()
    office.events()
    found = office.ask(office.queues.change, "q", {"max_attempts": 3, "deliver_rate": 10})
    assert (found["settings"]["max_attempts"], found["settings"]["ttl_ms"]) == (3, 5)
    assert office.events() == [e.QueueChanged(1, QueueSettings(ttl_ms=5, max_attempts=3, deliver_rate=10), 7)]
    assert office.deliveries.has_more, "what waits in it is looked at with the new settings"
    office.ask(office.queues.change, "q", {"max_attempts": 3})
    office.ask(office.queues.change, "q", {})
    assert office.events() == []


def test_what_cannot_be_changed_is_named(office: Office) -> None:
    office.declare("q")
    with pytest.raises(DeclareConflict, match="mode and order_by_key cannot be changed while there is a queue 'q'"):
        office.ask(office.queues.change, "q", {"order_by_key": True, "mode": "fan-out"})
    with pytest.raises(InvalidRequest, match="group_idle_ms needs mode fan-out or fan-out-no-ack"):
        office.ask(office.queues.change, "q", {"group_idle_ms": 5})
    with pytest.raises(UnknownQueue):
        office.ask(office.queues.change, "other", {})
    office.ask(office.queues.change, "q", {"mode": "round-robin", "ttl_ms": 3})
    assert office.queue("q").settings.ttl_ms == 3


# --- renaming


def test_a_renamed_queue_keeps_all_but_its_name(office: Office) -> None:
    office.declare("q", mode="fan-out")
    billing = office.group("q", "billing")
    office.ask(office.queues.bind, "q", "orders.*")
    office.fill("q", 5)
    subscription = office.take("q", billing, 2)
    before = office.ask(office.queues.show, "q")
    found = office.ask(office.queues.rename, "q", "orders")
    assert found == {**before, "name": "orders"}
    assert office.deliveries.find(7, subscription.id) is subscription
    assert office.ask(office.queues.list_bindings, None) == [{"queue": "orders", "pattern": "orders.*"}]
    with pytest.raises(UnknownQueue):
        office.queue("q")
    office.declare("q")
    assert office.queue("q").length == 0


def test_dead_letters_stay_where_they_are_when_a_queue_is_renamed(office: Office) -> None:
    office.declare("q")
    office.declare("q.dlq")
    office.declare("fresh")
    office.declare("own", dead_letter_queue="morgue")
    for name in ("q", "fresh", "own"):
        office.ask(office.queues.rename, name, f"new {name}")
    assert office.queue("new q").settings.dead_letter_queue == "q.dlq"
    assert office.queue("new fresh").settings.dead_letter_queue == ""
    assert office.queue("new own").settings.dead_letter_queue == "morgue"


def test_a_renamed_dead_letter_queue_goes_on_to_get_what_it_got(office: Office) -> None:
    office.declare("q")
    office.declare("own", dead_letter_queue="own.dlq")
    for name in ("q.dlq", "own.dlq", "other.dlq"):
        office.declare(name)
        office.ask(office.queues.rename, name, f"new {name}")
    assert office.queue("q").settings.dead_letter_queue == "new q.dlq"
    assert office.queue("own").settings.dead_letter_queue == "own.dlq", "a name that was given stays what it is"


def test_a_name_that_is_taken_or_does_not_go_with_the_settings_is_refused(office: Office) -> None:
    office.declare("q", dead_letter_queue="morgue")
    office.declare("other")
    office.events()
    with pytest.raises(DeclareConflict, match="there is a queue 'other'"):
        office.ask(office.queues.rename, "q", "other")
    with pytest.raises(DeclareConflict):
        office.ask(office.queues.rename, "q", "q")
    with pytest.raises(InvalidRequest, match="'morgue' cannot be its own"):
        office.ask(office.queues.rename, "q", "morgue")
    with pytest.raises(InvalidName):
        office.ask(office.queues.rename, "other", "o" * 252)
    with pytest.raises(UnknownQueue):
        office.ask(office.queues.rename, "nothing", "new")
    assert office.events() == []


# --- looking


def test_a_queue_is_described_by_the_group_that_is_furthest_behind(office: Office) -> None:
    office.declare("q", mode="fan-out")
    assert office.ask(office.queues.show, "q")["groups"] == []
    office.fill("q", 10)
    late = office.group("q", "late")
    office.group("q", "early", 9)
    office.take("q", late, 3)
    found = office.ask(office.queues.show, "q")
    assert found["groups"] == [
        {"name": "early", "ready": 2, "unacked": 0, "waiting": 0, "messages": 2, "consumers": 0},
        {"name": "late", "ready": 7, "unacked": 3, "waiting": 0, "messages": 10, "consumers": 1},
    ]
    counts = {key: found[key] for key in ("ready", "unacked", "waiting", "messages", "consumers", "next_sequence")}
    assert counts == {"ready": 7, "unacked": 3, "waiting": 0, "messages": 10, "consumers": 1, "next_sequence": 11}
    assert "groups" not in office.declare("plain")


def test_the_messages_of_all_priorities_are_counted_together(office: Office) -> None:
    office.declare("q", mode="priority")
    for lane, count in ((9, 2), (0, 3), (4, 1)):
        office.fill("q", count, lane)
    found = office.ask(office.queues.show, "q")
    assert (found["ready"], found["messages"], found["bytes"], found["next_sequence"]) == (6, 6, 6 * 3, 7)


def test_queues_are_listed_by_name(office: Office) -> None:
    for name in ("b", "a", "ab"):
        office.declare(name)
    found = office.ask(office.queues.list_all)
    assert [one["name"] for one in found] == ["a", "ab", "b"]
    assert found[0] == office.ask(office.queues.show, "a")
    with pytest.raises(UnknownQueue):
        office.ask(office.queues.show, "c")


# --- purging and deleting


def test_purging_leaves_what_consumers_hold(office: Office) -> None:
    office.declare("q", mode="fan-out")
    first, second = office.group("q", "a"), office.group("q", "b", 2)
    office.fill("q", 10)
    office.take("q", first, 3)
    office.take("q", second, 4)
    office.events()
    assert office.ask(office.queues.purge, "q") == {"count": 7}
    assert [group.length(office.queue("q").next) for group in office.queue("q").groups.values()] == [3, 4]
    (purged,) = office.events()
    assert isinstance(purged, e.QueuePurged)
    assert purged.kept == ((0, 1, 6),)
    assert office.ask(office.queues.purge, "q") == {"count": 0}


def test_deleting_gives_back_what_was_held_and_ends_the_consumers(office: Office) -> None:
    office.declare("q")
    office.fill("q", 10)
    subscription = office.take("q", DEFAULT_GROUP, 3)
    found = office.ask(office.queues.delete, "q")
    assert found == {"count": 10, "until_us": START_US + HOUR_US}
    assert office.returned == [subscription]
    (ended,) = (effect for effect in office.journal.effects if isinstance(effect, Ended))
    assert (ended.connection, ended.subscription, type(ended.error)) == (7, subscription.id, UnknownQueue)
    assert ended.after == office.journal.next_offset, "until the deletion is durable, a crash brings the queue back"
    assert office.deliveries.find(7, subscription.id) is None
    with pytest.raises(UnknownQueue):
        office.queue("q")
    assert office.ask(office.queues.list_all) == []


def test_a_deleted_queue_comes_back_whole(office: Office) -> None:
    office.declare("q", mode="fan-out", ttl_ms=5)
    office.group("q", "billing")
    office.ask(office.queues.bind, "q", "orders.#")
    office.fill("q", 10)
    before = office.ask(office.queues.show, "q")
    office.ask(office.queues.delete, "q")
    assert office.ask(office.queues.list_bindings, None) == []
    office.pass_time(HOUR_US - 1)
    assert office.ask(office.queues.undelete, "q") == before
    assert office.ask(office.queues.list_bindings, "q") == [{"queue": "q", "pattern": "orders.#"}]
    office.pass_time(HOUR_US)
    assert office.queue("q").length == 10
    with pytest.raises(UnknownQueue, match="no deleted queue 'q' to bring back; the last that there are: none"):
        office.ask(office.queues.undelete, "q")


def test_deleted_queues_are_listed_by_the_names_they_had_until_nobody_can_bring_them_back(office: Office) -> None:
    for name, grace_ms in (("b", 2000), ("a", 1000), ("kept", 1000)):
        office.declare(name, delete_grace_ms=grace_ms)
    office.fill("b", 3)
    for name in ("b", "a"):
        office.ask(office.queues.delete, name)
    office.declare("b")
    found = office.ask(office.queues.list_deleted)
    assert [(one["name"], one["ready"], one["until_us"]) for one in found] == [
        ("b", 3, START_US + 2_000_000),
        ("a", 0, START_US + 1_000_000),
    ]
    assert [one["name"] for one in office.ask(office.queues.list_all)] == ["b", "kept"]
    office.pass_time(1_000_000)
    assert [one["name"] for one in office.ask(office.queues.list_deleted)] == ["b"]


def test_when_its_time_is_over_a_deleted_queue_is_gone_for_good(office: Office) -> None:
    office.declare("a", delete_grace_ms=1000)
    office.declare("b")
    assert office.queues.next_due_us() is None
    office.fill("a", 2)
    office.ask(office.queues.delete, "b")
    office.ask(office.queues.delete, "a")
    assert office.queues.next_due_us() == START_US + 1_000_000
    office.events()
    office.pass_time(999_999)
    assert office.events() == []
    office.pass_time(1)
    assert office.events() == [e.QueueDeleted(1, 2, 2 * 3, 0)]
    assert list(office.state.queues) == [2]
    assert office.queues.next_due_us() == START_US + HOUR_US
    with pytest.raises(UnknownQueue, match="'a' to bring back; the last that there are: 'b'"):
        office.ask(office.queues.undelete, "a")


@pytest.mark.parametrize("settings", [{}, {"delete_grace_ms": 0}])
def test_without_a_grace_time_there_is_no_way_back(office: Office, settings: dict[str, int]) -> None:
    office.ask(office.queues.declare, "q", settings)
    args = () if settings else (0,)
    assert office.ask(office.queues.delete, "q", *args) == {"count": 0, "until_us": 0}
    assert office.state.queues == {}
    assert office.queues.next_due_us() is None
    with pytest.raises(UnknownQueue):
        office.ask(office.queues.undelete, "q")


def test_who_deletes_may_choose_the_grace_time(office: Office) -> None:
    office.declare("q", delete_grace_ms=0)
    assert office.ask(office.queues.delete, "q", 5)["until_us"] == START_US + 5000


def test_a_queue_may_take_the_name_of_a_deleted_one_which_then_needs_another(office: Office) -> None:
    office.declare("q", ttl_ms=1)
    office.ask(office.queues.delete, "q")
    office.declare("q", ttl_ms=2)
    with pytest.raises(DeclareConflict, match="'q' cannot come back as 'q', there is a queue of that name"):
        office.ask(office.queues.undelete, "q")
    assert office.ask(office.queues.undelete, "q", "old q")["settings"]["ttl_ms"] == 1
    assert office.queue("q").settings.ttl_ms == 2


def test_of_several_deleted_queues_of_one_name_the_last_comes_back_first(office: Office) -> None:
    for ttl_ms in (1, 2):
        office.declare("q", ttl_ms=ttl_ms)
        office.ask(office.queues.delete, "q")
    assert office.ask(office.queues.undelete, "q", "second")["settings"]["ttl_ms"] == 2
    assert office.ask(office.queues.undelete, "q", "first")["settings"]["ttl_ms"] == 1


def test_a_queue_that_comes_back_under_another_name_keeps_its_dead_letters(office: Office) -> None:
    office.declare("q")
    office.declare("q.dlq")
    office.ask(office.queues.delete, "q")
    office.ask(office.queues.undelete, "q", "other")
    assert office.queue("other").settings.dead_letter_queue == "q.dlq"


def test_above_the_limit_the_oldest_deleted_queues_go_for_good() -> None:
    office = Office(Limits(deleted_queues=2))
    for name in ("a", "b", "c"):
        office.declare(name)
        office.ask(office.queues.delete, name)
    assert [name for name, _ in office.state.topology.deleted.values()] == ["b", "c"]
    assert list(office.state.queues) == [2, 3]


def test_a_grace_time_goes_on_over_a_restart(office: Office) -> None:
    office.declare("q")
    office.ask(office.queues.delete, "q")
    office.begin(office.replayed(), START_US + HOUR_US - 1)
    assert office.queues.next_due_us() == START_US + HOUR_US
    office.pass_time(1)
    assert office.state.queues == {}


# --- topics


def test_bindings_are_there_once(office: Office) -> None:
    for name in ("b", "a"):
        office.declare(name)
    assert office.ask(office.queues.bind, "b", "x.*") == {"count": 1}
    assert office.ask(office.queues.bind, "b", "x.*") == {"count": 0}
    assert office.ask(office.queues.bind, "b", "#") == {"count": 1}
    assert office.ask(office.queues.bind, "a", "x.*") == {"count": 1}
    all_of_them = [("a", "x.*"), ("b", "#"), ("b", "x.*")]
    assert office.ask(office.queues.list_bindings, None) == [{"queue": q, "pattern": p} for q, p in all_of_them]
    assert office.ask(office.queues.unbind, "b", "x.*") == {"count": 1}
    assert office.ask(office.queues.unbind, "b", "x.*") == {"count": 0}
    assert office.ask(office.queues.list_bindings, "b") == [{"queue": "b", "pattern": "#"}]
    for method, args in ((office.queues.bind, ("c", "x")), (office.queues.unbind, ("c", "x"))):
        with pytest.raises(UnknownQueue):
            office.ask(method, *args)


def test_there_are_at_most_so_many_bindings() -> None:
    office = Office(Limits(bindings=2))
    for name in ("a", "b"):
        office.declare(name)
        office.ask(office.queues.bind, name, "x")
    with pytest.raises(LimitExceeded, match="there are 2 bindings"):
        office.ask(office.queues.bind, "a", "y")
    assert office.ask(office.queues.bind, "a", "x") == {"count": 0}
    office.ask(office.queues.unbind, "b", "x")
    office.ask(office.queues.bind, "a", "y")


def test_a_queue_has_at_most_so_many_bindings() -> None:
    office = Office(Limits(bindings_per_queue=2))
    office.declare("a")
    office.declare("b")
    for pattern in ("x", "y"):
        office.ask(office.queues.bind, "a", pattern)
    with pytest.raises(LimitExceeded, match="queue 'a' would have 3 bindings: the limit of one queue is 2"):
        office.ask(office.queues.bind, "a", "z")
    assert office.ask(office.queues.bind, "a", "x") == {"count": 0}
    office.ask(office.queues.bind, "b", "z")


# --- the configuration


def test_the_queues_of_the_configuration_are_made_so(office: Office) -> None:
    office.declare("live", ttl_ms=5, max_attempts=7)
    office.ask(office.queues.bind, "live", "old")
    office.events()
    wanted = {
        "live": Declaration(checked({"ttl_ms": 6}, office.limits), ("old", "new")),
        "new": Declaration(checked({"mode": "fan-out"}, office.limits), ("new",)),
    }
    for _ in range(2):
        check_declarations(office.state, wanted, office.defaults, office.limits)
        office.queues.declare_all(wanted)
    assert office.events() == [
        e.QueueChanged(1, QueueSettings(ttl_ms=6, max_attempts=7), 0),
        e.Bound(1, "new", 0),
        e.QueueDeclared(2, "new", QueueSettings(mode=Mode.FAN_OUT), 0),
        e.Bound(2, "new", 0),
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "priority"}, "queue 'live' exists with other settings: mode is 'round-robin', not 'priority'"),
        ({"order_by_key": True}, "order_by_key is false, not true; order_by_key cannot be changed"),
        ({"group_idle_ms": 5}, "group_idle_ms needs mode"),
    ],
)
def test_a_configuration_that_a_live_queue_cannot_follow_is_refused(
    office: Office, settings: dict[str, object], said: str
) -> None:
    office.declare("live")
    wanted = {"live": Declaration(checked(settings, office.limits))}
    with pytest.raises(ConfigError, match=said):
        check_declarations(office.state, wanted, office.defaults, office.limits)


def test_a_configuration_with_more_than_the_limits_is_refused(office: Office) -> None:
    office.declare("live")
    office.ask(office.queues.bind, "live", "x")
    wanted = {"live": Declaration({}, ("x", "y")), "new": Declaration({}, ("x",))}
    check_declarations(office.state, wanted, office.defaults, Limits(queues=2, bindings=3))
    with pytest.raises(ConfigError, match="there are 2 queues: the limit is 1"):
        check_declarations(office.state, wanted, office.defaults, Limits(queues=1))
    with pytest.raises(ConfigError, match="there are 3 bindings: the limit is 2"):
        check_declarations(office.state, wanted, office.defaults, Limits(bindings=2))
    with pytest.raises(ConfigError, match="queue 'live' would have 2 bindings: the limit of one queue is 1"):
        check_declarations(office.state, wanted, office.defaults, Limits(bindings_per_queue=1))
    # What is there already, or said twice, is not made again.
    check_declarations(office.state, {"live": Declaration({}, ("x",))}, office.defaults, Limits(bindings_per_queue=0))
    twice = {"live": Declaration({}, ("x", "y", "y"))}
    check_declarations(office.state, twice, office.defaults, Limits(bindings=2, bindings_per_queue=2))
    check_declarations(office.state, {}, office.defaults, Limits(queues=1, bindings=1))


# --- all of it


NAMES = [f"{first}{last}" for first in "abc" for last in ("", ".dlq")]
SETTINGS: list[dict[str, object]] = [
    {},
    {"ttl_ms": 5},
    {"mode": "fan-out", "group_max_lag": 3},
    {"dead_letter_queue": "a"},
    {"delete_grace_ms": 2},
]


def do_something(office: Office, live: dict[str, int], chance: Random) -> None:
    """One random request; what it does to names is done to `live` as well."""
    name, other, said = chance.choice(NAMES), chance.choice(NAMES), chance.choice(SETTINGS)
    queues, numbers = office.queues, office.state.topology.queues
    match chance.randrange(10):
        case 0:
            office.ask(queues.declare, name, said, chance.choice(["fail", "ignore", "override"]))
            live.setdefault(name, numbers[name])
        case 1:
            office.ask(queues.change, name, said)
        case 2:
            office.ask(queues.rename, name, other)
            live[other] = live.pop(name)
        case 3:
            office.ask(queues.delete, name, chance.choice([None, 0, 3]))
            del live[name]
        case 4:
            office.ask(queues.undelete, name, other)
            live[other] = numbers[other]
        case 5:
            office.ask(queues.bind, name, other)
        case 6:
            office.ask(queues.unbind, name, other)
        case 7:
            office.ask(queues.purge, name)
        case 8:
            office.fill(name, 2)
        case _:
            office.pass_time(1000)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_asked_the_log_tells_it_again(seed: int) -> None:
    """A refused request changes nothing, names are those of a plain dictionary, and a replay agrees."""
    chance, live = Random(seed), dict[str, int]()
    office = Office(Limits(queues=5, deleted_queues=3, bindings=8))
    done = refused = 0
    for _ in range(150):
        before = office.state.next_offset
        try:
            do_something(office, live, chance)
            done += 1
        except RequestError:
            assert office.state.next_offset == before
            refused += 1
        state = office.state
        assert state.topology.queues == live
        assert {number: state.queues[number].name for number in live.values()} == {n: name for name, n in live.items()}
        assert len(live) <= 5
        assert len(state.topology.deleted) <= 3
        assert len(state.queues) == len(live) + len(state.topology.deleted)
        assert state.bindings.count <= 8
    assert min(done, refused) > 20
    assert office.replayed().digests() == office.state.digests()

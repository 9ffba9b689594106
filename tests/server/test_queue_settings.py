"""What may be said of a queue: values, what they mean together, differences, defaults."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.declaration import Backoff, Mode, Overflow, QueueSettings
from vibemq.errors import InvalidRequest
from vibemq.server.limits import DURATION_MS_MAX, Limits
from vibemq.server.queue_settings import (
    DEAD_LETTER_QUEUE,
    NUMBER_MAX,
    ONLY_WITH,
    PLAIN,
    Class,
    QueueDefaults,
    checked,
    class_of,
    differences,
    resolved,
)

LIMITS = Limits()
RANGES = {
    name: (0, 100 if name.endswith("percent") else DURATION_MS_MAX if name.endswith("_ms") else NUMBER_MAX)
    for name, value in PLAIN.items()
    if type(value) is int
} | {"lease_ms": (1, LIMITS.lease_ms)}


def values_of(name: str) -> st.SearchStrategy[Any]:
    """What a client may say of one setting."""
    if name in RANGES:
        return st.integers(*RANGES[name])
    if isinstance(PLAIN[name], bool):
        return st.booleans()
    choice = {"mode": Mode, "overflow": Overflow, "retry_backoff": Backoff}.get(name)
    return st.sampled_from([one.value for one in choice]) if choice is not None else st.text("ab", max_size=5)


GIVEN = st.fixed_dictionaries({}, optional={name: values_of(name) for name in PLAIN})


def new(given: Mapping[str, object], defaults: QueueDefaults | None = None, name: str = "q") -> QueueSettings:
    return (defaults or QueueDefaults()).of(name, checked(given, LIMITS))


# --- one value


@given(GIVEN)
def test_values_in_their_range_are_taken_as_they_are(given: dict[str, Any]) -> None:
    found = checked(given, LIMITS)
    assert found == given
    assert all(type(value) is type(PLAIN[name]) for name, value in found.items())


@pytest.mark.parametrize("name", RANGES)
def test_numbers_end_at_their_range(name: str) -> None:
    low, high = RANGES[name]
    assert checked({name: low}, LIMITS) == {name: low}
    assert checked({name: high}, LIMITS) == {name: high}
    for beyond in (low - 1, high + 1):
        with pytest.raises(InvalidRequest, match=f"^{name} must be from {low} to {high}( ms| percent)?, not {beyond}$"):
            checked({name: beyond}, LIMITS)


@pytest.mark.parametrize("name", PLAIN)
def test_values_of_another_type_are_refused(name: str) -> None:
    others: tuple[Any, ...] = (None, 1.0, True, "soon", 7, [], {}, b"x")
    for other in others:
        if type(other) is not type(PLAIN[name]):
            with pytest.raises(InvalidRequest, match=f"^{name} must be "):
                checked({name: other}, LIMITS)


@pytest.mark.parametrize(("name", "kind"), [("mode", Mode), ("overflow", Overflow), ("retry_backoff", Backoff)])
def test_a_choice_that_there_is_not_is_refused_with_those_there_are(name: str, kind: type[Mode]) -> None:
    for one in kind:
        assert checked({name: one.value}, LIMITS)[name] is one
    with pytest.raises(InvalidRequest, match=f"^{name} must be one of {', '.join(kind)}, not 'fast'$"):
        checked({name: "fast"}, LIMITS)


def test_a_name_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        InvalidRequest,
        match=r"no setting 'ttl'; there are mode, .*, ttl_ms, .*, description, dedup_window_ms, expires_ms$",
    ):
        checked({"ttl": 1}, LIMITS)


def test_the_longest_lease_is_a_limit_of_the_broker() -> None:
    with pytest.raises(InvalidRequest, match="lease_ms must be from 1 to 50 ms, not 51"):
        checked({"lease_ms": 51}, Limits(lease_ms=50))


def test_text_must_be_what_the_log_can_hold() -> None:
    for name in ("description", "dead_letter_queue"):
        assert checked({name: "ü" * 255}, LIMITS) == {name: "ü" * 255}
        for text in ("x" * 256, "\ud800"):
            with pytest.raises(InvalidRequest, match=name):
                checked({name: text}, LIMITS)


# --- together


@given(GIVEN)
@settings(max_examples=300)
def test_what_is_accepted_fits_the_mode(given: dict[str, Any]) -> None:
    try:
        found = new(given)
    except InvalidRequest:
        return
    for name, modes in ONLY_WITH.items():
        assert found.mode in modes or getattr(found, name) == PLAIN[name]
    assert found.dead_letter_queue != "q"
    assert found.retry_backoff is Backoff.FIXED or found.retry_delay_ms <= found.retry_delay_max_ms
    assert {name: getattr(found, name) for name in given} == given
    assert e.decode(e.Tag.QUEUE_CHANGED, 1, e.encode(e.QueueChanged(1, found, 1))) == e.QueueChanged(1, found, 1)


FITTING = [
    ("order_by_key", True, {Mode.ROUND_ROBIN, Mode.FAN_OUT}),
    ("priority_guard", 3, {Mode.PRIORITY}),
    ("group_idle_ms", 5, {Mode.FAN_OUT, Mode.FAN_OUT_NO_ACK}),
    ("group_max_lag", 5, {Mode.FAN_OUT, Mode.FAN_OUT_NO_ACK}),
    ("single_active", True, set(Mode)),
]


@pytest.mark.parametrize(("name", "value", "modes"), FITTING)
def test_settings_go_with_some_modes_only(name: str, value: object, modes: set[Mode]) -> None:
    for mode in Mode:
        if mode in modes:
            assert getattr(new({"mode": mode.value, name: value}), name) == value
        else:
            with pytest.raises(InvalidRequest, match=f"^{name} needs mode .*; the mode of queue 'q' is {mode.value}$"):
                new({"mode": mode.value, name: value})
        assert new({"mode": mode.value, name: PLAIN[name]}).mode is mode


def test_a_queue_cannot_be_its_own_dead_letter_queue() -> None:
    with pytest.raises(InvalidRequest, match="'q' cannot be its own"):
        new({"dead_letter_queue": "q"})


def test_a_delay_above_its_own_maximum_is_refused() -> None:
    given = {"retry_delay_ms": 100, "retry_delay_max_ms": 99}
    assert new(given).retry_delay_ms == 100  # a fixed delay has no maximum
    with pytest.raises(InvalidRequest, match="retry_delay_ms is 100, more than retry_delay_max_ms, which is 99"):
        new({**given, "retry_backoff": "exponential"})
    with pytest.raises(InvalidRequest, match="retry_delay_max_ms"):
        resolved("q", msgspec.structs.asdict(new(given)), {"retry_backoff": Backoff.EXPONENTIAL})


def test_a_change_keeps_what_it_does_not_name() -> None:
    live = new({"mode": "priority", "priority_guard": 7, "ttl_ms": 5})
    found = resolved("q", msgspec.structs.asdict(live), {"ttl_ms": 6})
    assert found == msgspec.structs.replace(live, ttl_ms=6)


# --- differences


@given(GIVEN, GIVEN)
def test_differences_are_what_was_said_and_is_not_so(live: dict[str, Any], said: dict[str, Any]) -> None:
    present, given = QueueSettings(**checked(live, LIMITS)), checked(said, LIMITS)
    found = differences(present, given)
    assert [one["setting"] for one in found] == [n for n in PLAIN if n in given and given[n] != getattr(present, n)]
    changed = msgspec.structs.replace(present, **{one["setting"]: given[one["setting"]] for one in found})
    assert differences(changed, given) == []
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
    for one in found:
        assert one["live"] == getattr(present, one["setting"])
        assert one["declared"] == said[one["setting"]]
        assert one["class"] == class_of(one["setting"]).value
        assert type(one["live"]) is type(one["declared"]) in {str, int, bool}


def test_what_cannot_be_changed_is_the_mode_and_the_order() -> None:
    assert {name for name in PLAIN if class_of(name) is Class.HARD} == {"mode", "order_by_key"}
    assert {name for name in PLAIN if class_of(name) is Class.INFO} == {"description"}


# --- defaults


def test_without_patterns_the_general_defaults_hold() -> None:
    assert QueueDefaults().of("q") == QueueSettings()
    base = QueueSettings(max_attempts=2)
    assert QueueDefaults(base).of("q") == base
    assert QueueDefaults(base).of("q", {"ttl_ms": 5}) == QueueSettings(max_attempts=2, ttl_ms=5)


def test_later_patterns_come_before_earlier_ones_and_what_is_said_before_all() -> None:
    defaults = QueueDefaults(
        QueueSettings(max_attempts=2, lease_ms=5),
        (("orders.#", {"max_attempts": 3, "ttl_ms": 10}), ("*.eu", {"max_attempts": 4}), ("other", {"ttl_ms": 1})),
    )
    assert defaults.of("orders.us") == QueueSettings(max_attempts=3, ttl_ms=10, lease_ms=5)
    assert defaults.of("orders.eu") == QueueSettings(max_attempts=4, ttl_ms=10, lease_ms=5)
    assert defaults.of("orders.eu", {"ttl_ms": 0}) == QueueSettings(max_attempts=4, lease_ms=5)
    assert defaults.of("stock.eu") == QueueSettings(max_attempts=4, lease_ms=5)
    assert defaults.of("stock") == defaults.base


MATCHING = [
    ("orders", "orders", True),
    ("orders", "orders.new", False),
    ("orders.*", "orders.new", True),
    ("orders.*", "orders", False),
    ("orders.*", "orders.new.eu", False),
    ("orders.#", "orders", True),
    ("orders.#", "orders.new.eu", True),
    ("#", "anything", True),
    ("#.eu", "eu", True),
    ("#.eu", "a.b.eu", True),
    ("#.eu", "a.b.eu.c", False),
    ("a.#.b.#", "a.x.b.b", True),
    ("a.#.b.#", "a.x", False),
    ("*.*", "a.", True),
]


@pytest.mark.parametrize(("pattern", "name", "fits"), MATCHING)
def test_names_match_as_topics_do(pattern: str, name: str, fits: bool) -> None:
    assert (QueueDefaults(patterns=((pattern, {"ttl_ms": 1}),)).of(name).ttl_ms == 1) == fits


def test_a_default_that_does_not_fit_is_left_out() -> None:
    defaults = QueueDefaults(
        patterns=(
            ("#", {"priority_guard": 9, "group_idle_ms": 8, "dead_letter_queue": "morgue", "retry_delay_ms": 1 << 30}),
            ("exponential", {"retry_backoff": Backoff.EXPONENTIAL}),
        )
    )
    assert defaults.of("q").priority_guard == defaults.of("q").group_idle_ms == 0
    assert defaults.of("q", {"mode": Mode.PRIORITY}).priority_guard == 9
    assert defaults.of("q", {"mode": Mode.FAN_OUT}).group_idle_ms == 8
    assert (defaults.of("q").dead_letter_queue, defaults.of("morgue").dead_letter_queue) == ("morgue", "")
    assert defaults.of("exponential").retry_delay_max_ms == 1 << 30
    with pytest.raises(InvalidRequest, match="priority_guard"):
        defaults.of("q", {"priority_guard": 9})


def test_dead_letters_have_defaults_of_their_own() -> None:
    defaults = QueueDefaults(patterns=(("#", {"ttl_ms": 5}), ("orders.*", {"ttl_ms": 6}), ("#.dlq", {"max_length": 7})))
    dead = msgspec.structs.replace(DEAD_LETTER_QUEUE, max_length=7)
    assert defaults.of("orders.dlq") == defaults.of("orders.dlq", base=DEAD_LETTER_QUEUE) == dead
    assert defaults.of("orders.dlq", {"max_attempts": 5}).max_attempts == 5
    assert defaults.of("morgue", base=DEAD_LETTER_QUEUE).max_attempts == 0
    assert defaults.of("orders.eu") == QueueSettings(ttl_ms=6)


@given(st.lists(st.tuples(st.sampled_from(["#", "*", "a", "a.#", "#.dlq"]), GIVEN), max_size=3), GIVEN)
@settings(max_examples=200)
def test_defaults_alone_always_make_a_queue(patterns: list[tuple[str, dict[str, Any]]], base: dict[str, Any]) -> None:
    defaults = QueueDefaults(
        QueueSettings(**checked(base, LIMITS)), tuple((pattern, checked(table, LIMITS)) for pattern, table in patterns)
    )
    for name in ("a", "a.b", "a.dlq", "ab"):
        found = defaults.of(name)
        assert resolved(name, msgspec.structs.asdict(found), {}) == found

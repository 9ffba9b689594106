"""Patterns against their definition, and bindings against a plain set of pairs."""

from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections import part as parts
from vibemq.projections.bindings import Bindings, matches
from vibemq.projections.projector import Projector

Pair = tuple[int, str]

WORDS: Final = st.sampled_from(["a", "b", ""])
PATTERNS: Final = st.lists(WORDS | st.sampled_from(["*", "#", "*", "#", "a*"]), min_size=1, max_size=6).map(".".join)
TOPICS: Final = st.lists(WORDS | st.sampled_from(["*", "#", "a*"]), min_size=1, max_size=6).map(".".join)
EDITS: Final = st.sampled_from(["keep", "keep", "drop", "double", "other"])
PAIRS: Final = st.tuples(st.integers(1, 4), PATTERNS)
STEPS: Final = st.lists(st.tuples(st.sampled_from(["bind", "bind", "bind", "unbind", "delete", "put by"]), PAIRS))


def takes(pattern: list[str], topic: list[str]) -> bool:
    """What a pattern means, word by word."""
    if not pattern:
        return not topic
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return takes(rest, topic) or (bool(topic) and takes(pattern, topic[1:]))
    return bool(topic) and first in {"*", topic[0]} and takes(rest, topic[1:])


@st.composite
def patterns_and_topics(draw: st.DrawFn) -> tuple[str, str]:
    """A pattern, and a topic that it takes in but for an edit: what two words chosen at random seldom are."""
    pattern = draw(PATTERNS)
    words = list[str]()
    for word in pattern.split("."):
        words += draw(st.lists(WORDS, max_size=3)) if word == "#" else [draw(WORDS) if word == "*" else word]
    edit = draw(EDITS)
    if edit != "keep" and words:
        place = draw(st.integers(0, len(words) - 1))
        words[place : place + 1] = {"drop": [], "double": [words[place]] * 2, "other": ["c"]}[edit]
    return pattern, ".".join(words)


def built(steps: list[tuple[str, Pair]]) -> tuple[Bindings, set[Pair]]:
    """The same done to both; what a broker would not ask for is left out."""
    bindings, pairs = Bindings(), set[Pair]()
    for kind, (queue, pattern) in steps:
        if kind == "bind":
            bindings.bound(e.Bound(queue, pattern, 1))
            pairs.add((queue, pattern))
        elif kind == "unbind" and (queue, pattern) in pairs:
            bindings.unbound(e.Unbound(queue, pattern, 1))
            pairs.remove((queue, pattern))
        elif kind == "put by":
            bindings.queue_deleted(e.QueueDeleted(queue, 0, 0, 1, until_us=1))
        elif kind == "delete":
            bindings.queue_deleted(e.QueueDeleted(queue, 0, 0, 1))
            pairs = {pair for pair in pairs if pair[0] != queue}
    return bindings, pairs


def bound(*pairs: Pair) -> Bindings:
    return built([("bind", pair) for pair in pairs])[0]


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("orders.eu", ["orders.eu"], ["orders", "orders.eu.new", "eu.orders", "orders.EU"]),
        ("orders.*", ["orders.eu", "orders."], ["orders", "orders.eu.new", "orders.eu."]),
        ("*.eu", ["orders.eu", ".eu"], ["eu", "a.orders.eu"]),
        ("orders.#", ["orders", "orders.eu", "orders.eu.new"], ["order", "a.orders", "orderss"]),
        ("#.eu", ["eu", "orders.eu", "a.orders.eu"], ["eu.a", "aeu"]),
        ("a.#.z", ["a.z", "a.b.z", "a.z.z", "a.z.a.z"], ["a", "z", "a.z.b"]),
        ("#.b.#", ["b", "a.b", "b.c", "a.b.c.b"], ["a", "a.c"]),
        ("#", ["a", "a.b", ""], []),
        ("*.#", ["a", "a.b", ""], []),
        ("#.#.*.*", ["a.b", "a.b.c"], ["a", ""]),
        ("order*.#x", ["order*.#x"], ["orders.x", "order*.x", "order*.a.x"]),
        ("a..b", ["a..b"], ["a.b", "a.x.b"]),
    ],
)
def test_what_a_pattern_takes_in(pattern: str, taken: list[str], left: list[str]) -> None:
    bindings = bound((1, pattern))
    for topic in taken:
        assert matches(pattern, topic), topic
        assert bindings.match(topic) == [1], topic
    for topic in left:
        assert not matches(pattern, topic), topic
        assert bindings.match(topic) == [], topic


@given(patterns_and_topics() | st.tuples(PATTERNS, TOPICS))
def test_a_pattern_takes_in_what_its_definition_says(both: tuple[str, str]) -> None:
    pattern, topic = both
    assert matches(pattern, topic) == takes(pattern.split("."), topic.split("."))


@given(STEPS, st.lists(TOPICS, min_size=1, max_size=5))
def test_a_topic_finds_the_queues_that_are_bound_to_it(steps: list[tuple[str, Pair]], topics: list[str]) -> None:
    bindings, pairs = built(steps)
    for topic in topics:
        wanted = {queue for queue, pattern in pairs if takes(pattern.split("."), topic.split("."))}
        assert bindings.match(topic) == sorted(wanted)


@given(STEPS, PAIRS)
def test_the_bindings_are_those_of_a_set(steps: list[tuple[str, Pair]], asked: Pair) -> None:
    bindings, pairs = built(steps)
    assert list(bindings.everything()) == [(pattern, queue) for queue, pattern in sorted(pairs)]
    assert bindings.count == Bindings.restore(bindings.snapshot(), 0).count == len(pairs)
    for queue, pattern in {asked, *pairs}:
        assert bindings.holds(queue, pattern) == ((queue, pattern) in pairs)
        assert bindings.patterns(queue) == sorted(found for number, found in pairs if number == queue)


@given(STEPS, st.randoms(use_true_random=False), TOPICS)
def test_the_same_bindings_are_the_same_state(steps: list[tuple[str, Pair]], random: Random, topic: str) -> None:
    """In whatever order they came, and whatever went between; also when saved and restored."""
    bindings, pairs = built(steps)
    shuffled = sorted(pairs)
    random.shuffle(shuffled)
    for other in (bound(*shuffled), Bindings.restore(parts.decode(parts.encode(bindings)), 7)):
        assert parts.digest(other) == parts.digest(bindings)
        assert other.match(topic) == bindings.match(topic)
    if pairs:
        queue, pattern = shuffled[0]
        bindings.unbound(e.Unbound(queue, pattern, 1))
        assert parts.digest(bindings) == parts.digest(bound(*shuffled[1:])) != parts.digest(bound(*shuffled))


def test_the_snapshot_is_what_logs_of_users_add_up_to() -> None:
    bindings = bound((2, "b.*"), (10, "#"), (2, "a"))
    assert bindings.snapshot() == [[2, ["a", "b.*"]], [10, ["#"]]]
    restored = Bindings.restore(bindings.snapshot(), 5)
    assert (restored.as_of, restored.key, restored.snapshot()) == (5, "bindings", bindings.snapshot())


def test_what_goes_leaves_nothing_behind() -> None:
    pairs = [(1, "a.b.c"), (1, "a.*.c"), (1, "a.*.d"), (2, "a.*.c"), (2, "#.#.x"), (3, "*")]
    bindings = bound(*pairs)
    bindings.queue_deleted(e.QueueDeleted(2, 0, 0, 1))
    for queue, pattern in pairs:
        if queue != 2:
            bindings.unbound(e.Unbound(queue, pattern, 1))
    assert bindings._root.empty
    assert not bindings._exact
    assert not bindings._patterns


def test_to_unbind_what_is_not_bound_is_a_bug() -> None:
    for queue, pattern in ((1, "b"), (2, "a.*")):
        bindings = bound((1, "a.*"))
        with pytest.raises(KeyError):
            bindings.unbound(e.Unbound(queue, pattern, 1))


def test_no_pattern_makes_matching_explode() -> None:
    """Tried one way after the other, each of these would take longer than anybody waits."""
    many = ".".join(["#", "a"] * 60)
    assert matches(many, ".".join("a" * 120))
    assert not matches(many + ".b", ".".join("a" * 120))
    assert not matches(".".join("#" * 120) + ".b", ".".join("a" * 120))
    assert not matches(".".join("*" * 120), ".".join("*" * 121))
    crowd = bound(*((queue, ".".join(["#", "a", "*"] * queue)) for queue in range(1, 40)))
    assert crowd.match(".".join("a" * 78)) == list(range(1, 40))


# -- as a part of the state


STARTED: Final = e.BrokerStarted("0.1.0", clean=True, wall_us=0)
DECLARED: Final = [e.QueueDeclared(queue, f"q{queue}", QueueSettings(), 0) for queue in (1, 2, 3)]
BEFORE: Final[list[e.Event]] = [STARTED, *DECLARED, e.QueueDeleted(1, 0, 0, 0)]
HISTORY: Final[list[e.Event]] = [
    *BEFORE,
    e.Bound(2, "orders.*", 1),
    e.Bound(2, "orders.eu", 1),
    e.Bound(3, "#", 1),
    e.Unbound(2, "orders.eu", 1),
    e.QueueDeleted(3, 0, 0, 1),
    e.Unbound(2, "orders.*", 1),
    STARTED,
    e.Bound(2, "a.#", 1),
]


def replayed(history: list[e.Event], state: Projector | None = None) -> Projector:
    state = state or Projector()
    for offset in range(state.next_offset, len(history)):
        state.apply(offset, 0, history[offset])
    return state


def saved(part: parts.Part) -> tuple[str, int, bytes]:
    return part.key, part.as_of, parts.encode(part)


def test_a_state_without_bindings_has_no_such_part() -> None:
    """A checkpoint of a version that knew of none is whole, and digests are what they were."""
    state = replayed(BEFORE)
    assert "bindings" not in state.digests()
    restored = Projector.restore([saved(part) for part in state.parts()], len(BEFORE))
    assert restored.digests() == state.digests()
    assert replayed(HISTORY, restored).digests() == replayed(HISTORY).digests()


def test_a_queue_takes_its_bindings_along_when_it_goes() -> None:
    assert replayed(HISTORY[:8]).bindings.match("orders.eu") == [2, 3]
    assert replayed(HISTORY[:9]).bindings.match("orders.us") == [2, 3]
    assert replayed(HISTORY[:10]).bindings.match("orders.eu") == [2]
    assert replayed(HISTORY[:11]).bindings.match("orders.eu") == []
    assert replayed(HISTORY).bindings.as_of == len(HISTORY)


@pytest.mark.parametrize("pace", range(4))
def test_bindings_that_were_saved_at_another_time_than_the_rest_meet_it_again(pace: int) -> None:
    for begin in range(len(HISTORY)):
        state, found = replayed(HISTORY[:begin]), list[tuple[str, int, bytes]]()
        for part in state.parts():
            found.append(saved(part))
            replayed(HISTORY[: state.next_offset + pace], state)
        again = replayed(HISTORY, Projector.restore(found, begin))
        assert [saved(part) for part in again.parts()] == [saved(part) for part in replayed(HISTORY).parts()]

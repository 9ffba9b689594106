"""Patterns against their definition, and the index against a plain set of pairs, through checkpoints as well."""

from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.errors import FormatUnsupported
from vibemq.projections import part as parts
from vibemq.projections.bindings import Bindings, matches
from vibemq.projections.projector import Projector

Pair = tuple[int, str]

WORDS: Final = st.sampled_from(["a", "b", ""])
PATTERNS: Final = st.lists(WORDS | st.sampled_from(["*", "#", "*", "#", "a*"]), min_size=1, max_size=6).map(".".join)
TOPICS: Final = st.lists(WORDS | st.sampled_from(["*", "#", "a*"]), min_size=1, max_size=6).map(".".join)
EDITS: Final = st.sampled_from(["keep", "keep", "drop", "double", "other"])
PAIRS: Final = st.tuples(st.integers(1, 4), PATTERNS)
STEPS: Final = st.lists(st.tuples(st.sampled_from(["bind", "bind", "unbind"]), PAIRS))


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
    """The same done to both; nothing is bound twice, and only what is bound is unbound."""
    bindings, pairs = Bindings(), set[Pair]()
    for kind, pair in steps:
        if kind == "bind" and pair not in pairs:
            bindings.add(*pair)
            pairs.add(pair)
        elif kind == "unbind" and pair in pairs:
            bindings.discard(*pair)
            pairs.remove(pair)
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


def naive(pairs: set[Pair], topic: str) -> list[int]:
    """The queues that are bound to a topic."""
    return sorted({queue for queue, pattern in pairs if takes(pattern.split("."), topic.split("."))})


@given(STEPS, st.lists(TOPICS, min_size=1, max_size=5))
def test_a_topic_finds_the_queues_that_are_bound_to_it(steps: list[tuple[str, Pair]], topics: list[str]) -> None:
    bindings, pairs = built(steps)
    assert bindings.count == len(pairs)
    for topic in topics:
        assert bindings.match(topic) == naive(pairs, topic)


def test_what_goes_leaves_nothing_behind() -> None:
    pairs = [(1, "a.b.c"), (1, "a.*.c"), (1, "a.*.d"), (2, "a.*.c"), (2, "#.#.x"), (3, "*")]
    bindings = bound(*pairs)
    for pair in pairs:
        bindings.discard(*pair)
    assert bindings._root.empty
    assert not bindings._exact


def test_patterns_that_mean_the_same_come_and_go_one_by_one() -> None:
    bindings = bound((1, "a.#.*"), (1, "a.*.#"), (1, "a.#.*.#"), (2, "a.*.#"))
    for left, pattern in ((3, "a.*.#"), (2, "a.#.*.#"), (1, "a.#.*")):
        assert bindings.match("a.b") == bindings.match("a.b.c") == [1, 2]
        assert bindings.match("a") == []
        bindings.discard(1, pattern)
        assert bindings.count == left
    assert bindings.match("a.b") == [2]


def test_to_unbind_what_is_not_bound_is_a_bug() -> None:
    for queue, pattern in ((1, "b"), (2, "a.*")):
        bindings = bound((1, "a.*"))
        with pytest.raises(KeyError):
            bindings.discard(queue, pattern)


def test_no_pattern_makes_matching_explode() -> None:
    """Tried one way after the other, each of these would take longer than anybody waits."""
    many = ".".join(["#", "a"] * 60)
    assert matches(many, ".".join("a" * 120))
    assert not matches(many + ".b", ".".join("a" * 120))
    assert not matches(".".join("#" * 120) + ".b", ".".join("a" * 120))
    assert not matches(".".join("*" * 120), ".".join("*" * 121))
    crowd = bound(*((queue, ".".join(["#", "a", "*"] * queue)) for queue in range(1, 40)))
    assert crowd.match(".".join("a" * 78)) == list(range(1, 40))


# -- the index of a state


KINDS: Final = st.sampled_from(["bind", "bind", "bind", "unbind", "rename", "put by", "bring back", "delete"])
CHANGES: Final = st.lists(st.tuples(KINDS, PAIRS), max_size=25)


class Story:
    """Events that a broker could write down, and what is bound after each of them."""

    def __init__(self, changes: list[tuple[str, Pair]]) -> None:
        self.events: list[e.Event] = []
        self.bound: list[set[Pair]] = [set()]
        self._numbers: dict[int, int] = {}  # a queue that went is followed by another
        self._put_by: set[int] = set()
        self._write(e.BrokerStarted("0.1.0", clean=True, wall_us=0), set())
        for kind, (place, pattern) in changes:
            if place not in self._numbers:
                self._numbers[place] = number = len(self.events)
                self._write(e.QueueDeclared(number, f"q{number}", QueueSettings(), 0), self.bound[-1])
            self._change(kind, place, pattern)

    def _write(self, event: e.Event, bound: set[Pair]) -> None:
        self.events.append(event)
        self.bound.append(bound)

    def _change(self, kind: str, place: int, pattern: str) -> None:
        queue, bound = self._numbers[place], self.bound[-1]
        live = queue not in self._put_by
        if kind == "bind" and live and (queue, pattern) not in bound:
            self._write(e.Bound(queue, pattern, 1), bound | {(queue, pattern)})
        elif kind == "unbind" and live and (queue, pattern) in bound:
            self._write(e.Unbound(queue, pattern, 1), bound - {(queue, pattern)})
        elif kind == "rename" and live:
            self._write(e.QueueRenamed(queue, f"r{len(self.events)}", 1), bound)
        elif kind == "put by" and live:
            self._put_by.add(queue)
            self._write(e.QueueDeleted(queue, 0, 0, 1, until_us=1), bound)
        elif kind == "bring back" and not live:
            self._put_by.remove(queue)
            self._write(e.QueueUndeleted(queue, f"u{len(self.events)}", 1), bound)
        elif kind == "delete":
            del self._numbers[place]
            self._put_by.discard(queue)
            self._write(e.QueueDeleted(queue, 0, 0, 1), {pair for pair in bound if pair[0] != queue})

    def told(self, state: Projector | None = None, end: int | None = None) -> Projector:
        """The state, the first one if none is given, after the events up to `end`."""
        state = state or Projector()
        for offset in range(state.next_offset, len(self.events) if end is None else min(end, len(self.events))):
            state.apply(offset, 0, self.events[offset])
        return state


def saved(part: parts.Part) -> tuple[str, int, bytes]:
    return part.key, part.as_of, parts.encode(part)


@given(CHANGES, st.lists(TOPICS, min_size=1, max_size=5))
def test_the_index_follows_the_patterns_of_the_queues(changes: list[tuple[str, Pair]], topics: list[str]) -> None:
    story = Story(changes)
    state = Projector()
    for end, pairs in enumerate(story.bound):
        story.told(state, end)
        assert {(queue.id, pattern) for queue in state.queues.values() for pattern in queue.patterns} == pairs
        assert state.bindings.count == len(pairs)
        assert [state.bindings.match(topic) for topic in topics] == [naive(pairs, topic) for topic in topics]


@given(CHANGES, st.integers(0, 30), st.lists(st.integers(0, 3), max_size=9), st.lists(TOPICS, min_size=1, max_size=5))
def test_a_checkpoint_has_the_index_in_the_parts_of_the_queues(
    changes: list[tuple[str, Pair]], begin: int, paces: list[int], topics: list[str]
) -> None:
    """They are saved one after the other, with some events between each and the next, and meet those again."""
    story = Story(changes)
    state, found = story.told(end=begin), list[tuple[str, int, bytes]]()
    start = state.next_offset
    for place, part in enumerate(state.parts()):
        found.append(saved(part))
        story.told(state, state.next_offset + (paces[place] if place < len(paces) else 0))
    again, whole = Projector.restore(found, start), story.told()
    story.told(again)
    assert [saved(part) for part in again.parts()] == [saved(part) for part in whole.parts()]
    assert again.bindings.count == len(story.bound[-1])
    assert [again.bindings.match(topic) for topic in topics] == [naive(story.bound[-1], topic) for topic in topics]


@given(st.lists(PATTERNS, unique=True), st.randoms(use_true_random=False))
def test_the_same_patterns_are_the_same_state(patterns: list[str], random: Random) -> None:
    """In whatever order they came, and whatever went between."""
    shuffled = [*patterns, "gone"]
    random.shuffle(shuffled)
    found = []
    for order in (["gone", *patterns], shuffled):
        story = Story([("bind", (1, pattern)) for pattern in order] + [("unbind", (1, "gone"))])
        found.append(parts.digest(story.told().queues[1]))
    assert found[0] == found[1]
    assert found[0] != parts.digest(Story([("bind", (1, pattern)) for pattern in [*patterns, "gone"]]).told().queues[1])


def test_a_checkpoint_of_bindings_as_a_part_of_their_own_is_refused() -> None:
    """Whoever opens one begins with the log instead."""
    with pytest.raises(FormatUnsupported, match="a part 'bindings'"):
        Projector.restore([("bindings", 5, parts._encoder.encode([[1, ["#"]]]))], 5)

"""Which queues get what is published to a topic: the patterns that they are bound to.

A topic is words between dots. In a pattern the word `*` stands for exactly one word and `#` for any number of them,
also none; both may stand anywhere, and more than once. Inside a longer word they are ordinary characters. A word may
be empty: `a..b` has three.

Patterns without such words are looked up whole. The others are a trie of words. A topic comes to each of its nodes at
most once, with all the places in the topic to which the words before the node lead, as the bits of a number: so a topic
costs at most as much as there are nodes, however many `#` a pattern has, and usually as much as the few that share its
words. In how many ways a topic can lead to nodes is what `check_pattern` and `check_topic` of the protocol bound.
"""

from collections.abc import Iterator
from typing import Final

ONE: Final = "*"
MANY: Final = "#"


class Bindings:
    """The index from topics to queues. It is made from the patterns that the queues have, and never saved.

    A deleted queue that can be brought back keeps its patterns, and is still found.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        """How many pairs of pattern and queue there are."""
        self._exact: dict[str, dict[int, None]] = {}
        self._root = _Node()

    def add(self, queue: int, pattern: str) -> None:
        """A queue is bound to a pattern to which it was not bound."""
        words = _words(pattern)
        if _has_wildcards(words):
            self._root.add(words, queue)
        else:
            self._exact.setdefault(pattern, {})[queue] = None
        self.count += 1

    def discard(self, queue: int, pattern: str) -> None:
        """A queue that was bound to this very pattern no longer is."""
        words = _words(pattern)
        if _has_wildcards(words):
            self._root.remove(words, queue)
        else:
            queues = self._exact[pattern]
            del queues[queue]
            if not queues:
                del self._exact[pattern]
        self.count -= 1

    def match(self, topic: str) -> list[int]:
        """The numbers of the queues that are bound to `topic`, ascending."""
        found = _found(self._root, topic.split("."))
        found.update(self._exact.get(topic, ()))
        return sorted(found)


def matches(pattern: str, topic: str) -> bool:
    """Whether `pattern` takes in `topic`; for names of queues too, which can be words between dots as well."""
    root = _Node()
    root.add(_words(pattern), 1)
    return bool(_found(root, topic.split(".")))


class _Node:
    """The patterns that begin with the same words: the queues of those that end here, and what comes after.

    Wildcards stand apart from the words, so that a topic with a word `*` or `#` does not come to a node in two ways.
    """

    __slots__ = ("many", "one", "queues", "words")

    def __init__(self) -> None:
        self.queues: dict[int, int] = {}  # how many patterns of each end here
        self.words: dict[str, _Node] = {}
        self.one: _Node | None = None
        self.many: _Node | None = None

    def add(self, words: list[str], queue: int) -> None:
        """Put a queue to the node at the end of `words`, which is made where it is missing."""
        node = self
        for word in words:
            after = node.after(word)
            if after is None:
                after = _Node()
                node.lead(word, after)
            node = after
        node.queues[queue] = node.queues.get(queue, 0) + 1

    def remove(self, words: list[str], queue: int) -> None:
        """Take a queue from the node at the end of `words`, and the nodes away that are left with nothing."""
        path = [self]
        for word in words:
            after = path[-1].after(word)
            if after is None:
                raise KeyError(word)
            path.append(after)
        queues = path[-1].queues
        queues[queue] -= 1
        if not queues[queue]:
            del queues[queue]
        for word in reversed(words):
            if not path.pop().empty:
                break
            path[-1].lead(word, None)

    @property
    def empty(self) -> bool:
        """Whether no pattern ends here or goes on from here."""
        return not self.queues and not self.words and self.one is None and self.many is None

    def after(self, word: str) -> "_Node | None":
        """Where this word of a pattern leads."""
        return self.one if word == ONE else self.many if word == MANY else self.words.get(word)

    def lead(self, word: str, after: "_Node | None") -> None:
        """Let this word of a pattern lead there, or nowhere."""
        if word == ONE:
            self.one = after
        elif word == MANY:
            self.many = after
        elif after is None:
            del self.words[word]
        else:
            self.words[word] = after


def _words(pattern: str) -> list[str]:
    """The words of a pattern. Of wildcards side by side one `#` is kept, and comes last: it all means the same."""
    words = list[str]()
    for word in pattern.split("."):
        if words and words[-1] == MANY and word in {ONE, MANY}:
            words[-1:] = [word, MANY] if word == ONE else [MANY]
        else:
            words.append(word)
    return words


def _has_wildcards(words: list[str]) -> bool:
    return ONE in words or MANY in words


def _found(root: _Node, topic: list[str]) -> set[int]:
    """The queues of all nodes at which a topic ends.

    Bit n of what comes with a node says that the first n words of the topic lead to it.
    """
    found, places = set[int](), _places(topic)
    coming = [*topic, "."]  # at the end comes what no pattern has
    end = 1 << len(topic)
    every = 2 * end - 1
    reached = [(root, 1)]
    while reached:
        node, here = reached.pop()
        if here & end:
            found.update(node.queues)
        first = here & -here
        if node.many is not None:
            reached.append((node.many, every & -first))  # there and anywhere behind
        if node.one is not None and (beyond := here << 1 & every):
            reached.append((node.one, beyond))
        if here == first:
            after = node.words.get(coming[here.bit_length() - 1])
            if after is not None:
                reached.append((after, here << 1))
        elif node.words:
            reached += _by_word(node.words, here, places)
    return found


def _places(topic: list[str]) -> dict[str, int]:
    """Each word with the places at which it is, as bits."""
    places = dict[str, int]()
    for place, word in enumerate(topic):
        places[word] = places.get(word, 0) | 1 << place
    return places


def _by_word(words: dict[str, _Node], here: int, places: dict[str, int]) -> Iterator[tuple[_Node, int]]:
    """Where the words of a topic lead from several places at once."""
    for word, at in places.items():
        if (taken := here & at) and word in words:
            yield words[word], taken << 1

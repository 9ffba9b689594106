"""Which queues get what is published to a topic: the patterns that they are bound to.

A topic is words between dots. In a pattern the word `*` stands for exactly one word and `#` for any number of them,
also none; both may stand anywhere, and more than once. Inside a longer word they are ordinary characters. A word may
be empty: `a..b` has three.

Patterns without such words are looked up whole. The others are a trie of words, walked with all of its nodes that the
topic's words so far lead to, at once. A node behind a `#` stays among them to the end, as the `#` may take every
further word. No node is there twice, as only one other leads to it: so a topic costs at most its words times the nodes
of the trie, however many `#` a pattern has, and usually its words times the few nodes that share them.
"""

from collections.abc import Iterator
from itertools import chain
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
        """A queue is bound; once is enough."""
        words = pattern.split(".")
        queues = self._root.add(words).queues if _has_wildcards(words) else self._exact.setdefault(pattern, {})
        self.count += queue not in queues
        queues[queue] = None

    def discard(self, queue: int, pattern: str) -> None:
        """A queue that was bound to this very pattern no longer is."""
        words = pattern.split(".")
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
        found = set(self._exact.get(topic, ()))
        for node in _reached(self._root, topic.split(".")):
            found.update(node.queues)
        return sorted(found)


def matches(pattern: str, topic: str) -> bool:
    """Whether `pattern` takes in `topic`; for names of queues too, which can be words between dots as well."""
    root = _Node()
    end = root.add(pattern.split("."))
    return any(node is end for node in _reached(root, topic.split(".")))


class _Node:
    """The patterns that begin with the same words: the queues of the one that ends here, and what comes after.

    Wildcards stand apart from the words, so that a topic with a word `*` or `#` does not come to a node in two ways.
    """

    __slots__ = ("many", "one", "queues", "words")

    def __init__(self) -> None:
        self.queues: dict[int, None] = {}  # keeps an order, as a set does not
        self.words: dict[str, _Node] = {}
        self.one: _Node | None = None
        self.many: _Node | None = None

    def add(self, words: list[str]) -> "_Node":
        """The node at the end of `words`, made where it is missing."""
        node = self
        for word in words:
            after = node.after(word)
            if after is None:
                after = _Node()
                node.lead(word, after)
            node = after
        return node

    def remove(self, words: list[str], queue: int) -> None:
        """Take a queue from the node at the end of `words`, and the nodes away that are left with nothing."""
        path = [self]
        for word in words:
            after = path[-1].after(word)
            assert after is not None, f"no pattern has {word!r} here"
            path.append(after)
        del path[-1].queues[queue]
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


def _has_wildcards(words: list[str]) -> bool:
    return ONE in words or MANY in words


def _reached(root: _Node, topic: list[str]) -> Iterator[_Node]:
    """The nodes at which a topic ends, each once."""
    here, stay = [root], dict[_Node, None]()
    _open(here, stay)
    for word in topic:
        here = [after for node in chain(here, stay) for after in (node.words.get(word), node.one) if after is not None]
        _open(here, stay)
    return chain(here, stay)


def _open(here: list[_Node], stay: dict[_Node, None]) -> None:
    """Add to `stay` what is behind a `#` that takes no word, and behind another that follows it."""
    for node in here:
        after = node.many
        while after is not None:
            stay[after] = None
            after = after.many

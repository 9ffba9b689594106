"""What a fuzz target is, and how inputs are made from others.

A target takes bytes and checks what must hold for any bytes; whatever it raises is a failure. Its seeds are inputs that
get far into the code; `mutated` makes others of them. The same seed of chance gives the same inputs, so a failure in CI
is found again; the coverage-guided fuzzers of `python -m tests.fuzz` use the same targets and seeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

CORPUS = Path(__file__).parent / "corpus"
GROWTH_MAX = 8192
"""A mutation makes no input longer than this."""


@dataclass(frozen=True, slots=True)
class Target:
    """`run` is given an input and raises what is wrong; `words` are bytes worth inserting."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()

    def corpus(self) -> list[bytes]:
        """The seeds, and what earlier searches found to reach more code."""
        kept = sorted((CORPUS / self.name).glob("*"))
        return [*self.seeds(), *(path.read_bytes() for path in kept)]


def inputs(target: Target, count: int, seed: int = 0) -> Iterator[bytes]:
    """The corpus, then mutations of it: `count` in all, or the whole corpus if that is more."""
    corpus = target.corpus()
    yield from corpus
    random = Random(f"{target.name} {seed}")
    for _ in range(count - len(corpus)):
        yield mutated(random, corpus, target.words)


def mutated(random: Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One input of the corpus with some changes."""
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice((1, 1, 1, 2, 3, 5, 10))):
        change = random.choice(_CHANGES)
        change(random, data, random.choice(corpus) if change is _splice or not words else random.choice(words))
    return bytes(data[:GROWTH_MAX])


def _flip(random: Random, data: bytearray, _other: bytes) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, _other: bytes) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0xC1, random.randrange(256)))


def _set_number(random: Random, data: bytearray, _other: bytes) -> None:
    size = random.choice((2, 4, 8))
    number = random.choice((0, 1, 255, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 63, -1, random.randrange(1 << 16)))
    at = random.randrange(len(data) + 1)
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, random.choice(("little", "big")))


def _remove(random: Random, data: bytearray, _other: bytes) -> None:
    at = random.randrange(len(data) + 1)
    del data[at : at + random.choice((1, 2, 8, len(data)))]


def _repeat(random: Random, data: bytearray, _other: bytes) -> None:
    start, end = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    data[end:end] = data[start : min(end, start + 1024)]


def _insert(random: Random, data: bytearray, other: bytes) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = other


def _splice(random: Random, data: bytearray, other: bytes) -> None:
    at = random.randrange(len(data) + 1)
    data[at:] = other[random.randrange(len(other) + 1) :]


_CHANGES: tuple[Callable[[Random, bytearray, bytes], None], ...] = (
    _flip,
    _flip,
    _set,
    _set_number,
    _remove,
    _repeat,
    _insert,
    _splice,
)

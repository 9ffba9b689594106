"""What it costs to find the queues that are bound to a topic, among 100,000 bindings.

    python -m bench.topics [BINDINGS]

Prints microseconds per match, the median and the 99th percentile, for topics that somebody is bound to and topics that
nobody is, and for the worst that was thought of; and how long saving a state with these bindings holds the event loop.
The bindings are those of a plant with machines that report to `SITE.LINE.MACHINE.READING`: six in ten name one such
topic, the others have a `*` or a `#` in each place; ten queues in all are bound to everything of a kind. The worst are
all patterns into which a topic of as many different words as there may be can lead, shared out to all queues.
"""

import random
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice
from statistics import quantiles

from vibemq import events as e
from vibemq.declaration import QueueSettings
from vibemq.projections.bindings import Bindings
from vibemq.projections.projector import Projector
from vibemq.protocol.fields import MANY_MAX, WORDS_MAX
from vibemq.server.checkpointer import Capture

SITES, LINES, MACHINES = 50, 40, 200
READINGS = ("temperature", "humidity", "power", "status", "alarm")
QUEUES = 20_000
TOPICS = 50_000
ROUNDS = 5
WORST = tuple("abcdefghij")

KINDS = (
    (60, "{site}.{line}.{machine}.{reading}"),
    (10, "{site}.*.{machine}.{reading}"),
    (5, "*.{line}.{machine}.{reading}"),
    (5, "{site}.{line}.{machine}.*"),
    (10, "{site}.{line}.{machine}.#"),
    (5, "{site}.#.{machine}.{reading}"),
    (4, "{site}.{line}.#.{reading}"),
    (1, "#.{machine}.{reading}"),
)
"""Out of a hundred bindings so many look like that."""
BROAD = (*(f"#.{reading}" for reading in READINGS), "#", "*.*.*.alarm", "site1.#", "*.line1.#", "site1.#.alarm.#")


def named(form: str, chance: random.Random) -> str:
    """A pattern or topic of this form."""
    return form.format(
        site=f"site{chance.randrange(SITES)}",
        line=f"line{chance.randrange(LINES)}",
        machine=f"machine{chance.randrange(MACHINES)}",
        reading=chance.choice(READINGS),
    )


def realistic(count: int, chance: random.Random) -> Iterator[str]:
    """So many patterns."""
    yield from BROAD
    shares, forms = zip(*KINDS, strict=True)
    for form in chance.choices(forms, shares, k=count - len(BROAD)):
        yield named(form, chance)


def leading(place: int, left: int, many: int, *, on: bool = False) -> Iterator[tuple[str, ...]]:
    """All patterns of `left` words at most that the worst topic leads into from a place, or `on` from there."""
    if not left:
        return
    for at in range(place, WORDS_MAX if on else min(place + 1, WORDS_MAX)):
        for word in (WORST[at],) if on else (WORST[at], "*"):
            yield (word,)
            yield from ((word, *rest) for rest in leading(at + 1, left - 1, many))
    if many and not on:  # wildcards side by side are kept as one way to say it
        yield ("#",)
        yield from (("#", *rest) for rest in leading(place, left - 1, many - 1, on=True))


def worst(count: int) -> Iterator[str]:
    """So many patterns, of which the worst topic rules out none before their last word."""
    return map(".".join, islice(cycle(leading(0, WORDS_MAX, MANY_MAX)), count))


def bind(patterns: Iterable[str]) -> Bindings:
    """The queues bound to these, in turn."""
    bindings = Bindings()
    for number, pattern in enumerate(patterns):
        bindings.add(number % QUEUES + 1, pattern)
    return bindings


def state_of(patterns: Iterable[str]) -> Projector:
    """The whole state with the queues bound to these, in turn."""
    queues = (e.QueueDeclared(number, f"plant.queue.{number}", QueueSettings(), 0) for number in range(1, QUEUES + 1))
    bound = (e.Bound(number % QUEUES + 1, pattern, 0) for number, pattern in enumerate(patterns))
    state = Projector()
    for offset, event in enumerate(chain(queues, bound)):
        state.apply(offset, 0, event)
    return state


def measure(name: str, bindings: Bindings, topics: list[str]) -> None:
    """Match each topic, and print a line."""
    spent, found = list[float](), 0
    for topic in topics:
        begun = time.perf_counter()
        queues = bindings.match(topic)
        spent.append(time.perf_counter() - begun)
        found += len(queues)
    shares = quantiles(spent, n=100)
    figures = f"median {shares[49] * 1e6:9.1f} us   p99 {shares[98] * 1e6:9.1f} us"
    print(f"{name:10} {figures}   queues {found / len(topics):8.1f}")


def measure_checkpoint(state: Projector) -> None:
    """Take every part as a checkpoint does, and restore them; of the rounds the best of each part counts."""
    best, capture = dict[str, float](), Capture(state, {})
    for _ in range(ROUNDS):
        capture, begun = Capture(state, {}), time.perf_counter()
        for _ in capture.steps():
            key, ended = next(reversed(capture.changed)), time.perf_counter()
            best[key] = min(best.get(key, 1.0), ended - begun)
            begun = time.perf_counter()
    longest = max(spent for key, spent in best.items() if key.startswith("queue/"))
    print(f"{'save':10} a queue at most {longest * 1e3:.2f} ms   the names {best['topology'] * 1e3:.2f} ms", end="")
    print(f"   all {sum(best.values()) * 1e3:.0f} ms, {sum(len(data) for _, data in capture.changed.values()):,} bytes")
    saved = [(key, as_of, data) for key, (as_of, data) in capture.changed.items()]
    begun = time.perf_counter()
    Projector.restore(saved, state.next_offset)
    print(f"{'restore':10} {time.perf_counter() - begun:.2f} s")


def main(count: int) -> None:
    """Build, match, save and restore."""
    chance = random.Random(4)  # noqa: S311 - seeded, so that it repeats
    patterns = list(realistic(count, chance))
    begun = time.perf_counter()
    bindings = bind(patterns)
    print(f"{'bind':10} {(time.perf_counter() - begun) / count * 1e6:9.1f} us each")
    bound = [named(KINDS[0][1], chance) for _ in range(TOPICS)]
    measure("bound", bindings, bound)
    measure("unbound", bindings, [f"site0.{number}.unheard.of" for number in range(TOPICS)])
    measure("worst", bind(worst(count)), [".".join(WORST)] * 20)
    measure_checkpoint(state_of(patterns))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)

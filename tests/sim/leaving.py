"""Which messages a queue may lose when they are too old or too many, and where they go."""

from typing import Final

from tests.sim.book import Book
from tests.sim.contents import Entry, Group, Queue, Where
from vibemq.declaration import Overflow
from vibemq.events import DeadReason

NO_LIMIT: Final = 1 << 62
TRIMMING: Final = frozenset({Overflow.DROP_OLDEST, Overflow.DEAD_LETTER})
BY_ITSELF: Final = frozenset({DeadReason.EXPIRED, DeadReason.OVERFLOW})


def expired(queue: Queue, entry: Entry, now_us: int) -> bool:
    """Whether a message has waited for too long; a dead letter stays for as long as its queue lets it."""
    own_us = 0 if entry.dead else entry.message.ttl_us
    times = [ttl_us for ttl_us in (own_us, queue.settings.ttl_ms * 1000) if ttl_us]
    return bool(times) and entry.ready_us + min(times) <= now_us


# --- too many


def too_much(queue: Queue, group: Group) -> set[Where]:
    """What a group has too many: of the lowest priority, the oldest, and no more than needed."""
    most, most_bytes = limits(queue, group)
    over, over_bytes = group.length - most, queue.bytes_of(group) - most_bytes
    found = set()
    for where in may_go(queue, group):
        if over <= 0 and over_bytes <= 0:
            break
        found.add(where)
        over -= 1
        over_bytes -= queue.entry(where).message.size
    return found


def may_go(queue: Queue, group: Group) -> list[Where]:
    """What a group may lose, in this order; a queue that refuses what is too much loses only dead letters."""
    only_dead = queue.has_dead and queue.settings.overflow not in TRIMMING
    ready = [(lane, sequence) for lane in reversed(group.lanes()) for sequence in group.ready[lane]]
    return [where for where in ready if queue.entry(where).dead] if only_dead else ready


def limits(queue: Queue, group: Group) -> tuple[int, int]:
    """How many messages a group may keep, and bytes."""
    settings = queue.settings
    lengths = [NO_LIMIT]
    trims = settings.overflow in TRIMMING or queue.has_dead
    if trims:
        lengths.append(settings.max_length - len(queue.delayed))
    if not group.of:
        return min(lengths), settings.max_bytes - queue.delayed_bytes if trims else NO_LIMIT
    if settings.group_max_lag:
        lengths.append(settings.group_max_lag)
    if trims:  # the bytes of a group are an average: so it is known how many messages have so many
        lengths.append(
            next(length for length in range(group.length, -1, -1) if queue.bytes_with(length) <= settings.max_bytes)
        )
    return min(lengths), NO_LIMIT


# --- where to


def goes_to(queue: Queue, entry: Entry) -> str:
    """The name of the queue that a message of this one goes to when it is dead; empty: to none."""
    named = queue.settings.dead_letter_queue
    usual = "" if entry.dead or queue.name.endswith(".dlq") else f"{queue.name}.dlq"
    return named or usual if named != queue.name else ""


def goes_on(book: Book, queue: Queue, entry: Entry) -> bool:
    """Whether it goes there when it is too old or too much: not twice in a row round a circle of such queues."""
    came_by_itself = entry.dead is not None and entry.dead.reason in BY_ITSELF
    return bool(goes_to(queue, entry)) and not (came_by_itself and _comes_back(book, queue))


def _comes_back(book: Book, queue: Queue) -> bool:
    """Whether dead letters of this queue come back to it, from one such queue to the next."""
    seen = [queue]
    one = book.queue_named(queue.settings.dead_letter_queue)
    while one is not None and one not in seen:
        seen.append(one)
        one = book.queue_named(one.settings.dead_letter_queue)
    return one is queue

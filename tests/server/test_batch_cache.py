"""The cache is bounded, and never gives a wrong batch."""

from hypothesis import given
from hypothesis import strategies as st

from vibemq.batch import Batch, pack
from vibemq.server.batch_cache import OBJECTS_BYTES, BatchCache
from vibemq.server.effects import StoredBatch

BYTES_MAX = 5 * OBJECTS_BYTES
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "reload", "find", "discard", "discard queue"]),
        st.integers(1, 3),
        st.integers(0, 40),
        st.integers(1, 5),
    ),
    max_size=60,
)


def made(queue: int, sequence: int, count: int) -> StoredBatch:
    """A batch whose record offset tells which one it is."""
    batch = Batch(b"".join(pack([bytes(4)] * count)))
    return StoredBatch(queue, 0, sequence, 1000 * queue + sequence, 0, 1000 * queue + sequence, 0, 0, batch)


@given(STEPS)
def test_what_is_found_is_right_and_the_bytes_are_bounded(steps: list[tuple[str, int, int, int]]) -> None:
    cache = BatchCache(BYTES_MAX)
    published: dict[int, list[StoredBatch]] = {1: [], 2: [], 3: []}
    for action, queue, number, count in steps:
        known = published[queue]
        if action == "publish":
            known.append(made(queue, known[-1].end if known else 1, count))
            cache.add(known[-1])
            assert cache.find(queue, 0, known[-1].sequence) is known[-1], "the latest is always there"
        elif action == "reload" and known:
            again = known[number % len(known)]
            cache.add(made(queue, again.sequence, again.batch.count))
        elif action == "discard" and known:
            cache.discard(queue, known[number % len(known)].origin)
        elif action == "discard queue":
            cache.discard_queue(queue)
            assert all(cache.find(queue, 0, one.sequence) is None for one in known)
        held = {}
        for of_queue, batches in published.items():
            for stored in batches:
                for sequence in range(stored.sequence, stored.end):
                    found = cache.find(of_queue, 0, sequence)
                    if found is not None:
                        assert (found.queue, found.origin.offset, found.sequence) == (
                            of_queue,
                            stored.origin.offset,
                            stored.sequence,
                        )
                        held[found] = len(found.batch.data) + OBJECTS_BYTES
            assert cache.find(of_queue, 0, batches[-1].end if batches else 1) is None
            assert cache.find(of_queue, 1, 1) is None
        assert sum(held.values()) == cache.bytes
        assert cache.bytes == sum(map(cache.bytes_of, published))
        assert cache.bytes <= BYTES_MAX or len(held) == 1


def test_a_batch_above_the_bound_is_kept_until_the_next_comes() -> None:
    cache = BatchCache(10)
    large, small = made(1, 1, 5), made(1, 6, 1)
    cache.add(large)
    assert cache.find(1, 0, 5) is large
    cache.add(small)
    assert cache.find(1, 0, 5) is None
    assert cache.find(1, 0, 6) is small

"""What is remembered of producers follows what they have no answer for, not how long they have been publishing."""

from vibemq import events as e
from vibemq.projections.producers import BATCHES_REMEMBERED, Producers


def published(sequence: int, count: int, oldest: int) -> e.Published:
    return e.Published(1, 0, 1, count, 0, 7, sequence, 1, oldest)


def test_only_batches_without_an_answer_are_remembered() -> None:
    producers = Producers()
    for number in range(5000):
        producers.published(number, published(1 + 10 * number, 10, max(1, 1 + 10 * (number - 3))))
    producer = producers.known[7]
    assert [batch.first for batch in producer.batches] == [49961, 49971, 49981, 49991]
    assert producer.remembered_from == 49961
    assert producer.find(49971) is not None
    assert producer.find(49951) is None


def test_a_producer_that_does_not_say_is_remembered_for_a_fixed_number() -> None:
    producers = Producers()
    for number in range(BATCHES_REMEMBERED + 5):
        producers.published(number, published(1 + number, 1, 0))
    assert len(producers.known[7].batches) == BATCHES_REMEMBERED
    assert producers.known[7].remembered_from == 6


def test_a_batch_that_was_refused_and_comes_again_behind_later_ones_is_remembered() -> None:
    producers = Producers()
    for offset, sequence in enumerate((1, 3, 2)):
        producers.published(offset, published(sequence, 1, 1))
    assert producers.known[7].find(2) is not None
    assert producers.known[7].highest == 3
    restored = Producers.restore([list(entry) for entry in producers.snapshot()], 3)
    assert restored.snapshot() == producers.snapshot()

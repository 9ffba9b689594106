"""In which order effects leave."""

from itertools import islice

from tests.server.rig import batch_of
from vibemq.server.effects import Answer, Delivery, StoredBatch
from vibemq.server.outbox import DELIVERY_BYTES, Outbox


def answer(after: int, number: int) -> Answer:
    return Answer(after, 1, number, None)


def numbers(effects: list[object]) -> list[int]:
    return [effect.request for effect in effects if isinstance(effect, Answer)]


def test_the_lowest_leaves_first_and_of_equal_ones_the_earlier() -> None:
    outbox = Outbox()
    assert numbers(list(outbox.sift([answer(5, 1), answer(3, 2), answer(0, 3), answer(5, 4)], 2))) == [3]
    assert (len(outbox), outbox.has_free(2), outbox.has_free(3)) == (3, False, True)
    assert numbers(list(outbox.release(5))) == [2, 1, 4]


def test_what_is_free_already_leaves_before_what_comes_later_whatever_it_waited_for() -> None:
    outbox = Outbox()
    assert list(outbox.sift([answer(9, number) for number in range(4)], 1)) == []
    assert numbers(list(islice(outbox.release(9), 2))) == [0, 1]
    assert list(outbox.sift([answer(1, 7), answer(10, 8)], 9)) == []
    assert numbers(list(outbox.release(9))) == [2, 3, 7]
    assert numbers(list(outbox.release(10))) == [8]


def test_deliveries_are_weighed_while_they_wait_for_the_disk() -> None:
    outbox, stored = Outbox(), StoredBatch(1, 0, 1, 0, 0, 0, 0, 0, batch_of([bytes(100)] * 4))
    two = [Delivery(after, 1, 1, 1, stored, 1, 2, 1, redelivered=False) for after in (3, 5, 1)]
    assert [effect.after for effect in outbox.sift([*two, answer(7, 1)], 2)] == [1]
    assert outbox.waiting_bytes == 2 * (DELIVERY_BYTES + 200)
    assert outbox.has_free(4)
    assert outbox.waiting_bytes == DELIVERY_BYTES + 200
    assert len(list(outbox.release(9))) == 3
    assert outbox.waiting_bytes == 0

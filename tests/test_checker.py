"""The checker itself: histories that are well, and histories in which it must find the fault, and only that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker import Copy, Delivery, History, Name, Place, Together, check

COUNT = 10


def name(number: int, writer: str = "w") -> Name:
    return Name(writer, number)


def delivery(number: int, since: float = 0.0, *, redelivered: bool = False, at: float | None = None) -> Delivery:
    return Delivery(name(number), since, since + 1 if at is None else at, redelivered, f"id-{number}")


def good() -> History:
    """Ten messages, each confirmed, delivered at its number and acked two later."""
    history = History()
    for number in range(COUNT):
        history.attempted.add(name(number))
        history.confirmed.add(name(number))
        history.delivered.append(delivery(number, float(number)))
        history.acked_at(name(number), number + 2.0)
    return history


def without(history: History, *numbers: int) -> History:
    """Nobody ever got these."""
    gone = {name(number) for number in numbers}
    history.delivered = [one for one in history.delivered if one.name not in gone]
    history.asked -= {Copy(one) for one in gone}
    for one in gone:
        history.acked.pop(Copy(one), None)
    return history


def test_a_good_history_has_no_faults() -> None:
    verdict = check(good())
    assert verdict.faults() == []
    assert (verdict.confirmed, verdict.delivered, verdict.acked, verdict.duplicates) == (COUNT, COUNT, COUNT, 0)
    assert check(History()).faults() == []


@pytest.mark.parametrize(
    ("numbers", "places"),
    [
        ([0], "p"),
        ([0, 1, 2], "ppp"),
        ([9], "t"),
        ([7, 8, 9], "ttt"),
        ([4], "m"),
        ([0, 1, 5, 9], "ppmt"),
        (list(range(COUNT)), "p" * COUNT),
    ],
)
def test_a_loss_is_found_and_classed(numbers: list[int], places: str) -> None:
    verdict = check(without(good(), *numbers))
    assert [loss.name.number for loss in verdict.lost] == numbers
    assert "".join(loss.place[0] for loss in verdict.lost) == places
    assert len(verdict.faults()) == len(set(places))


def test_each_writer_has_a_tail_of_its_own() -> None:
    history = without(good(), 9)
    history.attempted.add(name(1, "x"))
    history.confirmed.add(name(1, "x"))
    assert [(loss.name, loss.place) for loss in check(history).lost] == [
        (name(9), Place.TAIL),
        (name(1, "x"), Place.PREFIX),
    ]


def test_what_was_delivered_and_never_acked_and_is_gone_is_lost() -> None:
    history = good()
    history.asked.discard(Copy(name(5)))
    del history.acked[Copy(name(5))]
    (loss,) = check(history).lost
    assert (loss.name, loss.place, loss.delivered) == (name(5), Place.MIDDLE, True)


def test_an_ack_that_was_asked_for_and_not_confirmed_may_have_been_done() -> None:
    history = good()
    del history.acked[Copy(name(5))]
    assert check(history).faults() == []


def test_what_nobody_sent_is_unexpected() -> None:
    history = good()
    history.delivered.append(delivery(77, 20.0))
    verdict = check(history)
    assert [one.name for one in verdict.unexpected] == [name(77)]
    assert len(verdict.faults()) == 1


def test_a_delivery_after_a_confirmed_ack_is_found() -> None:
    history = good()
    history.delivered.append(delivery(3, 5.5, redelivered=True))
    assert [one.since for one in check(history).risen] == [5.5]
    history.delivered[-1] = delivery(3, 4.5, redelivered=True)  # it may have been on its way when the ack came
    assert check(history).faults() == []
    assert check(history).duplicates == 1


def test_a_second_delivery_without_the_flag_is_found() -> None:
    history = good()
    del history.acked[Copy(name(3))]
    history.delivered.append(delivery(3, 20.0, redelivered=True))
    assert check(history).faults() == []
    history.delivered[-1] = delivery(3, 20.0)
    assert [one.since for one in check(history).unflagged] == [20.0]
    history.delivered[3] = delivery(3, 3.0, redelivered=True)  # the second one is still not the first
    assert [one.since for one in check(history).unflagged] == [20.0]
    history.delivered[3] = delivery(3, 3.0, redelivered=True, at=21.0)  # unless it may have been
    assert check(history).faults() == []


def test_one_publish_that_became_two_messages_is_found() -> None:
    history = good()
    del history.acked[Copy(name(3))]
    history.delivered.append(delivery(3, 20.0, redelivered=True)._replace(id="other"))
    assert check(history).stored_twice == [name(3)]


def test_what_was_not_confirmed_may_come_or_not() -> None:
    history = without(good(), 9)
    history.confirmed -= {name(8), name(9)}
    verdict = check(history)
    assert verdict.faults() == []
    assert (verdict.recovered, verdict.unknown) == ({name(8)}, {name(9)})
    assert "1 recovered, 1 unknown" in str(verdict)


def test_what_was_thrown_away_on_purpose_is_not_lost_and_parts_nothing() -> None:
    history = without(good(), 3, 4, 5)
    history.excused[Copy(name(4))] = "expired"
    assert [loss.name.number for loss in check(history).lost] == [3, 5]
    history.excused |= dict.fromkeys((Copy(name(3)), Copy(name(5))), "purged")
    assert check(history).faults() == []
    assert "1 expired, 2 purged" in str(check(history))
    history = without(good(), 0, 1, 2)
    history.excused[Copy(name(1))] = "expired"
    assert [loss.place for loss in check(history).lost] == [Place.PREFIX, Place.PREFIX]


def test_a_message_from_a_queue_that_it_never_came_to_is_found() -> None:
    history = good()
    history.queues = {name: {"q", "dead"} for name in history.attempted}
    history.delivered = [one._replace(queue="q") for one in history.delivered]
    assert check(history).faults() == []
    history.delivered[3] = history.delivered[3]._replace(queue="dead")
    assert check(history).faults() == []
    history.delivered[4] = history.delivered[4]._replace(queue="other")
    assert [one.name for one in check(history).astray] == [name(4)]
    assert len(check(history).faults()) == 1


def test_a_first_delivery_as_a_dead_letter_needs_no_flag_and_a_second_does() -> None:
    history = good()
    del history.acked[Copy(name(3))]
    history.delivered.append(delivery(3, 20.0)._replace(queue="dead"))
    assert check(history).faults() == []
    assert check(history).duplicates == 0
    history.delivered.append(delivery(3, 30.0)._replace(queue="dead"))
    assert [one.since for one in check(history).unflagged] == [30.0]


def test_a_message_that_comes_from_a_queue_that_is_gone_is_found() -> None:
    history = good()
    history.gone[""] = 9.5
    assert check(history).faults() == []
    history.gone[""] = 8.5
    assert [one.name for one in check(history).returned] == [name(9)]


def test_a_message_that_was_said_not_to_be_stored_is_found() -> None:
    history = good()
    history.denied.add(name(3))
    assert [one.name for one in check(history).impossible] == [name(3)]
    assert len(check(history).faults()) == 1
    assert check(without(history, 3)).lost[0].name == name(3), "and confirmed all the same"


def test_a_transaction_of_which_a_part_is_there_is_found() -> None:
    history = without(good(), 4)
    history.confirmed -= {name(3), name(4), name(5)}
    history.together += [Together((name(3), name(4), name(5))), Together((name(0), name(1)))]
    assert check(history).torn == [Together((name(3), name(4), name(5)))]
    history.left_out.add(name(4))
    assert check(history).torn == []
    history = without(good(), 3, 4, 5)
    history.confirmed -= {name(3), name(4), name(5)}
    history.together.append(Together((name(3), name(4), name(5))))
    assert check(history).torn == []
    history.stored.add(name(5))
    assert len(check(history).torn) == 1


def test_a_delivery_of_what_was_taken_back_is_found_where_it_was_taken_back() -> None:
    history = History(attempted={name(1)})
    history.taken_back[name(1), "q"] = 5.0
    for of in ("q", "q/g@7", "other", "other>q/g@7"):
        history.delivered.append(delivery(1, 6.0)._replace(of=of, place=of))
    assert [one.of for one in check(history).recalled] == ["q", "q/g@7"]
    history.taken_back[name(1), "q"] = 7.0
    assert check(history).recalled == []


def groups() -> History:
    """Ten messages, each confirmed, and delivered to and acked by two groups."""
    history = History(owed=set())
    assert history.owed is not None
    for number in range(COUNT):
        history.attempted.add(name(number))
        history.confirmed.add(name(number))
        for group in ("a", "b"):
            history.owed.add(Copy(name(number), group))
            history.delivered.append(delivery(number, number)._replace(of=group, place=f"{group}/{number}"))
            history.acked_at(name(number), number + 2.0, group)
    return history


def test_every_group_must_get_every_message() -> None:
    history = groups()
    assert check(history).faults() == []
    assert check(history).duplicates == 0
    history.delivered = [one for one in history.delivered if one.copy != Copy(name(9), "b")]
    (loss,) = check(history).lost
    assert (loss.name, loss.of, loss.place) == (name(9), "b", Place.TAIL)
    history.excused[Copy(name(9), "a")] = "expired"
    assert len(check(history).lost) == 1, "another group's reasons excuse nothing"
    history.excused[Copy(name(9), "b")] = "expired"
    assert check(history).faults() == []


def test_what_one_group_acked_may_go_to_another() -> None:
    history = groups()
    history.delivered.append(delivery(3, 20.0)._replace(of="c", place="c/3"))
    assert check(history).faults() == []
    history.delivered.append(delivery(3, 20.0, redelivered=True)._replace(of="a", place="a/3"))
    assert [one.of for one in check(history).risen] == ["a"]


def test_a_copy_that_is_new_in_its_old_place_is_flagged_and_has_risen_from_nothing() -> None:
    """As after a group was sent back."""
    history = groups()
    again = delivery(3, 20.0)._replace(of="a, sent back", place="a/3")
    history.delivered.append(again._replace(redelivered=True))
    assert check(history).faults() == []
    history.delivered[-1] = again
    assert [one.of for one in check(history).unflagged] == ["a, sent back"]


def test_first_deliveries_of_a_row_come_in_order() -> None:
    history = good()
    history.delivered = [one._replace(row="r", number=one.name.number) for one in history.delivered]
    assert check(history).faults() == []
    history.delivered[3], history.delivered[4] = history.delivered[4], history.delivered[3]
    assert [one.name for one in check(history).overtaken] == [name(3)]
    history.delivered[4] = history.delivered[4]._replace(redelivered=True)
    assert check(history).faults() == []
    history.delivered[4] = history.delivered[4]._replace(redelivered=False, row="another")
    assert check(history).faults() == []


def test_a_message_that_was_confirmed_as_another_is_found() -> None:
    history = good()
    history.ids = {name(3): "id-3", name(4): "id-5"}
    assert check(history).stored_twice == [name(4)]


@given(confirmed=st.sets(st.integers(0, 30)), attempted=st.sets(st.integers(0, 30)), got=st.lists(st.integers(0, 30)))
def test_every_message_is_in_one_class(confirmed: set[int], attempted: set[int], got: list[int]) -> None:
    """Whatever the history: attempted messages are confirmed, recovered or unknown; the confirmed are seen or lost."""
    attempted |= confirmed
    history = History({name(n) for n in attempted}, {name(n) for n in confirmed})
    for number in got:
        history.delivered.append(delivery(number, redelivered=number in got))
        history.asked_for(name(number))
    verdict = check(history)
    assert {loss.name.number for loss in verdict.lost} == confirmed - set(got)
    assert {one.name.number for one in verdict.unexpected} == set(got) - attempted
    assert {one.number for one in verdict.recovered} == (attempted & set(got)) - confirmed
    assert {one.number for one in verdict.unknown} == attempted - confirmed - set(got)
    assert verdict.duplicates == len(got) - len(set(got))

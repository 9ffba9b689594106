"""What waits for clients that do not read is bounded, and who began it first goes first."""

from hypothesis import given
from hypothesis import strategies as st

from vibemq.server.unread import Unread


def test_who_has_not_read_for_the_longest_is_cut_off() -> None:
    unread = Unread[str](100)
    assert unread.add("first", 40) == []
    assert unread.add("second", 40) == []
    assert unread.add("first", 20) == []
    assert unread.add("third", 30) == ["first"]
    assert unread.add("third", 80) == ["second", "third"]
    assert unread.add("first", 100) == []
    unread.forget("first")
    unread.forget("nobody")
    assert unread.add("second", 100) == []
    assert unread.add("alone", 101) == ["second", "alone"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 60)), max_size=60))
def test_no_more_waits_than_may(steps: list[tuple[int, int]]) -> None:
    unread, waiting = Unread[int](100), dict[int, int]()
    for client, size in steps:
        if size < 0:
            unread.forget(client)
            waiting.pop(client, None)
            continue
        waiting[client] = waiting.get(client, 0) + size
        for cut in unread.add(client, size):
            assert cut == next(iter(waiting))
            assert sum(waiting.values()) > 100
            del waiting[cut]
        assert sum(waiting.values()) <= 100

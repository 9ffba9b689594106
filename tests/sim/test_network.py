"""Pipes deliver in order, tell no time that is too late, and end where they were cut."""

from tests.sim.chance import Chance
from tests.sim.network import Pipe, Wire


def test_bytes_come_in_order_and_no_younger_than_they_are() -> None:
    pipe = Pipe()
    pipe.write([b"abc", b"def"], 10)
    pipe.write([b"ghi"], 20)
    assert pipe.read(4) == (b"abcd", 10)
    assert pipe.read(3) == (b"efg", 10)
    assert pipe.read(100) == (b"hi", 20)
    assert not pipe


def test_what_is_cut_off_does_not_arrive_and_nothing_follows() -> None:
    pipe = Pipe()
    pipe.write([b"abc"], 10)
    pipe.end(2)
    pipe.write([b"def"], 20)
    assert pipe.read(100) == (b"ab", 10)
    assert (len(pipe), pipe.ended) == (0, True)


def test_either_way_of_a_wire_keeps_what_chance_leaves() -> None:
    left = set()
    for seed in range(50):
        wire = Wire(None)  # type: ignore[arg-type]  # nobody is at its end
        wire.up.write([b"abc"], 1)
        wire.down.write([b"de"], 1)
        wire.cut(Chance(seed))
        left.add((len(wire.up), len(wire.down)))
    assert left == {(up, down) for up in range(4) for down in range(3)}


def test_chance_is_the_same_for_the_same_seed_and_even() -> None:
    chance = Chance(7)
    first = [chance.random() for _ in range(5)]
    chance.seed(7)
    assert [chance.random() for _ in range(5)] == first
    drawn = [Chance(seed).randrange(10) for seed in range(10_000)]  # the first draw of each step counts most
    assert all(900 < drawn.count(number) < 1100 for number in range(10))
    bits = [chance.getrandbits(64) for _ in range(100)]
    assert len(set(bits)) == 100
    assert max(bits).bit_length() == 64

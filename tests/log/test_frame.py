"""Records as bytes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.log.building import LOG_ID, erased, event
from vibemq import events
from vibemq.log import frame
from vibemq.log.frame import HEADER_BYTES, MAGIC, Damage, Record

U64 = st.integers(0, (1 << 64) - 1)


def packed(offset: int, payload: bytes, *, time_us: int = 5, synced: int = 3, link: int = 9) -> tuple[bytes, int]:
    checksum = frame.payload_checksum([payload], LOG_ID)
    one = event(1)
    head, identity = frame.pack(
        LOG_ID, offset, time_us, synced, link, one.TAG, one.VERSION, events.encode(one), len(payload), checksum
    )
    return head + payload, identity


def parsed(data: bytes, log_id: int = LOG_ID) -> Record:
    record = frame.parse(memoryview(data), 0, log_id, 0, 64)
    assert isinstance(record, Record)
    return record


@given(U64, U64, U64, U64, st.binary(max_size=300))
def test_a_record_comes_back_as_it_went(offset: int, time_us: int, synced: int, link: int, payload: bytes) -> None:
    data, identity = packed(offset, payload, time_us=time_us, synced=synced, link=link)
    record = parsed(data)
    assert (record.offset, record.time_us, record.synced, record.link) == (offset, time_us, synced, link)
    assert (record.identity, record.event, bytes(record.payload)) == (identity, event(1), payload)
    assert (record.end, record.payload_bytes, record.erased) == (64 + len(data), len(payload), False)


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_checksum_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    assert frame.payload_checksum(parts, LOG_ID) == frame.payload_checksum([b"".join(parts)], LOG_ID)


@given(st.data())
def test_every_flipped_bit_is_seen(data: st.DataObject) -> None:
    good, _ = packed(1, b"some payload")
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damage):
        parsed(bytes(bad))


def test_a_short_block_tells_how_much_is_needed() -> None:
    good, _ = packed(1, b"some payload")
    for length in range(len(good)):
        needed = frame.parse(memoryview(good[:length]), 0, LOG_ID, 0, 0)
        assert needed == (HEADER_BYTES if length < HEADER_BYTES else len(good))
        behind = frame.parse(memoryview(good + good[:length]), len(good), LOG_ID, 0, 0)
        assert behind == needed


def test_another_log_id_makes_nothing_valid() -> None:
    good, _ = packed(1, b"some payload")
    with pytest.raises(Damage):
        parsed(good, LOG_ID + 1)


def test_headers_are_found_behind_damage_and_never_in_a_payload_of_another_log() -> None:
    first, _ = packed(1, b"x" * 40)
    fake = bytearray(packed(2, MAGIC * 9)[0])
    fake[0] ^= 1
    third, _ = packed(3, b"")
    block = b"junk" + MAGIC + first[5:] + bytes(fake) + third
    found = list(frame.find_headers(block, LOG_ID, 2, 1000))
    assert [record.place for record in found] == [(3, 2, 1000 + len(block) - len(third))]


def test_an_erased_record_keeps_its_identity_and_the_hash_of_its_payload() -> None:
    data, identity = packed(1, b"secret")
    record = parsed(erased(data, b"secret"))
    assert record.erased
    assert (record.identity, record.payload_bytes) == (identity, 6)
    assert bytes(record.payload[:32]) == hashlib.sha256(b"secret").digest()


def test_a_flipped_bit_in_an_erased_record_is_seen() -> None:
    good = erased(packed(1, b"secret")[0], b"secret")
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damage):
            parsed(bytes(bad))

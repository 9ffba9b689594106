"""Batches: what is packed comes out, cuts are batches of the same messages, and wrong columns are refused."""

from collections.abc import Sequence
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibemq import batch as batches
from vibemq.batch import (
    HEADER_BYTES_MAX,
    KEYS,
    MESSAGES_MAX,
    TTL,
    TTL_MS_MAX,
    Batch,
    Headers,
    pack,
    pack_headers,
    unpack_headers,
)
from vibemq.errors import InvalidRequest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=10)
)
headers = st.none() | st.dictionaries(texts, values, max_size=3)
keys = st.just(0) | st.integers(1, (1 << 64) - 1)
messages = st.lists(st.tuples(st.binary(max_size=30), headers, keys), min_size=1, max_size=8)
ttls = st.just(0) | st.integers(1, TTL_MS_MAX)

Message: TypeAlias = tuple[bytes, Headers | None, int]


def packed(found: Sequence[Message], priority: int = 4, ttl_ms: int = 0) -> Batch:
    bodies, headers, keys = zip(*found, strict=True)
    return Batch(b"".join(pack(bodies, headers, priority, ttl_ms, keys)))


def told(batch: Batch) -> list[tuple[bytes, Headers, int]]:
    keys = batch.keys or [0] * batch.count
    return list(zip(batch.bodies(), batch.headers(), keys, strict=True))


@given(messages, st.integers(0, 9), ttls)
def test_what_is_packed_comes_out(found: list[Message], priority: int, ttl_ms: int) -> None:
    batch = packed(found, priority, ttl_ms)
    assert told(batch) == [(body, one or {}, key) for body, one, key in found]
    assert (batch.count, batch.priority, batch.ttl_ms) == (len(found), priority, ttl_ms)
    assert batch.record_bytes == sum(batch.lengths) == len(batch.data) - batch.records_at


@given(messages, ttls)
def test_what_no_message_has_takes_no_bytes(found: list[Message], ttl_ms: int) -> None:
    batch = packed(found, ttl_ms=ttl_ms)
    column_bytes = 4 + 4 * any(one for _, one, _ in found) + 8 * any(key for _, _, key in found)
    assert batch.records_at == 8 + 8 * bool(ttl_ms) + column_bytes * len(found)
    assert (batch.keys is None) == (not any(key for _, _, key in found))


@given(messages, ttls, st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), max_size=6))
def test_any_cut_is_a_batch_of_the_same_messages(
    found: list[Message], ttl_ms: int, places: list[tuple[int, int]]
) -> None:
    batch = packed(found, ttl_ms=ttl_ms)
    for first, count in places:
        if first + count <= len(found):
            part = Batch(b"".join(batch.cut(first, count)))
            assert told(part) == told(batch)[first : first + count]
            assert (part.flags, part.priority, part.ttl_ms) == (batch.flags, batch.priority, ttl_ms)
        else:
            with pytest.raises(ValueError, match="not in a batch"):
                batch.cut(first, count)


def test_a_cut_that_counts_from_the_wrong_place_would_be_noticed() -> None:
    batch = packed([(b"a", None, 0), (b"bb", None, 0), (b"ccc", None, 0)])
    assert Batch(b"".join(batch.cut(0, 1))).bodies() == [b"a"]
    batch._cut_at += 1  # planted: the end of the last cut is off by one
    assert Batch(b"".join(batch.cut(1, 1))).bodies() != [b"bb"]


def test_a_cut_that_takes_the_keys_of_others_would_be_noticed() -> None:
    batch = packed([(b"a", None, 1), (b"b", None, 2), (b"c", None, 3)])
    assert list(Batch(b"".join(batch.cut(1, 1))).keys or ()) == [2]
    batch.records_at -= 8  # planted: the column is looked for one key too early
    assert list(Batch(b"".join(batch.cut(1, 1))).keys or ()) != [2]


def test_a_whole_cut_is_the_batch_as_it_came() -> None:
    data = b"".join(pack([b"a", b"b"]))
    (part,) = Batch(data).cut(0, 2)
    assert isinstance(part, memoryview)
    assert part.obj is data


def test_small_cuts_in_a_row_add_up_each_length_once() -> None:
    batch = Batch(b"".join(pack([b"x"] * 1000)))
    looked_at = 0

    class Counting:
        def __getitem__(self, at: slice) -> memoryview:
            nonlocal looked_at
            part = real[at]
            looked_at += len(part)
            return part

    real, batch.lengths = batch.lengths, Counting()  # type: ignore[assignment]
    for first in range(1000):
        batch.cut(first, 1)
    assert looked_at == 1000


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_a_batch_or_refused(data: bytes) -> None:
    try:
        batch = Batch(data)
    except InvalidRequest:
        return
    assert len(batch.bodies()) == batch.count


@given(messages, ttls, st.data())
def test_changed_bytes_are_a_batch_or_refused(found: list[Message], ttl_ms: int, data: st.DataObject) -> None:
    hurt = bytearray(packed(found, ttl_ms=ttl_ms).data)
    hurt[data.draw(st.integers(0, len(hurt) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch = Batch(hurt)
        assert len(batch.bodies()) == batch.count == len(list(batch.packed_headers()))
        assert batch.keys is None or len(batch.keys) == batch.count
        assert 0 <= batch.ttl_ms <= TTL_MS_MAX
        list(batch.headers())
    except InvalidRequest:
        return


@given(messages, ttls, st.data())
def test_a_batch_that_is_cut_short_is_refused(found: list[Message], ttl_ms: int, data: st.DataObject) -> None:
    whole = bytes(packed(found, ttl_ms=ttl_ms).data)
    with pytest.raises(InvalidRequest):
        Batch(whole[: data.draw(st.integers(0, len(whole) - 1))])


def head(count: int, flags: int = 0, priority: int = 4, zero: int = 0) -> bytes:
    return batches.HEAD.pack(count, flags, priority, zero)


def timed(ttl_ms: int) -> bytes:
    return head(1, flags=TTL) + ttl_ms.to_bytes(8, "little") + bytes(4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no room"),
        (head(1)[:7], "no room"),
        (head(0), "1 to"),
        (head(1), "columns of 1"),
        (head(MESSAGES_MAX), "columns of"),
        (head(MESSAGES_MAX + 1) + bytes(4 * MESSAGES_MAX + 4), "1 to"),
        (head((1 << 32) - 1), "1 to"),
        (head(1, flags=8) + bytes(4), "flags"),
        (head(1, flags=KEYS | 0x8000) + bytes(12), "flags"),
        (head(1, zero=1) + bytes(4), "flags"),
        (head(1, priority=10) + bytes(4), "priority"),
        (head(1) + b"\x01\x00\x00\x00", "add up"),
        (head(1) + b"\xff\xff\xff\xff", "add up"),
        (head(1) + bytes(4) + b"x", "add up"),
        (head(2) + b"\xff\xff\xff\xff\x02\x00\x00\x00x", "add up"),
        (head(1, flags=1) + bytes(4), "columns of 1"),
        (head(1, flags=1) + b"\x01\x00\x00\x00\x02\x00\x00\x00x", "longer than the message"),
        (head(1, flags=TTL), "no room for its time to live"),
        (timed(1)[:15], "no room for its time to live"),
        (timed(1)[:19], "columns of 1"),
        (timed(0), "time to live"),
        (timed(TTL_MS_MAX + 1), "time to live"),
        (timed((1 << 64) - 1), "time to live"),
        (head(1, flags=KEYS) + bytes(4), "columns of 1"),
        (head(1, flags=KEYS) + bytes(11), "columns of 1"),
        (head(2, flags=KEYS) + bytes(8) + bytes(15), "columns of 2"),
        (head(1, flags=KEYS) + bytes(13), "add up"),
        (head(MESSAGES_MAX, flags=7) + b"\x01" + bytes(7 + 16 * MESSAGES_MAX - 1), "columns of"),
    ],
)
def test_columns_that_do_not_add_up_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        Batch(data)


def test_headers_have_a_limit() -> None:
    size = (HEADER_BYTES_MAX + 1).to_bytes(4, "little")
    with pytest.raises(InvalidRequest, match="bytes of headers"):
        Batch(head(1, flags=1) + size + size + bytes(HEADER_BYTES_MAX + 1))
    with pytest.raises(InvalidRequest, match="bytes of headers"):
        pack_headers({"k": "x" * HEADER_BYTES_MAX})


@pytest.mark.parametrize(
    "wrong", [{"k": []}, {"k": {}}, {1: "v"}, {"k": 1 << 64}, {"k": "\ud800"}, {"\ud800": 1}, {"k": object()}]
)
def test_headers_that_no_reader_could_read_are_refused_when_packed(wrong: Headers) -> None:
    with pytest.raises(InvalidRequest):
        pack([b""], [wrong])


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x01",
        b"\x81\xa1k\x90",
        b"\x81\xa1\xff\x01",
        b"\x91" * 5000,
        b"\x81\x01\x01",
        b"\x80\x00",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_headers_that_are_none_are_refused_when_read(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack_headers(data)


def test_a_batch_holds_one_message_at_least() -> None:
    for bodies in ([], [b""] * (MESSAGES_MAX + 1)):
        with pytest.raises(InvalidRequest, match="1 to"):
            pack(bodies)
    for priority in (-1, 10, 300):
        with pytest.raises(InvalidRequest, match="priority"):
            pack([b""], None, priority)


def test_a_time_to_live_has_limits() -> None:
    assert Batch(b"".join(pack([b""], ttl_ms=TTL_MS_MAX))).ttl_ms == TTL_MS_MAX
    for ttl_ms in (-1, TTL_MS_MAX + 1, 1 << 64):
        with pytest.raises(InvalidRequest, match="may wait"):
            pack([b""], ttl_ms=ttl_ms)


def test_every_message_has_a_key_or_none_has() -> None:
    with pytest.raises(ValueError, match="one for each"):
        pack([b"a", b"b"], keys=[1])


def test_the_bytes_of_a_batch() -> None:
    plain = b"".join(pack([b"one", b"", b"three"], None, 9))
    assert plain.hex(" ") == ("03 00 00 00 00 00 09 00 03 00 00 00 00 00 00 00 05 00 00 00 6f 6e 65 74 68 72 65 65")
    with_headers = b"".join(pack([b"x", b"y"], [{"k": 1}, None]))
    assert with_headers.hex(" ") == (
        "02 00 00 00 01 00 04 00 05 00 00 00 01 00 00 00 04 00 00 00 00 00 00 00 81 a1 6b 01 78 79"
    )
    with_all = b"".join(pack([b"x", b"y"], [{"k": 1}, None], 4, 1000, [0x0123456789ABCDEF, 0]))
    assert with_all.hex(" ") == (
        "02 00 00 00 07 00 04 00 e8 03 00 00 00 00 00 00 05 00 00 00 01 00 00 00 04 00 00 00 00 00 00 00 "
        "ef cd ab 89 67 45 23 01 00 00 00 00 00 00 00 00 81 a1 6b 01 78 79"
    )

"""The hashes of keys and dedup ids are published ones, so that a client in another language computes the same."""

import hashlib

import pytest

from vibemq.errors import InvalidRequest
from vibemq.protocol import keys
from vibemq.protocol.keys import dedup_hash, key_hash


@pytest.mark.parametrize(
    ("key", "expected"),
    [("", 0x2D06800538D394C2), ("customer-7", 0xFBEA082C2997EE28), ("Zürich", 0x0BA44FCC12CCA74E)],
)
def test_the_hash_of_a_key_is_xxh3(key: str, expected: int) -> None:
    assert key_hash(key) == expected


def test_no_key_has_the_hash_that_says_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda _: 0)
    assert key_hash("one of the few that hash to nothing") != 0


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        key_hash("\ud800")


def test_the_hash_of_a_dedup_id_is_blake2b_of_its_utf8() -> None:
    assert dedup_hash("").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert dedup_hash("abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    assert dedup_hash("zwölf") == hashlib.blake2b("zwölf".encode(), digest_size=16).digest()


def test_a_dedup_id_never_has_the_hash_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def __init__(self, *_: object, **__: object) -> None: ...

        def digest(self) -> bytes:
            return bytes(16)

    monkeypatch.setattr(keys, "blake2b", Zeros)
    assert dedup_hash("x") == b"\x01" + bytes(15)


def test_a_dedup_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        dedup_hash("\ud800")

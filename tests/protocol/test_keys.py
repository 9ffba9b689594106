"""The hash of a key is the published one, so that a client in another language computes the same."""

import pytest

from vibemq.errors import InvalidRequest
from vibemq.protocol.keys import key_hash


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

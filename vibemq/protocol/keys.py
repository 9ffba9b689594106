"""The hashes of what clients name messages by: what travels, and what the broker compares.

A message's key, for a queue with `order_by_key`, becomes XXH3 with 64 bits (https://github.com/Cyan4973/xxHash) of its
UTF-8. Two keys of one hash are one key to the broker: their messages wait for each other, which costs time and breaks
no promise. Of two dedup ids with one hash a message would be lost, so theirs is BLAKE2b with 128 bits (RFC 7693).
"""

from hashlib import blake2b

import xxhash

from vibemq.errors import InvalidRequest
from vibemq.protocol.fields import HASH_BYTES


def key_hash(key: str) -> int:
    """The hash of `key`, never 0, which says that a message has none.

    Raises:
        InvalidRequest: unpaired surrogates, which are no UTF-8.
    """
    try:
        return xxhash.xxh3_64_intdigest(key.encode()) or 1
    except UnicodeEncodeError:
        raise InvalidRequest(f"a message's key has unpaired surrogates, which are no UTF-8: {key[:40]!r}") from None


def dedup_hash(dedup_id: str) -> bytes:
    """The hash of `dedup_id`, HASH_BYTES long and never all zeros, which say that a message has none.

    Raises:
        InvalidRequest: unpaired surrogates, which are no UTF-8.
    """
    try:
        found = blake2b(dedup_id.encode(), digest_size=HASH_BYTES, usedforsecurity=False).digest()
    except UnicodeEncodeError:
        text = f"a message's dedup_id has unpaired surrogates, which are no UTF-8: {dedup_id[:40]!r}"
        raise InvalidRequest(text) from None
    return found if any(found) else b"\x01" + found[1:]

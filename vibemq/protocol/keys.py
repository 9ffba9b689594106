"""The hash of a message's key: what travels, and what a queue with `order_by_key` compares.

It is XXH3 with 64 bits (https://github.com/Cyan4973/xxHash) of the key's UTF-8. Two keys of one hash are one key to the
broker: their messages wait for each other, which costs time and breaks no promise.
"""

import xxhash

from vibemq.errors import InvalidRequest


def key_hash(key: str) -> int:
    """The hash of `key`, never 0, which says that a message has none.

    Raises:
        InvalidRequest: unpaired surrogates, which are no UTF-8.
    """
    try:
        return xxhash.xxh3_64_intdigest(key.encode()) or 1
    except UnicodeEncodeError:
        raise InvalidRequest(f"a message's key has unpaired surrogates, which are no UTF-8: {key[:40]!r}") from None

"""What the fields of a message may hold: the types that msgspec checks while it decodes, and the rules for names.

Both codecs decode into these types, so they accept the same ranges, and the broker need not look again. Numbers end at
2^63 - 1: they fit the signed integers of every language, and a sum of two of them still fits the log's u64.
"""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from vibemq.errors import InvalidName

NUMBER_MAX: Final = (1 << 63) - 1
COUNT_MAX: Final = (1 << 32) - 1
PRODUCER_MAX: Final = (1 << 64) - 1
DURATION_MS_MAX: Final = 1 << 40
"""About 35 years: with the present time added it stays far below NUMBER_MAX microseconds."""
WAIT_MS_MAX: Final = (1 << 31) - 1
"""About 24 days."""
NAME_BYTES_MAX: Final = 255
WORDS_MAX: Final = 10
"""Words of a topic or pattern: with more of them, patterns can be made that take far too long to match."""
MANY_MAX: Final = 2
"""Words `#` of a pattern, for the same reason."""
TEXT_MAX: Final = 4096
"""Characters of a text for people that a client sends."""
RUNS_MAX: Final = 1024
"""Runs of delivery numbers in one message: settling each takes the broker 10 to 20 us, in one go for all."""
PUBLISHES_MAX: Final = 4096
"""Publishes in one commit: the broker carries them out in one go, too."""
HASH_BYTES: Final = 16
"""Bytes of a hashed dedup id."""
CONTROL_BYTES_MAX: Final = 1 << 20
"""The largest control frame that a client may send: its parts become objects, many times as large as their bytes."""
ELEMENTS_MAX: Final = 1 << 14
"""Elements (object members and array items) in one JSON line, for the same reason."""
LINE_BYTES_MAX: Final = 1 << 20
"""The longest JSON line that a client may send: reading 16 MiB of JSON takes up to 300 ms, while nobody is served."""

Request: TypeAlias = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
RequestOrNone: TypeAlias = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Number: TypeAlias = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Version: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
Producer: TypeAlias = Annotated[int, Meta(ge=0)]
"""Up to PRODUCER_MAX, which msgspec cannot state; see checks.py."""
Duration: TypeAlias = Annotated[int, Meta(ge=0, le=DURATION_MS_MAX)]
Wait: TypeAlias = Annotated[int, Meta(ge=-1, le=WAIT_MS_MAX)]
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT_MAX)]
Word: TypeAlias = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
Priority: TypeAlias = Annotated[int, Meta(ge=0, le=9)]
Start: TypeAlias = Literal["tail", "head", "sequence", "time"]
"""Where a group begins: behind the last message, at the first, or at the first from a sequence or a time (us) on."""
OnDifference: TypeAlias = Literal["fail", "ignore", "override"]
Run: TypeAlias = tuple[Annotated[int, Meta(ge=1, le=NUMBER_MAX)], Annotated[int, Meta(ge=1, le=NUMBER_MAX)]]
Deliveries: TypeAlias = Annotated[tuple[Run, ...], Meta(min_length=1, max_length=RUNS_MAX)]
MessageIds: TypeAlias = Annotated[tuple[Word, ...], Meta(min_length=1, max_length=RUNS_MAX)]
"""Ids of messages, as receipts give them: offset, a hyphen, index."""
Duplicates: TypeAlias = tuple[tuple[Count, Number, Count], ...]
Misfire: TypeAlias = Literal["skip", "once", "all"]
Settings: TypeAlias = Annotated[
    dict[Word, Word | bool | Annotated[int, Meta(ge=-NUMBER_MAX, le=NUMBER_MAX)] | float], Meta(max_length=64)
]


def check_name(name: str, what: str = "queue") -> None:
    """Check the name of a `what`: 1 to 255 bytes of UTF-8, no control characters, no space at either end.

    Raises:
        InvalidName: it breaks one of these rules; the text says which.
    """
    # The common case first, in a few calls of C.
    if name.isascii() and name.isprintable() and 0 < len(name) <= NAME_BYTES_MAX and name[0] != " " != name[-1]:
        return
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"the name of a {what} has unpaired surrogates, which are no UTF-8: {name[:40]!r}") from None
    if not 0 < size <= NAME_BYTES_MAX:
        raise InvalidName(
            f"the name of a {what} must have 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {size}: {name[:40]!r}"
        )
    if any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in name):
        raise InvalidName(f"the name of a {what} must not have control characters: {name[:40]!r}")
    if name[0] == " " or name[-1] == " ":
        raise InvalidName(f"the name of a {what} must not begin or end with a space: {name[:40]!r}")


def check_topic(topic: str) -> None:
    """Check a topic to publish to: a name, of 1 to 10 words between dots that are not empty, without `*` and `#`.

    Raises:
        InvalidName: it breaks one of these rules; the text says which.
    """
    check_name(topic, "topic")
    _check_words(topic, "topic")
    if "*" in topic or "#" in topic:
        raise InvalidName(f"a topic must not have * and #, which are for patterns: {topic[:40]!r}")


def check_pattern(pattern: str) -> None:
    """Check a pattern to bind a queue to: as a topic, but words may be `*` (any one) or, two of them, `#` (any number).

    Raises:
        InvalidName: it breaks one of these rules; the text says which.
    """
    check_name(pattern, "pattern")
    _check_words(pattern, "pattern")
    words = pattern.split(".")
    if any(len(word) > 1 and ("*" in word or "#" in word) for word in words):
        raise InvalidName(f"in a pattern * and # are words of their own, between dots: {pattern[:40]!r}")
    if words.count("#") > MANY_MAX:
        raise InvalidName(f"a pattern has the word # at most {MANY_MAX} times, bind to two patterns: {pattern[:40]!r}")


def _check_words(text: str, what: str) -> None:
    if ".." in text or text[0] == "." or text[-1] == ".":
        raise InvalidName(f"a {what} is words between dots, and none of them empty: {text[:40]!r}")
    if text.count(".") >= WORDS_MAX:
        raise InvalidName(f"a {what} has at most {WORDS_MAX} words, not {text.count('.') + 1}: {text[:40]!r}")

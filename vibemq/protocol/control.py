"""The base of all messages without a fixed layout."""

import msgspec


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")


class Control(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=_kebab):
    """Base of what travels as a map: MessagePack in the binary codec, an object in JSON."""

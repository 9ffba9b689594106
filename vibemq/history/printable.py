"""Text that came from outside, as it may be shown."""


def plain(text: str) -> str:
    """Text that is safe on a terminal and stays in its line: what cannot be printed is shown as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)

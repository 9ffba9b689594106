"""What stands below the options in the help of a command."""


def lines(heading: str, *shown: str) -> str:
    """These lines as they are, below a heading: click fills paragraphs, except where one begins with this mark."""
    return "\n".join(["\b", f"{heading}:", *(f"  {line}" for line in shown)])


def examples(*commands: str) -> str:
    """Command lines to learn from."""
    return lines("Examples", *commands)

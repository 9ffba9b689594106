"""Questions before what cannot be undone."""

import sys

import click


def ask(question: str, *, yes: bool) -> None:
    """Ask where there is somebody to answer; a script has made up its mind.

    Raises:
        Abort: the answer was no.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)

"""A progress bar on stderr, for whoever sits there; nothing where stderr is no terminal."""

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar:
    """Use it in a `with`: it is gone before anything else is printed."""

    def __init__(self, text: str) -> None:
        """Draw nothing before the first `update`."""
        self._text = text
        self._shown = sys.stderr.isatty()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        if not self._shown:
            return
        if self._bar is None:
            from rich.console import Console  # noqa: PLC0415 - only where there is something to draw
            from rich.progress import Progress  # noqa: PLC0415

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.add_task(self._text)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

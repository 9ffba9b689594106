"""A progress bar on stderr, for whoever sits there; nothing where stderr is no terminal."""

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar:
    """Use it in a `with`: it is gone before anything else is printed."""

    def __init__(self, text: str, *, wanted: bool = True) -> None:
        """Draw nothing before the first `update`, and nothing at all unless it is `wanted`."""
        self._text = text
        self.shown = wanted and sys.stderr.isatty()
        """Whether there is somebody to look at it."""
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        if not self.shown:
            return
        if self._bar is None:
            from rich.console import Console  # noqa: PLC0415 - only where there is something to draw
            from rich.progress import Progress  # noqa: PLC0415

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.add_task(self._text)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

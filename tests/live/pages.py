"""Pages whose examples run: those of a section one after the other, against one broker."""

import ast
import asyncio
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest

import vibemq
from tests.running import RunningBroker
from vibemq import errors

DOCS: Final = Path(__file__).parents[2] / "docs"
SECONDS_MAX: Final = 60
"""For one example: far more than any takes."""


class Section(NamedTuple):
    """What stands below one heading, and where on which page its text begins."""

    page: str
    title: str
    text: str
    line: int

    def blocks(self, language: str = "python") -> Iterator[tuple[int, str]]:
        """The code in one language: the lines of the page before each, and the code itself."""
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL):
            yield self.line + self.text.count("\n", 0, found.start(1)), found[1]


def sections(page: str) -> list[Section]:
    """All parts of a page, by their headings."""
    text = (DOCS / page).read_text("utf-8")
    found = re.finditer(r"^## (.+)\n((?:(?!## ).*\n)*)", text, re.MULTILINE)
    return [Section(page, one[1], one[2], text.count("\n", 0, one.start(2))) for one in found]


def anchor(title: str) -> str:
    """What links to a heading are made of."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


async def run(section: Section, code: str, lines_before: int, broker: RunningBroker, **names: object) -> None:
    """Run an example, which finds these `names`. A traceback shows its line on the page."""
    where = str(DOCS / section.page)
    compiled = compile("\n" * lines_before + code, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with asyncio.timeout(SECONDS_MAX), vibemq.connect(broker.url, backoff_max=0.1) as client:
        space: dict[str, Any] = {"asyncio": asyncio, "vibemq": vibemq, "errors": errors, "raises": pytest.raises}
        space |= {"client": client, "broker": broker, **names}
        # The page is ours, and running it is the point. What has no await runs at once.
        running_code = eval(compiled, space)  # noqa: S307
        if running_code is not None:
            await cast("Coroutine[Any, Any, None]", running_code)

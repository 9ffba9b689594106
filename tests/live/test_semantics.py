"""docs/semantics.md says what is so: its examples run, those of a section one after the other against one broker.

An example finds `client`, which is connected, and `broker`, the process: `broker.url`, `broker.kill()`,
`broker.start()`. A section with a block of TOML has a broker with that configuration.
"""

import ast
import asyncio
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest

import vibemq
from tests.running import RunningBroker, running
from vibemq import errors
from vibemq.declaration import QueueSettings

PATH: Final = Path(__file__).parents[2] / "docs" / "semantics.md"
PAGE: Final = PATH.read_text("utf-8")
SECONDS_MAX: Final = 30
"""For one example: far more than any takes."""


class Section(NamedTuple):
    """What stands below one heading, and where on the page its text begins."""

    title: str
    text: str
    line: int

    def blocks(self, language: str) -> Iterator[tuple[int, str]]:
        """The code in one language: the lines of the page before each, and the code itself."""
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL):
            yield self.line + self.text.count("\n", 0, found.start(1)), found[1]


def sections() -> list[Section]:
    """All parts of the page, by their headings."""
    found = re.finditer(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE)
    return [Section(one[1], one[2], PAGE.count("\n", 0, one.start(2))) for one in found]


def anchor(title: str) -> str:
    """What links to a heading are made of."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


SECTIONS: Final = sections()
EXECUTED: Final = [section for section in SECTIONS if any(section.blocks("python"))]


async def run(code: str, lines_before: int, broker: RunningBroker) -> None:
    """Run an example. A traceback shows its line on the page."""
    compiled = compile("\n" * lines_before + code, PATH, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with asyncio.timeout(SECONDS_MAX), vibemq.connect(broker.url, backoff_max=0.1) as client:
        space: dict[str, Any] = {"asyncio": asyncio, "vibemq": vibemq, "errors": errors, "raises": pytest.raises}
        space |= {"client": client, "broker": broker}
        # The page is ours, and running it is the point. What has no await runs at once.
        running_code = eval(compiled, space)  # noqa: S307
        if running_code is not None:
            await cast("Coroutine[Any, Any, None]", running_code)


@pytest.mark.parametrize("section", EXECUTED, ids=lambda section: anchor(section.title))
def test_the_examples_of_a_section_do_what_it_says(section: Section, tmp_path: Path) -> None:
    options: list[str] = []
    for _, toml in section.blocks("toml"):
        (tmp_path / "broker.toml").write_text(toml)
        options = ["--config", str(tmp_path / "broker.toml")]
    with running(tmp_path / "data", *options) as broker:
        for lines_before, code in section.blocks("python"):
            asyncio.run(run(code, lines_before, broker))
        assert broker.process is not None
        assert broker.process.poll() is None, "the broker has ended"
        assert [one for one in broker.events() if one["level"] in {"error", "critical"}] == []


def test_the_contents_name_every_section() -> None:
    contents = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    assert contents == [(section.title, anchor(section.title)) for section in SECTIONS]


def test_every_setting_of_a_queue_leads_to_its_rule() -> None:
    (table,) = (section for section in SECTIONS if section.title == "Settings and their rules")
    rows = re.findall(r"^\| `(\w+)` \| .*\[.+\]\(#(.+?)\)", table.text, re.MULTILINE)
    settings = [re.sub("_ms$|_percent$", "", name) for name in QueueSettings.__struct_fields__]
    assert [name for name, _ in rows] == settings
    assert {where for _, where in rows} <= {anchor(section.title) for section in EXECUTED}
    told = {anchor(section.title): section.text for section in EXECUTED}
    assert [name for name, where in rows if not re.search(rf"`{name}\b", told[where])] == []


def test_every_example_can_fail() -> None:
    for section in EXECUTED:
        for _, code in section.blocks("python"):
            assert re.search(r"^ *assert |\braises\(", code, re.MULTILINE), code

"""docs/semantics.md says what is so: its examples run, those of a section one after the other against one broker.

An example finds `client`, which is connected, and `broker`, the process: `broker.url`, `broker.kill()`,
`broker.start()`. A section with a block of TOML has a broker with that configuration.
"""

import asyncio
import re
from pathlib import Path
from typing import Final

import pytest

from tests.live.pages import DOCS, Section, anchor, run, sections
from tests.running import running
from vibemq.declaration import QueueSettings

PAGE: Final = (DOCS / "semantics.md").read_text("utf-8")
SECTIONS: Final = sections("semantics.md")
EXECUTED: Final = [section for section in SECTIONS if any(section.blocks("python"))]


@pytest.mark.parametrize("section", EXECUTED, ids=lambda section: anchor(section.title))
def test_the_examples_of_a_section_do_what_it_says(section: Section, tmp_path: Path) -> None:
    options: list[str] = []
    for _, toml in section.blocks("toml"):
        (tmp_path / "broker.toml").write_text(toml)
        options = ["--config", str(tmp_path / "broker.toml")]
    with running(tmp_path / "data", *options) as broker:
        for lines_before, code in section.blocks("python"):
            asyncio.run(run(section, code, lines_before, broker))
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

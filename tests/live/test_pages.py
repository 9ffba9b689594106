"""docs/transactions.md and docs/time.md say what is so: their examples run (tests/live/pages.py)."""

import asyncio
import re
from pathlib import Path
from typing import Final

import pytest

from tests.live.pages import DOCS, Section, anchor, run, sections
from tests.outbox.postgres_server import postgres
from tests.running import RunningBroker, running

PAGES: Final = ("transactions.md", "time.md")
SECTIONS: Final = [section for page in PAGES for section in sections(page)]


def of_language(language: str) -> list[Section]:
    """The sections that have examples in it."""
    return [section for section in SECTIONS if any(section.blocks(language))]


def check(broker: RunningBroker) -> None:
    """It runs, and has logged no errors."""
    assert broker.process is not None
    assert broker.process.poll() is None, "the broker has ended"
    assert [one for one in broker.events() if one["level"] in {"error", "critical"}] == []


@pytest.mark.parametrize("section", of_language("python"), ids=lambda section: anchor(section.title))
def test_the_examples_of_a_section_do_what_it_says(section: Section, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with running(tmp_path / "data") as broker:
        for lines_before, code in section.blocks():
            asyncio.run(run(section, code, lines_before, broker, folder=folder))
        check(broker)


@pytest.mark.parametrize("section", of_language("python postgres"), ids=lambda section: anchor(section.title))
def test_what_is_said_of_postgresql_is_so(section: Section, tmp_path: Path) -> None:
    with postgres() as dsn, running(tmp_path / "data") as broker:
        for lines_before, code in section.blocks("python postgres"):
            asyncio.run(run(section, code, lines_before, broker, dsn=dsn))
        check(broker)


@pytest.mark.parametrize("page", PAGES)
def test_the_contents_name_every_section(page: str) -> None:
    contents = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    assert contents == [(section.title, anchor(section.title)) for section in sections(page)]


def test_every_example_can_fail() -> None:
    for section in SECTIONS:
        for language in ("python", "python postgres"):
            for _, code in section.blocks(language):
                assert re.search(r"^ *assert |\braises\(", code, re.MULTILINE), code

"""The pages docs/cli.md and docs/limits.md say what is so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

import click
import msgspec
import pytest

from tests.cli.processes import ROOT, ServedBroker, environment, served
from vibemq.batch import HEADER_BYTES_MAX
from vibemq.cli import bench, consume, delayed, dlq, group, outbox, publish, queue, request, schedule, serve
from vibemq.cli.main import COMMANDS
from vibemq.declaration import QueueSettings
from vibemq.protocol.fields import MANY_MAX, NAME_BYTES_MAX, WORDS_MAX
from vibemq.server.limits import Limits
from vibemq.server.publishers import EXPECTED_MAX

CLI: Final = (ROOT / "docs" / "cli.md").read_text("utf-8")
README: Final = (ROOT / "README.md").read_text("utf-8")
LIMITS: Final = (ROOT / "docs" / "limits.md").read_text("utf-8")
SIZES: Final = ((1 << 40, "TiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
TIMES: Final = ((3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def shown(name: str, value: object) -> str:
    """A default as the page writes it."""
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value if isinstance(value, str) else json.dumps(value)) or "(none)"
    units = SIZES if name.endswith("_bytes") or "bytes" in name else TIMES if "_ms" in name else ()
    return next((f"{value // unit} {text}" for unit, text in units if value and value % unit == 0), f"{value:,}")


def rows(heading: str) -> list[tuple[str, str]]:
    """Name and default of every row of the table below a heading of docs/limits.md."""
    section = LIMITS.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [(name, default) for name, default in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)]


def test_every_limit_is_on_the_page_with_its_default() -> None:
    assert rows("Of a broker") == [(one.name, shown(one.name, one.default)) for one in fields(Limits)]


def test_every_setting_of_a_queue_is_on_the_page_with_its_default() -> None:
    defaults = msgspec.structs.asdict(QueueSettings())
    assert rows("Of a queue") == [(name, shown(name, value)) for name, value in defaults.items()]


def test_the_fixed_limits_are_those_of_the_code() -> None:
    assert f"| name of a queue | {NAME_BYTES_MAX} bytes |" in LIMITS
    assert f"| words of a topic or pattern | {WORDS_MAX} |" in LIMITS
    assert f"| words `#` in a pattern | {MANY_MAX} |" in LIMITS
    assert f"| headers of a message | {HEADER_BYTES_MAX >> 10} KiB |" in LIMITS
    assert f"| refused batches that a blocking queue remembers of a connection | {EXPECTED_MAX:,} |" in LIMITS


def test_every_command_and_option_is_on_the_page() -> None:
    def options(command: click.Command) -> set[str]:
        below = command.commands.values() if isinstance(command, click.Group) else ()
        own = {name for one in command.params if isinstance(one, click.Option) for name in one.opts}
        return own.union(*map(options, below))

    wanted = set().union(
        *(
            options(module.command)
            for module in (bench, consume, delayed, dlq, group, outbox, publish, queue, request, schedule, serve)
        )
    )
    assert {name for name in wanted if not re.search(rf"{name}\b", CLI)} == set()
    assert {name for name in COMMANDS if f"vibemq {name} " not in CLI} == set()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedBroker]:
    with served(tmp_path_factory.mktemp("docs") / "data") as broker:
        yield broker


def same(text: str) -> str:
    """A session without what differs each time: ids, times, and the width of the columns that they stand in."""
    text = re.sub(r'"id":"[^"]*"', '"id":"ID"', text)
    text = re.sub(r'"published_at":"[^"]*"', '"published_at":"TIME"', text)
    text = re.sub(r"\b\d+-\d\b", "ID", re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text))
    return re.sub(r"(ID|id) +", r"\1  ", text)


def sessions(page: str, broker: ServedBroker, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Each command of a page, what it prints there, and what it prints when it is run against a broker."""
    vibemq = folder / "vibemq"
    vibemq.write_text(f'#!/bin/sh\nexec {sys.executable} -m vibemq "$@"\n')
    vibemq.chmod(0o755)
    found = environment(broker.url)
    found["PATH"] = f"{folder}{os.pathsep}{found['PATH']}"
    for session in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for command, expected in re.findall(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", session, re.MULTILINE):
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                env=found,
                cwd=broker.data.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            yield command, same(expected), same(done.stdout.decode())


def test_the_sessions_on_the_page_are_what_happens(fresh: ServedBroker, tmp_path: Path) -> None:
    for command, expected, printed in sessions(CLI, fresh, tmp_path):
        assert printed == expected, command


def test_what_the_readme_shows_is_what_happens(tmp_path: Path) -> None:
    with served(tmp_path / "vibemq-data") as broker:
        for command, expected, printed in sessions(README, broker, tmp_path):
            pattern = re.escape(expected).replace(re.escape("..."), ".*")
            assert re.fullmatch(pattern, printed, re.DOTALL), command
        (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        (url,) = re.findall(r"vibemq://[\d.:]+", program)
        program = program.replace(url, broker.url)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment(broker.url), capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert re.fullmatch(rb"durable as \d+-0\n1 b'two teas' {'table': 7} 1\n", done.stdout)

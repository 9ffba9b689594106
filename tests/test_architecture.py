"""Which module may import what, and what a file must look like.

TABLE is the whole rule: the first row that names a module holds for it, and what its row does not list it may not
import. The code is read, never run, and an import under `if TYPE_CHECKING` or inside a function counts like any other.
Each check is also shown to fail, on planted sources.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

FILE_LINES_MAX: Final = 600
UNFINISHED: Final = re.compile(r"\b(TO[D]O|FIX[M]E|X{3})\b")  # written so that it does not find itself


def names(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


# Modules of the standard library that only compute. A pure module imports nothing else, so it can neither wait, nor
# read a clock, nor draw a random number, nor see the machine: the same input gives the same output.
VALUES: Final = names("""
    __future__ abc array base64 binascii bisect collections contextlib copy dataclasses datetime decimal enum fractions
    functools graphlib hashlib heapq hmac ipaddress itertools json math operator re string struct sys textwrap types
    typing unicodedata zlib
""")
THREADS: Final = VALUES | {"concurrent", "errno", "queue", "threading", "time"}
FILES: Final = VALUES | {"errno", "fcntl", "os", "pathlib", "shutil", "stat"}
CHILD: Final = THREADS | {"pathlib", "shutil", "subprocess"}
ALL: Final = frozenset(sys.stdlib_module_names)

FOR_DEVELOPERS: Final = names("dev fuzz mutate")
VAGUE: Final = names("utils util helpers helper common manager misc")

# What a pure module could still reach without an import that the table sees.
IMPURE_CALLS: Final = names("open print input exec eval breakpoint __import__")
CLOCK_CALLS: Final = names("now utcnow today")
SYS_VALUES: Final = names("byteorder maxsize intern getsizeof version_info")

# The broker and the parts it is made of: all of them decide and none of them acts. A new part is named here.
BROKER: Final = (
    "server.admission server.broker.* server.batch_cache server.dead_lettering server.dead_letters"
    " server.deduplication server.delayed server.deliveries server.dispatch server.effects server.expiring"
    " server.groups server.journal server.key_order server.limits server.payloads server.peeking server.publishers"
    " server.publishing server.queue_settings server.queues server.rates server.removal server.schedules"
    " server.subscription server.transactions"
)
BELOW_BROKER: Final = "errors batch declaration events projections.*"
BELOW_SERVER: Final = "errors batch declaration durations events log.* projections.* protocol.*"
FACADES: Final = (
    "vibemq errors batch declaration durations events client log log.writer outbox projections"
    " history.* server server.logging_format server.runtime server.serve server.settings"
)


@dataclass(frozen=True, slots=True)
class Row:
    """What `module` may import.

    Names are those inside vibemq, without that prefix. `log` is one module, for a package its __init__ and so what it
    offers to others; `log.*` is the package with all that is in it.
    """

    module: str
    vibemq: str
    standard: frozenset[str]
    libraries: str = ""

    @property
    def pure(self) -> bool:
        return self.standard <= VALUES


# fmt: off
TABLE: Final = (
    #   module           may import of vibemq                               standard libraries
    Row("errors",        "",                                                VALUES),
    Row("batch",         "errors",                                          VALUES,  "msgspec"),
    Row("durations",     "errors",                                          VALUES),
    Row("declaration",   "",                                                VALUES,  "msgspec"),
    Row("event_base",    "",                                                VALUES,  "msgspec"),
    Row("topology_events", "declaration event_base",                        VALUES),
    Row("events",        "errors declaration event_base topology_events",   VALUES,  "msgspec"),

    Row("log.frame",     "errors batch events",                             VALUES,  "msgspec xxhash"),
    Row("log.disk",      "errors",                                          FILES),
    Row("log.index",     "errors batch events log.*",                       CHILD,   "lmdb msgspec xxhash"),
    Row("log.tables",    "errors batch events log.*",                       THREADS, "lmdb xxhash"),
    Row("log.*",         "errors batch events log.*",                       THREADS, "msgspec xxhash"),

    Row("projections.*", "errors batch declaration events projections.*",   VALUES,  "msgspec xxhash sortedcontainers"),
    Row("history.*",     "errors batch declaration events log.* projections.* history.*",
                                                                            VALUES | {"pathlib"}, "msgspec"),
    Row("protocol.*",    "errors batch protocol.*",                         VALUES,  "msgspec xxhash"),

    *(Row(part,          f"{BELOW_BROKER} {BROKER}", VALUES, "msgspec") for part in BROKER.split()),
    Row("server.commands", f"errors batch declaration protocol.* {BROKER}", VALUES),
    Row("server.conversation", f"errors batch protocol.* server.commands {BROKER}", VALUES, "msgspec"),
    Row("server.cron",   "errors",                                          VALUES | {"zoneinfo"}, "cronsim"),
    Row("server.*",      f"{BELOW_SERVER} server.*",                        ALL,     "msgspec uvloop xxhash"),

    Row("client.*",      "errors batch durations protocol.* client.*",      ALL,     "msgspec"),
    Row("vibemq",        "errors batch client",                             ALL),
    Row("outbox.*",      "vibemq errors durations client client.numbered client.outgoing protocol.fields outbox.*",
                                                                            ALL,     "psycopg"),

    Row("__main__",      "cli cli.main",                                    ALL),
    Row("cli.*",         f"{FACADES} cli.*",                                ALL,     "click msgspec rich uvloop"),
    Row("tools.*",       f"{FACADES} cli.progress_bar tools.*",             ALL,     "click msgspec rich"),
)
# fmt: on


def covers(pattern: str, module: str) -> bool:
    """Whether `pattern`, a module or a package followed by `.*`, stands for `module`."""
    package = pattern.removesuffix(".*")
    return module == package or (pattern != package and module.startswith(f"{package}."))


def row_of(module: str) -> Row | None:
    """The first row for `module`."""
    return next((row for row in TABLE if covers(row.module, module)), None)


def name_of(path: Path) -> str:
    """What the table calls the file at `path`, relative to the repository."""
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    return ".".join(parts[1:] if parts[0] == "vibemq" and len(parts) > 1 else parts)


def sources(*folders: str) -> dict[Path, str]:
    """The text of every Python file below these folders of the repository."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT): path.read_text("utf-8") for path in paths}


def declared_libraries() -> frozenset[str]:
    """The libraries that are installed together with VibeMQ. They are imported under the names they are declared by.

    What an extra brings is among them, but for those extras that are for work on VibeMQ itself.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra not in FOR_DEVELOPERS]
    lines = [line for lines in (project["dependencies"], *extras) for line in lines]
    return frozenset(re.split(r"[^\w-]", line, maxsplit=1)[0] for line in lines)


def imports(path: Path, tree: ast.AST, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """The line and full name of every module that a file imports; `known` tells submodules from other names."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in {f"{base}.{alias.name}" for alias in node.names}:
                yield node.lineno, name if name in known else base


def refused(row: Row, name: str, declared: frozenset[str]) -> str:
    """Why the modules of `row` may not import `name`; empty when they may."""
    top = name.partition(".")[0]
    if top in {"vibemq", "tools"}:
        inner = name.removeprefix("vibemq.")
        return "" if any(covers(one, inner) for one in row.vibemq.split()) else f"may not import {name}"
    if top in sys.stdlib_module_names:
        return "" if top in row.standard else f"may not import {name} of the standard library"
    if top not in row.libraries.split():
        return f"may not import the library {top}"
    return "" if top in declared else f"imports {top}, which pyproject.toml does not depend on"


def impurities(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where code does I/O or reads the clock through what the table lets it import."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield node.lineno, f"is pure and calls {name}()"
            case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id=kind) | ast.Attribute(attr=kind))) if (
                name in CLOCK_CALLS and kind in {"datetime", "date"}
            ):
                yield node.lineno, f"is pure and reads the clock with {kind}.{name}()"
            case ast.Attribute(attr=name, value=ast.Name(id="sys")) if name not in SYS_VALUES:
                yield node.lineno, f"is pure and uses sys.{name}"
            case ast.ImportFrom(module="sys", names=taken):
                yield from ((node.lineno, f"is pure and imports sys.{one.name}") for one in taken)


def layer_faults(files: Mapping[Path, str], declared: frozenset[str]) -> list[str]:
    """Every import and call among `files` that the table does not allow."""
    known = frozenset(
        name if name == "vibemq" or name.startswith("tools") else f"vibemq.{name}" for name in map(name_of, files)
    )
    faults = []
    for path, text in files.items():
        row = row_of(name_of(path))
        if row is None:
            faults.append(f"{path}: no row of the table names this module")
            continue
        tree = ast.parse(text)
        found = [(line, refused(row, name, declared)) for line, name in imports(path, tree, known)]
        found += impurities(tree) if row.pure else ()
        faults += [f"{path}:{line}: {fault}" for line, fault in sorted(found) if fault]
    return faults


def tidy_faults(files: Mapping[Path, str]) -> list[str]:
    """Files that are too long, named for nothing in particular, or not finished."""
    faults = []
    for path, text in files.items():
        lines = text.splitlines()
        if len(lines) > FILE_LINES_MAX:
            faults.append(f"{path}: {len(lines)} lines, more than {FILE_LINES_MAX}")
        faults += [f"{path}: {part} says nothing about what is in it" for part in VAGUE & set(name_parts(path))]
        faults += [f"{path}:{number}: not finished" for number, line in enumerate(lines, 1) if UNFINISHED.search(line)]
    return faults


def name_parts(path: Path) -> list[str]:
    """The words in the names of a file and its folders."""
    return [word for part in path.with_suffix("").parts for word in part.lower().split("_")]


def docstring_faults(files: Mapping[Path, str]) -> list[str]:
    """Public modules, classes, functions and methods without a docstring; an empty file (an __init__) needs none."""
    faults = []
    for path, text in files.items():
        tree = ast.parse(text)
        if tree.body and ast.get_docstring(tree) is None:
            faults.append(f"{path}: the module has no docstring")
        faults += [f"{path}:{line}: {name} has no docstring" for line, name in undocumented(tree)]
    return faults


def undocumented(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Public names in `scope` without a docstring; what a decorator makes part of a documented name is left out."""
    for node in scope.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        marks = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
        if ast.get_docstring(node) is None and not marks & {"overload", "override", "setter"}:
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node)


def test_modules_import_what_the_table_allows() -> None:
    assert layer_faults(sources("vibemq", "tools"), declared_libraries()) == []


def test_files_are_tidy() -> None:
    assert tidy_faults(sources("vibemq", "tools", "tests")) == []


def test_public_names_have_docstrings() -> None:
    assert docstring_faults(sources("vibemq", "tools")) == []


def test_no_row_is_hidden_by_an_earlier_one() -> None:
    for place, row in enumerate(TABLE):
        assert not [one for one in TABLE[:place] if covers(one.module, row.module.removesuffix(".*"))], row.module


def test_pure_rows_import_pure_rows_only() -> None:
    for row in TABLE:
        for pattern in row.vibemq.split() if row.pure else ():
            allowed = row_of(pattern.removesuffix(".*"))
            assert allowed is not None, f"{row.module} may import {pattern}, which has no row"
            assert allowed.pure, f"{row.module} is pure and may import {pattern}, which is not"


ALLOWED: Final = [
    ("errors", "from typing import ClassVar"),
    ("batch", "import sys\nfrom vibemq.errors import InvalidRequest"),
    ("log.disk", "import os\nimport fcntl"),
    ("log.writer", "import threading\nfrom vibemq.log.frame import HEADER_BYTES\nfrom vibemq.log import disk"),
    ("log.index", "import lmdb\nimport subprocess"),
    ("projections.queue", "from collections.abc import Iterator\nfrom vibemq import events, errors"),
    ("history.replay", "from vibemq.log.log import Log\nfrom vibemq.projections.projector import Projector"),
    ("protocol.json_lines", "from datetime import UTC, datetime\nx = datetime.fromtimestamp(0, UTC)"),
    ("server.broker", "from vibemq.projections.queue import Queue"),
    ("server.dispatch", "from vibemq.server import broker"),
    ("server.runtime", "import asyncio\nimport os\nfrom vibemq.log.log import Log\nfrom vibemq.server import broker"),
    ("client.aio", "import asyncio\nfrom vibemq.protocol import messages"),
    ("vibemq", "from vibemq.client import connect"),
    (
        "cli.main",
        "import click\nimport vibemq\nfrom vibemq.log import Log\nfrom vibemq.server.settings import Settings",
    ),
    ("tools.replay.diff", "from vibemq.projections import Projector\nfrom tools.replay import digest"),
]

REFUSED: Final = [
    ("errors", "import os"),
    ("errors", "from vibemq.batch import Batch"),
    ("events", "from vibemq.log.frame import Record"),
    ("batch", "import vibemq.events"),
    ("log.frame", "import os"),
    ("log.frame", "from vibemq.log import disk"),
    ("log.disk", "import asyncio"),
    ("log.segment", "import os.path"),
    ("log.segment", "import pathlib"),
    ("log.log", "import random"),
    ("log.log", "import lmdb"),
    ("log.writer", "from vibemq.projections.queue import Queue"),
    ("log.writer", "from ..server import runtime"),
    ("log.index", "from os import unlink"),
    ("projections.queue", "import time"),
    ("projections.queue", "from random import Random"),
    ("projections.queue", "def f():\n    import os"),
    ("projections.queue", "from vibemq.log.frame import Record"),
    ("projections.queue", "from vibemq import log"),
    ("projections.queue", "from .. import log"),
    ("projections.queue", "if TYPE_CHECKING:\n    import asyncio"),
    ("projections.audit", "import logging"),
    ("projections.audit", "from datetime import datetime\nx = datetime.now()"),
    ("projections.audit", "import datetime\nx = datetime.date.today()"),
    ("projections.new", "print()"),
    ("projections.new", "import sys\nsys.stdout.write('x')"),
    ("projections.new", "from sys import stdin"),
    ("protocol.session", "import asyncio"),
    ("protocol.session", "import vibemq.server.runtime"),
    ("protocol.session", "from vibemq.events import Acked"),
    ("server.broker", "import time"),
    ("server.broker", "open('x')"),
    ("server.broker", "from vibemq.protocol.messages import Publish"),
    ("server.dispatch", "from vibemq.server.settings import Settings"),
    ("server.broker.commands", "from vibemq.server.runtime import Runtime"),
    ("server.runtime", "from vibemq.client import connect"),
    ("server.runtime", "import vibemq"),
    ("server.listeners", "from vibemq.cli.main import main"),
    ("client.aio", "from vibemq.events import Acked"),
    ("client.aio", "from vibemq.server.settings import Settings"),
    ("client.aio", "import click"),
    ("cli.verify", "from vibemq.log.frame import Record"),
    ("history.audit", "from vibemq.server.broker import Broker"),
    ("history.audit", "import time"),
    ("cli.replay", "import tools.replay"),
    ("tools.replay.digest", "from vibemq.server.broker import decide"),
    ("server.runtime", "import requests"),
    ("projections.queue", "import sortedcontainers"),
    ("somewhere", ""),
]


def planted(module: str, text: str) -> dict[Path, str]:
    """`text` as that module, beside empty ones for it to import."""
    empty = names(
        "vibemq log log.frame log.disk projections protocol protocol.messages server server.broker server.runtime"
    )
    return {path_of(name): "" for name in empty | {"events", "errors", "batch"}} | {path_of(module): text}


def path_of(module: str) -> Path:
    """A file that the table calls `module`; `name_of` the other way round."""
    if module in {"vibemq", "log", "projections", "protocol", "server"}:
        return Path("vibemq", "" if module == "vibemq" else module, "__init__.py")
    above = () if module.startswith("tools.") else ("vibemq",)
    return Path(*above, *module.split(".")).with_suffix(".py")


@pytest.mark.parametrize(("module", "text"), ALLOWED)
def test_an_import_of_the_table_passes(module: str, text: str) -> None:
    assert layer_faults(planted(module, text), declared_libraries()) == []


@pytest.mark.parametrize(("module", "text"), REFUSED)
def test_a_planted_import_is_found(module: str, text: str) -> None:
    faults = layer_faults(planted(module, text), declared_libraries())
    assert len(faults) == 1
    assert str(path_of(module)) in faults[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("vibemq/long.py", "\n" * (FILE_LINES_MAX + 1)),
        ("vibemq/log/utils.py", ""),
        ("vibemq/helpers/disk.py", ""),
        ("vibemq/server/queue_manager.py", ""),
        ("vibemq/events.py", "# TO" + "DO: later"),
        ("tests/test_events.py", "x = 1  # FIX" + "ME"),
    ],
)
def test_a_planted_untidy_file_is_found(path: str, text: str) -> None:
    assert len(tidy_faults({Path(path): text})) == 1


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        '"""Module."""\ndef f() -> None: ...',
        '"""Module."""\nasync def f() -> None: ...',
        '"""Module."""\nclass Open: ...',
        '"""Module."""\nclass Open:\n    """Class."""\n    def method(self) -> None: ...',
    ],
)
def test_a_missing_docstring_is_found(text: str) -> None:
    assert len(docstring_faults({Path("vibemq/events.py"): text})) == 1


@pytest.mark.parametrize(
    "text", ["", '"""Module."""\ndef _f() -> None: ...', '"""M."""\nclass _C:\n    def f(self): ...']
)
def test_what_is_not_public_needs_no_docstring(text: str) -> None:
    assert docstring_faults({Path("vibemq/events.py"): text}) == []

"""The folders that the documentation's sessions use, and the sessions themselves."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from tests.history.building import Driver, orders, reminders, second_life
from vibemq.cli.main import main
from vibemq.projections import part as parts

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGES: Final = ("audit.md", "replay.md", "verify.md")


def make_folders(folder: Path) -> None:
    """All data folders that the pages speak of."""
    orders(folder / "orders-data")
    for name in ("damaged-data", "torn-data"):
        shutil.copytree(folder / "orders-data", folder / name)
    _flip(folder / "damaged-data", b"order 2")
    _flip(folder / "damaged-data", b"clerk")
    _tear(folder / "torn-data")
    _tampered(folder / "tampered-data")
    second_life(folder / "shop-data")
    reminders(folder / "reminders-data")


def _segment(folder: Path) -> Path:
    (path,) = (folder / "log").glob("*.seg")
    return path


def _flip(folder: Path, text: bytes) -> None:
    path = _segment(folder)
    content = bytearray(path.read_bytes())
    content[content.index(text)] ^= 1
    path.write_bytes(bytes(content))


def _tear(folder: Path) -> None:
    """The last record, of which the last bytes never reached the disk."""
    path = _segment(folder)
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    path.write_bytes(content[: used - 10] + bytes(len(content) - used + 10))


def _tampered(folder: Path) -> None:
    with Driver(folder) as driver:
        driver.publish(driver.connect("shop", 50_001), "orders", b"order 1")
        snapshot = driver.storage.state.queues[1].snapshot()
        snapshot[9] += 1  # its bytes
        driver.checkpoint({"queue/1": parts._encoder.encode(snapshot)})


def sessions(page: str) -> Iterator[tuple[str, str]]:
    """Each command that a page shows, with what it prints there."""
    for block in re.findall(r"^```console\n(.*?)^```$", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = session.partition("\n")
            yield command, output


def run(command: str) -> str:
    """What a command prints on stdout, in the present folder."""
    program, *arguments = command.split()
    assert program == "vibemq"
    return CliRunner().invoke(main, arguments).stdout


def normalised(output: str) -> str:
    """Digests change whenever a projection does, and that is no mistake in the documentation."""
    return re.sub(r"[0-9a-f]{64}", "DIGEST", output)

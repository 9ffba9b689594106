"""`python -m tools.replay`: digests, difference and bisection of logs. See README.md."""

import sys
from pathlib import Path

import click
import msgspec

from tools.replay.bisect import Build, Disagreement, bisect
from tools.replay.diff import Finding, diff
from vibemq.cli.progress_bar import ProgressBar
from vibemq.errors import VibeMQError
from vibemq.history.replay import digests_at, replay
from vibemq.history.source import History

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def main() -> None:
    """Read-only workbench for incidents: what a log adds up to, where two logs part, where two builds part."""


@main.command()
@click.argument("data", type=FOLDER)
@click.option("--at", "offsets", type=click.IntRange(min=0), multiple=True, metavar="OFFSET", help="May be repeated.")
def digest(data: Path, offsets: tuple[int, ...]) -> None:
    """Print a JSON line with the digests of DATA at each offset, or at the end of the log."""
    history = History.open(data)
    if not offsets:
        with ProgressBar("replaying the log") as bar:
            replayed = replay(history, progress=bar.update)
        _print({"offset": replayed.offset, "digests": replayed.digests})
    for offset, digests in digests_at(history, offsets):
        _print({"offset": offset, "digests": digests})


@main.command(name="diff")
@click.argument("data1", type=FOLDER)
@click.argument("data2", type=FOLDER)
@click.pass_context
def diff_command(ctx: click.Context, data1: Path, data2: Path) -> None:
    """Print the first record in which two logs differ, and how; the exit code is then 1."""
    with ProgressBar("comparing the logs") as bar:
        found = diff(History.open(data1), History.open(data2), bar.update)
    click.echo(_diff_text(found, data1, data2))
    ctx.exit(1 if found.differs else 0)


def _diff_text(found: Finding, data1: Path, data2: Path) -> str:
    if not found.differs:
        return f"the same {found.offset} records"
    lines = [f"record {found.offset} is the first that differs"]
    for data, side in ((data1, found.first), (data2, found.second)):
        lines.append(f"{data}:")
        lines += [f"  {fact:<16} {value}" for fact, value in side.items()] or ["  the log ends before it"]
    return "\n".join(lines)


@main.command(name="bisect")
@click.argument("data", type=FOLDER)
@click.option("--python", "pythons", multiple=True, required=True, metavar="PATH", help="Interpreter; give it twice.")
@click.option(
    "--pythonpath",
    "paths",
    multiple=True,
    metavar="FOLDER",
    help="PYTHONPATH of the first build, then of the second; `-` for none.",
)
@click.option("--part", "wanted", multiple=True, help="Only these parts, such as queue/1.")
@click.option(
    "--every", type=click.IntRange(min=1), metavar="N", help="Compare after each N events first; 1 misses nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each part.")
@click.pass_context
def bisect_command(
    ctx: click.Context,
    data: Path,
    pythons: tuple[str, ...],
    paths: tuple[str, ...],
    wanted: tuple[str, ...],
    every: int | None,
    as_json: bool,
) -> None:
    """Find the first event of DATA after which two builds disagree, for each part; the exit code is then 1."""
    if len(pythons) != 2 or len(paths) not in {0, 2}:
        raise click.UsageError("give --python twice, and --pythonpath twice or not at all")
    builds = [
        Build(python, "" if path == "-" else path) for python, path in zip(pythons, paths or ("-", "-"), strict=True)
    ]
    found = bisect(data, builds[0], builds[1], frozenset(wanted), every)
    for one in found.disagreements:
        _print(one._asdict()) if as_json else click.echo(_disagreement_text(one))
    if not found.disagreements and not as_json:
        click.echo(f"both builds agree at every one of the offsets compared, up to {found.end}")
    ctx.exit(1 if found.disagreements else 0)


def _disagreement_text(one: Disagreement) -> str:
    event = f"after record {one.offset - 1}, {one.event}" if one.offset else "before the first record"
    lines = [f"{one.part}: {event}"]
    lines += [f"  {name} {value or 'not there'}" for name, value in (("A", one.first), ("B", one.second))]
    return "\n".join(lines)


def _print(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


if __name__ == "__main__":
    try:
        main(prog_name="python -m tools.replay")
    except VibeMQError as error:
        click.echo(error.text, err=True)
        sys.exit(1)

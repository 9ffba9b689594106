"""`vibemq replay`: the state as the log alone tells it, and whether checkpoint and running broker agree."""

from pathlib import Path
from typing import Any

import click

from vibemq.cli.output import print_json, print_table
from vibemq.cli.progress_bar import ProgressBar
from vibemq.errors import ProtocolError
from vibemq.history.replay import Agreement, Difference, Digests, Replayed, differences, replay
from vibemq.history.source import History

TIMEOUT_S = 60.0


@click.command(name="replay")
@click.option("--data", type=click.Path(path_type=Path), help="The data folder.  [default: vibemq-data]")
@click.option(
    "--at", type=click.IntRange(min=0), metavar="OFFSET", help="The state before that record, not at the end."
)
@click.option("--url", help="Ask the broker that runs there; with --data too, compare both.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")
@click.pass_context
def command(ctx: click.Context, data: Path | None, at: int | None, url: str | None, as_json: bool) -> None:
    """Rebuild the state from zero by reading the log, and print the digest of every part of it.

    The same log gives the same digests on any machine. A checkpoint that does not lead to them is reported, and the
    exit code is then 1. Nothing is locked or changed: a broker may be running on the folder.
    """
    if url is None:
        replayed = _replay(data or Path("vibemq-data"), at)
        _print(replayed, as_json=as_json)
        ctx.exit(1 if replayed.checkpoint.agreement is Agreement.DIFFERENT else 0)
    if at is not None:
        raise click.UsageError("a running broker tells its present state only: leave --at or --url out")
    offset, digests = _live(url)
    if data is None:
        _print_live(offset, digests, as_json=as_json)
        return
    replayed = _replay(data, offset)
    found = differences(replayed.digests, digests)
    _print(replayed, as_json=as_json, live=found)
    ctx.exit(1 if found or replayed.checkpoint.agreement is Agreement.DIFFERENT else 0)


def _replay(data: Path, at: int | None) -> Replayed:
    with ProgressBar("replaying the log") as bar:
        return replay(History.open(data), at, bar.update)


def _live(url: str) -> tuple[int, Digests]:
    """What the running broker says: the offset and the digests of its state."""
    from vibemq.cli.connecting import Broker  # noqa: PLC0415 - the client is not needed offline

    answer: dict[str, Any] = Broker(url, TIMEOUT_S).run("replay", lambda client: client.digest())
    try:
        return int(answer["offset"]), {str(key): str(value) for key, value in answer["digests"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ProtocolError(f"the broker's answer holds no digests: {answer!r:.200}") from None


def _print(replayed: Replayed, *, as_json: bool, live: tuple[Difference, ...] | None = None) -> None:
    """All that was found; `live`: how the running broker differs, None when it was not asked."""
    verdict = replayed.checkpoint
    if as_json:
        line = {"offset": replayed.offset, "digests": replayed.digests}
        line["checkpoint"] = {
            "agreement": verdict.agreement,
            "start": verdict.start,
            "text": verdict.text,
            "differences": [difference._asdict() for difference in verdict.differences],
        }
        if live is not None:
            line["live"] = {"differences": [difference._asdict() for difference in live]}
        print_json([line])
        return
    click.echo(f"state before record {replayed.offset}")
    rows = [(part, replayed.queues.get(part, ""), digest) for part, digest in replayed.digests.items()]
    print_table(("part", "queue", "digest"), rows)
    click.echo(f"checkpoint: {verdict.text}")
    _print_differences(verdict.differences, "restored")
    if live is not None:
        click.echo("running broker: " + ("other digests" if live else "the same digests"))
        _print_differences(live, "live")


def _print_differences(found: tuple[Difference, ...], other: str) -> None:
    for part, replayed, digest in found:
        click.echo(f"  {part}\n    replayed {replayed or 'not there'}\n    {other:<8} {digest or 'not there'}")


def _print_live(offset: int, digests: Digests, *, as_json: bool) -> None:
    if as_json:
        print_json([{"offset": offset, "digests": digests}])
        return
    click.echo(f"state before record {offset}")
    print_table(("part", "digest"), list(digests.items()))

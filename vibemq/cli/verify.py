"""`vibemq verify`: is the log whole?"""

from pathlib import Path

import click

from vibemq.cli.output import print_json, print_table
from vibemq.cli.progress_bar import ProgressBar
from vibemq.history.verify import Verified, verify_folder


@click.command(name="verify")
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("vibemq-data"), show_default=True, help="The data folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each problem, and one that sums up.")
@click.pass_context
def command(ctx: click.Context, data: Path, as_json: bool) -> None:
    """Check every record, link and seal of the log, and list what is wrong; the exit code is then 1.

    A torn tail, which was never confirmed, is told apart from damage by the rule that holds at a start. Nothing is
    locked or changed: a broker may be running on the folder.
    """
    with ProgressBar("verifying the log") as bar:
        verified = verify_folder(data, bar.update)
    if as_json:
        _print_json(verified)
    else:
        _print(verified)
    ctx.exit(0 if verified.whole else 1)


def _print(verified: Verified) -> None:
    report = verified.report
    if report.problems:
        rows = [(one.file, one.position, one.offset, one.text) for one in report.problems]
        print_table(("file", "position", "record", "problem"), rows)
    click.echo(f"segments {report.segments}, records {report.records}, bytes {report.bytes}, seals {report.seals}")
    if report.torn_bytes:
        click.echo(f"torn tail: {report.torn_bytes} bytes that were never confirmed; the next start cuts them")
    click.echo(f"index: {verified.about_index}")
    click.echo(f"problems: {len(report.problems)}" if report.problems else "the log is whole")


def _print_json(verified: Verified) -> None:
    report = verified.report
    print_json(one._asdict() for one in report.problems)
    counts = {"segments": report.segments, "records": report.records, "bytes": report.bytes, "seals": report.seals}
    more = {"torn_bytes": report.torn_bytes, "index": verified.about_index, "problems": len(report.problems)}
    print_json([{**counts, **more}])

"""`vibemq serve`: run a broker in the foreground."""

from pathlib import Path
from typing import Any

import click

from vibemq.cli.progress_bar import ProgressBar
from vibemq.errors import ConfigError, UsageError
from vibemq.log.writer import SyncPolicy
from vibemq.server.logging_format import make_logger
from vibemq.server.serve import serve
from vibemq.server.settings import Settings, load_toml, parse_listen

LEVELS = ("debug", "info", "warning", "error", "critical")


def _fsync(_: click.Context, __: click.Parameter, text: str | None) -> SyncPolicy | None:
    try:
        return None if text is None else SyncPolicy.parse(text)
    except UsageError as error:
        raise click.BadParameter(error.text) from None


def _listen(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, int] | None:
    try:
        return None if text is None else parse_listen(text)
    except ConfigError as error:
        raise click.BadParameter(error.text) from None


@click.command(name="serve")
@click.option("--data", type=click.Path(path_type=Path), help="The data folder.  [default: vibemq-data]")
@click.option("--listen", callback=_listen, metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:2925]")
@click.option(
    "--fsync",
    callback=_fsync,
    metavar="always|interval:MS|os",
    help="When a message counts as durable.  [default: always]",
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings; options come before it."
)
@click.option("--log-json", is_flag=True, help="Write the log as JSON lines; only an error that ends it is plain.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What to log.")
def command(
    data: Path | None,
    listen: tuple[str, int] | None,
    fsync: SyncPolicy | None,
    config: Path | None,
    log_json: bool,
    log_level: str,
) -> None:
    """Run a broker until SIGTERM or Ctrl-C."""
    given: dict[str, Any] = load_toml(config) if config is not None else {}
    if data is not None:
        given["data"] = data
    if listen is not None:
        given["host"], given["port"] = listen
    if fsync is not None:
        given["fsync"] = fsync
    settings = Settings(**given)

    def ready(host: str, port: int) -> None:
        if not log_json:
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"VibeMQ is ready: vibemq://{shown}:{port}, data in {settings.data}. Ctrl-C stops it.", err=True)

    with ProgressBar("replaying the log", wanted=not log_json) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done, total)
            if done >= total:
                bar.close()  # before the log goes on

        serve(settings, make_logger(as_json=log_json, level=log_level), progress, ready)

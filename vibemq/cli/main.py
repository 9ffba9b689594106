"""The command `vibemq`: finds the subcommand, and turns errors into one line and an exit code.

    0  done        1  the operation failed        2  it was called in a way that cannot work
    128 + n        ended by signal n before it was done

A subcommand lives in the module of its name, as `command`, and is imported only when it is used: starting up costs more
than publishing a message.
"""

import importlib
import io
import os
import sys
from typing import Any, Final

import click

from vibemq.errors import UsageError, VibeMQError

COMMANDS: Final = {
    "serve": "Run a broker.",
    "publish": "Publish messages to a queue.",
    "consume": "Take messages from a queue and print them.",
    "request": "Ask whoever consumes a queue, and print the reply.",
    "queue": "List, declare, show, change, bind and delete queues.",
    "group": "List, move and delete the groups of a queue.",
    "delayed": "List, show, cancel and reschedule delayed messages.",
    "dlq": "List, show, redrive and purge dead letters.",
    "schedule": "Set, list, show, pause, resume and delete schedules.",
    "outbox": "Publish what programs left in a table of their database.",
    "bench": "Put load on a running broker and measure it.",
    "replay": "Rebuild the state from the log; check the checkpoint.",
    "verify": "Check every record, link and seal of the log.",
    "audit": "Show who did what: the events of the log.",
}
"""Every subcommand with its line in `vibemq --help`."""


def _open_closed_streams() -> None:
    """Put something in the place of closed standard streams, before a socket or a segment gets their number.

    What is read or written there fails, as it does with a closed one; only what goes to stderr is swallowed.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free, so it is this one
    for name, descriptor, way in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, os.fdopen(descriptor, way, closefd=False))


def _refused(problem: OSError) -> str:
    reason = problem.strerror or str(problem) or type(problem).__name__
    where = "" if problem.filename is None else f": {os.fsdecode(problem.filename)}"
    return f"vibemq: the operating system refused to go on: {reason}{where}"


class Commands(click.Group):
    """Imports a subcommand when it is asked for."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run the command line; what the operating system refuses is one line too, a full disk under stdout say."""
        _open_closed_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as problem:
            click.echo(_refused(problem), err=True)
            sys.stdout = io.StringIO()  # or Python would try again to write what is left, and complain
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The subcommand of that name, if there is one."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"vibemq.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the subcommand; what it raises becomes text and exit code."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(error.text) from None
        except VibeMQError as error:
            click.echo(f"vibemq: {error.text}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - rarely needed

        click.echo(f"vibemq {version('vibemq')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def main() -> None:
    """VibeMQ: a durable message broker in which the log is the truth."""


if __name__ == "__main__":
    sys.exit(main())

"""The ``migrate`` command itself: general options, sub-commands, one place for all errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from vmferry import __version__
from vmferry.cli.exits import MEANINGS, ExitCode
from vmferry.cli.failures import guarded
from vmferry.cli.lazy import LazyGroup
from vmferry.cli.logs import configure

__all__ = ["migrate", "run_command_line"]

PROGRAM = "migrate"
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code:5}  {text}" for code, text in MEANINGS.items())
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=LazyGroup, invoke_without_command=True, epilog=_EPILOG, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s (vmferry) %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more; twice: everything, and tracebacks.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append everything that is logged to this file.",
)
@click.pass_context
def migrate(context: click.Context, verbose: int, log_file: Path | None) -> ExitCode | None:
    """Move a running virtual machine to another host together with its local disks."""
    configure(verbose, log_file)
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help(), err=True)
    return ExitCode.USAGE


def run_command_line(arguments: Sequence[str] | None = None) -> ExitCode:
    """Run ``migrate`` and return its exit code; see ``vmferry.cli.main``."""
    given = None if arguments is None else list(arguments)
    return guarded(lambda: migrate.main(given, prog_name=PROGRAM, standalone_mode=False))

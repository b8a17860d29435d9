"""``migrate demo``: a whole migration on one machine, and the proof that nothing was lost."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from vmferry.api import Verdict
from vmferry.cli.choices import migration_options
from vmferry.cli.demo_stage import Stage
from vmferry.cli.display import choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.parameters import DURATION, SIZE, PluginName
from vmferry.cli.settings import plugin_options
from vmferry.errors import InputError

__all__ = ["demo"]

_LONGEST = 64
"""Characters of a folder below which sockets are made: a socket's path has 107 (``unix(7)``)."""


@click.command(short_help="Migrate a guest on this machine, and check it.")
@click.option(
    "--hypervisor",
    type=PluginName("trial"),
    default="process",
    show_default=True,
    help="Kind of guest; 'process' is a real process that plays one.",
)
@click.option(
    "--disk-size", type=SIZE, default=1 << 30, show_default="1GiB", help="Size of its disk."
)
@click.option("--transport", default="tcp", show_default=True, help="Scheme of the connection.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to make everything; kept afterwards. Default: a temporary folder.",
)
@click.option(
    "--before",
    type=DURATION,
    default=1.0,
    show_default="1s",
    help="How long the guest runs before it is migrated.",
)
@click.option(
    "--after",
    type=DURATION,
    default=1.0,
    show_default="1s",
    help="How long it runs at the destination before it is checked.",
)
@migration_options
@plugin_options("trial", "hypervisor", "tracker", "transport", "volume")
@display_options
def demo(
    hypervisor: str,
    disk_size: int,
    transport: str,
    folder: Path | None,
    before: float,
    after: float,
    plugin_settings: Any,
    json: bool,
    quiet: bool,
    **choices: Any,
) -> ExitCode:
    """Migrate a guest between two agents on this machine, and prove that nothing was lost.

    A guest that writes to its memory and disk all the time is started, moved over TCP to an agent
    in another process, and stopped. Then its disk is compared with its own record of the writes it
    was told have completed. Exit code 6 if any is missing.

    \b
    Examples:
      migrate demo
      migrate demo --disk-size 256MiB --trial-opt write_rate=0 --bandwidth 50MiB/s
      migrate demo --json
    """
    with choose_display(json, quiet=quiet) as display, _folder(folder) as where:
        stage = Stage(Path(where), hypervisor, transport, plugin_settings, display, before, after)
        verdict = asyncio.run(stage.play(disk_size, choices))
        if isinstance(verdict, ExitCode):
            return verdict
        display.event("", "verdict", _facts(verdict))
        return ExitCode.OK if verdict.good else ExitCode.DATA


def _folder(folder: Path | None) -> AbstractContextManager[str]:
    if folder is None:
        return tempfile.TemporaryDirectory(prefix="vmferry-demo-")
    folder = folder.resolve()
    if len(str(folder)) > _LONGEST:
        raise InputError(
            f"the path of {folder} is too long: sockets below it could have no name; "
            f"choose one of at most {_LONGEST} characters"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(folder))


def _facts(verdict: Verdict) -> dict[str, Any]:
    facts = {name: getattr(verdict, name) for name in verdict.__struct_fields__}
    facts["verdict"] = "nothing was lost" if verdict.good else "DATA WAS LOST OR WRONG"
    return facts

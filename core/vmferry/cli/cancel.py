"""``migrate cancel``: give a migration up that has not been handed over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from vmferry.cli.assembly import assemble, state_option
from vmferry.cli.control import ask, running_jobs
from vmferry.cli.deciding import act, open_case
from vmferry.cli.display import Display, choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.peers import find_record
from vmferry.cli.settings import plugin_options
from vmferry.engine.journal import JobRecord
from vmferry.engine.resolving import Action, Ruling

__all__ = ["cancel"]

_LOOK = 0.2
_ALLOWED = {
    "source": {Action.TAKE_BACK, Action.NOTHING},
    "destination": {Action.DROP, Action.NOTHING},
}


@click.command(short_help="Give up a migration that has not been handed over.")
@click.argument("job")
@plugin_options("hypervisor", "transport", "volume")
@state_option
@display_options
def cancel(job: str, plugin_settings: Any, state_dir: Path, json: bool, quiet: bool) -> ExitCode:
    """Give JOB up: its guest stays at the source, and the destination keeps nothing of it.

    On either host, whether the other one answers or not, and whether `migrate run` still runs or
    not. Once the guest was handed over it is refused with exit code 5, or with 8 if this host
    cannot know. What is over is left alone.

    \b
    Examples:
      migrate cancel 5f0c9a1b2c3d
    """
    record = asyncio.run(find_record(state_dir, job))
    if job in running_jobs(state_dir):
        return asyncio.run(_interrupt(record, state_dir))
    with choose_display(json, quiet=quiet) as display:
        return asyncio.run(_cancel(record, plugin_settings, state_dir, display))


async def _interrupt(record: JobRecord, state: Path) -> ExitCode:
    """The command that runs the job gives it up by itself."""
    await ask(state, record.job, {"cancel": True})
    while record.job in running_jobs(state):
        record = await find_record(state, record.job)
        if record.committed:
            return _too_late(record, "the guest was handed over")
        await asyncio.sleep(_LOOK)
    record = await find_record(state, record.job)
    if record.committed:
        return _too_late(record, "the guest was handed over")
    click.echo(f"{record.job}: cancelled; guest {record.guest} runs here")
    return ExitCode.OK


async def _cancel(record: JobRecord, settings: Any, state: Path, display: Display) -> ExitCode:
    async with assemble(settings, display, state, record.role) as assembly:
        if record.role == "source" and record.committed:
            return _too_late(record, "the guest was handed over")
        case = await open_case(assembly, record)
        ruling = await case.rule()
        if ruling.action not in _ALLOWED[record.role]:
            return _too_late(record, ruling.reason, ruling)
        click.echo(f"{record.job}: {ruling.reason}")
        return await act(assembly, case, ruling)


def _too_late(record: JobRecord, reason: str, ruling: Ruling | None = None) -> ExitCode:
    click.echo(
        f"migrate: job {record.job} cannot be cancelled: {reason}; "
        f"`migrate resolve {record.job}` says what can be done",
        err=True,
    )
    unknown = ruling is not None and ruling.action is Action.REFUSE
    return ExitCode.UNDECIDED if unknown else ExitCode.AFTER_SWITCH

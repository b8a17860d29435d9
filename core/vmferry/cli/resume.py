"""``migrate resume``: bring a migration to its end whose command has ended too early."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from vmferry.api import Address
from vmferry.cli.assembly import Assembly, assemble, state_option
from vmferry.cli.control import running_jobs
from vmferry.cli.display import Display, choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.peers import connector
from vmferry.cli.run import migrate_guest
from vmferry.cli.settings import plugin_options
from vmferry.engine.continuing import ContinuedJob
from vmferry.engine.journal import JobRecord
from vmferry.engine.resolving import may_continue
from vmferry.engine.resuming import ResumedJob
from vmferry.errors import InputError

__all__ = ["resume"]


@click.command(short_help="Bring a broken-off migration to its end.")
@click.argument("job")
@plugin_options("hypervisor", "tracker", "transport", "volume")
@state_option
@display_options
def resume(job: str, plugin_settings: Any, state_dir: Path, json: bool, quiet: bool) -> ExitCode:
    """Bring JOB to its end after `migrate run` was killed, or gave up in PULL.

    If the guest was handed over, the destination gets what it still lacks. If it was killed in
    PUSH, the guest is made to run here and PUSH goes on: only what the destination does not have is
    sent. Otherwise, or if the destination has kept nothing or cannot be reached, the guest is made
    to run here and the destination drops what it has; so does `migrate cancel JOB`. Give the
    options of plugins that `migrate run` had; all else is remembered.

    \b
    Examples:
      migrate status
      migrate resume 5f0c9a1b2c3d
    """
    if job in running_jobs(state_dir):
        raise InputError(f"job {job} is running; 'migrate set' changes it")
    with choose_display(json, quiet=quiet) as display:
        return asyncio.run(_resume(job, plugin_settings, state_dir, display))


async def _resume(name: str, settings: Any, state: Path, display: Display) -> ExitCode:
    async with assemble(settings, display, state, "source") as assembly:
        record = await assembly.journal.load(name)
        if may_continue(record):
            return await migrate_guest(_continued(assembly, record), assembly.state)
        job = ResumedJob(assembly.services(), record, connector(assembly, record))
        code = await migrate_guest(job, assembly.state)
        return code if job.committed else ExitCode.OK


def _continued(assembly: Assembly, record: JobRecord) -> ContinuedJob:
    address = Address.parse(record.peer)
    return ContinuedJob(assembly.services(), record, lambda lanes: assembly.connect(address, lanes))

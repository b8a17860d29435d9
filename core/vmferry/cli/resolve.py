"""``migrate resolve``: who has the guest of a broken-off migration, and bring it to its end."""

from __future__ import annotations

import asyncio
import json as jsons
from pathlib import Path
from typing import Any

import click

from vmferry.api import Address
from vmferry.cli.assembly import assemble, state_option
from vmferry.cli.control import running_jobs
from vmferry.cli.deciding import act, open_case
from vmferry.cli.display import Display, choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.peers import find_record
from vmferry.cli.run import with_remote_command
from vmferry.cli.settings import plugin_options
from vmferry.engine.deciding import AtDestination, AtSource
from vmferry.engine.journal import JobRecord
from vmferry.engine.resolving import Action, Ruling
from vmferry.errors import InputError

__all__ = ["resolve"]

_WORDS = {
    Action.NOTHING: "nothing is to be done",
    Action.TAKE_BACK: "the guest runs here, at the source",
    Action.GO_ON: "the guest is the destination's; the job goes on",
    Action.CLOSE: "the job is closed; no guest is left to run",
    Action.OWN: "the guest is this host's, the destination's",
    Action.DROP: "the guest is the source's; nothing of it is kept here",
    Action.REFUSE: "not decided; nothing was changed",
}


@click.command(short_help="Decide who has the guest of a broken-off migration.")
@click.argument("job")
@click.option(
    "--peer-journal",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Journal or state folder of the other host, if its agent cannot be asked.",
)
@click.option(
    "--i-have-fenced",
    "fenced",
    metavar="HOST",
    help="You have made sure that HOST, the other one, cannot run the guest, now or later.",
)
@click.option("--dry-run", is_flag=True, help="Say what is known and would be done; do nothing.")
@click.option("--remote-command", envvar="VMFERRY_REMOTE_COMMAND", hidden=True)
@plugin_options("hypervisor", "transport", "volume")
@state_option
@display_options
def resolve(
    job: str,
    peer_journal: Path | None,
    fenced: str | None,
    dry_run: bool,
    remote_command: str | None,
    plugin_settings: Any,
    state_dir: Path,
    json: bool,
    quiet: bool,
) -> ExitCode:
    """Find out who has the guest of JOB, and bring the job to its end.

    The journals of both hosts are asked: the other one's through its agent, or with
    --peer-journal. What they decide is done: the guest is made to run here, or is left to the
    other host. What they cannot decide is refused with exit code 8, and you are told what to make
    sure of. Give the options of plugins that `migrate run` or `serve` had.

    \b
    Examples:
      migrate status
      migrate resolve 5f0c9a1b2c3d --dry-run
      migrate resolve 5f0c9a1b2c3d
      migrate resolve 5f0c9a1b2c3d --peer-journal /mnt/hostb/var/lib/vmferry
      migrate resolve 5f0c9a1b2c3d --i-have-fenced hostb
    """
    if job in running_jobs(state_dir):
        raise InputError(f"job {job} is running; 'migrate cancel' gives it up")
    record = asyncio.run(find_record(state_dir, job))
    is_fenced = _is_fenced(record, fenced)
    settings = with_remote_command(plugin_settings, remote_command)
    with choose_display(json, quiet=quiet) as display:
        work = _resolve(
            record, peer_journal, is_fenced, settings, state_dir, display, json, dry_run
        )
        return asyncio.run(work)


def _is_fenced(record: JobRecord, host: str | None) -> bool:
    """Whether the other host was fenced; raises ``InputError`` if another one was named."""
    if host is None:
        return False
    if record.role == "source" and host != (peer := Address.parse(record.peer).host):
        raise InputError(f"--i-have-fenced {host}: the other host of this job is {peer}")
    return True


async def _resolve(
    record: JobRecord,
    peer_journal: Path | None,
    fenced: bool,
    settings: Any,
    state: Path,
    display: Display,
    json: bool,
    dry_run: bool,
) -> ExitCode:
    async with assemble(settings, display, state, record.role) as assembly:
        case = await open_case(assembly, record, peer_journal, fenced=fenced)
        ruling = await case.rule()
        _show(record, case, ruling, json=json)
        if ruling.action is Action.REFUSE:
            return ExitCode.UNDECIDED
        return ExitCode.OK if dry_run else await act(assembly, case, ruling)


def _show(record: JobRecord, case: AtSource | AtDestination, ruling: Ruling, *, json: bool) -> None:
    facts = {
        "event": "resolve",
        "job": record.job,
        "guest": record.guest,
        "role": record.role,
        "action": ruling.action.value,
        "reason": ruling.reason,
        "ensure": ruling.ensure,
    }
    if json:
        click.echo(jsons.dumps(facts))
        return
    click.echo(f"{record.job}  guest {record.guest}: {ruling.reason}")
    click.echo(f"{_WORDS[ruling.action]}{_further(case, ruling)}")
    if ruling.ensure:
        click.echo(f"make sure: {ruling.ensure}")


def _further(case: AtSource | AtDestination, ruling: Ruling) -> str:
    if ruling.action is Action.OWN and isinstance(case, AtDestination) and case.needs_agent:
        return "; start `migrate serve` with its options, which runs it and pulls its disks"
    return ""

"""``migrate run``: move a guest to another host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vmferry.api import Address
from vmferry.cli.assembly import Assembly, assemble, state_option
from vmferry.cli.choices import migration_options, policy_of, settings_of
from vmferry.cli.control import Job, controlled
from vmferry.cli.display import Display, choose_display, display_options
from vmferry.cli.exits import ExitCode
from vmferry.cli.interrupt import run_interruptible
from vmferry.cli.parameters import PluginName
from vmferry.cli.settings import merge, plugin_options
from vmferry.engine.source import SourceJob

__all__ = ["departure_options", "make_job", "migrate_guest", "run", "with_remote_command"]


_INTERRUPTED = {
    "source": ExitCode.INTERRUPTED,
    "destination": ExitCode.AFTER_SWITCH,
    "unknown": ExitCode.FAILURE,
}


_DEPARTURE: tuple[Callable[[Any], Any], ...] = (
    click.argument("guest"),
    click.argument("destination", metavar="URL"),
    click.option(
        "--hypervisor",
        type=PluginName("hypervisor"),
        default="process",
        show_default=True,
        help="Plugin that drives the guest.",
    ),
    migration_options,
    plugin_options("hypervisor", "tracker", "transport", "volume"),
    click.option(
        "--remote-command",
        envvar="VMFERRY_REMOTE_COMMAND",
        help="How migrate is called at the other end of ssh://, if it is not on the path there.",
    ),
    state_option,
)


def departure_options(command: Any) -> Any:
    """Add what a command needs to know of a guest that leaves: who, where to, and how."""
    for option in reversed(_DEPARTURE):
        command = option(command)
    return command


def with_remote_command(settings: Any, command: str | None) -> Any:
    """``settings`` with what ``--remote-command`` says of the ``ssh`` transport."""
    given = [f"ssh.remote_command={command}"] if command is not None else []
    return merge(settings, {"transport": given})


def make_job(
    assembly: Assembly, guest: str, hypervisor: str, address: Address, choices: dict[str, Any]
) -> SourceJob:
    """The job that the options describe."""
    return SourceJob(
        assembly.services(),
        settings_of(choices),
        lambda lanes: assembly.connect(address, lanes),
        guest=guest,
        hypervisor=hypervisor,
        peer=str(address),
        policy=policy_of(choices),
    )


async def migrate_guest(job: Job, state: Path) -> ExitCode:
    """Run a job to its end under Ctrl-C and the control socket."""

    def hold() -> str:
        if not job.committed:
            return ""
        return f"the guest runs at the destination; job {job.job} goes on until its disk is local"

    try:
        async with controlled(job, state):
            await run_interruptible(job.run(), hold)
    except asyncio.CancelledError:
        return _INTERRUPTED[job.owner]
    return ExitCode.OK


@click.command(short_help="Migrate a guest to another host.")
@departure_options
@display_options
def run(
    guest: str,
    destination: str,
    hypervisor: str,
    plugin_settings: Any,
    remote_command: str | None,
    state_dir: Path,
    json: bool,
    quiet: bool,
    **choices: Any,
) -> ExitCode:
    """Move GUEST with its local disks to the agent at URL, while it runs.

    With ssh://[user@]host[:port][/pool] the agent there is started through your own ssh.

    \b
    PUSH  the disk is copied, then what was written meanwhile, then memory
    STOP  the guest stands still while its last state and the dirty bitmap go over
    PULL  the guest runs there; what was still dirty is fetched on demand and pushed

    Ctrl-C before the switch leaves the guest running here. After it the command goes on until the
    disk is local.

    \b
    Examples:
      migrate run web1 ssh://hostb
      migrate run web1 ssh://root@hostb:2222/srv/guests
      migrate run web1 tcp://hostb:7420
      migrate run web1 tcp://hostb:7420 --bandwidth 100MiB/s --json
      migrate run web1 tcp://hostb:7420 \\
          --transport-opt tls_cert=a.pem --transport-opt tls_key=a.key --transport-opt tls_ca=ca.pem
    """
    address = Address.parse(destination)
    with choose_display(json, quiet=quiet) as display:
        settings = with_remote_command(plugin_settings, remote_command)
        work = _run(guest, hypervisor, address, settings, state_dir, display, choices)
        return asyncio.run(work)


async def _run(
    guest: str,
    hypervisor: str,
    address: Address,
    settings: Any,
    state: Path,
    display: Display,
    choices: dict[str, Any],
) -> ExitCode:
    async with assemble(settings, display, state, "source") as assembly:
        job = make_job(assembly, guest, hypervisor, address, choices)
        return await migrate_guest(job, assembly.state)

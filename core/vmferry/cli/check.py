"""``migrate check``: everything that could refuse a migration, changing nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from vmferry.api import Address, Finding, Severity
from vmferry.cli.assembly import assemble
from vmferry.cli.display import QuietDisplay
from vmferry.cli.exits import ExitCode
from vmferry.cli.failures import finding_lines
from vmferry.cli.run import departure_options, make_job, with_remote_command

__all__ = ["check"]


@click.command(short_help="Tell whether a guest could migrate.")
@departure_options
@click.option("--json", is_flag=True, help="Print the findings as a JSON array.")
def check(
    guest: str,
    destination: str,
    hypervisor: str,
    plugin_settings: Any,
    remote_command: str | None,
    state_dir: Path,
    json: bool,
    **choices: Any,
) -> ExitCode:
    """Look for everything that could refuse the migration of GUEST to the agent at URL.

    Both hosts are asked and nothing is changed. Exit code 3 if there is a reason not to start.

    \b
    Examples:
      migrate check web1 ssh://hostb
      migrate check web1 tcp://hostb:7420
    """
    address = Address.parse(destination)
    settings = with_remote_command(plugin_settings, remote_command)

    async def work() -> list[Finding]:
        async with assemble(settings, QuietDisplay(), state_dir, "source") as assembly:
            return await make_job(assembly, guest, hypervisor, address, choices).check()

    findings = asyncio.run(work())
    refused = any(finding.severity is Severity.ERROR for finding in findings)
    if json:
        click.echo(msgspec.json.encode(findings).decode())
    else:
        for line in finding_lines(tuple(findings)):
            click.echo(line)
        click.echo(f"{guest} {'cannot' if refused else 'can'} migrate to {address}")
    return ExitCode.REFUSED if refused else ExitCode.OK

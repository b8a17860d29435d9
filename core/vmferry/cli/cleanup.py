"""``migrate cleanup``: remove what migrations that were cut short have left on this host."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from vmferry.cli.assembly import state_option
from vmferry.cli.control import stale_sockets
from vmferry.cli.exits import ExitCode
from vmferry.cli.parameters import DURATION, PluginName
from vmferry.cli.settings import plugin_options
from vmferry.engine.journal import JobRecord, Journal
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.engine.tidying import guards, left_disks, tidy_up, untidy
from vmferry.plugins import Registry

__all__ = ["cleanup"]


@click.command(short_help="Remove what broken-off migrations have left on this host.")
@click.option(
    "--hypervisor",
    type=PluginName("hypervisor"),
    default="process",
    show_default=True,
    help="Plugin whose leftovers are meant.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed and remove nothing.")
@click.option("--disks", is_flag=True, help="Also half-made disks of migrations given up here.")
@click.option(
    "--forget",
    type=DURATION,
    metavar="AGE",
    help="Also forget migrations that have been over for that long, e.g. 720h.",
)
@plugin_options("hypervisor", "volume")
@state_option
def cleanup(
    hypervisor: str,
    dry_run: bool,
    disks: bool,
    forget: float | None,
    plugin_settings: Any,
    state_dir: Path,
) -> ExitCode:
    """Remove what migrations that were cut short have left on this host.

    Half-built guests and devices that nobody uses are removed, and sockets of processes that are
    gone. No disk is, but with --disks those that a migration made here which was given up since:
    see what it would remove with --dry-run first. Do not call it while a guest arrives here.

    \b
    Examples:
      migrate cleanup --hypervisor xen --dry-run
      migrate cleanup --hypervisor xen
      migrate cleanup --disks --forget 720h
    """
    registry = Registry(plugin_settings)
    registry.check()
    found = asyncio.run(_clean(registry, hypervisor, state_dir, disks, forget, dry_run))
    for text in found:
        click.echo(text)
    if not found:
        click.echo("nothing is left behind", err=True)
    return ExitCode.OK


async def _clean(
    registry: Registry,
    hypervisor: str,
    state: Path,
    disks: bool,
    forget: float | None,
    dry_run: bool,
) -> list[str]:
    found = list(await registry.hypervisor(hypervisor).cleanup(dry_run=dry_run))
    for path in stale_sockets(state):
        found.append(f"socket {path} of a process that is gone")
        if not dry_run:
            path.unlink(missing_ok=True)
    async with AsyncExitStack() as stack:
        for role in ("source", "destination"):
            if (path := state / f"{role}.sqlite").exists():
                journal = await stack.enter_async_context(SqliteJournal(path))
                found += await _tidy(registry, journal, disks, dry_run)
                if forget is not None:
                    found += await _forget(journal, time.time() - forget, dry_run)
    return found


async def _tidy(registry: Registry, journal: Journal, disks: bool, dry_run: bool) -> list[str]:
    records, found = await journal.jobs(), []
    for record in untidy(records):
        places = left_disks(record, records) if disks else []
        found += [f"disk {place} of job {record.job}, which was given up" for place in places]
        if not dry_run:
            await tidy_up(registry, journal, record, disks=disks)
    return found


async def _forget(journal: Journal, before: float, dry_run: bool) -> list[str]:
    records = await journal.jobs()
    old = [
        one
        for one in records
        if _is_over(one) and one.updated < before and not guards(one, records)
    ]
    if not dry_run:
        for record in old:
            await journal.forget(record.job)
    return [f"job {one.job} of guest {one.guest}, over ({one.outcome})" for one in old]


def _is_over(record: JobRecord) -> bool:
    """Whether nothing that is left anywhere needs the journal to know of the job."""
    settled = record.outcome == "done" or not (record.committed or record.owner)
    return bool(record.outcome) and settled and record not in untidy([record])

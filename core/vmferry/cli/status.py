"""``migrate status``: the migrations this host knows of, as its journals tell."""

from __future__ import annotations

import asyncio
import json as jsons
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import click

from vmferry.cli.assembly import state_option
from vmferry.cli.control import running_jobs
from vmferry.engine.journal import JobRecord
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.engine.resolving import may_continue
from vmferry.errors import InputError

__all__ = ["status"]


@click.command(short_help="Show the migrations of this host.")
@click.argument("job", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@click.option("--json", is_flag=True, help="One JSON object per line.")
@state_option
def status(job: str | None, everything: bool, json: bool, state_dir: Path) -> None:
    """Show the migrations that are under way or were broken off here, from the journals.

    \b
    Examples:
      migrate status
      migrate status --all --json
      migrate status 5f0c9a1b2c3d
    """
    records = asyncio.run(_records(state_dir))
    if job is not None:
        records = [one for one in records if one.job == job]
        if not records:
            raise InputError(f"there is no job {job} in {state_dir}; see 'migrate status --all'")
    elif not everything:
        records = [one for one in records if not one.outcome]
    running = set(running_jobs(state_dir))
    for one in records:
        click.echo(_as_json(one, one.job in running) if json else _line(one, one.job in running))
    if not records and not json:
        click.echo("no migration is under way here; --all shows those that are over")


async def _records(state: Path) -> Sequence[JobRecord]:
    found: list[JobRecord] = []
    async with AsyncExitStack() as stack:
        for role in ("source", "destination"):
            path = state / f"{role}.sqlite"
            if path.exists():
                journal = await stack.enter_async_context(SqliteJournal(path))
                found += await journal.jobs()
    return sorted(found, key=lambda one: one.created)


def _line(record: JobRecord, running: bool) -> str:
    when = datetime.fromtimestamp(record.updated).strftime("%Y-%m-%d %H:%M:%S")
    end = record.outcome or record.phase.value
    return (
        f"{record.job}  {record.role:11}  {record.guest}  {end}  {when}  {_advice(record, running)}"
    )


def _advice(record: JobRecord, running: bool) -> str:
    if record.outcome == "done":
        return ""
    if record.role == "destination":
        return _advice_there(record)
    if running:
        return "running"
    if record.committed:
        return f"handed over; go on with: migrate resume {record.job}"
    if record.outcome:
        return record.error
    if may_continue(record):
        return f"not handed over; go on with: migrate resume {record.job}, or migrate cancel"
    return f"not handed over; undo with: migrate resume {record.job}"


def _advice_there(record: JobRecord) -> str:
    if record.owner:
        return record.error or "the guest runs here; `migrate serve` pulls its disks"
    return record.error or "the guest has not been handed over"


def _as_json(record: JobRecord, running: bool) -> str:
    fields = ("job", "role", "guest", "peer", "phase", "committed", "owner", "outcome", "error")
    facts = {name: getattr(record, name) for name in (*fields, "created", "updated")}
    facts |= {"running": running, "advice": _advice(record, running)}
    return jsons.dumps(facts)

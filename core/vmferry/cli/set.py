"""``migrate set``: change a migration that is running."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from vmferry.cli.assembly import state_option
from vmferry.cli.control import ask, running_jobs
from vmferry.cli.parameters import RATE
from vmferry.errors import InputError
from vmferry.units import format_rate

__all__ = ["set_"]


@click.command("set", short_help="Change a migration that is running.")
@click.argument("job", required=False)
@click.option("--bandwidth", type=RATE, help="Limit over all lanes and memory; 0 for none.")
@click.option("--switch-now", is_flag=True, help="End the rounds of PUSH and switch.")
@state_option
def set_(job: str | None, bandwidth: int | None, switch_now: bool, state_dir: Path) -> None:
    """Change the running migration JOB; it may be left out if only one runs here.

    \b
    Examples:
      migrate set --bandwidth 20MiB/s
      migrate set 5f0c9a1b2c3d --switch-now
    """
    wish: dict[str, Any] = {"switch": switch_now}
    if bandwidth is not None:
        wish["bandwidth"] = bandwidth
    if bandwidth is None and not switch_now:
        raise InputError("nothing to change: give --bandwidth or --switch-now")
    answer = asyncio.run(ask(state_dir, job or _only_job(state_dir), wish))
    if "error" in answer:
        raise InputError(str(answer["error"]))
    rate = int(answer["bandwidth"])
    click.echo(f"{answer['job']}: bandwidth {format_rate(rate) if rate else 'unlimited'}")


def _only_job(state: Path) -> str:
    jobs = running_jobs(state)
    if len(jobs) != 1:
        known = ", ".join(jobs) or "none"
        raise InputError(f"name the migration to change; running here: {known}")
    return jobs[0]

"""SIGKILL at single steps of the protocol, with real processes; then one documented command.

The same is done to every step in the simulation (``tests/simulation/test_fault_matrix.py``); these
few show that processes, sockets, files and SQLite behave as it assumes. ``VMFERRY_KILL_ALL=1`` has
more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from typing import Any

import pytest

from vmferry.errors import HypervisorError
from vmferry_hypervisors.process.console import read_console

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

QUICK = ("--compression", "none", "--block-size", "4KiB", "--threshold", "1GiB")
FEW = [
    ("source", "after", "journal.update(phase=stop)"),
    ("source", "before", "journal.update(committed=True)"),
    ("source", "after", "journal.update(committed=True)"),
    ("source", "after", "Go"),
    ("destination", "after", "journal.decide(owner)"),
    ("destination", "after", "Running"),
    ("destination", "before", "Local"),
]
MORE = [
    ("source", "before", "Offer"),
    ("source", "after", "Suspended"),
    ("source", "before", "journal.update(phase=pull)"),
    ("source", "before", "journal.update(outcome=done,phase=done)"),
    ("source", "before", "Bye"),
    ("destination", "before", "Accepted"),
    ("destination", "after", "Reached"),
    ("destination", "before", "journal.save_pending()"),
    ("destination", "after", "journal.update(outcome=done,phase=done)"),
]
POINTS = FEW + (MORE if os.environ.get("VMFERRY_KILL_ALL") else [])


async def ended(process: subprocess.Popen[str]) -> int:
    """Wait for a process, reading what it says; returns its exit code."""
    await asyncio.to_thread(process.communicate, timeout=300)
    return process.returncode


def unfinished(hosts: Any) -> list[str]:
    command = [*hosts.command("status")[:4], "--state-dir", str(hosts.folder / "here"), "--json"]
    known = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line)["job"] for line in known.stdout.splitlines()]


async def brought_to_its_end(hosts: Any) -> None:
    """``migrate resume`` until nothing is under way any more."""
    said = ""
    for _ in range(3):
        jobs = unfinished(hosts)
        if not jobs:
            return
        result = await asyncio.to_thread(hosts.migrate, "resume", jobs[0])
        said += result.stderr
    raise AssertionError(f"the job does not end: {said}")


def acknowledged(hosts: Any, role: str) -> set[int]:
    """Numbers of the writes that the guest was told on that host have completed."""
    numbers = read_console(hosts.trial._guest(role).console)["sequence"].tolist()
    return set(numbers) - {0}


async def where(hosts: Any) -> str:
    """The one host that runs the guest, which goes on writing there."""
    before = (await hosts.trial.status()).writes
    async with asyncio.timeout(300):
        while (await hosts.trial.status()).writes == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    homes = [role for role in ("source", "destination") if alive(hosts, role)]
    assert len(homes) == 1, homes
    return homes[0]


def alive(hosts: Any, role: str) -> bool:
    try:
        return hosts.trial._guest(role).pid() is not None
    except HypervisorError:
        return False


@pytest.mark.parametrize(("host", "edge", "step"), POINTS, ids=lambda part: str(part))
async def test_killed_there_the_job_ends_with_one_command(
    hosts: Any, host: str, edge: str, step: str
) -> None:
    await hosts.start_guest(size=8 << 20, prefill="0.5", read_ratio="0.3", timeout="60")
    kill = (edge, step)
    address = hosts.start_agent(kill_at=kill if host == "destination" else ())
    agent = hosts._agents[0]
    process = hosts.start(
        "run", hosts.guest, address, *QUICK, kill_at=kill if host == "source" else ()
    )
    if host == "destination":
        assert await ended(agent) == -signal.SIGKILL
        assert hosts.start_agent(url=address) == address
        await ended(process)
    else:
        assert await ended(process) == -signal.SIGKILL
    await brought_to_its_end(hosts)
    home = await where(hosts)
    both = acknowledged(hosts, "source") & acknowledged(hosts, "destination")
    assert not both, "the guest ran on both hosts"
    disk = hosts.arrived if home == "destination" else str(hosts.folder / "disk0.raw")
    verdict = await hosts.trial.verdict(disk)
    assert verdict.good, verdict

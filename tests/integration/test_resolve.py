"""``migrate resolve`` when both agents ended around the commit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], str], dict[str, Any]]
SLOW = ("--bandwidth", "4MiB/s", "--compression", "none", "--block-size", "4KiB")


def note(journal: Path, job: str, **fields: Any) -> None:
    """Write into a journal what an agent would have written that lived a little longer."""
    assignments = ", ".join(f"{name} = ?" for name in fields)
    with contextlib.closing(sqlite3.connect(journal)) as db, db:
        db.execute(f"UPDATE job SET {assignments} WHERE job = ?", (*fields.values(), job))
    db.close()


def known(journal: Path, job: str, *fields: str) -> tuple[Any, ...]:
    with contextlib.closing(sqlite3.connect(journal)) as db:
        row: tuple[Any, ...] = db.execute(
            f"SELECT {', '.join(fields)} FROM job WHERE job = ?", (job,)
        ).fetchone()
    return row


def all_jobs(journal: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(journal)) as db:
        return [name for (name,) in db.execute("SELECT job FROM job")]


async def handed_over_and_lost(hosts: Any, reached: Reached) -> tuple[str, str]:
    """The commit is made, the destination has not said that the guest runs; both agents end.

    Returns the job and the destination's address.
    """
    await hosts.start_guest(prefill="1.0")
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, *SLOW)
    event = await asyncio.to_thread(reached, process, "push-disk")
    agent, source = hosts._agents
    agent.send_signal(signal.SIGSTOP)  # neither is to notice the end of the other
    for each in (source, agent):
        each.send_signal(signal.SIGKILL)
        await asyncio.to_thread(each.wait)
    job = str(event["job"])
    note(hosts.folder / "here" / "source.sqlite", job, committed=1, phase="stop")
    note(hosts.folder / "there" / "destination.sqlite", job, phase="stop")
    return job, address


async def lose_the_guest_there(hosts: Any) -> None:
    """As when its host was started anew."""
    from vmferry_hypervisors.process.folder import GuestFolder

    await asyncio.to_thread(GuestFolder(hosts.folder / "destination", hosts.guest).kill)


async def writes_here(hosts: Any) -> None:
    before = (await hosts.trial.status()).writes
    async with asyncio.timeout(300):
        while (await hosts.trial.status()).writes <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_what_the_destination_lost_is_taken_back_once_it_has_promised(
    hosts: Any, phase_reached: Reached
) -> None:
    job, address = await handed_over_and_lost(hosts, phase_reached)
    await lose_the_guest_there(hosts)
    refused = await asyncio.to_thread(hosts.migrate, "resolve", job)
    assert refused.returncode == 8, refused.stderr
    assert "--i-have-fenced HOST" in refused.stdout

    hosts.start_agent(url=address)
    there = hosts.folder / "there" / "destination.sqlite"
    async with asyncio.timeout(300):
        while known(there, job, "withdrawn") != (1,):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert known(there, job, "owner", "outcome") == (0, "failed")
    assert list((hosts.folder / "pool").iterdir()), "no disk goes unless it is asked for"
    shown = await asyncio.to_thread(hosts.migrate, "resolve", job, "--dry-run")
    assert "promised never to run" in shown.stdout, shown.stderr
    here = hosts.folder / "here" / "source.sqlite"
    assert known(here, job, "committed", "outcome") == (1, "")
    done = await asyncio.to_thread(hosts.migrate, "resolve", job)
    assert done.returncode == 0, done.stderr
    assert known(here, job, "committed", "outcome") == (0, "failed")
    await writes_here(hosts)
    again = await asyncio.to_thread(hosts.migrate, "resolve", job)
    assert again.returncode == 0, again.stderr
    assert "is over" in again.stdout


async def test_without_the_agent_only_a_fence_decides(hosts: Any, phase_reached: Reached) -> None:
    job, _ = await handed_over_and_lost(hosts, phase_reached)
    file = ("--peer-journal", str(hosts.folder / "there"))
    refused = await asyncio.to_thread(hosts.migrate, "resolve", job, *file, "--json")
    assert refused.returncode == 8, refused.stderr
    facts = json.loads(refused.stdout.splitlines()[-1])
    assert facts["action"] == "refuse"
    assert "does not bind an agent" in facts["reason"]
    wrong = await asyncio.to_thread(hosts.migrate, "resolve", job, "--i-have-fenced", "hostc")
    assert wrong.returncode == 2
    assert "the other host of this job is 127.0.0.1" in wrong.stderr
    fenced = (*file, "--i-have-fenced", "127.0.0.1")
    done = await asyncio.to_thread(hosts.migrate, "resolve", job, *fenced)
    assert done.returncode == 0, done.stderr
    await writes_here(hosts)


def resolve_there(hosts: Any, job: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmferry", "resolve", job, *options]
    command += ["--state-dir", str(hosts.folder / "there")]
    command += ["--hypervisor-opt", f"state_dir={hosts.folder / 'destination'}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


async def test_of_a_source_that_is_fenced_the_destination_runs_the_guest(hosts: Any) -> None:
    from vmferry_hypervisors.process.folder import GuestFolder

    await hosts.start_guest(size=8 << 20, prefill="0.5", timeout="60")
    kill = ("after", "journal.update(committed=True)")
    options = ("--no-pull", "--threshold", "1GiB", "--compression", "none")
    source = hosts.start("run", hosts.guest, hosts.start_agent(), *options, kill_at=kill)
    await asyncio.to_thread(source.communicate, timeout=300)
    assert source.returncode == -signal.SIGKILL
    await asyncio.to_thread(GuestFolder(hosts.folder / "source", hosts.guest).kill)
    journal = hosts.folder / "there" / "destination.sqlite"
    (job,) = all_jobs(journal)
    refused = await asyncio.to_thread(resolve_there, hosts, job)
    assert refused.returncode == 8, refused.stderr
    assert "--i-have-fenced HOST" in refused.stdout
    done = await asyncio.to_thread(resolve_there, hosts, job, "--i-have-fenced", "hosta")
    assert done.returncode == 0, done.stderr
    async with asyncio.timeout(300):
        while known(journal, job, "outcome") != ("done",):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await writes_here(hosts)
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict


async def test_the_destination_refuses_what_only_the_source_knows_and_reads_its_journal(
    hosts: Any, phase_reached: Reached
) -> None:
    job, _ = await handed_over_and_lost(hosts, phase_reached)

    def resolve(*options: str) -> subprocess.CompletedProcess[str]:
        return resolve_there(hosts, job, *options)

    refused = await asyncio.to_thread(resolve)
    assert refused.returncode == 8, refused.stderr
    assert "known to the source alone" in refused.stdout
    here = hosts.folder / "here"
    given = await asyncio.to_thread(resolve, "--dry-run", "--peer-journal", str(here))
    assert given.returncode == 0, given.stderr
    assert "the guest was handed over" in given.stdout
    note(here / "source.sqlite", job, committed=0)
    dropped = await asyncio.to_thread(resolve, "--peer-journal", str(here))
    assert dropped.returncode == 0, dropped.stderr
    assert not list((hosts.folder / "pool").iterdir())
    assert not list((hosts.folder / "destination").glob("*/guest.json"))

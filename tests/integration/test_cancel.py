"""``migrate cancel`` on either host, with the other side alive or dead."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], str], dict[str, Any]]
SLOW = ("--bandwidth", "4MiB/s", "--compression", "none", "--block-size", "4KiB")


async def begun(hosts: Any, phase: str, reached: Reached, *options: str) -> tuple[Any, str]:
    """Start a migration and wait for ``phase``; returns its process and its job."""
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *options)
    event = await asyncio.to_thread(reached, process, phase)
    return process, str(event["job"])


async def still_writes(hosts: Any) -> bool:
    """Whether the guest runs at the source."""
    before = (await hosts.trial.status()).writes
    async with asyncio.timeout(300):
        while (await hosts.trial.status()).writes <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return True


def left_there(hosts: Any) -> list[Any]:
    return [
        *(hosts.folder / "pool").iterdir(),
        *(hosts.folder / "destination").glob("*/guest.json"),
    ]


async def gone_there(hosts: Any) -> None:
    async with asyncio.timeout(300):
        while left_there(hosts):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_running_migration_is_cancelled(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest(prefill="1.0")
    process, job = await begun(hosts, "push-disk", phase_reached, *SLOW)
    done = await asyncio.to_thread(hosts.migrate, "cancel", job)
    assert done.returncode == 0, done.stderr
    await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 130
    assert await still_writes(hosts)
    await gone_there(hosts)
    again = await asyncio.to_thread(hosts.migrate, "cancel", job)
    assert again.returncode == 0, again.stderr


async def test_with_both_sides_dead_the_guest_stays_and_each_host_is_tidied(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0")
    _, job = await begun(hosts, "push-disk", phase_reached, *SLOW)
    for each in hosts._agents:
        each.send_signal(signal.SIGKILL)
        await asyncio.to_thread(each.wait)
    here = await asyncio.to_thread(hosts.migrate, "cancel", job)
    assert here.returncode == 0, here.stderr
    assert await still_writes(hosts)
    assert left_there(hosts)
    for _ in range(2):
        done = await asyncio.to_thread(hosts.there, "cancel", job)
        assert done.returncode == 0, done.stderr
        assert not left_there(hosts)


async def test_a_push_whose_command_was_killed_is_given_up(hosts: Any) -> None:
    await hosts.start_guest(prefill="1.0")
    job = await hosts.killed_when_copied(0.3, *SLOW)  # with nothing there, nothing is kept
    assert left_there(hosts)
    done = await asyncio.to_thread(hosts.migrate, "cancel", job)
    assert done.returncode == 0, done.stderr
    assert await still_writes(hosts)
    await gone_there(hosts)


async def test_the_destination_cancels_through_its_agent(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0")
    process, job = await begun(hosts, "push-disk", phase_reached, *SLOW)
    done = await asyncio.to_thread(hosts.there, "cancel", job)
    assert done.returncode == 0, done.stderr
    await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 4
    assert await still_writes(hosts)
    assert not left_there(hosts)


async def test_after_the_commit_it_is_refused_on_both_hosts(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0", write_rate="0")
    slow = (*SLOW[2:], "--bandwidth", "2MiB/s")
    process, job = await begun(hosts, "push-disk", phase_reached, *slow)
    await asyncio.to_thread(hosts.set, job, "--switch-now")  # so all of it is pulled: a while
    await asyncio.to_thread(phase_reached, process, "pull")
    for refused in (
        await asyncio.to_thread(hosts.migrate, "cancel", job),
        await asyncio.to_thread(hosts.there, "cancel", job),
    ):
        assert refused.returncode == 5, refused.stderr
        assert "cannot be cancelled" in refused.stderr
    await asyncio.to_thread(hosts.set, job, "--bandwidth", "0")
    output, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["outcome"] == "done"
    assert (await hosts.trial.verdict(hosts.arrived)).good

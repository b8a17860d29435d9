"""``migrate run DOMAIN ssh://host`` against a real sshd: nothing was set up over there."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], str], dict[str, Any]]
SLOW = ("--bandwidth", "2MiB/s", "--compression", "none")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def nothing_left(remote: Any) -> None:
    """No ssh here, no agent, no socket there."""
    await until(lambda: not remote.login.processes())
    await until(lambda: not remote.agents())
    assert not list((remote.state / "ssh").glob("*.sock"))


@pytest.mark.parametrize("bulk", ["ssh", "direct"])
async def test_a_guest_migrates(hosts: Any, remote: Any, bulk: str) -> None:
    await hosts.start_guest()
    options = remote.options(bulk=bulk)
    check = hosts.migrate("check", hosts.guest, remote.url, *options)
    assert check.returncode == 0, check.stderr + check.stdout
    result = hosts.migrate("run", hosts.guest, remote.url, *options)
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good
    await nothing_left(remote)


async def test_without_a_direct_way_auto_goes_through_ssh_and_says_so(
    hosts: Any, remote: Any
) -> None:
    await hosts.start_guest()
    closed = "--transport-opt ssh.bulk=ssh"
    refused = hosts.migrate(
        "check", hosts.guest, remote.url, *remote.options(closed, bulk="direct")
    )
    assert refused.returncode == 7
    assert "no direct connection: the agent's options want bulk=ssh" in refused.stderr
    result = hosts.migrate("run", hosts.guest, remote.url, *remote.options(closed, bulk="auto"))
    assert result.returncode == 0, result.stderr
    assert "bulk data goes through ssh: the agent's options want bulk=ssh" in result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good


async def test_ctrl_c_before_the_switch_leaves_no_ssh_and_no_agent(
    hosts: Any, remote: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest()
    process = hosts.start("run", hosts.guest, remote.url, *SLOW, *remote.options())
    phase_reached(process, "push-disk")
    remote.login.signal(signal.SIGINT)  # as from a terminal: to all of the group
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    before = (await hosts.trial.status()).writes
    while (await hosts.trial.status()).writes == before:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await nothing_left(remote)
    assert list((hosts.folder / "pool").iterdir()) == []


async def test_a_source_that_is_killed_leaves_no_ssh_and_no_agent(
    hosts: Any, remote: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest()
    slow = (*SLOW, "--reconnect", "0s")
    process = hosts.start("run", hosts.guest, remote.url, *slow, *remote.options())
    phase_reached(process, "push-disk")
    assert remote.login.processes()
    process.kill()
    await nothing_left(remote)
    assert list((hosts.folder / "pool").iterdir()) == []


@pytest.mark.parametrize("bulk", ["ssh", "direct"])
async def test_ssh_lost_in_pull_is_another_login_to_the_same_agent(
    hosts: Any, remote: Any, phase_reached: Reached, bulk: str
) -> None:
    await hosts.start_guest(prefill="1.0", read_ratio="0.5")
    slow = ("--bandwidth", "4MiB/s", "--compression", "none", "--threshold", "1GiB")
    options = remote.options(bulk=bulk)
    process = hosts.start("run", hosts.guest, remote.url, *slow, *options)
    loop = asyncio.get_running_loop()
    job = await loop.run_in_executor(None, phase_reached, process, "push-disk")
    await loop.run_in_executor(None, hosts.set, job["job"], "--switch-now")
    await loop.run_in_executor(None, phase_reached, process, "pull")
    (agent,) = remote.agents()
    assert remote.login.signal(signal.SIGKILL) == (4 if bulk == "ssh" else 1)
    output, errors = await loop.run_in_executor(None, process.communicate)
    assert process.returncode == 0, errors
    assert '"reconnected"' in output
    assert [each.pid for each in remote.agents()] in ([agent.pid], [])
    status = await hosts.trial.status()
    assert (await hosts.trial.verdict(hosts.arrived)).good
    assert status.errors == 0
    await nothing_left(remote)


async def test_the_agent_is_in_a_session_of_its_own_and_serves_several_jobs(
    hosts: Any, remote: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest()
    process = hosts.start("run", hosts.guest, remote.url, *SLOW, *remote.options())
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, phase_reached, process, "push-disk")
    (agent,) = remote.agents()
    stat = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[3]) == agent.pid
    check = hosts.migrate("check", hosts.guest, remote.url, *remote.options())
    assert check.returncode == 3  # its disk is there already
    assert [each.pid for each in remote.agents()] == [agent.pid]
    process.send_signal(signal.SIGTERM)
    await loop.run_in_executor(None, process.communicate)
    await nothing_left(remote)


async def test_a_shell_that_talks_at_login_does_no_harm(hosts: Any, remote: Any) -> None:
    await hosts.start_guest()
    talking = f"echo Welcome to this host; echo; {remote.migrate}"
    result = hosts.migrate("check", hosts.guest, remote.url, *remote.options(migrate=talking))
    assert result.returncode == 0, result.stderr

"""A destination that stands still: its agent is stopped by SIGSTOP, sockets and all."""

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
SLOW = ("--bandwidth", "4MiB/s", "--compression", "none")


async def test_in_push_the_guest_stays_and_the_message_names_phase_and_peer(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(prefill="1.0")
    address = hosts.start_agent()
    options = (*SLOW, "--patience", "8s", "--reconnect", "0s")
    process = hosts.start("run", hosts.guest, address, *options)
    phase_reached(process, "push-disk")
    hosts._agents[0].send_signal(signal.SIGSTOP)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4, errors
    assert f"error: in push-disk: nothing was heard from {address} for 8 seconds" in errors
    before = (await hosts.trial.status()).writes
    while (await hosts.trial.status()).writes == before:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def wait_for_event(process: subprocess.Popen[str], name: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("name") == name:
            return
    raise AssertionError(f"no event {name}")


async def test_in_pull_the_source_comes_back(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest(prefill="1.0")
    options = (*SLOW, "--threshold", "1GiB", "--patience", "8s")
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *options)
    loop = asyncio.get_running_loop()
    job = await loop.run_in_executor(None, phase_reached, process, "push-disk")
    await loop.run_in_executor(None, hosts.set, job["job"], "--switch-now")
    await loop.run_in_executor(None, phase_reached, process, "pull")
    hosts._agents[0].send_signal(signal.SIGSTOP)
    await loop.run_in_executor(None, wait_for_event, process, "link-lost")
    hosts._agents[0].send_signal(signal.SIGCONT)
    output, errors = await loop.run_in_executor(None, process.communicate)
    assert process.returncode == 0, errors
    assert '"reconnected"' in output
    assert (await hosts.trial.status()).errors == 0
    assert (await hosts.trial.verdict(hosts.arrived)).good

"""A guest that ends by itself while it is on its way: crashed, shut down, told to stop."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], str], dict[str, Any]]
SLOW = ("--bandwidth", "8MiB/s", "--compression", "none", "--block-size", "4KiB")
WHOLE_PULL = (*SLOW, "--threshold", "1GiB")


async def begun(hosts: Any, phase: str, reached: Reached, *options: str) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = hosts.start("run", hosts.guest, hosts.start_agent(), *options)
    await asyncio.to_thread(reached, process, phase)
    return process


async def test_a_guest_that_ends_in_push_leaves_all_at_the_source(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(size=16 << 20, prefill="1.0")
    process = await begun(hosts, "push-disk", phase_reached, *SLOW)
    await asyncio.to_thread(hosts.trial._guest("source").kill)
    output, errors = await asyncio.to_thread(process.communicate, timeout=240)
    assert process.returncode == 4, errors
    assert f"guest {hosts.guest} ended while its memory was sent" in errors
    summary = json.loads(output.splitlines()[-1])
    assert (summary["outcome"], summary["owner"]) == ("failed", "source")
    async with asyncio.timeout(240):
        while list((hosts.folder / "pool").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert not list((hosts.folder / "destination").glob("*/guest.json"))
    verdict = await hosts.trial.verdict(str(hosts.folder / "disk0.raw"))
    assert verdict.lost == verdict.wrong == 0, verdict


async def test_the_disks_of_a_guest_that_ends_in_pull_are_pulled_to_the_end(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(size=16 << 20, prefill="1.0", write_rate="0")
    process = await begun(hosts, "pull", phase_reached, *WHOLE_PULL)
    await asyncio.to_thread(hosts.trial._guest("destination").kill)
    output, errors = await asyncio.to_thread(process.communicate, timeout=240)
    assert process.returncode == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert (summary["outcome"], summary["owner"]) == ("done", "destination")
    assert not list((hosts.folder / "source").glob("*/guest.json"))
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.lost == verdict.wrong == 0, verdict

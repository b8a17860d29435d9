"""The destination's agent is killed while the guest runs there, and started anew."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from vmferry.engine.journal import JobRecord
from vmferry.engine.journal_sqlite import SqliteJournal

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

Reached = Callable[[subprocess.Popen[str], str], dict[str, Any]]
LONG_PULL = (
    *("--bandwidth", "12MiB/s", "--compression", "none", "--block-size", "4KiB"),
    *("--threshold", "1GiB", "--stall-timeout", "0"),
)


async def killed(agent: subprocess.Popen[str]) -> None:
    agent.send_signal(signal.SIGKILL)
    await asyncio.to_thread(agent.wait)


async def test_pull_goes_on_after_the_agent_was_killed_and_no_write_is_lost(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(
        size=64 << 20, prefill="1.0", write_rate="0", read_ratio="0.3", fsync_every="0"
    )
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, *LONG_PULL)
    await asyncio.to_thread(phase_reached, process, "pull")
    agent = hosts._agents[0]
    for pause in (0.0, 0.5):
        await asyncio.sleep(pause)
        await killed(agent)
        assert hosts.start_agent(url=address) == address
        agent = hosts._agents[-1]
    output, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    assert any(event.get("name") == "reconnected" for event in events)
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert not list((hosts.folder / "there").glob("*.scratch/*"))


async def killed_in_push(
    hosts: Any, copied: Any, share: float, *options: str
) -> tuple[str, subprocess.Popen[str]]:
    """Begin a migration; kill its agent once so much is copied. Its address, and the command."""
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, "--compression", "none", *options)
    await asyncio.to_thread(copied, process, share)
    await killed(hosts._agents[0])
    return address, process


async def test_push_goes_on_after_the_agent_was_killed(hosts: Any, copied: Any) -> None:
    size = 64 << 20
    await hosts.start_guest(size=size, prefill="1.0", write_rate="20")
    options = ("--bandwidth", "8MiB/s", "--block-size", "4KiB")
    address, process = await killed_in_push(hosts, copied, 0.7, *options)
    assert hosts.start_agent(url=address) == address
    output, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    (again,) = [event for event in events if event.get("name") == "reconnected"]
    assert again["facts"]["pushing"]
    assert again["facts"]["left"] == size
    assert events[-1]["sent"] < 1.5 * size
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert not list((hosts.folder / "there").glob("*.scratch/*"))


async def test_of_a_push_whose_source_does_not_come_back_clean_up_leaves_nothing(
    hosts: Any, copied: Any
) -> None:
    """The disks are not removed unasked: there may be others in their places by now."""
    await hosts.start_guest(prefill="1.0")
    address = hosts.start_agent()
    options = ("--bandwidth", "2MiB/s", "--compression", "none", "--reconnect", "3s")
    process = hosts.start("run", hosts.guest, address, *options)
    await asyncio.to_thread(copied, process, 0.1)
    process.kill()
    await killed(hosts._agents[0])
    hosts.start_agent(url=address)
    assert list((hosts.folder / "pool").iterdir())
    async with SqliteJournal(hosts.folder / "there" / "destination.sqlite") as journal:
        async with asyncio.timeout(300):
            while not (await journal.jobs())[0].outcome:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert list((hosts.folder / "pool").iterdir())
    cleaned = await asyncio.to_thread(hosts.there, "cleanup", "--disks")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not list((hosts.folder / "pool").iterdir())
    assert not list((hosts.folder / "destination").glob("*/guest.json"))


async def test_a_push_whose_disk_cannot_be_opened_again_fails_and_the_guest_stays(
    hosts: Any, copied: Any
) -> None:
    await hosts.start_guest(prefill="1.0")
    options = ("--bandwidth", "4MiB/s")
    address, process = await killed_in_push(hosts, copied, 0.1, *options)
    disk = hosts.folder / "pool" / f"{hosts.guest}-disk0.raw"
    disk.rename(disk.with_suffix(".away"))
    hosts.start_agent(url=address)
    _, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode == 4, errors
    assert "has given the guest up without ever running it" in errors
    before = (await hosts.trial.status()).writes
    async with asyncio.timeout(300):
        while (await hosts.trial.status()).writes == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_agent_started_again_says_what_it_cannot_take_up(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(size=32 << 20, prefill="1.0", write_rate="0")
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, *LONG_PULL)
    await asyncio.to_thread(phase_reached, process, "pull")
    await killed(hosts._agents[0])
    disk = hosts.folder / "pool" / f"{hosts.guest}-disk0.raw"
    disk.rename(disk.with_suffix(".away"))
    hosts.start_agent(url=address)
    _, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode != 0
    assert "could not take it up" in errors
    disk.with_suffix(".away").rename(disk)


async def test_a_guest_that_has_left_since_is_not_taken_up(
    hosts: Any, phase_reached: Reached
) -> None:
    await hosts.start_guest(size=32 << 20, prefill="1.0", write_rate="0")
    address = hosts.start_agent()
    process = hosts.start("run", hosts.guest, address, *LONG_PULL)
    await asyncio.to_thread(phase_reached, process, "pull")
    await killed(hosts._agents[0])
    async with SqliteJournal(hosts.folder / "there" / "destination.sqlite") as journal:
        (arrived,) = await journal.jobs()
    assert arrived.epoch == 1
    left = JobRecord(job="left", role="source", guest=hosts.guest, epoch=2, committed=True)
    async with SqliteJournal(hosts.folder / "there" / "source.sqlite") as journal:
        await journal.open_job(left)
    hosts.start_agent(url=address)
    _, errors = await asyncio.to_thread(process.communicate, timeout=300)
    assert process.returncode != 0
    assert "could not take it up" in errors

"""``migrate run`` is killed at different moments; ``migrate resume`` brings the job to its end."""

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


async def killed_in(hosts: Any, phase: str, reached: Reached, *options: str) -> str:
    """Start a migration and kill its command in ``phase``; returns the job."""
    process = hosts.start("run", hosts.guest, hosts.start_agent(), *options)
    event = await asyncio.to_thread(reached, process, phase)
    await asyncio.sleep(0.3)
    process.kill()
    await asyncio.to_thread(process.communicate)
    return str(event["job"])


def status(hosts: Any, *arguments: str) -> list[dict[str, Any]]:
    state = ["--state-dir", str(hosts.folder / "here"), "--json"]
    result = subprocess.run(
        [*hosts.command("status")[:4], *state, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_pull_goes_on_after_the_source_was_killed(hosts: Any, phase_reached: Reached) -> None:
    await hosts.start_guest(prefill="1.0", write_rate="0", read_ratio="0.3")
    job = await killed_in(hosts, "pull", phase_reached, *WHOLE_PULL)
    (known,) = status(hosts)
    assert (known["job"], known["committed"], known["running"]) == (job, True, False)
    assert f"migrate resume {job}" in known["advice"]
    result = await asyncio.to_thread(hosts.migrate, "resume", job)
    assert result.returncode == 0, result.stderr
    assert (await hosts.trial.verdict(hosts.arrived)).good
    assert status(hosts) == []
    assert not list((hosts.folder / "source").glob("*/guest.json"))


async def writes_go_on(hosts: Any) -> None:
    before = (await hosts.trial.status()).writes
    async with asyncio.timeout(300):
        while (await hosts.trial.status()).writes == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_push_goes_on_with_what_the_destination_does_not_have(
    hosts: Any,
) -> None:
    size = 64 << 20
    await hosts.start_guest(size=size, prefill="1.0", write_rate="20")
    job = await hosts.killed_when_copied(0.7, *SLOW, "--threshold", "1MiB")
    (known,) = status(hosts)
    assert f"migrate resume {job}" in known["advice"]
    assert "migrate cancel" in known["advice"]
    await writes_go_on(hosts)
    result = await asyncio.to_thread(hosts.migrate, "resume", job, "--json")
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["outcome"] == "done"
    assert {event["job"] for event in events} == {job}
    memory = 8 << 20
    assert events[-1]["sent"] < 0.55 * size + memory
    rounds = [event for event in events if event["event"] == "round_finished"]
    assert rounds[0]["scanned"] == size
    assert rounds[-1]["dirty"] <= 1 << 20  # the policy was remembered
    verdict = await hosts.trial.verdict(hosts.arrived)
    assert verdict.good, verdict
    assert status(hosts) == []
    assert not list((hosts.folder / "source").glob("*/guest.json"))


@pytest.mark.parametrize("why", ["cannot be reached", "has kept nothing"])
async def test_if_push_cannot_go_on_the_guest_runs_on_here(
    hosts: Any, phase_reached: Reached, why: str
) -> None:
    await hosts.start_guest(prefill="1.0")
    kept = () if why == "cannot be reached" else ("--reconnect", "0s")
    job = await killed_in(hosts, "push-disk", phase_reached, *SLOW, *kept)
    if not kept:
        hosts._agents[0].kill()
    result = await asyncio.to_thread(hosts.migrate, "resume", job)
    assert result.returncode == 0, result.stderr
    assert "runs here: migrate it again" in result.stdout + result.stderr
    await writes_go_on(hosts)
    assert status(hosts) == []
    (known,) = status(hosts, "--all")
    assert known["outcome"] == "failed"


async def test_killed_at_the_switch_the_guest_runs_on_here(hosts: Any) -> None:
    await hosts.start_guest(size=8 << 20)
    kill = ("before", "Suspended")
    process = hosts.start("run", hosts.guest, hosts.start_agent(), kill_at=kill)
    output, _ = await asyncio.to_thread(process.communicate)
    job = json.loads(output.splitlines()[-1])["job"]
    result = await asyncio.to_thread(hosts.migrate, "resume", job)
    assert result.returncode == 0, result.stderr
    assert "runs here" in result.stdout + result.stderr
    await writes_go_on(hosts)
    assert status(hosts) == []


async def test_what_is_over_or_unknown_cannot_be_resumed(hosts: Any) -> None:
    await hosts.start_guest()
    assert hosts.migrate("run", hosts.guest, hosts.start_agent()).returncode == 0
    (known,) = status(hosts, "--all")
    over = hosts.migrate("resume", known["job"])
    assert over.returncode != 0
    assert "is over (done)" in over.stderr
    unknown = hosts.migrate("resume", "nosuchjob")
    assert unknown.returncode != 0
    assert "there is no job nosuchjob" in unknown.stderr

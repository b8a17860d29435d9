"""A guest that writes is moved there and back, again and again; nothing grows.

``VMFERRY_SOAK=50`` makes fifty migrations of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from vmferry.api.guest import Disk
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.daemon import DiskDaemon
from vmferry_hypervisors.process.folder import AttachedDisk, GuestFolder

MIGRATIONS = int(os.environ.get("VMFERRY_SOAK", "4"))
WARM = 2
"""Migrations after which everything that is made once has been made."""
MEMORY = 24 << 20
"""Bytes that an agent's memory may grow by until the allocator has all it needs,"""
MEMORY_EACH = 250_000
"""and per migration: less than any buffer of a job."""
QUICK = ("--compression", "none", "--block-size", "4KiB", "--threshold", "1GiB", "--json")

pytestmark = [pytest.mark.real, pytest.mark.timeout(600 + 60 * MIGRATIONS)]
ROLES = ("source", "destination")


class Agent:
    """``migrate serve`` on one host, for the whole time."""

    def __init__(self, folder: Path, role: str) -> None:
        self.role, self.host, self.state = role, folder / role, folder / f"state-{role}"
        self.pool = folder / f"pool-{role}"
        self.pool.mkdir()
        command = [sys.executable, "-m", "vmferry", "serve", "tcp://127.0.0.1:0", "--json"]
        command += ["--pool", str(self.pool), *self.options()]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = ""

    def options(self) -> list[str]:
        where = ["--hypervisor-opt", f"state_dir={self.host}"]
        return ["--state-dir", str(self.state), *where]

    def listen(self) -> None:
        """Return once it listens."""
        while not self.address:
            event = self._event()
            if event.get("name") == "listening":
                self.address = event["facts"]["address"]

    def arrived(self) -> None:
        """Return once a guest has arrived whole."""
        while self._event()["event"] != "finished":
            pass

    def _event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the agent at {self.role} ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def usage(self) -> dict[str, int]:
        """What it holds at this moment."""
        known = psutil.Process(self.process.pid)
        with known.oneshot():
            return {
                "descriptors": known.num_fds(),
                "threads": known.num_threads(),
                "sockets": len(known.net_connections("all")),
                "children": len(known.children()),
                "files": sum(1 for path in self.state.rglob("*") if "exports" in path.parts),
                "scratch": sum(1 for _ in self.state.glob("*.scratch/*")),
                "memory": known.memory_info().rss,
            }

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.communicate(timeout=300)


def migrate(agents: dict[str, Agent], guest: str, here: str, there: str) -> None:
    """``migrate run`` from one host to the other."""
    command = [sys.executable, "-m", "vmferry", "run", guest, agents[there].address, *QUICK]
    command += agents[here].options()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def settled(agent: Agent, before: dict[str, int]) -> dict[str, int]:
    """Its usage, once it has let go of what the last migration needed."""
    usage = agent.usage()
    for _ in range(300):
        if all(usage[name] <= before[name] for name in usage if name != "memory"):
            break
        await asyncio.sleep(0.1)
        usage = agent.usage()
    return usage


async def test_there_and_back_again_nothing_grows(hosts: Any) -> None:
    await hosts.start_guest(
        size=8 << 20, prefill="0.5", write_rate="400", read_ratio="0.3", timeout="60"
    )
    agents = {role: Agent(hosts.folder, role) for role in ROLES}
    try:
        for agent in agents.values():
            await asyncio.to_thread(agent.listen)
        await soak(hosts, agents)
    finally:
        for agent in agents.values():
            await asyncio.to_thread(agent.close)


async def serve_disk(hosts: Any, role: str, place: Path) -> DiskDaemon:
    """Put the running guest's plain disk behind an export, whose writes can be tracked."""
    daemon = DiskDaemon(place, "disk0")
    await daemon.start(60)
    folder: GuestFolder = hosts.trial._guest(role)
    await call(folder.path, Command("pivot", disk="disk0", url=daemon.url), 60)
    facts = {"control": str(daemon.control), "export": "disk0"}
    size = place.stat().st_size
    disk = Disk(name="disk0", size=size, location=str(place), tracker="export", facts=facts)
    definition = folder.definition()
    attached = (AttachedDisk(disk, daemon.url),)
    folder.redefine(msgspec.structs.replace(definition, disks=attached))
    return daemon


async def soak(hosts: Any, agents: dict[str, Agent]) -> None:
    before: dict[str, dict[str, int]] = {}
    place, daemon = hosts.folder / "disk0.raw", hosts.trial._daemon
    try:
        for number in range(WARM + MIGRATIONS):
            here, there = ROLES[number % 2], ROLES[(number + 1) % 2]
            await asyncio.to_thread(migrate, agents, hosts.guest, here, there)
            await asyncio.to_thread(agents[there].arrived)
            await daemon.stop()
            place.unlink()  # the old copy would be in the way of the way back
            place = agents[there].pool / f"{hosts.guest}-disk0.raw"
            if number == WARM - 1:
                before = {role: agent.usage() for role, agent in agents.items()}
            daemon = await serve_disk(hosts, there, place)
        await judge(hosts, agents, before, place)
        assert [epoch(agent.state, hosts.guest) for agent in agents.values()] == [number + 1] * 2
    finally:
        await daemon.stop()


def epoch(state: Path, guest: str) -> int:
    """The highest that one host knows, from either role."""
    numbers = []
    for role in ("source", "destination"):
        with closing(sqlite3.connect(state / f"{role}.sqlite")) as db:
            numbers += db.execute("SELECT number FROM epoch WHERE guest = ?", (guest,)).fetchall()
    return int(max(numbers)[0])


async def judge(
    hosts: Any, agents: dict[str, Agent], before: dict[str, dict[str, int]], place: Path
) -> None:
    """Compare what the agents hold with what they held, and the disk with the guest's record."""
    assert (await hosts.trial.status()).errors == 0
    for role, agent in agents.items():
        after = await settled(agent, before[role])
        assert before[role].keys() == after.keys()
        more = {name: after[name] - before[role][name] for name in after}
        assert more.pop("memory") < MEMORY + MEMORY_EACH * MIGRATIONS, (role, before[role], after)
        # a pool may have started one more of the threads it may have: one per migration is a leak
        assert more.pop("threads") < MIGRATIONS, (role, before[role], after)
        assert all(count <= 0 for count in more.values()), (role, before[role], after)
    verdict = await hosts.trial.verdict(str(place))
    assert verdict.good, verdict

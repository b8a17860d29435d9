"""The hypervisor keeps its contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from vmferry.cli.scaffold.samples.hypervisor import PuppetHypervisor, PuppetOptions, machines
from vmferry.cli.scaffold.samples.machine import PAGE, SECTOR, FileDisk, Machine, content
from vmferry.testing.hypervisor import HypervisorConformance, HypervisorRig

NAME, PAGES, SECTORS = "web1", 256, 2048


class PuppetRig(HypervisorRig):
    """Two hosts in this process, looked at from behind the plugin."""

    hypervisor = PuppetHypervisor

    def __init__(self, folder: Path) -> None:
        self._hosts = {role: f"{role} in {folder}" for role in ("source", "destination")}
        self._disk = folder / "disk0.raw"
        self.source, self.destination = (
            self.hypervisor(PuppetOptions(host=host)) for host in self._hosts.values()
        )

    @property
    def disks(self) -> Mapping[str, Path]:
        """The one at the source."""
        return {"disk0": self._disk}

    def _machine(self, role: str) -> Machine | None:
        return machines(self._hosts[role]).get(NAME)

    async def start(self) -> str:
        """A machine that has written enough for a loss to show."""
        self._disk.write_bytes(bytes(SECTORS * SECTOR))
        path = str(self._disk)
        machine = Machine(NAME, PAGES, SECTORS, FileDisk(path), path)
        machines(self._hosts["source"])[NAME] = machine
        machine.run()
        while machine.state.steps < 100:  # noqa: ASYNC110 -- it has nobody to tell
            await asyncio.sleep(0.001)
        return NAME

    async def progress(self, role: str) -> int | None:
        """Writes that it made."""
        machine = self._machine(role)
        return None if machine is None else machine.state.steps

    async def traces(self, role: str) -> frozenset[str]:
        """Machines, half-built ones too."""
        return frozenset(f"machine {name}" for name in machines(self._hosts[role]))

    async def verdict(self, role: str, disks: Mapping[str, Path]) -> str:
        """Compare all that it wrote with its record."""
        machine = self._machine(role)
        if machine is None:
            return "there is no machine"
        await machine.suspend()
        wrong = [
            f"page {page}"
            for page, version in enumerate(machine.state.pages)
            if machine.get(page) != content("page", page, version, PAGE)
        ]
        data = disks["disk0"].read_bytes()
        for sector, version in machine.state.sectors.items():
            there = data[sector * SECTOR : (sector + 1) * SECTOR]
            if there != content("sector", sector, version, SECTOR):
                wrong.append(f"sector {sector}")
        return ", ".join(wrong)

    async def crash(self) -> None:
        """End it from within."""
        machine = self._machine("source")
        if machine is not None:
            machine.crashed = True
            await machine.suspend()

    async def close(self) -> None:
        """Remove the machines of both hosts."""
        for host in self._hosts.values():
            for machine in machines(host).values():
                await machine.end()
            machines(host).clear()


class TestPuppetHypervisor(HypervisorConformance):
    """All of the contract."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> PuppetRig:
        """Two hosts and a machine."""
        return PuppetRig(tmp_path)

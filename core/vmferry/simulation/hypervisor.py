"""The hypervisor plugin of a simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from vmferry.api.findings import Finding
from vmferry.api.guest import ArrivingDisk, Disk, Guest
from vmferry.api.hypervisor import (
    Arrival,
    ByteStream,
    Departure,
    Hypervisor,
    HypervisorCapabilities,
    Remains,
)
from vmferry.api.plugin import Grade, NoOptions
from vmferry.errors import GuestNotFound, HypervisorError
from vmferry.simulation.arrival import SimArrival
from vmferry.simulation.departure import SimDeparture
from vmferry.simulation.exports import SimExports
from vmferry.simulation.host import SimHost
from vmferry.simulation.oracle import Oracle
from vmferry.simulation.process import SimProcess
from vmferry.simulation.temper import HypervisorParameters

__all__ = ["SimHypervisor", "disk_name"]


def disk_name(guest: str, number: int) -> str:
    """Name of a guest's disk."""
    return f"{guest}-disk{number}"


class SimHypervisor(Hypervisor[NoOptions]):
    """Drives the guests of a simulated host for one process."""

    api_version = 1
    name = "sim"
    summary = "guests within a simulation"
    capabilities = HypervisorCapabilities(
        guest_downtime=Grade.NATIVE, reattach=Grade.NATIVE, recover=Grade.NATIVE
    )

    def __init__(
        self,
        host: SimHost,
        process: SimProcess,
        oracles: Mapping[str, Oracle],
        exports: SimExports,
        parameters: HypervisorParameters,
    ) -> None:
        super().__init__()
        self._host, self._process, self._oracles = host, process, oracles
        self._exports, self._parameters = exports, parameters

    async def guests(self) -> Sequence[str]:
        """Those that run here."""
        self._process.check()
        return sorted(name for name, guest in self._host.guests.items() if guest.running)

    async def describe(self, name: str) -> Guest:
        """A guest with its disks."""
        running = await self.guests()
        if name not in running:
            raise GuestNotFound(name, running)
        guest = self._host.guests[name]
        return Guest(
            name=name,
            hypervisor=self.name,
            memory=len(guest.memory) * guest.memory.page_size,
            disks=tuple(self._disk(name, number) for number in range(len(guest.backends))),
        )

    def _disk(self, guest: str, number: int) -> Disk:
        name = disk_name(guest, number)
        volume = self._host.volumes[name]
        return Disk(
            name=name,
            size=volume.geometry.size,
            sector_size=volume.geometry.sector_size,
            volume="sim",
            location=volume.disk.name,
            tracker="sim",
        )

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Refuse a guest whose name is taken."""
        self._process.check()
        if guest.name in self._host.guests:
            return (Finding.error("guest-exists", f"{guest.name} is on {self._host.name}"),)
        return ()

    async def depart(self, guest: Guest, stream: ByteStream) -> Departure:
        """Begin to send."""
        await asyncio.sleep(0)
        self._process.check()
        if guest.name not in self._host.guests:
            raise HypervisorError(f"{guest.name} is gone")
        leaving = self._host.guests[guest.name]
        return SimDeparture(self._host, self._process, leaving, guest, stream, self._parameters)

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> Arrival:
        """Prepare to receive."""
        await asyncio.sleep(0)
        self._process.check()
        if guest.name not in self._oracles:
            raise HypervisorError(f"{guest.name} is unknown to this world")
        oracle = self._oracles[guest.name]
        arrival = SimArrival(self._host, self._process, oracle, guest, stream, self._parameters)
        arrival.connect(disks, self._exports)
        return arrival

    async def reattach(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> Arrival:
        """Its backends ask the exports by themselves; it may be complete and not have run yet."""
        await asyncio.sleep(0)
        self._process.check()
        if await self.remains(guest) is Remains.NOTHING:
            raise HypervisorError(f"{guest.name} is gone")
        oracle = self._oracles[guest.name]
        arrival = SimArrival(self._host, self._process, oracle, guest, None, self._parameters)
        arrival.take_up(self._host.waiting.get(guest.name))
        return arrival

    async def remains(self, guest: Guest) -> Remains:
        """Complete guests outlive their agent, or not."""
        self._process.check()
        if guest.name in self._host.guests:
            return Remains.RAN
        return Remains.WAITING if guest.name in self._host.waiting else Remains.NOTHING

    async def recover(self, guest: Guest) -> Departure:
        """The guest as it is here: running, suspended, or gone already."""
        await asyncio.sleep(0)
        self._process.check()
        here = self._host.guests.get(guest.name)
        return SimDeparture(self._host, self._process, here, guest, None, self._parameters)

"""The ``process`` hypervisor plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from vmferry.api.findings import Finding
from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import ByteStream, Hypervisor, HypervisorCapabilities, Remains
from vmferry.api.plugin import Grade
from vmferry.errors import GuestNotFound, HypervisorError
from vmferry.units import format_size
from vmferry_hypervisors.process.arrival import ProcessArrival, attach
from vmferry_hypervisors.process.departure import ProcessDeparture
from vmferry_hypervisors.process.folder import (
    VERSION,
    Definition,
    GuestFolder,
    list_guests,
    total_memory,
)
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.layout import State
from vmferry_hypervisors.process.options import ProcessOptions
from vmferry_hypervisors.process.recovered import RecoveredDeparture
from vmferry_hypervisors.process.workload import Workload

__all__ = ["ProcessHypervisor"]


class _Version(msgspec.Struct):
    version: int


class _Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels in ``Guest.config``. The workload itself travels in the guest's memory."""

    version: int
    workload: Workload


class ProcessHypervisor(Hypervisor[ProcessOptions]):
    """Guests that are processes of this machine, on a host that is a folder."""

    api_version = 1
    name = "process"
    summary = "processes that play guests: for trying out, for tests, for load; no virtual machine"
    options_type = ProcessOptions
    capabilities = HypervisorCapabilities(
        guest_downtime=Grade.NATIVE, reattach=Grade.NATIVE, recover=Grade.NATIVE
    )

    async def guests(self) -> Sequence[str]:
        """Names of the guests whose process lives, suspended ones included."""
        return await asyncio.to_thread(self._running)

    def _running(self) -> list[str]:
        folders = list_guests(self.options.state)
        return [each.name for each in folders if not each.incoming and each.pid() is not None]

    async def describe(self, name: str) -> Guest:
        """Describe a guest from its definition."""
        running = await self.guests()
        if name not in running:
            raise GuestNotFound(name, running)
        definition = GuestFolder(self.options.state, name).definition()
        return Guest(
            name=name,
            uuid=definition.uuid,
            hypervisor=self.name,
            memory=definition.memory,
            disks=tuple(each.disk for each in definition.disks),
            facts={"config": str(VERSION)},
            config=msgspec.json.encode(_Config(VERSION, definition.workload)),
        )

    async def check_departure(self, guest: Guest) -> Sequence[Finding]:
        """Whether the guest is there."""
        if guest.name in await self.guests():
            return ()
        return (Finding.error("guest-gone", f"guest {guest.name} does not run here"),)

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Whether configuration, name and memory allow the guest here."""
        try:
            self._definition(guest, ())
        except HypervisorError as error:
            remedy = "install the same version of vmferry on both hosts"
            return (Finding.error("config-unknown", str(error), remedy),)
        return await asyncio.to_thread(self._check_room, guest)

    def _check_room(self, guest: Guest) -> list[Finding]:
        findings = []
        if GuestFolder(self.options.state, guest.name).defined:
            text = f"a guest named {guest.name} exists in {self.options.state}"
            findings.append(Finding.error("name-taken", text, "stop it, or remove its folder"))
        free = self._free_memory()
        if guest.memory > free:
            text = f"guest {guest.name} needs {format_size(guest.memory)} of memory; "
            text += f"{format_size(free)} are free"
            findings.append(Finding.error("memory-short", text, "stop a guest of this host"))
        return findings

    def _free_memory(self) -> int:
        if self.options.host_memory:
            return max(0, self.options.host_memory - total_memory(self.options.state))
        return _available_memory()

    def _definition(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> Definition:
        """What ``guest``, which is untrusted, is to be built from.

        Raises ``HypervisorError`` if it is of another version or cannot be understood.
        """
        if guest.hypervisor != self.name:
            raise HypervisorError(f"guest {guest.name} is of hypervisor {guest.hypervisor!r}")
        try:
            version = msgspec.json.decode(guest.config, type=_Version).version
            if version != VERSION:
                raise HypervisorError(
                    f"guest {guest.name}: configuration of version {version}, not {VERSION}"
                )
            config = msgspec.json.decode(guest.config, type=_Config)
            definition = Definition(
                name=guest.name,
                uuid=guest.uuid,
                memory=guest.memory,
                disks=attach(disks),
                # its memory has the trace already; a file of that name here is nobody's business
                workload=msgspec.structs.replace(config.workload, trace=""),
            )
            return msgspec.convert(msgspec.to_builtins(definition), Definition)
        except ValueError as error:
            raise HypervisorError(f"guest {guest.name}: configuration: {error}") from error

    async def depart(self, guest: Guest, stream: ByteStream) -> ProcessDeparture:
        """Map the memory of a running guest."""
        running = await self.guests()
        if guest.name not in running:
            raise GuestNotFound(guest.name, running)
        folder = GuestFolder(self.options.state, guest.name)
        return ProcessDeparture(folder, stream, self.options)

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> ProcessArrival:
        """Make the files and start the process, which waits."""
        _check_disks(guest, disks)
        definition = self._definition(guest, disks)
        fresh = not GuestFolder(self.options.state, guest.name).console.exists()
        launched = asyncio.ensure_future(
            asyncio.to_thread(launch, self.options.state, definition, incoming=True)
        )
        try:
            folder = await asyncio.shield(launched)
        except asyncio.CancelledError:
            await self._undo(launched, fresh=fresh)
            raise
        return ProcessArrival(folder, stream, self.options, fresh=fresh)

    async def recover(self, guest: Guest) -> RecoveredDeparture:
        """The guest's process is suspended, or runs, or is gone."""
        return RecoveredDeparture(GuestFolder(self.options.state, guest.name), self.options)

    async def reattach(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> ProcessArrival:
        """Find the guest's folder; its process asks the export for what it waits for by itself."""
        _check_disks(guest, disks)
        folder = GuestFolder(self.options.state, guest.name)
        if not folder.defined:
            raise HypervisorError(f"guest {guest.name} is not in {self.options.state} any more")
        return ProcessArrival(
            folder,
            None,
            self.options,
            fresh=False,
            active=not _waits(folder) and not folder.incoming,
        )

    async def remains(self, guest: Guest) -> Remains:
        """The process of a guest that arrives outlives its agent, and waits."""
        folder = GuestFolder(self.options.state, guest.name)
        if not folder.defined:
            return Remains.NOTHING
        if _waits(folder):
            return Remains.WAITING
        return Remains.NOTHING if folder.incoming else Remains.RAN

    @staticmethod
    async def _undo(launched: asyncio.Future[GuestFolder], *, fresh: bool) -> None:
        """A thread cannot be cancelled: let it end, and take back what it made."""
        await asyncio.wait([launched])
        if launched.exception() is None:
            folder = launched.result()
            await asyncio.to_thread(folder.kill)
            await asyncio.to_thread(folder.remove, console=fresh)


def _waits(folder: GuestFolder) -> bool:
    """Whether the guest is here and has never run: not welcomed, or welcomed and left standing."""
    if folder.pid() is None:
        return False
    return folder.incoming or folder.registers().state != State.RUNNING


def _check_disks(guest: Guest, disks: Sequence[ArrivingDisk]) -> None:
    described = [disk.name for disk in guest.disks]
    if sorted(each.disk.name for each in disks) != sorted(described):
        raise HypervisorError(f"guest {guest.name} has disks {described}, others were prepared")
    for each in disks:
        if each.volume != "raw":
            raise HypervisorError(
                f"disk {each.disk.name}: a process guest cannot use a local volume of type "
                f"{each.volume!r}; use raw"
            )


def _available_memory() -> int:
    """Bytes of memory that can be had without swapping: ``MemAvailable`` of proc(5)."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise HypervisorError("/proc/meminfo does not say how much memory is available")

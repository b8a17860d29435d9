"""The ``qemu`` hypervisor plugin."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmferry.api.findings import Finding
from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import ByteStream, Hypervisor, HypervisorCapabilities
from vmferry.api.plugin import Grade
from vmferry.errors import GuestNotFound, HypervisorError, VmferryError
from vmferry.units import format_size
from vmferry_hypervisors.qemu.arrival import QemuArrival
from vmferry_hypervisors.qemu.checks import check_source
from vmferry_hypervisors.qemu.config import decode_config
from vmferry_hypervisors.qemu.departure import QemuDeparture
from vmferry_hypervisors.qemu.describe import describe_guest, list_drives
from vmferry_hypervisors.qemu.disks import AttachedDisk, match_drives
from vmferry_hypervisors.qemu.launch import StartedQemu, command_line, start_qemu
from vmferry_hypervisors.qemu.monitors import Place, find_guest, list_monitors
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_hypervisors.qemu.pivoting import Pivots, ReattachedArrival
from vmferry_hypervisors.qemu.recovered import RecoveredDeparture
from vmferry_hypervisors.qemu.relay import NoStream
from vmferry_hypervisors.qemu.remains import remove_memory_socket
from vmferry_support.qmp import Qmp, QmpError

__all__ = ["QemuHypervisor"]


class QemuHypervisor(Hypervisor[QemuOptions]):
    """Guests of QEMU, started by whomever, with a QMP socket for us."""

    api_version = 1
    name = "qemu"
    summary = "guests of QEMU with KVM or without, by their QMP sockets"
    options_type = QemuOptions
    capabilities = HypervisorCapabilities(
        memory_channels=Grade.NATIVE, reattach=Grade.NATIVE, recover=Grade.NATIVE
    )

    @property
    def _place(self) -> Place:
        return Place(self.options.sockets)

    async def guests(self) -> Sequence[str]:
        """Names of the guests whose monitors answer."""
        return [each.name for each in await list_monitors(self._place)]

    async def _connect(self, name: str) -> Qmp:
        return await Qmp.connect(await find_guest(self._place, name))

    async def describe(self, name: str) -> Guest:
        """Describe a guest as QMP tells it."""
        async with await self._connect(name) as qmp:
            return await describe_guest(qmp, name, self.name)

    async def check_departure(self, guest: Guest) -> Sequence[Finding]:
        """Whether QEMU, its settings, its jobs and its media allow it."""
        try:
            async with await self._connect(guest.name) as qmp:
                return await check_source(qmp, guest.name)
        except VmferryError as error:
            return (Finding.error("guest-gone", str(error)),)

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Whether name, command line and memory allow the guest here.

        That the devices are the same can be seen only once the QEMU is there: ``arrive`` does it
        before it takes anything.
        """
        findings = []
        try:
            if guest.hypervisor != self.name:
                raise HypervisorError(f"guest {guest.name} is of hypervisor {guest.hypervisor!r}")
            decode_config(guest.config)
            if not self.options.incoming:
                self._words(guest)
        except VmferryError as error:
            findings.append(Finding.error("guest-refused", str(error), "see docs/qemu.md"))
        if await self._is_taken(guest.name):
            text = f"a guest named {guest.name} runs here"
            findings.append(Finding.error("name-taken", text, "stop it, or rename one"))
        if not self.options.incoming:
            findings += _check_memory(guest)
        return findings

    async def _is_taken(self, name: str) -> bool:
        """Whether a guest of that name is here, other than the one that waits for its memory."""
        monitors = await list_monitors(self._place)
        same = [each.path for each in monitors if each.name == name]
        return any(not _is_one(path, self.options.incoming) for path in same)

    def _words(self, guest: Guest) -> list[str]:
        if not self.options.command:
            raise HypervisorError(
                "nothing says how to start a QEMU for an arriving guest: set the option command, "
                "or incoming"
            )
        return command_line(self.options.command, guest)

    async def depart(self, guest: Guest, stream: ByteStream) -> QemuDeparture:
        """Set up the guest's QEMU for sending; it runs on."""
        qmp = await self._connect(guest.name)
        departure = None
        try:
            files = [drive.file for drive in await list_drives(qmp) if _is_local(drive.file)]
            departure = QemuDeparture(qmp, guest.name, guest.memory, files, stream, self.options)
            await departure.prepare()
        except BaseException:
            await (qmp.close() if departure is None else departure.discard())
            raise
        return departure

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> QemuArrival:
        """Start the QEMU, or take the one that waits, and put the disks on their exports."""
        _check_disks(guest, disks)
        if self.options.incoming:
            return await self._take(guest, disks, stream, None)
        words = self._words(guest)
        socket = self._place.of(guest.name)
        if await self._is_taken(guest.name):
            raise HypervisorError(f"a guest named {guest.name} runs here")
        started = await start_qemu(words, socket)
        try:
            return await self._take(guest, disks, stream, started)
        except BaseException:
            await started.kill()
            raise

    async def reattach(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> ReattachedArrival:
        """Find the guest's QEMU again, and which of its drives is which disk."""
        try:
            path = self.options.incoming or await find_guest(self._place, guest.name)
            qmp = await Qmp.connect(path)
        except (GuestNotFound, QmpError):
            return ReattachedArrival(None, None)
        try:
            drives = match_drives(disks, await list_drives(qmp))
        except BaseException:
            await qmp.close()
            raise
        attached = {
            each.disk.name: AttachedDisk(qmp, number, each, drives[each.disk.name])
            for number, each in enumerate(disks)
        }
        return ReattachedArrival(qmp, Pivots(qmp, attached, direct=self.options.direct))

    async def recover(self, guest: Guest) -> RecoveredDeparture:
        """Find the guest's QEMU again, in whatever state it was left."""
        try:
            qmp = await self._connect(guest.name)
        except GuestNotFound:
            return RecoveredDeparture(guest.name, None)
        remove_memory_socket(qmp.path)
        departure = QemuDeparture(qmp, guest.name, guest.memory, (), NoStream(), self.options)
        departure.take_up()
        return RecoveredDeparture(guest.name, departure)

    async def _take(
        self,
        guest: Guest,
        disks: Sequence[ArrivingDisk],
        stream: ByteStream,
        started: StartedQemu | None,
    ) -> QemuArrival:
        if started is None:
            qmp = await Qmp.connect(self.options.incoming)
        else:
            qmp = await started.connected(self.options.timeout)
        arrival = QemuArrival(qmp, started, guest, stream, self.options)
        try:
            await arrival.prepare(disks)
        except BaseException:
            if started is None:
                await arrival.leave()
            else:
                await arrival.abort()
            raise
        return arrival


def _is_one(path: str, other: str) -> bool:
    """Whether two paths are of one file."""
    return bool(other) and os.path.realpath(path) == os.path.realpath(other)


def _is_local(file: str) -> bool:
    return file.startswith("/") and os.path.exists(file)


def _check_disks(guest: Guest, disks: Sequence[ArrivingDisk]) -> None:
    described = sorted(disk.name for disk in guest.disks)
    if sorted(each.disk.name for each in disks) != described:
        raise HypervisorError(f"guest {guest.name} has disks {described}, others were prepared")


def _check_memory(guest: Guest) -> list[Finding]:
    free = _available_memory()
    if guest.memory <= free:
        return []
    text = f"guest {guest.name} needs {format_size(guest.memory)} of memory; "
    return [Finding.error("memory-short", f"{text}{format_size(free)} are free")]


def _available_memory() -> int:
    """Bytes that can be had without swapping: ``MemAvailable`` of proc(5)."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise HypervisorError("/proc/meminfo does not say how much memory is available")

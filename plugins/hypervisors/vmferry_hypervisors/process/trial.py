"""A process guest that is made to be migrated and checked; see ``vmferry.api.trial``.

::

    FOLDER/source/NAME/        the guest on the host it starts on
           destination/NAME/   the guest on the host it is to go to
           disk0.raw           its disk at the source
           export.sock         its disk's export, export.control the tracker's way to it
           export.log          what the disk's daemon says
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from vmferry.api.guest import Disk
from vmferry.api.load import Moved, MoveLink, TrialPlan, TrialWish
from vmferry.api.trial import Trial, TrialStatus, Verdict
from vmferry.errors import HypervisorError
from vmferry_hypervisors.process.checker import GuestRecord, check_guest
from vmferry_hypervisors.process.cold import COLD, move_cold
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.daemon import DiskDaemon
from vmferry_hypervisors.process.folder import AttachedDisk, Definition, GuestFolder
from vmferry_hypervisors.process.image import create_disk
from vmferry_hypervisors.process.launch import launch
from vmferry_hypervisors.process.trace import read_trace
from vmferry_hypervisors.process.wish import make_plan
from vmferry_hypervisors.process.workload import Workload, workload_of

__all__ = ["ProcessTrial", "TrialOptions"]

ROLES = ("source", "destination")
_POLL = 0.005


class TrialOptions(Workload, frozen=True, kw_only=True):
    """The guest, and what it does."""

    guest: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the guest")
    ] = "demo"
    memory: Annotated[
        int,
        Meta(
            ge=64 << 10,
            le=1 << 42,
            multiple_of=4096,
            description="memory of the guest",
            extra={"unit": "bytes"},
        ),
    ] = 64 << 20
    prefill: Annotated[
        float, Meta(ge=0, le=1, description="share of the disk that holds data at the start")
    ] = 0.25
    timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="how long the guest or its disk may take to obey",
            extra={"unit": "seconds"},
        ),
    ] = 30.0


def _workload(options: TrialOptions) -> Workload:
    """What the guest does; a trace by a path that means the same to its process."""
    workload = workload_of(options)
    if not workload.trace:
        return workload
    read_trace(Path(workload.trace))  # a complaint now, not in the guest's log
    return msgspec.structs.replace(workload, trace=str(Path(workload.trace).absolute()))


class ProcessTrial(Trial[TrialOptions]):
    """One guest that is a process, and two folders that play the hosts."""

    api_version = 1
    name = "process"
    summary = "a process that plays a guest, on two folders that play hosts"
    options_type = TrialOptions
    methods: ClassVar[Mapping[str, str]] = {
        COLD: "stopped, copied whole over one connection, started again"
    }
    tells_switch: ClassVar[bool] = True

    @classmethod
    def plan(cls, wish: TrialWish) -> TrialPlan:
        """Every load there is; the disk is raw and its tracker ``export``."""
        return make_plan(wish)

    def __init__(self, options: TrialOptions | None = None) -> None:
        super().__init__(options)
        self._folder: Path | None = None
        self._daemon: DiskDaemon | None = None

    async def start(self, folder: Path, disk_size: int) -> str:
        """Make the disk, serve it, start the guest; returns once the guest has written."""
        self._folder = folder = await asyncio.to_thread(folder.absolute)
        try:
            disk = await self._serve(folder, disk_size)
            definition = Definition(
                name=self.options.guest,
                memory=self.options.memory,
                disks=(disk,),
                workload=_workload(self.options),
            )
            await asyncio.to_thread(launch, folder / "source", definition)
            await self._first_write()
        except BaseException:
            await self.close()
            raise
        return self.options.guest

    async def _serve(self, folder: Path, size: int) -> AttachedDisk:
        location = folder / "disk0.raw"
        await asyncio.to_thread(self._make, location, size)
        self._daemon = DiskDaemon(location, "disk0")
        await self._daemon.start(self.options.timeout)
        disk = Disk(
            name="disk0",
            size=size,
            volume="raw",
            location=str(location),
            tracker="export",
            facts={"control": str(self._daemon.control), "export": "disk0"},
        )
        return AttachedDisk(disk, self._daemon.url)

    def _make(self, location: Path, size: int) -> None:
        for role in ROLES:
            (location.parent / role).mkdir(parents=True, exist_ok=True)
        create_disk(location, size, self.options.unit, self.options.prefill)

    async def _first_write(self) -> None:
        """Wait for a write, since a guest that cannot write is no trial."""
        if self.options.idle:
            return
        try:
            async with asyncio.timeout(self.options.timeout):
                while True:
                    if (await self.status()).writes:
                        return
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            log = self._guest("source").path / "guest.log"
            raise HypervisorError(f"guest {self.options.guest} does not write; see {log}") from None

    def host_options(self, role: str) -> Mapping[str, str]:
        """The folder that plays the host."""
        if role not in ROLES or self._folder is None:
            raise ValueError(f"host {role!r} of a trial that was not started, or no host at all")
        return {"state_dir": str(self._folder / role)}

    def _guest(self, role: str) -> GuestFolder:
        return GuestFolder(Path(self.host_options(role)["state_dir"]), self.options.guest)

    def _wherever(self) -> GuestFolder:
        """The guest's folder on the host it belongs to, whether or not it still lives."""
        for role in reversed(ROLES):
            folder = self._guest(role)
            if folder.defined and not folder.incoming:
                return folder
        raise HypervisorError(f"guest {self.options.guest} is on neither host")

    async def status(self) -> TrialStatus:
        """Read the registers in the guest's memory; that needs no help of the guest."""
        folder = self._wherever()
        if folder.pid() is None:
            raise HypervisorError(f"guest {self.options.guest} ended; see {folder.path}/guest.log")
        registers = folder.registers()
        return TrialStatus(
            writes=registers.writes,
            reads=registers.reads,
            bad_reads=registers.bad_reads,
            errors=registers.errors,
            longest_gap=registers.longest_gap,
            busy=registers.busy,
            switch_gap=registers.switch_gap or None,
        )

    async def verdict(self, location: str) -> Verdict:
        """Let requests under way complete, end the process, compare; see ``checker``."""
        folder = self._wherever()
        note = await self._stop(folder)
        consoles = [self._guest(role).console for role in ROLES]
        record = await asyncio.to_thread(GuestRecord.read, folder.path)
        disks = {disk.name: Path(location) for disk in record.program.plan.disks}
        verdict = await asyncio.to_thread(check_guest, record, consoles, disks)
        return msgspec.structs.replace(verdict, examples=(*note, *verdict.examples))

    async def _stop(self, folder: GuestFolder) -> tuple[str, ...]:
        """End the guest; returns what should be known about how it ended."""
        note: tuple[str, ...] = ()
        try:
            await call(folder.path, Command("quiesce"), self.options.timeout)
        except HypervisorError as error:
            note = (f"the guest did not end in good order: {error}",)
        await asyncio.to_thread(folder.kill)
        return note

    async def move(self, method: str, link: MoveLink) -> Moved:
        """Move it while it is stopped; see ``cold``."""
        if method != COLD:
            return await super().move(method, link)
        if self._folder is None or self._daemon is None:
            raise HypervisorError("the trial was not started")
        there = self._folder / "destination"
        return await move_cold(
            self._guest("source"), there, self._daemon, link, self.options.timeout
        )

    async def close(self) -> None:
        """Kill the guest on both hosts, end the disk's daemon."""
        if self._folder is not None:
            for role in ROLES:
                await asyncio.to_thread(self._guest(role).kill)
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.stop()

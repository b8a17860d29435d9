"""What the hypervisor kit is given, and one migration of memory that it takes apart.

``HypervisorRig`` is what the author of a plugin writes: how to start a guest, and what can be seen
of it from outside the plugin, so that a fault of the plugin cannot hide behind the plugin itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import Arrival, Departure, Hypervisor
from vmferry.dirtymap import DirtyMap
from vmferry.testing.export import RecordingExport
from vmferry.testing.streams import MemoryStream, stream_pair

__all__ = ["HypervisorBench", "HypervisorRig"]


class HypervisorRig(ABC):
    """Two hosts and one guest. ``role`` is ``"source"`` or ``"destination"``.

    Attributes:
        source: the plugin on the host where the guest starts.
        destination: the plugin on the other host.
        suspends_itself: ``precopy`` may return with the guest suspended.

    """

    source: Hypervisor[Any]
    destination: Hypervisor[Any]
    suspends_itself: bool = False

    @abstractmethod
    async def start(self) -> str:
        """Start a guest with one raw disk on the source; returns its name when it writes."""

    @property
    @abstractmethod
    def disks(self) -> Mapping[str, Path]:
        """The guest's disks at the source, raw files, by the name it knows them by."""

    @abstractmethod
    async def progress(self, role: str) -> int | None:
        """A number in the guest that grows while it runs and migrates with it; ``None`` if none."""

    @abstractmethod
    async def traces(self, role: str) -> frozenset[str]:
        """All that a guest, or half of one, leaves on a host: processes, files, domains."""

    @abstractmethod
    async def verdict(self, role: str, disks: Mapping[str, Path]) -> str:
        """Stop the guest and hold memory and disks against what it knows; ``""`` if all is well."""

    @abstractmethod
    async def crash(self) -> None:
        """Make the guest at the source end as if it had crashed."""

    @abstractmethod
    async def close(self) -> None:
        """End everything that was started. May be called twice."""


class HypervisorBench:
    """A rig, a guest that runs at its source, and the parts of one migration.

    Attributes:
        guest: as the source describes it.
        exports: what the disks are served by at the destination; they make requests wait until
            ``admit``.
        copies: the destination's local disks.
        pending: blocks of each disk that ``push`` leaves behind, to be had from the export alone.

    """

    def __init__(self, rig: HypervisorRig, folder: Path) -> None:
        self.rig = rig
        self.name = ""
        self.guest: Guest
        self.before: dict[str, frozenset[str]] = {}
        self.exports: dict[str, RecordingExport] = {}
        self.copies: dict[str, Path] = {}
        self.pending: dict[str, DirtyMap] = {}
        self._folder = folder

    async def start(self) -> None:
        """Start the guest and note what both hosts look like."""
        self.name = await self.rig.start()
        self.guest = await self.rig.source.describe(self.name)
        for role in ("source", "destination"):
            self.before[role] = await self.rig.traces(role)
        for disk in self.guest.disks:
            await self._serve(disk.name, disk.size)

    async def _serve(self, name: str, size: int) -> None:
        self.copies[name] = self._folder / f"{name}.copy"
        with self.copies[name].open("xb") as file:
            file.truncate(size)
        export = RecordingExport(self.copies[name], self._folder / f"{name}.sock", name)
        export.opened.clear()
        await export.start()
        self.exports[name] = export
        self.pending[name] = DirtyMap(size, 4096)

    async def close(self) -> None:
        """End everything."""
        await self.rig.close()
        for export in self.exports.values():
            await export.stop()

    @property
    def arriving(self) -> Sequence[ArrivingDisk]:
        """The disks as the destination is to attach them."""
        return [
            ArrivingDisk(
                disk=disk,
                volume="raw",
                location=str(self.copies[disk.name]),
                export=self.exports[disk.name].url,
            )
            for disk in self.guest.disks
        ]

    @property
    def requests(self) -> int:
        """Requests that the exports were given so far."""
        return sum(export.requests for export in self.exports.values())

    async def begin(self, **faults: Any) -> tuple[Departure, Arrival]:
        """Both ends of a migration, over a stream with ``faults`` (see ``stream_pair``)."""
        one, other = stream_pair(**faults)
        self.stream = one
        return await self.depart(one), await self.arrive(other)

    async def depart(self, stream: MemoryStream) -> Departure:
        """Begin to send."""
        return await self.rig.source.depart(self.guest, stream)

    async def arrive(self, stream: MemoryStream) -> Arrival:
        """Begin to receive."""
        return await self.rig.destination.arrive(self.guest, self.arriving, stream)

    async def push(self, departure: Departure, arrival: Arrival) -> None:
        """All up to a guest that is complete and paused at the destination."""
        async with asyncio.TaskGroup() as group:
            group.create_task(arrival.receive())
            await departure.precopy()
            await departure.suspend()
            await asyncio.to_thread(self.copy_disks)
            for disk in self.arriving:
                await arrival.show_pending(disk, self.pending[disk.disk.name])
            await departure.transfer()

    def copy_disks(self) -> None:
        """Bring the local disks up to date; the guest is suspended."""
        for name, path in self.rig.disks.items():
            shutil.copyfile(path, self.copies[name])
            with path.open("rb") as file:
                runs = self.pending[name].runs()
                left = {start: os.pread(file.fileno(), size, start) for start, size in runs}
            self.exports[name].pend(left)

    def complete(self) -> None:
        """Bring what is still pending to the local disks."""
        for export in self.exports.values():
            export.complete()

    async def switch(self, departure: Departure, arrival: Arrival) -> None:
        """Commit: let the disks answer, the guest run, the old one go."""
        for export in self.exports.values():
            export.opened.set()
        await departure.release()
        await arrival.activate()

    async def runs(self, role: str, patience: float = 10.0) -> bool:
        """Whether the guest there makes progress within ``patience`` seconds."""
        start = await self.rig.progress(role)
        until = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
            reached = await self.rig.progress(role)
            if start is not None and reached is not None and reached > start:
                return True
            start = reached if start is None else start
        return False

    async def stands_still(self, role: str, watch: float = 0.3) -> bool:
        """Whether the guest there makes no progress for ``watch`` seconds."""
        start = await self.rig.progress(role)
        await asyncio.sleep(watch)
        return await self.rig.progress(role) == start

    async def left_over(self, role: str) -> str:
        """What a host has more than in the beginning, or lacks; ``""`` if nothing."""
        after, before = await self.rig.traces(role), self.before[role]
        more = [f"{trace} is left behind" for trace in sorted(after - before)]
        return "; ".join(more + [f"{trace} is gone" for trace in sorted(before - after)])

"""A guest without memory or writes, so that a benchmark times the disk's way alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vmferry.api import (
    Arrival,
    ArrivingDisk,
    ByteStream,
    Departure,
    Disk,
    Guest,
    Hypervisor,
    HypervisorCapabilities,
    Tracker,
)
from vmferry.dirtymap import DirtyMap
from vmferry.plugins import temporary

__all__ = ["NAME", "Idle", "Nothing", "nothing_installed"]

NAME = "nothing"


class Idle(Tracker):  # type: ignore[type-arg]
    """Tracks a disk nobody writes; ``dirty`` is harvested once, as if it had been written."""

    api_version = 1
    name = NAME
    dirty: tuple[tuple[int, int], ...] = ()

    async def start(self, disk: Disk, block_size: int) -> int:
        self._map = DirtyMap.from_runs(disk.size, block_size, self.dirty)
        return block_size

    async def harvest(self) -> DirtyMap:
        return self._map.take()

    async def drain(self) -> None: ...

    async def stop(self) -> None: ...


class _Departure(Departure):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def precopy(self) -> None: ...

    async def suspend(self) -> None: ...

    async def transfer(self) -> None:
        await self._stream.write_eof()

    async def release(self) -> None: ...

    async def resume(self) -> None: ...

    async def destroy(self) -> None: ...


class _Arrival(Arrival):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def receive(self) -> None:
        while await self._stream.read():
            pass

    async def activate(self) -> None: ...

    async def pivot(self, disk: ArrivingDisk) -> None: ...

    async def finish(self) -> None: ...

    async def abort(self) -> None: ...


class Nothing(Hypervisor):  # type: ignore[type-arg]
    """Hosts one guest whose disk is ``disk``."""

    api_version = 1
    name = NAME
    capabilities = HypervisorCapabilities()
    disk: Disk

    async def guests(self) -> Sequence[str]:
        return [NAME]

    async def describe(self, name: str) -> Guest:
        return Guest(name=name, hypervisor=NAME, disks=(self.disk,))

    async def depart(self, guest: Guest, stream: ByteStream) -> Departure:
        return _Departure(stream)

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> Arrival:
        return _Arrival(stream)


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Make the two plugins known to this process."""
    with temporary("hypervisor", NAME, Nothing), temporary("tracker", NAME, Idle):
        yield

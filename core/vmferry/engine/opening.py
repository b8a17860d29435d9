"""Opening a guest's disks at the source, all or none."""

from __future__ import annotations

from contextlib import AsyncExitStack

from vmferry.api.guest import Disk, Guest
from vmferry.api.volume import Access
from vmferry.engine.checking import pick_tracker
from vmferry.engine.context import Registry
from vmferry.engine.disks import SourceDisk
from vmferry.engine.settings import Settings
from vmferry.errors import VolumeGeometry

__all__ = ["open_disks"]


async def open_disks(
    guest: Guest, settings: Settings, registry: Registry, stack: AsyncExitStack
) -> list[SourceDisk]:
    """Open every disk for reading; ``stack`` closes them and stops their trackers."""
    disks = []
    for index, disk in enumerate(guest.disks):
        opened = await _open(index, disk, settings, registry)
        stack.push_async_callback(opened.close)
        disks.append(opened)
    return disks


async def _open(index: int, disk: Disk, settings: Settings, registry: Registry) -> SourceDisk:
    volume = await registry.volume(disk.volume).open(disk.location, Access.READ)
    size = volume.geometry.size
    if size != disk.size:
        await volume.close()
        raise VolumeGeometry(
            f"disk {disk.name}: the guest sees {disk.size} bytes, {disk.location} has {size}"
        )
    tracker = pick_tracker(disk, settings, registry)
    return SourceDisk(index, disk, volume, tracker, max(settings.block_size, disk.sector_size))

"""The ``raw`` volume plugin: a regular file or block device, whose bytes are the guest's."""

from __future__ import annotations

import contextlib
from typing import Annotated, ClassVar, Literal

import msgspec

from vmferry.api.plugin import Grade, Options
from vmferry.api.volume import Access, Geometry, Volume, VolumeCapabilities, VolumeDriver
from vmferry_volumes.disks import OpenDisk, open_disk, probe_disk
from vmferry_volumes.making import check_new, make_file, remove_disk
from vmferry_volumes.raw_volume import RawVolume
from vmferry_volumes.threads import acquire, in_thread

__all__ = ["RawDriver", "RawOptions", "RawVolume"]


class RawOptions(Options, frozen=True, kw_only=True):
    """Options of the ``raw`` volume plugin."""

    preallocate: Annotated[
        Literal["off", "falloc"],
        msgspec.Meta(
            description="space of a file that is made: sparse (off) or reserved whole (falloc), "
            "in which case it is never given back by a discard"
        ),
    ] = "off"
    sector_size: Annotated[
        Literal[512, 4096],
        msgspec.Meta(
            description="sector of a file that is there; a device knows its own",
            extra={"unit": "bytes"},
        ),
    ] = 512
    direct: Annotated[
        Literal["auto", "off", "on"],
        msgspec.Meta(
            description="go past the page cache (O_DIRECT); auto does so for block devices, since "
            "a guest's backend writes them below the page cache, which would then be stale"
        ),
    ] = "auto"


class RawDriver(VolumeDriver[RawOptions]):
    """Opens and makes raw disks. A location is a path; symbolic links are followed.

    ``Access.WRITE`` takes QEMU's locks on a file, and opens a device with ``O_EXCL``: see
    ``vmferry_volumes.claim``. A block device that ``create`` is given keeps its own size and
    sector size, and what it holds.
    """

    api_version = 1
    name = "raw"
    summary = "a regular file or block device that holds the guest's bytes as they are"
    options_type = RawOptions
    capabilities: ClassVar[VolumeCapabilities] = VolumeCapabilities(
        holes=Grade.NATIVE, zeroes=Grade.NATIVE, discard=Grade.NATIVE
    )
    options: RawOptions

    async def probe(self, location: str) -> Geometry:
        """Size and sector size of the file or device at ``location``."""
        return await in_thread(probe_disk, location, self.options.sector_size)

    async def open(self, location: str, access: Access) -> Volume:
        """Open the file or device at ``location``."""

        def opened() -> OpenDisk:
            return open_disk(location, access, self.options.sector_size, self.options.direct)

        return self._volume(await acquire(opened, OpenDisk.close))

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Check names, sizes, the folder, and free space when it is to be preallocated."""
        await in_thread(check_new, location, geometry, preallocate=self._is_preallocated)

    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Make a file readable by its owner alone, or open a device that is large enough."""

        def made() -> OpenDisk:
            return self._make(location, geometry)

        def unmade(disk: OpenDisk) -> None:
            disk.close()
            remove_disk(location)

        return self._volume(await acquire(made, unmade))

    def _make(self, location: str, geometry: Geometry) -> OpenDisk:
        sector, direct = geometry.sector_size, self.options.direct
        if check_new(location, geometry, preallocate=self._is_preallocated):
            return open_disk(location, Access.WRITE, sector, direct)
        with contextlib.ExitStack() as undo:
            make_file(location, geometry.size, preallocate=self._is_preallocated)
            undo.callback(remove_disk, location)
            disk = open_disk(location, Access.WRITE, sector, direct)
            undo.pop_all()
            return disk

    @property
    def _is_preallocated(self) -> bool:
        return self.options.preallocate == "falloc"

    def _volume(self, disk: OpenDisk) -> RawVolume:
        return RawVolume(disk, keep_allocation=self._is_preallocated)

    async def remove(self, location: str) -> None:
        """Unlink a regular file, durably; a device, or nothing, is left as it is."""
        await in_thread(remove_disk, location)

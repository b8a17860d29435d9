"""The plugin and its volumes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from vmferry.api.plugin import Grade, Options
from vmferry.api.volume import Access, Geometry, Volume, VolumeCapabilities, VolumeDriver
from vmferry_support.outlast import finished
from vmferry_volumes.nbd_volume import NbdVolume
from vmferry_volumes.qcow2.images import check_new_image, examine, make_image, remove_image
from vmferry_volumes.qcow2.shared import SharedImage

__all__ = ["Qcow2Driver", "Qcow2Options", "Qcow2Volume"]


class Qcow2Options(Options, frozen=True, kw_only=True):
    """Options of the ``qcow2`` volume plugin."""

    backing: Annotated[
        Literal["refuse", "flatten"],
        msgspec.Meta(
            description="an image with a backing file: refuse it, or read through it, so that the "
            "copy is whole; an image from somebody else may name any file of this host"
        ),
    ] = "refuse"
    cluster_size: Annotated[
        Literal[4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152],
        msgspec.Meta(description="cluster of an image that is made", extra={"unit": "bytes"}),
    ] = 65536
    sector_size: Annotated[
        Literal[512, 4096],
        msgspec.Meta(description="sector of an image that is there", extra={"unit": "bytes"}),
    ] = 512


class Qcow2Volume(NbdVolume):
    """One open image. ``unlock`` makes it one for reading: two writers would spoil an image."""

    def __init__(self, image: SharedImage, geometry: Geometry, *, write: bool) -> None:
        super().__init__(image, geometry, writable=write)
        self._image = image

    async def unlock(self) -> None:
        """Flush, and close the image for writing; this volume reads on, and refuses to write."""
        await self.flush()
        if self._writable:
            await self._image.hand_over(self)
            self._writable = False


class Qcow2Driver(VolumeDriver[Qcow2Options]):
    """Opens and makes qcow2 images. A location is a path; symbolic links are followed.

    ``Access.WRITE`` takes QEMU's locks. ``Access.READ`` takes none, and is refused while another
    process writes the image: a running guest's disk is read by the volume ``qemu``.
    """

    api_version = 1
    name = "qcow2"
    summary = "an image of QEMU's format, read and written by qemu-storage-daemon"
    options_type = Qcow2Options
    capabilities: ClassVar[VolumeCapabilities] = VolumeCapabilities(
        holes=Grade.NATIVE, zeroes=Grade.NATIVE, discard=Grade.NATIVE
    )
    options: Qcow2Options

    @property
    def _flatten(self) -> bool:
        return self.options.backing == "flatten"

    async def probe(self, location: str) -> Geometry:
        """Size of the image's disk, with this driver's sector size."""
        return await examine(location, self.options.sector_size, flatten=self._flatten)

    async def open(self, location: str, access: Access) -> Volume:
        """Open the image at ``location``."""
        return await self._open(location, await self.probe(location), write=access is Access.WRITE)

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Check names, sizes and the folder."""
        await check_new_image(location, geometry)

    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Make an image readable by its owner alone, and open it."""
        await make_image(location, geometry, self.options.cluster_size)
        try:
            return await self._open(location, geometry, write=True)
        except BaseException:
            await finished(remove_image(location))
            raise

    async def remove(self, location: str) -> None:
        """Unlink the file, durably; nothing there is no error."""
        await remove_image(location)

    async def _open(self, location: str, geometry: Geometry, *, write: bool) -> Volume:
        image = SharedImage.at(location)
        volume = Qcow2Volume(image, geometry, write=write)
        try:
            await image.join(volume, write=write, flatten=self._flatten)
        except BaseException:
            await volume.close()
            raise
        return volume

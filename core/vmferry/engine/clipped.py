"""A volume that is larger than the guest's disk, shown at the disk's size.

A block device or logical volume is taken as it is; the guest, the pending map and the protocol
know only the disk's own bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from vmferry.api.volume import Extent, Geometry, Volume

__all__ = ["clipped"]


def clipped(volume: Volume, size: int) -> Volume:
    """``volume`` as one of ``size`` bytes; itself if that is its size."""
    return volume if volume.geometry.size == size else _Clipped(volume, size)


class _Clipped(Volume):
    def __init__(self, volume: Volume, size: int) -> None:
        self._volume = volume
        self._geometry = Geometry(size, volume.geometry.sector_size)

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, buffer.nbytes)
        await self._volume.read_into(offset, buffer)

    async def write(self, offset: int, data: memoryview) -> None:
        self._check_range(offset, data.nbytes)
        await self._volume.write(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._check_range(offset, length)
        await self._volume.write_zeroes(offset, length, unmap=unmap)

    async def discard(self, offset: int, length: int) -> None:
        self._check_range(offset, length)
        await self._volume.discard(offset, length)

    async def flush(self) -> None:
        await self._volume.flush()

    def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        self._check_range(offset, length)
        return self._volume.extents(offset, length)

    async def unlock(self) -> None:
        await self._volume.unlock()

    async def close(self) -> None:
        await self._volume.close()

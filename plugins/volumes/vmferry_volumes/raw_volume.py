"""One open raw disk."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable

from vmferry.api.volume import Extent, Geometry, Volume
from vmferry.errors import VolumeError
from vmferry.units import KIB, MIB
from vmferry_volumes import linux
from vmferry_volumes.disks import OpenDisk
from vmferry_volumes.sparse import merged_extents, scan_extents
from vmferry_volumes.threads import Gate, OneThread, WriteBatch, in_thread
from vmferry_volumes.transfer import (
    read_cached,
    read_direct,
    read_full,
    write_direct,
    write_out,
    write_zeroes,
)

__all__ = ["RawVolume"]

_SMALL = 64 * KIB
"""Up to here a read is tried in the page cache on the event loop (8 us for 64 KiB, 2 us for
4 KiB, against 60 us for a hop into a thread), and a write is batched."""

_PIECE = 256 * MIB
"""Bytes of one call that zeroes or discards: cancellation and closing wait for one at most."""

_ATTEMPTS = 3


class RawVolume(Volume):
    """A regular file or block device, whose bytes are the guest's.

    Reads and writes go through the page cache, or past it where ``OpenDisk.direct`` says so. A
    cancelled request ends when the kernel has finished with its buffer, not before. After
    ``close`` every request raises ``VolumeError``.
    """

    def __init__(self, disk: OpenDisk, *, keep_allocation: bool = False) -> None:
        """Take over ``disk``; with ``keep_allocation`` no space is ever given back."""
        self._disk = disk
        self._keep = keep_allocation
        self._gate = Gate(lambda: VolumeError(f"{disk.path} is closed"))
        self._batch = WriteBatch(disk.fd)
        self._writer = OneThread("vmferry-raw-write")
        self._ask_cache = not disk.direct
        self._claim, self._closed = disk.claim, False

    @property
    def geometry(self) -> Geometry:
        """Size and sector size."""
        return self._disk.geometry

    def _check(self, offset: int, length: int) -> None:
        sector, size = self._disk.geometry.sector_size, self._disk.geometry.size
        if offset < 0 or length < 0 or offset + length > size or (offset | length) % sector:
            raise ValueError(
                f"{length} bytes at {offset} of {self._disk.path}: not whole {sector}-byte "
                f"sectors of a disk of {size} bytes"
            )

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; a small read that the page cache can serve never leaves the loop."""
        self._check(offset, buffer.nbytes)
        view = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
        with self._gate:
            done = self._read_cached(offset, view)
            if done < view.nbytes:
                read = read_direct if self._disk.direct else read_full
                await in_thread(read, self._disk.fd, view[done:], offset + done)

    def _read_cached(self, offset: int, view: memoryview) -> int:
        if not self._ask_cache or view.nbytes > _SMALL:
            return 0
        try:
            return read_cached(self._disk.fd, view, offset)
        except OSError as failure:
            if failure.errno not in linux.UNSUPPORTED:
                raise
            self._ask_cache = False
            return 0

    async def write(self, offset: int, data: memoryview) -> None:
        """Write ``data``; small writes through the page cache share a hop into a thread."""
        self._check(offset, data.nbytes)
        view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
        with self._gate:
            if view.nbytes <= _SMALL and not self._disk.direct:
                await self._batch.write(offset, view)
            elif self._disk.direct:
                await in_thread(write_direct, self._disk.fd, view, offset)
            else:
                await self._writer.run(write_out, self._disk.fd, view, offset)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Punch a hole, or zero the range in place; where neither is possible, write zeroes."""
        self._check(offset, length)
        with self._gate:
            for start, size in _pieces(offset, length):
                await in_thread(self._zero, start, size, unmap and not self._keep)

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        fd = self._disk.fd
        if unmap and _is_done(linux.punch_hole, fd, offset, length):
            return
        if not _is_done(linux.zero_range, fd, offset, length):
            write_zeroes(fd, offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Give the space of exactly this range back, if the disk can and may."""
        self._check(offset, length)
        give_back = linux.discard_device if self._disk.is_device else linux.punch_hole
        with self._gate:
            for start, size in _pieces(offset, length):
                if self._keep or not await in_thread(
                    _is_done, give_back, self._disk.fd, start, size
                ):
                    return

    async def flush(self) -> None:
        """Call ``fdatasync(2)``."""
        with self._gate:
            await in_thread(os.fdatasync, self._disk.fd)

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """Data and holes of a file; a block device is one extent of data.

        A preallocated range that was never written is a ``HOLE``: ``lseek(2)`` does not tell.
        """
        self._check(offset, length)
        if self._disk.is_device:
            found: AsyncIterator[Extent] = super().extents(offset, length)
        else:
            found = merged_extents(self._scan, offset, length)
        async for extent in found:
            yield extent

    async def _scan(self, offset: int, end: int) -> tuple[list[Extent], int]:
        with self._gate:
            return await in_thread(
                scan_extents, self._disk.fd, offset, end, self._disk.geometry.sector_size
            )

    async def unlock(self) -> None:
        """Release the claim; the descriptor for the I/O has no part in it and goes on."""
        with self._gate:
            claim, self._claim = self._claim, -1
            if claim >= 0:
                await in_thread(os.close, claim)

    async def close(self) -> None:
        """Finish the requests under way and close; not flushed: ``flush`` first."""
        await self._gate.shut()
        if not self._closed:
            self._closed = True
            self._writer.end()
            await in_thread(self._disk._replace(claim=self._claim).close)


def _pieces(offset: int, length: int) -> list[tuple[int, int]]:
    end = offset + length
    return [(start, min(_PIECE, end - start)) for start in range(offset, end, _PIECE)]


def _is_done(operation: Callable[[int, int, int], None], fd: int, offset: int, length: int) -> bool:
    """Do it; False if the file system or device has no such operation, or cannot at the moment.

    A device with dirty pages in the range answers ``EBUSY`` while anybody holds it exclusively
    (``truncate_bdev_range`` in ``block/bdev.c``): they are written first.
    """
    for attempt in range(_ATTEMPTS):
        try:
            if attempt:
                os.fdatasync(fd)
            operation(fd, offset, length)
        except OSError as failure:
            if failure.errno in linux.UNSUPPORTED:
                return False
            if failure.errno != errno.EBUSY:
                raise
        else:
            return True
    return False

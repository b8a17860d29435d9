"""Holes and data of a sparse file, by ``lseek(2)`` with ``SEEK_DATA`` and ``SEEK_HOLE``.

A hole read from here may have been preallocated: ``lseek`` does not tell. A file system that
knows no holes says that all is data, in Linux' generic code or with an error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from vmferry.api.volume import Extent, ExtentKind
from vmferry_volumes.linux import UNSUPPORTED

__all__ = ["merged_extents", "scan_extents"]

_BATCH = 1024

Scan = Callable[[int, int], Awaitable[tuple[list[Extent], int]]]


async def merged_extents(scan: Scan, offset: int, length: int) -> AsyncIterator[Extent]:
    """Extents of the range, as ``scan`` finds them from one offset to the end, merged.

    One batch of them is held at a time.
    """
    held: Extent | None = None
    end = offset + length
    while offset < end:
        batch, offset = await scan(offset, end)
        for extent in batch:
            if held and held.kind is extent.kind:
                held = Extent(held.offset, held.length + extent.length, held.kind)
                continue
            if held:
                yield held
            held = extent
    if held:
        yield held


def scan_extents(fd: int, offset: int, end: int, sector: int) -> tuple[list[Extent], int]:
    """Extents from ``offset`` on, ``_BATCH`` or one more, and where the next ones begin.

    ``offset`` and ``end`` are whole sectors; holes are rounded inwards to whole sectors. Blocks.
    """
    found: list[Extent] = []
    while offset < end and len(found) < _BATCH:
        data = min(end, _seek(fd, offset, os.SEEK_DATA, end))
        data -= data % sector
        if data > offset:
            found.append(Extent(offset, data - offset, ExtentKind.HOLE))
            offset = data
        if offset < end:
            hole = min(end, -(-_seek(fd, offset + sector, os.SEEK_HOLE, end) // sector) * sector)
            found.append(Extent(offset, hole - offset, ExtentKind.DATA))
            offset = hole
    return found, offset


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Where the next data or hole begins; what cannot be asked is data."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as failure:
        if failure.errno == errno.ENXIO:  # nothing of the kind before the end of the file
            return end
        if failure.errno not in UNSUPPORTED:
            raise
        return offset if whence == os.SEEK_DATA else end

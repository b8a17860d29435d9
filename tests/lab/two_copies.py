"""Runs in a host: a tracker's record against one that needs none, the disk itself.

``python two_copies.py GUEST TRACKER SECONDS [LONG_DISCARDS]`` copies the guest's disk by what the
tracker says, while the guest writes, and once more when the guest stands still. Then copy and disk
are the same, or writes were missed. Prints what was seen, as JSON. Discards of 40 MiB, if any are
asked for, are made beside the guest, with blocks of a sector: too long to be marked one by one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import struct
import sys
import time
from typing import Any

from vmferry.api.guest import Disk
from vmferry.dirtymap import DirtyMap
from vmferry_hypervisors.xen.driver import XenHypervisor
from vmferry_hypervisors.xen.xl import xl
from vmferry_trackers.blkback.tracker import BlkbackTracker
from vmferry_trackers.dm_era.tracker import DmEraTracker

BLKDISCARD = 0x1277
LONG = 40 << 20
TRACKERS = {"blkback": BlkbackTracker, "dm-era": DmEraTracker}


class Copy:
    """What a migration would have made of the disk."""

    def __init__(self, disk: Disk) -> None:
        self.fd = os.open(disk.facts["device"], os.O_RDWR | os.O_DIRECT)
        self._disk = mmap.mmap(-1, disk.size)
        self._copy = bytearray(disk.size)
        self.copied = 0

    def _read(self, offset: int, length: int) -> memoryview:
        view = memoryview(self._disk)[offset : offset + length]
        done = 0
        while done < length:
            done += os.preadv(self.fd, [view[done:]], offset + done)
        return view

    def take(self, dirty: DirtyMap) -> None:
        for offset, length in dirty.runs():
            # whole pages, since that is how the disk is read
            start, stop = offset & ~4095, min(-(-(offset + length) // 4096) * 4096, len(self._copy))
            self._copy[start:stop] = self._read(start, stop - start)
            self.copied += length

    def differing(self) -> int:
        """Sectors of the disk that the copy does not have."""
        whole = self._read(0, len(self._copy))
        places = range(0, len(self._copy), 512)
        return sum(whole[at : at + 512] != self._copy[at : at + 512] for at in places)


async def compare(guest: str, tracker: Any, seconds: float, discards: int) -> dict[str, object]:
    (disk,) = (await XenHypervisor().describe(guest)).disks
    size = await tracker.start(disk, 512 if discards else 4096)
    copy = Copy(disk)
    harvests, everything = 0, False
    try:
        copy.take(DirtyMap.full(disk.size, size))
        until = time.monotonic() + seconds
        while time.monotonic() < until or not harvests:
            for _ in range(discards):
                fcntl.ioctl(copy.fd, BLKDISCARD, struct.pack("QQ", 0, LONG))
            dirty = await tracker.harvest()
            everything |= dirty.all(0, disk.size)
            await asyncio.to_thread(copy.take, dirty)
            harvests += 1
        await xl("pause", guest)
        await tracker.drain()
        copy.take(await tracker.harvest())
        found = {"harvests": harvests, "copied": copy.copied, "everything": everything}
        return found | {"differing": copy.differing()}
    finally:
        await tracker.stop()
        await xl("unpause", guest)


if __name__ == "__main__":
    name, kind, seconds, *more = sys.argv[1:]
    discards = int(more[0]) if more else 0
    print(json.dumps(asyncio.run(compare(name, TRACKERS[kind](), float(seconds), discards))))

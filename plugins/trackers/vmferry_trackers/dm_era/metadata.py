"""The era target's metadata device: a file of the right size behind a loop device."""

from __future__ import annotations

import os
from pathlib import Path

from vmferry.errors import TrackerError
from vmferry.units import KIB, MIB, format_size
from vmferry_support.commands import CommandFailed, run
from vmferry_support.threads import in_thread

__all__ = ["Metadata", "fitting_block_size", "metadata_bytes"]

_BLOCK = 4 * KIB
"""Of the era target's metadata, and its smallest unit of tracking."""
_PER_TRACKED = 12
_FIXED = 4 * MIB


def metadata_bytes(size: int, block_size: int) -> int:
    """Bytes of metadata for a disk of ``size`` bytes: generous, for what runs out fails writes.

    Each block has 4 bytes in the array of eras, twice while a snapshot is held, and a bit in each
    written set that was not merged into that array yet; btrees are half full at worst.
    """
    blocks = -(-size // block_size)
    return -(-(_FIXED + _PER_TRACKED * blocks) // MIB) * MIB


def fitting_block_size(size: int, block_size: int, limit: int) -> int:
    """The least block size, at least ``block_size``, whose metadata has ``limit`` bytes at most.

    The era target wants a multiple of 8 sectors (``MIN_BLOCK_SIZE``).
    """
    used = max(block_size, _BLOCK)
    while metadata_bytes(size, used) > limit and used < size:
        used *= 2
    return used


class Metadata:
    """The file and its loop device, whether they exist or not.

    Attributes:
        path: of the file.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def make(self, size: int) -> str:
        """Make the file, all zeroes, which the era target takes for new; returns the device.

        All its space is reserved: a write that finds no room for metadata fails.

        Raises:
            TrackerError: there is no room, or no loop device.

        """
        try:
            await in_thread(self._reserve, size)
            device = await run("losetup", "--find", "--show", str(self.path))
        except (OSError, CommandFailed) as error:
            await self.remove()
            raise TrackerError(
                f"no metadata of {format_size(size)} at {self.path}: {error}"
            ) from error
        return device.strip()

    def _reserve(self, size: int) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)

    async def remove(self) -> None:
        """Detach the loop device and remove the file; may be called twice."""
        if not self.path.exists():
            return
        for line in (await run("losetup", "--associated", str(self.path))).splitlines():
            await run("losetup", "--detach", line.partition(":")[0])
        self.path.unlink(missing_ok=True)

"""Disks for the guest: its program, and the stamps of operation 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vmferry_hypervisors.qemu.workload.program import FIRST_BLOCK, SECTORS, SIZE, Program, image

__all__ = ["SECTOR", "make_disk", "stamps"]

SECTOR = 512
_PIECE = 8192


def stamps(disk: int, sectors: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """What sectors that were never written hold where the disk is filled: 64 pairs each."""
    pairs = np.zeros((len(sectors), SECTOR // 8, 2), dtype="<u4")
    pairs[:, :, 1] = (sectors | disk << 28)[:, None]
    return pairs


def make_disk(path: Path, disk: int, program: Program) -> None:
    """Make a raw disk; the first one holds the program. ``FileExistsError`` if it is there."""
    with path.open("xb") as file:
        file.truncate(program.sectors * SECTOR)
        for start in range(0, program.filled, _PIECE):
            numbers = np.arange(start, min(start + _PIECE, program.filled))
            file.seek(start * SECTOR)
            file.write(stamps(disk, numbers).tobytes())
        file.seek(0)
        file.write(bytes(FIRST_BLOCK * SECTORS * SECTOR))
        if disk == 0:
            file.seek(0)
            file.write(program.patch(image()))
    assert SIZE <= SECTORS * SECTOR

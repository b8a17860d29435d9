"""Discards under dm-era, which marks the first block of each and no more.

The target asks for no splitting (``era_map`` looks at ``bi_sector`` alone). The block layer does
split a discard at the device's limit and at multiples of its granularity, counted from its
alignment (``bio_split_discard`` in ``block/blk-merge.c``): with a limit of one granule and no
misalignment, no piece has more than one block. sysfs does not tell the alignment reliably (Linux
6.1 shows another value in its place), so it is followed down to the disks. Exchanging the table
sets the limit anew, the era target's barrier does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vmferry.errors import TrackerError
from vmferry.units import SECTOR
from vmferry_support.dm import DmDevice, Segment

__all__ = ["SYSFS", "granularity", "is_aligned", "limit_discards", "restore_discards"]

SYSFS = Path("/sys")
_LIMIT = "discard_max_bytes"


def granularity(number: str, sysfs: Path = SYSFS) -> int:
    """Bytes of the least that the device ``MAJOR:MINOR`` discards; 0 if it discards nothing."""
    queue = sysfs / "dev" / "block" / number / "queue"
    if int((queue / _LIMIT).read_text()) == 0:
        return 0
    return int((queue / "discard_granularity").read_text())


async def is_aligned(table: Iterable[Segment], granule: int, sysfs: Path = SYSFS) -> bool:
    """Whether the kernel counts granules from the beginning of a device with that table.

    ``blk_stack_limits`` in ``block/blk-settings.c`` derives the alignment from the places of the
    pieces on the devices below. What is not known to be aligned is not.
    """
    for segment in table:
        if segment.target != "linear":
            return False
        number, _, offset = segment.arguments.partition(" ")
        if int(offset) * SECTOR % granule or not await _below_aligned(number, granule, sysfs):
            return False
    return True


async def _below_aligned(number: str, granule: int, sysfs: Path) -> bool:
    folder = (sysfs / "dev" / "block" / number).resolve()
    if (folder / "dm").exists():
        name = (folder / "dm" / "name").read_text().strip()
        return await is_aligned(await DmDevice(name).table(), granule, sysfs)
    if (folder / "partition").exists():
        if int((folder / "start").read_text()) * SECTOR % granule:
            return False
        folder = folder.parent
    return int((folder / "discard_alignment").read_text()) == 0


def limit_discards(number: str, limit: int, sysfs: Path = SYSFS) -> None:
    """Let the device ``MAJOR:MINOR`` discard ``limit`` bytes at once at most; 0 forbids them.

    Raises:
        TrackerError: the kernel did not take it.

    """
    path = sysfs / "dev" / "block" / number / "queue" / _LIMIT
    path.write_text(str(limit))
    if int(path.read_text()) != limit:
        raise TrackerError(f"discards on {number} cannot be limited to {limit} bytes")


def restore_discards(number: str, sysfs: Path = SYSFS) -> None:
    """Let discards on the device be as large as it can take; a device that is gone is no error."""
    queue = sysfs / "dev" / "block" / number / "queue"
    try:
        most = int((queue / "discard_max_hw_bytes").read_text())
        granule = int((queue / "discard_granularity").read_text())
        # The kernel takes whole granules only (queue_discard_max_store in block/blk-sysfs.c).
        (queue / _LIMIT).write_text(str(most - most % max(granule, 1)))
    except FileNotFoundError:
        return

"""Block devices as sysfs(5) shows them: what a backend writes to, and where its bytes are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from vmferry.errors import HypervisorError
from vmferry_support.dm import SECTOR, DmDevice

__all__ = ["DM_UUID", "BlockDevice", "block_device", "decimal_devno", "plain_location"]

DM_UUID = "VMFERRY-"
"""How the device-mapper uuid of a device of ours begins."""

_SYSFS = Path("/sys/dev/block")
_DEEPEST = 4


class BlockDevice(NamedTuple):
    """A block device.

    Attributes:
        devno: ``major:minor``, decimal.
        name: as in ``/dev/NAME``.
        size: bytes.
        sector_size: logical, bytes.
        backing: the file under a loop device that shows all of it; else ``""``.
        dm_name: name of a device-mapper device; else ``""``.
        dm_uuid: its uuid, if it has one.

    """

    devno: str
    name: str
    size: int
    sector_size: int
    backing: str = ""
    dm_name: str = ""
    dm_uuid: str = ""

    @property
    def path(self) -> str:
        """Its node, by the name people know."""
        return f"/dev/mapper/{self.dm_name}" if self.dm_name else f"/dev/{self.name}"

    @property
    def ours(self) -> bool:
        """Whether a migration made it."""
        return self.dm_uuid.startswith(DM_UUID)


def decimal_devno(text: str) -> str:
    """``major:minor`` in decimal of what xenstore's ``physical-device`` holds, in hexadecimal.

    Raises:
        ValueError: it is no device number.

    """
    major, minor = (int(part, 16) for part in text.split(":"))
    return f"{major}:{minor}"


def block_device(devno: str, sysfs: Path = _SYSFS) -> BlockDevice:
    """The device of that number; raises ``HypervisorError`` if there is none."""
    folder = sysfs / devno
    try:
        resolved = folder.resolve(strict=True)
        queue = folder / "queue"
        if not queue.exists():  # a partition has its disk's
            queue = resolved.parent / "queue"
        return BlockDevice(
            devno=devno,
            name=resolved.name.replace("!", "/"),
            size=int(_read(folder / "size") or 0) * SECTOR,
            sector_size=int(_read(queue / "logical_block_size") or SECTOR),
            backing=_backing(folder / "loop"),
            dm_name=_read(folder / "dm" / "name"),
            dm_uuid=_read(folder / "dm" / "uuid"),
        )
    except OSError as error:
        raise HypervisorError(f"there is no block device {devno}: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _backing(loop: Path) -> str:
    """The loop device's file, if it shows the whole of it."""
    path = _read(loop / "backing_file")
    part = _read(loop / "offset") not in ("", "0") or _read(loop / "sizelimit") not in ("", "0")
    return "" if part or not os.path.exists(path) else path


async def plain_location(device: BlockDevice) -> str:
    """Where the device's bytes are kept: below loop devices, and mappings of ours that are plain.

    What blkback writes there is seen by who reads this place: a loop device goes through its file's
    page cache.
    """
    for _ in range(_DEEPEST):
        if device.backing:
            return device.backing
        if not device.ours:
            break
        table = await DmDevice(device.dm_name).table()
        words = table[0].arguments.split() if len(table) == 1 else []
        if len(words) != 2 or table[0].target != "linear" or words[1] != "0":
            break
        device = block_device(words[0])
    return device.path

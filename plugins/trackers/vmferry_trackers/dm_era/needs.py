"""Whether a disk can be tracked by dm-era, and which device-mapper device is its own."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.errors import VmferryError
from vmferry.units import SECTOR, format_size
from vmferry_support.commands import run
from vmferry_support.dm import DmDevice
from vmferry_trackers.devices import DeviceError, device_number
from vmferry_trackers.dm_era.stack import EraStack, refuse_table
from vmferry_trackers.dm_era.tools import EraTools

__all__ = ["find_stack", "mended", "needs"]

SYSFS = Path("/sys")
_MENDED = (5, 12)
"""Linux with the fixes of February 2021, for writes that a crash left unmarked among others."""


async def find_stack(disk: Disk, state_dir: Path) -> EraStack:
    """What is or shall be put below the disk's device; changes nothing.

    Raises:
        DeviceError: the disk is on no device-mapper device, or on one of another size.

    """
    number = device_number(disk)
    folder = SYSFS / "dev" / "block" / number
    try:
        name = (folder / "dm" / "name").read_text().strip()
        size = int((folder / "size").read_text()) * SECTOR
    except OSError:
        raise DeviceError(
            f"disk {disk.name!r} is on {number}, which is no device-mapper device",
            "put it on a logical volume or a linear device, or use the tracker blkback",
        ) from None
    if size != disk.size:
        raise DeviceError(
            f"disk {disk.name!r} has {disk.size} bytes and device-mapper device {name} {size}",
            "correct the disk's description",
        )
    return EraStack(name, number, state_dir)


async def needs(disk: Disk, state_dir: Path, room: int) -> list[Finding]:
    """All that is missing to track the disk with ``room`` bytes of metadata in ``state_dir``."""
    found = [*await _programs(), *await _kernel(), *_space(state_dir, room)]
    try:
        stack = await find_stack(disk, state_dir)
        if await stack.inserted():
            found.append(_left_over(disk, stack.device))
        else:
            refuse_table(stack.device.name, await stack.device.table())
    except DeviceError as error:
        found.append(Finding.error("dm-era-device", error.text, error.remedy))
    except VmferryError as error:
        found.append(Finding.error("dm-era-device", str(error)))
    return found


def _left_over(disk: Disk, device: DmDevice) -> Finding:
    text = f"disk {disk.name!r}: an earlier process left an era target in {device.name}"
    return Finding.info("dm-era-left-over", text, "it is taken out when tracking starts")


async def _programs() -> list[Finding]:
    found = [
        Finding.error(
            "dm-era-program", f"the program {name} is not installed", f"install {package}"
        )
        for name, package in (("dmsetup", "dmsetup"), ("losetup", "util-linux"))
        if not shutil.which(name)
    ]
    try:
        await EraTools.probe()
    except VmferryError as error:
        remedy = "install thin-provisioning-tools"
        found.append(Finding.error("dm-era-program", str(error), remedy))
    return found


async def _kernel() -> list[Finding]:
    found = []
    if not await _has_target():
        text = "the kernel has no era target"
        remedy = "load the module dm-era, or use the tracker blkback"
        found.append(Finding.error("dm-era-target", text, remedy))
    if not mended(platform.release()):
        text = f"Linux {platform.release()} may lack fixes of dm-era for crashes"
        found.append(Finding.warning("dm-era-old", text, "use Linux 5.12 or later"))
    return found


async def _has_target() -> bool:
    for command in ("dmsetup", "targets"), ("modprobe", "--dry-run", "--quiet", "dm-era"):
        try:
            output = await run(*command)
        except VmferryError:
            continue
        if command[0] == "modprobe" or re.search(r"^era\s", output, re.MULTILINE):
            return True
    return False


def mended(release: str) -> bool:
    """Whether a kernel of that release has the fixes; unknown ones are taken for new."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return not match or (int(match[1]), int(match[2])) >= _MENDED


def _space(state_dir: Path, room: int) -> list[Finding]:
    folder = state_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= room:
        return []
    text = f"{folder} has {format_size(free)} free; the era metadata takes {format_size(room)}"
    remedy = "choose another folder by the option state_dir, one on a disk if memory is short"
    return [Finding.error("dm-era-space", text, remedy)]

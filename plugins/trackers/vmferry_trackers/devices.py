"""Which block device a disk is on, by what its hypervisor says of it."""

from __future__ import annotations

import os
import stat

from vmferry.api.guest import Disk
from vmferry.errors import TrackerError

__all__ = ["DeviceError", "device_number"]


class DeviceError(TrackerError):
    """The disk is on no block device that can be tracked.

    Attributes:
        text: why.
        remedy: what to do.

    """

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(f"{text}; {remedy}" if remedy else text)
        self.text, self.remedy = text, remedy


def device_number(disk: Disk) -> str:
    """``MAJOR:MINOR`` of a disk's block device.

    The disk's fact ``devno`` says which, or else ``device``, a path, or else the disk's location.

    Raises:
        DeviceError: there is no such device, or the fact is not a number.

    """
    number = disk.facts.get("devno")
    if number is None:
        return _number_of(disk, disk.facts.get("device") or disk.location)
    major, colon, minor = number.partition(":")
    if not (colon and _is_number(major) and _is_number(minor)):
        raise DeviceError(f"disk {disk.name!r}: the fact 'devno' is {number!r}, not MAJOR:MINOR")
    return f"{int(major)}:{int(minor)}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _number_of(disk: Disk, path: str) -> str:
    remedy = "give the disk's fact 'devno' or 'device': the device that the block backend opened"
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise DeviceError(f"disk {disk.name!r}: no device {path!r}: {error}", remedy) from None
    if not stat.S_ISBLK(found.st_mode):
        raise DeviceError(f"disk {disk.name!r}: {path} is no block device", remedy)
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"

"""The block device below a Xen block backend, as sysfs describes it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmferry.api.guest import Disk
from vmferry.units import SECTOR
from vmferry_trackers.devices import DeviceError, device_number

__all__ = ["SYSFS", "BlockDevice", "Kind", "find_device"]

SYSFS = Path("/sys")


class Kind(NamedTuple):
    """How a device's requests are seen.

    Attributes:
        requests: requests complete at ``block_rq_complete``; else it is device-mapper's, whose
            bios are seen when they are queued and when they complete.

    """

    requests: bool


class BlockDevice(NamedTuple):
    """A whole block device, or the part of one that is a partition.

    Tracepoints name the whole device and count its sectors, also when a partition is written.

    Attributes:
        name: as in ``/sys/block``, of the whole device.
        major: of the whole device.
        minor: of the whole device.
        start: first sector of 512 bytes that is the disk's.
        sectors: how many there are.
        kind: how its requests are seen.
        folder: its own folder in sysfs; a partition's for a partition.
        whole: the whole device's folder.

    """

    name: str
    major: int
    minor: int
    start: int
    sectors: int
    kind: Kind
    folder: Path
    whole: Path

    def sectors_written(self) -> int:
        """Sectors of 512 bytes written or discarded on the whole device since it was made.

        ``Documentation/block/stat.rst``: the kernel counts a request after ``block_rq_complete``,
        device-mapper a bio just before ``block_bio_complete``, or, as in Debian's Linux 6.1, when
        it begins.
        """
        fields = (self.whole / "stat").read_text().split()
        return int(fields[6]) + (int(fields[13]) if len(fields) > 13 else 0)

    def writes_in_flight(self) -> int:
        """Writes that were issued to the driver and have not ended, by the kernel's statistics."""
        return int((self.folder / "inflight").read_text().split()[1])


def find_device(disk: Disk, sysfs: Path = SYSFS) -> BlockDevice:
    """The block device of a disk.

    Raises:
        DeviceError: there is none, or it cannot be tracked.

    """
    number = device_number(disk)
    folder = sysfs / "dev" / "block" / number
    if not folder.exists():
        raise DeviceError(f"disk {disk.name!r}: there is no block device {number}")
    found = _describe(disk, folder.resolve())
    size = found.sectors * SECTOR
    if size != disk.size:
        raise DeviceError(
            f"disk {disk.name!r} has {disk.size} bytes and its block device {number} {size}",
            "correct the disk's description",
        )
    return found


def _describe(disk: Disk, folder: Path) -> BlockDevice:
    is_part = (folder / "partition").exists()
    whole = folder.parent if is_part else folder
    zoned = _read(whole / "queue" / "zoned", "none")
    if zoned != "none":
        raise DeviceError(f"disk {disk.name!r}: {whole.name} is zoned ({zoned}), not supported")
    major, minor = (int(part) for part in _read(whole / "dev").split(":"))
    return BlockDevice(
        name=whole.name,
        major=major,
        minor=minor,
        start=int(_read(folder / "start")) if is_part else 0,
        sectors=int(_read(folder / "size")),
        kind=_kind(disk, whole),
        folder=folder,
        whole=whole,
    )


def _kind(disk: Disk, whole: Path) -> Kind:
    if (whole / "mq").exists():
        _need_statistics(disk, whole)  # device-mapper of Linux 6.1 shows 0 and counts all the same
        return Kind(requests=True)
    if (whole / "dm").exists():
        return Kind(requests=False)
    # Such drivers (md, bcache) may hand the same bio on, and then its end is seen nowhere.
    raise DeviceError(
        f"disk {disk.name!r}: the driver of {whole.name} neither has request queues nor is "
        "device-mapper, so it does not show when a write has ended",
        "put the disk on a device-mapper device above it, e.g. a logical volume",
    )


def _need_statistics(disk: Disk, whole: Path) -> None:
    if _read(whole / "queue" / "iostats", "1") == "0":
        raise DeviceError(
            f"disk {disk.name!r}: {whole.name} counts no requests in flight",
            f"echo 1 > {whole}/queue/iostats",
        )


def _read(path: Path, default: str | None = None) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if default is None:
            raise
        return default

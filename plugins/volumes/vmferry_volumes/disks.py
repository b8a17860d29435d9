"""Files and block devices opened as disks. All functions block."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from vmferry.api.volume import Access, Geometry
from vmferry.errors import VolumeError, VolumeGeometry
from vmferry_volumes import linux
from vmferry_volumes.claim import claim_device, claim_file
from vmferry_volumes.paths import explained, is_device, usable
from vmferry_volumes.transfer import read_direct

__all__ = ["OpenDisk", "open_disk", "probe_disk"]

_BASE_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class OpenDisk(NamedTuple):
    """An open file or block device.

    Attributes:
        path: where it was opened.
        fd: descriptor for the I/O.
        claim: descriptor that keeps others from writing, or -1.
        geometry: its size and sector size.
        is_device: it is a block device.
        direct: ``fd`` goes past the page cache.

    """

    path: str
    fd: int
    claim: int
    geometry: Geometry
    is_device: bool
    direct: bool

    def close(self) -> None:
        """Close both descriptors."""
        for fd in (self.claim, self.fd):
            if fd >= 0:
                os.close(fd)


def probe_disk(path: str, sector: int) -> Geometry:
    """Geometry of the disk at ``path``; ``sector`` is the sector size that a file is given."""
    with explained(path):
        fd = _open(path, os.O_RDONLY)
        try:
            return _geometry(path, fd, sector)
        finally:
            os.close(fd)


def open_disk(path: str, access: Access, sector: int, direct: str) -> OpenDisk:
    """Open the disk at ``path``, and claim it for ``Access.WRITE``.

    Args:
        path: of a regular file or block device.
        access: how to open it.
        sector: sector size that a file is given.
        direct: past the page cache: ``"on"``, ``"off"``, or ``"auto"``, which is for devices only.

    """
    with explained(path), contextlib.ExitStack() as undo:
        device = is_device(path, os.stat(usable(path)))
        claim = -1
        if access is Access.WRITE:
            claim = claim_device(path) if device else claim_file(path)
            undo.callback(os.close, claim)
        mode = os.O_RDWR if access is Access.WRITE else os.O_RDONLY
        past_cache = direct == "on" or (direct == "auto" and device)
        fd = _open_direct(path, mode, sector) if past_cache else _open(path, mode)
        undo.callback(os.close, fd)
        geometry = _geometry(path, fd, sector)
        undo.pop_all()
        return OpenDisk(path, fd, claim, geometry, device, past_cache)


def _open_direct(path: str, mode: int, sector: int) -> int:
    """Open past the page cache, and read a sector: some file systems refuse only the request."""
    fd = -1
    try:
        fd = _open(path, mode | os.O_DIRECT)
        unit = _geometry(path, fd, sector).sector_size
        read_direct(fd, memoryview(bytearray(unit)), 0)
    except BaseException as failure:
        if fd >= 0:
            os.close(fd)
        if isinstance(failure, OSError) and failure.errno == errno.EINVAL:
            raise VolumeError(
                f"{path} cannot be used past the page cache in sectors of {sector} bytes; "
                "set direct=off, or sector_size=4096 if it is a file"
            ) from failure
        raise
    return fd


def _open(path: str, flags: int) -> int:
    is_device(path, os.stat(usable(path)))  # opening a FIFO or a tape has effects
    fd = os.open(path, flags | _BASE_FLAGS)
    try:
        is_device(path, os.fstat(fd))
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _geometry(path: str, fd: int, sector: int) -> Geometry:
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        sector = linux.sector_size(fd)
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size:
        raise VolumeGeometry(f"{path} has size 0; it cannot be a disk")
    if size % sector:
        raise VolumeGeometry(
            f"{path} has {size} bytes, which is not a whole number of {sector}-byte sectors; "
            f"use truncate(1) to make it {size - size % sector + sector} bytes"
        )
    return Geometry(size, sector)

"""Disks made and removed. All functions block."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from vmferry.api.volume import Geometry
from vmferry.errors import VolumeError, VolumeGeometry
from vmferry.units import format_size
from vmferry_volumes import linux
from vmferry_volumes.claim import claim_device
from vmferry_volumes.disks import probe_disk
from vmferry_volumes.paths import explained, usable

__all__ = ["check_new", "make_file", "remove_disk"]

_SECTORS = frozenset(1 << shift for shift in range(9, 17))


def check_new(path: str, geometry: Geometry, *, preallocate: bool) -> bool:
    """Raise why there can be no disk of ``geometry`` at ``path``; True if a device is there."""
    _check_geometry(path, geometry)
    with explained(path):
        if not os.path.lexists(usable(path)):
            _check_folder(path, geometry.size if preallocate else 0)
            return False
        if not stat.S_ISBLK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, path)
        _check_device(path, geometry)
        return True


def make_file(path: str, size: int, *, preallocate: bool) -> None:
    """Make a file that reads as ``size`` zero bytes, durably; leaves nothing when it fails."""
    with explained(path), contextlib.ExitStack() as undo:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.unlink, path)
        try:
            os.ftruncate(fd, size)
            if preallocate:
                _preallocate(path, fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
        _sync_folder(path)
        undo.pop_all()


def remove_disk(path: str) -> None:
    """Delete the regular file at ``path``, durably; leave a device alone."""
    with explained(path):
        try:
            mode = os.lstat(usable(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISREG(mode):
            os.unlink(path)
            _sync_folder(path)
        elif not (os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)):
            raise VolumeError(f"{path} is not a regular file; remove it by hand")


def _check_geometry(path: str, geometry: Geometry) -> None:
    size, sector = geometry.size, geometry.sector_size
    if sector not in _SECTORS:
        raise VolumeGeometry(
            f"{path} cannot have sectors of {sector} bytes; 512 to 65536, a power of two"
        )
    if size <= 0 or size % sector:
        raise VolumeGeometry(
            f"{path} cannot have {size} bytes: not a whole number of {sector}-byte sectors"
        )


def _check_folder(path: str, needed: int) -> None:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise VolumeError(f"the folder of {path} does not exist; make {folder} first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise VolumeError(f"the folder of {path} cannot be written; change the mode of {folder}")
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise VolumeError(
            f"{path} needs {format_size(needed)} and its file system has {format_size(free)}; "
            "free some space, or set preallocate=off"
        )


def _check_device(path: str, geometry: Geometry) -> None:
    found = probe_disk(path, geometry.sector_size)
    if found.size < geometry.size:
        raise VolumeGeometry(
            f"{path} has {found.size} bytes and {geometry.size} are needed; make it larger"
        )
    if geometry.sector_size % found.sector_size:
        raise VolumeGeometry(
            f"{path} has sectors of {found.sector_size} bytes and the disk of "
            f"{geometry.sector_size}; choose a device whose sectors are no larger"
        )
    os.close(claim_device(path))


def _preallocate(path: str, fd: int, size: int) -> None:
    try:
        linux.allocate(fd, size)
    except OSError as failure:
        if failure.errno not in linux.UNSUPPORTED:
            raise
        raise VolumeError(
            f"{path} cannot be preallocated: its file system has no such operation; "
            "set preallocate=off"
        ) from failure


def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""What can be said about a path before and after the kernel was asked."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing

__all__ = ["explained", "is_device", "usable"]

_SAID: dict[int, tuple[type[VolumeError], str]] = {
    errno.ENOENT: (VolumeMissing, "does not exist; check the path"),
    errno.ENOTDIR: (VolumeMissing, "does not exist: part of its path is not a folder"),
    errno.ENXIO: (VolumeMissing, "has no device behind it"),
    errno.ENODEV: (VolumeMissing, "has no device behind it"),
    errno.ENOMEDIUM: (VolumeMissing, "has no medium in it"),
    errno.ELOOP: (VolumeError, "is a symbolic link that leads back to itself; mend the link"),
    errno.ENAMETOOLONG: (VolumeError, "is too long for a path"),
    errno.EACCES: (VolumeError, "may not be used by this user; change its mode or the user"),
    errno.EPERM: (VolumeError, "may not be used by this user; change its mode or the user"),
    errno.EROFS: (VolumeError, "is on a read-only file system; remount it or choose another"),
    errno.EBUSY: (VolumeBusy, "is in use by somebody else"),
    errno.ETXTBSY: (VolumeBusy, "is in use by somebody else"),
    errno.EEXIST: (VolumeExists, "exists already; remove it or choose another place"),
    errno.ENOSPC: (VolumeError, "does not fit: the file system is full; free some space"),
    errno.EDQUOT: (VolumeError, "does not fit into the quota; free some space"),
    errno.EFBIG: (VolumeGeometry, "would be larger than its file system allows a file to be"),
    errno.ENOLCK: (VolumeError, "cannot be locked: its file system has no locks for open files"),
}


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise a ``VolumeError`` that names ``path`` in place of an ``OSError``."""
    try:
        yield
    except OSError as failure:
        kind, said = _SAID.get(failure.errno or 0, (VolumeError, f"cannot be used: {failure}"))
        raise kind(f"{path} {said}") from failure


def usable(path: str) -> str:
    """``path`` itself, when the kernel can be asked about it."""
    if not path or "\0" in path:
        raise VolumeError(f"{path!r} is not a path; give that of a file or block device")
    return path


def is_device(path: str, found: os.stat_result) -> bool:
    """Whether it is a block device; raises ``VolumeGeometry`` unless it is that or a file."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise VolumeGeometry(
            f"{path} is neither a regular file nor a block device; it cannot be a disk"
        )
    return stat.S_ISBLK(found.st_mode)

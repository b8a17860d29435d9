"""What Linux offers for files and block devices beyond the ``os`` module. All functions block."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

__all__ = [
    "UNSUPPORTED",
    "allocate",
    "begin_writeback",
    "discard_device",
    "punch_hole",
    "sector_size",
    "zero_range",
]

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL})
"""Error numbers by which a file system or device says that it has no such operation."""

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_BLKSSZGET, _BLKDISCARD = 0x1268, 0x1277  # linux/fs.h
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_call = getattr(_libc, "fallocate64", None) or _libc.fallocate
_call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_call.restype = ctypes.c_int
_sync_range = getattr(_libc, "sync_file_range", None)
if _sync_range is not None:
    _sync_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _call(fd, mode, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, f"fallocate of {length} bytes at {offset}: {os.strerror(number)}")


def allocate(fd: int, length: int) -> None:
    """Reserve space for the first ``length`` bytes, which read as zeroes where nothing was.

    ``EOPNOTSUPP`` where the file system cannot: ``posix_fallocate(3)`` would write it all.
    """
    _fallocate(fd, 0, 0, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make the range read as zeroes and give its space back; exact to the byte on files.

    On a block device the kernel offloads it to the device or raises ``EOPNOTSUPP``
    (``blkdev_fallocate`` in ``block/fops.c``).
    """
    _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make the range read as zeroes and keep its space; on a device the kernel may write them."""
    _fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def discard_device(fd: int, offset: int, length: int) -> None:
    """Tell a block device that the range is not needed; what it holds then is undefined."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Let the kernel begin to write the range out: no promise, and failures are ``fdatasync``'s.

    It waits while the device has too much to do (``sync_file_range(2)``).
    """
    if _sync_range is not None:
        _sync_range(fd, offset, length, _WRITE)


def sector_size(fd: int) -> int:
    """Bytes of a block device's logical sector."""
    answer = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
    return int.from_bytes(answer, "little" if struct.pack("=H", 1)[0] else "big")

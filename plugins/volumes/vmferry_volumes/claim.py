"""The right to write a disk alone, held beside the descriptor that does the I/O.

A regular file is claimed by open-file-description locks (``fcntl(2)``, ``F_OFD_SETLK``) on the
bytes that QEMU uses (``raw_apply_lock_bytes`` in its ``block/file-posix.c``), so that QEMU and
this plugin keep each other out: a shared lock on byte 100 + N says "I use permission N", one on
byte 200 + N says "nobody else may". ``flock(2)`` would not be seen by QEMU. As in QEMU, both are
taken before anybody else's are looked at, so of two openers at the same moment both may lose.

A block device is opened with ``O_EXCL``, which the kernel grants once, and not while the device is
mounted or part of another (``open(2)``).

Either ends with the descriptor, also when the process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vmferry.errors import VolumeBusy

__all__ = ["claim_device", "claim_file", "is_written"]

_USED, _REFUSED = 100, 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_OURS = (_USED + _CONSISTENT_READ, _USED + _WRITE, _REFUSED + _WRITE, _REFUSED + _RESIZE)
_AGAINST_US = (_REFUSED + _CONSISTENT_READ, _REFUSED + _WRITE, _USED + _WRITE, _USED + _RESIZE)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


def claim_file(path: str) -> int:
    """A descriptor that holds the file at ``path`` for writing alone until it is closed.

    Raises:
        VolumeBusy: somebody else writes the file, or lets nobody write it.
        OSError: it cannot be opened, or its file system has no such locks (``ENOLCK``).

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for byte in _OURS:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, byte))
        if any(_is_taken(fd, byte) for byte in _AGAINST_US):
            raise _busy(path, "stop the guest or program that uses it")
    except BaseException:
        os.close(fd)
        raise
    return fd


def claim_device(path: str) -> int:
    """A descriptor that holds the block device at ``path`` until it is closed.

    Raises:
        VolumeBusy: it is mounted, part of another device or held by another program.
        OSError: it cannot be opened.

    """
    try:
        return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        if failure.errno != errno.EBUSY:
            raise
        raise _busy(path, "unmount it, or stop the program or device that uses it") from failure


def is_written(path: str) -> bool:
    """Whether anybody, QEMU for one, holds the file at ``path`` for writing; takes no lock."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _is_taken(fd, _USED + _WRITE)
    finally:
        os.close(fd)


def _busy(path: str, remedy: str) -> VolumeBusy:
    return VolumeBusy(f"{path} is in use for writing by somebody else; {remedy}")


def _lock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _is_taken(fd: int, byte: int) -> bool:
    """Whether another open file description has a lock on this byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

"""Whole transfers at a given place of a file: through the page cache, or past it.

All functions block. Reads and writes past the page cache (``O_DIRECT``) want memory aligned to
the device's sector: a buffer that is not goes piecewise through an aligned one of the thread's.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import threading

import numpy as np

from vmferry_volumes.linux import begin_writeback

__all__ = [
    "read_cached",
    "read_direct",
    "read_full",
    "write_direct",
    "write_full",
    "write_out",
    "write_zeroes",
]

_ALIGNMENT = mmap.PAGESIZE
_BOUNCE = 1 << 20
_PIECE = 256 << 10
"""Of a write into the page cache. For more at once the kernel looks for memory in larger pieces:
up to three times as slow in a virtual machine whose free memory its host takes back."""
_own = threading.local()


def read_full(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from byte ``offset``; an end of file inside it is ``EIO``."""
    while view.nbytes:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise OSError(errno.EIO, f"the disk ends at byte {offset}: it became shorter")
        view, offset = view[count:], offset + count


def write_full(fd: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at byte ``offset``."""
    while view.nbytes:
        count = os.pwrite(fd, view, offset)
        if not count:
            raise OSError(errno.EIO, f"nothing could be written at byte {offset}")
        view, offset = view[count:], offset + count


def write_out(fd: int, view: memoryview, offset: int) -> None:
    """As ``write_full`` into the page cache, and let the kernel begin to write it out.

    Otherwise all of a disk may be in memory by the time it is to be durable.
    """
    for start in range(0, view.nbytes, _PIECE):
        write_full(fd, view[start : start + _PIECE], offset + start)
    begin_writeback(fd, offset, view.nbytes)


def read_cached(fd: int, view: memoryview, offset: int) -> int:
    """Bytes of ``view`` filled without waiting for a device; 0 if none is in the page cache.

    Raises ``OSError`` with ``EOPNOTSUPP`` where the file system cannot tell (``preadv2(2)``,
    ``RWF_NOWAIT``).
    """
    try:
        return os.preadv(fd, [view], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0


def read_direct(fd: int, view: memoryview, offset: int) -> None:
    """``read_full`` for a file opened with ``O_DIRECT``, into memory of any alignment."""
    if _is_aligned(view):
        read_full(fd, view, offset)
        return
    bounce = _bounce()
    for start in range(0, view.nbytes, _BOUNCE):
        target = view[start : start + _BOUNCE]
        read_full(fd, bounce[: target.nbytes], offset + start)
        target[:] = bounce[: target.nbytes]


def write_direct(fd: int, view: memoryview, offset: int) -> None:
    """``write_full`` for a file opened with ``O_DIRECT``, from memory of any alignment."""
    if _is_aligned(view):
        write_full(fd, view, offset)
        return
    bounce = _bounce()
    for start in range(0, view.nbytes, _BOUNCE):
        source = view[start : start + _BOUNCE]
        bounce[: source.nbytes] = source
        write_full(fd, bounce[: source.nbytes], offset + start)


def write_zeroes(fd: int, offset: int, length: int) -> None:
    """Write ``length`` zero bytes, from memory that suits ``O_DIRECT`` too."""
    for start in range(offset, offset + length, _BOUNCE):
        write_full(fd, _zeroes()[: offset + length - start], start)


@functools.cache
def _zeroes() -> memoryview:
    return memoryview(mmap.mmap(-1, _BOUNCE, prot=mmap.PROT_READ))


def _is_aligned(view: memoryview) -> bool:
    return not view.nbytes or not np.frombuffer(view, np.uint8).ctypes.data % _ALIGNMENT


def _bounce() -> memoryview:
    """The calling thread's aligned buffer of ``_BOUNCE`` bytes, kept for its next request."""
    if not hasattr(_own, "bounce"):
        _own.bounce = memoryview(mmap.mmap(-1, _BOUNCE))
    bounce: memoryview = _own.bounce
    return bounce

"""Guest memory as the guest and the one who copies it see it: two mapped files.

``memory`` holds the pages, ``dirty`` one byte per page. The guest sets a page's byte *after* it
wrote the page. The copier clears the byte *before* it reads the page. No update is lost: take a
write that the copy misses. It came after the read of the page, so its byte was set after the byte
was cleared, and the next harvest has it. A write whose byte was set before the clearing came before
the reading, and the copy has it.

That argument needs both sides' stores and loads in that order. A processor may let the copier's
loads overtake its own stores that still wait in the store buffer; ``harvest`` therefore passes a
lock, whose atomic operation is a full barrier, between clearing and reading. The digest over all of
memory that ends a migration would show a page that was lost all the same.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from vmferry_hypervisors.process.layout import PAGE

__all__ = ["SEGMENT", "GuestMemory", "create_memory"]

SEGMENT = 1 << 20
"""Bytes that are looked at together when holes are skipped; the last one may be shorter."""


def create_memory(folder: Path, size: int) -> None:
    """Make the sparse files of a memory of ``size`` bytes; raises ``FileExistsError``."""
    for name, length in (("memory", size), ("dirty", size // PAGE)):
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.truncate(descriptor, length)
        finally:
            os.close(descriptor)


class GuestMemory:
    """Both files of a guest's memory, mapped shared.

    Attributes:
        bytes: all of memory, byte by byte.
        pages: the same, one row of 64-bit words a page.
        dirty: one byte a page.

    """

    def __init__(self, folder: Path) -> None:
        self._maps = [_map(folder / "memory"), _map(folder / "dirty")]
        self._path = folder / "memory"
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._maps[0], dtype=np.uint8)
        self.pages = self.bytes.view("<u8").reshape(-1, PAGE // 8)
        self.dirty: npt.NDArray[np.uint8] = np.frombuffer(self._maps[1], dtype=np.uint8)
        self.view = memoryview(self._maps[0])
        self._fence = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.bytes)

    def mark(self, offset: int, length: int) -> None:
        """Mark what was just written: the pages that ``length`` bytes from ``offset`` touch."""
        self.dirty[offset // PAGE : (offset + length - 1) // PAGE + 1] = 1

    def count_dirty(self) -> int:
        """Pages that are marked."""
        return int(np.count_nonzero(self.dirty))

    def harvest(self) -> npt.NDArray[np.int64]:
        """Indices of the pages that are marked; unmarks them. Read the pages afterwards."""
        marked = np.flatnonzero(self.dirty.copy())  # numpy will not search what changes meanwhile
        self.dirty[marked] = 0
        with self._fence:
            return marked

    def data_segments(self) -> list[int]:
        """Numbers of the segments that are not holes of the file; the others are zero.

        A hole that is read through the mapping of a tmpfs becomes memory, so it had better not be.
        ``SEEK_DATA`` and ``SEEK_HOLE`` of lseek(2); a filesystem without them says that all is
        data.
        """
        found: set[int] = set()
        with self._path.open("rb") as file:
            end = 0
            while (start := _seek(file.fileno(), end, os.SEEK_DATA)) is not None:
                end = _seek(file.fileno(), start, os.SEEK_HOLE) or self.size
                found.update(range(start // SEGMENT, -(-end // SEGMENT)))
        return sorted(found)

    def digest(self) -> bytes:
        """BLAKE3 of all segments that are not zero, each after its number; on all processors."""
        hasher = blake3(max_threads=blake3.AUTO)
        for number in self.data_segments():
            start = number * SEGMENT
            if self.pages[start // PAGE : (start + SEGMENT) // PAGE].any():
                hasher.update(number.to_bytes(8, "little"))
                hasher.update(self.view[start : start + SEGMENT])
        return hasher.digest()

    def close(self) -> None:
        """Unmap. Arrays taken from here must not be used any more."""
        self.view.release()
        del self.bytes, self.pages, self.dirty
        for mapped in self._maps:
            mapped.close()


def _seek(descriptor: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _map(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED)

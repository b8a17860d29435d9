"""The console: a record of what was acknowledged, kept outside guest memory.

The guest appends fixed-size records to a file of its *host*. They are there whatever becomes of the
memory that moves, so the checker can hold both against the disk. A write that was acknowledged but
not logged when the guest was killed weakens the check and does not falsify it.
"""

from __future__ import annotations

import enum
import os
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["ENTRY", "Console", "Event", "read_console"]

ENTRY = np.dtype(
    [
        ("kind", "u1"),
        ("disk", "u1"),
        ("reserved", "<u2"),
        ("sequence", "<u4"),
        ("unit", "<u8"),
        ("count", "<u8"),
        ("time", "<f8"),
    ]
)
"""One entry. ``kind`` is a ``Kind`` or an ``Event``; ``time`` is ``CLOCK_BOOTTIME`` in seconds."""
_FORMAT = struct.Struct("<BBHIQQd")


class Event(enum.IntEnum):
    """Entries that are no acknowledgement; ``count`` is the length of the gap, in microseconds."""

    STARTED = 128
    SUSPENDED = 129
    RESUMED = 130
    PIVOTED = 131


class Console:
    """Appends entries, a batch at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pending: list[bytes] = []

    def add(self, kind: int, disk: int, sequence: int, unit: int, count: int) -> None:
        """Note an entry; it is in the file after ``flush``."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._pending.append(_FORMAT.pack(kind, disk, 0, sequence, unit, count, now))

    def flush(self) -> None:
        """Append what was noted."""
        if self._pending:
            os.write(self._file, b"".join(self._pending))
            self._pending.clear()


def read_console(path: Path) -> npt.NDArray[np.void]:
    """All entries of a console, oldest first; a last one cut short by a crash is left out."""
    data = path.read_bytes() if path.exists() else b""
    return np.frombuffer(data[: len(data) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY)

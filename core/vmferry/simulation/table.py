"""The writes of a guest, by number, in arrays that grow."""

from __future__ import annotations

import enum

import numpy as np

from vmferry.simulation.stamps import Numbers

__all__ = ["NEVER", "Kind", "WriteTable"]

NEVER = (1 << 31) - 1
"""The tick of what has not happened."""


class Kind(enum.IntEnum):
    """What a request does."""

    WRITE = 1
    ZERO = 2
    DISCARD = 3
    READ = 4
    FLUSH = 5


_ROWS = ("kind", "disk", "first", "stop", "submitted", "acknowledged")
_LEAST = 64


class WriteTable:
    """Every write of a guest; numbers start at 1.

    Attributes:
        count: how many there are.
        kind: ``Kind`` of each, by number.
        disk: number of its disk.
        first: its first sector.
        stop: the sector after its last.
        submitted: tick of its submission.
        acknowledged: tick of its acknowledgement, or ``NEVER``.

    """

    kind: Numbers
    disk: Numbers
    first: Numbers
    stop: Numbers
    submitted: Numbers
    acknowledged: Numbers

    def __init__(self) -> None:
        self.count = 0
        self._bind(np.zeros((len(_ROWS), _LEAST), np.int32))

    def _bind(self, rows: Numbers) -> None:
        self._rows = rows
        for name, row in zip(_ROWS, rows, strict=True):
            setattr(self, name, row)

    def add(self, kind: Kind, disk: int, first: int, stop: int, tick: int) -> int:
        """Enter a write that is submitted at ``tick``; returns its number."""
        self.count += 1
        if self.count == self._rows.shape[1]:
            self._bind(np.concatenate((self._rows, np.zeros_like(self._rows)), axis=1))
        self._rows[:, self.count] = (kind, disk, first, stop, tick, NEVER)
        return self.count

    def dump(self) -> bytes:
        """All of it."""
        return self._rows[:, : self.count + 1].tobytes()

    @classmethod
    def load(cls, data: bytes) -> WriteTable:
        """What ``dump`` returned."""
        table = cls()
        used = np.frombuffer(data, np.int32).reshape(len(_ROWS), -1)
        table.count = used.shape[1] - 1
        table._bind(np.pad(used, ((0, 0), (0, _LEAST))))
        return table

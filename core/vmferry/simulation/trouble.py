"""What may be wrong with the disks and the journal of one host, for a while."""

from __future__ import annotations

import errno

__all__ = ["HostTrouble"]

_WRITES = frozenset({"write", "zero"})


class HostTrouble:
    """Errors that the programs of one host meet; those of guests on plain disks do not.

    Attributes:
        full: there is no room: whatever is written fails.
        failing: so many of the next requests to disks fail.
        failing_writes: so many of the next writes to the journal fail.

    """

    def __init__(self) -> None:
        self.full = False
        self.failing = self.failing_writes = 0

    def of_request(self, kind: str) -> int | None:
        """The errno that a request to a disk fails with."""
        if self.full and kind in _WRITES:
            return errno.ENOSPC
        if self.failing:
            self.failing -= 1
            return errno.EIO
        return None

    def of_journal(self) -> str:
        """What SQLite says of a write to the journal; empty if it succeeds."""
        if self.full:
            return "database or disk is full"
        if self.failing_writes:
            self.failing_writes -= 1
            return "disk I/O error"
        return ""

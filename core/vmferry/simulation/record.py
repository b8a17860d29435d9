"""What a guest was told about its disks, and whether a disk's contents agree with it.

Every submission and acknowledgement is a tick. A sector may hold write *w* unless some write was
submitted after *w* had been acknowledged, and has itself been acknowledged: then *w* is
overwritten for certain. So one number per sector decides: ``superseded``, the latest tick at
which a write was submitted that has been acknowledged. Any number of overlapping writes in any
order is covered by it, and so are reads: they are judged by the number as it was when they began.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmferry.simulation.stamps import FOREIGN, ZERO, Numbers
from vmferry.simulation.table import Kind, WriteTable

__all__ = ["Complaint", "DiskRecord", "ReadStart", "Record"]

_ROWS = (
    "superseded",
    "durable",
    "latest",
    "submitted",
    "under_way",
    "pinned",
    "zeroed",
    "zeroing",
    "discarded",
    "discarding",
)
_UNPINNED = -2

Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Complaint:
    """A sector that does not hold what it must.

    Attributes:
        kind: ``lost`` (an older state), ``wrong`` (no write of this place) or ``changed`` (not what
            was read before, though nothing was written since).
        disk: number of the disk.
        sector: number of the sector.
        text: what is there and what should be.

    """

    kind: str
    disk: int
    sector: int
    text: str


@dataclass(slots=True)
class ReadStart:
    """What was known when a read was submitted."""

    disk: int
    first: int
    stop: int
    tick: int
    superseded: Numbers
    quiet: Flags
    pinned: Numbers


class DiskRecord:
    """One disk: a row of numbers for each thing known about every sector.

    Attributes:
        superseded: latest submission among the acknowledged writes.
        durable: the same among those that a flush has covered.
        latest: number of the write acknowledged last, for messages.
        submitted: tick of the latest submission.
        under_way: writes not acknowledged.
        pinned: what a read saw with no write about: the disk has made up its mind.
        zeroed, discarded: tick of the latest acknowledgement of such.
        zeroing, discarding: how many such are under way.

    """

    superseded: Numbers
    durable: Numbers
    latest: Numbers
    submitted: Numbers
    under_way: Numbers
    pinned: Numbers
    zeroed: Numbers
    zeroing: Numbers
    discarded: Numbers
    discarding: Numbers

    def __init__(self, sectors: int) -> None:
        self.bind(np.zeros((len(_ROWS), sectors), np.int32))
        for row in (self.superseded, self.durable, self.discarded):
            row[:] = -1
        self.pinned[:] = _UNPINNED

    def bind(self, rows: Numbers) -> None:
        """Make these the rows."""
        self.rows = rows
        for name, row in zip(_ROWS, rows, strict=True):
            setattr(self, name, row)


@dataclass
class Record:
    """All disks of a guest.

    Attributes:
        disks: by number.
        writes: every write ever submitted.
        tick: counts submissions and acknowledgements.
        flushes: for each flush under way what was acknowledged when it was submitted.

    """

    disks: list[DiskRecord]
    writes: WriteTable = field(default_factory=WriteTable)
    tick: int = 0
    flushes: dict[int, tuple[int, Numbers]] = field(default_factory=dict)

    def submit(self, kind: Kind, disk: int, first: int, count: int) -> int:
        """A write, zeroing or discard is handed to the disk; returns its number."""
        self.tick += 1
        place = slice(first, first + count)
        record = self.disks[disk]
        record.submitted[place] = self.tick
        record.under_way[place] += 1
        record.pinned[place] = _UNPINNED
        if kind is not Kind.WRITE:
            (record.zeroing if kind is Kind.ZERO else record.discarding)[place] += 1
        return self.writes.add(kind, disk, first, first + count, self.tick)

    def acknowledge(self, number: int) -> None:
        """The guest is told that write ``number`` has completed."""
        self.tick += 1
        table = self.writes
        place = slice(table.first[number], table.stop[number])
        record = self.disks[table.disk[number]]
        table.acknowledged[number] = self.tick
        superseded = record.superseded[place]
        np.maximum(superseded, table.submitted[number], out=superseded)
        record.latest[place] = number
        record.under_way[place] -= 1
        if table.kind[number] == Kind.ZERO:
            record.zeroing[place] -= 1
            record.zeroed[place] = self.tick
        elif table.kind[number] == Kind.DISCARD:
            record.discarding[place] -= 1
            record.discarded[place] = self.tick

    def begin_flush(self, disk: int) -> int:
        """A flush is submitted; returns its number."""
        self.tick += 1
        self.flushes[self.tick] = (disk, self.disks[disk].superseded.copy())
        return self.tick

    def end_flush(self, number: int) -> None:
        """The guest is told that flush ``number`` has completed."""
        self.tick += 1
        disk, covered = self.flushes.pop(number)
        durable = self.disks[disk].durable
        np.maximum(durable, covered, out=durable)

    def begin_read(self, disk: int, first: int, count: int) -> ReadStart:
        """A read is submitted."""
        self.tick += 1
        place, record = slice(first, first + count), self.disks[disk]
        quiet = record.under_way[place] == 0
        superseded = record.superseded[place].copy()
        pinned = record.pinned[place].copy()
        return ReadStart(disk, first, first + count, self.tick, superseded, quiet, pinned)

    def end_read(self, start: ReadStart, seen: Numbers) -> list[Complaint]:
        """A read has returned; says what cannot be."""
        self.tick += 1
        place, record = slice(start.first, start.stop), self.disks[start.disk]
        held = np.where(record.pinned[place] == start.pinned, start.pinned, _UNPINNED)
        complaints = self._judge(start.disk, place, seen, start.superseded, held)
        settled = start.quiet & (record.submitted[place] < start.tick)
        settled &= record.discarded[place] <= start.superseded
        record.pinned[place] = np.where(settled, seen, record.pinned[place])
        return complaints

    def check(self, disk: int, seen: Numbers, *, crashed: bool = False) -> list[Complaint]:
        """Compare all of a disk that nobody uses any more.

        Args:
            disk: number of the disk.
            seen: its contents.
            crashed: what was not flushed may be gone.

        """
        record = self.disks[disk]
        floor = record.durable if crashed else record.superseded
        pinned = _UNPINNED if crashed else record.pinned
        return self._judge(disk, slice(0, len(seen)), seen, floor, pinned)

    def _judge(
        self, disk: int, place: slice, seen: Numbers, floor: Numbers, pinned: Numbers | int
    ) -> list[Complaint]:
        record = self.disks[disk]
        fine = self._written(disk, place, seen) & (self._acknowledged(seen) > floor)
        zero = (record.zeroing[place] > 0) | (record.zeroed[place] > floor)
        fine |= (seen == ZERO) & zero
        anything = (record.discarding[place] > 0) | (record.discarded[place] > floor)
        fine |= anything
        changed = fine & ~anything & (pinned != _UNPINNED) & (pinned != seen)
        bad = np.flatnonzero(~fine | changed)
        return [
            self._complain(disk, place.start + int(i), int(seen[i]), bool(changed[i])) for i in bad
        ]

    def _known(self, seen: Numbers) -> Numbers:
        return np.where((seen > 0) & (seen <= self.writes.count), seen, 0)

    def _acknowledged(self, seen: Numbers) -> Numbers:
        ticks: Numbers = self.writes.acknowledged[self._known(seen)]
        return ticks

    def _written(self, disk: int, place: slice, seen: Numbers) -> Flags:
        """Where there is a write of that number that covers the place."""
        table, known = self.writes, self._known(seen)
        sectors = np.arange(place.start, place.start + len(seen))
        inside = (table.first[known] <= sectors) & (sectors < table.stop[known])
        ours = (table.disk[known] == disk) & (table.kind[known] == Kind.WRITE)
        return np.asarray((known > 0) & inside & ours)

    def _complain(self, disk: int, sector: int, seen: int, changed: bool) -> Complaint:
        record = self.disks[disk]
        kind = "changed" if changed else "wrong" if seen == FOREIGN else "lost"
        there = {FOREIGN: "no stamp of this place", ZERO: "zeroes"}.get(seen, f"write {seen}")
        latest = int(record.latest[sector])
        text = f"disk {disk} sector {sector} holds {there}; the last one acknowledged is {latest}"
        if changed:
            text += f", and {record.pinned[sector]} was read before"
        return Complaint(kind, disk, sector, text)

    def differences(self, other: Record) -> list[str]:
        """Where another record of the same guest says something else."""
        found = [
            f"{name} of disk {number}"
            for number, (ours, theirs) in enumerate(zip(self.disks, other.disks, strict=True))
            for name in _ROWS
            if not np.array_equal(getattr(ours, name), getattr(theirs, name))
        ]
        if self.tick != other.tick:
            found.append(f"ticks ({self.tick} and {other.tick})")
        if self.writes.dump() != other.writes.dump():
            found.append("writes")
        return found

    def dump(self) -> dict[str, Any]:
        """All of it, for ``msgpack``."""
        return {
            "disks": [record.rows.tobytes() for record in self.disks],
            "writes": self.writes.dump(),
            "tick": self.tick,
            "flushes": [[n, disk, row.tobytes()] for n, (disk, row) in self.flushes.items()],
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> Record:
        """What ``dump`` returned."""
        disks = []
        for data in state["disks"]:
            rows = np.frombuffer(data, np.int32).reshape(len(_ROWS), -1).copy()
            disks.append(DiskRecord(0))
            disks[-1].bind(rows)
        flushes = {n: (disk, np.frombuffer(row, np.int32)) for n, disk, row in state["flushes"]}
        return cls(disks, WriteTable.load(state["writes"]), state["tick"], flushes)

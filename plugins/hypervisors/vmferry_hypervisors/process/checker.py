"""The guest's disk and memory against its records.

Two records say what a disk must hold: the table in guest memory, and the consoles of all hosts the
guest ran on, which never moved. Each unit is held against the newer of the two, so that memory that
lost its latest acknowledgements cannot hide that the disk lost the same writes; a table that is
older than a console is counted as bad memory besides.

The disk is read as a plain file, through nothing of the migration.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry.api.trial import Verdict
from vmferry.errors import HypervisorError
from vmferry_hypervisors.process.console import read_console
from vmferry_hypervisors.process.judge import judge
from vmferry_hypervisors.process.layout import (
    MAX_SEQUENCE,
    SEQUENCE_BITS,
    DiskPlan,
    Program,
    Registers,
    Slot,
    read_program,
)
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.scratch import bad_pages
from vmferry_hypervisors.process.stamps import DISK_MAGIC, FOREIGN, ZERO, read_stamps
from vmferry_hypervisors.process.workload import Kind

__all__ = ["GuestRecord", "check_guest", "logged_entries"]

_PIECE = 4 << 20
_EXAMPLES = 5
Entries = npt.NDArray[np.uint32]


class GuestRecord(NamedTuple):
    """What a stopped guest left in its memory: program, registers, tables, bad scratch pages."""

    program: Program
    registers: Registers
    tables: Sequence[Entries]
    outstanding: Sequence[Slot]
    bad_pages: Sequence[int]

    @classmethod
    def read(cls, folder: Path) -> GuestRecord:
        """Read the memory of the guest in ``folder``, which must not run."""
        memory = GuestMemory(folder)
        program = read_program(memory.view)
        tables = [
            memory.bytes[disk.table : disk.table + disk.units * 4].view("<u4").copy()
            for disk in program.plan.disks
        ]
        return cls(
            program,
            Registers.load(memory.view),
            tables,
            list(Slot.load_all(memory.view).values()),
            bad_pages(memory, program.plan),
        )


class _Tally:
    """Counts, and the first few findings in words."""

    def __init__(self) -> None:
        self.checked = self.lost = self.wrong = 0
        self.examples: list[str] = []

    def add(
        self,
        disk: str,
        entries: Entries,
        found: npt.NDArray[np.int64],
        units: npt.NDArray[np.int64],
        lost: npt.NDArray[np.bool_],
        wrong: npt.NDArray[np.bool_],
    ) -> None:
        """Count the judgement of some units."""
        self.checked += len(units)
        self.lost += int(np.count_nonzero(lost))
        self.wrong += int(np.count_nonzero(wrong))
        for at in np.flatnonzero(lost | wrong)[: _EXAMPLES - len(self.examples)]:
            fault = "lost" if lost[at] else "wrong"
            self.examples.append(
                f"{disk} unit {units[at]}: {fault}: holds {_holds(int(found[at]))}, "
                f"the record says {_says(int(entries[at]))}"
            )


def _holds(found: int) -> str:
    if found == ZERO:
        return "zeroes"
    return "no write of the guest" if found == FOREIGN else f"write {found}"


def _says(entry: int) -> str:
    if not entry:
        return "it was never written"
    return f"{Kind(entry >> SEQUENCE_BITS).name.lower()} {entry & MAX_SEQUENCE}"


def logged_entries(consoles: Iterable[Path], disk: int, units: int) -> Entries:
    """The last acknowledged write of each unit of a disk, by the consoles of all hosts."""
    logs = np.concatenate([read_console(path) for path in consoles])
    logs = logs[(logs["kind"] <= Kind.TRIM) & (logs["disk"] == disk)]
    logs = logs[np.argsort(logs["sequence"], kind="stable")]
    counts = logs["count"].astype(np.int64)
    starts = np.cumsum(counts) - counts
    inside = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    places = np.repeat(logs["unit"].astype(np.int64), counts) + inside
    values = logs["sequence"] | (logs["kind"].astype(np.uint32) << SEQUENCE_BITS)
    entries: Entries = np.zeros(units, dtype=np.uint32)
    entries[places] = np.repeat(values, counts)
    return entries


def _newer(table: Entries, logged: Entries) -> tuple[Entries, int]:
    """Of two records the newer, unit by unit, and how often the table was the older one."""
    older = (table & MAX_SEQUENCE) < (logged & MAX_SEQUENCE)
    return np.where(older, logged, table), int(np.count_nonzero(older))


def check_guest(
    record: GuestRecord, consoles: Sequence[Path], locations: dict[str, Path]
) -> Verdict:
    """Compare the disks at ``locations`` (by name) with the record of a guest that does not run.

    A unit with a request outstanding, which a guest that was killed may leave, can hold anything.

    Raises:
        HypervisorError: a disk is shorter than the guest's.

    """
    tally, stale = _Tally(), 0
    for index, disk in enumerate(record.program.plan.disks):
        logged = logged_entries(consoles, index, disk.units)
        entries, older = _newer(record.tables[index], logged)
        stale += older
        if older:
            tally.examples.append(f"{disk.name}: the table forgot {older} acknowledged units")
        exempt = [slot for slot in record.outstanding if slot.disk == index]
        _check_disk(record.program, disk, entries, exempt, locations[disk.name], tally)
    if record.bad_pages:
        tally.examples.append(f"memory: scratch pages {list(record.bad_pages[:_EXAMPLES])} are bad")
    return Verdict(
        acknowledged=record.registers.writes,
        checked=tally.checked,
        lost=tally.lost,
        wrong=tally.wrong,
        bad_reads=record.registers.bad_reads,
        bad_memory=len(record.bad_pages) + stale,
        examples=tuple(tally.examples),
    )


def _check_disk(
    program: Program,
    disk: DiskPlan,
    entries: Entries,
    exempt: Sequence[Slot],
    location: Path,
    tally: _Tally,
) -> None:
    size = program.plan.unit
    total = disk.size // size
    known = np.zeros(total, dtype=np.uint32)
    known[: disk.units] = entries
    ignored = np.zeros(total, dtype=np.bool_)
    for slot in exempt:
        ignored[slot.unit : slot.unit + slot.count] = slot.kind < Kind.READ
    with location.open("rb") as file:
        for start in range(0, total, _PIECE // size):
            units = np.arange(start, min(start + _PIECE // size, total))
            found = read_stamps(DISK_MAGIC, units, _read(file.fileno(), units, size, location))
            here = known[start : start + len(units)]
            lost, wrong = judge(units, here, found, size, program.workload.prefill)
            keep = ~ignored[start : start + len(units)]
            tally.add(disk.name, here, found, units, lost & keep, wrong & keep)


def _read(
    descriptor: int, units: npt.NDArray[np.int64], size: int, location: Path
) -> npt.NDArray[np.uint64]:
    data = os.pread(descriptor, len(units) * size, int(units[0]) * size)
    if len(data) != len(units) * size:
        raise HypervisorError(f"disk {location} ends before unit {units[-1]} of {size} bytes")
    return np.frombuffer(data, dtype="<u8").reshape(len(units), size // 8)

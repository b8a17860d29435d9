"""The disks and the memory against the guest's own record.

The operations follow from the parameters, so the record need only say how many were acknowledged
since each boot. Each sector must hold the last acknowledged write to it; one that the operation
after that writes, which the end of the guest or a reboot cut short, may hold it already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmferry.api.trial import Verdict
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.workload.image import SECTOR
from vmferry_hypervisors.qemu.workload.program import (
    FIRST_BLOCK,
    SECTORS,
    Operations,
    Program,
    State,
    operations,
)
from vmferry_hypervisors.qemu.workload.record import Record

__all__ = ["Memory", "check_guest", "expected"]

_PIECE = 16384
_EXAMPLES = 5
_BOOT_SECTOR = FIRST_BLOCK * SECTORS // 2
Numbers = npt.NDArray[np.int64]


class Memory(NamedTuple):
    """What a stopped guest's memory holds.

    Attributes:
        state: its counters.
        table: the last write to each sector, disk after disk.
        touched: the first word of each page that it touches.
        noise: all words of the memory that is filled at the start.

    """

    state: State
    table: npt.NDArray[np.uint32]
    touched: npt.NDArray[np.uint32]
    noise: npt.NDArray[np.uint32]


class Expected(NamedTuple):
    """For each sector the write that it must hold, and one that it may hold instead; 0 for none."""

    must: Numbers
    may: Numbers


def _places(some: Operations, sectors: int, chosen: npt.NDArray[np.bool_]) -> tuple[Numbers, ...]:
    """Index into all disks of every sector of the chosen operations, and which operation it is."""
    which = np.flatnonzero(chosen)
    lengths = some.length[which]
    starts = some.disk[which] * sectors + some.first[which]
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + inside, np.repeat(which, lengths) + 1


def expected(program: Program, record: Record) -> Expected:
    """Replay the record."""
    size = program.disks * program.sectors
    must, may = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for boot in record.spoken().boots:
        some = operations(program, boot.number, boot.last + 1)
        done = some.write.copy()
        done[boot.last] = False
        base = boot.number << 24
        places, numbers = _places(some, program.sectors, done)
        must[places], may[places] = base + numbers, 0
        cut = some.write & ~done
        places, numbers = _places(some, program.sectors, cut)
        may[places] = base + numbers
    return Expected(must, may)


class _Tally:
    def __init__(self) -> None:
        self.checked = self.lost = self.wrong = 0
        self.examples: list[str] = []

    def say(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


def check_guest(
    program: Program, record: Record, disks: Sequence[Path], memory: Memory | None
) -> Verdict:
    """Compare raw disks, in the guest's order, and memory with the record.

    Raises:
        HypervisorError: a disk is shorter than the guest's.

    """
    record.update()
    spoken, tally = record.spoken(), _Tally()
    should = expected(program, record)
    for number, path in enumerate(disks):
        part = slice(number * program.sectors, (number + 1) * program.sectors)
        _check_disk(program, number, path, Expected(*(each[part] for each in should)), tally)
    tally.wrong += len(spoken.faults)
    for fault in spoken.faults:
        tally.say(f"record: {fault}")
    _check_boots(disks[0], len(spoken.boots), tally)
    return Verdict(
        acknowledged=record.writes,
        checked=tally.checked,
        lost=tally.lost,
        wrong=tally.wrong,
        bad_reads=record.bad_reads,
        bad_memory=_check_memory(program, should, record, memory, tally),
        examples=(*tally.examples, *_notes(record)),
    )


def _notes(record: Record) -> list[str]:
    gaps = [f"the guest stood still for {1000 * gap:.0f} ms at a switch" for gap in record.switches]
    return gaps + ([f"{record.errors} I/O errors"] if record.errors else [])


def _check_boots(disk: Path, boots: int, tally: _Tally) -> None:
    with disk.open("rb") as file:
        file.seek(_BOOT_SECTOR * SECTOR + 4)
        found = int.from_bytes(file.read(4), "little")
    if found not in (boots, boots + 1):
        tally.lost += 1
        tally.say(f"disk0 says that the guest was started {found} times, the record {boots}")


def _check_disk(program: Program, disk: int, path: Path, should: Expected, tally: _Tally) -> None:
    with path.open("rb") as file:
        file.seek(FIRST_BLOCK * SECTORS * SECTOR)
        for start in range(FIRST_BLOCK * SECTORS, program.sectors, _PIECE):
            numbers = np.arange(start, min(start + _PIECE, program.sectors))
            data = file.read(len(numbers) * SECTOR)
            if len(data) != len(numbers) * SECTOR:
                raise HypervisorError(f"disk {path} ends before sector {numbers[-1]}")
            pairs = np.frombuffer(data, dtype="<u4").reshape(len(numbers), SECTOR // 8, 2)
            here = Expected(*(each[numbers] for each in should))
            _judge(program, disk, numbers, pairs, here, tally)


def _judge(
    program: Program,
    disk: int,
    numbers: Numbers,
    pairs: npt.NDArray[np.uint32],
    should: Expected,
    tally: _Tally,
) -> None:
    holds = pairs[:, 0, 0].astype(np.int64)
    whole = (pairs == pairs[:, :1, :]).all(axis=(1, 2))
    ours = whole & (pairs[:, 0, 1] == (numbers | disk << 28))
    zero = whole & (holds == 0) & (pairs[:, 0, 1] == 0)
    never = should.must == 0
    filled = numbers < program.filled
    good = ours & (holds == should.must) & (~never | filled)
    good |= zero & never & ~filled
    good |= ours & (should.may != 0) & (holds == should.may)
    old = zero | (ours & (holds < should.must))
    lost = ~good & old
    tally.checked += len(numbers)
    tally.lost += int(np.count_nonzero(lost))
    tally.wrong += int(np.count_nonzero(~good & ~old))
    for at in np.flatnonzero(~good)[:_EXAMPLES]:
        what = "zeroes" if zero[at] else f"write {holds[at]:#x}" if ours[at] else "no such write"
        tally.say(f"disk{disk} sector {numbers[at]}: {what}, not {should.must[at]:#x}")


def _check_memory(
    program: Program, should: Expected, record: Record, memory: Memory | None, tally: _Tally
) -> int:
    """Pages that do not hold what the guest wrote there since it was last started."""
    if memory is None:
        return 0
    bad = _pages(~_table_is_right(program, should, record, memory.table))
    wrong = _wrong_counts(memory)
    start = program.touch[1]
    addresses = np.arange(start, start + 4 * len(memory.noise), 4, dtype=np.uint64)
    noise = (addresses * 2654435761 & 0xFFFFFFFF).astype(np.uint32)
    spoiled = _pages(memory.noise != noise)
    if bad + wrong + spoiled:
        tally.say(f"memory: {bad} pages of the table, {wrong} touched, {spoiled} filled are wrong")
    return bad + wrong + spoiled


def _table_is_right(
    program: Program, should: Expected, record: Record, table: npt.NDArray[np.uint32]
) -> npt.NDArray[np.bool_]:
    """Entry by entry; a reboot clears the table."""
    boots = record.spoken().boots
    first = boots[-1].number << 24 if boots else 0
    right: npt.NDArray[np.bool_] = table == np.where(should.must > first, should.must, 0)
    right |= (should.may > first) & (table == should.may)
    return right


def _wrong_counts(memory: Memory) -> int:
    """Pages touched too often or too seldom; the last touch may be half done."""
    pages = len(memory.touched)
    if not pages:
        return 0
    total = memory.state.touched
    found = [
        int(np.count_nonzero(memory.touched != total // pages + (np.arange(pages) < total % pages)))
        for total in (total, total + 1)
    ]
    return min(found)


def _pages(wrong: npt.NDArray[np.bool_]) -> int:
    return len(np.unique(np.flatnonzero(wrong) // 1024))

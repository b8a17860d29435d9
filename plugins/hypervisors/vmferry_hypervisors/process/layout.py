"""Where everything lies in guest memory.

::

    page 0      registers: state, sequence, random numbers, counters, clocks
    page 1      slots: requests that were issued and not acknowledged
    pages 2-5   program: the plan and the workload, as JSON
    then        per disk a table of the last acknowledged write of each unit
    then        the tape, if it replays a trace: its requests, one after the other
    then        a table of the scratch pages' counters
    then        scratch pages, each stamped with its number and counter
    the rest    never touched

An entry of a disk's table is 32 bits: the kind of write in the upper two, the sequence in the rest;
0 is a unit never written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from vmferry.errors import HypervisorError, InputError
from vmferry_hypervisors.process.workload import Kind, Workload

__all__ = [
    "ENTRY_SIZE",
    "MAX_SEQUENCE",
    "PAGE",
    "SEQUENCE_BITS",
    "SLOTS_PAGE",
    "DiskPlan",
    "Plan",
    "Program",
    "Registers",
    "Slot",
    "State",
    "make_plan",
    "read_program",
    "write_program",
]

PAGE = 4096
SLOTS_PAGE = 1
ENTRY_SIZE = 24
"""Bytes of one request on the tape."""
SLOTS = 64
SEQUENCE_BITS = 30
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1
"""The guest writes no more once it has used up its sequence numbers."""

_PROGRAM_PAGE, _PROGRAM_PAGES = 2, 4
_FIRST_TABLE = (_PROGRAM_PAGE + _PROGRAM_PAGES) * PAGE
_MAGIC = b"vmfguest"


class State:
    """Values of the register ``state``."""

    BLANK, RUNNING, SUSPENDED = range(3)


class Registers:
    """The processor state of a guest: attributes while it runs, bytes of page 0 when stored."""

    _FORMAT = struct.Struct("<8s14Q5d")
    _INTEGERS = (
        "state",
        "sequence",
        "random",
        "cursor",
        "requests",
        "writes",
        "reads",
        "bad_reads",
        "errors",
        "flushes",
        "reconnects",
        "memory_writes",
        "suspends",
        "unflushed",
    )
    _FLOATS = ("last_step", "longest_gap", "switch_gap", "longest_stall", "busy")
    SIZE = _FORMAT.size

    state: int
    sequence: int
    random: int
    cursor: int
    requests: int
    writes: int
    reads: int
    bad_reads: int
    errors: int
    flushes: int
    reconnects: int
    memory_writes: int
    suspends: int
    unflushed: int
    last_step: float
    longest_gap: float
    switch_gap: float
    longest_stall: float
    busy: float

    def __init__(self) -> None:
        for name in self._INTEGERS:
            setattr(self, name, 0)
        for name in self._FLOATS:
            setattr(self, name, 0.0)

    @classmethod
    def load(cls, memory: bytes | memoryview) -> Registers:
        """Read from the start of guest memory; raises ``HypervisorError`` if it holds none."""
        magic, *values = cls._FORMAT.unpack_from(memory)
        if magic != _MAGIC:
            raise HypervisorError("the memory holds no registers of a process guest")
        registers = cls()
        for name, value in zip(cls._INTEGERS + cls._FLOATS, values, strict=True):
            setattr(registers, name, value)
        return registers

    def store(self, memory: memoryview) -> None:
        """Write to the start of guest memory.

        In one copy: ``pack_into`` clears what is there first, which others would see, or be left
        with if the guest is killed.
        """
        fields = self.__dict__
        values = [fields[name] for name in self._INTEGERS + self._FLOATS]
        memory[: self.SIZE] = self._FORMAT.pack(_MAGIC, *values)


class Slot(msgspec.Struct):
    """A request that was issued and not acknowledged; ``unit`` and ``count`` say where.

    Its data are not kept: they follow from the kind, the place and the sequence.
    """

    kind: Kind
    disk: int
    sequence: int
    unit: int
    count: int

    _FORMAT = struct.Struct("<BBHIQQ8x")

    def store(self, memory: memoryview, index: int) -> None:
        """Record as issued, in slot ``index``."""
        at = SLOTS_PAGE * PAGE + index * self._FORMAT.size
        place = (self.disk, self.sequence, self.unit, self.count)
        memory[at : at + self._FORMAT.size] = self._FORMAT.pack(1, self.kind, *place)

    @classmethod
    def clear(cls, memory: memoryview, index: int) -> None:
        """Record slot ``index`` as free: the request was acknowledged."""
        memory[SLOTS_PAGE * PAGE + index * cls._FORMAT.size] = 0

    @classmethod
    def load_all(cls, memory: bytes | memoryview) -> dict[int, Slot]:
        """All slots in use, by index."""
        found = {}
        for index in range(SLOTS):
            at = SLOTS_PAGE * PAGE + index * cls._FORMAT.size
            used, kind, disk, sequence, unit, count = cls._FORMAT.unpack_from(memory, at)
            if used:
                found[index] = cls(Kind(kind), disk, sequence, unit, count)
        return found


class DiskPlan(msgspec.Struct, frozen=True):
    """One disk: its name, size in bytes, units the guest writes, byte offset of its table."""

    name: str
    size: int
    units: int
    table: int


class Plan(msgspec.Struct, frozen=True):
    """Offsets of everything in a memory of ``memory`` bytes; ``entries`` are those of the tape."""

    memory: int
    unit: int
    disks: tuple[DiskPlan, ...]
    counters: int
    scratch: int
    scratch_pages: int
    tape: int = 0
    entries: int = 0


class Program(msgspec.Struct, frozen=True):
    """What the guest runs."""

    plan: Plan
    workload: Workload


def make_plan(
    memory: int, disks: Sequence[tuple[str, int]], workload: Workload, entries: int = 0
) -> Plan:
    """Lay out ``memory`` bytes for ``disks`` (name and size in bytes each) and a tape.

    Raises:
        InputError: the memory is too small for the tables or the tape, or a disk for one request.

    """
    if memory % PAGE or memory <= _FIRST_TABLE:
        raise InputError(f"memory of {memory} bytes: use a multiple of {PAGE} above {_FIRST_TABLE}")
    share = (memory - _FIRST_TABLE) // 2 // max(1, len(disks))
    plans, at = [], _FIRST_TABLE
    for name, size in disks:
        units = _units(name, size, share // 4, workload)
        plans.append(DiskPlan(name, size, units, at))
        at += _pages(units * 4) * PAGE
    tape, at = at, at + _pages(entries * ENTRY_SIZE) * PAGE
    if at >= memory:
        raise InputError(
            f"a trace of {entries} requests needs {entries * ENTRY_SIZE} bytes of the guest's "
            f"memory, beside {tape} for its tables: give it more than {memory}"
        )
    scratch_pages = min(workload.memory_set // PAGE, (memory - at) // PAGE * 9 // 10)
    scratch = at + _pages(scratch_pages * 4) * PAGE
    return Plan(memory, workload.unit, tuple(plans), at, scratch, scratch_pages, tape, entries)


def _pages(size: int) -> int:
    return -(-size // PAGE)


def _units(name: str, size: int, room: int, workload: Workload) -> int:
    """Units of a disk that get a table entry: all, the working set, or what there is room for."""
    wanted = min(size, workload.working_set or size) // workload.unit
    room -= room % (PAGE // 4)
    if workload.working_set and wanted > room:
        raise InputError(
            f"disk {name}: a working set of {workload.working_set} bytes needs {wanted * 4} bytes "
            f"of table, there is room for {room * 4}; give the guest more memory"
        )
    if min(wanted, room) * workload.unit < workload.io_size:
        raise InputError(f"disk {name}: too small for requests of {workload.io_size} bytes")
    return min(wanted, room)


def write_program(memory: memoryview, program: Program) -> None:
    """Store what the guest runs in its memory."""
    text = msgspec.json.encode(program)
    if len(text) + 4 > _PROGRAM_PAGES * PAGE:
        raise InputError(f"{len(program.plan.disks)} disks are more than a process guest can have")
    at = _PROGRAM_PAGE * PAGE
    memory[at : at + 4 + len(text)] = struct.pack("<I", len(text)) + text


def read_program(memory: bytes | memoryview) -> Program:
    """Read what the guest runs; raises ``HypervisorError`` if there is nothing sensible."""
    at = _PROGRAM_PAGE * PAGE
    try:
        (length,) = struct.unpack_from("<I", memory, at)
        return msgspec.json.decode(bytes(memory[at + 4 : at + 4 + length]), type=Program)
    except (struct.error, ValueError) as error:
        raise HypervisorError(f"the memory holds no program of a process guest: {error}") from error

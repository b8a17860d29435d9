"""The guest as a machine: registers, requests under way, and one step after another.

Everything that matters is in guest memory whenever ``step`` is not running, so between two steps is
where the guest can be suspended: the registers are stored, each request without an acknowledgement
is in a slot, each acknowledged write is in the table. A machine that finds that memory elsewhere
issues what is in the slots again and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vmferry_hypervisors.process.console import Console, Event
from vmferry_hypervisors.process.disk import Completion, Disk, Request
from vmferry_hypervisors.process.disks import FileDisk, open_disk
from vmferry_hypervisors.process.judge import entry, judge
from vmferry_hypervisors.process.layout import (
    MAX_SEQUENCE,
    PAGE,
    SLOTS_PAGE,
    DiskPlan,
    Plan,
    Program,
    Registers,
    Slot,
    State,
    make_plan,
    read_program,
    write_program,
)
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.scratch import Scratch
from vmferry_hypervisors.process.stamps import DISK_MAGIC, read_stamps, stamp
from vmferry_hypervisors.process.tape import Tape, load_trace, store_tape
from vmferry_hypervisors.process.workload import Kind, Splitmix, Workload

__all__ = ["Machine", "clock", "initialise"]

_TICK = 0.002
"""Longest sleep in seconds: what the guest's own measure of a gap cannot be finer than."""
_BEHIND = 0.05
_TRIES = 8
_BATCH = 64
_TOLD = 100
"""Bad reads that are described; the rest is only counted."""


def clock() -> float:
    """Seconds of ``CLOCK_BOOTTIME``, which all processes of one machine share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def initialise(memory: GuestMemory, disks: Sequence[tuple[str, int]], workload: Workload) -> None:
    """Write the memory of a guest that has not run.

    Raises:
        InputError: the memory is too small, or the trace that it is to replay cannot be used.

    """
    requests = load_trace(workload.trace)
    plan = make_plan(memory.size, disks, workload, 0 if requests is None else len(requests))
    write_program(memory.view, Program(plan, workload))
    if requests is not None:
        store_tape(memory, plan, requests)
    registers = Registers()
    registers.random = workload.seed
    registers.last_step = clock()
    registers.store(memory.view)
    memory.mark(0, plan.counters)


class Machine:
    """Runs what ``memory`` holds, on the disks at ``urls`` (by name)."""

    def __init__(
        self,
        memory: GuestMemory,
        urls: dict[str, str],
        console: Console,
        log: Callable[[str], None],
    ) -> None:
        program = read_program(memory.view)
        self.registers = Registers.load(memory.view)
        self.plan: Plan = program.plan
        self.quiescing = False
        self.held: set[int] = set()
        self._memory, self._console, self._log = memory, console, log
        self._workload = program.workload
        self._random = Splitmix(self.registers.random)
        self._tape = Tape(memory, self.plan, self._workload.trace_speed)
        self._scratch = Scratch(memory, self.plan, self._workload.memory_rate)
        self._tables = [self._table(disk) for disk in self.plan.disks]
        self._slots = Slot.load_all(memory.view)
        self._free = [index for index in range(64) if index not in self._slots]
        self._disks = [self._open(urls[disk.name], disk) for disk in self.plan.disks]
        self._next_issue = clock()
        self._resumed = self.registers.state != State.BLANK
        self._moved_at = self.registers.last_step
        self._submitted_at: dict[int, float] = {}
        for index, slot in self._slots.items():
            self._submit(index, slot)
            self._submitted_at[index] = self.registers.last_step  # it waits at least since then

    def _table(self, disk: DiskPlan) -> npt.NDArray[np.uint32]:
        return self._memory.bytes[disk.table : disk.table + disk.units * 4].view("<u4")

    def _open(self, url: str, disk: DiskPlan) -> Disk:
        return open_disk(url, disk.size, self.registers, self._log)

    @property
    def disks(self) -> Sequence[Disk]:
        """The disks, in the order of the plan."""
        return self._disks

    def outstanding(self, disk: int | None = None) -> int:
        """Requests without an acknowledgement, of one disk or of all."""
        return sum(disk in (None, slot.disk) for slot in self._slots.values())

    def patience(self, now: float) -> float:
        """Seconds after which ``step`` is due, whatever the disks do."""
        if any(isinstance(disk, FileDisk) and disk.busy for disk in self._disks):
            return 0.0
        if self._workload.idle or not self._paced or self.quiescing:
            return _TICK
        return min(_TICK, max(0.0, self._next_issue - now))

    def step(self) -> None:
        """Take what was completed, issue what is due, dirty memory, store the registers.

        Quiesced, with nothing under way, it leaves memory alone: it may be killed at any moment.
        """
        if self.quiescing and not self._slots:
            self._console.flush()
            return
        now = clock()
        self._account(now)
        for index, disk in enumerate(self._disks):
            for completion in disk.poll(now):
                self._complete(index, completion, now)
        self._console.flush()
        self._issue(now)
        self._scratch.step(now, self.registers, self._random)
        self._store(State.RUNNING)

    def suspend(self) -> None:
        """Store everything; ``step`` is not called until ``resume``."""
        self.registers.suspends += 1
        self._store(State.SUSPENDED)
        self._console.add(Event.SUSPENDED, 0, 0, self.registers.writes, 0)
        self._console.flush()

    def resume(self) -> None:
        """Go on where ``suspend`` was called; replies that came meanwhile are taken as usual."""
        self._resumed = True

    def pivot(self, index: int, url: str) -> None:
        """Put a disk on ``url``. Legal when it is held and has nothing outstanding."""
        replacement = self._open(url, self.plan.disks[index])
        self._disks[index].close()
        self._disks[index] = replacement
        self.held.discard(index)
        self._console.add(Event.PIVOTED, index, 0, self.registers.writes, 0)

    def _account(self, now: float) -> None:
        registers = self.registers
        gap = now - registers.last_step
        registers.longest_gap = max(registers.longest_gap, gap)
        registers.last_step = now
        if self._slots:
            registers.longest_stall = max(registers.longest_stall, now - self._moved_at)
        else:
            self._moved_at = now
        if self._resumed:
            self._resumed = False
            registers.switch_gap = gap
            self._console.add(Event.RESUMED, 0, 0, registers.writes, int(gap * 1e6))

    def _store(self, state: int) -> None:
        self.registers.state = state
        self.registers.random = self._random.state
        self.registers.store(self._memory.view)
        self._memory.mark(0, (SLOTS_PAGE + 1) * PAGE)

    def _complete(self, index: int, completion: Completion, now: float) -> None:
        request, registers = completion.request, self.registers
        slot = self._slots.pop(request.slot)
        self._free.append(request.slot)
        self._moved_at = now
        waited = max(0.0, now - self._submitted_at.pop(request.slot))
        registers.busy += 0.0 if slot.kind == Kind.FLUSH else waited
        if slot.kind == Kind.READ:
            self._verify(index, slot, completion.data)
        elif slot.kind == Kind.FLUSH:
            registers.flushes += 1
        else:
            self._acknowledged(index, slot)
        Slot.clear(self._memory.view, request.slot)

    def _acknowledged(self, index: int, slot: Slot) -> None:
        """A write was completed: from here on the guest counts on it."""
        self._tables[index][slot.unit : slot.unit + slot.count] = entry(slot.kind, slot.sequence)
        self._memory.mark(self.plan.disks[index].table + slot.unit * 4, slot.count * 4)
        self._console.add(slot.kind, index, slot.sequence, slot.unit, slot.count)
        self.registers.writes += 1
        self.registers.unflushed += 1

    def _verify(self, index: int, slot: Slot, data: bytes) -> None:
        unit = self.plan.unit
        units = np.arange(slot.unit, slot.unit + slot.count)
        words = np.frombuffer(data, dtype="<u8").reshape(slot.count, unit // 8)
        found = read_stamps(DISK_MAGIC, units, words)
        entries = self._tables[index][slot.unit : slot.unit + slot.count]
        lost, wrong = judge(units, entries, found, unit, self._workload.prefill)
        self.registers.reads += 1
        if (lost | wrong).any():
            self.registers.bad_reads += 1
            if self.registers.bad_reads <= _TOLD:
                at = int(np.argmax(lost | wrong))
                place = f"disk {index} unit {slot.unit + at}"
                self._log(f"bad read: {place} holds {found[at]}, table entry {entries[at]:#x}")

    def _issue(self, now: float) -> None:
        workload = self._workload
        if workload.idle or self.quiescing:
            return
        if self._next_issue < now - _BEHIND:
            self._next_issue = now
        for _ in range(_BATCH):
            full = len(self._slots) >= workload.queue_depth
            if full or (self._paced and self._next_issue > now):
                return
            if self.plan.entries:
                if not self._replay_one():
                    return
                continue
            self._issue_one()
            self._next_issue += 1 / workload.write_rate if workload.write_rate else 0.0

    @property
    def _paced(self) -> bool:
        return bool(self._workload.write_rate or self.plan.entries)

    def _replay_one(self) -> bool:
        """Make the next request of the tape, unless it would touch one that is under way."""
        registers = self.registers
        slot = self._tape.slot(registers.cursor)
        barred = slot.disk in self.held or registers.sequence >= MAX_SEQUENCE
        if barred or any(_collide(slot, other) for other in self._slots.values()):
            return False
        self._next_issue += self._tape.pause(registers.cursor)
        registers.cursor += 1
        self._start(slot)
        return True

    def _issue_one(self) -> None:
        for _ in range(_TRIES):
            slot = self._choose()
            if slot is not None:
                self._start(slot)
                return

    def _start(self, slot: Slot) -> None:
        if slot.kind in (Kind.WRITE, Kind.ZERO, Kind.TRIM):
            self.registers.sequence += 1
            slot.sequence = self.registers.sequence
        index = self._free.pop()
        self._slots[index] = slot
        slot.store(self._memory.view, index)
        self.registers.requests += 1
        self._submit(index, slot)

    def _choose(self) -> Slot | None:
        """The next request, or ``None`` if it would touch one that is under way."""
        random, workload, registers = self._random, self._workload, self.registers
        disk = random.below(len(self.plan.disks))
        if disk in self.held or registers.sequence >= MAX_SEQUENCE:
            return None
        if workload.fsync_every and registers.unflushed >= workload.fsync_every:
            registers.unflushed = 0
            return Slot(Kind.FLUSH, disk, 0, 0, 0)
        count = workload.io_size // workload.unit
        places = self.plan.disks[disk].units // count
        unit = random.place(workload.pattern, registers.cursor, places) * count
        registers.cursor += 1
        slot = Slot(self._kind(), disk, 0, unit, count)
        return None if any(_collide(slot, other) for other in self._slots.values()) else slot

    def _kind(self) -> Kind:
        random, workload = self._random, self._workload
        if random.chance(workload.read_ratio):
            return Kind.READ
        if random.chance(workload.zero_ratio):
            return Kind.ZERO
        return Kind.TRIM if random.chance(workload.trim_ratio) else Kind.WRITE

    def _submit(self, index: int, slot: Slot) -> None:
        unit = self.plan.unit
        self._submitted_at[index] = clock()
        request = Request(
            index, slot.kind, slot.unit * unit, slot.count * unit, lambda: _payload(slot, unit)
        )
        self._disks[slot.disk].submit(request)


def _payload(slot: Slot, unit: int) -> bytes:
    units = np.arange(slot.unit, slot.unit + slot.count)
    return stamp(DISK_MAGIC, units, np.full(slot.count, slot.sequence), unit).tobytes()


def _collide(slot: Slot, other: Slot) -> bool:
    if slot.disk != other.disk or (slot.kind == Kind.READ and other.kind == Kind.READ):
        return False
    return slot.unit < other.unit + other.count and other.unit < slot.unit + slot.count

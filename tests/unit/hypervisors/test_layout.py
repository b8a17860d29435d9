"""Guest memory: where things lie, registers, slots, dirty bytes."""

import itertools
import sys
import threading
import time

import numpy as np
import pytest

from vmferry.errors import HypervisorError, InputError
from vmferry_hypervisors.process.layout import (
    PAGE,
    Program,
    Registers,
    Slot,
    make_plan,
    read_program,
    write_program,
)
from vmferry_hypervisors.process.memory import GuestMemory, create_memory
from vmferry_hypervisors.process.workload import Kind, Workload

MIB = 1 << 20


def test_plan_overlaps_nowhere():
    plan = make_plan(16 * MIB, [("a", 64 * MIB), ("b", 10 * MIB)], Workload())
    ends = [(disk.table, disk.table + disk.units * 4) for disk in plan.disks]
    ends.append((plan.counters, plan.counters + plan.scratch_pages * 4))
    ends.append((plan.scratch, plan.scratch + plan.scratch_pages * PAGE))
    for (_, end), (start, _) in itertools.pairwise(ends):
        assert end <= start
        assert start % PAGE == 0
    assert ends[-1][1] <= 16 * MIB
    assert plan.disks[0].units == 64 * MIB // 4096


def test_large_disk_is_used_as_far_as_the_table_goes():
    plan = make_plan(MIB, [("a", 1 << 40)], Workload())
    assert 0 < plan.disks[0].units * 4 <= MIB // 2


@pytest.mark.parametrize(
    ("memory", "size", "workload", "text"),
    [
        (MIB + 1, MIB, Workload(), "multiple"),
        (PAGE, MIB, Workload(), "multiple"),
        (MIB, 1 << 40, Workload(working_set=1 << 39), "more memory"),
        (MIB, 4096, Workload(io_size=8192), "too small"),
    ],
)
def test_what_does_not_fit_is_refused(memory, size, workload, text):
    with pytest.raises(InputError, match=text):
        make_plan(memory, [("a", size)], workload)


def test_io_size_is_whole_units():
    with pytest.raises(ValueError, match="multiple"):
        Workload(unit=4096, io_size=6144)


def test_registers_and_slots_survive_being_stored():
    memory = memoryview(bytearray(MIB))
    registers = Registers()
    registers.random, registers.longest_gap, registers.errors = 2**64 - 1, 0.25, 7
    registers.store(memory)
    assert vars(Registers.load(memory)) == vars(registers)
    slots = {3: Slot(Kind.TRIM, 1, 99, 2**40, 8), 63: Slot(Kind.FLUSH, 0, 0, 0, 0)}
    for index, slot in slots.items():
        slot.store(memory, index)
    assert Slot.load_all(memory) == slots
    Slot.clear(memory, 3)
    assert list(Slot.load_all(memory)) == [63]
    assert vars(Registers.load(memory)) == vars(registers)


def test_program_survives_being_stored():
    memory = memoryview(bytearray(MIB))
    program = Program(make_plan(MIB, [("a", MIB)], Workload()), Workload(seed=4))
    write_program(memory, program)
    assert read_program(memory) == program


@pytest.mark.parametrize("start", [b"", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00{}{}{"])
def test_memory_of_something_else_is_refused(start):
    memory = bytearray(MIB)
    memory[2 * PAGE : 2 * PAGE + len(start)] = start
    with pytest.raises(HypervisorError):
        read_program(memory)
    with pytest.raises(HypervisorError):
        Registers.load(memory)


@pytest.fixture
def memory(tmp_path):
    create_memory(tmp_path, 64 * MIB)
    memory = GuestMemory(tmp_path)
    yield memory
    memory.close()


def test_marked_pages_are_harvested_once(memory):
    memory.mark(PAGE - 1, 2)
    memory.mark(10 * PAGE, PAGE)
    assert memory.count_dirty() == 3
    assert memory.harvest().tolist() == [0, 1, 10]
    assert memory.harvest().tolist() == []


@pytest.fixture
def hurried():
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_no_update_is_lost_between_writer_and_copier(memory, hurried):
    """One thread writes and marks, another harvests and copies: the copy ends up the same."""
    copy = np.zeros_like(memory.pages)
    done = threading.Event()

    def write():
        random = np.random.default_rng(1)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pages = np.unique(random.integers(0, 16384, 2))
            memory.pages[pages] += np.uint64(1)
            memory.dirty[pages] = 1
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        pages = memory.harvest()
        copy[pages] = memory.pages[pages]
    writer.join()
    pages = memory.harvest()
    copy[pages] = memory.pages[pages]
    assert memory.pages.any()
    assert (copy == memory.pages).all()


def test_memory_is_not_made_twice(tmp_path):
    create_memory(tmp_path, MIB)
    with pytest.raises(FileExistsError):
        create_memory(tmp_path, MIB)


def test_digest_depends_on_contents_and_place_alone(memory, tmp_path):
    digests = [memory.digest()]
    for page, value in [(5, 1), (5, 2), (5, 0), (700, 1), (700, 0), (16383, 1)]:
        memory.pages[page, 3] = value
        digests.append(memory.digest())
    assert len(set(digests)) == 5
    assert digests[0] == digests[3] == digests[5]


def test_holes_are_left_alone(memory, tmp_path):
    memory.pages[300] = 1
    memory.digest()
    assert memory.data_segments() == [1]
    assert (tmp_path / "memory").stat().st_blocks * 512 <= MIB

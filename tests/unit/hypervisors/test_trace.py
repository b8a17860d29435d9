"""Block traces: what is read of them, and what a guest makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmferry.errors import InputError
from vmferry_hypervisors.process.layout import PAGE, make_plan
from vmferry_hypervisors.process.memory import GuestMemory, create_memory
from vmferry_hypervisors.process.tape import Tape, store_tape
from vmferry_hypervisors.process.trace import read_trace
from vmferry_hypervisors.process.workload import Kind, Workload

MIB = 1 << 20
FIO2 = """fio version 2 iolog
/dev/sda add
/dev/sda open
/dev/sda write 8192 4096
/dev/sda wait 1500 0
/dev/sdb read 0 65536
/dev/sda trim 1048576 8192
/dev/sda sync 0 0
/dev/sda close
"""
FIO3 = """fio version 3 iolog
21 /dev/sda add
129 /dev/sda open
133 /dev/sda write 8192 4096
1633 /dev/sdb read 0 65536
1633 /dev/sda trim 1048576 8192
1633 /dev/sda datasync 0 0
2007 /dev/sda close
"""
BLKPARSE = """  8,0    3        1     0.000000000   697  Q   W 16 + 8 [kjournald]
  8,0    3        2     0.000000829   697  G   W 16 + 8 [kjournald]
  8,0    3        0     0.000001000     0  m   N cfq697 insert_request
  8,16   1        3     0.001500000   698  Q   R 0 + 128 [cat]
  8,0    1        4     0.001500000   698  Q   D 2048 + 16 [fstrim]
  8,0    1        5     0.001500000   698  Q FWS [sync]
  8,0    3        6     0.001700000     0  C   W 16 + 8 [0]
CPU0 (8,0):
 Reads Queued:           1,       64KiB  Writes Queued:           1,        4KiB
"""
THE_SAME = [
    (0, 8192, 4096, Kind.WRITE, 0),
    (1500, 0, 65536, Kind.READ, 1),
    (1500, 1048576, 8192, Kind.TRIM, 0),
    (1500, 0, 0, Kind.FLUSH, 0),
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.mark.parametrize("text", [FIO2, FIO3, BLKPARSE], ids=["fio2", "fio3", "blkparse"])
def test_three_ways_to_say_the_same(trace: Path, text: str) -> None:
    trace.write_text(text)
    assert [tuple(one) for one in read_trace(trace).tolist()] == THE_SAME


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the first line is neither"),
        ("a b c\n", "the first line is neither"),
        ("fio version 4 iolog\n", "the first line is neither"),
        ("fio version 3 iolog\n5 f read 0 512\n", "holds no write"),
        ("fio version 3 iolog\n5 f write 0\n", "line 2: '5 f write 0'"),
        ("fio version 3 iolog\n5 f write -1 512\n", "line 2"),
        ("fio version 3 iolog\n5 f scribble 0 512\n", "line 2"),
        ("fio version 2 iolog\nf write 0 1e9\n", "line 2"),
        ("fio version 3 iolog\n99999999999999999999 f write 0 512\n", "line 2"),
        ("8,0 3 1 soon 697 Q W 16 + 8 [x]\n", "line 1"),
    ],
)
def test_what_is_no_trace_is_named_with_its_line(trace: Path, text: str, complaint: str) -> None:
    trace.write_text(text)
    with pytest.raises(InputError, match="trace") as refused:
        read_trace(trace)
    assert complaint in str(refused.value)


def test_no_file_and_no_text(trace: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(trace)
    trace.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="utf-8"):
        read_trace(trace)


def test_requests_keep_inside_what_the_guest_uses(trace: Path, tmp_path: Path) -> None:
    trace.write_text(
        "fio version 3 iolog\n0 a write 6000 5000\n9 b write 999999999 4096\n9 a write 0 99999999\n"
    )
    requests = read_trace(trace)
    plan = make_plan(MIB, [("a", MIB // 2)], Workload(), len(requests))
    create_memory(tmp_path, MIB)
    memory = GuestMemory(tmp_path)
    try:
        store_tape(memory, plan, requests)
        tape = Tape(memory, plan, 1.0)
        slots = [tape.slot(number) for number in range(4)]
        assert (slots[0].unit, slots[0].count) == (1, 2)
        units = plan.disks[0].units
        assert all(one.disk == 0 and one.unit + one.count <= units for one in slots)
        assert slots[3] == slots[0]
        assert [tape.pause(number) for number in range(3)] == [9e-6, 0.0, 0.0]
        assert Tape(memory, plan, 3.0).pause(0) == pytest.approx(3e-6)
        assert Tape(memory, plan, 0.0).pause(0) == 0.0
        assert not np.shares_memory(requests, memory.bytes)
        del tape
    finally:
        memory.close()


def test_a_tape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"a trace of 99999 requests needs 2399976 bytes"):
        make_plan(MIB, [("a", MIB)], Workload(), 99999)
    plan = make_plan(MIB, [("a", MIB)], Workload(), 100)
    assert plan.tape % PAGE == 0
    assert plan.tape + 100 * 24 <= plan.counters

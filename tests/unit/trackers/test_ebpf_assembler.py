from __future__ import annotations

import pytest

from vmferry_trackers.ebpf.assembler import Assembler, Helper, Reg


def assembled(write):
    asm = Assembler()
    write(asm)
    return asm.assemble().hex(" ", 8)


# Expected bytes are those of llvm-mc's BPF back end (`llvm-mc -triple bpfel -show-encoding`).
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda asm: asm.exit(), "9500000000000000"),
        (lambda asm: asm.set(Reg.R0, 0), "b700000000000000"),
        (lambda asm: asm.set(Reg.R7, Reg.R2), "bf27000000000000"),
        (lambda asm: asm.set(Reg.R1, -1), "b7010000ffffffff"),
        (lambda asm: asm.set(Reg.R1, 1 << 40), "1801000000000000 0000000000010000"),
        (lambda asm: asm.set_map(Reg.R1, 5), "1811000005000000 0000000000000000"),
        (lambda asm: asm.load(Reg.R3, Reg.R2, 24, 4), "6123180000000000"),
        (lambda asm: asm.load(Reg.R3, Reg.R1, 8, 8), "7913080000000000"),
        (lambda asm: asm.store(Reg.STACK, -8, 1, 4), "620af8ff01000000"),
        (lambda asm: asm.store(Reg.STACK, -16, Reg.R1, 8), "7b1af0ff00000000"),
        (lambda asm: asm.atomic_or(Reg.R0, 0, Reg.R1), "db10000040000000"),
        (lambda asm: asm.atomic_add(Reg.R0, 0, Reg.R6), "db60000001000000"),
        (lambda asm: asm.alu(Reg.R7, ">>", 9), "7707000009000000"),
        (lambda asm: asm.alu(Reg.R8, "=", Reg.R8, 4), "bc88000000000000"),
        (lambda asm: asm.call(Helper.MAP_LOOKUP), "8500000001000000"),
    ],
)
def test_encodes_as_the_kernel_reads(write, expected):
    assert assembled(write) == expected


def test_jumps_over_what_lies_between_in_both_directions():
    asm = Assembler()
    asm.label("back")
    asm.jump_if(Reg.R1, "==", 7, "on")
    asm.set(Reg.R2, 1 << 40)
    asm.jump("back")
    asm.label("on")
    asm.jump_if(Reg.R1, ">", Reg.R2, "back")
    code = asm.assemble()
    assert len(code) == 8 * len(asm) == 40
    assert code[:8].hex() == "1501030007000000"
    assert code[24:32].hex() == "0500fcff00000000"
    assert code[32:].hex() == "2d21fbff00000000"


def test_label_that_is_nowhere_is_an_error():
    asm = Assembler()
    asm.jump("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        asm.assemble()


def test_label_that_is_there_twice_is_an_error():
    asm = Assembler()
    asm.label("here")
    with pytest.raises(ValueError, match="twice"):
        asm.label("here")

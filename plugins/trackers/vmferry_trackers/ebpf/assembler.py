"""Writes eBPF instructions, with labels in place of distances.

The instruction set is that of the kernel's ``Documentation/bpf/instruction-set.rst``. An
instruction has 8 bytes: opcode, two registers of 4 bits, a 16-bit offset and a 32-bit constant; a
64-bit constant takes two of them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Literal

__all__ = ["Assembler", "Helper", "Reg"]

Width = Literal[4, 8]
"""Bytes of a load, a store or an operation."""


class Reg(enum.IntEnum):
    """Registers: 0 has results, 1-5 arguments and are lost in a call, 6-9 stay, 10 is the stack."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    STACK = 10


class Helper(enum.IntEnum):
    """Functions of the kernel that a program may call (``include/uapi/linux/bpf.h``)."""

    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3


_LD_IMM64, _CALL, _EXIT, _JUMP = 0x18, 0x85, 0x95, 0x05
_LOAD, _STORE_REG, _STORE_IMM, _ATOMIC = 0x61, 0x63, 0x62, 0xDB
_WIDE = 0x18  # added to a load's or store's opcode: 8 bytes in place of 4
_FROM_REG = 0x08  # the operand is a register
_MAP_FD = 1  # BPF_PSEUDO_MAP_FD: the constant is a descriptor, the register gets the map
_ALU = {
    "+": 0x00, "-": 0x10, "*": 0x20, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70, "=": 0xB0,
}  # fmt: skip
_CONDITIONS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "has": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0,
}  # fmt: skip
_OR, _ADD_FETCH = 0x40, 0x01


class Assembler:
    """Collects instructions; ``assemble`` gives their bytes.

    Comparisons are unsigned. Operands are a register, or a constant of 32 bits with its sign.
    """

    def __init__(self) -> None:
        self._code: list[Callable[[int], bytes]] = []
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        """Instructions so far; a 64-bit constant counts as two."""
        return len(self._code)

    def label(self, name: str) -> None:
        """Name the place of the next instruction.

        Raises:
            ValueError: it is the name of another place.

        """
        if name in self._labels:
            raise ValueError(f"the label {name!r} is there twice")
        self._labels[name] = len(self._code)

    def alu(self, target: Reg, operation: str, operand: int, width: Width = 8) -> None:
        """``target = target operation operand``; one of 4 bytes zeroes the upper half."""
        opcode = _ALU[operation] | (0x07 if width == 8 else 0x04)
        self._operand(opcode, target, operand)

    def set(self, target: Reg, operand: int) -> None:
        """``target = operand``, a register or any constant of up to 64 bits."""
        if isinstance(operand, Reg) or -(1 << 31) <= operand < 1 << 31:
            self.alu(target, "=", operand)
        else:
            self._wide(target, operand & (1 << 64) - 1, 0)

    def set_map(self, target: Reg, fd: int) -> None:
        """``target`` becomes the map behind the descriptor."""
        self._wide(target, fd, _MAP_FD)

    def load(self, target: Reg, base: Reg, offset: int, width: Width) -> None:
        """``target`` becomes what memory has at ``base + offset``."""
        opcode = _LOAD + (_WIDE if width == 8 else 0)
        self._emit(opcode, target, base, offset, 0)

    def store(self, base: Reg, offset: int, operand: int, width: Width) -> None:
        """Memory at ``base + offset`` becomes ``operand``."""
        wide = _WIDE if width == 8 else 0
        if isinstance(operand, Reg):
            self._emit(_STORE_REG + wide, base, operand, offset, 0)
        else:
            self._emit(_STORE_IMM + wide, base, 0, offset, operand)

    def atomic_or(self, base: Reg, offset: int, source: Reg) -> None:
        """Set the bits of ``source`` in 8 bytes of memory, in one step."""
        self._emit(_ATOMIC, base, source, offset, _OR)

    def atomic_add(self, base: Reg, offset: int, source: Reg) -> None:
        """Add ``source`` to 8 bytes of memory in one step; ``source`` becomes what was there."""
        self._emit(_ATOMIC, base, source, offset, _ADD_FETCH)

    def jump(self, label: str) -> None:
        """Go on at ``label``."""
        self._branch(_JUMP, 0, 0, label, 0)

    def jump_if(self, left: Reg, condition: str, right: int, label: str) -> None:
        """Go on at ``label`` if the comparison of 64 bits holds; ``has``: some bit is common."""
        opcode = _CONDITIONS[condition] | _JUMP
        if isinstance(right, Reg):
            self._branch(opcode | _FROM_REG, left, right, label, 0)
        else:
            self._branch(opcode, left, 0, label, right)

    def call(self, helper: Helper) -> None:
        """Call a function of the kernel."""
        self._emit(_CALL, 0, 0, 0, helper)

    def exit(self) -> None:
        """End the program with the value of register 0."""
        self._emit(_EXIT, 0, 0, 0, 0)

    def assemble(self) -> bytes:
        """The program for a little-endian machine.

        Raises:
            ValueError: a label that is jumped to is nowhere.

        """
        return b"".join(make(at) for at, make in enumerate(self._code))

    def _operand(self, opcode: int, target: Reg, operand: int) -> None:
        if isinstance(operand, Reg):
            self._emit(opcode | _FROM_REG, target, operand, 0, 0)
        else:
            self._emit(opcode, target, 0, 0, operand)

    def _emit(self, opcode: int, target: int, source: int, offset: int, constant: int) -> None:
        made = _encode(opcode, target, source, offset, constant)
        self._code.append(lambda at: made)

    def _wide(self, target: Reg, value: int, kind: int) -> None:
        low, high = struct.unpack("<ii", struct.pack("<Q", value))
        self._emit(_LD_IMM64, target, kind, 0, low)
        self._emit(0, 0, 0, 0, high)

    def _branch(self, opcode: int, target: int, source: int, label: str, constant: int) -> None:
        def make(at: int) -> bytes:
            if label not in self._labels:
                raise ValueError(f"there is no label {label!r}")
            distance = self._labels[label] - at - 1
            return _encode(opcode, target, source, distance, constant)

        self._code.append(make)


def _encode(opcode: int, target: int, source: int, offset: int, constant: int) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, constant)
